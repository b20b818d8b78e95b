"""How much of each source, category or language a mix takes, and which rows lie on which side.

Decides by numbers alone: no row's text is held here, but for finding those that
are nearly the same and must not be parted by a split.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
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
from instructgen.similarity import MinHashIndex

_TEXTS_AT_ONCE = 2048


class MixOptions(BaseModel):
    """The recipe's table [mix]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int | None = Field(None, ge=1, le=10**9, description="rows of the mix")
    by: Literal["source", "category", "language"] = Field(
        "source", description="what weights, caps and temperature are about"
    )
    weights: dict[str, float] = Field({}, description="how much more of one; 1 where left out")
    caps: dict[str, int] = Field({}, description="most rows of one")
    temperature: float = Field(
        1.0,
        ge=0.1,
        le=1e9,
        description="1: as many as there are; higher: more alike (n to the power 1/T)",
    )
    repeat: int = Field(1, ge=1, le=1000, description="most copies of a row")
    shuffle: bool = Field(True, description="false: in the order of the inputs")
    seed: int = Field(0, ge=0, lt=2**63, description="what all randomness comes from")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for name, value in self.weights.items():
            if not 0 <= value <= 1e9:
                raise ValueError(f"weights.{name} = {value} is not 0 to 1e9")
        for name, cap in self.caps.items():
            if cap < 0:
                raise ValueError(f"caps.{name} = {cap} is not 0 or more")
        return self


