"""Reject duplicates so that every rejected row is similar to a row that is kept.

Rows are visited in order of priority, and a row is kept unless it is too similar to a row that
is already kept. The usual method links similar rows, and keeps one row of each connected component.
A component also contains rows that are linked only through a chain of similar rows: on real
instructions, most rows that the usual method rejects are not similar to any kept row. This module
does not use the usual method, and only counts how many rows that method would reject.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Sample
from instructgen.similarity.blocks import Array
from instructgen.similarity.dedup_rows import (
    PARTS,
    Compared,
    ComparedRows,
    Describer,
    Priority,
    RowNumbers,
)
from instructgen.similarity.distinctions import distinctions, may_be_duplicates
from instructgen.similarity.encoders import MINILM, check_model
from instructgen.similarity.matches import Pairs
from instructgen.similarity.minhash_pairs import minhash_pairs
from instructgen.similarity.near_pairs import (
    TEXTS_KNOWN,
    THRESHOLDS,
    Table,
    above,
    measures,
    tables_of,
)
from instructgen.similarity.temporary import release_freed

STAGES = ("exact", "minhash", "rouge_l", "semantic", "two_key")
Thresholds = float | Mapping[str, float]
_METRICS = {"minhash": "jaccard", "rouge_l": "rouge_l", "semantic": "cosine"}
_MIN_JACCARD = 0.05
_NAMES = {"jaccard": "Jaccard", "rouge_l": "ROUGE-L", "cosine": "cosine"}


class DuplicateRow(NamedTuple):
    """A rejected row, and the kept row that it duplicates (``partner_row``).

    Rows are positions in the input, counted from 0, and ``partner_id`` is the id of the kept row.
    ``score`` is the similarity of the two rows, measured by ``metric``: ``exact``, ``jaccard``,
    ``rouge_l`` or ``cosine``. ``stage`` is the stage of `deduplicate` that rejected the row, and
    ``reason`` is ``duplicate``, ``paraphrase`` or ``same_frame`` (the same sentence pattern with
    different words). ``detail`` describes the decision in a sentence.
    """

    row: int
    partner_row: int
    partner_id: str
    metric: str
    score: float
    stage: str
    reason: str
    detail: str


class RejectedDuplicate(NamedTuple):
    """A rejected sample, and the kept sample that it duplicates (``partner``).

    The other fields are those of `DuplicateRow`.
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
class Duplicates:
    """The result of `find_duplicates`: which rows are rejected, and why.

    ``rows`` is the number of rows. ``thresholds`` gives, for each stage, the similarity above which
    a row is a duplicate. ``largest_component`` is the number of rows in the largest connected
    component of similar rows. ``components_would_reject`` is the number of rows that would be
    rejected if only one row of each connected component were kept. ``uncompared`` is the number of
    distinct texts that could not be compared by meaning, because the embedding model does not
    support the language of the complete text, of the instruction or of the output.
    """

    rows: int
    thresholds: dict[str, float]
    largest_component: int
    components_would_reject: int
    uncompared: int
    _all_pairs: AllPairs = field(repr=False, compare=False)
    _kept: Array = field(repr=False, compare=False)
    _reasons: dict[int, _Reason] = field(repr=False, compare=False)

    def rejected(self) -> Iterator[DuplicateRow]:
        """Yield the rejected rows, in input order."""
        pairs = self._all_pairs
        copy = _Reason(-1, "exact", 1.0, "exact", "duplicate", "equal texts")
        is_first = np.zeros(self.rows, np.bool_)
        is_first[pairs.first] = True
        for row in np.flatnonzero(~is_first | ~self._kept[pairs.group]).tolist():
            text = int(pairs.group[row])
            reason = self._reasons.get(text, copy)
            partner = int(pairs.first[text if reason is copy else reason.partner])
            yield DuplicateRow(row, partner, pairs.source.id(partner), *reason[1:])

    def rethreshold(self, threshold: Thresholds) -> Duplicates:
        """Return the result for a different threshold; see `Deduplicated.rethreshold`."""
        thresholds = {**self.thresholds, **_by_stage(threshold, self._all_pairs.how)}
        for stage, value in thresholds.items():
            if value < self._all_pairs.floors[stage]:
                raise ConfigError(
                    f"the threshold {value} for the stage {stage} is too low: only pairs with a "
                    f"similarity above {self._all_pairs.floors[stage]} are known.",
                    f"Call deduplicate again with floor={value}.",
                )
        return choose(self._all_pairs, thresholds)


