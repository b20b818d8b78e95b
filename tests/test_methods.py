"""Tests of the methods: constants and rules of the papers, and past defects."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgen.engines import Completion, Request
from instructgen.errors import ConfigError
from instructgen.generation.methods import (
    Accept,
    Continue,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    Propose,
    Reject,
)
from instructgen.generation.methods.alpaca import Alpaca
from instructgen.generation.methods.self_instruct import (
    CLASSIFICATION,
    INSTANCES,
    INSTRUCTIONS,
    SelfInstruct,
)
from instructgen.generation.options import load_config
from instructgen.generation.prompts import languages, template_for
from instructgen.generation.seed_pool import Pool
from instructgen.schema.arrow import sample_row
from instructgen.schema.sample import Kind, Sample

COMPLETION = PromptSetup("completion", False)
CHAT = PromptSetup("chat", True)
PLAIN_CHAT = PromptSetup("chat", False)
FORMS = [COMPLETION, CHAT, PLAIN_CHAT]


def seeds(n: int = 40, language: str = "en") -> list[Sample]:
    return [
        Sample(
            f"Seed number {i} does a thing", "", f"out {i}", language=language, license="CC0-1.0"
        )
        for i in range(n)
    ]


def pool_with(machine: int = 0, n: int = 40) -> Pool:
    pool = Pool(seeds(n), 150)
    for i in range(machine):
        pool.add(Sample(f"Made number {i}", language="en", license="CC-BY-4.0"))
    return pool


def stop(text: str, reason: str = "stop") -> Completion:
    return Completion(text, reason, 10, 5)  # type: ignore[arg-type]


def started(
    m: Method, pool: Pool, count: int = 1, form: PromptSetup = COMPLETION
) -> list[tuple[Draft, Request]]:
    """Return new drafts with their first requests."""
    rng = random.Random(0)
    drafts = [m.start(pool, rng, number, form) for number in range(count)]
    assert [d.number for d in drafts] == list(range(count))
    assert {d.stage for d in drafts} == {m.path(form)[0].name}
    return [(d, m.request(pool, d, form)) for d in drafts]


def first(
    m: Method, pool: Pool, completion: Completion, form: PromptSetup = COMPLETION
) -> list[Outcome]:
    """Return the outcomes of a first completion."""
    ((draft, _),) = started(m, pool, 1, form)
    return m.read(draft, completion, form)


def sample_of(outcome: Outcome) -> Sample:
    return outcome.draft.sample if isinstance(outcome, Propose | Continue) else outcome.sample


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the reason of each rejection, and an empty text for another outcome."""
    return [o.rejection.reason if isinstance(o, Reject) else "" for o in outcomes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [SelfInstruct(), Alpaca()], ids=lambda m: m.name)
def test_a_draft_follows_from_its_random_numbers_alone(m: Method, form: PromptSetup) -> None:
    pool, same = pool_with(6), pool_with(6)
    drafts = [m.start(p, random.Random(3), 7, form) for p in (pool, same, pool)]
    assert drafts[0] == drafts[1] == drafts[2]
    assert m.request(pool, drafts[0], form) == m.request(pool, drafts[0], form)
    # The pool is not changed.
    assert pool == same


# -- self_instruct: instructions ------------------------------------------------------


def test_defaults_equal_the_paper() -> None:
    m = SelfInstruct()
    i = m.instructions
    assert (i.temperature, i.top_p, i.presence_penalty, i.frequency_penalty) == (0.7, 0.5, 2, 0)
    assert i.max_tokens == 1024
    answers = m.classification_answers
    assert (answers.temperature, answers.max_tokens) == (0, 3)
    for options, limit in ((m.instances, 350), (m.classification_instances, 300)):
        assert (options.temperature, options.presence_penalty, options.max_tokens) == (
            0,
            1.5,
            limit,
        )
    assert (m.human, m.machine, m.new_instructions, m.max_instances) == (6, 2, 7, 5)


