"""Reject duplicates so that every rejected row is similar to a row that is kept.

Rows are visited in order of priority, and a row is kept unless it is too similar to a row that
is already kept. The usual method links similar rows, and keeps one row of each connected component.
A component also contains rows that are linked only through a chain of similar rows: on real
instructions, most rows that the usual method rejects are not similar to any kept row. This module
does not use the usual method, and only counts how many rows that method would reject.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np

from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import restrictiveness
from instructgen.plugins import suggest
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Sample
from instructgen.similarity.blocks import Array
from instructgen.similarity.distinctions import Distinctions, distinctions, fold, may_be_duplicates
from instructgen.similarity.encoders import MINILM, check_model
from instructgen.similarity.near_pairs import THRESHOLDS, Table, above, measures, tables_of
from instructgen.similarity.rouge import MOST_WORDS
from instructgen.similarity.tokens import tokenize

STAGES = ("exact", "minhash", "rouge_l", "semantic", "two_key")
PRIORITIES = ("source", "human", "license", "quality", "length")
Compared = Literal["row", "prompt", "instruction"]
Priority = Sequence[str] | Callable[[Sample], Any]
Thresholds = float | Mapping[str, float]
_METRICS = {"minhash": "jaccard", "rouge_l": "rouge_l", "semantic": "cosine"}
_PARTS: dict[str, tuple[str, ...]] = {
    "row": ("context", "instruction", "input", "output", "rejected_output", "calls"),
    "prompt": ("context", "instruction", "input"),
    "instruction": ("instruction",),
}
_KEYS = ("instruction", "output", "rejected_output")
_MIN_JACCARD = 0.05
# Maximum number of words of an answer whose exact wording counts.
_SHORT_ANSWER = 20
_NAMES = {"jaccard": "Jaccard", "rouge_l": "ROUGE-L", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class RejectedDuplicate:
    """A rejected sample, and the kept sample that it duplicates (``partner``).

    ``row`` and ``partner_row`` are the positions of the two samples in the input, counted from 0.
    ``score`` is the similarity of the two samples, measured by ``metric``: ``exact``,
    ``jaccard``, ``rouge_l`` or ``cosine``. ``stage`` is the stage of `deduplicate` that rejected
    the sample, and ``reason`` is ``duplicate``, ``paraphrase`` or ``same_frame`` (the same
    sentence pattern with different words). ``detail`` describes the decision in a sentence.
    """

    row: int
    sample: Sample
    partner_row: int
    partner: Sample
    metric: str
    score: float
    stage: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The result of `deduplicate`: the kept samples in input order, and the rejected samples.

    ``thresholds`` gives, for each stage, the similarity above which a sample is a duplicate.
    ``largest_component`` is the number of rows in the largest connected component of similar
    rows. ``components_would_reject`` is the number of rows that would be rejected if only one row
    of each connected component were kept. ``uncompared`` is the number of distinct texts that
    could not be compared by meaning, because the embedding model does not support the language of
    the complete text, of the instruction or of the output.
    """

    kept: list[Sample]
    rejected: list[RejectedDuplicate]
    thresholds: dict[str, float]
    largest_component: int
    components_would_reject: int
    uncompared: int
    _all_pairs: _AllPairs = field(repr=False, compare=False)

    def rethreshold(self, threshold: Thresholds) -> Deduplicated:
        """Return the result for a different threshold, without searching for similar pairs again.

        Args:
            threshold: a number for all stages, or a dict from stage to number.

        Raises:
            ConfigError: the threshold is below the ``floor`` that was passed to `deduplicate`.
        """
        thresholds = {**self.thresholds, **_by_stage(threshold, self._all_pairs.how)}
        for stage, value in thresholds.items():
            if value < self._all_pairs.floors[stage]:
                raise ConfigError(
                    f"the threshold {value} for the stage {stage} is too low: only pairs with a "
                    f"similarity above {self._all_pairs.floors[stage]} are known.",
                    f"Call deduplicate again with floor={value}.",
                )
        return _select(self._all_pairs, thresholds)