@dataclass(frozen=True)
class Deduplicated:
    """The result of `deduplicate`; the counts and ``thresholds`` are those of `Duplicates`."""

    _samples: Sequence[Sample] = field(repr=False)
    _duplicates: Duplicates = field(repr=False)

    @cached_property
    def rejected(self) -> list[RejectedDuplicate]:
        """The rejected samples, in input order."""
        samples = self._samples
        return [
            RejectedDuplicate(d.row, samples[d.row], d.partner_row, samples[d.partner_row], *d[3:])
            for d in self._duplicates.rejected()
        ]

    @cached_property
    def kept(self) -> list[Sample]:
        """The kept samples, in input order."""
        rejected = {r.row for r in self.rejected}
        return [sample for i, sample in enumerate(self._samples) if i not in rejected]

    @property
    def thresholds(self) -> dict[str, float]:
        """The similarity above which a sample is a duplicate, for each stage."""
        return self._duplicates.thresholds

    @property
    def largest_component(self) -> int:
        """The number of rows in the largest connected component of similar rows."""
        return self._duplicates.largest_component

    @property
    def components_would_reject(self) -> int:
        """The number of rows that would be rejected if one row per component were kept."""
        return self._duplicates.components_would_reject

    @property
    def uncompared(self) -> int:
        """The number of distinct texts that could not be compared by meaning."""
        return self._duplicates.uncompared

    def rethreshold(self, threshold: Thresholds) -> Deduplicated:
        """Return the result for a different threshold, without searching for similar pairs again.

        Args:
            threshold: a number for all stages, or a dict from stage to number.

        Raises:
            ConfigError: the threshold is below the ``floor`` that was passed to `deduplicate`.
        """
        return Deduplicated(self._samples, self._duplicates.rethreshold(threshold))


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
    duplicates = find_duplicates(
        samples,
        how,
        priority=priority,
        threshold=threshold,
        compared=compared,
        sources=sources,
        floor=floor,
        frame_quota=frame_quota,
        model=model,
        same_if_equal=same_if_equal,
        watch=watch,
    )
    return Deduplicated(samples, duplicates)


