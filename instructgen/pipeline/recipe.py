"""Recipes of the whole way from seeds to a model: steps, each a command with its options.

A recipe is TOML. A step says what one would type, ``run = "train sft @clean"``, and its
options as keys; ``@name`` is the output of an earlier step or one of the recipe's inputs.
It is data: a step can run a command of ours and nothing else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, Field, model_validator

from instructgen.cli import cli
from instructgen.config import load_whole
from instructgen.errors import ConfigError
from instructgen.models.folders import EMBEDDED
from instructgen.pipeline.options import check_options
from instructgen.pipeline.step import Step
from instructgen.plugins import suggest
from instructgen.resources import shipped

# What a step's output is called by the commands, and the end of its name where it is a file.
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
# What the recipe's folder holds besides what its steps make.
_OURS = ("replaced", "options", "lock")
# Options that may name a file or a model, and are no paths to the commands' parsers.
_PLACES = ("model", "against", "judge", "score", "reward", "recipe")
# As in "@rm", and in "judge:@rm".
_REFERENCE = re.compile(r"(?:[a-z]+:)?@([a-z0-9][a-z0-9_-]{0,63})")


class Input(BaseModel):
    """A file or dataset that a recipe begins with; one of the three may say where it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    file: str | None = Field(None, description="a path, from the recipe's folder")
    hub: str | None = Field(None, description="ORG/NAME of the Hub")
    shipped: str | None = Field(None, description="a file that travels with the package")

    @model_validator(mode="after")
    def _one_place(self) -> Input:
        said = [k for k in ("file", "hub", "shipped") if getattr(self, k) is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} both say where it is; leave one")
        return self

    def place(self, folder: Path) -> str | None:
        """The path or Hub name; None where the user has to say it."""
        if self.shipped is not None:
            top, _, name = self.shipped.partition("/")
            return str(shipped(top) / name)
        return self.hub if self.file is None else str(folder / self.file)


class _Step(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    run: str
    small: dict[str, Any] = Field(default_factory=dict, description="what --limit puts over it")


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    inputs: dict[str, Input] = Field(default_factory=dict)
    steps: list[_Step] = Field(min_length=1)


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises:
        ConfigError: there is no such recipe.
    """
    path = Path(recipe)
    if path.suffix == ".toml" or "/" in recipe:
        if not path.is_file():
            raise ConfigError(f"{recipe}: no such recipe.", "Check the path.")
        return path
    known = shipped_recipes()
    if recipe not in known:
        raise ConfigError(f"{recipe!r} is no recipe.", suggest(recipe, list(known)))
    return known[recipe]


def shipped_recipes() -> dict[str, Path]:
    """The recipes that travel with the package, by name."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_steps(
    recipe: str,
    out: Path,
    given: Mapping[str, str],
    *,
    limit: bool,
) -> list[Step]:
    """The steps of a recipe, all of them checked before the first is run.

    Args:
        recipe: a path, or a shipped name.
        out: the folder that holds every step's output.
        given: the recipe's inputs that are elsewhere than it says, by name.
        limit: whether each step's table ``small`` is put over its options.

    Raises:
        ConfigError: the recipe, a step or an input is bad; the line names it.
    """
    path = recipe_path(recipe)
    made = load_whole(_Recipe, path)
    if limit and not any(each.small for each in made.steps):
        raise ConfigError(f"{path} has no small form.", "Leave --limit out.")
    places = _places(path, made.inputs, given)
    steps: list[Step] = []
    for number, each in enumerate(made.steps, start=1):
        where = f"{path}: steps {number} ({each.name})"
        if not _NAME.fullmatch(each.name) or each.name in _OURS:
            raise ConfigError(
                f"{where}: not a name for a step.",
                f"{_NAMES[:-1]}, and not {' or '.join(_OURS)}.",
            )
        if each.name in places:
            kind = "an input" if each.name in made.inputs else "an earlier step"
            raise ConfigError(f"{where}: {kind} has this name.", "Give it another.")
        options = {**(each.model_extra or {}), **(each.small if limit else {})}
        step = _step(each.name, each.run, options, places, out, where)
        params = _parsed(step.argv, where)
        _check_typed(params, where)
        paths = _paths(step.command, params)
        paths |= {text for key in _PLACES for text in _texts({key: options.get(key)})}
        read = {
            text: place
            for text, place in step.values.items()
            if "@" in text or text in paths or place in paths or place == EMBEDDED
        }
        step = replace(step, values=read, params=params)
        check_options(step, where)
        steps.append(step)
        places[each.name] = str(step.out)
    return steps


