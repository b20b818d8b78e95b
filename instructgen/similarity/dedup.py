"""Duplicates removed as stars: a row goes only if a kept row is near enough to it.

Rows are visited in order of priority. Connected components, the usual way, join
rows that have nothing in common but a chain of others between them: on real
instructions most rows that they remove have no near neighbour left. What
they would remove is counted here beside.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, NamedTuple

import numpy as np

from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import freedom
from instructgen.plugins import suggest
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Sample
from instructgen.similarity.blocks import Array
from instructgen.similarity.encoders import MINILM, check_model
from instructgen.similarity.near_pairs import THRESHOLDS, Table, above, measures, tables_of
from instructgen.similarity.rouge import MOST_WORDS
from instructgen.similarity.tokens import tokenize

STAGES = ("exact", "minhash", "rouge_l", "semantic", "two_key")
PRIORITIES = ("source", "human", "licence", "quality", "length")
Compared = Literal["row", "prompt", "instruction"]
Priority = Sequence[str] | Callable[[Sample], Any]
Thresholds = float | Mapping[str, float]
_METRICS = {"minhash": "jaccard", "rouge_l": "rouge_l", "semantic": "cosine"}
_PARTS: dict[str, tuple[str, ...]] = {
    "row": ("context", "instruction", "input", "output", "rejected_output"),
    "prompt": ("context", "instruction", "input"),
    "instruction": ("instruction",),
}
_KEYS = ("instruction", "output", "rejected_output")
_LEAST_JACCARD = 0.05
_NAMES = {"jaccard": "Jaccard", "rouge_l": "ROUGE-L", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class Removed:
    """A sample that was removed, and the kept sample it was removed for.

    ``row`` and ``partner_row`` are their positions in what was given. ``metric``
    is ``exact``, ``jaccard``, ``rouge_l`` or ``cosine``. ``reason`` is
    ``duplicate``, ``paraphrase`` or ``same_frame``.
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
    """What was kept, in the order given, and what was removed, each with its partner.

    ``largest_component`` is the number of rows in the largest connected
    component, and ``components_would_remove`` what its way of removing
    duplicates comes to. ``unread`` different texts could not be compared by
    meaning: they, their instruction or their output are in no language that the
    model was made for.
    """

    kept: list[Sample]
    removed: list[Removed]
    thresholds: dict[str, float]
    largest_component: int
    components_would_remove: int
    unread: int
    _found: _Found = field(repr=False, compare=False)

    def rethreshold(self, threshold: Thresholds) -> Deduplicated:
        """The same at another threshold, from the pairs found already.

        Args:
            threshold: one for all stages, or by stage as in `deduplicate`.

        Raises:
            ConfigError: it is below what pairs were looked for.
        """
        thresholds = {**self.thresholds, **_by_stage(threshold, self._found.how)}
        for stage, value in thresholds.items():
            if value < self._found.floors[stage]:
                raise ConfigError(
                    f"threshold {value} of {stage}: pairs were looked for above "
                    f"{self._found.floors[stage]} only.",
                    f"Call deduplicate with floor={value}.",
                )
        return _star(self._found, thresholds)


