"""Decides which steps of a pipeline must run: new, unfinished and changed steps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen import __version__
from instructgen.commands.generate import configure, read_known, resumable, seeds_for
from instructgen.commands.options import GenerateOptions
from instructgen.config import read_tables
from instructgen.errors import DamagedFileError, InstructgenError, RunError, VersionError
from instructgen.models.folders import EMBEDDED, model_digest
from instructgen.pipeline.forecast import StepForecast, forecast
from instructgen.pipeline.options import with_files
from instructgen.pipeline.records import Fingerprint, PipelineState, StepRecord
from instructgen.pipeline.step import Step
from instructgen.plugins import classes, provenance
from instructgen.store import digest_of, digest_of_file, is_complete, is_run, is_trained, read_file
from instructgen.versions import installed

STATE = "pipeline.json"
_FORMAT = 2
_TRAINED = ("torch", "transformers", "trl", "peft", "accelerate")
_COMPARED = ("sentence-transformers", "datasketch", "rapidfuzz", "py3langid", "phonenumbers")
# Packages whose versions affect the output of a command, in addition to instructgen. Recorded
# completions do not depend on the version of the engine, so an upgrade repeats no request.
_DEPENDS = {
    "train": _TRAINED,
    "ablate": _TRAINED,
    "evaluate": _TRAINED,
    "curate": _COMPARED,
    "dedup": _COMPARED,
}
# Groups of plug-ins that affect the output of a command.
_PLUGGED = {
    "import": ("sources",),
    "generate": ("sources", "engines", "methods", "filters"),
    "curate": ("filters",),
    "dedup": ("sources",),
    "prefer": ("engines", "verifiers"),
    "train": ("sources", "verifiers"),
    "evaluate": ("sources", "suites", "verifiers", "engines"),
    "ablate": ("sources", "suites", "verifiers"),
}
# The extensions of the files that determine the outputs of a model.
_WEIGHTS = (".safetensors", ".json", ".jinja", ".model", ".txt")
_NOT_CONTENT = (
    "training.json", "lock", "rejected.jsonl", "log.jsonl", "log.png", "README.md",
)  # fmt: skip
# Other files of a model that a report shows.
_REPORTED = ("training.json", "log.jsonl")


State = dict[str, StepRecord]


@dataclass(frozen=True, slots=True)
class Planned:
    """The decision about a step: whether and why it runs, and whether in an empty folder."""

    step: Step
    runs: bool
    why: str
    from_scratch: bool
    forecast: StepForecast | None


def plan(steps: Sequence[Step], folder: Path) -> list[Planned]:
    """Return for each step whether it would run if the pipeline were run now.

    Raises:
        RunError: pipeline.json or an input is damaged.
    """
    state, planned_steps = read_state(folder), list[Planned]()
    running: set[str] = set()
    for step in steps:
        after = [name for name in step.follows if name in running]
        planned = decide(step, state)
        if after and not planned.runs:
            why = f"{' and '.join(after)} may change"
            planned = Planned(step, True, why, True, forecast(step, state.get(step.name)))
        if planned.runs:
            running.add(step.name)
        planned_steps.append(planned)
    return planned_steps


def decide(step: Step, state: State) -> Planned:
    """Decide whether a step must run, based on its inputs and output as they are now."""
    record = state.get(step.name)
    if record is None:
        return Planned(step, True, "has not run yet", False, forecast(step, None))
    expected = forecast(step, record)
    changes = list(_changes(record.fingerprint, fingerprint(step)))
    if changes:
        from_scratch = not _resumes(step)
        return Planned(step, True, "; ".join(changes), from_scratch, expected)
    if record.output is None:
        return Planned(step, True, "has not finished", False, expected)
    if output_digest(step.out) != record.output:
        # generate writes the dataset again from the journal in the folder.
        from_scratch = step.command != "generate"
        return Planned(step, True, "its output is missing or was changed", from_scratch, expected)
    return Planned(step, False, "nothing changed", False, None)


def fingerprint(step: Step) -> Fingerprint:
    """Return what determines a step's output: command, options, inputs and software versions."""
    reported = step.command == "report"
    digests = {name: _input_digest(place, reported) for name, place in step.values.items()}
    return Fingerprint(
        run=step.run,
        options=dict(step.options),
        inputs={name: digest for name, digest in digests.items() if digest is not None},
        versions={
            "instructgen": __version__,
            **installed(_DEPENDS.get(step.command, ())),
            **_plugins(step),
        },
    )


