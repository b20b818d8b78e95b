"""The command `export`: writes a dataset as JSON Lines, in a format that other tools can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.commands.interface import command
from instructgen.commands.options import ExportOptions
from instructgen.errors import ConfigError, InputError
from instructgen.licensing.licenses import obligations
from instructgen.plugins import suggest
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Message, Sample, Shape
from instructgen.store import (
    is_run,
    manifest_in,
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
    """The result of an export: the file, the number of rows, and what their licenses require."""

    to: Path
    rows: int
    obligations: list[str]


@command(ExportOptions, "data", "to")
def export(options: ExportOptions, watch: Watch | None = None) -> Exported:
    """Write a dataset as JSON Lines, in a format that other tools can read.

    Raises:
        ConfigError: a column or the format is unknown, or the format does not support this kind of
            rows (instructions or preferences).
        InputError: the output file already exists, or would be inside a dataset folder.
        RunError: the folder contains no complete dataset.
        StorageError: the file cannot be written.
    """
    folder, file, columns = options.data, options.to, options.columns
    convert = _checked(folder, options.format, columns)
    _check_target(file, overwrite=options.overwrite)
    rows = 0
    total = sum(n for name, n in splits_of(folder).items() if options.split in (None, name))

    def lines() -> Iterator[bytes]:
        nonlocal rows
        for sample in read_samples(folder, split=options.split):
            rows += 1
            if watch is not None and rows % 1_000 == 0:
                watch(Progress("export", rows, total))
            extra = {name: getattr(sample, name) for name in columns}
            yield orjson.dumps({**convert(sample), **extra}) + b"\n"

    with storage(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, lines())
    terms = manifest_in(folder).terms
    return Exported(file, rows, obligations(terms.licenses, terms.generators, terms.attributions))


def _checked(
    folder: Path, format: str, columns: Sequence[str]
) -> Callable[[Sample], dict[str, Any]]:
    """Return the function that converts a row, after checking the format and the columns."""
    if format not in FORMATS:
        raise ConfigError(f"--format={format}: unknown format.", suggest(format, list(FORMATS)))
    supported, convert = FORMATS[format]
    for name in columns:
        if name not in _COLUMNS:
            raise ConfigError(f"--columns={name}: unknown column.", suggest(name, list(_COLUMNS)))
    shape = shape_of(folder)
    if shape != supported:
        other = next(name for name, (other_shape, _) in FORMATS.items() if other_shape == shape)
        raise ConfigError(
            f"{folder} contains {shape}, but {format} is a format for {supported}.",
            f"Pass --format={other}.",
        )
    return convert


def _check_target(file: Path, *, overwrite: bool) -> None:
    for place in file.resolve().parents:
        if is_run(place) or (place / "manifest.json").exists():
            raise InputError(
                f"the file would be inside the dataset folder {place}.",
                path=file,
                hint="Use a different folder.",
            )
    if file.exists() and not overwrite:
        raise InputError(
            "the file already exists.", path=file, hint="Pass --overwrite to replace it."
        )


def _alpaca(sample: Sample) -> dict[str, Any]:
    """Return Alpaca's columns; earlier turns go to LLaMA-Factory's columns system and history."""
    row: dict[str, Any] = {
        "instruction": sample.instruction,
        "input": sample.input,
        "output": sample.output,
    }
    earlier = list(sample.history)
    if earlier and earlier[0].role == "system":
        row["system"] = earlier.pop(0).content
    if earlier:
        pairs = zip(earlier[::2], earlier[1::2], strict=True)
        row["history"] = [[a.content, b.content] for a, b in pairs]
    return row


def _sharegpt(sample: Sample) -> dict[str, Any]:
    turns = [{"from": _SHAREGPT[m.role], "value": m.content} for m in sample.messages]
    return {"conversations": turns}


def _openai(sample: Sample) -> dict[str, Any]:
    return {"messages": _messages(sample.messages)}


def _preference(sample: Sample) -> dict[str, Any]:
    """Return a preference row in the conversational format of the library TRL."""
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
