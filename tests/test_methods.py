"""The methods' constants and rules, against the paper's text and the known defects."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import orjson
import pytest

from instructgen.engines import Completion
from instructgen.generation.methods import Classified, Form, Found, Lost
from instructgen.generation.methods.alpaca import Alpaca
from instructgen.generation.methods.self_instruct import CLASSIFICATION, INSTANCES, SelfInstruct
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Kind, Sample

COMPLETION = Form("completion", False)
CHAT = Form("chat", True)


def seeds(n: int = 40, language: str = "en") -> list[Sample]:
    return [
        Sample(
            f"Seed number {i} does a thing", "", f"out {i}", language=language, license="CC0-1.0"
        )
        for i in range(n)
    ]


def pool_with(machine: int = 0, n: int = 40) -> Pool:
    pool = Pool(seeds(n))
    for i in range(machine):
        pool.add(Sample(f"Made number {i}", language="en", license="CC-BY-4.0"))
    return pool


def stop(text: str, reason: str = "stop") -> Completion:
    return Completion(text, reason, 10, 5)  # type: ignore[arg-type]


# -- self_instruct: instructions ------------------------------------------------------


def test_the_papers_sampling() -> None:
    m = SelfInstruct()
    i = m.instructions
    assert (i.temperature, i.top_p, i.presence_penalty, i.frequency_penalty) == (0.7, 0.5, 2, 0)
    assert i.max_tokens == 1024
    assert (m.classification.temperature, m.classification.max_tokens) == (0, 3)
    for options, most in ((m.instances, 350), (m.classification_instances, 300)):
        assert (options.temperature, options.presence_penalty, options.max_tokens) == (0, 1.5, most)
    assert (m.human, m.machine, m.new_instructions, m.max_instances) == (6, 2, 7, 5)


@pytest.mark.parametrize(("machine", "of_them"), [(0, 0), (1, 1), (2, 2), (30, 2)])
def test_eight_demonstrations_up_to_two_of_them_machine_made(machine: int, of_them: int) -> None:
    pool = pool_with(machine)
    requests = SelfInstruct().requests(pool, random.Random(0), 20, COMPLETION)
    assert len(requests) == 10
    for r in requests:
        assert len(set(r.parents)) == 8
        assert sum(p >= 40 for p in r.parents) == of_them
        assert isinstance(r.prompt, str)
        lines = r.prompt.splitlines()
        assert [x.split(".")[0] for x in lines[1:]] == [str(n) for n in range(1, 10)]
        assert lines[-1] == "9."
        assert r.sampling.stop == ("\n\n", "\n16.", "\n16 .")


def test_demonstrations_are_shuffled() -> None:
    pool = pool_with(10)
    requests = SelfInstruct().requests(pool, random.Random(0), 200, COMPLETION)
    places = {i for r in requests for i, p in enumerate(r.parents) if p >= 40}
    assert places == set(range(8))


def test_a_request_draws_from_one_language() -> None:
    pool = Pool([*seeds(20), *seeds(20, "fr")])
    requests = SelfInstruct().requests(pool, random.Random(0), 80, COMPLETION)
    assert {r.language for r in requests} == {"en", "fr"}
    for r in requests:
        assert {pool.at(p).language for p in r.parents} == {r.language}


def test_seeds_too_long_to_show_are_not_drawn() -> None:
    long = Sample("word " * 500, language="en", license="MIT")
    pool = Pool([*seeds(10), long])
    requests = SelfInstruct().requests(pool, random.Random(0), 200, COMPLETION)
    assert all(10 not in r.parents for r in requests)


def first(pool: Pool, completion: Completion, form: Form = COMPLETION) -> list:
    m = SelfInstruct()
    (request,) = m.requests(pool, random.Random(0), 1, form)
    return m.outcomes(pool, request, completion)


def test_instructions_are_read_and_carry_the_licence_of_their_parents() -> None:
    found = first(pool_with(5), stop(" do this thing now\n10. And NASA's that"))
    assert [f.sample.instruction for f in found] == ["Do this thing now", "And NASA's that"]
    assert {f.sample.license for f in found} == {"CC-BY-4.0"}
    assert not found[0].is_row


def test_at_most_seven() -> None:
    text = " a b c\n" + "\n".join(f"{n}. a b {n}" for n in range(10, 30))
    assert len(first(pool_with(), stop(text))) == 7


def test_cut_by_length_loses_the_whole_completion() -> None:
    (lost,) = first(pool_with(), stop(" Do this\n10. And th", "length"))
    assert isinstance(lost, Lost)
    assert lost.rejection.reason == "cut_by_length"


def test_nothing_readable_is_a_reason_not_a_row() -> None:
    (lost,) = first(pool_with(), stop("  \n "))
    assert lost.rejection.reason == "no_instructions"


def test_a_failed_request_is_a_reason() -> None:
    (lost,) = first(pool_with(), Completion.failed("too long"))
    assert (lost.rejection.reason, lost.rejection.detail) == ("engine_error", "too long")


def test_chat_with_schema() -> None:
    m, pool = SelfInstruct(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, CHAT)
    assert request.schema is not None
    assert request.schema["properties"]["tasks"]["maxItems"] == 7
    text = orjson.dumps({"tasks": ["do one thing", " ", 7, "do two"]}).decode()
    found = m.outcomes(pool, request, stop(text))
    assert [f.sample.instruction for f in found] == ["Do one thing", "Do two"]
    (lost,) = m.outcomes(pool, request, stop('{"tasks": ['))
    assert lost.rejection.reason == "no_instructions"


def test_a_penalty_of_the_paper_does_not_reach_the_chat_style() -> None:
    for count in (1, 3):
        pool = pool_with(3)
        pool.unclassified.append(0)
        for request in SelfInstruct().requests(pool, random.Random(0), count, CHAT):
            assert request.sampling.presence_penalty == 0


# -- self_instruct: classification and instances ------------------------------------------


def staged(kind: Kind | None, form: Form = COMPLETION):
    m, pool = SelfInstruct(), pool_with()
    number = pool.add(Sample("Sort the thing", language="en", license="MIT"))
    if kind is None:
        pool.unclassified.append(number)
    else:
        pool.tasks[number].kind = kind
        pool.classified.append(number)
    request = m.requests(pool, random.Random(0), 2, form)[0]
    return m, pool, request


@pytest.mark.parametrize("form", [COMPLETION, CHAT, Form("chat", False)])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", Kind.CLASSIFICATION), ("No", Kind.GENERATION), ("Hm", Kind.GENERATION)],
)
def test_classification(form: Form, answer: str, kind: Kind) -> None:
    m, pool, request = staged(None, form)
    assert request.stage == CLASSIFICATION
    assert "Sort the thing" in request.prompt_text()
    text = orjson.dumps({"answer": [answer]}).decode() if request.schema else f" {answer}"
    assert m.outcomes(pool, request, stop(text, "length")) == [Classified(0, kind)]


def rows_of(kind: Kind, text: str, reason: str = "stop") -> list:
    m, pool, request = staged(kind)
    assert request.stage == INSTANCES
    return m.outcomes(pool, request, stop(text, reason))


def test_instances_of_both_kinds() -> None:
    (row,) = rows_of(Kind.GENERATION, "Input: a\nOutput: b")
    assert isinstance(row, Found)
    assert (row.sample.input, row.sample.output, row.sample.kind) == ("a", "b", Kind.GENERATION)
    (row,) = rows_of(Kind.CLASSIFICATION, "Class label: b\nInput: a")
    assert (row.sample.input, row.sample.output) == ("a", "b")
    assert row.sample.license == "MIT"


def test_cut_by_length_loses_the_last_instance_only() -> None:
    kept, lost = rows_of(Kind.GENERATION, "Input: a\nOutput: b\nInput: c\nOutput: d", "length")
    assert (kept.sample.output, lost.rejection.reason) == ("b", "cut_by_length")


def test_a_whole_instance_survives_a_cut_one_without_an_output() -> None:
    text = "Example 1\nInput: a\nOutput: b\n\nExample 2\nInput: a long text that is cu"
    kept, lost = rows_of(Kind.GENERATION, text, "length")
    assert (kept.sample.output, lost.rejection.reason) == ("b", "cut_by_length")


def test_faulty_instances_do_not_make_a_conflict() -> None:
    outcomes = rows_of(
        Kind.GENERATION, "Input: a\nOutput:\nInput: a\nOutput: b\nInput: a\nOutput: a"
    )
    assert reasons(outcomes) == ["empty_output", "", ""]


def chat_rows(examples: list, reason: str = "stop", cut: int = 0) -> list:
    m, pool, request = staged(Kind.GENERATION, CHAT)
    text = orjson.dumps({"examples": examples}).decode()
    return m.outcomes(pool, request, stop(text[: len(text) - cut], reason))


def test_chat_instances() -> None:
    good = {"input": "(none)", "output": " b "}
    (row,) = chat_rows([good])
    assert (row.sample.input, row.sample.output) == ("", "b")
    other = {"input": "c", "output": "d"}
    kept, lost = chat_rows([good, other], "length", cut=5)
    assert (kept.sample.output, lost.rejection.reason) == ("b", "cut_by_length")
    (lost,) = chat_rows([{"input": None, "output": ["x"]}])
    assert lost.rejection.reason == "no_instances"


def test_an_answer_has_room_in_every_language() -> None:
    m, pool = SelfInstruct(), Pool([*seeds(9), *seeds(9, "ar")])
    for language, tokens in (("en", 3), ("ar", 8)):
        pool.unclassified.append(pool.add(Sample("Do", language=language, license="MIT")))
        request = m.requests(pool, random.Random(0), 1, COMPLETION)[0]
        assert request.sampling.max_tokens == tokens


def reasons(outcomes: list) -> list[str]:
    return [o.rejection.reason if isinstance(o, Lost) else "" for o in outcomes]


def test_one_input_with_two_outputs_drops_all() -> None:
    text = "Input: a\nOutput: b\nInput: a\nOutput: c\nInput: x\nOutput: y"
    assert reasons(rows_of(Kind.GENERATION, text)) == ["conflicting_instances"] * 3


def test_duplicates_and_at_most_five() -> None:
    text = "".join(f"Input: {i}\nOutput: o{i}\n" for i in (1, 1, 2, 3, 4, 5, 6))
    assert reasons(rows_of(Kind.GENERATION, text)) == [
        "",
        "duplicate_instance",
        *[""] * 4,
        "too_many_instances",
    ]


def test_unreadable_instances_are_no_row() -> None:
    (lost,) = rows_of(Kind.GENERATION, "No valid output found.")
    assert lost.rejection.reason == "no_instances"
    (lost,) = rows_of(Kind.GENERATION, "Output:")
    assert lost.rejection.reason == "empty_output"


@pytest.mark.parametrize(
    ("count", "unclassified", "classified", "wanted"),
    [
        # New instructions take what is left, at most half.
        (24, 10, 6, {"classification": 10, "instances": 6, "instructions": 12}),
        (24, 0, 20, {"classification": 0, "instances": 20, "instructions": 4}),
        # They are never crowded out, and classifications do not count.
        (16, 40, 40, {"classification": 40, "instances": 15, "instructions": 1}),
        (16, 30, 0, {"classification": 30, "instances": 0, "instructions": 8}),
        (1, 5, 5, {"classification": 5, "instances": 1, "instructions": 0}),
        (1, 5, 0, {"classification": 5, "instances": 0, "instructions": 1}),
    ],
)
def test_stages_share_a_batch(
    count: int, unclassified: int, classified: int, wanted: dict[str, int]
) -> None:
    m, pool = SelfInstruct(), pool_with(80)
    pool.unclassified.extend(range(unclassified))
    pool.classified.extend(range(40, 40 + classified))
    for task in pool.tasks[40:]:
        task.kind = Kind.GENERATION
    stages = Counter(r.stage for r in m.requests(pool, random.Random(0), count, COMPLETION))
    assert stages == Counter(wanted)
    assert not pool.unclassified
    assert len(pool.classified) == classified - wanted["instances"]


# -- alpaca -------------------------------------------------------------------------------


def test_alpaca_shows_three_seeds_and_no_machine_made_task() -> None:
    m, pool = Alpaca(), pool_with(20)
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    assert len(request.parents) == 3
    assert all(p < 40 for p in request.parents)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 3072)
    assert request.sampling.stop == ("\n20.", "\n20 .")
    assert request.prompt_text().endswith("###\n4. Instruction:")


def test_alpaca_does_not_show_seeds_that_fill_the_prompt() -> None:
    pool = Pool([*seeds(6), *[replace(s, output="x" * 9000) for s in seeds(6)]])
    for request in Alpaca().requests(pool, random.Random(0), 50, COMPLETION):
        assert request.parents
        assert all(p < 6 for p in request.parents)


TRIPLES = (
    " name a river\n4. Input: (none)\n4. Output: The Nile\n###\n"
    "5. Instruction: Add\n5. Input: 1 2\n5. Output: 3\n###\n"
    "6. Instruction: Cut\n6. Input: x\n6. Output: y"
)


def test_alpaca_reads_triples() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    found = m.outcomes(pool, request, stop(TRIPLES))
    assert [(f.sample.instruction, f.sample.input, f.sample.output) for f in found] == [
        ("Name a river", "", "The Nile"),
        ("Add", "1 2", "3"),
        ("Cut", "x", "y"),
    ]
    assert all(f.is_row for f in found)


def test_alpaca_cut_by_length_loses_its_last_item_only() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    assert reasons(m.outcomes(pool, request, stop(TRIPLES, "length"))) == ["", "", "cut_by_length"]


def test_alpaca_keeps_count_of_what_it_cannot_read() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    text = (
        TRIPLES
        + "\n###\n7. Instruction: No output\n7. Input: x\n###\n8. Instruction: E\n8. Input: a\n8. Output:"
    )
    assert reasons(m.outcomes(pool, request, stop(text)))[3:] == ["incomplete_task", "empty_output"]


def test_alpaca_chat_with_schema() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, CHAT)
    rows = [{"instruction": "do it", "input": "", "output": "done"}, {"instruction": "x"}]
    text = orjson.dumps({"tasks": rows}).decode()
    assert reasons(m.outcomes(pool, request, stop(text))) == ["", "incomplete_task"]
    rows = [{"instruction": f"do {i}", "input": "", "output": "done"} for i in range(3)]
    text = orjson.dumps({"tasks": rows}).decode()[:-9]
    assert reasons(m.outcomes(pool, request, stop(text, "length"))) == ["", "", "cut_by_length"]
