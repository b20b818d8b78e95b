"""The pool: human seeds, the instructions accepted so far, and the draw of demonstrations.

It also queues accepted instructions for the stages they still have to go
through. It decides nothing about quality.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from instructgen.errors import InputError
from instructgen.formats import BadRow, OnBadRow, check_language, read
from instructgen.licensing.licenses import check_licence
from instructgen.schema.arrow import sample_row
from instructgen.schema.sample import Kind, Sample
from instructgen.similarity import tokenize


@dataclass(slots=True)
class Task:
    """An accepted instruction on its way to rows.

    ``sample`` holds the instruction with its language, licence and origin;
    ``kind`` is known after the second stage; ``settled`` once it has rows, or
    the reason why it has none.
    """

    sample: Sample
    kind: Kind | None = None
    settled: bool = False


@dataclass(slots=True)
class Pool:
    """Seeds at positions 0..len(seeds)-1, accepted instructions after them.

    ``unclassified`` and ``classified`` are the numbers of tasks that wait for
    the next stage, oldest first.
    """

    seeds: Sequence[Sample]
    max_words: int = 150
    tasks: list[Task] = field(default_factory=list)
    unclassified: deque[int] = field(default_factory=deque)
    classified: deque[int] = field(default_factory=deque)
    _seeds_by_language: dict[str, list[int]] = field(default_factory=dict)
    _tasks_by_language: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Sort the seeds by language; those too long to show are no demonstrations."""
        for position, seed in enumerate(self.seeds):
            if len(tokenize(seed.instruction)) <= self.max_words:
                self._seeds_by_language.setdefault(seed.language, []).append(position)
        if not self._seeds_by_language:
            raise InputError(
                f"no seed has an instruction of at most {self.max_words} words to show in prompts.",
                hint="Give shorter seed tasks.",
            )

    def add(self, sample: Sample) -> int:
        """An accepted instruction joins the pool at once; returns its task number."""
        number = len(self.tasks)
        self.tasks.append(Task(sample))
        position = len(self.seeds) + number
        self._tasks_by_language.setdefault(sample.language, []).append(position)
        return number

    def at(self, position: int) -> Sample:
        """The sample at a position of the pool."""
        if position < len(self.seeds):
            return self.seeds[position]
        return self.tasks[position - len(self.seeds)].sample

    def draw_language(self, rng: random.Random) -> str:
        """A language, each as often as it stands among the seeds."""
        names = sorted(self._seeds_by_language)
        weights = [len(self._seeds_by_language[n]) for n in names]
        return rng.choices(names, weights)[0]

    def draw(
        self,
        rng: random.Random,
        language: str,
        human: int,
        machine: int,
        fits: Callable[[Sample], bool] | None = None,
    ) -> tuple[int, ...]:
        """Positions of demonstrations of one language, shuffled, none twice.

        Up to ``machine`` accepted instructions (fewer while there are few), and
        seeds, of those that ``fits`` allows, for the rest of ``human + machine``.
        """
        made = self._tasks_by_language.get(language, [])
        chosen = rng.sample(made, min(machine, len(made)))
        seeds = self._seeds_by_language[language]
        if fits is not None:
            seeds = [p for p in seeds if fits(self.seeds[p])]
        chosen += rng.sample(seeds, min(human + machine - len(chosen), len(seeds)))
        rng.shuffle(chosen)
        return tuple(chosen)


def load_seeds(
    paths: Sequence[Path],
    *,
    license: str = "",
    language: str = "",
    on_bad_row: OnBadRow = "fail",
) -> tuple[list[Sample], list[tuple[Path, BadRow]]]:
    """Every row of the seed files, in order, and the rows rejected.

    Raises:
        InputError: see `instructgen.formats.read`.
        ConfigError: ``license`` is no SPDX expression, or ``language`` no code.
    """
    if license:
        license = check_licence(license)
    if language:
        check_language(language)
    seeds: list[Sample] = []
    bad: list[tuple[Path, BadRow]] = []
    for path in paths:
        for row in read(path, license=license, language=language, on_bad_row=on_bad_row):
            if isinstance(row, BadRow):
                bad.append((path, row))
            elif isinstance(row, Sample):
                seeds.append(row)
    return seeds, bad


def seeds_digest(seeds: Iterable[Sample]) -> str:
    """A digest of the seeds' content in order: what a run's fingerprint holds."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(orjson.dumps(sample_row(seed)))
        digest.update(b"\n")
    return digest.hexdigest()
