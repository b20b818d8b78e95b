"""Decides how many rows of each source, category or language a mix contains, and splits the mix.

This module represents rows by their numbers in the input. It stores only the questions of rows,
to find rows with similar questions, which must be in the same split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from instructgen.config import build, check_tables, read_tables
from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.schema.seeding import digest
from instructgen.similarity import EmbeddingIndex, MinHashIndex
from instructgen.similarity.distinctions import fold
from instructgen.similarity.encoders import MINILM, check_model

_TEXTS_AT_ONCE = 2048


class MixOptions(BaseModel):
    """Options in the table [mix] of a recipe: the size and the proportions of the mix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Number of rows in the mix. By default, as many as the proportions allow.",
    )
    by: Literal["source", "category", "language"] = Field(
        "source", description="Group the rows by this property; weights and caps are per group."
    )
    weights: dict[str, float] = Field(
        {}, description="Weights of groups by name, such as dolly = 2; other groups have weight 1."
    )
    caps: dict[str, int] = Field(
        {}, description="Maximum number of rows per group in the mix, such as dolly = 3000."
    )
    temperature: float = Field(
        1.0,
        ge=0.1,
        le=1e9,
        description="The number of rows drawn from a group is proportional to weight * R ** (1 / "
        "temperature), where R is its row count. A temperature above 1 favors small groups.",
    )
    repeat: int = Field(
        1, ge=1, le=1000, description="Maximum number of times that the mix contains a row."
    )
    shuffle: bool = Field(True, description="Shuffle the rows; if false, keep the input order.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Random seed for drawing, shuffling and splitting."
    )

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for name, value in self.weights.items():
            if not 0 <= value <= 1e9:
                raise ValueError(f"weights.{name} = {value} must be between 0 and 1e9")
        for name, cap in self.caps.items():
            if cap < 0:
                raise ValueError(f"caps.{name} = {cap} must be at least 0")
        return self


