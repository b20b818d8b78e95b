"""The task pool: human-written seeds and accepted instructions, from which prompts draw examples.

The pool does not assess their quality.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from instructgen.errors import InputError
from instructgen.formats import BadRow, OnBadRow, check_language, read
from instructgen.formats.plain import Plain
from instructgen.licensing.licenses import check_license
from instructgen.schema.arrow import sample_row
from instructgen.schema.sample import Sample
from instructgen.similarity import tokenize

# Fraction of the identified seeds that must have one language to assign it to the others.
_NEARLY_ALL = 0.9


@dataclass(slots=True)
class Task:
    """An accepted instruction for which rows are still to be generated.

    ``sample`` has the instruction with its language, license and origin. ``resolved`` is true when
    its rows were generated, or when a recorded rejection states why it has no rows. ``waiting`` is
    the number of its rows that wait for a score.
    """

    sample: Sample
    resolved: bool = False
    waiting: int = 0

    @property
    def ended(self) -> bool:
        """Whether it is decided which rows of the instruction are kept."""
        return self.resolved and not self.waiting


@dataclass(slots=True)
class Pool:
    """The task pool: seeds at positions 0 to len(seeds)-1, then the accepted instructions.

    Seeds with more than ``max_words`` words in the instruction are not used as demonstrations.

    Raises:
        InputError: all seeds are too long.
    """

    seeds: Sequence[Sample]
    max_words: int = 150
    tasks: list[Task] = field(default_factory=list)
    _seeds_by_language: dict[str, list[int]] = field(default_factory=dict)
    _tasks_by_language: dict[str, list[int]] = field(default_factory=dict)
    # The id of a sample is computed from its texts, and prompts have several demonstrations.
    _ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Group the seeds by language, except those with more than ``max_words`` words."""
        self._ids = [seed.id for seed in self.seeds]
        for position, seed in enumerate(self.seeds):
            if len(tokenize(seed.instruction)) <= self.max_words:
                self._seeds_by_language.setdefault(seed.language, []).append(position)
        if not self._seeds_by_language:
            raise InputError(
                f"every seed instruction has more than {self.max_words} words.",
                hint="Add seed tasks that are short enough to be shown in a prompt.",
            )

    def add(self, sample: Sample) -> int:
        """Add an accepted instruction and return its task number."""
        number = len(self.tasks)
        self.tasks.append(Task(sample))
        self._ids.append(sample.id)
        position = len(self.seeds) + number
        self._tasks_by_language.setdefault(sample.language, []).append(position)
        return number

    def at(self, position: int) -> Sample:
        """Return the seed or accepted instruction at a position in the pool."""
        if position < len(self.seeds):
            return self.seeds[position]
        return self.tasks[position - len(self.seeds)].sample

    def id_at(self, position: int) -> str:
        """Return the id of the seed or accepted instruction at a position in the pool."""
        return self._ids[position]

    def draw_language(self, rng: random.Random) -> str:
        """Return a random language, with a probability proportional to its number of seeds."""
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
        """Return positions of distinct demonstrations in one language, in random order.

        Up to ``machine`` of them are accepted instructions; the others, up to a total of
        ``human + machine``, are seeds. Only seeds for which ``fits`` returns True are drawn.
        """
        tasks = self._tasks_by_language.get(language, [])
        chosen = rng.sample(tasks, min(machine, len(tasks)))
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
    mapping: Mapping[str, str] | None = None,
) -> tuple[list[Sample], list[tuple[Path, BadRow]]]:
    """Return all valid rows of the seed files, in order, and the invalid rows with their file.

    With ``mapping``, the rows have any fields, as in the format ``plain``. Rows whose language
    could not be identified get the language of the others, if nearly all of these have the same.

    Raises:
        InputError: a file is unreadable, or a row is invalid and ``on_bad_row`` is ``fail``.
        ConfigError: ``license`` is not an SPDX expression, or ``language`` not an ISO 639 code.
    """
    if license:
        license = check_license(license)
    if language:
        check_language(language)
    seeds: list[Sample] = []
    bad: list[tuple[Path, BadRow]] = []
    format = Plain(mapping=mapping) if mapping else None
    for path in paths:
        for row in read(path, format, license=license, language=language, on_bad_row=on_bad_row):
            if isinstance(row, BadRow):
                bad.append((path, row))
            elif isinstance(row, Sample):
                seeds.append(row)
    known = Counter(seed.language for seed in seeds if seed.language != "und")
    main, count = max(known.items(), key=lambda item: item[1], default=("und", 0))
    if count >= _NEARLY_ALL * known.total():
        seeds = [replace(s, language=main) if s.language == "und" else s for s in seeds]
    return seeds, bad


def seeds_digest(seeds: Iterable[Sample]) -> str:
    """Return a SHA-256 digest of the seeds, which a run records to detect changed seeds."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(orjson.dumps(sample_row(seed)))
        digest.update(b"\n")
    return digest.hexdigest()