@pytest.mark.parametrize(("machine", "shown"), [(0, 0), (1, 1), (2, 2), (30, 2)])
def test_prompts_show_eight_demonstrations_up_to_two_generated(machine: int, shown: int) -> None:
    pool = pool_with(machine)
    drafts = started(SelfInstruct(), pool, 10)
    for draft, r in drafts:
        assert len(set(draft.parents)) == 8
        assert sum(p >= 40 for p in draft.parents) == shown
        assert isinstance(r.prompt, str)
        lines = r.prompt.splitlines()
        assert [x.split(".")[0] for x in lines[1:]] == [str(n) for n in range(1, 10)]
        assert lines[-1] == "9."
        assert r.sampling.stop == ("\n\n", "\n16.", "\n16 .")


def test_demonstrations_are_shuffled() -> None:
    drafts = started(SelfInstruct(), pool_with(10), 100)
    places = {i for draft, _ in drafts for i, p in enumerate(draft.parents) if p >= 40}
    assert places == set(range(8))


def test_demonstrations_of_a_request_have_one_language() -> None:
    pool = Pool([*seeds(20), *seeds(20, "fr")])
    drafts = [draft for draft, _ in started(SelfInstruct(), pool, 40)]
    assert {d.sample.language for d in drafts} == {"en", "fr"}
    for d in drafts:
        assert {pool.at(p).language for p in d.parents} == {d.sample.language}


def test_seeds_that_are_too_long_are_not_demonstrations() -> None:
    long = Sample("word " * 500, language="en", license="MIT")
    pool = Pool([*seeds(10), long], 150)
    assert all(10 not in draft.parents for draft, _ in started(SelfInstruct(), pool, 100))


def instructions(completion: Completion, machine: int = 0) -> list[Outcome]:
    return first(SelfInstruct(), pool_with(machine), completion)


def test_instructions_have_the_license_of_their_demonstrations() -> None:
    outcomes = instructions(stop(" do this thing now\n10. And NASA's that"), machine=5)
    samples = [sample_of(o) for o in outcomes]
    assert [s.instruction for s in samples] == ["Do this thing now", "And NASA's that"]
    assert {s.license for s in samples} == {"CC-BY-4.0"}
    assert all(isinstance(o, Propose) for o in outcomes)


def test_at_most_seven_instructions_are_read_from_a_completion() -> None:
    text = " a b c\n" + "\n".join(f"{n}. a b {n}" for n in range(10, 30))
    assert len(instructions(stop(text))) == 7


def test_a_truncated_list_of_instructions_is_rejected() -> None:
    assert reasons(instructions(stop(" Do this\n10. And th", "length"))) == ["cut_by_length"]


def test_an_unreadable_completion_is_rejected_with_a_reason() -> None:
    assert reasons(instructions(stop("  \n "))) == ["no_instructions"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [SelfInstruct(), Alpaca()], ids=lambda m: m.name)
def test_a_failed_request_is_rejected_with_the_error_of_the_engine(
    m: Method, form: PromptSetup
) -> None:
    draft, _ = started(m, pool_with(), 1, form)[0]
    for stage in m.path(form):
        outcomes = m.read(replace(draft, stage=stage.name), Completion.failed("too long"), form)
        (rejection,) = [o.rejection for o in outcomes if isinstance(o, Reject)]
        assert (rejection.reason, rejection.detail) == ("engine_error", "too long")


def test_instructions_are_parsed_from_json() -> None:
    m, pool = SelfInstruct(), pool_with()
    ((draft, request),) = started(m, pool, 1, CHAT)
    assert request.schema is not None
    assert request.schema["properties"]["tasks"]["maxItems"] == 7
    text = orjson.dumps({"tasks": ["do one thing", " ", 7, "do two"]}).decode()
    outcomes = m.read(draft, stop(text), CHAT)
    assert [sample_of(o).instruction for o in outcomes] == ["Do one thing", "Do two"]
    assert reasons(m.read(draft, stop('{"tasks": ['), CHAT)) == ["no_instructions"]