def deduplicate(
    samples: Sequence[Sample],
    how: Sequence[str] = ("exact", "minhash", "semantic"),
    *,
    priority: Priority = ("source", "licence", "quality", "length"),
    threshold: Thresholds | None = None,
    compared: Compared = "row",
    sources: Sequence[str] = (),
    floor: float = 0.7,
    frame_quota: int = 3,
    model: str = MINILM,
    watch: Watch | None = None,
) -> Deduplicated:
    """Remove duplicates so that every removed sample has a kept partner above a threshold.

    Args:
        samples: any number, from any sources.
        how: ``exact`` (equal up to Unicode form, case and white space; always done),
            ``minhash`` (Jaccard of the words), ``rouge_l``, ``semantic`` (cosine), and
            ``two_key``: a *duplicate* is near in words and in meaning, a
            *paraphrase* in meaning alone; what is near in words alone shares a
            *frame*, of which ``frame_quota`` rows are kept. A sample is removed
            in the first of these that has a reason.
        priority: which of two copies is kept: criteria, the first most
            important (``source``, ``human`` before synthetic, freer ``licence``, higher
            ``quality``, longer output by ``length``), or a sort key. Then the one
            given first.
        threshold: highest similarity kept; one, or by stage. By default
            0.7 for minhash and rouge_l, 0.9 for semantic; two_key uses rouge_l's
            and semantic's.
        compared: all that was said (``row``), without the outputs
            (``prompt``), or the ``instruction`` alone. A pair scores the lowest of
            what it has in all this, in the instruction, and in each output if
            these are compared: a long input that two tasks share makes no duplicate.
        sources: the most trusted first; others follow as they appear.
        floor: pairs are looked for above this, for `Deduplicated.rethreshold`.
        frame_quota: rows kept of a frame.
        model: of meaning; see `EmbeddingIndex`.
        watch: called with progress.

    Raises:
        ConfigError: a name or a number is wrong, or packages are missing.
        InputError: a text is too long, or too many pairs are above the floor.
    """
    _check_names(how, compared, floor, frame_quota)
    thresholds, floors = _thresholds(how, threshold, floor)
    if "semantic" in floors:
        check_model(model)
    key = priority if callable(priority) else _sort_key(samples, priority, sources)
    copies = _copies(samples, sorted(range(len(samples)), key=lambda i: key(samples[i])), compared)
    chosen = [samples[c[0]] for c in copies]
    texts = [_text(sample, compared) for sample in chosen]
    if "rouge_l" in floors:
        for text, (position, *_) in zip(texts, copies, strict=True):
            _check_length(text, position, samples[position])
    keys = [
        [_part(sample, part) for sample in chosen]
        for part in _PARTS[compared]
        if part in _KEYS and compared != "instruction"
    ]
    # What all rows leave empty tells none apart.
    keys = [key for key in keys if any(key)]
    tables, unread = tables_of(texts, keys, how, floors, model, watch)
    found = _Found(samples, tuple(how), frame_quota, floors, copies, tables, unread)
    return _star(found, thresholds)


def _check_names(how: Sequence[str], compared: Compared, floor: float, frame_quota: int) -> None:
    for name in how:
        if name not in STAGES:
            raise ConfigError(f"{name!r} is no way to find duplicates.", suggest(name, [*STAGES]))
    if compared not in _PARTS:
        raise ConfigError(f"{compared!r} cannot be compared.", suggest(compared, [*_PARTS]))
    if not 0 < floor < 1:
        raise ConfigError(f"floor is {floor}, not between 0 and 1.")
    if not 1 <= frame_quota < 2**31:
        raise ConfigError(f"frame_quota is {frame_quota}, not 1 or more.")


def _thresholds(
    how: Sequence[str], threshold: Thresholds | None, floor: float
) -> tuple[dict[str, float], dict[str, float]]:
    """By stage, what is above it is removed, and what is above it is looked for."""
    thresholds = {stage: THRESHOLDS[stage] for stage in measures(how)}
    if threshold is not None:
        thresholds.update(_by_stage(threshold, how))
    floors = {stage: min(floor, value) for stage, value in thresholds.items()}
    if floors.get("minhash", 1) < _LEAST_JACCARD:
        raise ConfigError(
            f"threshold {floors['minhash']} of minhash is too low.", f"Least is {_LEAST_JACCARD}."
        )
    return thresholds, floors


def _check_length(text: str, position: int, sample: Sample) -> None:
    # Characters are counted first: a text has no more words than these.
    if len(text) > MOST_WORDS and len(tokenize(text)) > MOST_WORDS:
        raise InputError(
            f"row {position} (id {sample.id}) has more than {MOST_WORDS:,} words.",
            hint="Cut it, or leave it out.",
        )


