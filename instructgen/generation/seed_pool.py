"""The task pool: human-written seeds and accepted instructions, from which prompts draw examples.

The pool does not assess their quality.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from instructgen.config import read_small
from instructgen.errors import InputError, first_line
from instructgen.filters.cluster import cluster_of
from instructgen.formats import BadRow, Format, OnBadRow, check_language, read, text
from instructgen.formats.fields import RowError
from instructgen.formats.files import files_below
from instructgen.formats.metadata import with_metadata
from instructgen.formats.plain import Plain
from instructgen.generation.shares import Group, Shares
from instructgen.licensing.licenses import check_license
from instructgen.printable import printable
from instructgen.schema.arrow import sample_row
from instructgen.schema.messages import json_text
from instructgen.schema.sample import Kind, Label, Origin, Sample
from instructgen.similarity import tokenize

# Fraction of the identified seeds that must have one language to assign it to the others.
_NEARLY_ALL = 0.9
_ONLY_PYTHON = "The method code supports only Python: pass .py files, or rows with a field text."
_OTHER_LANGUAGES = (".js", ".ts", ".java", ".c", ".cc", ".cpp", ".go", ".rs", ".rb", ".php", ".r")


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

    Only seeds for which ``fits`` returns True are used, and as demonstrations only those with at
    most ``max_words`` words in the instruction; None for no limit. ``usable`` are their positions,
    in the order that ``order`` returns for them.
    ``balance`` are columns (category, or names of labels) that divide the seeds
    into groups, in addition to their language. With ``coverage``, demonstrations come from the
    cluster with the fewest instructions; the seeds then have the score ``cluster``.

    Raises:
        InputError: all seeds are too long, or none fits.
    """

    seeds: Sequence[Sample]
    max_words: int | None = None
    balance: tuple[str, ...] = ()
    coverage: bool = False
    fits: Callable[[Sample], bool] | None = None
    order: Callable[[Sequence[Sample], list[int]], list[int]] | None = None
    usable: list[int] = field(default_factory=list)
    # The positions of the other seeds.
    others: list[int] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    # What each group of rows has, so that the groups keep their shares.
    shares: Shares = field(init=False)
    # By cluster: its seeds, accepted instructions and started drafts.
    covered: Counter[int | None] = field(default_factory=Counter)
    _seeds_of: dict[Group, list[int]] = field(default_factory=dict)
    _tasks_of: dict[Group, list[int]] = field(default_factory=dict)
    # The id of a sample is computed from its texts, and prompts have several demonstrations.
    _ids: list[str] = field(default_factory=list)
    _answered: dict[int, dict[tuple[Group, bool, str | None], list[int]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        """Group the seeds, except those with more than ``max_words`` words."""
        self._ids = [seed.id for seed in self.seeds]
        self.covered.update(cluster_of(seed) for seed in self.seeds)
        fits, limit = self.fits, self.max_words
        for position, seed in enumerate(self.seeds):
            (self.usable if fits is None or fits(seed) else self.others).append(position)
        if self.seeds and not self.usable:
            raise InputError(
                "the method can use none of the seeds.",
                hint="Add rows with an answer and without earlier messages.",
            )
        if self.order is not None:
            self.usable = self.order(self.seeds, self.usable)
        for position in self.usable:
            seed = self.seeds[position]
            if limit is None or len(tokenize(seed.instruction)) <= limit:
                self._seeds_of.setdefault(self.group_of(seed), []).append(position)
        self.shares = Shares({group: len(seeds) for group, seeds in self._seeds_of.items()})
        if self.seeds and not self._seeds_of:
            raise InputError(
                f"every seed instruction has more than {self.max_words} words.",
                hint="Add seed tasks that are short enough to be shown in a prompt.",
            )

    def group_of(self, sample: Sample) -> Group:
        """Return the group of a sample."""
        return Group(sample.language, tuple(value_of(sample, name) for name in self.balance))

    def answered(self, most: int) -> dict[tuple[Group, bool, str | None], list[int]]:
        """Return the positions of seeds with an answer and at most ``most`` characters.

        The keys are the group, whether the seed is a classification task, and its category, or
        None for all categories.
        """
        if most not in self._answered:
            found: dict[tuple[Group, bool, str | None], list[int]] = {}
            for position, seed in enumerate(self.seeds):
                if seed.output and len(seed.question) + len(seed.output) <= most:
                    kind = seed.kind == Kind.CLASSIFICATION
                    for category in (seed.category or "", None):
                        key = (self.group_of(seed), kind, category)
                        found.setdefault(key, []).append(position)
            self._answered[most] = found
        return self._answered[most]

    def add(self, sample: Sample) -> int:
        """Add an accepted instruction and return its task number."""
        number = len(self.tasks)
        self.tasks.append(Task(sample))
        self._ids.append(sample.id)
        self.covered[cluster_of(sample)] += 1
        position = len(self.seeds) + number
        self._tasks_of.setdefault(self.group_of(sample), []).append(position)
        return number

    def at(self, position: int) -> Sample:
        """Return the seed or accepted instruction at a position in the pool."""
        if position < len(self.seeds):
            return self.seeds[position]
        return self.tasks[position - len(self.seeds)].sample

    def id_at(self, position: int) -> str:
        """Return the id of the seed or accepted instruction at a position in the pool."""
        return self._ids[position]

    def draw_group(self, rng: random.Random) -> Group:
        """Return the group of the next draft; see `Shares`."""
        return self.shares.draw(rng)

    def draw(
        self,
        rng: random.Random,
        group: Group,
        human: int,
        machine: int,
    ) -> tuple[int, ...]:
        """Return positions of distinct demonstrations of one group, in random order.

        Up to ``machine`` of them are accepted instructions; the others, up to a total of
        ``human + machine``, are seeds.
        """
        tasks = self._tasks_of.get(group, [])
        seeds = self._seeds_of[group]
        parts = [(tasks, seeds)]
        if self.coverage and seeds:
            least = self._least_covered(rng, seeds)
            parts = [
                (
                    [p for p in tasks if (cluster_of(self.at(p)) == least) is same],
                    [p for p in seeds if (cluster_of(self.at(p)) == least) is same],
                )
                for same in (True, False)
            ]
        total, generated = human + machine, 0
        chosen: list[int] = []
        for some_tasks, some_seeds in parts:
            most = min(machine - generated, total - len(chosen), len(some_tasks))
            chosen += rng.sample(some_tasks, most)
            generated += most
            chosen += rng.sample(some_seeds, min(total - len(chosen), len(some_seeds)))
        rng.shuffle(chosen)
        return tuple(chosen)

    def _least_covered(self, rng: random.Random, seeds: Sequence[int]) -> int | None:
        clusters = list(dict.fromkeys(cluster_of(self.at(p)) for p in seeds))
        rng.shuffle(clusters)
        return min(clusters, key=lambda cluster: self.covered[cluster])

    def start(self, sample: Sample, parents: Sequence[int]) -> None:
        """Count that a draft was started with these demonstrations."""
        self.shares.started[self.group_of(sample)] += 1
        clusters = Counter(cluster_of(self.at(p)) for p in parents)
        if self.coverage and clusters:
            self.covered[clusters.most_common(1)[0][0]] += 1


def value_of(sample: Sample, column: str) -> str:
    """Return the category of a sample, or the value of its label with this name; "" if missing."""
    if column == "category":
        return sample.category or ""
    return next((label.value for label in sample.labels if label.name == column), "")


@dataclass(frozen=True)
class _OneText(Format):
    """Rows with one text, such as a document or the description of a person, in ``field``."""

    name = "one_text"
    fields = frozenset()

    field: str = "text"

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return a sample with the text as its instruction."""
        return [with_metadata(Sample(text(record, self.field)), record)]


@dataclass(frozen=True)
class _ToolTask(Format):
    """Rows with an ``instruction``, the ``actions`` that it needs, and ``mentions``.

    The actions are calls of tools, as {"name": ..., "arguments": {...}}. The mentions are texts
    that the answer must contain.
    """

    name = "tool_task"
    fields = frozenset()

    def samples(self, record: Mapping[str, Any]) -> list[Sample]:
        """Return a sample with the actions and the mentions as labels."""
        sample = with_metadata(Sample(text(record, "instruction")), record)
        for name in ("actions", "mentions"):
            values = record.get(name) or []
            if not isinstance(values, list):
                raise RowError(f"the field {name} is not a list")
            sample = sample.with_label(Label(name, json_text(values)))
        return [sample]


@dataclass(frozen=True)
class _Snippet(_OneText):
    """Rows with Python code in the field ``text``. Each function of a Python file is a row."""

    name = "snippet"


# How the seeds of a method are read, if they are not tasks or rows.
_FORMATS: dict[str, Format] = {
    "documents": _OneText(),
    "personas": _OneText(field="persona"),
    "tool_tasks": _ToolTask(),
    "snippets": _Snippet(),
}


def seed_format(start: str) -> Format | None:
    """Return the format of seeds that are neither tasks nor rows, or None."""
    return _FORMATS.get(start)


def functions_in(path: Path) -> Iterator[str]:
    """Yield the code of each function at the top level of a Python file, in order.

    Raises:
        InputError: the file cannot be read or is not Python code.
    """
    try:
        source = read_small(path).decode()
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the file is not Python code ({first_line(error)}).",
            path=path,
            hint="Only Python is supported. Remove the file, or correct it.",
        ) from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (code := ast.get_source_segment(source, node)):
            yield code


def load_seeds(
    paths: Sequence[Path],
    *,
    license: str = "",
    language: str = "",
    on_bad_row: OnBadRow = "fail",
    mapping: Mapping[str, str] | None = None,
    own_format: Format | None = None,
) -> tuple[list[Sample], list[tuple[Path, BadRow]]]:
    """Return all valid rows of the seed files, in order, and the invalid rows with their file.

    With ``mapping``, the rows have any fields, as in the format ``plain``. Otherwise, with
    ``own_format``, they have its fields. For snippets, files of Python code are read, too. Rows
    whose language could not be identified get the language of the others, if nearly all of these
    have the same.

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
    format: Format | None = Plain(mapping=mapping) if mapping else own_format
    for path in _python_files(paths) if isinstance(own_format, _Snippet) else paths:
        if isinstance(own_format, _Snippet) and path.suffix == ".py":
            seeds += _snippets(path, license)
            continue
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


def is_code_folder(path: Path) -> bool:
    """Return whether a path is a folder of Python files instead of a dataset."""
    return path.is_dir() and not (path / "manifest.json").exists()


def _python_files(paths: Sequence[Path]) -> list[Path]:
    """Return the paths, with the Python files below a folder in place of the folder.

    Raises:
        InputError: a folder has no Python file, or a file is in another language.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(p for p in files_below(path) if p.suffix == ".py") if path.is_dir() else []
        if path.is_dir() and not files:
            raise InputError("the folder contains no .py file.", path=path, hint=_ONLY_PYTHON)
        if not path.is_dir() and path.suffix in _OTHER_LANGUAGES:
            raise InputError("the file is not in Python.", path=path, hint=_ONLY_PYTHON)
        found += files or [path]
    return found


def _snippets(path: Path, license: str) -> list[Sample]:
    if not license:
        raise InputError(
            "the code has no license.", path=path, hint="Pass --license=SPDX, such as MIT."
        )
    name = printable(path.name)
    return [
        Sample(code, language="en", source="snippets", license=license, origin=Origin(record=name))
        for code in functions_in(path)
    ]


def seeds_digest(seeds: Iterable[Sample]) -> str:
    """Return a SHA-256 digest of the seeds, which a run records to detect changed seeds."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(orjson.dumps(sample_row(seed)))
        digest.update(b"\n")
    return digest.hexdigest()