def test_the_chat_style_has_no_presence_penalty() -> None:
    m, pool = SelfInstruct(classification="separate"), pool_with(3)
    draft, _ = started(m, pool, 1, CHAT)[0]
    for stage in m.path(CHAT):
        assert m.request(pool, replace(draft, stage=stage.name), CHAT).stage == stage.name
        assert (
            m.request(pool, replace(draft, stage=stage.name), CHAT).sampling.presence_penalty == 0
        )


# -- self_instruct: classification and instances ------------------------------------------

TASK = Sample("Sort the thing", language="en", license="MIT")


def staged(
    kind: Kind | None, form: PromptSetup = COMPLETION, how: str | None = "separate"
) -> tuple[SelfInstruct, Draft, Request]:
    """Return the request for the kind of an instruction, or for the instances of one of a kind."""
    m, pool = SelfInstruct(classification=how), pool_with()
    number = pool.add(TASK)
    stage = INSTANCES if kind is not None or how != "separate" else CLASSIFICATION
    draft = Draft(3, stage, replace(TASK, kind=kind), (0, 1), number)
    return m, draft, m.request(pool, draft, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", Kind.CLASSIFICATION), ("No", Kind.GENERATION), ("Hm", Kind.GENERATION)],
)
def test_the_answer_sets_the_kind_of_the_task(form: PromptSetup, answer: str, kind: Kind) -> None:
    m, draft, request = staged(None, form)
    assert request.stage == CLASSIFICATION
    assert "Sort the thing" in request.prompt_text()
    text = orjson.dumps({"answer": [answer]}).decode() if request.schema else f" {answer}"
    following = replace(draft, stage=INSTANCES, sample=replace(TASK, kind=kind))
    assert m.read(draft, stop(text, "length"), form) == [Continue(following)]