class SplitOptions(BaseModel):
    """The recipe's table [split]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(0.0, ge=0, lt=1, description="share of the rows")
    test: float = Field(0.0, ge=0, lt=1, description="share of the rows")
    near: float = Field(
        0.7, ge=0.05, lt=1, description="questions with a higher Jaccard similarity stay together"
    )

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on")
        return self


@dataclass(slots=True)
class Strata:
    """The rows of a mix by source, category or language, numbered as they come."""

    by: str
    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: int, sample: Sample) -> None:
        """Take note of a row."""
        self.rows.setdefault(str(getattr(sample, self.by) or "none"), []).append(row)

    def remove(self, rows: Set[int]) -> None:
        """Forget rows again."""
        for name in list(self.rows):
            self.rows[name] = [row for row in self.rows[name] if row not in rows]
            if not self.rows[name]:
                del self.rows[name]


def copies(strata: Strata, options: MixOptions) -> dict[int, int]:
    """How often each row stands in the mix; rows that do not are left out.

    Raises:
        ConfigError: a weight or cap names what no row has.
    """
    for table, given in (("weights", options.weights), ("caps", options.caps)):
        for name in given:
            if name not in strata.rows:
                raise ConfigError(
                    f"mix.{table}.{name}: no row has this {options.by}.",
                    suggest(name, list(strata.rows)),
                )
    sizes = {name: len(rows) for name, rows in strata.rows.items()}
    wanted = targets(sizes, options)
    found: dict[int, int] = {}
    for name, rows in strata.rows.items():
        whole, rest = divmod(wanted[name], len(rows))
        rng = random.Random(digest(options.seed, "draw", name))
        drawn = set(rng.sample(range(len(rows)), rest))
        for place, row in enumerate(rows):
            if count := whole + (place in drawn):
                found[row] = count
    return found


def targets(sizes: Mapping[str, int], options: MixOptions) -> dict[str, int]:
    """The rows that each stratum gives to the mix.

    Shares go as weight times size to the power of 1/temperature (Arivazhagan
    et al. 2019). What a stratum cannot give, for its cap or its size, the
    others give in their shares.
    """
    names = sorted(sizes)
    most = {
        n: min(sizes[n] * options.repeat, options.caps.get(n, sizes[n] * options.repeat))
        for n in names
    }
    weight = {
        n: options.weights.get(n, 1.0) * sizes[n] ** (1 / options.temperature) if sizes[n] else 0.0
        for n in names
    }
    open_ = [n for n in names if weight[n] and most[n]]
    plain = not options.weights and options.temperature == 1
    if options.rows is None:
        if plain:
            return {n: min(sizes[n], most[n]) for n in names}
        # As large as the shares allow without exceeding what any one can give.
        total = sum(weight[n] for n in open_)
        rows = min((most[n] * total / weight[n] for n in open_), default=0.0)
    else:
        rows = float(options.rows)
    exact = dict.fromkeys(names, 0.0)
    left = min(rows, float(sum(most[n] for n in open_)))
    while open_ and left > 1e-9:
        total = sum(weight[n] for n in open_)
        full = [n for n in open_ if exact[n] + left * weight[n] / total >= most[n] - 1e-9]
        if not full:
            for n in open_:
                exact[n] += left * weight[n] / total
            break
        for n in full:
            left -= most[n] - exact[n]
            exact[n] = float(most[n])
        open_ = [n for n in open_ if n not in full]
    result = {n: int(exact[n] + 1e-9) for n in names}
    # Largest remainders, so that the sum is what was asked for.
    missing = round(sum(exact.values())) - sum(result.values())
    for n in sorted(names, key=lambda n: (result[n] - exact[n], n))[:missing]:
        result[n] += 1
    return result


class SplitGroups:
    """Finds the rows that a split must not part.

    Those of one group (the paths of a tree), with the same question, or with
    questions that are nearly the same.
    """

    def __init__(self, options: SplitOptions) -> None:
        self._options = options
        self._first: dict[str, int] = {}
        self._pairs: list[tuple[int, int]] = []
        self._rows: list[int] = []
        self._texts: list[str] = []
        self._count = 0

    def add(self, row: int, sample: Sample) -> None:
        """Take note of a row."""
        self._count = row + 1
        question = " ".join(sample.question.lower().split())
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
        """The split of each row, so that rows of a kind are on the same side."""
        label = self._components(max(rows, default=-1) + 1)
        members: dict[int, list[int]] = {}
        for row in rows:
            members.setdefault(int(label[row]), []).append(row)
        order = sorted(members, key=lambda first: digest(seed, "split", first))
        side = dict.fromkeys(rows, "train")
        for split in ("test", "validation"):
            room = round(getattr(self._options, split) * len(rows))
            rest = []
            for first in order:
                if len(members[first]) <= room:
                    room -= len(members[first])
                    side.update(dict.fromkeys(members[first], split))
                else:
                    rest.append(first)
            order = rest
        return side

    def near(self, rows: Mapping[int, str]) -> set[int]:
        """The other rows that are in one group with one of these."""
        label = self._components(self._count)
        groups = {int(label[row]) for row in rows}
        return {row for row in range(self._count) if int(label[row]) in groups} - rows.keys()

    def _components(self, count: int) -> npt.NDArray[np.int64]:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        index = MinHashIndex(self._options.near)
        pairs = np.array(self._pairs, np.int64).reshape(-1, 2)
        found = [pairs[(pairs < count).all(axis=1)]]
        rows = np.array(self._rows, np.int64)
        for at in range(0, len(self._texts), _TEXTS_AT_ONCE):
            some = self._texts[at : at + _TEXTS_AT_ONCE]
            index.add(some)
            text, row, _ = index.pairs(some)
            found.append(np.stack([rows[at + text], rows[row]], axis=1))
        a, b = np.concatenate(found).T
        good = (a < count) & (b < count)
        graph = coo_matrix((np.ones(good.sum(), np.bool_), (a[good], b[good])), (count, count))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, np.int64)


def load_mix(recipe: str | None) -> tuple[MixOptions, SplitOptions]:
    """The tables [mix] and [split] of a TOML file; the defaults without one.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    if recipe is None:
        return MixOptions(), SplitOptions()
    path = Path(recipe)
    tables = read_tables(path)
    check_tables(tables, ("mix", "split"), path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name}: not a table.", f"Write [{name}] above its keys.")
    return (
        build(MixOptions, tables.get("mix", {}), path, "mix"),
        build(SplitOptions, tables.get("split", {}), path, "split"),
    )
