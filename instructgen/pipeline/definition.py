"""Reads and checks a pipeline: a TOML file with steps, each of which runs a command.

The key ``run`` of a step is a command, such as ``"train sft @clean"``, and its other keys are the
options of this command. ``@name`` refers to the output of an earlier step or to an input of the
pipeline. A step can run only commands of instructgen, and no other programs.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, Field, model_validator

from instructgen.cli import cli
from instructgen.cli.flags import OptionsCommand, values_of
from instructgen.commands.interface import Options
from instructgen.commands.options import EvaluateOptions, GenerationOptions
from instructgen.config import load_file
from instructgen.errors import ConfigError, quoted
from instructgen.models.folders import EMBEDDED
from instructgen.pipeline.options import check_recipe
from instructgen.pipeline.step import Step
from instructgen.plugins import suggest
from instructgen.resources import shipped

# The option for the output of each command, and the suffix of the output if it is a file.
OUTPUTS = {
    "import": ("--out", ""),
    "generate": ("--out", ""),
    "merge": ("--out", ""),
    "curate": ("--out", ""),
    "dedup": ("--out", ""),
    "prefer": ("--out", ""),
    "train": ("--out", ""),
    "evaluate": ("--out", ""),
    "ablate": ("--out", ""),
    "report": ("--out", ".html"),
    "export": ("--to", ".jsonl"),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NAMES = "Use lower-case letters, digits, - and _."
# Names in the output folder that steps must not use.
_RESERVED = ("replaced", "options", "lock")
# Options whose values may be paths or models, although their type is not Path.
_PLACES = ("model", "against", "judge", "score", "reward", "recipe")
# A reference to a step or an input, such as "@rm" or "judge:@rm".
_REFERENCE = re.compile(r"(?:[a-z]+:)?@([a-z0-9][a-z0-9_-]{0,63})")
# The limits of Linux for the bytes of one argument of a process (MAX_ARG_STRLEN) and, with some
# room for the environment, of all its arguments.
_LONGEST_WORD, _LONGEST_LINE = 2**17, 2**20


class Input(BaseModel):
    """An input of a pipeline. At most one of ``file``, ``hub`` and ``shipped`` is set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    file: str | None = Field(
        None, description="Path of a file, relative to the folder of the pipeline file."
    )
    hub: str | None = Field(
        None, description="Name of a dataset on the Hugging Face Hub (ORG/NAME)."
    )
    shipped: str | None = Field(
        None, description="File that is included in instructgen, such as seeds/general.jsonl."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Input:
        places = [k for k in ("file", "hub", "shipped") if getattr(self, k) is not None]
        if len(places) > 1:
            raise ValueError(f"{' and '.join(places)} are set, but only one of them is allowed")
        return self

    def place(self, folder: Path) -> str | None:
        """Return the path or Hub name of the input, or None if --input=NAME=PATH is required."""
        if self.shipped is not None:
            top, _, name = self.shipped.partition("/")
            return str(shipped(top) / name)
        return self.hub if self.file is None else str(folder / self.file)


class _Step(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    run: str
    small: dict[str, Any] = Field(
        default_factory=dict,
        description="Options that replace the step's options of the same names if --small is set.",
    )


class Pipeline(BaseModel):
    """The contents of a pipeline file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    inputs: dict[str, Input] = Field(default_factory=dict)
    steps: list[_Step] = Field(min_length=1)


def pipeline_path(pipeline: str) -> Path:
    """Return the path of a pipeline file; ``pipeline`` is a path or a built-in pipeline's name.

    Raises:
        ConfigError: the pipeline does not exist.
    """
    path = Path(pipeline)
    if path.suffix == ".toml" or "/" in pipeline:
        if not path.is_file():
            raise ConfigError(f"{pipeline}: the file does not exist.", "Check the path.")
        return path
    known = shipped_pipelines()
    if pipeline not in known:
        raise ConfigError(
            f"{pipeline!r} is not the name of a built-in pipeline.", suggest(pipeline, list(known))
        )
    return known[pipeline]


def shipped_pipelines() -> dict[str, Path]:
    """Return the files of the built-in pipelines as a dict keyed by name."""
    folder = Path(__file__).parent / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_steps(
    pipeline: str,
    out: Path,
    inputs: Mapping[str, str],
    *,
    small: bool,
) -> list[Step]:
    """Read the steps of a pipeline, and check all of them before the first one runs.

    Args:
        pipeline: a path, or the name of a built-in pipeline.
        out: the folder for the outputs of all steps.
        inputs: paths by input name, which replace the paths in the pipeline file.
        small: whether a step's options in its table ``small`` replace those with the same names.

    Raises:
        ConfigError: the pipeline, a step or an input is invalid; the message states which.
    """
    path = pipeline_path(pipeline)
    definition = load_file(Pipeline, path)
    if small and not any(each.small for each in definition.steps):
        raise ConfigError(f"{path}: no step has options in the table small.", "Omit --small.")
    places = _places(path, definition.inputs, inputs)
    steps: list[Step] = []
    for number, each in enumerate(definition.steps, start=1):
        where = f"{path}: steps {number} ({each.name})"
        if not _NAME.fullmatch(each.name) or each.name in _RESERVED:
            raise ConfigError(
                f"{where}: the name of the step is invalid.",
                f"{_NAMES} The names {', '.join(_RESERVED)} are reserved.",
            )
        if each.name in places:
            kind = "an input" if each.name in definition.inputs else "an earlier step"
            raise ConfigError(f"{where}: {kind} already has this name.", "Use a different name.")
        options = {**(each.model_extra or {}), **(each.small if small else {})}
        step = _step(each.name, each.run, options, places, out, where)
        check_recipe(step, where)
        steps.append(step)
        places[each.name] = str(step.out)
    return steps


def _check_command_line_only(options: Options, where: str) -> None:
    """Reject options that are unsafe in a pipeline that was written by another person."""
    names = [name for name in type(options).model_fields if name.endswith("endpoint")]
    given = [name for name in names if getattr(options, name)]
    if isinstance(options, GenerationOptions):
        given += [key for key in options.settings if key.endswith("endpoint")]
    if given:
        # The API key is sent to the endpoint.
        raise ConfigError(
            f"{where}: {given[0]}: this option is not allowed in a pipeline, because the API key "
            "is sent to the endpoint.",
            "Remove the option, and set the environment variable OPENAI_BASE_URL.",
        )
    if getattr(options, "ray", None) not in (None, "auto"):
        # The nodes of a cluster run code, and send objects that can run code here.
        raise ConfigError(
            f"{where}: ray: a pipeline must not name a Ray cluster.",
            'Write ray = "auto", and set the environment variable RAY_ADDRESS.',
        )
    if getattr(options, "environment", None) is not None:
        raise ConfigError(
            f"{where}: environment: not allowed in a pipeline, because it executes a file.",
            "Pass --plugin=FILE to instructgen run, and name the environment in the step: "
            'set = { "method.environment" = "NAME" }.',
        )
    if isinstance(options, EvaluateOptions) and "lm-eval.include_path" in options.settings:
        # Tasks of lm-eval may name functions in other files, which lm-eval then runs.
        raise ConfigError(
            f"{where}: lm-eval.include_path: this option is not allowed in a pipeline, because the "
            "files in this folder can run code.",
            "Remove the option, or run instructgen evaluate on the command line.",
        )


def _parsed(argv: Sequence[str], where: str) -> Options:
    """Parse the arguments of a command without running it."""
    command = cli.commands[argv[0]]
    assert isinstance(command, OptionsCommand) and command.options is not None
    try:
        with command.make_context(argv[0], list(argv[1:])) as context:
            return command.options.checked(values_of(command.options, context.params))
    except click.exceptions.Exit:
        raise ConfigError(f"{where}: --help does nothing in a pipeline.", "Remove it.") from None
    except click.UsageError as error:
        raise ConfigError(f"{where}: {error.format_message()}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _paths(options: Options) -> set[str]:
    """Return the paths among the values of the options, as strings."""
    values = [getattr(options, name) for name in type(options).model_fields]
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return {str(value) for value in flat if isinstance(value, Path)}


def _places(path: Path, known: Mapping[str, Input], paths: Mapping[str, str]) -> dict[str, str]:
    for name in known:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: inputs.{name}: the name of the input is invalid.", _NAMES)
    for name in paths:
        if name not in known:
            raise ConfigError(
                f"--input={name}: {path.name} has no input with this name.", suggest(name, [*known])
            )
    places = {}
    for name, each in known.items():
        place = paths.get(name, each.place(path.parent))
        if place is None:
            about = f" ({each.about})" if each.about else ""
            raise ConfigError(
                f"{path.name} requires the input {name}{about}.", f"Pass --input {name}=PATH."
            )
        places[name] = place
    return places


def _step(
    name: str,
    run: str,
    options: Mapping[str, Any],
    places: Mapping[str, str],
    out: Path,
    where: str,
) -> Step:
    def resolved(value: str) -> str:
        match = _REFERENCE.fullmatch(value)
        if match is None:
            if value.startswith("@"):
                raise ConfigError(
                    f"{where}: {value}: the name of the step or input is invalid.", _NAMES
                )
            return value
        if match[1] not in places:
            raise ConfigError(
                f"{where}: {value} refers neither to an earlier step nor to an input.",
                suggest(match[1], list(places)),
            )
        return value.replace(f"@{match[1]}", places[match[1]])

    command, words = _words(run, options, where)
    flag, ending = OUTPUTS[command]
    target = out / f"{name}{ending}"
    argv = [command]
    files: dict[Path, str] = {}
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if option == flag:
            raise ConfigError(f"{where}: {key}: instructgen run sets this option.", "Remove it.")
        if key == "recipe" and isinstance(value, dict):
            file = out / "options" / f"{name}.toml"
            files[file] = _toml(value)
            argv.append(f"{option}={file}")
        else:
            argv += _typed(option, key, value, resolved, where)
    # What follows -- is never an option, also not the path of an input that begins with a dash.
    argv += [f"{flag}={target}", "--", *map(resolved, words)]
    _check_words(argv, where)
    if any(word.startswith("--plugin") for word in argv):
        # The file would run code that the author of the pipeline chose.
        raise ConfigError(
            f"{where}: plugin: not allowed in a pipeline, because this option executes a file.",
            "Pass --plugin=FILE to instructgen run.",
        )
    parsed = _parsed(argv, where)
    if getattr(parsed, flag.removeprefix("--")) != target:
        raise ConfigError(f"{where}: the step would write to another place.", "Check its options.")
    _check_command_line_only(parsed, where)
    texts = [*words, *_texts(options)]
    named = {m[1] for text in texts if (m := _REFERENCE.fullmatch(text))}
    return Step(
        name=name,
        run=run,
        options=dict(options),
        argv=tuple(argv),
        out=target,
        parsed=parsed,
        values=_read(texts, places, parsed, options),
        follows=tuple(place for place in places if place in named),
        files=files,
    )


def _check_words(argv: Sequence[str], where: str) -> None:
    """Raise ConfigError if a process cannot be started with these arguments."""
    sizes = [len(os.fsencode(word)) for word in argv]
    if max(sizes) >= _LONGEST_WORD or sum(sizes) >= _LONGEST_LINE:
        raise ConfigError(f"{where}: an option is too long for a command.", "Shorten its value.")
    for word in argv:
        if "\0" in word:
            raise ConfigError(
                f"{where}: {quoted(word)} contains a zero byte.", "Remove the character."
            )


def _words(run: str, options: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """Return the command of a step, and the arguments that follow it in the key ``run``."""
    try:
        command, *words = shlex.split(run)
    except ValueError as error:
        raise ConfigError(
            f"{where}: run: the command is empty or invalid ({error}).",
            'Write a command, such as "merge @a @b".',
        ) from None
    if command not in OUTPUTS:
        raise ConfigError(
            f"{where}: a step cannot run the command {command!r}.", suggest(command, list(OUTPUTS))
        )
    for word in words:
        if word.startswith("-"):
            raise ConfigError(
                f"{where}: run: {word} is not an argument of the command.",
                "Write an option as a key of the step.",
            )
    if options.get("help"):
        raise ConfigError(f"{where}: help does nothing in a pipeline.", "Remove it.")
    return command, words


def _read(
    texts: Sequence[str],
    places: Mapping[str, str],
    parsed: Options,
    options: Mapping[str, Any],
) -> dict[str, str]:
    """Return a dict from the texts that name inputs of a step to their paths or model names."""
    referred = {
        text: places[m[1]] if (m := _REFERENCE.fullmatch(text)) else text.split(":", 1)[-1]
        for text in texts
    }
    paths = _paths(parsed)
    paths |= {text for key in _PLACES for text in _texts({key: options.get(key)})}
    return {
        text: place
        for text, place in referred.items()
        if "@" in text or paths & {text, place, str(Path(place))} or place == EMBEDDED
    }


def _typed(
    option: str, key: str, value: Any, resolved: Callable[[str], str], where: str
) -> list[str]:
    """Return an option of a step as command-line arguments, with references resolved."""
    if key == "set" and isinstance(value, dict):
        texts = {k: _toml({"v": v}).removeprefix("v = ").strip() for k, v in value.items()}
        return [f"{option}={k}={v}" for k, v in texts.items()]
    if key == "map" and isinstance(value, dict):
        return [f"{option}={k}={v}" for k, v in value.items()]
    if isinstance(value, dict):
        raise ConfigError(
            f"{where}: {key}: the value must not be a TOML table.",
            "Only the options recipe, set and map can be tables.",
        )
    if isinstance(value, bool):
        return [option] if value else []
    values = value if isinstance(value, list) else [value]
    return [f"{option}={resolved(str(v))}" for v in values]


def _toml(table: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(table)


def _texts(options: Mapping[str, Any]) -> list[str]:
    texts: list[str] = []
    for value in options.values():
        texts += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    return texts