def find_duplicates(
    samples: Iterable[Sample],
    how: Sequence[str] = ("exact", "minhash", "semantic"),
    *,
    priority: Priority = ("source", "license", "quality", "length"),
    threshold: Thresholds | None = None,
    compared: Compared = "row",
    sources: Sequence[str] = (),
    other_sources: bool = False,
    floor: float = 0.7,
    frame_quota: int = 3,
    model: str = MINILM,
    same_if_equal: Sequence[str] = (),
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Duplicates:
    """Find duplicates like `deduplicate`, in rows that are read once and not held in memory.

    The texts of the rows, and for ``minhash`` their words and signatures, are in temporary files.

    Args:
        samples, how, priority, threshold, compared, sources, floor, frame_quota, model: as for
            `deduplicate`, and so are ``same_if_equal`` and ``watch``.
        other_sources: whether ``sources`` may contain names that no row has.
        folder: folder of the temporary files; default: the system's folder for such files.

    Raises:
        ConfigError, InputError: as for `deduplicate`.
        StorageError: a temporary file cannot be written.
    """
    thresholds, floors = check_options(how, threshold, compared, floor, frame_quota)
    if "semantic" in floors:
        check_model(model)
    describer = Describer(compared, priority, same_if_equal, limited="rouge_l" in floors)
    rows = ComparedRows(describer, folder)
    rows.extend(samples)
    release_freed()
    if not other_sources:
        check_sources(sources, rows)
    group, first = rows.groups(sources)
    texts, exact, keys = rows.columns(first)

    def minhash(floor: float) -> Pairs:
        return minhash_pairs([texts, *keys], floor, folder, watch)

    tables, unread = tables_of(texts, keys, how, floors, model, minhash, watch)
    differences = Distinguished(exact, rows.protected(first))
    all_pairs = AllPairs(
        rows, tuple(how), frame_quota, floors, group, first, tables, unread, differences
    )
    return choose(all_pairs, thresholds)


def check_sources(sources: Sequence[str], rows: RowNumbers) -> None:
    """Raise ConfigError if no row is from one of the sources."""
    for name in sources:
        if name not in rows.sources:
            raise ConfigError(f"sources: no row is from {name!r}.", suggest(name, [*rows.sources]))


def check_options(
    how: Sequence[str],
    threshold: Thresholds | None,
    compared: Compared,
    floor: float,
    frame_quota: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Check options of `find_duplicates`.

    Returns:
        The threshold of each stage, and the similarity above which it searches for pairs.

    Raises:
        ConfigError: an option is invalid.
    """
    for name in how:
        if name not in STAGES:
            raise ConfigError(
                f"the option how contains the unknown stage {name!r}.", suggest(name, [*STAGES])
            )
    if compared not in PARTS:
        hint = suggest(compared, [*PARTS])
        raise ConfigError(f"compared={compared!r} is not one of the supported values.", hint)
    if not 0 < floor < 1:
        raise ConfigError(f"the option floor is {floor}, but must be between 0 and 1.")
    if not 1 <= frame_quota < 2**31:
        raise ConfigError(
            f"the option frame_quota is {frame_quota}, but must be between 1 and {2**31 - 1}."
        )
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


@dataclass(frozen=True, slots=True)
class AllPairs:
    """The similar pairs that were found, and the other data that `choose` needs.

    ``group`` is the number of each row's text, and ``first`` the row of each text; see
    `ComparedRows.groups`.
    """

    source: RowNumbers
    how: tuple[str, ...]
    frame_quota: int
    floors: dict[str, float]
    group: Array
    first: Array
    tables: dict[str, Table]
    uncompared: int
    differences: Distinguished


class Distinguished:
    """Decides which similar texts can be duplicates, from what distinguishes them."""

    def __init__(self, texts: Sequence[str], protected: Array) -> None:
        self._protected = protected
        # The texts are in a file, so only those of the last pairs are held in memory.
        self._of = lru_cache(TEXTS_KNOWN)(lambda place: distinctions(texts[place]))

    def best(self, text: int, row: Array, score: Array, *, ordered: bool) -> int | None:
        """Return the place of the most similar text of which ``text`` can be a duplicate."""
        for place in np.argsort(-score, kind="stable").tolist():
            other = int(row[place])
            if self._protected[text] == self._protected[other] and may_be_duplicates(
                self._of(text), self._of(other), ordered=ordered
            ):
                return int(place)
        return None


class _Reason(NamedTuple):
    """Why a text is rejected; ``partner`` is the index of the kept text that is similar to it."""

    partner: int
    metric: str
    score: float
    stage: str
    reason: str
    detail: str


def choose(all_pairs: AllPairs, thresholds: dict[str, float]) -> Duplicates:
    """Visit the texts in order of priority; keep a text unless it is too similar to a kept text."""
    tables = {stage: above(table, thresholds[stage]) for stage, table in all_pairs.tables.items()}
    count = len(all_pairs.first)
    kept = np.ones(count, np.bool_)
    reasons: dict[int, _Reason] = {}
    near = [table.text for table in tables.values()]
    for text in np.unique(np.concatenate([np.zeros(0, np.int64), *near])).tolist():
        for stage in all_pairs.how:
            reason = _reason_to_reject(stage, text, tables, thresholds, kept, all_pairs)
            if reason is not None:
                kept[text], reasons[text] = False, reason
                break
    _check_result(reasons, kept, thresholds)
    component = _components(count, list(tables.values()))
    sizes = np.bincount(component[all_pairs.group], minlength=count)
    rows = len(all_pairs.group)
    return Duplicates(
        rows=rows,
        thresholds=thresholds,
        largest_component=int(sizes.max(initial=0)),
        components_would_reject=rows - int((sizes > 0).sum()),
        uncompared=all_pairs.uncompared,
        _all_pairs=all_pairs,
        _kept=kept,
        _reasons=reasons,
    )


def _reason_to_reject(
    stage: str,
    text: int,
    tables: dict[str, Table],
    thresholds: dict[str, float],
    kept: Array,
    all_pairs: AllPairs,
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


def _check_result(reasons: dict[int, _Reason], kept: Array, thresholds: dict[str, float]) -> None:
    """Check that each rejected text is similar to a kept text."""
    minimum = {_METRICS[stage]: value for stage, value in thresholds.items()}
    for text, reason in reasons.items():
        if kept[text] or not kept[reason.partner] or reason.score <= minimum[reason.metric]:
            raise AssertionError(
                f"text {text} is rejected as a duplicate of text {reason.partner}, which is not "
                f"kept or not similar: {reason.detail}. This is a bug; please report it."
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
