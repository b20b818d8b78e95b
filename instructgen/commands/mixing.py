"""Decides how many rows of each source, category or language a mix contains, and splits the mix.

This module represents rows by their numbers in the input. It stores only the questions of rows,
to find rows with similar questions, which must be in the same split.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from instructgen.config import build, check_tables, read_tables
from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.seeding import digest
from instructgen.similarity import EmbeddingIndex, Pairs
from instructgen.similarity.blocks import Array
from instructgen.similarity.distinctions import fold
from instructgen.similarity.encoders import MINILM, check_model
from instructgen.similarity.minhash_pairs import minhash_pairs
from instructgen.similarity.temporary import Column, TextFile
from instructgen.store import SPLITS

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
    """The group of each row of the input: its source, category or language."""

    _numbers: dict[str, int] = field(default_factory=dict)
    _of: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        """Return the number of rows, with those that belong to no group."""
        return len(self._of)

    def add(self, name: str | None) -> None:
        """Add the next row to a group; None for a row that the mix must not contain."""
        self._of.append(-1 if name is None else self._numbers.setdefault(name, len(self._numbers)))

    def remove(self, rows: Array) -> None:
        """Remove the rows at these positions."""
        of = np.array(self._of)
        of[rows] = -1
        self._of = array("i", of.tobytes())

    def rows(self) -> dict[str, Array]:
        """Return the positions of each group's rows, without groups that have none."""
        of = np.array(self._of)
        found = {name: np.flatnonzero(of == number) for name, number in self._numbers.items()}
        return {name: rows for name, rows in found.items() if len(rows)}


def copies(strata: Strata, options: MixOptions) -> Array:
    """Return the number of copies of each row in the mix, by the row's position in the input.

    The number is 0 for a row that the mix does not contain.

    Raises:
        ConfigError: ``weights`` or ``caps`` contains the name of a group that has no rows.
    """
    groups = strata.rows()
    for table, values in (("weights", options.weights), ("caps", options.caps)):
        for name in values:
            if name not in groups:
                raise ConfigError(
                    f"mix.{table}.{name}: no row has this {options.by}.",
                    suggest(name, list(groups)),
                )
    rows_of = targets({name: len(rows) for name, rows in groups.items()}, options)
    counts = np.zeros(len(strata), np.int64)
    for name, rows in groups.items():
        every, rest = divmod(rows_of[name], len(rows))
        rng = random.Random(digest(options.seed, "draw", name))
        counts[rows] = every
        counts[rows[rng.sample(range(len(rows)), rest)]] += 1
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
    ``origin.group``, such as dialogues from the same message tree. The questions are in a temporary
    file in ``folder``.
    """

    def __init__(self, options: SplitOptions, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._questions = TextFile(folder=folder)
        self._rows, self._digests = array("q"), array("Q")
        self._first: dict[int, int] = {}
        self._pairs = array("q")

    def add(self, row: int, question: str, source: str, tree: str | None) -> None:
        """Add the row at position ``row`` of the input; ``tree`` is its ``origin.group``."""
        text = " ".join(fold(question).split())
        self._questions.append(text)
        self._rows.append(row)
        self._digests.append(digest(0, text))
        if tree is not None:
            first = self._first.setdefault(digest(1, source, tree), row)
            self._pairs.extend((row, first))

    def sides(self, rows: Array, count: int, seed: int) -> Array:
        """Choose a split for each row at random; all rows of a group get the same split.

        Args:
            rows: the positions of the rows, in ascending order.
            count: the number of rows of the input.

        Returns:
            The place of each row's split in ``SPLITS``.
        """
        label = self._components(count)[rows]
        firsts, group, sizes = np.unique(label, return_inverse=True, return_counts=True)
        order = sorted(range(len(firsts)), key=lambda g: digest(seed, "split", int(firsts[g])))
        side_of = np.zeros(len(firsts), np.int8)
        for split in ("test", "validation"):
            room = round(getattr(self._options, split) * len(rows))
            others = []
            for g in order:
                if sizes[g] <= room:
                    room -= int(sizes[g])
                    side_of[g] = SPLITS.index(split)
                else:
                    others.append(g)
            order = others
        return side_of[group]

    def near(self, rows: Array, count: int) -> Array:
        """Return the positions of all other rows that are in the same group as one of ``rows``."""
        label = self._components(count)
        same = np.isin(label, np.unique(label[rows]))
        same[rows] = False
        return np.flatnonzero(same)

    def _components(self, count: int) -> Array:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows = np.array(self._rows, np.int64)
        _, first, equal = np.unique(self._digests, return_index=True, return_inverse=True)
        # Each row with the first row that has the same question.
        edges = [np.array(self._pairs, np.int64).reshape(-1, 2)]
        edges.append(np.stack([rows, rows[first[equal]]], axis=1))
        chosen = np.sort(first)
        texts = Column(self._questions, chosen)
        for text, row, _ in self._similar(texts):
            edges.append(np.stack([rows[chosen[text]], rows[chosen[row]]], axis=1))
        a, b = np.concatenate(edges).T
        ones = np.ones(len(a), np.bool_)
        graph = coo_matrix((ones, (a, b)), (count, count))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, np.int64)

    def _similar(self, texts: Sequence[str]) -> Iterator[Pairs]:
        """Yield the pairs of similar questions, for each way of comparing them."""
        options = self._options
        yield minhash_pairs([texts], options.near, self._folder)
        if options.near_meaning is not None:
            check_model(options.embedding_model)
            model = options.embedding_model
            index = EmbeddingIndex(options.near_meaning, model, texts=texts)
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                chunk = texts[start : start + _TEXTS_AT_ONCE]
                index.add(chunk)
                pairs = index.pairs(chunk)
                yield pairs._replace(text=pairs.text + start)


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
