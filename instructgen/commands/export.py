"""The command export: a dataset in the form that another tool reads, as JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import obligations
from instructgen.plugins import suggest
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Message, Sample, Shape
from instructgen.store import (
    is_run,
    read_manifest,
    read_samples,
    shape_of,
    splits_of,
    storage,
    write_atomic,
)

_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}
_COLUMNS = ("id", "category", "language", "source", "license", "attribution", "generators")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what its rows oblige whoever uses them."""

    to: Path
    rows: int
    obligations: list[str]


def export(
    data: str | Path,
    to: str | Path,
    *,
    format: str,
    columns: Sequence[str] = (),
    split: str | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Exported:
    """Write a dataset as JSON lines in another tool's form.

    Args:
        data: a dataset or run folder.
        to: the file.
        format: ``alpaca``, ``sharegpt``, ``openai`` or ``trl-preference``.
        columns: more of each row to write beside: ``id``, ``category``, ``language``,
            ``source``, ``license``, ``attribution``, ``generators``.
        split: only these rows, of a dataset that is split.
        overwrite: whether a file that is there may be replaced.
        watch: called with progress.

    Raises:
        ConfigError: the format or a column is unknown, or does not fit the rows.
        InputError: the file is there already.
        RunError: there is no complete dataset.
        StorageError: the disk refuses.
    """
    folder, file = Path(data), Path(to)
    made = _checked(folder, format, columns)
    _check_target(file, overwrite=overwrite)
    rows, count = 0, sum(n for name, n in splits_of(folder).items() if split in (None, name))

    def lines() -> Iterator[bytes]:
        nonlocal rows
        for sample in read_samples(folder, split=split):
            rows += 1
            if watch is not None and rows % 1_000 == 0:
                watch(Progress("export", rows, count))
            beside = {name: getattr(sample, name) for name in columns}
            yield orjson.dumps({**made(sample), **beside}) + b"\n"

    with storage(file):
        write_atomic(file, lines())
    manifest = read_manifest(folder) or {}
    asked = manifest["terms"]
    return Exported(
        file, rows, obligations(asked["licenses"], asked["generators"], asked["attributions"])
    )


def _checked(
    folder: Path, format: str, columns: Sequence[str]
) -> Callable[[Sample], dict[str, Any]]:
    """What makes a row of the format, if it fits the dataset."""
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: no such format.", suggest(format, list(FORMATS)))
    wanted, made = FORMATS[format]
    for name in columns:
        if name not in _COLUMNS:
            raise ConfigError(f"no column {name!r}.", suggest(name, list(_COLUMNS)))
    shape = shape_of(folder)
    if shape != wanted:
        other = next(name for name, (fits, _) in FORMATS.items() if fits == shape)
        raise ConfigError(
            f"{folder} holds {shape}, and {format} is for {wanted}.", f"Use --format {other}."
        )
    return made


def _check_target(file: Path, *, overwrite: bool) -> None:
    for place in file.resolve().parents:
        if is_run(place) or (place / "manifest.json").exists():
            raise InputError(
                f"{place} holds a dataset.", path=file, hint="Write to another folder."
            )
    if file.exists() and not overwrite:
        raise InputError("the file is there already.", path=file, hint="Pass --overwrite.")


def _alpaca(sample: Sample) -> dict[str, Any]:
    """Alpaca's three columns; earlier turns as LLaMA-Factory has them."""
    row: dict[str, Any] = {
        "instruction": sample.instruction,
        "input": sample.input,
        "output": sample.output,
    }
    said = list(sample.history)
    if said and said[0].role == "system":
        row["system"] = said.pop(0).content
    if said:
        row["history"] = [
            [a.content, b.content] for a, b in zip(said[::2], said[1::2], strict=True)
        ]
    return row


def _sharegpt(sample: Sample) -> dict[str, Any]:
    turns = [{"from": _SHAREGPT[m.role], "value": m.content} for m in sample.messages]
    return {"conversations": turns}


def _openai(sample: Sample) -> dict[str, Any]:
    return {"messages": _messages(sample.messages)}


def _preference(sample: Sample) -> dict[str, Any]:
    """TRL's conversational preferences."""
    return {
        "prompt": _messages(sample.prompt),
        "chosen": _messages([Message("assistant", sample.output)]),
        "rejected": _messages([Message("assistant", sample.rejected_output or "")]),
    }


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


FORMATS: Mapping[str, tuple[Shape, Callable[[Sample], dict[str, Any]]]] = {
    "alpaca": ("instructions", _alpaca),
    "sharegpt": ("instructions", _sharegpt),
    "openai": ("instructions", _openai),
    "trl-preference": ("preferences", _preference),
}
