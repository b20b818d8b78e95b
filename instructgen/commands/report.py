"""The command report: datasets, runs, models and evaluations as one page to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import instructgen
from instructgen.commands.derive import name_of
from instructgen.commands.generate import read_seeds
from instructgen.errors import InputError, RunError
from instructgen.reports.columns import Counts, read_words
from instructgen.reports.dataset import Beside, dataset_chapter
from instructgen.reports.model import evaluation_chapter, model_chapter
from instructgen.reports.page import Chapter, page
from instructgen.schema.arrow import sample_of
from instructgen.schema.progress import Progress, Watch
from instructgen.store import (
    is_run,
    read_info,
    read_manifest,
    read_seed_rows,
    storage,
    write_atomic,
)


@dataclass(frozen=True, slots=True)
class Reported:
    """Where the page is, and its chapters' titles."""

    to: Path
    chapters: tuple[str, ...]
    bytes: int


def report(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    seeds: str | Path | Sequence[str | Path] = (),
    reference: str | Path | None = None,
    price: tuple[float, float] | None = None,
    watch: Watch | None = None,
) -> Reported:
    """Write a report: one HTML file that loads nothing.

    Args:
        inputs: dataset, run, model and evaluation folders, a chapter each, in order.
        out: the file; one that is there is replaced if it is a report.
        seeds: files or datasets that rows are compared with; a run knows its own.
        reference: a dataset written by people, whose lengths stand beside.
        price: of a million tokens of prompts and of completions.
        watch: called with each chapter.

    Raises:
        InputError: an input is not there or none of these, or the file is none of ours.
        RunError: an input is damaged.
        StorageError: the disk refuses.
    """
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    file = Path(out)
    _check_out(file)
    given, _ = read_seeds(seeds, "LicenseRef-unknown", "", "reject") if seeds else ([], None)
    people = {} if reference is None else _words_of(Path(reference))
    beside = Beside(given, people, "" if reference is None else name_of(Path(reference)), price)
    chapters = []
    for number, path in enumerate(paths):
        if watch is not None:
            watch(Progress(name_of(path), number, len(paths), "chapters"))
        chapters.append(_chapter(path, beside))
    title = " · ".join(chapter.title for chapter in chapters)
    data = page(title, chapters, instructgen.__version__)
    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, [data])
    return Reported(file, tuple(c.title for c in chapters), len(data))


def _chapter(path: Path, beside: Beside) -> Chapter:
    if not path.exists():
        raise InputError("nothing is there.", path=path, hint="Check the path.")
    name = name_of(path)
    if (path / "manifest.json").exists():
        seeds = (
            [sample_of(r) for r in read_seed_rows(path, read_info(path))] if is_run(path) else []
        )
        return dataset_chapter(path, name, beside, seeds)
    if (path / "evaluation.json").exists():
        return evaluation_chapter(path, name)
    if (path / "log.jsonl").exists():
        return model_chapter(path, name)
    if is_run(path):
        raise RunError(
            f"{path} is a run that has no dataset yet.", f"Run: instructgen rebuild {path}"
        )
    raise InputError(
        "it is no dataset, run, model or evaluation.",
        path=path,
        hint="Give a folder that instructgen made.",
    )


def _words_of(folder: Path) -> dict[str, Counts]:
    if read_manifest(folder) is None:
        raise RunError(f"{folder} holds no complete dataset.", "Run: instructgen import.")
    return read_words(folder)


def _check_out(file: Path) -> None:
    """Refuse to write over what is no report."""
    if file.is_dir():
        raise InputError("it is a folder.", path=file, hint="Give a file, as in report.html.")
    if file.exists() and b'name="generator" content="instructgen"' not in file.read_bytes()[:4096]:
        raise InputError("it is no report of ours.", path=file, hint="Give another --out.")
