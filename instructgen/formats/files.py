"""Finds the data files of a dataset that is a file, a pattern, a folder or a clone from the Hub."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from instructgen.errors import InputError, first_line
from instructgen.formats.records import is_supported
from instructgen.licensing.licenses import spdx_of

# The names by which `datasets` recognizes the splits of files and folders.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# JSON files that describe a dataset and contain no rows.
_DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json",
                 "manifest.json", "provenance.json", "made.json", "run.json")  # fmt: skip
_MAX_CARD = 100_000
_MAX_STATE = 2**24
_LICENSE = re.compile(r"^license:[ \t]*(?P<one>[^\n]*)(?P<list>(?:\n[ \t]*-[^\n]*)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of a dataset, in order.

    ``license`` is the license that the card of a folder states, as an SPDX expression, or "".
    """

    paths: tuple[Path, ...]
    license: str = ""


def dataset_files(path: Path, split: str = "train") -> DatasetFiles:
    """Return the data files at a path.

    Args:
        path: a file; a pattern such as ``data/*.jsonl``; a folder of data files; a folder that
            `datasets.Dataset.save_to_disk` or instructgen wrote; or a clone of a dataset from the
            Hugging Face Hub. A path that does not exist is returned as it is, because it may be
            the name of a dataset on the Hub.
        split: the split to read, if the folder has splits.

    Raises:
        InputError: the pattern or the folder has no data files, or does not have the split.
    """
    try:
        if path.is_dir():
            return _in_folder(path, split)
        if path.exists() or not glob.has_magic(str(path)):
            return DatasetFiles((path,))
    except OSError:
        # Not a valid file name, for example too long.
        return DatasetFiles((path,))
    files = tuple(sorted(p for p in _matching(path) if p.is_file()))
    if not files:
        raise InputError("no file matches the pattern.", path=path, hint="Check the pattern.")
    return DatasetFiles(files)


def _matching(pattern: Path) -> Iterator[Path]:
    """Yield the paths that match a pattern. For ``**``, links to folders are not followed."""
    parts = pattern.parts
    place = parts.index("**") if "**" in parts else len(parts)
    for name in glob.glob(str(Path(*parts[:place]))):  # noqa: PTH207 - may be absolute
        if place == len(parts):
            yield Path(name)
            continue
        for path in files_below(Path(name)):
            if _fits(path.relative_to(name).parts, parts[place:]):
                yield path


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match those of a pattern, with any number for ``**``."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden ones.

    Links to folders are not followed, because they can lead back to the folder.

    Raises:
        InputError: a folder cannot be read.
    """
    pending = [folder]
    while pending:
        folder = pending.pop()
        try:
            paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
            pending += [path for path in paths if path.is_dir() and not path.is_symlink()]
            yield from [path for path in paths if path.is_file()]
        except OSError as error:
            raise InputError(
                f"the folder cannot be read ({error.strerror}).",
                path=folder,
                hint="Check its permissions and the length of its path.",
            ) from error


def _in_folder(folder: Path, split: str) -> DatasetFiles:
    license = _card_license(folder / "README.md")
    files = list(_data_files(folder))
    if not files:
        raise InputError(
            "the folder contains no data files.",
            path=folder,
            hint="Pass a folder with .parquet, .arrow, .jsonl, .json or .csv files.",
        )
    tables = [p for p in files if not p.name.lower().endswith(".txt")]
    # Text files in the same folder, such as LICENSE.txt, do not contain rows.
    files = tables or files
    kinds = {p.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1] for p in files}
    if len(kinds) > 1:
        raise InputError(
            f"the folder contains files of several types: {', '.join(sorted(kinds))}.",
            path=folder,
            hint=f"Pass a pattern, such as '{folder}/*.{min(kinds)}'.",
        )
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if by_split.keys() == {""}:
        return DatasetFiles(tuple(files), license)
    if unknown := by_split.get(""):
        raise InputError(
            f"some files have no split in their names, such as {unknown[0].name}.",
            path=folder,
            hint="Pass a pattern in quotes that matches the files to read.",
        )
    folders = {p.parent for p in by_split.get(split, ())}
    if len(folders) > 1:
        names = ", ".join(sorted(str(p.relative_to(folder)) for p in folders))
        raise InputError(
            f"the split {split} has files in several folders: {names}.",
            path=folder,
            hint="Pass one of these folders.",
        )
    if split not in by_split:
        raise InputError(
            f"the folder has no split {split!r}.",
            path=folder,
            hint=f"Pass --split with one of: {', '.join(sorted(by_split))}.",
        )
    return DatasetFiles(tuple(by_split[split]), license)


def _data_files(folder: Path) -> Iterator[Path]:
    """Yield the data files in a folder and its subfolders, in the order of their names."""
    listed = _listed_files(folder)
    if listed is not None:
        yield from listed
        return
    if (folder / "manifest.json").exists() and (folder / "data").is_dir():
        # A dataset of instructgen: rejected rows are not part of the data.
        folder /= "data"
    for path in sorted(files_below(folder)):
        if path.name in _DESCRIPTIONS or not is_supported(path):
            continue
        # `datasets` keeps intermediate results in the folder of a saved dataset.
        listed = _listed_files(path.parent)
        if listed is None or path in listed:
            yield path


def _listed_files(folder: Path) -> Sequence[Path] | None:
    """Return the files that `Dataset.save_to_disk` lists in state.json, or None without one."""
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        values: Any = json.loads(_beginning(state, _MAX_STATE))
        files = [folder / Path(entry["filename"]).name for entry in values["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"state.json cannot be read ({first_line(error)}).",
            path=state,
            hint="Copy the dataset again.",
        ) from error
    return files


def _split_of(path: Path) -> str:
    """Return the split that the name of a file or of a parent folder states, or ""."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _card_license(card: Path) -> str:
    """Return the license in the front matter of a dataset card as an SPDX expression, or ""."""
    if not card.is_file():
        return ""
    first, *rest = _beginning(card, _MAX_CARD).decode("utf-8-sig", "replace").split("\n")
    lines = [line.rstrip() for line in rest]
    if first.rstrip() != "---" or "---" not in lines:
        return ""
    match = _LICENSE.search("\n".join(lines[: lines.index("---")]))
    if match is None:
        return ""
    listed = [line.strip().lstrip("-") for line in match["list"].splitlines() if line.strip()]
    inline = match["one"].strip().strip("[]").split(",")
    names = [re.split(r"\s#", n, maxsplit=1)[0].strip(" \t'\"") for n in (*inline, *listed)]
    return spdx_of([name for name in names if name not in ("", "null", "~")])


def _beginning(path: Path, size: int) -> bytes:
    """Return at most the first ``size`` bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)