def _copies(samples: Sequence[Sample], order: Sequence[int], compared: Compared) -> list[list[int]]:
    """Samples that are equal in all that is compared, the best of each group first."""
    first: dict[tuple[str, ...], int] = {}
    copies: list[list[int]] = []
    for position in order:
        parts = [_plain(_part(samples[position], part)) for part in _PARTS[compared]]
        group = first.setdefault(tuple(parts), len(copies))
        if group == len(copies):
            copies.append([])
        copies[group].append(position)
    return copies


@dataclass(frozen=True, slots=True)
class _Found:
    """Everything that does not depend on a threshold."""

    samples: Sequence[Sample]
    how: tuple[str, ...]
    frame_quota: int
    floors: dict[str, float]
    copies: list[list[int]]
    tables: dict[str, Table]
    unread: int


class _Why(NamedTuple):
    """Why a text is removed; ``partner`` is the place of the kept one."""

    partner: int
    metric: str
    score: float
    stage: str
    reason: str
    detail: str


def _star(found: _Found, thresholds: dict[str, float]) -> Deduplicated:
    """Visit the texts in order; each is kept unless a kept one is near enough."""
    tables = {stage: above(table, thresholds[stage]) for stage, table in found.tables.items()}
    count = len(found.copies)
    kept = np.ones(count, np.bool_)
    why: dict[int, _Why] = {}
    near = [table.text for table in tables.values()]
    for text in np.unique(np.concatenate([np.zeros(0, np.int64), *near])).tolist():
        for stage in found.how:
            reason = _reason(stage, text, tables, thresholds, kept, found.frame_quota)
            if reason is not None:
                kept[text], why[text] = False, reason
                break
    removed: list[Removed] = []
    for text, (position, *others) in enumerate(found.copies):
        reason = why.get(text, _Why(text, "exact", 1.0, "exact", "duplicate", "equal texts"))
        gone = others if kept[text] else [position, *others]
        removed += [_removed(found, row, reason) for row in gone]
    removed.sort(key=lambda r: r.row)
    _check(removed, len(found.samples), int(kept.sum()), thresholds)
    gone_rows = {r.row for r in removed}
    component = _components(count, list(tables.values()))
    sizes = np.bincount(component, [len(c) for c in found.copies], count).astype(int)
    return Deduplicated(
        kept=[s for i, s in enumerate(found.samples) if i not in gone_rows],
        removed=removed,
        thresholds=thresholds,
        largest_component=int(sizes.max(initial=0)),
        components_would_remove=len(found.samples) - int((sizes > 0).sum()),
        unread=found.unread,
        _found=found,
    )


def _reason(
    stage: str,
    text: int,
    tables: dict[str, Table],
    thresholds: dict[str, float],
    kept: Array,
    frame_quota: int,
) -> _Why | None:
    """Why a stage removes a text, or None."""
    if stage == "exact":
        return None
    if stage != "two_key":
        row, score, _ = _partners(tables[stage], text, kept)
        if not len(row):
            return None
        best = int(score.argmax())
        metric = _METRICS[stage]
        detail = f"{_NAMES[metric]} {score[best]:.3f}, above {thresholds[stage]}"
        return _Why(int(row[best]), metric, float(score[best]), stage, "duplicate", detail)
    row, score, other = _partners(tables["semantic"], text, kept)
    if len(row):
        best = int(score.argmax())
        lexical = float(other[best])
        same = lexical > thresholds["rouge_l"]
        detail = f"cosine {score[best]:.3f}, ROUGE-L {lexical:.3f}"
        reason = "duplicate" if same else "paraphrase"
        return _Why(int(row[best]), "cosine", float(score[best]), stage, reason, detail)
    row, score, other = _partners(tables["rouge_l"], text, kept)
    if len(row) >= frame_quota:
        best = int(score.argmax())
        detail = (
            f"ROUGE-L {score[best]:.3f}, cosine {float(other[best]):.3f}; "
            f"{len(row)} kept ones share its words"
        )
        return _Why(int(row[best]), "rouge_l", float(score[best]), stage, "same_frame", detail)
    return None


