"""Tests of the methods: constants and rules of the papers, and past defects."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import orjson
import pytest

from instructgen.engines import Completion
from instructgen.generation.methods import (
    Candidate,
    Classified,
    PromptSetup,
    RejectedCandidate,
)
from instructgen.generation.methods.alpaca import Alpaca
from instructgen.generation.methods.self_instruct import CLASSIFICATION, INSTANCES, SelfInstruct
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Kind, Sample

COMPLETION = PromptSetup("completion", False)
CHAT = PromptSetup("chat", True)


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


def test_defaults_equal_the_paper() -> None:
    m = SelfInstruct()
    i = m.instructions
    assert (i.temperature, i.top_p, i.presence_penalty, i.frequency_penalty) == (0.7, 0.5, 2, 0)
    assert i.max_tokens == 1024
    assert (m.classification.temperature, m.classification.max_tokens) == (0, 3)
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
    requests = SelfInstruct().requests(pool, random.Random(0), 20, COMPLETION)
    assert len(requests) == 10
    for r in requests:
        assert len(set(r.parents)) == 8
        assert sum(p >= 40 for p in r.parents) == shown
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


def test_demonstrations_of_a_request_have_one_language() -> None:
    pool = Pool([*seeds(20), *seeds(20, "fr")])
    requests = SelfInstruct().requests(pool, random.Random(0), 80, COMPLETION)
    assert {r.language for r in requests} == {"en", "fr"}
    for r in requests:
        assert {pool.at(p).language for p in r.parents} == {r.language}


def test_seeds_that_are_too_long_are_not_demonstrations() -> None:
    long = Sample("word " * 500, language="en", license="MIT")
    pool = Pool([*seeds(10), long])
    requests = SelfInstruct().requests(pool, random.Random(0), 200, COMPLETION)
    assert all(10 not in r.parents for r in requests)


def first(pool: Pool, completion: Completion, form: PromptSetup = COMPLETION) -> list:
    m = SelfInstruct()
    (request,) = m.requests(pool, random.Random(0), 1, form)
    return m.outcomes(pool, request, completion)


def test_instructions_have_the_license_of_their_demonstrations() -> None:
    candidates = first(pool_with(5), stop(" do this thing now\n10. And NASA's that"))
    assert [c.sample.instruction for c in candidates] == ["Do this thing now", "And NASA's that"]
    assert {c.sample.license for c in candidates} == {"CC-BY-4.0"}
    assert not candidates[0].is_row


def test_at_most_seven_instructions_are_read_from_a_completion() -> None:
    text = " a b c\n" + "\n".join(f"{n}. a b {n}" for n in range(10, 30))
    assert len(first(pool_with(), stop(text))) == 7


def test_a_truncated_list_of_instructions_is_rejected() -> None:
    (outcome,) = first(pool_with(), stop(" Do this\n10. And th", "length"))
    assert isinstance(outcome, RejectedCandidate)
    assert outcome.rejection.reason == "cut_by_length"


def test_an_unreadable_completion_is_rejected_with_a_reason() -> None:
    (outcome,) = first(pool_with(), stop("  \n "))
    assert outcome.rejection.reason == "no_instructions"


def test_a_failed_request_is_rejected_with_the_error_of_the_engine() -> None:
    (outcome,) = first(pool_with(), Completion.failed("too long"))
    assert (outcome.rejection.reason, outcome.rejection.detail) == ("engine_error", "too long")


def test_instructions_are_parsed_from_json() -> None:
    m, pool = SelfInstruct(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, CHAT)
    assert request.schema is not None
    assert request.schema["properties"]["tasks"]["maxItems"] == 7
    text = orjson.dumps({"tasks": ["do one thing", " ", 7, "do two"]}).decode()
    candidates = m.outcomes(pool, request, stop(text))
    assert [c.sample.instruction for c in candidates] == ["Do one thing", "Do two"]
    (outcome,) = m.outcomes(pool, request, stop('{"tasks": ['))
    assert outcome.rejection.reason == "no_instructions"


def test_the_chat_style_has_no_presence_penalty() -> None:
    for count in (1, 3):
        pool = pool_with(3)
        pool.unclassified.append(0)
        for request in SelfInstruct().requests(pool, random.Random(0), count, CHAT):
            assert request.sampling.presence_penalty == 0


# -- self_instruct: classification and instances ------------------------------------------


def staged(kind: Kind | None, form: PromptSetup = COMPLETION):
    m, pool = SelfInstruct(), pool_with()
    number = pool.add(Sample("Sort the thing", language="en", license="MIT"))
    if kind is None:
        pool.unclassified.append(number)
    else:
        pool.tasks[number].kind = kind
        pool.classified.append(number)
    request = m.requests(pool, random.Random(0), 2, form)[0]
    return m, pool, request


@pytest.mark.parametrize("form", [COMPLETION, CHAT, PromptSetup("chat", False)])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", Kind.CLASSIFICATION), ("No", Kind.GENERATION), ("Hm", Kind.GENERATION)],
)
def test_the_answer_sets_the_kind_of_the_task(form: PromptSetup, answer: str, kind: Kind) -> None:
    m, pool, request = staged(None, form)
    assert request.stage == CLASSIFICATION
    assert "Sort the thing" in request.prompt_text()
    text = orjson.dumps({"answer": [answer]}).decode() if request.schema else f" {answer}"
    assert m.outcomes(pool, request, stop(text, "length")) == [Classified(0, kind)]


def rows_of(kind: Kind, text: str, reason: str = "stop") -> list:
    m, pool, request = staged(kind)
    assert request.stage == INSTANCES
    return m.outcomes(pool, request, stop(text, reason))


def test_instances_of_both_kinds_are_parsed() -> None:
    (row,) = rows_of(Kind.GENERATION, "Input: a\nOutput: b")
    assert isinstance(row, Candidate)
    assert (row.sample.input, row.sample.output, row.sample.kind) == ("a", "b", Kind.GENERATION)
    (row,) = rows_of(Kind.CLASSIFICATION, "Class label: b\nInput: a")
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


def chat_rows(examples: list, reason: str = "stop", cut: int = 0) -> list:
    m, pool, request = staged(Kind.GENERATION, CHAT)
    text = orjson.dumps({"examples": examples}).decode()
    return m.outcomes(pool, request, stop(text[: len(text) - cut], reason))


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
        pool.unclassified.append(pool.add(Sample("Do", language=language, license="MIT")))
        request = m.requests(pool, random.Random(0), 1, COMPLETION)[0]
        assert request.sampling.max_tokens == tokens


def reasons(outcomes: list) -> list[str]:
    return [o.rejection.reason if isinstance(o, RejectedCandidate) else "" for o in outcomes]


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


@pytest.mark.parametrize(
    ("count", "unclassified", "classified", "expected"),
    [
        # New instructions fill the rest of the batch, up to half of it.
        (24, 10, 6, {"classification": 10, "instances": 6, "instructions": 12}),
        (24, 0, 20, {"classification": 0, "instances": 20, "instructions": 4}),
        # At least one request is for new instructions; classifications do not count.
        (16, 40, 40, {"classification": 40, "instances": 15, "instructions": 1}),
        (16, 30, 0, {"classification": 30, "instances": 0, "instructions": 8}),
        (1, 5, 5, {"classification": 5, "instances": 1, "instructions": 0}),
        (1, 5, 0, {"classification": 5, "instances": 0, "instructions": 1}),
    ],
)
def test_stages_share_a_batch(
    count: int, unclassified: int, classified: int, expected: dict[str, int]
) -> None:
    m, pool = SelfInstruct(), pool_with(80)
    pool.unclassified.extend(range(unclassified))
    pool.classified.extend(range(40, 40 + classified))
    for task in pool.tasks[40:]:
        task.kind = Kind.GENERATION
    stages = Counter(r.stage for r in m.requests(pool, random.Random(0), count, COMPLETION))
    assert stages == Counter(expected)
    assert not pool.unclassified
    assert len(pool.classified) == classified - expected["instances"]


# -- alpaca -------------------------------------------------------------------------------


def test_alpaca_shows_three_seeds_and_no_generated_task() -> None:
    m, pool = Alpaca(), pool_with(20)
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    assert len(request.parents) == 3
    assert all(p < 40 for p in request.parents)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (1.0, 3072)
    assert request.sampling.stop == ("\n20.", "\n20 .")
    assert request.prompt_text().endswith("###\n4. Instruction:")


def test_alpaca_does_not_show_very_long_seeds() -> None:
    pool = Pool([*seeds(6), *[replace(s, output="x" * 9000) for s in seeds(6)]])
    for request in Alpaca().requests(pool, random.Random(0), 50, COMPLETION):
        assert request.parents
        assert all(p < 6 for p in request.parents)


TRIPLES = (
    " name a river\n4. Input: (none)\n4. Output: The Nile\n###\n"
    "5. Instruction: Add\n5. Input: 1 2\n5. Output: 3\n###\n"
    "6. Instruction: Cut\n6. Input: x\n6. Output: y"
)


def test_alpaca_parses_triples() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    candidates = m.outcomes(pool, request, stop(TRIPLES))
    assert [(c.sample.instruction, c.sample.input, c.sample.output) for c in candidates] == [
        ("Name a river", "", "The Nile"),
        ("Add", "1 2", "3"),
        ("Cut", "x", "y"),
    ]
    assert all(c.is_row for c in candidates)


def test_alpaca_rejects_only_the_last_item_of_a_truncated_completion() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    assert reasons(m.outcomes(pool, request, stop(TRIPLES, "length"))) == ["", "", "cut_by_length"]


def test_alpaca_counts_items_that_it_cannot_parse() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, COMPLETION)
    text = (
        TRIPLES
        + "\n###\n7. Instruction: No output\n7. Input: x\n###\n8. Instruction: E\n8. Input: a\n8. Output:"
    )
    assert reasons(m.outcomes(pool, request, stop(text)))[3:] == ["incomplete_task", "empty_output"]


def test_alpaca_parses_json() -> None:
    m, pool = Alpaca(), pool_with()
    (request,) = m.requests(pool, random.Random(0), 1, CHAT)
    rows = [{"instruction": "do it", "input": "", "output": "done"}, {"instruction": "x"}]
    text = orjson.dumps({"tasks": rows}).decode()
    assert reasons(m.outcomes(pool, request, stop(text))) == ["", "incomplete_task"]
    rows = [{"instruction": f"do {i}", "input": "", "output": "done"} for i in range(3)]
    text = orjson.dumps({"tasks": rows}).decode()[:-9]
    assert reasons(m.outcomes(pool, request, stop(text, "length"))) == ["", "", "cut_by_length"]
