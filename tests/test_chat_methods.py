"""Each stage and each fault of the methods that ask a chat model one question per stage."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgen.engines import Completion, Request
from instructgen.environments import read_tools
from instructgen.errors import ConfigError, InputError
from instructgen.filters.novelty import Novelty
from instructgen.generation.answers import answer_fault
from instructgen.generation.methods import Method, PromptSetup
from instructgen.generation.methods.alpaca import Alpaca
from instructgen.generation.methods.code import CodeTasks
from instructgen.generation.methods.document import Document
from instructgen.generation.methods.evol import ANSWER, COMPARE, EVOLVE, OPERATIONS, Evol
from instructgen.generation.methods.magpie import Magpie
from instructgen.generation.methods.persona import Persona
from instructgen.generation.methods.rationale import Rationale
from instructgen.generation.methods.reverse import Reverse
from instructgen.generation.methods.self_chat import SelfChat
from instructgen.generation.methods.self_instruct import SelfInstruct
from instructgen.generation.methods.solve import Solve
from instructgen.generation.methods.tool_dialogue import ToolDialogue
from instructgen.generation.prompts import languages, template_for
from instructgen.generation.seed_pool import load_seeds, seed_format
from instructgen.plugins import classes, load_plugin
from instructgen.schema.messages import Message
from instructgen.schema.sample import Label, Place, Sample
from tests.conftest import ROOT
from tests.scripted import CHAT, PLAIN, Played, play

DESK = ROOT / "examples" / "desk"
DESK_TOOLS = read_tools(DESK / "tools.json")
load_plugin(DESK / "desk.py")
CUT = Completion("It begins and", "length", 9, 5)
FAILED = Completion.failed("HTTP 400: no")
ROW = Sample(
    "Name a fruit.",
    output="An apple.",
    language="en",
    license="CC-BY-4.0",
    category="food",
    attribution=("The fruit people",),
    generators=("gpt-4",),
)


def prompt_of(request: Request) -> str:
    assert isinstance(request.prompt, tuple)
    last = request.prompt[-1]
    assert isinstance(last, Message)
    return last.content


# -- evol -----------------------------------------------------------------------------------


SAID = '{"answer": ["Different"]}'
EQUAL = '{"answer": ["Equal"]}'


def evolving(**by_stage: Any) -> Callable[[Request], str | Completion]:
    """Return a model that gives each stage its next answer; the last one is repeated."""
    default = {EVOLVE: ["Name a rare fruit of Peru."], COMPARE: [SAID], ANSWER: ["Lucuma."]}
    scripts = {stage: list(by_stage.get(stage, some)) for stage, some in default.items()}

    def answer(request: Request) -> str | Completion:
        some = scripts[request.stage]
        return some.pop(0) if len(some) > 1 else some[0]

    return answer


def test_evol_makes_a_row_per_round_from_the_row_before() -> None:
    model = evolving(
        evolve=["Name a rare fruit of Peru.", "Name two rare fruits of Peru."],
        answer=["Lucuma.", Completion("Lucuma, camu camu.", "stop", 9, 5, reasoning="Hm, Peru.")],
    )
    done = play(Evol(rounds=2, operations=("deepen",)), [ROW], model)
    assert done.stages() == [EVOLVE, COMPARE, ANSWER] * 2
    assert [r.role for r in done.requests] == ["writer", "judge", "writer"] * 2
    assert [r.model for r in done.requests] == ["writer", "critic", "writer"] * 2
    one, two = done.rows
    assert (one.instruction, one.output) == ("Name a rare fruit of Peru.", "Lucuma.")
    assert (two.instruction, two.output) == ("Name two rare fruits of Peru.", "Lucuma, camu camu.")
    assert two.reasoning_content == "Hm, Peru."
    assert [{x.name: x.value for x in row.labels} for row in (one, two)] == [
        {"operation": "deepen", "round": "1"},
        {"operation": "deepen", "round": "2"},
    ]
    assert one.origin.parents == (ROW.id,)
    assert two.origin.parents == (one.id,)
    assert one.origin.request == 2
    assert (one.license, one.attribution) == ("CC-BY-4.0", ("The fruit people",))
    # The judge wrote nothing of the row.
    assert one.generators == ("gpt-4", "writer")
    # The second round rewrites the result of the first one.
    assert "Name a rare fruit of Peru." in prompt_of(done.requests[3])
    assert template_for("en").text("evol", "deepen") in prompt_of(done.requests[3])
    assert prompt_of(done.requests[2]) == "Name a rare fruit of Peru."


def test_evol_without_a_comparison_asks_no_judge() -> None:
    done = play(Evol(rounds=2, compare=False), [ROW], evolving())
    assert done.stages() == [EVOLVE, ANSWER] * 2
    assert {r.role for r in done.requests} == {"writer"}


def test_evol_uses_the_sampling_parameters_of_the_paper() -> None:
    done = play(Evol(rounds=1), [ROW], evolving())
    sampling = done.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 0.95, 2048)
    assert Evol().rounds == 4


@pytest.mark.parametrize(
    ("stage", "text", "reason"),
    [
        (EVOLVE, "", "empty"),
        (EVOLVE, "The Rewritten Prompt: name a fruit", "copies_request"),
        (EVOLVE, CUT, "cut_by_length"),
        (EVOLVE, FAILED, "engine_error"),
        (COMPARE, EQUAL, "equal"),
        (COMPARE, "Equal", "unreadable"),
        (COMPARE, "{}", "unreadable"),
        (COMPARE, "", "unreadable"),
        (COMPARE, FAILED, "engine_error"),
        (ANSWER, "I am sorry, but I do not know.", "apology"),
        (ANSWER, "It is of the and.", "empty_answer"),
        (ANSWER, "?!", "empty_answer"),
        (ANSWER, CUT, "cut_by_length"),
    ],
)
def test_an_eliminated_child_gives_its_parent_back(
    stage: str, text: str | Completion, reason: str
) -> None:
    answers = {EVOLVE: "Name a rare fruit of Peru.", COMPARE: SAID, ANSWER: "Lucuma."}
    model = evolving(**{stage: [text, answers[stage]]})
    done = play(Evol(rounds=2), [ROW], model)
    assert done.reasons() == [reason]
    (row,) = done.rows
    # The second round began with the seed again.
    second = [r for r in done.requests if r.stage == EVOLVE][1]
    assert ROW.instruction in prompt_of(second)
    assert row.origin.parents == (ROW.id,)
    assert {x.name: x.value for x in row.labels}["round"] == "2"


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ("Different. The second", 1, []),
        (Completion("Different, because it", "length", 9, 24), 1, []),
        ("equal!", 0, ["equal"]),
        ("They are equal", 0, ["unreadable"]),
    ],
)
def test_without_a_schema_the_first_word_is_the_verdict(
    text: str | Completion, rows: int, reason: list[str]
) -> None:
    done = play(Evol(rounds=1), [ROW], evolving(compare=[text]), form=PLAIN)
    assert (len(done.rows), done.reasons()) == (rows, reason)


def test_a_long_answer_may_contain_an_apology() -> None:
    words = " ".join(f"word{i}" for i in range(90))
    assert answer_fault(f"Sorry, {words}") is None
    assert answer_fault("Sorry, no.") is not None


def test_evol_draws_each_operation_equally_often() -> None:
    done = play(Evol(rounds=4), [ROW] * 250, evolving(compare=[EQUAL]), most=5000)
    texts = [prompt_of(r) for r in done.requests if r.stage == EVOLVE]
    marks = [template_for("en").text("evol", o) for o in OPERATIONS if o != "breadth"]
    counts = [sum(mark in text for text in texts) for mark in marks]
    counts.append(sum("Write one new task" in text for text in texts))
    assert sum(counts) == len(texts) == 1000
    assert all(150 < count < 250 for count in counts)


# -- magpie ---------------------------------------------------------------------------------


def test_magpie_writes_both_sides_from_nothing() -> None:
    texts = {"user": " How do tides work?\n", "answer": "The Moon pulls the sea."}
    done = play(Magpie(license="CC0-1.0"), [], lambda r: texts[r.stage], target=1)
    assert done.requests[0].prompt == CHAT.user_turn
    assert done.requests[0].sampling.stop == (CHAT.turn_end,)
    assert (done.requests[0].sampling.temperature, done.requests[0].sampling.top_p) == (1.0, 1.0)
    assert done.requests[1].prompt == (Message("user", "How do tides work?"),)
    assert done.requests[1].sampling.temperature == 0.0
    (row,) = done.rows
    assert (row.instruction, row.output) == ("How do tides work?", "The Moon pulls the sea.")
    assert (row.license, row.generators) == ("CC0-1.0", ("writer",))
    assert row.origin.parents == ()


@pytest.mark.parametrize(
    ("user", "reason"), [(CUT, "cut_by_length"), ("  \n", "empty_user"), (FAILED, "engine_error")]
)
def test_magpie_never_answers_a_failed_user_turn(user: str | Completion, reason: str) -> None:
    done = play(Magpie(), [], lambda r: user, target=1, most=3)
    assert set(done.stages()) == {"user"}
    assert done.reasons() == [reason] * 3


def test_magpie_rejects_a_license_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="license"):
        Magpie(license="no such license")


# -- persona --------------------------------------------------------------------------------

PERSONA = Sample("A baker in Lyon who gets up at three.", language="en", license="CC0-1.0")


@pytest.mark.parametrize("kind", ["instruction", "math", "code", "knowledge"])
def test_persona_asks_as_the_person_and_answers(kind: Any) -> None:
    texts = {"request": "How long must dough rest?", "answer": "About an hour."}
    done = play(Persona(kind=kind), [PERSONA], lambda r: texts[r.stage], target=1)
    assert PERSONA.instruction in prompt_of(done.requests[0])
    # One worked example, about another person.
    worked, example, asked = done.requests[0].prompt
    assert (worked.role, example.role) == ("user", "assistant")
    assert example.content == template_for("en").text("persona", f"example_{kind}")
    assert worked.content.splitlines()[-1] == asked.content.splitlines()[-1]
    assert PERSONA.instruction not in worked.content
    assert done.requests[0].sampling.temperature == 0.7
    assert prompt_of(done.requests[1]) == "How long must dough rest?"
    (row,) = done.rows
    assert row.origin.parents == (PERSONA.id,)
    assert (row.instruction, row.output) == ("How long must dough rest?", "About an hour.")


@pytest.mark.parametrize("kind", ["instruction", "constraints", "math"])
def test_a_copy_of_the_worked_example_is_rejected(kind: Any) -> None:
    key = "instruction" if kind == "constraints" else kind
    example = template_for("en").text("persona", f"example_{key}")
    done = play(Persona(kind=kind), [PERSONA], lambda r: f"{example} Please.", target=1, most=3)
    assert set(done.reasons()) == {"copies_example"}


def test_a_program_checks_the_constraints_of_an_answer() -> None:
    from instructgen.verifiers.ifeval import IfEval

    replies: dict[str, str] = {}

    def model(request: Request) -> str:
        if request.stage == "request":
            return f"How long must dough number {len(replies)} rest?"
        asked = prompt_of(request)
        good = Sample(asked)
        # The same answer to all: some meet their constraints, others do not.
        replies[asked] = "Yes. It rests for one hour."
        assert good.instruction.startswith("How long")
        assert asked != "How long must dough rest?"
        return replies[asked]

    done = play(Persona(kind="constraints"), [PERSONA], model, target=3, most=300)
    assert "constraint_missed" in done.reasons()
    verifier = IfEval()
    for row in done.rows:
        assert verifier.check(row, row.output) == 1.0
        labels = {label.name: label.value for label in row.labels}
        assert labels["request"].startswith("How long must dough")
        assert row.instruction != labels["request"]
    for rejected in done.ended.rejected:
        if rejected.rejection.reason == "constraint_missed":
            assert rejected.rejection.score is not None
            assert rejected.rejection.score < 1.0


@pytest.mark.parametrize(
    ("stage", "text", "reason"),
    [
        ("request", "", "empty_request"),
        ("request", CUT, "cut_by_length"),
        ("request", FAILED, "engine_error"),
        ("answer", "Sorry!", "apology"),
        ("answer", CUT, "cut_by_length"),
        ("answer", FAILED, "engine_error"),
    ],
)
def test_faults_of_persona(stage: str, text: str | Completion, reason: str) -> None:
    texts = {"request": "How long must dough rest?", "answer": "An hour.", stage: text}
    done = play(Persona(), [PERSONA], lambda r: texts[r.stage], target=1, most=4)
    assert reason in done.reasons()
    assert not done.rows


# -- reverse --------------------------------------------------------------------------------

TEXT = Sample("Dough rests because yeast needs time. " * 8, language="en", license="CC-BY-SA-4.0")


def graded(score: object, reason: str = "It fits.") -> str:
    return orjson.dumps({"reason": reason, "score": score}).decode()


def test_reverse_keeps_the_text_of_a_person_as_the_answer() -> None:
    texts = {"instruction": "Why does dough have to rest?", "score": graded(5)}
    done = play(Reverse(), [TEXT], lambda r: texts[r.stage])
    assert [(r.stage, r.role, r.model) for r in done.requests] == [
        ("instruction", "writer", "writer"),
        ("score", "judge", "critic"),
    ]
    assert TEXT.instruction.strip() in prompt_of(done.requests[0])
    (row,) = done.rows
    assert (row.instruction, row.output) == (texts["instruction"], TEXT.instruction.strip())
    assert row.score("fit").value == 5.0  # type: ignore[union-attr]
    assert (row.license, row.origin.parents) == ("CC-BY-SA-4.0", (TEXT.id,))


def test_the_reason_comes_before_the_score() -> None:
    done = play(Reverse(), [TEXT], lambda r: "Why does dough rest?")
    schema = done.requests[1].schema
    assert schema is not None
    assert list(schema["properties"]) == schema["required"] == ["reason", "score"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (graded(4), "low_score"),
        (graded(1), "low_score"),
        (graded(6), "unscored"),
        (graded("5"), "unscored"),
        (graded(True), "unscored"),
        ("5", "unscored"),
        ("", "unscored"),
        ('{"reason": "cut of', "unscored"),
        (FAILED, "engine_error"),
    ],
)
def test_a_score_that_cannot_be_read_is_never_a_number(
    reply: str | Completion, reason: str
) -> None:
    texts = {"instruction": "Why does dough have to rest?", "score": reply}
    done = play(Reverse(), [TEXT], lambda r: texts[r.stage])
    assert done.reasons() == [reason]
    assert not done.rows


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("It fits well. Score: 5", True),
        ("It fits well: 5/5", True),
        ("5 out of 5.", True),
        ("5/5? No: 3", False),
        ("Fits poorly. Score: 3/5", False),
        ("3 out of 5", False),
        ("2.5", False),
        ("15", False),
        ("Very good", False),
    ],
)
def test_without_a_schema_the_last_number_is_the_score(reply: str, kept: bool) -> None:
    texts = {"instruction": "Why does dough have to rest?", "score": reply}
    done = play(Reverse(), [TEXT], lambda r: texts[r.stage], form=PLAIN)
    assert len(done.rows) == kept


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [("Why?", "length"), ("w" * 801, "length"), (CUT, "cut_by_length"), (FAILED, "engine_error")],
)
def test_faults_of_reverse(instruction: str | Completion, reason: str) -> None:
    done = play(Reverse(), [TEXT], lambda r: instruction)
    assert done.reasons() == [reason]


def test_a_short_chinese_request_is_long_enough() -> None:
    texts = {"instruction": "面团为什么要醒？", "score": graded(5)}
    assert play(Reverse(), [replace(TEXT, language="zh")], lambda r: texts[r.stage]).rows


@pytest.mark.parametrize("end", [".\n\n", ". ", "。", " "])
def test_a_long_text_ends_with_a_paragraph_a_sentence_or_a_word(end: str) -> None:
    text = end.join("one two three" for _ in range(400))
    texts = {"instruction": "Why does dough have to rest?", "score": graded(5)}
    done = play(Reverse(), [Sample(text, language="en")], lambda r: texts[r.stage])
    (row,) = done.rows
    assert 1100 < len(row.output) <= 2200
    assert text.startswith(row.output)
    assert row.output.endswith(("three", "three.", "three。", "two", "one"))


# -- self_chat ------------------------------------------------------------------------------


def speaking(request: Request) -> str:
    return f"I say {request.stage} number {len(request.prompt)}."


def test_self_chat_alternates_and_ends_with_the_assistant() -> None:
    done = play(SelfChat(turns=(3, 3)), [ROW], speaking)
    (row,) = done.rows
    roles = [m.role for m in row.messages]
    assert roles == ["user", "assistant"] * 3
    assert done.stages() == ["assistant", "user", "assistant", "user", "assistant"]
    assert row.messages[0].content == ROW.question
    # The simulated user has a prompt of its own, with the conversation so far.
    user = done.requests[1]
    assert len(user.prompt) == 1
    assert ROW.question in prompt_of(user)
    # The assistant sees the messages.
    assert [m.role for m in done.requests[2].prompt] == ["user", "assistant", "user"]  # type: ignore[union-attr]


def test_the_number_of_turns_is_drawn_between_its_limits() -> None:
    seeds = [replace(ROW, instruction=f"Name fruit {i}.") for i in range(60)]
    done = play(SelfChat(turns=(2, 4)), seeds, speaking, most=2000)
    counts = [sum(m.role == "user" for m in row.messages) for row in done.rows]
    assert len(counts) == 60
    assert {counts.count(n) > 8 for n in (2, 3, 4)} == {True}
    assert set(counts) == {2, 3, 4}


@pytest.mark.parametrize(
    ("stage", "text", "reason"),
    [
        ("user", "", "empty_message"),
        ("user", CUT, "cut_by_length"),
        ("user", FAILED, "engine_error"),
        ("assistant", "", "empty_answer"),
        ("assistant", "Sorry, no.", "apology"),
        ("assistant", CUT, "cut_by_length"),
    ],
)
def test_faults_of_self_chat(stage: str, text: str | Completion, reason: str) -> None:
    done = play(SelfChat(turns=(2, 2)), [ROW], lambda r: text if r.stage == stage else speaking(r))
    assert done.reasons() == [reason]
    assert not done.rows


@pytest.mark.parametrize("turns", [(0, 2), (3, 2), (1, 21)])
def test_impossible_turns_are_an_error(turns: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="turns"):
        SelfChat(turns=turns)


# -- rationale ------------------------------------------------------------------------------

SUM = Sample("What is 3 + 4?", output="3 + 4 = 7\n#### 7", language="en", license="MIT")


def explaining(*texts: str | Completion) -> Played:
    some = list(texts)
    return play(Rationale(attempts=len(texts)), [SUM], lambda r: some.pop(0))


def test_rationale_keeps_the_shortest_explanation_that_is_correct() -> None:
    done = explaining(
        "Three and four more is a total of seven. Answer: 7",
        "3 + 4 is 8. Answer: 8",
        Completion("3 + 4 is 7. Answer: 7", "stop", 9, 5, reasoning="Count."),
        "I cannot say.",
    )
    assert done.stages() == ["reasons"] * 4
    assert len({r.sampling.seed for r in done.requests}) == 4
    (row,) = done.rows
    assert row.output == "3 + 4 is 7. Answer: 7"
    assert row.reasoning_content == "Count."
    assert row.score("pass_rate").value == 0.5  # type: ignore[union-attr]
    assert {x.name: x.value for x in row.labels}["rationale"] == row.output
    assert row.instruction == SUM.instruction
    assert row.origin.request == 2
    assert row.origin.parents == (SUM.id,)


def test_completions_are_read_in_the_order_of_their_requests() -> None:
    texts = ["Answer: 7", "It is: Answer: 7", "Answer: 8", "Answer: 9"]
    method = Rationale(attempts=4)
    rows = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        done = play(method, [SUM], lambda r: "x", most=0)
        loop = done.loop
        for number in range(4):
            choice = loop.choose(lambda role: True)
            assert choice is not None
            loop.issue(number, choice)
        for number in order:
            loop.commit(number, Completion(texts[number], "stop", 9, 5))
        rows.append(loop.finish().rows)
    assert rows[0] == rows[1]
    assert rows[0][0].output == "Answer: 7"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["Answer: 8", "Answer: 6"], "no_correct_answer"),
        (["It is so.", ""], "no_correct_answer"),
        ([CUT, CUT], "unfinished"),
        ([FAILED, FAILED], "unfinished"),
    ],
)
def test_an_explanation_that_cannot_be_read_is_a_rejection(texts: Any, reason: str) -> None:
    done = explaining(*texts)
    assert done.reasons() == [reason]
    assert not done.rows


def test_a_question_that_is_always_answered_may_be_dropped() -> None:
    method = Rationale(attempts=2, keep_pass_rate_1=False)
    assert play(method, [SUM], lambda r: "Answer: 7").reasons() == ["too_easy"]


@pytest.mark.parametrize(
    ("method", "row"),
    [
        (Rationale(), replace(SUM, output="It depends on the fruit.")),
        (Rationale(), replace(SUM, history=(Message("user", "Hi"),))),
        (Evol(), replace(ROW, output="")),
        (Evol(), replace(ROW, history=(Message("user", "Hi"),))),
        (SelfChat(), replace(ROW, tools="[]")),
        (Alpaca(), replace(ROW, output="")),
    ],
)
def test_seeds_that_do_not_fit_cost_nothing(method: Method, row: Sample) -> None:
    with pytest.raises(InputError):
        play(method, [row], lambda r: "7", target=1)
    fitting = SUM if method.name == "rationale" else ROW
    done = play(method, [row, fitting], lambda r: "7", target=1, most=4)
    assert done.loop.pool.usable == [1]
    assert {d.parents for d in map(done.loop.draft_of, done.loop._open)} <= {(1,)}


@pytest.mark.parametrize("name", ["code", "regex", "mth"])
def test_a_verifier_that_is_unknown_or_timed_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="verifier"):
        Rationale(verifier=name)


def test_a_conversation_is_continued() -> None:
    row = replace(ROW, history=(Message("user", "Hi"), Message("assistant", "Hello")))
    done = play(SelfChat(turns=(3, 3)), [row], speaking)
    assert [m.content for m in done.rows[0].messages][:3] == ["Hi", "Hello", ROW.question]


def test_a_row_may_resemble_the_rows_that_it_was_made_from_and_no_others() -> None:
    long = " ".join(f"word{i}" for i in range(30))
    seeds = [replace(ROW, instruction=long), replace(ROW, instruction=f"{long} other")]
    texts = iter([f"{long} now", f"{long} now then", "Name a fruit of Peru.", f"{long} other now"])
    answers = (f"Answer number {i}." for i in range(9))

    def model(request: Request) -> str:
        if request.stage == EVOLVE:
            return next(texts)
        return SAID if request.stage == COMPARE else next(answers)

    done = play(Evol(rounds=2), seeds, model, filters=[Novelty(threshold=0.7)])
    # The first is like both seeds, of which only one is its parent.
    assert [r.rejection.filter for r in done.ended.rejected] == ["novelty"] * 3
    done = play(Evol(rounds=2), seeds[:1], iter_model([f"{long} now", f"{long} now then"]),
                filters=[Novelty(threshold=0.7)])  # fmt: skip
    assert len(done.rows) == 2


def iter_model(tasks: list[str]) -> Callable[[Request], str]:
    some, count = iter(tasks), iter(range(99))
    return lambda r: (
        next(some)
        if r.stage == EVOLVE
        else SAID
        if r.stage == COMPARE
        else f"Answer {next(count)}."
    )


# -- all methods ----------------------------------------------------------------------------

METHODS: dict[str, Method] = {
    "self_instruct": SelfInstruct(style="chat"),
    "alpaca": Alpaca(style="chat"),
    "evol": Evol(rounds=3),
    "magpie": Magpie(),
    "persona": Persona(),
    "reverse": Reverse(),
    "self_chat": SelfChat(),
    "rationale": Rationale(attempts=3),
    "document": Document(),
    "tool_dialogue": ToolDialogue(tools=DESK_TOOLS, environment="loans_desk"),
    "solve": Solve(attempts=3),
    "code": CodeTasks(attempts=1),
}
SEEDS = [replace(SUM, instruction=f"What is {i} + 4?", output=f"#### {i + 4}") for i in range(12)]
PASSAGE = "The shop opens at nine and closes at six. On Sundays it stays closed all day long."
SNIPPET = 'def one(x):\n    """Return it."""\n    return x\n'
# The seeds of the methods that do not start from tasks or rows.
OWN_SEEDS = {
    "document": [
        Sample(f"{PASSAGE} {i}", language="en", place=Place("a.md", "", 100 * i, 100 * i + 90))
        for i in range(12)
    ],
    "tool_dialogue": [
        Sample(f"Who is member {i}?", language="en", labels=(
            Label("actions", f'[{{"name": "member", "arguments": {{"member_id": {i}}}}}]'),
        ))
        for i in range(12)
    ],
    "code": [Sample(SNIPPET + f"# {i}", language="en") for i in range(12)],
}  # fmt: skip


def seeds_of(name: str) -> list[Sample]:
    return OWN_SEEDS.get(name, SEEDS)


ANSWERED = '{"evidence": ["The shop opens at nine and closes at six."], "answerable": true, "answer": "At 9."}'
SOLVED = "```python\ndef one(x):\n    return x\n```\n```python\nassert one(1) == 1\nassert one(2) == 2\n```"
TEXTS = [
    '{"questions": ["When does the shop open?"]}', ANSWERED, '{"reason": "x", "verdict": "yes"}',
    '{"calls": [{"name": "member", "arguments": {"member_id": 11}}], "message": ""}', SOLVED,
    '{"calls": [], "message": "It is Amira."}', "Evidence: (none)\nAnswer: It does not say.",
    "", "\n", "7", "Answer: 7", "Equal", "Different", SAID, EQUAL, "Yes", "1. Do it.\n2. Do that.", graded(5),
    graded(2), '{"tasks": ["Name a rare fruit."]}', '{"examples": [{"input": "", "output": "x"}]}',
    "Sorry.", "Name a rare fruit of Peru.", "```\ncode\n```", "\u200b",
    "Task: a\nInput: b\nOutput: c", "###\n1. Instruction: a\n1. Input: b\n1. Output: c",
]  # fmt: skip
COMPLETIONS = st.one_of(
    st.sampled_from([*TEXTS, CUT, FAILED]), st.text(st.characters(codec="utf-8"), max_size=60)
)


def test_all_methods_are_tested_here() -> None:
    shipped = {n for n, c in classes("methods").items() if c.__module__.startswith("instructgen.")}
    assert shipped == METHODS.keys()


@pytest.mark.parametrize("name", sorted(METHODS))
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(COMPLETIONS, min_size=1, max_size=12),
    form=st.sampled_from([CHAT, PLAIN]),
    window=st.integers(1, 5),
)
def test_each_candidate_ends_once_whatever_the_model_writes(
    name: str, texts: list[str | Completion], form: PromptSetup, window: int
) -> None:
    rng = random.Random(len(texts))
    done = play(
        METHODS[name], seeds_of(name), lambda r: rng.choice(texts), target=6, form=form, window=window,
        filters=[Novelty(threshold=0.7)], most=80,
    )  # fmt: skip
    for row in done.rows:
        assert row.output
        assert row.instruction
        assert row.origin.method == name
        assert row.origin.request is not None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_finite_method_uses_each_seed_once_and_then_stops(name: str) -> None:
    method = METHODS[name]
    if not method.finite:
        with pytest.raises(ConfigError):
            from instructgen.generation.options import load_config

            load_config("default", {"generate": {"target": "all"}, "method": {"name": name}})
        return
    done = play(method, seeds_of(name), lambda r: "It is what it is: 7", most=2000)
    assert done.loop.drafts == len(SEEDS)
    assert done.loop.stopped is not None
    assert done.loop.stopped.reason == "inputs_exhausted"


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_template_has_the_texts_of_every_method(name: str, language: str) -> None:
    seeds = [replace(s, language=language) for s in seeds_of(name)]
    done = play(
        METHODS[name].model_copy(update={"brief": "Only for cats."}),
        seeds,
        lambda r: "A: 7",
        target=2,
        most=30,
    )
    for request in done.requests:
        if isinstance(request.prompt[0], Message):
            text = prompt_of(request)
            if name != "tool_dialogue":
                assert "{" not in text.replace("{}", "")
            if name == "tool_dialogue" and request.stage == "assistant":
                text = request.prompt_text()
            if name != "reverse" or request.role == "writer":
                assert "Only for cats." in text


@pytest.mark.parametrize("name", ["personas", "passages", "snippets"])
def test_the_included_seeds_can_be_read(name: str) -> None:
    start = "documents" if name == "passages" else name
    seeds, bad = load_seeds([ROOT / "seeds" / f"{name}.jsonl"], own_format=seed_format(start))
    assert not bad
    assert len(seeds) == {"personas": 200, "passages": 30, "snippets": 30}[name]
    assert {s.license for s in seeds} == {"CC0-1.0"}
    if name == "personas":
        assert len({s.language for s in seeds}) == 7