# The default, and how it is asked in each prompt style.
HOW = [
    (None, COMPLETION, "separate"),
    (None, CHAT, "joint"),
    (None, PLAIN_CHAT, "joint"),
    *[(how, form, how) for how in ("separate", "joint", "off") for form in FORMS],
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", [None, "separate", "joint", "off"])
def test_a_joint_classification_needs_prompts_that_ask_for_it(
    form: PromptSetup, how: str | None
) -> None:
    if how == "joint" and form.style == "completion":
        with pytest.raises(ConfigError):
            SelfInstruct(classification=how).check(form.style)
    else:
        SelfInstruct(classification=how).check(form.style)


@pytest.mark.parametrize(("set_to", "form", "how"), HOW)
def test_the_stages_depend_on_how_instructions_are_classified(
    set_to: str | None, form: PromptSetup, how: str
) -> None:
    m, pool = SelfInstruct(classification=set_to), pool_with()
    path = [stage.name for stage in m.path(form)]
    separate = [INSTRUCTIONS, CLASSIFICATION, INSTANCES]
    assert path == (separate if how == "separate" else [INSTRUCTIONS, INSTANCES])
    text = '{"tasks": ["Do one"]}' if form.structured else "1. Do one"
    (outcome,) = first(m, pool, stop(text), form)
    assert isinstance(outcome, Propose)
    assert (outcome.draft.stage, outcome.draft.sample.instruction) == (path[1], "Do one")
    request = m.request(pool, replace(outcome.draft, stage=INSTANCES), form)
    question = template_for("en")._texts["chat"]["classification"].rpartition("\n\n")[2]
    asked = how == "joint" and form.style == "chat"
    assert (question in request.prompt_text()) == asked
    if form.structured:
        properties = request.schema["properties"]
        assert list(properties) == (["classification"] if asked else []) + ["examples"]
        assert request.schema["required"] == list(properties)


def test_the_recipe_self_instruct_keeps_the_separate_stage() -> None:
    for recipe in ("self_instruct", "default"):
        m = load_config(recipe, {"engine": {"name": "echo"}, "generate": {"target": 1}}).method
        assert m.classification is None
        assert m.path(COMPLETION) == m.stages
    # The prompt style of the recipe self_instruct is fixed; that of the default is not.
    m = load_config("self_instruct", {"engine": {"name": "echo"}, "generate": {"target": 1}}).method
    paper = SelfInstruct(style="completion", worked="built_in")
    assert m == paper


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("kind", Kind)
def test_joint_answers_set_the_kind_of_the_rows(language: str, kind: Kind) -> None:
    """The question is repeated before the examples, in the language of the task."""
    m, _, _ = staged(None, PLAIN_CHAT, "joint")
    draft = Draft(0, INSTANCES, replace(TASK, language=language))
    template = template_for(language)
    labels, yes = template.labels, kind == Kind.CLASSIFICATION
    question = template._texts["completion"]["question"]
    shown = m.request(pool_with(), draft, PLAIN_CHAT).prompt_text()
    assert question in shown and labels["input"] in shown
    text = (
        f"{question} {labels['yes' if yes else 'no']}\n{labels['example']} 1\n"
        f"{labels['input']}: a\n{labels['output']}: b"
    )
    (row,) = m.read(draft, stop(text), PLAIN_CHAT)
    assert isinstance(row, Accept)
    assert (row.sample.kind, row.sample.input, row.sample.output) == (kind, "a", "b")
    # The last instance of a completion that was cut off is rejected, and has the kind too.
    more = f"\n{labels['example']} 2\n{labels['input']}: c"
    outcomes = m.read(draft, stop(text + more, "length"), PLAIN_CHAT)
    assert reasons(outcomes) == ["", "cut_by_length"]
    assert {sample_of(o).kind for o in outcomes} == {kind}


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ('"classification": true, ', Kind.CLASSIFICATION),
        ('"classification":false,', Kind.GENERATION),
        (' "classification" : true ,\n', Kind.CLASSIFICATION),
        # An engine that does not enforce the schema may leave it out.
        ("", Kind.GENERATION),
        ('"classification": "yes", ', Kind.GENERATION),
    ],
)
def test_joint_answers_in_json_set_the_kind_of_the_rows(flag: str, kind: Kind) -> None:
    m, draft, request = staged(None, CHAT, None)
    assert request.schema["properties"]["classification"] == {"type": "boolean"}
    head = "{" + flag + '"examples": [{"input": "a", "output": "b"}'
    (row,) = m.read(draft, stop(head + "]}"), CHAT)
    assert isinstance(row, Accept)
    assert (row.sample.kind, row.sample.input, row.sample.output) == (kind, "a", "b")
    if "yes" not in flag:
        cut = m.read(draft, stop(head + ', {"input": "c", "outp', "length"), CHAT)
        assert reasons(cut) == ["", "cut_by_length"]
        assert {sample_of(o).kind for o in cut} == {kind}
    only = m.read(draft, stop("{" + flag.rstrip(", \n") + "}"), CHAT)
    assert reasons(only) == ["no_instances"]


def test_the_answer_to_a_joint_question_is_no_input() -> None:
    """A task without an input may have neither an example number nor an input label."""
    m, draft, _ = staged(None, PLAIN_CHAT, "joint")
    (row,) = m.read(draft, stop("Is it classification? No\nOutput: b"), PLAIN_CHAT)
    assert (sample_of(row).input, sample_of(row).output) == ("", "b")


@pytest.mark.parametrize("form", FORMS)
def test_without_classification_rows_have_no_kind(form: PromptSetup) -> None:
    m, draft, request = staged(None, form, "off")
    assert request.stage == INSTANCES
    text = "Is it classification? Yes\nExample 1\nInput: a\nOutput: b"
    if form.structured:
        assert list(request.schema["properties"]) == ["examples"]
        text = '{"examples": [{"input": "a", "output": "b"}]}'
    (row,) = m.read(draft, stop(text), form)
    assert (sample_of(row).kind, sample_of(row).output) == (None, "b")