class SplitOptions(BaseModel):
    """Options in the table [split] of a recipe: the sizes of the splits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(
        0.0, ge=0, lt=1, description="Fraction of the rows to put in the split validation."
    )
    test: float = Field(0.0, ge=0, lt=1, description="Fraction of rows to put in the split test.")
    near: float = Field(
        0.7,
        ge=0.05,
        lt=1,
        description="Rows are in the same split if their questions have a Jaccard similarity above "
        "this value.",
    )

    near_meaning: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Rows are also in the same split if the meanings of their questions have a "
        "cosine similarity above this value, such as 0.8. By default, meanings are not compared.",
    )
    embedding_model: str = Field(
        MINILM,
        description="Embedding model for near_meaning: minilm (included, for English), a folder, "
        "or the name of a model on the Hugging Face Hub.",
    )

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("the sum of validation and test must be less than 1")
        return self


@dataclass(slots=True)
class Strata:
    """Positions of rows in the input, grouped by their source, category or language (``by``)."""

    by: str
    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: int, sample: Sample) -> None:
        """Add the row at position ``row`` of the input to its group."""
        self.rows.setdefault(str(getattr(sample, self.by) or "none"), []).append(row)

    def remove(self, rows: Set[int]) -> None:
        """Remove the rows at these positions, and groups that become empty."""
        for name in list(self.rows):
            self.rows[name] = [row for row in self.rows[name] if row not in rows]
            if not self.rows[name]:
                del self.rows[name]


def copies(strata: Strata, options: MixOptions) -> dict[int, int]:
    """Return the number of copies of each row in the mix, keyed by the row's position in the input.

    Rows that are not in the mix are left out.

    Raises:
        ConfigError: ``weights`` or ``caps`` contains the name of a group that has no rows.
    """
    for table, values in (("weights", options.weights), ("caps", options.caps)):
        for name in values:
            if name not in strata.rows:
                raise ConfigError(
                    f"mix.{table}.{name}: no row has this {options.by}.",
                    suggest(name, list(strata.rows)),
                )
    sizes = {name: len(rows) for name, rows in strata.rows.items()}
    rows_of = targets(sizes, options)
    counts: dict[int, int] = {}
    for name, rows in strata.rows.items():
        every, rest = divmod(rows_of[name], len(rows))
        rng = random.Random(digest(options.seed, "draw", name))
        drawn = set(rng.sample(range(len(rows)), rest))
        for place, row in enumerate(rows):
            if count := every + (place in drawn):
                counts[row] = count
    return counts


def targets(sizes: Mapping[str, int], options: MixOptions) -> dict[str, int]:
    """Return the number of rows, including copies, that each stratum contributes to the mix.

    A stratum consists of the rows of one source, category or language. Its fraction of the mix is
    proportional to weight times size to the power of 1/temperature (Arivazhagan et al. 2019). If
    its cap or size does not allow that fraction, the other strata provide the missing rows, in
    proportion to their own fractions.
    """
    names = sorted(sizes)
    limit = {
        n: min(sizes[n] * options.repeat, options.caps.get(n, sizes[n] * options.repeat))
        for n in names
    }
    weight = {
        n: options.weights.get(n, 1.0) * sizes[n] ** (1 / options.temperature) if sizes[n] else 0.0
        for n in names
    }
    open_ = [n for n in names if weight[n] and limit[n]]
    plain = not options.weights and options.temperature == 1
    if options.rows is None:
        if plain:
            return {n: min(sizes[n], limit[n]) for n in names}
        # The largest mix with these proportions in which no stratum exceeds its limit.
        total = sum(weight[n] for n in open_)
        rows = min((limit[n] * total / weight[n] for n in open_), default=0.0)
    else:
        rows = float(options.rows)
    exact = dict.fromkeys(names, 0.0)
    left = min(rows, float(sum(limit[n] for n in open_)))
    while open_ and left > 1e-9:
        total = sum(weight[n] for n in open_)
        full = [n for n in open_ if exact[n] + left * weight[n] / total >= limit[n] - 1e-9]
        if not full:
            for n in open_:
                exact[n] += left * weight[n] / total
            break
        for n in full:
            left -= limit[n] - exact[n]
            exact[n] = float(limit[n])
        open_ = [n for n in open_ if n not in full]
    result = {n: int(exact[n] + 1e-9) for n in names}
    # Round by the largest remainders, so that the sum is the requested number.
    missing = round(sum(exact.values())) - sum(result.values())
    for n in sorted(names, key=lambda n: (result[n] - exact[n], n))[:missing]:
        result[n] += 1
    return result


class SplitGroups:
    """Finds groups of rows that must be in the same split.

    Rows are in the same group if they have the same question, similar questions, or the same
    ``origin.group``, such as dialogues from the same message tree.
    """

    def __init__(self, options: SplitOptions) -> None:
        self._options = options
        self._first: dict[str, int] = {}
        self._pairs: list[tuple[int, int]] = []
        self._rows: list[int] = []
        self._texts: list[str] = []
        self._count = 0

    def add(self, row: int, sample: Sample) -> None:
        """Add the row at position ``row`` of the input."""
        self._count = row + 1
        question = " ".join(fold(sample.question).split())
        for key in (f"q{digest(0, question)}", f"g{sample.source} {sample.origin.group}"):
            if key[0] == "g" and sample.origin.group is None:
                continue
            first = self._first.setdefault(key, row)
            if first != row:
                self._pairs.append((row, first))
            elif key[0] == "q":
                self._rows.append(row)
                self._texts.append(question)

    def sides(self, rows: Sequence[int], seed: int) -> dict[int, str]:
        """Return a randomly chosen split for each row; all rows of a group get the same split."""
        label = self._components(max(rows, default=-1) + 1)
        members: dict[int, list[int]] = {}
        for row in rows:
            members.setdefault(int(label[row]), []).append(row)
        order = sorted(members, key=lambda first: digest(seed, "split", first))
        side = dict.fromkeys(rows, "train")
        for split in ("test", "validation"):
            room = round(getattr(self._options, split) * len(rows))
            others = []
            for first in order:
                if len(members[first]) <= room:
                    room -= len(members[first])
                    side.update(dict.fromkeys(members[first], split))
                else:
                    others.append(first)
            order = others
        return side

    def near(self, rows: Mapping[int, str]) -> set[int]:
        """Return the positions of all other rows that are in the same group as one of ``rows``."""
        label = self._components(self._count)
        groups = {int(label[row]) for row in rows}
        return {row for row in range(self._count) if int(label[row]) in groups} - rows.keys()

    def _components(self, count: int) -> npt.NDArray[np.int64]:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        pairs = np.array(self._pairs, np.int64).reshape(-1, 2)
        edges = [pairs[(pairs < count).all(axis=1)]]
        rows = np.array(self._rows, np.int64)
        for index in self._indexes():
            for start in range(0, len(self._texts), _TEXTS_AT_ONCE):
                texts = self._texts[start : start + _TEXTS_AT_ONCE]
                index.add(texts)
                text, row, _ = index.pairs(texts)
                edges.append(np.stack([rows[start + text], rows[row]], axis=1))
        a, b = np.concatenate(edges).T
        inside = (a < count) & (b < count)
        ones = np.ones(inside.sum(), np.bool_)
        graph = coo_matrix((ones, (a[inside], b[inside])), (count, count))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, np.int64)

    def _indexes(self) -> Iterator[MinHashIndex | EmbeddingIndex]:
        """Yield an empty index for each way of comparing the questions."""
        options = self._options
        yield MinHashIndex(options.near)
        if options.near_meaning is not None:
            check_model(options.embedding_model)
            yield EmbeddingIndex(options.near_meaning, options.embedding_model)


def load_mix(recipe: str | None) -> tuple[MixOptions, SplitOptions]:
    """Read the tables [mix] and [split] of a TOML file; without a file, return the defaults.

    Raises:
        ConfigError: the file or a key is invalid; the message has one line per invalid key.
    """
    if recipe is None:
        return MixOptions(), SplitOptions()
    path = Path(recipe)
    tables = read_tables(path)
    check_tables(tables, ("mix", "split"), path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: {name} must be a table.", f"Write the line [{name}] above its options."
            )
    return (
        build(MixOptions, tables.get("mix", {}), path, "mix"),
        build(SplitOptions, tables.get("split", {}), path, "split"),
    )