def _partners(table: Table, text: int, kept: Array) -> tuple[Array, Array, Array]:
    """The kept rows that a text is paired with, their scores, and those by the other measure."""
    begin, end = np.searchsorted(table.text, [text, text + 1])
    alive = kept[table.row[begin:end]]
    other = table.score if table.other is None else table.other
    return table.row[begin:end][alive], table.score[begin:end][alive], other[begin:end][alive]


def _removed(found: _Found, row: int, why: _Why) -> Removed:
    partner = found.copies[why.partner][0]
    return Removed(row, found.samples[row], partner, found.samples[partner], *why[1:])


def _check(removed: list[Removed], rows: int, kept: int, thresholds: dict[str, float]) -> None:
    """Every removed row names a surviving partner above the threshold, and no row is lost."""
    least = {_METRICS[stage]: value for stage, value in thresholds.items()}
    gone = {r.row for r in removed}
    for r in removed:
        if r.partner_row in gone or r.score <= least.get(r.metric, 0):
            raise AssertionError(f"row {r.row} was removed for row {r.partner_row}: {r.detail}")
    if len(gone) != len(removed) or len(gone) + kept != rows:
        raise AssertionError(f"{rows} rows, {kept} kept, {len(removed)} removed")


def _components(count: int, tables: list[Table]) -> Array:
    """The least text of the connected component of every text."""
    label = np.arange(count)
    a = np.concatenate([np.zeros(0, np.int64), *(t.text for t in tables)])
    b = np.concatenate([np.zeros(0, np.int64), *(t.row for t in tables)])
    while True:
        least = np.minimum(label[a], label[b])
        new = label.copy()
        # To the labels too: a whole tree moves at once.
        for ends in (a, b, label[a], label[b]):
            np.minimum.at(new, ends, least)
        new = new[new]
        if (new == label).all():
            return label
        label = new


def _by_stage(threshold: Thresholds, how: Sequence[str]) -> dict[str, float]:
    used = measures(how)
    given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(used, threshold)
    for stage, value in given.items():
        if stage not in used:
            raise ConfigError(f"threshold of {stage!r}: no such stage here.", suggest(stage, used))
        if not 0 < value < 1:
            raise ConfigError(f"threshold {value} of {stage} is not between 0 and 1.")
    return dict(given)


def _sort_key(
    samples: Sequence[Sample], priority: Sequence[str], sources: Sequence[str]
) -> Callable[[Sample], Any]:
    present = dict.fromkeys(s.source for s in samples)
    for name in sources:
        if name not in present:
            raise ConfigError(f"no row is from the source {name!r}.", suggest(name, [*present]))
    rank = {name: i for i, name in enumerate(dict.fromkeys([*sources, *present]))}
    keys: dict[str, Callable[[Sample], Any]] = {
        "source": lambda s: rank[s.source],
        "human": lambda s: s.origin.method != "human",
        "licence": lambda s: freedom(s.license),
        "quality": _lack_of_quality,
        "length": lambda s: -len(s.output),
    }
    for name in priority:
        if name not in keys:
            raise ConfigError(f"{name!r} is no priority.", suggest(name, [*PRIORITIES]))
    chosen = [keys[name] for name in priority]
    return lambda s: tuple(key(s) for key in chosen)


def _lack_of_quality(sample: Sample) -> tuple[bool, float]:
    """The mean of the scores that are known, highest first; samples without any come last."""
    known = [s.value for s in sample.scores if s.value is not None and isfinite(s.value)]
    return (not known, -sum(known) / len(known) if known else 0.0)


def _text(sample: Sample, compared: Compared) -> str:
    parts = [_part(sample, part) for part in _PARTS[compared]]
    return "\n".join(part for part in parts if part)


def _part(sample: Sample, part: str) -> str:
    return getattr(sample, part) or ""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())