def rows_of(kind: Kind, text: str, reason: str = "stop") -> list[Outcome]:
    m, draft, request = staged(kind)
    assert request.stage == INSTANCES
    return m.read(draft, stop(text, reason), COMPLETION)


def test_instances_of_both_kinds_are_parsed() -> None:
    (row,) = rows_of(Kind.GENERATION, "Input: a\nOutput: b")
    assert isinstance(row, Accept)
    assert (row.sample.input, row.sample.output, row.sample.kind) == ("a", "b", Kind.GENERATION)
    (row,) = rows_of(Kind.CLASSIFICATION, "Class label: b\nInput: a")
    assert isinstance(row, Accept)
    assert (row.sample.input, row.sample.output) == ("a", "b")
    assert row.sample.license == "MIT"


def test_only_the_last_instance_of_a_truncated_completion_is_rejected() -> None:
    kept, rejected = rows_of(Kind.GENERATION, "Input: a\nOutput: b\nInput: c\nOutput: d", "length")
    assert (kept.sample.output, rejected.rejection.reason) == ("b", "cut_by_length")


def test_a_complete_instance_is_kept_before_a_truncated_one_without_output() -> None:
    text = "Example 1\nInput: a\nOutput: b\n\nExample 2\nInput: a long text that is cu"
    kept, rejected = rows_of(Kind.GENERATION, text, "length")
    assert (kept.sample.output, rejected.rejection.reason) == ("b", "cut_by_length")


def test_invalid_instances_do_not_cause_a_conflict() -> None:
    outcomes = rows_of(
        Kind.GENERATION, "Input: a\nOutput:\nInput: a\nOutput: b\nInput: a\nOutput: a"
    )
    assert reasons(outcomes) == ["empty_output", "", ""]


def chat_rows(examples: list, reason: str = "stop", cut: int = 0) -> list[Outcome]:
    m, draft, _ = staged(Kind.GENERATION, CHAT)
    text = orjson.dumps({"examples": examples}).decode()
    return m.read(draft, stop(text[: len(text) - cut], reason), CHAT)


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_half_of_a_surrogate_pair_in_json_gives_no_row(reason: str) -> None:
    """No file can contain it, so a row with it would end the run, and every resumption of it."""
    row = '{"input": "a", "output": "b"}'
    half = row.replace("b", "\\ud83d")
    text = f'{{"examples": [{row}, {half}, {row}, {row}'
    m, draft, _ = staged(Kind.GENERATION, CHAT)
    outcomes = m.read(draft, stop(text, reason), CHAT)
    assert [sample_row(sample_of(o))["id"] for o in outcomes]
    assert reasons(outcomes) == (["", "cut_by_length"] if reason == "length" else ["no_instances"])


def test_instances_are_parsed_from_json() -> None:
    good = {"input": "(none)", "output": " b "}
    (row,) = chat_rows([good])
    assert (row.sample.input, row.sample.output) == ("", "b")
    other = {"input": "c", "output": "d"}
    kept, rejected = chat_rows([good, other], "length", cut=5)
    assert (kept.sample.output, rejected.rejection.reason) == ("b", "cut_by_length")
    (outcome,) = chat_rows([{"input": None, "output": ["x"]}])
    assert outcome.rejection.reason == "no_instances"


def test_yes_and_no_fit_into_the_token_limit_in_every_language() -> None:
    m, pool = SelfInstruct(), Pool([*seeds(9), *seeds(9, "ar")])
    for language, tokens in (("en", 3), ("ar", 8)):
        draft = Draft(0, CLASSIFICATION, Sample("Do", language=language, license="MIT"))
        assert m.request(pool, draft, COMPLETION).sampling.max_tokens == tokens


def test_one_input_with_two_outputs_rejects_all_instances() -> None:
    text = "Input: a\nOutput: b\nInput: a\nOutput: c\nInput: x\nOutput: y"
    assert reasons(rows_of(Kind.GENERATION, text)) == ["conflicting_instances"] * 3