def deduplicate(
    samples: Sequence[Sample],
    how: Sequence[str] = ("exact", "minhash", "semantic"),
    *,
    priority: Priority = ("source", "license", "quality", "length"),
    threshold: Thresholds | None = None,
    compared: Compared = "row",
    sources: Sequence[str] = (),
    floor: float = 0.7,
    frame_quota: int = 3,
    model: str = MINILM,
    same_if_equal: Sequence[str] = (),
    watch: Watch | None = None,
) -> Deduplicated:
    """Reject duplicates: samples whose similarity to a kept sample is above a threshold.

    Two samples that differ in a number, an operator or a negation, or in the order of the same
    words, are not duplicates, whatever their similarity; see `instructgen.similarity.distinctions`.

    Args:
        samples: rows from any number of sources.
        how: stages, in the order in which they are applied. ``exact`` rejects samples that are
            equal except for Unicode form, case and white space; it is always included.
            ``minhash`` compares by Jaccard similarity of words, ``rouge_l`` by ROUGE-L, and
            ``semantic`` by the cosine of embeddings. ``two_key`` compares words and meaning: a
            sample that is similar to a kept sample in both is a *duplicate*, and a sample that is
            similar only in meaning is a *paraphrase*. Samples that are similar only in words have
            the same *frame*: the same sentence pattern with different words, such as "What is a
            ...?". Up to ``frame_quota`` samples with the same frame are kept.
        priority: determines which of two duplicates is kept: a function that returns a sort key
            for a sample, or a list of criteria, the most important first: ``source`` (in the
            order of ``sources``), ``human`` (human-written first), ``license`` (fewest conditions
            first), ``quality`` (highest mean score first), ``length`` (longest output first). If
            two samples are equal by all criteria, the first in the input is kept.
        threshold: similarity above which a sample is a duplicate: a number for all stages, or a
            dict from stage to number. Default: 0.7 for ``minhash`` and ``rouge_l``, 0.9 for
            ``semantic``. ``two_key`` uses the thresholds of ``rouge_l`` and ``semantic``.
        compared: text to compare: ``row`` (all text of the row), ``prompt`` (all text except the
            outputs) or ``instruction``. In addition, the instructions are compared with each
            other, and so are the outputs (with ``row``). The lowest of these similarities is the
            score of the pair, so the same long input alone does not make two rows duplicates.
        sources: names of sources, the most trusted first. Sources that are not named follow in
            the order in which they appear in the input.
        floor: all pairs with a similarity above this value are searched for and stored, so that
            `Deduplicated.rethreshold` can later use any threshold from this value upward.
        frame_quota: maximum number of kept samples that have the same frame (see ``two_key``).
        model: name or folder of the embedding model; see `EmbeddingIndex`.
        same_if_equal: names of labels or fields, such as ``category``. Two samples are duplicates
            only if they have the same values of these.
        watch: function that is called with `Progress` events.

    Raises:
        ConfigError: an argument is invalid, or a package is missing.
        InputError: a text is too long, or too many pairs have a similarity above ``floor``.
    """
    _check_names(how, compared, floor, frame_quota)
    thresholds, floors = _thresholds(how, threshold, floor)
    if "semantic" in floors:
        check_model(model)
    key = priority if callable(priority) else _sort_key(samples, priority, sources)
    protected = [_values(sample, same_if_equal) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: key(samples[i]))
    copies = _copies(samples, order, compared, protected)
    chosen = [samples[c[0]] for c in copies]
    texts = [_text(sample, compared) for sample in chosen]
    if "rouge_l" in floors:
        for text, (position, *_) in zip(texts, copies, strict=True):
            _check_length(text, position, samples[position])
    keys = [
        [fold(_part(sample, part)) for sample in chosen]
        for part in _PARTS[compared]
        if part in _KEYS and compared != "instruction"
    ]
    # A field that is empty in all rows cannot distinguish any of them.
    keys = [key for key in keys if any(key)]
    tables, unread = tables_of(texts, keys, how, floors, model, watch)
    exact = [_exact_text(sample, compared) for sample in chosen]
    differences = _Distinctions(exact, [protected[c[0]] for c in copies])
    all_pairs = _AllPairs(
        samples, tuple(how), frame_quota, floors, copies, tables, unread, differences
    )
    return _select(all_pairs, thresholds)


