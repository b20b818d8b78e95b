"""The LLM judge: verdicts need both orders of the answers, otherwise the judge abstains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.engines import Completion
from instructgen.evaluation.judge import Contest, judge_requests, verdicts
from instructgen.schema.sample import Sample


def completions(*texts: str) -> list[Completion]:
    return [Completion(text, "stop") for text in texts]


@pytest.mark.parametrize(
    ("original", "swapped", "result"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("TIE", "tie.", 0.5),
        ("Answer A", "**B**", 1.0),
        ("A", "A", None),
        ("B", "B", None),
        ("A", "TIE", None),
        ("A", "", None),
        ("A is better than B", "B", None),
        ("I do not know", "B", None),
    ],
)
def test_a_verdict_needs_both_orders(original: str, swapped: str, result: float | None) -> None:
    assert verdicts(completions(original, swapped))[0] == [result]


def test_every_contest_is_counted_by_outcome() -> None:
    _, counts = verdicts(completions("A", "B", "A", "A", "?", "A", "TIE", "TIE"))
    assert counts == {"decided": 1, "orders_disagree": 1, "tie": 1, "unreadable": 1}


@given(st.text(max_size=30), st.text(max_size=30))
def test_swapping_the_answers_swaps_the_verdict(original: str, swapped: str) -> None:
    one = verdicts(completions(original, swapped))[0][0]
    other = verdicts(completions(swapped, original))[0][0]
    assert (one is None) == (other is None)
    assert one is None or one == 1 - other


def test_requests_have_both_orders_and_braces_in_texts_are_kept() -> None:
    contest = Contest(Sample("{first} {0}", output=""), "{second}", "x")
    original, swapped = judge_requests([contest])
    assert "[Answer A]\n{second}\n" in original.prompt_text()
    assert "[Answer B]\n{second}\n" in swapped.prompt_text()
    assert "{first} {0}" in original.prompt_text()
