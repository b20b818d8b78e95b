"""Tests of the constraints: full score for answers that meet them, partial credit for others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.verifiers.constraints import HELD_OUT, KINDS, Constraint, draw

# For each kind: its parameters, an answer that meets it, and one that does not.
EXAMPLES = {
    "words_at_least": ({"count": 4}, "one two three four", "one two"),
    "words_at_most": ({"count": 3}, "one two three", "one two three four five six"),
    "sentences": ({"count": 2}, "It rains. We stay.", "It rains."),
    "include": ({"words": ["garden", "water"]}, "Water the garden.", "Mow the garden."),
    "repeat": ({"word": "small", "count": 2}, "Small steps, small risks.", "Small steps."),
    "avoid": ({"word": "the"}, "Take a walk.", "Take the walk."),
    "lower_case": ({}, "all of it is low.", "All of it is low."),
    "upper_case": ({}, "LOUD AND CLEAR.", "LOUD and clear."),
    "no_comma": ({}, "One and two.", "One, two."),
    "opening": ({"text": "In short"}, "In short: no.", "No, in short."),
    "ending": ({"text": "That is all."}, "Yes. That is all.", "That is all. Yes."),
    "bullets": ({"count": 2}, "* one\n* two", "* one"),
    "json": ({}, '{"a": 1}', "{a: 1}"),
    "paragraphs": ({"count": 2}, "One.\n\nTwo.", "One."),
    "numbered": ({"count": 3}, "1. a\n2. b\n3. c", "1. a"),
    "table": ({}, "| a | b |\n|---|---|\n| 1 | 2 |", "| a | b |"),
}


def test_every_kind_has_an_example() -> None:
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_an_answer_that_meets_the_constraint_scores_one(name: str) -> None:
    values, good, bad = EXAMPLES[name]
    constraint = Constraint(name, values)
    assert constraint.met(good) == 1.0
    assert constraint.met(bad) < 1.0
    assert constraint.met("") == 0.0


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 10**6), st.text(max_size=300))
def test_any_answer_scores_between_zero_and_one(name: str, seed: int, answer: str) -> None:
    constraint = Constraint(name, KINDS[name].draw(random.Random(seed)))
    assert 0.0 <= constraint.met(answer) <= 1.0
    assert Constraint.loads(constraint.dumps()) == constraint
    assert constraint.words


def test_more_words_score_higher() -> None:
    constraint = Constraint("words_at_least", {"count": 50})
    scores = [constraint.met("word " * n) for n in (1, 10, 30, 50, 80)]
    assert scores == sorted(scores)
    assert scores[-1] == 1.0


def test_the_held_out_family_is_drawn_only_on_request() -> None:
    rng = random.Random(1)
    assert all(draw(rng).family != HELD_OUT for _ in range(500))
    assert {draw(rng, held_out=True).family for _ in range(50)} == {HELD_OUT}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "none"}',
        "[]",
        "{",
        '{"name": "repeat", "x": 1}',
        '{"name": "words_at_least", "count": 0}',
        '{"name": "include", "words": 3}',
    ],
)
def test_invalid_constraints_raise_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Constraint.loads(text)
