"""The command `report`: writes one HTML page about datasets, runs, models and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import instructgen
from instructgen.commands.derive import name_of
from instructgen.commands.generate import read_seeds
from instructgen.commands.interface import command
from instructgen.commands.options import ReportOptions
from instructgen.errors import InputError, RunError
from instructgen.reports.columns import Counts, read_words
from instructgen.reports.dataset import Comparison, dataset_chapter
from instructgen.reports.model import evaluation_chapter, model_chapter
from instructgen.reports.page import Chapter, page
from instructgen.schema.progress import Progress, Watch
from instructgen.store import (
    has_current_run,
    is_run,
    is_trained,
    manifest_in,
    open_file,
    read_info,
    read_seed_rows,
    storage,
    write_record,
)


@dataclass(frozen=True, slots=True)
class Reported:
    """The path of the report, the titles of its chapters, and its size in bytes."""

    to: Path
    chapters: tuple[str, ...]
    bytes: int


@command(ReportOptions, "inputs", "out")
def report(options: ReportOptions, watch: Watch | None = None) -> Reported:
    """Write a report about datasets, runs, models and evaluations as one self-contained HTML file.

    Each input becomes a chapter, in the order of the inputs. An existing output file is replaced
    only if it is a report.

    Raises:
        InputError: an input does not exist or is of an unknown kind, or the output file
            exists and is not a report.
        RunError: an input is damaged.
        StorageError: the file cannot be written.
    """
    paths, file, reference = options.inputs, options.out, options.reference
    _check_out(file)
    seeds = (
        read_seeds(options.seeds, "LicenseRef-unknown", "", "reject")[0] if options.seeds else []
    )
    words = {} if reference is None else _words_of(reference)
    name = "" if reference is None else name_of(reference)
    comparison = Comparison(seeds, words, name, options.price)
    chapters = []
    for number, path in enumerate(paths):
        if watch is not None:
            watch(Progress(name_of(path), number, len(paths), "chapters"))
        chapters.append(_chapter(path, comparison))
    title = " · ".join(chapter.title for chapter in chapters)
    data = page(title, chapters, instructgen.__version__)
    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_record(file, data)
    return Reported(file, tuple(c.title for c in chapters), len(data))


def _chapter(path: Path, comparison: Comparison) -> Chapter:
    if not path.exists():
        raise InputError("the path does not exist.", path=path, hint="Check the path.")
    name = name_of(path)
    if (path / "manifest.json").exists():
        if manifest_in(path).shape == "documents":
            raise InputError(
                "contains segments of documents, for which there is no report.",
                path=path,
                hint="Pass the rows that generate --method document made from them.",
            )
        rows = read_seed_rows(path, read_info(path)) if has_current_run(path) else ()
        return dataset_chapter(path, name, comparison, list(rows))
    if (path / "evaluation.json").exists():
        return evaluation_chapter(path, name)
    if is_trained(path) or (path / "config.json").exists():
        # Also the message for a model that was trained by another version, or elsewhere.
        return model_chapter(path, name)
    if is_run(path):
        raise RunError(
            f"{path} is a run that has no dataset yet.", f"Run: instructgen rebuild {path}"
        )
    raise InputError(
        "is not a dataset, run, model or evaluation.",
        path=path,
        hint="Pass a folder that instructgen wrote.",
    )


def _words_of(folder: Path) -> dict[str, Counts]:
    manifest_in(folder)
    return read_words(folder)


def _check_out(file: Path) -> None:
    """Raise InputError if the output path is a folder, or a file that is not a report."""
    if file.is_dir():
        raise InputError("is a folder.", path=file, hint="Pass a file, such as --out=report.html.")
    if not file.exists():
        return
    with open_file(file) as opened:
        beginning = opened.read(4096)
    if b'name="generator" content="instructgen"' not in beginning:
        raise InputError("exists, but is not a report.", path=file, hint="Use another --out.")
