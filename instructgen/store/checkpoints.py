"""Reads and writes model folders: training.json, the log, checkpoints and finished weights.

This module moves weight files and checks their digests, but does not interpret their contents.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson

from instructgen.errors import DamagedFileError, RunError, VersionError
from instructgen.store.files import (
    differences,
    digest_of_file,
    locked,
    make_folder,
    open_existing,
    read_file,
    regular_file,
    storage,
    sync_folder,
    write_atomic,
    write_record,
)
from instructgen.store.records import (
    VERSIONS_BEFORE,
    Seal,
    TrainingFacts,
    TrainingInfo,
    TrainingInputs,
    read_format,
)

_TRAINING, _LOG, _SEAL = "training.json", "log.jsonl", "sealed.json"
# The name of training.json in format 1.
_OLD_TRAINING = "run.json"
_CHECKPOINTS, _EXPORT = "checkpoints", ".export"
_FORMAT = 2


class ModelRun:
    """A model folder that is locked for this process; created by `training`.

    Attributes:
        folder: the output folder.
        messages: messages for the user, such as which checkpoints were damaged.
    """

    def __init__(self, folder: Path, inputs: TrainingInputs) -> None:
        self.folder = folder
        self.messages: list[str] = []
        self._inputs = inputs

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, which are named ``checkpoint-STEP``."""
        return self.folder / _CHECKPOINTS

    def finished(self) -> TrainingFacts | None:
        """Return the results of the training run, or None if the training run is not finished."""
        if not (self.folder / _TRAINING).exists():
            return None
        result = read_training(self.folder).result
        if result is None:
            return None
        if not any(self.folder.glob("*.safetensors")):
            raise RunError(
                f"{self.folder} contains a finished training run, but its weights are missing.",
                "Remove the folder to train again, or use another --out.",
            )
        # The process may have been killed between the end of training and the cleanup.
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return result

    def seal(self, step: int) -> None:
        """Mark the checkpoint of a step as complete, so that training can resume from it.

        Raises:
            StorageError: a file cannot be written.
        """
        checkpoint = self.checkpoints / f"checkpoint-{step}"
        with storage(checkpoint):
            files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
            for path in files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            names = {p: str(p.relative_to(checkpoint)) for p in files if p.name != _SEAL}
            seal = Seal({name: digest_of_file(p) for p, name in names.items()})
            write_record(checkpoint / _SEAL, seal.to_json())
            sync_folder(self.checkpoints)

    def latest_complete_checkpoint(self) -> Path | None:
        """Return the latest complete checkpoint, or None; delete newer, unusable checkpoints."""
        newest_first = sorted(self.checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)
        for checkpoint in newest_first:
            if problem := _problem(checkpoint):
                self.messages.append(f"{checkpoint} is not used: {problem}.")
                shutil.rmtree(checkpoint)
            else:
                return checkpoint
        return None

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, such as the metrics of a step, to log.jsonl.

        Raises:
            StorageError: the file cannot be written.
        """
        path = self.folder / _LOG
        with storage(path):
            handle = open_existing(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(handle, "ab") as file:
                file.write(orjson.dumps(entry) + b"\n")

    def truncate_log(self, step: int) -> None:
        """Remove the log entries after ``step``, because these steps will run again."""
        path = regular_file(self.folder / _LOG)
        if path.exists():
            kept = [line for line in _lines(path) if orjson.loads(line).get("step", 0) <= step]
            write_atomic(path, [line + b"\n" for line in kept])

    def write(self, name: str, data: bytes) -> None:
        """Write a file with this name and content into the model folder."""
        with storage(self.folder):
            write_record(self.folder / name, data)

    @contextmanager
    def exporting(self) -> Iterator[Path]:
        """Yield a temporary folder for the weights; then move its files into the model folder.

        config.json is moved last, because a folder with this file is treated as a complete model.
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

    def finish(self, result: TrainingFacts) -> None:
        """Write the results of the training run to training.json, then remove the checkpoints."""
        info = TrainingInfo(_FORMAT, self._inputs, result)
        with storage(self.folder):
            write_record(self.folder / _TRAINING, info.to_json())
            shutil.rmtree(self.checkpoints, ignore_errors=True)


