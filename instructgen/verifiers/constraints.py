"""Defines constraints on answers that a program can check, as in IFEval (arXiv 2311.07911).

A constraint consists of an instruction for the model and a check, which scores an answer from 0 to
1. There is partial credit, because a group of answers that all score 0 gives no training signal.
The checks, the wording and the families (groups of constraints) are not those of IFEval. The family
``layout`` is used only for evaluation, never for rewards, so that it measures generalization to
unseen constraints.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import regex

LABEL = "constraint"
HELD_OUT = "layout"
_KEYWORDS = (
    "water", "morning", "careful", "simple", "people", "garden", "always", "between",
    "number", "reason", "together", "change", "small", "question", "world", "follow",
)  # fmt: skip
_OPENINGS = ("Certainly", "In short", "To begin with", "First of all")
_ENDINGS = ("That is all.", "I hope this helps.", "Is there anything else?")


@dataclass(frozen=True, slots=True)
class ConstraintKind:
    """A kind of constraint.

    ``draw`` chooses the parameters at random, ``words`` returns the instruction for the model,
    and ``met`` returns the score of an answer.
    """

    family: str
    draw: Callable[[random.Random], dict[str, Any]]
    words: Callable[..., str]
    met: Callable[..., float]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint: the name of its kind, such as ``sentences``, and its parameters by name."""

    name: str
    values: Mapping[str, Any]

    @property
    def family(self) -> str:
        """Return the family of the constraint, such as ``length`` or ``keywords``."""
        return KINDS[self.name].family

    @property
    def words(self) -> str:
        """Return the instruction for the model, as one sentence."""
        return KINDS[self.name].words(**self.values)

    def met(self, answer: str) -> float:
        """Return how well an answer meets the constraint, from 0 (not at all) to 1 (fully)."""
        return KINDS[self.name].met(answer, **self.values) if answer.strip() else 0.0

    def dumps(self) -> str:
        """Return the constraint as JSON, to be stored in the row's label ``constraint``."""
        return orjson.dumps(
            {"name": self.name, **self.values}, option=orjson.OPT_SORT_KEYS
        ).decode()

    @classmethod
    def loads(cls, text: str) -> Constraint:
        """Return the constraint from the JSON that `dumps` wrote.

        Raises:
            ValueError: the text is not valid JSON, or not a known constraint with valid values.
        """
        value = orjson.loads(text)
        name = value.pop("name", None) if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in KINDS:
            raise ValueError(f"unknown constraint: {text[:80]}")
        names = KINDS[name].draw(random.Random(0)).keys()
        if value.keys() != names or not all(_is_valid(*item) for item in value.items()):
            raise ValueError(f"invalid values for a constraint: {text[:80]}")
        return cls(name, value)


def _is_valid(name: str, value: Any) -> bool:
    """Return whether a parameter has a value with which every score is between 0 and 1."""
    if name == "count":
        return type(value) is int and value >= 1
    words = value if name == "words" else [value]
    return isinstance(words, list) and bool(words) and all(isinstance(w, str) and w for w in words)


def draw(rng: random.Random, *, held_out: bool = False) -> Constraint:
    """Return a random constraint: of the family ``layout`` if ``held_out``, or of any other."""
    names = [name for name, kind in KINDS.items() if (kind.family == HELD_OUT) == held_out]
    name = rng.choice(names)
    return Constraint(name, KINDS[name].draw(rng))


# -- checks -------------------------------------------------------------------------------


def _word_count(answer: str) -> int:
    return len(regex.findall(r"\w+(?:['’]\w+)*", answer))


def _sentence_count(answer: str) -> int:
    return len([s for s in regex.split(r"(?<=[.!?])\s+", answer.strip()) if s])


def _exactly(actual: int, target: int) -> float:
    """Return 1 if ``actual`` equals ``target``; the score falls to 0 the more they differ."""
    return max(0.0, 1 - abs(actual - target) / max(1, target))


def _at_least(actual: int, target: int) -> float:
    return min(1.0, actual / target)


def _at_most(actual: int, target: int) -> float:
    return 1.0 if actual <= target else max(0.0, 1 - (actual - target) / target)


def _count(answer: str, word: str) -> int:
    return len(regex.findall(rf"\b{regex.escape(word)}\b", answer, regex.IGNORECASE))


def _letter_share(answer: str, is_counted: Callable[[str], bool]) -> float:
    letters = [c for c in answer if c.isalpha()]
    return sum(map(is_counted, letters)) / len(letters) if letters else 0.0


def _strict(share: float) -> float:
    """Return 1 if ``share``, the fraction of correct letters, is 1; otherwise return half of it."""
    return 1.0 if share == 1 else share / 2


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.split("\n")]


def _bullet_count(answer: str) -> int:
    return sum(regex.match(r"[*\-•] \S", line) is not None for line in _lines(answer))


def _numbered_count(answer: str) -> int:
    return sum(regex.match(r"\d+[.)] \S", line) is not None for line in _lines(answer))


def _paragraph_count(answer: str) -> int:
    return len([p for p in regex.split(r"\n\s*\n", answer.strip()) if p.strip()])