def test_duplicate_instances_and_those_after_the_fifth_are_rejected() -> None:
    text = "".join(f"Input: {i}\nOutput: o{i}\n" for i in (1, 1, 2, 3, 4, 5, 6))
    assert reasons(rows_of(Kind.GENERATION, text)) == [
        "",
        "duplicate_instance",
        *[""] * 4,
        "too_many_instances",
    ]


def test_unreadable_instances_are_rejected() -> None:
    (outcome,) = rows_of(Kind.GENERATION, "No valid output found.")
    assert outcome.rejection.reason == "no_instances"
    (outcome,) = rows_of(Kind.GENERATION, "Output:")
    assert outcome.rejection.reason == "empty_output"


# -- alpaca -------------------------------------------------------------------------------


def test_alpaca_shows_three_seeds_and_no_generated_task() -> None:
    ((draft, request),) = started(Alpaca(), pool_with(20))
    assert len(draft.parents) == 3
    assert all(p < 40 for p in draft.parents)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 3072)
    assert request.sampling.stop == ("\n20.", "\n20 .")
    assert request.prompt_text().endswith("###\n4. Instruction:")


def test_alpaca_does_not_show_very_long_seeds() -> None:
    long = [replace(s, output="x" * 9000) for s in seeds(6)]
    pool = Pool([*seeds(6), *long], fits=Alpaca().fits)
    for draft, _ in started(Alpaca(), pool, 50):
        assert draft.parents
        assert all(p < 6 for p in draft.parents)


TRIPLES = (
    " name a river\n4. Input: (none)\n4. Output: The Nile\n###\n"
    "5. Instruction: Add\n5. Input: 1 2\n5. Output: 3\n###\n"
    "6. Instruction: Cut\n6. Input: x\n6. Output: y"
)


def test_alpaca_parses_triples() -> None:
    outcomes = first(Alpaca(), pool_with(), stop(TRIPLES))
    samples = [sample_of(o) for o in outcomes]
    assert [(s.instruction, s.input, s.output) for s in samples] == [
        ("Name a river", "", "The Nile"),
        ("Add", "1 2", "3"),
        ("Cut", "x", "y"),
    ]
    assert all(isinstance(o, Accept) for o in outcomes)


def test_alpaca_rejects_only_the_last_item_of_a_truncated_completion() -> None:
    outcomes = first(Alpaca(), pool_with(), stop(TRIPLES, "length"))
    assert reasons(outcomes) == ["", "", "cut_by_length"]


def test_alpaca_counts_items_that_it_cannot_parse() -> None:
    text = (
        TRIPLES
        + "\n###\n7. Instruction: No output\n7. Input: x\n###\n8. Instruction: E\n8. Input: a\n8. Output:"
    )
    outcomes = first(Alpaca(), pool_with(), stop(text))
    assert reasons(outcomes)[3:] == ["incomplete_task", "empty_output"]


def test_alpaca_keeps_at_most_the_number_of_rows_that_it_asks_for() -> None:
    outcomes = first(Alpaca(new_tasks=2), pool_with(), stop(TRIPLES))
    assert reasons(outcomes) == ["", "", "too_many_tasks"]


def test_alpaca_parses_json() -> None:
    rows = [{"instruction": "do it", "input": "", "output": "done"}, {"instruction": "x"}]
    text = orjson.dumps({"tasks": rows}).decode()
    assert reasons(first(Alpaca(), pool_with(), stop(text), CHAT)) == ["", "incomplete_task"]
    rows = [{"instruction": f"do {i}", "input": "", "output": "done"} for i in range(3)]
    text = orjson.dumps({"tasks": rows}).decode()[:-9]
    outcomes = first(Alpaca(), pool_with(), stop(text, "length"), CHAT)
    assert reasons(outcomes) == ["", "", "cut_by_length"]


# -- both -----------------------------------------------------------------------------------

