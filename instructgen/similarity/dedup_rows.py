"""What deduplication needs of each row: its texts, in a temporary file, and what decides its order.

The rows themselves are not held in memory, so that a dataset can be larger than the memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import restrictiveness
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.similarity.blocks import Array
from instructgen.similarity.distinctions import fold
from instructgen.similarity.rouge import MOST_WORDS
from instructgen.similarity.temporary import Column, TextFile
from instructgen.similarity.tokens import tokenize

PRIORITIES = ("source", "human", "license", "quality", "length")
Compared = Literal["row", "prompt", "instruction"]
Priority = Sequence[str] | Callable[[Sample], Any]
PARTS: dict[str, tuple[str, ...]] = {
    "row": ("context", "instruction", "input", "output", "rejected_output", "calls"),
    "prompt": ("context", "instruction", "input"),
    "instruction": ("instruction",),
}
_KEYS = ("instruction", "output", "rejected_output")
_ANSWERS = ("output", "rejected_output", "calls")
# Maximum number of words of an answer whose exact wording counts.
_SHORT_ANSWER = 20


class Described(NamedTuple):
    """What deduplication needs of some rows; each list has one entry per row.

    ``texts`` of a row are the complete compared text, the text whose exact wording distinguishes
    it, and its parts in ``_KEYS``. The first and the parts are folded; see
    `instructgen.similarity.distinctions.fold`. ``digests`` has 16 bytes per row. ``values`` are
    numbers by criterion of the priority.
    """

    texts: list[tuple[str, ...]]
    digests: bytes
    ids: array[int]
    protected: list[tuple[str, ...]]
    sources: list[str]
    licenses: list[str]
    values: list[array[float]]
    sort_keys: list[Any]


class Describer:
    """Computes what deduplication needs of a row, from this row alone.

    Args:
        compared, priority, same_if_equal: as for `instructgen.similarity.deduplicate`.
        limited: whether a text must not be longer than ROUGE-L allows.

    Raises:
        ConfigError: ``priority`` contains an unknown criterion.
    """

    def __init__(
        self, compared: Compared, priority: Priority, same_if_equal: Sequence[str], *, limited: bool
    ) -> None:
        self._parts, self._same, self._limited = PARTS[compared], same_if_equal, limited
        self._keys = [p for p in self._parts if p in _KEYS and compared != "instruction"]
        self._whole_row = compared == "row"
        self.sort_key = priority if callable(priority) else None
        self.criteria: tuple[str, ...] = () if callable(priority) else tuple(priority)
        for name in self.criteria:
            if name not in PRIORITIES:
                raise ConfigError(
                    f"the option priority contains the unknown criterion {name!r}.",
                    suggest(name, [*PRIORITIES]),
                )

    @property
    def columns(self) -> int:
        """The number of texts of a row."""
        return 2 + len(self._keys)

    def describe(self, samples: Sequence[Sample], first: int = 0) -> Described:
        """Return what is needed of these rows.

        Args:
            samples: the rows.
            first: the number of the first of these rows, for messages.

        Raises:
            InputError: a text has more words than ROUGE-L allows.
        """
        texts, digests, protected = [], bytearray(), []
        for row, sample in enumerate(samples, start=first):
            text, digest, own = self._texts_of(sample, row)
            texts.append(text)
            digests += digest
            protected.append(own)
        return Described(
            texts,
            bytes(digests),
            array("Q", [int(sample.id, 16) for sample in samples]),
            protected,
            [sample.source for sample in samples],
            [sample.license for sample in samples],
            [array("d", [_NUMBERS[n](s) for s in samples]) for n in self.criteria],
            [] if self.sort_key is None else [self.sort_key(sample) for sample in samples],
        )

    def _texts_of(self, sample: Sample, row: int) -> tuple[tuple[str, ...], bytes, tuple[str, ...]]:
        parts = {name: getattr(sample, name) or "" for name in self._parts}
        folded = {name: fold(part) for name, part in parts.items()}
        protected = self._protected_of(sample)
        normalized = repr(([" ".join(part.split()) for part in folded.values()], protected))
        digest = hashlib.blake2b(normalized.encode(), digest_size=16).digest()
        text = "\n".join(part for part in folded.values() if part)
        # A text has at most as many words as characters, so most texts need no tokenizing.
        if self._limited and len(text) > MOST_WORDS and len(tokenize(text)) > MOST_WORDS:
            raise InputError(
                f"row {row} (id {sample.id}) has more than {MOST_WORDS:,} words, the maximum.",
                hint="Shorten or remove the row.",
            )
        exact = self._exact_text(sample, parts)
        return (text, exact, *(folded[name] for name in self._keys)), digest, protected

    def _exact_text(self, sample: Sample, parts: dict[str, str]) -> str:
        """Return the text whose exact wording distinguishes a row: the prompt, a short answer.

        Long answers to the same prompt differ in numbers and order without being another task.
        """
        texts = [part for name, part in parts.items() if name not in _ANSWERS]
        texts += [f"{call.name} {call.arguments}" for call in sample.tool_calls]
        if self._whole_row and len(tokenize(sample.output)) <= _SHORT_ANSWER:
            texts.append(sample.output)
        return "\n".join(text for text in texts if text)

    def _protected_of(self, sample: Sample) -> tuple[str, ...]:
        labels = {label.name: label.value for label in sample.labels}
        values = [labels.get(name) or str(getattr(sample, name, "")) for name in self._same]
        # Feedback rows with opposite labels say different things.
        return (*values, *([] if sample.label is None else [str(sample.label)]))


class RowNumbers:
    """What decides the order of rows and which of them are equal, as numbers.

    Args:
        describer: describes the rows.
    """

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._digests, self._ids = bytearray(), array("Q")
        self._protected_codes: dict[tuple[str, ...], int] = {}
        self._protected = array("l")
        # The number of each source and of each license.
        self.sources: dict[str, int] = {}
        self._licenses: dict[str, int] = {}
        self._sort_keys: list[Any] = []
        self._values = [array("d") for _ in describer.criteria]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._protected)

    def add(self, rows: Described) -> None:
        """Append rows."""
        codes = self._protected_codes
        self._digests += rows.digests
        self._ids.extend(rows.ids)
        self._protected.extend(codes.setdefault(each, len(codes)) for each in rows.protected)
        self._sort_keys += rows.sort_keys
        named = {"source": (self.sources, rows.sources), "license": (self._licenses, rows.licenses)}
        numbered = {
            name: [numbers.setdefault(each, len(numbers)) for each in names]
            for name, (numbers, names) in named.items()
        }
        for k, name in enumerate(self._describer.criteria):
            self._values[k].extend(numbered.get(name) or rows.values[k])

    def groups(self, sources: Sequence[str]) -> tuple[Array, Array]:
        """Group the rows whose compared texts are equal except for case, form and white space.

        The numbers that decide this are removed from memory, so it can be called once.

        Args:
            sources: the sources of highest priority, in order; others follow as they appear.

        Returns:
            ``group`` (rows,): the number of each row's group. ``first`` (groups,): the position of
            the group's row of highest priority. Groups are numbered by the priority of that row.
        """
        order = self._order(sources)
        # 128 bits: two of a million different texts have equal digests with a chance of 1e-27.
        digests = np.frombuffer(bytes(self._digests), "V16")
        self._digests, self._values, self._sort_keys = bytearray(), [], []
        if not len(order):
            return order, order
        _, place, group = np.unique(digests[order], return_index=True, return_inverse=True)
        by_place = np.argsort(place, kind="stable")
        number = np.empty(len(place), np.int64)
        number[by_place] = np.arange(len(place))
        of_row = np.empty(len(order), np.int64)
        of_row[order] = number[group.reshape(-1)]
        return of_row, order[place[by_place]]

    def _order(self, sources: Sequence[str]) -> Array:
        """Return the positions of all rows, the row of highest priority first."""
        if self._describer.sort_key is not None:
            return np.array(sorted(range(len(self)), key=self._sort_keys.__getitem__), np.int64)
        columns = []
        for name, values in zip(self._describer.criteria, self._values, strict=True):
            column = np.array(values)
            if name == "source":
                first = [s for s in dict.fromkeys(sources) if s in self.sources]
                ranked = {s: i for i, s in enumerate(dict.fromkeys([*first, *self.sources]))}
                column = np.array([ranked[s] for s in self.sources], float)[column.astype(int)]
            elif name == "license":
                strictness = [restrictiveness(text) for text in self._licenses]
                column = np.array(strictness, float)[column.astype(int)]
            columns.append(column)
        if not columns:
            return np.arange(len(self))
        # lexsort is stable, and its last key is the most important one.
        return np.asarray(np.lexsort(columns[::-1]))

    def protected(self, rows: Array) -> Array:
        """Return a number for each row; only rows with equal numbers can be duplicates."""
        return np.array(self._protected, np.int64)[rows]

    def id(self, row: int) -> str:
        """Return the id of a row."""
        return f"{self._ids[row]:016x}"


class ComparedRows(RowNumbers):
    """The numbers of rows, and their texts in a temporary file.

    Args:
        describer: describes the rows.
        folder: folder of the temporary file; None for the system's folder for such files.

    Raises:
        StorageError: the temporary file cannot be written.
    """

    def __init__(self, describer: Describer, folder: Path | None) -> None:
        super().__init__(describer)
        self._file = TextFile(describer.columns, folder)

    def extend(self, samples: Iterable[Sample]) -> None:
        """Append rows.

        Raises:
            InputError: a text has more words than ROUGE-L allows.
            StorageError: the temporary file cannot be written.
        """
        for sample in samples:
            described = self._describer.describe([sample], len(self))
            self._file.append(*described.texts[0])
            self.add(described)

    def columns(self, rows: Array) -> tuple[Column, Column, list[Column]]:
        """Return the complete texts, the exact texts, and the parts of these rows, in order."""
        texts, exact, *keys = (Column(self._file, rows, k) for k in range(self._describer.columns))
        # A field that is empty in all rows cannot distinguish any of them.
        return texts, exact, [k for k, f in zip(keys, self._file.filled[2:], strict=True) if f]


def _quality(sample: Sample) -> float:
    """Return minus the mean of a row's scores, and infinity for a row without a score."""
    known = [s.value for s in sample.scores if s.value is not None and isfinite(s.value)]
    return -sum(known) / len(known) if known else inf


_NUMBERS: dict[str, Callable[[Sample], float]] = {
    # The names get their numbers when all rows are known.
    "source": lambda sample: 0,
    "license": lambda sample: 0,
    "human": lambda sample: sample.origin.method != "human",
    "quality": _quality,
    "length": lambda sample: -len(sample.output),
}