def _json(answer: str) -> float:
    text = answer.strip()
    fenced = regex.fullmatch(r"```(?:json)?+(.*)```", text, regex.DOTALL)
    text = fenced.group(1).strip() if fenced else text
    try:
        return 1.0 if isinstance(orjson.loads(text), dict) else 0.5
    except orjson.JSONDecodeError:
        return 0.25 * text.startswith("{") + 0.25 * text.endswith("}")


def _table(answer: str) -> float:
    rows = [s for s in _lines(answer) if len(s) > 1 and s.startswith("|") and s.endswith("|")]
    separator = any(len(row) > 2 and not row.strip("|:- \t") for row in rows)
    return min(1.0, len(rows) / 3) * (1.0 if separator else 0.5)


KINDS: dict[str, ConstraintKind] = {
    "words_at_least": ConstraintKind(
        "length",
        lambda rng: {"count": rng.randrange(40, 121, 10)},
        lambda count: f"Answer in at least {count} words.",
        lambda answer, count: _at_least(_word_count(answer), count),
    ),
    "words_at_most": ConstraintKind(
        "length",
        lambda rng: {"count": rng.randrange(10, 51, 5)},
        lambda count: f"Use no more than {count} words.",
        lambda answer, count: _at_most(_word_count(answer), count),
    ),
    "sentences": ConstraintKind(
        "length",
        lambda rng: {"count": rng.randrange(1, 5)},
        lambda count: f"Write exactly {count} sentence{'s' if count > 1 else ''}.",
        lambda answer, count: _exactly(_sentence_count(answer), count),
    ),
    "include": ConstraintKind(
        "keywords",
        lambda rng: {"words": sorted(rng.sample(_KEYWORDS, 2))},
        lambda words: f"Use the words {' and '.join(words)}.",
        lambda answer, words: sum(_count(answer, w) > 0 for w in words) / len(words),
    ),
    "repeat": ConstraintKind(
        "keywords",
        lambda rng: {"word": rng.choice(_KEYWORDS), "count": rng.randrange(2, 5)},
        lambda word, count: f"Use the word {word} at least {count} times.",
        lambda answer, word, count: _at_least(_count(answer, word), count),
    ),
    "avoid": ConstraintKind(
        "keywords",
        lambda rng: {"word": rng.choice(("the", "is", "and", "of"))},
        lambda word: f'Do not use the word "{word}".',
        lambda answer, word: 1.0 if not _count(answer, word)
        else max(0.0, 0.5 - 5 * _count(answer, word) / max(1, _word_count(answer))),
    ),
    "lower_case": ConstraintKind(
        "case",
        lambda rng: {},
        lambda: "Write everything in lower case.",
        lambda answer: _strict(_letter_share(answer, str.islower)),
    ),
    "upper_case": ConstraintKind(
        "case",
        lambda rng: {},
        lambda: "WRITE EVERYTHING IN CAPITAL LETTERS.",
        lambda answer: _strict(_letter_share(answer, str.isupper)),
    ),
    "no_comma": ConstraintKind(
        "punctuation",
        lambda rng: {},
        lambda: "Do not use any commas.",
        lambda answer: 1.0 if "," not in answer
        else max(0.0, 0.5 - 2 * answer.count(",") / max(1, _word_count(answer))),
    ),
    "opening": ConstraintKind(
        "position",
        lambda rng: {"text": rng.choice(_OPENINGS)},
        lambda text: f'Begin your answer with "{text}".',
        lambda answer, text: 1.0 if answer.lstrip().startswith(text) else 0.3 * (text in answer),
    ),
    "ending": ConstraintKind(
        "position",
        lambda rng: {"text": rng.choice(_ENDINGS)},
        lambda text: f'End your answer with "{text}"',
        lambda answer, text: 1.0 if answer.rstrip().endswith(text) else 0.3 * (text in answer),
    ),
    "bullets": ConstraintKind(
        "format",
        lambda rng: {"count": rng.randrange(2, 6)},
        lambda count: f'Answer with a list of exactly {count} points, each beginning with "* ".',
        lambda answer, count: _exactly(_bullet_count(answer), count),
    ),
    "json": ConstraintKind(
        "format",
        lambda rng: {},
        lambda: "Answer with one JSON object and nothing else.",
        _json,
    ),
    "paragraphs": ConstraintKind(
        HELD_OUT,
        lambda rng: {"count": rng.randrange(2, 5)},
        lambda count: f"Write {count} paragraphs with an empty line between them.",
        lambda answer, count: _exactly(_paragraph_count(answer), count),
    ),
    "numbered": ConstraintKind(
        HELD_OUT,
        lambda rng: {"count": rng.randrange(3, 6)},
        lambda count: f"Write a numbered list of {count} items: 1., 2. and so on.",
        lambda answer, count: _exactly(_numbered_count(answer), count),
    ),
    "table": ConstraintKind(
        HELD_OUT,
        lambda rng: {},
        lambda: "Answer with a Markdown table.",
        _table,
    ),
}  # fmt: skip