PIECES = [
    "Input:", "Output:", "Class label:", "Task:", "Example 1", "Is it classification?", "Yes", "No",
    "Instruction:", "\n", "\n", " ", "###", "4.", "10.", "(none)", "a", "word.", "\u2028", "\0",
    "{", "}", "[", "]", ",", ":", '"', '"tasks"', '"examples"', '"classification": true,',
    '{"tasks": [', '{"examples": [', '{"input": "a", "output": "b"},', '"Do it",', "NaN,", "\\ud800",
    '{"instruction": "do", "input": "", "output": "\\ud83d"},', '{"label": "a", "input": "b"},',
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=24).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["input", "output", "label", "instruction"]), inner)
    ),
    max_leaves=9,
)
OBJECTS = st.dictionaries(
    st.sampled_from(["classification", "tasks", "examples", "answer"]), VALUES | st.lists(VALUES)
).map(lambda value: orjson.dumps(value).decode())
CUT = st.tuples(OBJECTS, st.integers(0, 99)).map(lambda pair: pair[0][: pair[1]])
METHODS = [Alpaca(), *(SelfInstruct(classification=how) for how in ("separate", "joint", "off"))]


@settings(max_examples=500)
@given(
    st.sampled_from(METHODS),
    st.sampled_from([*FORMS, PromptSetup("completion", True)]),
    TEXTS | OBJECTS | CUT,
    st.sampled_from(["stop", "length", "error"]),
    st.sampled_from([None, *Kind]),
    st.data(),
)
def test_every_completion_leads_to_an_outcome(
    m: Method,
    form: PromptSetup,
    text: str,
    reason: str,
    kind: Kind | None,
    data: st.DataObject,
) -> None:
    path = [stage.name for stage in m.path(form)]
    stage = data.draw(st.sampled_from(path))
    later = stage != path[0]
    task = replace(TASK, kind=kind) if later else Sample("", language="en", license="MIT")
    draft = Draft(5, stage, task, (0, 1, 2), 0 if later else None)
    outcomes = m.read(draft, stop(text, reason), form)
    assert outcomes
    for outcome in outcomes:
        sample = sample_of(outcome)
        # It can be stored.
        assert orjson.dumps(sample_row(sample))
        assert (sample.language, sample.license) == ("en", "MIT")
        if isinstance(outcome, Propose | Continue):
            following = outcome.draft
            assert (following.number, following.parents) == (5, (0, 1, 2))
            assert (stage, following.stage) in itertools.pairwise(path)
            assert isinstance(outcome, Propose) == (draft.task is None)
        elif isinstance(outcome, Accept):
            assert sample.output
            assert stage == path[-1]
    if reason == "error":
        assert reasons(outcomes) == ["engine_error"]


def rows_drawn(drafts: int, rows_per_draft: dict[str, float], **counts: int) -> Counter[str]:
    """Draw groups for drafts that give rows as often as stated; return the rows by language."""
    pool = Pool([seed for language, n in counts.items() for seed in seeds(n, language)])
    rng = random.Random(0)
    for _ in range(drafts):
        group = pool.draw_group(rng)
        pool.shares.started[group] += 1
        given = rows_per_draft[group.language]
        pool.shares.accepted[group] += int(given) + (rng.random() < given % 1)
    return Counter({group.language: n for group, n in pool.shares.accepted.items()})


def test_a_group_whose_rows_are_never_accepted_is_given_up() -> None:
    rows = rows_drawn(1000, {"en": 3.0, "fa": 0.0}, en=95, fa=5)
    assert rows["en"] > 3 * 950


@pytest.mark.parametrize("rate", [0.1, 0.5, 4.0])
def test_a_group_that_needs_more_drafts_gets_them(rate: float) -> None:
    rows = rows_drawn(3000, {"en": 2.0, "fa": rate}, en=60, fa=40)
    assert abs(rows["fa"] / rows.total() - 0.4) < 0.03
