"""What has to be run of a recipe, and why: fingerprints of inputs, options and versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.commands.generate import read_seeds, resumable
from instructgen.config import read_tables
from instructgen.errors import InstructgenError, RunError
from instructgen.models.folders import EMBEDDED, model_digest
from instructgen.pipeline.forecast import StepForecast, forecast
from instructgen.pipeline.options import configured, parameters
from instructgen.pipeline.step import Step
from instructgen.plugins import classes, provenance
from instructgen.store import digest_of, digest_of_file, is_run, is_trained, is_whole
from instructgen.versions import installed

STATE = "pipeline.json"
_FORMAT = 1
_TRAINED = ("torch", "transformers", "trl", "peft", "accelerate")
_COMPARED = ("sentence-transformers", "datasketch", "rapidfuzz", "py3langid", "phonenumbers")
# The packages besides ours whose versions decide what a command makes. Completions that
# are recorded are facts, so that no upgrade of an engine asks for them again.
_DEPENDS = {
    "train": _TRAINED,
    "ablate": _TRAINED,
    "evaluate": _TRAINED,
    "curate": _COMPARED,
    "dedup": _COMPARED,
}
# Whose parts decide what a command makes.
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
# Weights are read where they were trained here; of others sizes and configuration tell.
_WEIGHTS = (".safetensors", ".json", ".jinja", ".model", ".txt")
_NOT_CONTENT = ("run.json", "lock", "left_out.jsonl", "log.jsonl", "log.png", "README.md")
# What a report of a model shows besides.
_TOLD = ("run.json", "log.jsonl")

State = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Planned:
    """A step and its fate: ``why`` it runs, or is skipped; ``anew`` in an empty folder."""

    step: Step
    runs: bool
    why: str
    anew: bool
    forecast: StepForecast | None


def plan(steps: Sequence[Step], folder: Path) -> list[Planned]:
    """Every step's fate, were the recipe run now; nothing is run.

    Raises:
        RunError: the folder's state is damaged, or an input is.
    """
    state, found = read_state(folder), list[Planned]()
    running: set[str] = set()
    for step in steps:
        after = [name for name in step.follows if name in running]
        planned = decide(step, state)
        if after and not planned.runs:
            why = f"{' and '.join(after)} may change"
            planned = Planned(step, True, why, True, forecast(step, state.get(step.name)))
        if planned.runs:
            running.add(step.name)
        found.append(planned)
    return found


def decide(step: Step, state: State) -> Planned:
    """Whether a step has to be run now that those before it are done."""
    known = state.get(step.name)
    if known is None:
        return Planned(step, True, "not run yet", False, forecast(step, None))
    then, now = known["asked"], asked(step)
    expected = forecast(step, known)
    changes = list(_changes(then, now))
    if changes:
        anew = not _goes_on(step)
        return Planned(step, True, "; ".join(changes), anew, expected)
    if known["output"] is None:
        return Planned(step, True, "not finished", False, expected)
    if output_digest(step.out) != known["output"]:
        # A run's dataset is made again from its journal.
        anew = step.command != "generate"
        return Planned(step, True, "its output is gone or changed", anew, expected)
    return Planned(step, False, "nothing changed", False, None)


def asked(step: Step) -> dict[str, Any]:
    """What decides a step's output: its words and options, what these name, and versions."""
    told = step.command == "report"
    digests = {name: _input_digest(place, told) for name, place in step.values.items()}
    return {
        "run": step.run,
        "options": dict(step.options),
        "inputs": {name: digest for name, digest in digests.items() if digest is not None},
        "versions": {
            **installed(("instructgen", *_DEPENDS.get(step.command, ()))),
            **_plugins(step),
        },
    }


def _plugins(step: Step) -> dict[str, str]:
    """The code of every plug-in that the step, or its recipe, may name."""
    found = provenance(
        **{group: classes(group).values() for group in _PLUGGED.get(step.command, ())}
    )
    said = orjson.dumps([step.run, dict(step.options)]).decode()
    recipe = step.params.get("recipe")
    if recipe is not None and Path(recipe).is_file():
        said += orjson.dumps(read_tables(Path(recipe)), default=str).decode()
    return {
        f"plug-in {name}": " ".join(part.values())
        for name, part in found.get("plugins", {}).items()
        # The format of a file need not be named.
        if name.startswith("sources.") or name.partition(".")[2] in said
    }


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    if then["run"] != now["run"]:
        yield f"now {now['run']!r}"
    for table in ("options", "versions"):
        was, is_ = then[table], now[table]
        for key in sorted(was.keys() | is_.keys()):
            if was.get(key) != is_.get(key):
                yield f"{key} {_short(was.get(key))} → {_short(is_.get(key))}"
    for name in sorted(then["inputs"].keys() | now["inputs"].keys()):
        if then["inputs"].get(name) != now["inputs"].get(name):
            yield f"{name} changed"


def _short(value: Any) -> str:
    text = "unset" if value is None else orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"


def _goes_on(step: Step) -> bool:
    """Whether the command takes its old folder further: a journal does, if it is asked the same."""
    if step.command != "generate" or not is_run(step.out):
        return False
    try:
        with parameters(step) as given:
            terms = (given["license"], given["language"], given["on_bad_row"])
            seeds, _ = read_seeds(given["seeds"], *terms)
            return resumable(step.out, configured(given), seeds)
    except InstructgenError:
        # The command itself says what is wrong, and leaves the folder as it is.
        return True


def _input_digest(place: str, told: bool) -> str | None:
    if place == EMBEDDED:
        return model_digest(place)
    path = Path(place).expanduser()
    try:
        if (path / "config.json").is_file() and not is_trained(path):
            return model_digest(str(path))
        return output_digest(path, told)
    except OSError:
        # A text that no path can be.
        return None


def output_digest(path: Path, told: bool = False) -> str | None:
    """A digest of the content of what a step made, or reads; None where nothing whole is there.

    Of a dataset its parts' digests, of a model its weights and configuration, of other
    folders all files.

    Args:
        path: a file or folder.
        told: whether what a model's folder tells of its training counts too.
    """
    if path.is_file():
        return digest_of_file(path)
    if not path.is_dir():
        return None
    if (path / "manifest.json").is_file():
        try:
            return digest_of(path) if is_whole(path) else None
        except RunError:
            return None
    model = (path / "config.json").is_file()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = str(file.relative_to(path))
        tells = told and name in _TOLD
        if not tells and (name in _NOT_CONTENT or name.startswith((".", "tensorboard"))):
            continue
        if not model or tells or file.suffix in _WEIGHTS:
            digest.update(f"{name}\0{digest_of_file(file)}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


def read_state(folder: Path) -> State:
    """What the steps of a recipe's folder were asked, and what came of them, by name.

    Raises:
        RunError: it is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return {}
    try:
        state = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(
            f"{path} cannot be read ({error}).", "Restore it, or give another --out."
        ) from None
    if not _is_state(state):
        raise RunError(f"{path} is damaged.", "Restore it, or give another --out.")
    steps: State = state["steps"]
    return steps


def _is_state(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and state.get("format") == _FORMAT
        and isinstance(state.get("steps"), dict)
        and all(
            isinstance(step, dict)
            and isinstance(step.get("asked"), dict)
            and {"run", "options", "inputs", "versions"} <= step["asked"].keys()
            and "output" in step
            for step in state["steps"].values()
        )
    )


def state_bytes(state: State) -> bytes:
    """The state as pipeline.json holds it."""
    return orjson.dumps({"format": _FORMAT, "steps": state}, option=orjson.OPT_INDENT_2) + b"\n"
