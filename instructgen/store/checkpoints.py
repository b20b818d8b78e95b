"""Model folders: what a training run was asked for, sealed checkpoints, the finished weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import RunError
from instructgen.store.files import (
    differences,
    digest_of_file,
    locked,
    make_folder,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
)

_RUN, _LOG, _SEAL = "run.json", "log.jsonl", "sealed.json"
_CHECKPOINTS, _EXPORT = "checkpoints", ".export"
_FORMAT = 1


class ModelRun:
    """A model folder, locked for this process; see `training`.

    Attributes:
        folder: where.
        messages: what was found amiss when it was opened, for the user.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self.messages: list[str] = []
        self._asked = asked

    @property
    def checkpoints(self) -> Path:
        """The folder that checkpoints are written into, as ``checkpoint-STEP``."""
        return self.folder / _CHECKPOINTS

    def finished(self) -> dict[str, Any] | None:
        """What a finished run was, or None before."""
        if not (self.folder / _RUN).exists():
            return None
        run = read_training(self.folder)
        if run["status"] != "finished":
            return None
        if not any(self.folder.glob("*.safetensors")):
            raise RunError(
                f"{self.folder} is a finished run, and its weights are gone.",
                "Remove the folder to train again, or give another --out.",
            )
        # Left by a kill between the end and the clearing up.
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return run

    def seal(self, step: int) -> None:
        """Mark a checkpoint as complete: from now on it is resumed from.

        Raises:
            StorageError: the disk refuses.
        """
        checkpoint = self.checkpoints / f"checkpoint-{step}"
        with storage(checkpoint):
            files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
            for path in files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            seal = {
                str(p.relative_to(checkpoint)): digest_of_file(p) for p in files if p.name != _SEAL
            }
            write_atomic(checkpoint / _SEAL, [orjson.dumps(seal)])
            sync_folder(self.checkpoints)

    def newest(self) -> Path | None:
        """The newest complete checkpoint; others are removed, and named in ``messages``."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)
        for checkpoint in found:
            if amiss := _amiss(checkpoint):
                self.messages.append(f"{checkpoint} is left out: {amiss}.")
                shutil.rmtree(checkpoint)
            else:
                return checkpoint
        return None

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append an entry to log.jsonl.

        Raises:
            StorageError: the disk refuses.
        """
        with storage(self.folder / _LOG), (self.folder / _LOG).open("ab") as file:
            file.write(orjson.dumps(entry) + b"\n")

    def forget_after(self, step: int) -> None:
        """Cut the log's entries of later steps: they are run again."""
        path = regular_file(self.folder / _LOG)
        if path.exists():
            kept = [line for line in _lines(path) if orjson.loads(line).get("step", 0) <= step]
            write_atomic(path, [line + b"\n" for line in kept])

    def write(self, name: str, data: bytes) -> None:
        """Write a small file of the run."""
        with storage(self.folder):
            write_atomic(self.folder / name, [data])

    @contextmanager
    def exporting(self) -> Iterator[Path]:
        """A folder to put the finished weights in; afterwards its files are the model's.

        config.json, by which a folder is known as a model, comes last.
        """
        export = self.folder / _EXPORT
        with storage(self.folder):
            shutil.rmtree(export, ignore_errors=True)
            export.mkdir()
        yield export
        with storage(self.folder):
            for path in export.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            names = sorted(export.iterdir(), key=lambda p: (p.name == "config.json", p.name))
            for path in names:
                target = self.folder / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
            export.rmdir()
            sync_folder(self.folder)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say what the run came to, and drop its checkpoints."""
        with storage(self.folder):
            write_atomic(self.folder / _RUN, [_dumped({**self._asked, **facts}, "finished")])
            shutil.rmtree(self.checkpoints, ignore_errors=True)


@contextmanager
def training(folder: Path, asked: Mapping[str, Any]) -> Iterator[ModelRun]:
    """Begin a training run in a new folder, or go on with one.

    Args:
        folder: where the model will be; made with its parents.
        asked: what decides the result: ``command``, ``config``, ``data`` ...

    Raises:
        RunError: the folder holds something else or a run with other settings, or is in use.
        StorageError: the disk refuses.
    """
    with ExitStack() as held:
        with storage(folder):
            path = folder / _RUN
            if not path.exists():
                make_folder(folder, _RUN)
            held.enter_context(locked(folder))
            run = read_training(folder) if path.exists() else None
            kept = any(folder.glob(f"{_CHECKPOINTS}/checkpoint-*"))
            if run is not None and (kept or run["status"] == "finished"):
                _check_same(folder, run, asked)
            else:
                # Nothing is lost of a run without a checkpoint, so that a mistake in its
                # options can be mended.
                write_atomic(path, [_dumped(asked, "begun")])
            (folder / _CHECKPOINTS).mkdir(exist_ok=True)
        yield ModelRun(folder, asked)


def read_training(folder: Path) -> dict[str, Any]:
    """What run.json of a model folder holds.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = folder / _RUN
    try:
        run = orjson.loads(regular_file(path).read_bytes())
    except FileNotFoundError:
        raise RunError(
            f"{folder} was not trained here: it has no {_RUN}.", "Check the path."
        ) from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}).", "Restore it from a copy.") from error
    if not isinstance(run, dict) or "status" not in run or run.get("format") != _FORMAT:
        raise RunError(f"{path} is no training run of this version.", "Give another --out.")
    return run


def is_trained(folder: Path) -> bool:
    """Whether a model folder says how it was trained here."""
    return (folder / _RUN).is_file()


def root_of(model: str) -> str:
    """What a model trained here began as, through all its trainings; itself otherwise.

    Raises:
        RunError: what its folder says is damaged.
    """
    if not is_trained(Path(model)):
        return model
    return str(read_training(Path(model)).get("root", model))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a training run's log, in order."""
    path = folder / _LOG
    return [orjson.loads(line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path) -> Iterator[bytes]:
    for line in path.read_bytes().split(b"\n")[:-1]:
        # A kill can tear the last line, and what follows stands in its own.
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield line


def _check_same(folder: Path, run: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    keys = {*asked, "plugins"}
    differ = differences({k: run[k] for k in keys if k in run}, asked)
    if differ:
        said = ", ".join(f"{k} ({was!r}, now {now!r})" for k, (was, now) in [*differ.items()][:3])
        raise RunError(
            f"{folder} holds a run with another {said}.", "Give the same, or another --out."
        )


def _dumped(asked: Mapping[str, Any], status: str) -> bytes:
    run = {"format": _FORMAT, "status": status, **asked}
    return orjson.dumps(run, option=orjson.OPT_INDENT_2)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 of what is none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _amiss(checkpoint: Path) -> str:
    """What keeps a checkpoint from being resumed from; empty when nothing does."""
    try:
        seal = orjson.loads((checkpoint / _SEAL).read_bytes())
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, orjson.JSONDecodeError):
        return "its seal is damaged"
    for name, digest in seal.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if digest_of_file(path) != digest:
            return f"{name} is damaged"
    return ""