@contextmanager
def training(folder: Path, inputs: TrainingInputs) -> Iterator[ModelRun]:
    """Lock and yield a model folder, for a new training run or to resume the one that it contains.

    Args:
        folder: the output folder for the model. It is created, with its parents, if necessary.
        inputs: everything that determines the result: command, base model, data and options.

    Raises:
        RunError: the folder contains other files or a training run with different settings, or
            is in use.
        StorageError: a file cannot be written.
    """
    with ExitStack() as stack:
        with storage(folder):
            path = folder / _TRAINING
            _check_old(folder)
            if not path.exists():
                make_folder(folder, _TRAINING)
            stack.enter_context(locked(folder))
            before = read_training(folder) if path.exists() else None
            has_checkpoint = any(folder.glob(f"{_CHECKPOINTS}/checkpoint-*"))
            if before is not None and (has_checkpoint or before.result is not None):
                _check_same(folder, before.inputs, inputs)
            else:
                # Without a checkpoint, no work is lost if the options change.
                write_record(path, TrainingInfo(_FORMAT, inputs).to_json())
            (folder / _CHECKPOINTS).mkdir(exist_ok=True)
        yield ModelRun(folder, inputs)


def read_training(folder: Path) -> TrainingInfo:
    """Read training.json of a model folder.

    Raises:
        RunError: the folder has no training.json.
        DamagedFileError: the file is damaged.
        VersionError: the file has an unsupported format.
    """
    _check_old(folder)
    path = folder / _TRAINING
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise RunError(
            f"{folder} is not a model trained by instructgen: it has no {_TRAINING}.",
            "Use a model folder that instructgen train created.",
        ) from None
    except OSError as error:
        raise DamagedFileError(f"the file cannot be read ({error}).", path=path) from error
    file_format = read_format(data, path).get("format")
    if file_format != _FORMAT:
        raise VersionError(path, file_format, "Use the version of instructgen that wrote the file.")
    return TrainingInfo.from_json(data, path)


def _check_old(folder: Path) -> None:
    """Raise VersionError for the old format 1, which has run.json instead of training.json."""
    old = folder / _OLD_TRAINING
    if not old.is_file() or (folder / _TRAINING).exists():
        return
    try:
        values = read_format(read_file(old), old)
    except (OSError, DamagedFileError):
        # A file of another program.
        return
    if "status" in values:
        hint = f"Use instructgen {VERSIONS_BEFORE[2]}, which wrote the file, or use another --out."
        raise VersionError(old, values.get("format"), hint)


def _old_root(folder: Path) -> str:
    """Return the original base model in run.json of format 1, or "" for other folders."""
    try:
        values = orjson.loads(read_file(folder / _OLD_TRAINING))
    except (OSError, DamagedFileError, orjson.JSONDecodeError):
        return ""
    known = isinstance(values, dict) and "status" in values
    return str(values.get("root", "")) if known else ""


def is_trained(folder: Path) -> bool:
    """Return whether instructgen trained the model in a folder."""
    return (folder / _TRAINING).is_file()


def root_of(model: str) -> str:
    """Return the original base model of a model that was trained once or several times.

    If a base model was trained with sft and the result with dpo, the base model is returned.
    For a model that instructgen did not train, ``model`` is returned.

    Raises:
        DamagedFileError: training.json is damaged.
    """
    folder = Path(model)
    if not is_trained(folder):
        return _old_root(folder) or model
    result = read_training(folder).result
    return model if result is None else result.root


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of log.jsonl in order; an empty list if the file does not exist."""
    path = folder / _LOG
    return [orjson.loads(line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path) -> Iterator[bytes]:
    for line in read_file(path).split(b"\n")[:-1]:
        # A killed process can leave an incomplete line; the lines after it are complete.
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield line


def _check_same(folder: Path, before: TrainingInputs, now: TrainingInputs) -> None:
    differ = differences(before.to_dict(), now.to_dict())
    if differ:
        changed = ", ".join(
            f"{key} (was {was!r}, now {value!r})" for key, (was, value) in [*differ.items()][:3]
        )
        raise RunError(
            f"{folder} contains a training run with different settings: {changed}.",
            "Use the same settings, or another --out.",
        )


def step_of(checkpoint: Path) -> int:
    """Return the step number in a checkpoint's name, or -1 if the name has no number."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _problem(checkpoint: Path) -> str:
    """Return why training cannot resume from a checkpoint, or "" if training can resume."""
    path = checkpoint / _SEAL
    try:
        seal = Seal.from_json(read_file(path), path)
    except FileNotFoundError:
        return "it is incomplete"
    except (OSError, DamagedFileError):
        return f"{_SEAL} is damaged"
    if not seal.files:
        return f"{_SEAL} lists no files"
    for name, digest in seal.files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if digest_of_file(checkpoint / name) != digest:
            return f"{name} is damaged"
    return ""