def _check_typed(params: Mapping[str, Any], where: str) -> None:
    """Refuse what only the user may say, since a recipe is data of others."""
    if params.get("endpoint"):
        # The key goes where this leads.
        raise ConfigError(
            f"{where}: endpoint: a recipe cannot set it.", "Leave it out, and set OPENAI_BASE_URL."
        )
    if "lm-eval.include_path" in (params.get("settings") or {}):
        # Tasks of lm-eval may name functions of files beside them, which then run.
        raise ConfigError(
            f"{where}: lm-eval.include_path: a recipe cannot set it.",
            "Run instructgen evaluate by hand.",
        )


def _parsed(argv: Sequence[str], where: str) -> dict[str, Any]:
    """Let the command itself parse its arguments, and run nothing."""
    try:
        with cli.commands[argv[0]].make_context(argv[0], list(argv[1:])) as context:
            return dict(context.params)
    except click.UsageError as error:
        raise ConfigError(f"{where}: {error.format_message()}") from None


def _paths(command: str, given: Mapping[str, Any]) -> set[str]:
    """The parameters that are paths."""
    found = set()
    for param in cli.commands[command].params:
        if isinstance(param.type, click.Path) and (value := given[str(param.name)]) is not None:
            found |= set(map(str, value if isinstance(value, tuple) else [value]))
    if command == "import":
        # Before it may stand the format's name.
        found.add(given["source_and_path"][-1])
    return found


def _places(path: Path, inputs: Mapping[str, Input], given: Mapping[str, str]) -> dict[str, str]:
    for name in inputs:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: inputs.{name}: not a name for an input.", _NAMES)
    for name in given:
        if name not in inputs:
            raise ConfigError(f"--input {name}: no input of {path.name}.", suggest(name, [*inputs]))
    found = {}
    for name, each in inputs.items():
        place = given.get(name, each.place(path.parent))
        if place is None:
            about = f" ({each.about})" if each.about else ""
            raise ConfigError(
                f"{path.name} needs its input {name}{about}.", f"Give --input {name}=PATH."
            )
        found[name] = place
    return found


def _step(
    name: str,
    run: str,
    options: Mapping[str, Any],
    places: Mapping[str, str],
    out: Path,
    where: str,
) -> Step:
    def resolved(value: str) -> str:
        found = _REFERENCE.fullmatch(value)
        if found is None:
            if value.startswith("@"):
                raise ConfigError(f"{where}: {value}: not a name for a step or an input.", _NAMES)
            return value
        if found[1] not in places:
            raise ConfigError(
                f"{where}: {value} is no earlier step and no input.",
                suggest(found[1], list(places)),
            )
        return value.replace(f"@{found[1]}", places[found[1]])

    try:
        command, *words = shlex.split(run)
    except ValueError as error:
        raise ConfigError(f"{where}: run: {error or 'empty'}.", 'As in "merge @a @b".') from None
    if command not in OUTPUTS:
        raise ConfigError(f"{where}: {command!r} is no step.", suggest(command, list(OUTPUTS)))
    if options.get("help") or {"--help", "-h"} & set(words):
        raise ConfigError(f"{where}: it asks for help and does nothing.", "Leave it out.")
    flag, ending = OUTPUTS[command]
    target = out / f"{name}{ending}"
    argv = [command, *map(resolved, words)]
    files: dict[Path, str] = {}
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if option == flag:
            raise ConfigError(f"{where}: {key}: each step has its own.", "Leave it out.")
        if key == "recipe" and isinstance(value, dict):
            file = out / "options" / f"{name}.toml"
            files[file] = _toml(value)
            argv.append(f"{option}={file}")
        else:
            argv += _typed(option, key, value, resolved, where)
    texts = [*words, *_texts(options)]
    named = {m[1] for text in texts if (m := _REFERENCE.fullmatch(text))}
    return Step(
        name=name,
        run=run,
        options=dict(options),
        argv=(*argv, f"{flag}={target}"),
        out=target,
        values={
            text: places[m[1]] if (m := _REFERENCE.fullmatch(text)) else text.split(":", 1)[-1]
            for text in texts
        },
        follows=tuple(place for place in places if place in named),
        files=files,
    )


def _typed(
    option: str, key: str, value: Any, resolved: Callable[[str], str], where: str
) -> list[str]:
    """An option of a step as one would type it."""
    if key == "set" and isinstance(value, dict):
        told = {k: _toml({"v": v}).removeprefix("v = ").strip() for k, v in value.items()}
        return [f"{option}={k}={v}" for k, v in told.items()]
    if key == "map" and isinstance(value, dict):
        return [f"{option}={k}={v}" for k, v in value.items()]
    if isinstance(value, dict):
        raise ConfigError(f"{where}: {key}: a table.", "Only recipe, set and map are tables.")
    if isinstance(value, bool):
        return [option] if value else []
    values = value if isinstance(value, list) else [value]
    return [f"{option}={resolved(str(v))}" for v in values]


def _toml(table: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(table)


def _texts(options: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for value in options.values():
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    return found