def _plugins(step: Step) -> dict[str, str]:
    """Return the code digests of all plug-ins that the step or its recipe may use."""
    plugins = provenance(
        **{group: classes(group).values() for group in _PLUGGED.get(step.command, ())}
    )
    text = orjson.dumps([step.run, dict(step.options)]).decode()
    recipe = step.settings.get("recipe")
    if recipe is not None and Path(recipe).is_file():
        text += orjson.dumps(read_tables(Path(recipe)), default=str).decode()
    return {
        f"plug-in {name}": " ".join(plugin.values())
        for name, plugin in plugins.items()
        # The format of a file is recognized, so any installed format may be used.
        if name.startswith("sources.") or name.partition(".")[2] in text
    }


def _changes(then: Fingerprint, now: Fingerprint) -> Iterable[str]:
    if then.run != now.run:
        yield f"the command is now {now.run!r}"
    tables: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = (
        (then.options, now.options),
        (then.versions, now.versions),
    )
    for was, is_ in tables:
        for key in sorted(was.keys() | is_.keys()):
            if was.get(key) != is_.get(key):
                yield f"{key} {_short(was.get(key))} → {_short(is_.get(key))}"
    for name in sorted(then.inputs.keys() | now.inputs.keys()):
        if then.inputs.get(name) != now.inputs.get(name):
            yield f"{name} changed"


def _short(value: Any) -> str:
    text = "unset" if value is None else orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"


def _resumes(step: Step) -> bool:
    """Return whether the step is `generate`, and can resume the run in its output folder."""
    if step.command != "generate" or not is_run(step.out):
        return False
    try:
        with with_files(step) as options:
            assert isinstance(options, GenerateOptions)
            config = configure(options)
            seeds, _ = seeds_for(options, config)
            return resumable(step.out, config, seeds, read_known(options.novel_against))
    except InstructgenError:
        # The command itself reports the error and does not change the folder.
        return True


def _input_digest(place: str, reported: bool) -> str | None:
    if place == EMBEDDED:
        return model_digest(place)
    path = Path(place).expanduser()
    try:
        if (path / "config.json").is_file() and not is_trained(path):
            return model_digest(str(path))
        return output_digest(path, reported)
    except OSError:
        # A string that cannot be a path.
        return None


def output_digest(path: Path, reported: bool = False) -> str | None:
    """Return a digest of a step's output or input, or None if it is missing or incomplete.

    The digest covers the Parquet files of a dataset, the weights and the configuration of a
    model, or all files of a folder of any other kind.

    Args:
        path: a file or folder.
        reported: whether to include training.json and log.jsonl of a model, which reports show.
    """
    if path.is_file():
        return digest_of_file(path)
    if not path.is_dir():
        return None
    if (path / "manifest.json").is_file():
        try:
            return digest_of(path) if is_complete(path) else None
        except RunError:
            return None
    model = (path / "config.json").is_file()
    digest = hashlib.sha256()
    for file in sorted(_files(path)):
        name = str(file.relative_to(path))
        shown = reported and name in _REPORTED
        if not shown and (name in _NOT_CONTENT or name.startswith((".", "tensorboard"))):
            continue
        if not model or shown or file.suffix in _WEIGHTS:
            digest.update(f"{name}\0{digest_of_file(file)}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in its folders, however deep; follow no links to folders."""
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_file():
                yield path
            elif path.is_dir() and not path.is_symlink():
                waiting.append(path)


def read_state(folder: Path) -> State:
    """Read pipeline.json, and return the last run of each step, keyed by step name.

    Raises:
        DamagedFileError: pipeline.json is damaged.
        VersionError: pipeline.json was written by a different version of instructgen.
    """
    path = folder / STATE
    if not path.exists():
        return {}
    hint = "Restore the file from a copy, or use another --out."
    try:
        state = PipelineState.from_json(read_file(path), path)
    except (OSError, DamagedFileError) as error:
        if isinstance(error, DamagedFileError) and _format_of(path) not in (None, _FORMAT):
            raise VersionError(path, _format_of(path), "Use another --out.") from None
        raise DamagedFileError("the file is damaged.", path=path, hint=hint) from error
    if state.format != _FORMAT:
        raise VersionError(path, state.format, "Use another --out.")
    return state.steps


def _format_of(path: Path) -> object:
    try:
        values = orjson.loads(read_file(path))
    except (OSError, DamagedFileError, orjson.JSONDecodeError):
        return None
    return values.get("format") if isinstance(values, dict) else None


def state_bytes(state: State) -> bytes:
    """Return the content of pipeline.json that stores the last run of each step."""
    return PipelineState(_FORMAT, state).to_json() + b"\n"