def _check_names(how: Sequence[str], compared: Compared, floor: float, frame_quota: int) -> None:
    for name in how:
        if name not in STAGES:
            raise ConfigError(
                f"the option how contains the unknown stage {name!r}.", suggest(name, [*STAGES])
            )
    if compared not in _PARTS:
        hint = suggest(compared, [*_PARTS])
        raise ConfigError(f"compared={compared!r} is not one of the supported values.", hint)
    if not 0 < floor < 1:
        raise ConfigError(f"the option floor is {floor}, but must be between 0 and 1.")
    if not 1 <= frame_quota < 2**31:
        raise ConfigError(
            f"the option frame_quota is {frame_quota}, but must be between 1 and {2**31 - 1}."
        )


def _thresholds(
    how: Sequence[str], threshold: Thresholds | None, floor: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return each stage's threshold, and the similarity above which it searches for pairs."""
    thresholds = {stage: THRESHOLDS[stage] for stage in measures(how)}
    if threshold is not None:
        thresholds.update(_by_stage(threshold, how))
    floors = {stage: min(floor, value) for stage, value in thresholds.items()}
    if floors.get("minhash", 1) < _MIN_JACCARD:
        raise ConfigError(
            f"the threshold or floor {floors['minhash']} for the stage minhash is too low.",
            f"Use a value of at least {_MIN_JACCARD}.",
        )
    return thresholds, floors


def _check_length(text: str, position: int, sample: Sample) -> None:
    # A text has at most as many words as characters, so most texts need no tokenizing.
    if len(text) > MOST_WORDS and len(tokenize(text)) > MOST_WORDS:
        raise InputError(
            f"row {position} (id {sample.id}) has more than {MOST_WORDS:,} words, the maximum.",
            hint="Shorten or remove the row.",
        )


def _values(sample: Sample, names: Sequence[str]) -> tuple[str, ...]:
    """Return the values of a sample's labels or fields with these names."""
    labels = {label.name: label.value for label in sample.labels}
    values = [labels.get(name) or str(getattr(sample, name, "")) for name in names]
    # Feedback rows with opposite labels say different things.
    return (*values, *([] if sample.label is None else [str(sample.label)]))


def _copies(
    samples: Sequence[Sample],
    order: Sequence[int],
    compared: Compared,
    protected: Sequence[tuple[str, ...]],
) -> list[list[int]]:
    """Group equal samples; return each group's positions, beginning with the sample to keep."""
    first: dict[tuple[str, ...], int] = {}
    copies: list[list[int]] = []
    for position in order:
        parts = [_normalized(_part(samples[position], part)) for part in _PARTS[compared]]
        parts += protected[position]
        group = first.setdefault(tuple(parts), len(copies))
        if group == len(copies):
            copies.append([])
        copies[group].append(position)
    return copies


@dataclass(frozen=True, slots=True)
class _AllPairs:
    """The similar pairs that were found, and the other data that `_select` needs."""

    samples: Sequence[Sample]
    how: tuple[str, ...]
    frame_quota: int
    floors: dict[str, float]
    copies: list[list[int]]
    tables: dict[str, Table]
    uncompared: int
    differences: _Distinctions


class _Distinctions:
    """Decides which similar texts can be duplicates, from what distinguishes them."""

    def __init__(self, texts: Sequence[str], protected: Sequence[tuple[str, ...]]) -> None:
        self._texts, self._protected = texts, protected
        self._known: dict[int, Distinctions] = {}

    def best(self, text: int, row: Array, score: Array, *, ordered: bool) -> int | None:
        """Return the place of the most similar text of which ``text`` can be a duplicate."""
        for place in np.argsort(-score, kind="stable").tolist():
            other = int(row[place])
            if self._protected[text] == self._protected[other] and may_be_duplicates(
                self._of(text), self._of(other), ordered=ordered
            ):
                return int(place)
        return None

    def _of(self, text: int) -> Distinctions:
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = distinctions(self._texts[text])
        return known


class _Reason(NamedTuple):
    """Why a text is rejected; ``partner`` is the index of the kept text that is similar to it."""

    partner: int
    metric: str
    score: float
    stage: str
    reason: str
    detail: str


def _select(all_pairs: _AllPairs, thresholds: dict[str, float]) -> Deduplicated:
    """Visit the texts in order of priority; keep a text unless it is too similar to a kept text."""
    tables = {stage: above(table, thresholds[stage]) for stage, table in all_pairs.tables.items()}
    count = len(all_pairs.copies)
    kept = np.ones(count, np.bool_)
    reasons: dict[int, _Reason] = {}
    near = [table.text for table in tables.values()]
    for text in np.unique(np.concatenate([np.zeros(0, np.int64), *near])).tolist():
        for stage in all_pairs.how:
            reason = _reason_to_reject(stage, text, tables, thresholds, kept, all_pairs)
            if reason is not None:
                kept[text], reasons[text] = False, reason
                break
    removed: list[RejectedDuplicate] = []
    for text, (position, *others) in enumerate(all_pairs.copies):
        reason = reasons.get(text, _Reason(text, "exact", 1.0, "exact", "duplicate", "equal texts"))
        rejected = others if kept[text] else [position, *others]
        removed += [_removed_row(all_pairs, row, reason) for row in rejected]
    removed.sort(key=lambda r: r.row)
    _check_result(removed, len(all_pairs.samples), int(kept.sum()), thresholds)
    rejected_rows = {r.row for r in removed}
    component = _components(count, list(tables.values()))
    sizes = np.bincount(component, [len(c) for c in all_pairs.copies], count).astype(int)
    return Deduplicated(
        kept=[s for i, s in enumerate(all_pairs.samples) if i not in rejected_rows],
        rejected=removed,
        thresholds=thresholds,
        largest_component=int(sizes.max(initial=0)),
        components_would_reject=len(all_pairs.samples) - int((sizes > 0).sum()),
        uncompared=all_pairs.uncompared,
        _all_pairs=all_pairs,
    )


def _reason_to_reject(
    stage: str,
    text: int,
    tables: dict[str, Table],
    thresholds: dict[str, float],
    kept: Array,
    all_pairs: _AllPairs,
) -> _Reason | None:
    """Return the reason why a stage rejects a text, or None if the stage accepts the text."""
    if stage == "exact":
        return None
    differences = all_pairs.differences
    if stage != "two_key":
        row, score, _ = _partners(tables[stage], text, kept)
        best = differences.best(text, row, score, ordered=stage != "semantic")
        if best is None:
            return None
        metric = _METRICS[stage]
        detail = f"{_NAMES[metric]} {score[best]:.3f}, above {thresholds[stage]}"
        return _Reason(int(row[best]), metric, float(score[best]), stage, "duplicate", detail)
    row, score, other = _partners(tables["semantic"], text, kept)
    best = differences.best(text, row, score, ordered=False)
    if best is not None:
        lexical = float(other[best])
        same = lexical > thresholds["rouge_l"]
        detail = f"cosine {score[best]:.3f}, ROUGE-L {lexical:.3f}"
        reason = "duplicate" if same else "paraphrase"
        return _Reason(int(row[best]), "cosine", float(score[best]), stage, reason, detail)
    row, score, other = _partners(tables["rouge_l"], text, kept)
    if len(row) >= all_pairs.frame_quota:
        best = int(score.argmax())
        detail = (
            f"ROUGE-L {score[best]:.3f}, cosine {float(other[best]):.3f}; "
            f"{len(row)} kept rows are similar in words"
        )
        return _Reason(int(row[best]), "rouge_l", float(score[best]), stage, "same_frame", detail)
    return None


def _partners(table: Table, text: int, kept: Array) -> tuple[Array, Array, Array]:
    """Return the kept texts similar to a text, their scores, and those by the second measure."""
    begin, end = np.searchsorted(table.text, [text, text + 1])
    alive = kept[table.row[begin:end]]
    other = table.score if table.other is None else table.other
    return table.row[begin:end][alive], table.score[begin:end][alive], other[begin:end][alive]


def _removed_row(all_pairs: _AllPairs, row: int, reason: _Reason) -> RejectedDuplicate:
    partner = all_pairs.copies[reason.partner][0]
    return RejectedDuplicate(
        row, all_pairs.samples[row], partner, all_pairs.samples[partner], *reason[1:]
    )


def _check_result(
    removed: list[RejectedDuplicate], rows: int, kept: int, thresholds: dict[str, float]
) -> None:
    """Check that each rejected row is similar to a kept row, and that no row is missing."""
    minimum = {_METRICS[stage]: value for stage, value in thresholds.items()}
    rejected = {r.row for r in removed}
    for r in removed:
        if r.partner_row in rejected or r.score <= minimum.get(r.metric, 0):
            raise AssertionError(
                f"row {r.row} is rejected as a duplicate of row {r.partner_row}, which is not kept "
                f"or not similar: {r.detail}. This is a bug; please report it."
            )
    if len(rejected) != len(removed) or len(rejected) + kept != rows:
        raise AssertionError(
            f"{kept} kept and {len(removed)} rejected rows do not add up to the {rows} input rows. "
            "This is a bug; please report it."
        )


def _components(count: int, tables: list[Table]) -> Array:
    """For each text, return the smallest index among the texts of its connected component."""
    label = np.arange(count)
    a = np.concatenate([np.zeros(0, np.int64), *(t.text for t in tables)])
    b = np.concatenate([np.zeros(0, np.int64), *(t.row for t in tables)])
    while True:
        minimum = np.minimum(label[a], label[b])
        new = label.copy()
        # The labels of the labels are updated too, so that fewer passes are needed.
        for ends in (a, b, label[a], label[b]):
            np.minimum.at(new, ends, minimum)
        new = new[new]
        if (new == label).all():
            return label
        label = new


def _by_stage(threshold: Thresholds, how: Sequence[str]) -> dict[str, float]:
    used = measures(how)
    by_stage = threshold if isinstance(threshold, Mapping) else dict.fromkeys(used, threshold)
    for stage, value in by_stage.items():
        if stage not in used:
            raise ConfigError(
                f"threshold has a value for the stage {stage!r}, which is not selected.",
                suggest(stage, used),
            )
        if not 0 < value < 1:
            raise ConfigError(
                f"the threshold for the stage {stage} is {value}, but must be between 0 and 1."
            )
    return dict(by_stage)


def _sort_key(
    samples: Sequence[Sample], priority: Sequence[str], sources: Sequence[str]
) -> Callable[[Sample], Any]:
    present = dict.fromkeys(s.source for s in samples)
    for name in sources:
        if name not in present:
            raise ConfigError(f"sources: no row is from {name!r}.", suggest(name, [*present]))
    rank = {name: i for i, name in enumerate(dict.fromkeys([*sources, *present]))}
    keys: dict[str, Callable[[Sample], Any]] = {
        "source": lambda s: rank[s.source],
        "human": lambda s: s.origin.method != "human",
        "license": lambda s: restrictiveness(s.license),
        "quality": _quality_key,
        "length": lambda s: -len(s.output),
    }
    for name in priority:
        if name not in keys:
            raise ConfigError(
                f"the option priority contains the unknown criterion {name!r}.",
                suggest(name, [*PRIORITIES]),
            )
    chosen = [keys[name] for name in priority]
    return lambda s: tuple(key(s) for key in chosen)


def _quality_key(sample: Sample) -> tuple[bool, float]:
    """Return a sort key that puts high mean scores first and samples without a score last."""
    known = [s.value for s in sample.scores if s.value is not None and isfinite(s.value)]
    return (not known, -sum(known) / len(known) if known else 0.0)


def _text(sample: Sample, compared: Compared) -> str:
    parts = [_part(sample, part) for part in _PARTS[compared]]
    return fold("\n".join(part for part in parts if part))


def _exact_text(sample: Sample, compared: Compared) -> str:
    """Return the text whose exact wording distinguishes a row: the prompt, and a short answer.

    Long answers to the same prompt differ in numbers and order without being another task.
    """
    parts = [p for p in _PARTS[compared] if p not in ("output", "rejected_output", "calls")]
    texts = [_part(sample, part) for part in parts]
    texts += [f"{call.name} {call.arguments}" for call in sample.tool_calls]
    if compared == "row" and len(tokenize(sample.output)) <= _SHORT_ANSWER:
        texts.append(sample.output)
    return "\n".join(text for text in texts if text)


def _part(sample: Sample, part: str) -> str:
    return getattr(sample, part) or ""


def _normalized(text: str) -> str:
    return " ".join(fold(text).split())
