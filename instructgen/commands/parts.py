"""Describes the installed filters, formats, engines, methods, verifiers, suites and trainers.

The descriptions are derived from the classes. They are shown by commands such as
`instructgen filters`, and in docs/parts.md.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from instructgen.commands.interface import bounds_of, sentence
from instructgen.errors import ConfigError
from instructgen.plugins import classes, find, suggest
from instructgen.training.options import ONLINE, OPTIONS

# The group of plug-ins that each command describes; trainers are not plug-ins.
GROUPS = {
    "filters": "filters",
    "methods": "methods",
    "engines": "engines",
    "formats": "sources",
    "verifiers": "verifiers",
    "suites": "suites",
    "trainers": "",
}
# The table of a recipe that selects a filter, method, engine or trainer, by group.
_TABLES = {
    "filters": "[[filters]]",
    "engines": "[engine]",
    "trainers": "[train]",
}
# The option with the seeds of a method, by what it starts from.
_SEEDS_OF = {
    "tasks": " --seeds seeds/general.jsonl",
    "rows": " --seeds data/mix",
    "documents": " --seeds seeds/passages.jsonl",
    "segments": " --documents data/handbook",
    "tool_tasks": " --seeds tasks.jsonl --tools tools.json --environment desk.py",
    "snippets": " --seeds snippets/ --license MIT",
    "personas": " --personas seeds/personas.jsonl",
    "nothing": "",
}
# The maximum number of options in an example.
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class OptionDescription:
    """An option: its name, type, default (empty if required) and description."""

    name: str
    type: str
    default: str
    about: str


@dataclass(frozen=True, slots=True)
class PartDescription:
    """The description of a filter, engine, trainer or similar, with options and an example.

    ``row`` is an example of a row as JSON, if the part is a format. ``stages`` states what a method
    starts from, and its stages with those that the judge answers.
    """

    name: str
    about: str
    options: tuple[OptionDescription, ...]
    example: str
    row: str = ""
    stages: str = ""


def describe_parts(group: str) -> list[PartDescription]:
    """Return the descriptions of all members of a group, such as all filters."""
    if group == "trainers":
        return [_trainer(name) for name in OPTIONS]
    return [_description(group, cls) for cls in classes(GROUPS[group]).values()]


def describe_part(group: str, name: str) -> PartDescription:
    """Return the description of one member of a group, such as one filter.

    Raises:
        ConfigError: the name is unknown; the message suggests the most similar name.
    """
    if group == "trainers":
        if name not in OPTIONS:
            raise ConfigError(f"unknown trainer {name!r}.", suggest(name, list(OPTIONS)))
        return _trainer(name)
    return _description(group, find(GROUPS[group], name))


def _trainer(name: str) -> PartDescription:
    cls = OPTIONS[name]
    options = tuple(_option(key, field) for key, field in cls.model_fields.items())
    reward = " --reward verifiers:ifeval,math" if name in ONLINE else ""
    example = f"instructgen train {name} data/clean{reward} --out models/{name}"
    return PartDescription(name, _plain(inspect.cleandoc(cls.__doc__ or "")), options, example)


def _description(group: str, cls: Any) -> PartDescription:
    about = inspect.cleandoc(cls.__doc__ or "")
    if group == "formats":
        row = json.dumps(cls.example, ensure_ascii=False)
        options = _format_options(cls)
        return PartDescription(cls.name, _plain(about), options, _import_example(cls), row)
    options = tuple(_option(name, field) for name, field in cls.model_fields.items())
    stages = _stages(cls) if group == "methods" else ""
    return PartDescription(cls.name, _plain(about), options, _example(group, cls), stages=stages)


def _stages(cls: Any) -> str:
    stages = [s.name if s.role == "writer" else f"{s.name} ({s.role})" for s in cls.stages]
    return f"starts from {cls.starts_from}; stages: {', '.join(stages)}"


def _plain(text: str) -> str:
    """Return a docstring without the sections about arguments and errors."""
    for section in ("Args:", "Attributes:", "Raises:", "Returns:"):
        text = text.partition(f"\n{section}")[0]
    return text.strip()


def _option(name: str, field: FieldInfo) -> OptionDescription:
    bounds = bounds_of(field)
    kind = type_name(field.annotation) + (f", {bounds}" if bounds else "")
    default = (
        "" if field.is_required() else _toml_value(field.get_default(call_default_factory=True))
    )
    return OptionDescription(name, kind, default, sentence(field.description or ""))


def type_name(annotation: Any) -> str:
    """Return a description of a type annotation, such as ``integer`` or ``"keep" or "mask"``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(type_name(a) for a in inner if a is not type(None))
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in inner)
    if origin in (tuple, list):
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return f"table of {type_name(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    known = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return known.get(annotation, "text")


def _toml_value(value: Any) -> str:
    import tomli_w

    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip().replace("\n", " ")


def _example(group: str, cls: Any) -> str:
    """Return an example of the recipe table or the command that selects the class."""
    values = {
        name: field.examples[0] if field.examples else field.get_default(call_default_factory=True)
        for name, field in cls.model_fields.items()
        if field.examples or not field.is_required()
    }
    scalars = {k: v for k, v in values.items() if isinstance(v, str | int | float) and v != ""}
    shown = dict([*scalars.items()][:_SHOWN])
    if group == "suites":
        first = next(iter(shown.items()), None)
        extra = "" if first is None else f" --set {cls.name}.{first[0]}={_toml_value(first[1])}"
        return f"instructgen evaluate models/sft --data data/mix --suite {cls.name}{extra}"
    if group == "methods":
        seeds = _SEEDS_OF[cls.starts_from]
        return f"instructgen generate --method {cls.name}{seeds} --target 500 --out runs/{cls.name}"
    if group == "verifiers":
        return f"instructgen train grpo data/prompts --reward verifiers:{cls.name} --out models/rl"
    lines = [_TABLES[group], f'name = "{cls.name}"']
    return "\n".join([*lines, *(f"{k} = {_toml_value(v)}" for k, v in shown.items())])


def _format_options(cls: Any) -> tuple[OptionDescription, ...]:
    fields = ", ".join(sorted(cls.fields)) or "any fields, assigned by --map"
    options = [OptionDescription("fields", "read", "", f"Fields of a row in the file: {fields}.")]
    if len(cls.shapes) > 1:
        shapes = " or ".join(f'"{shape}"' for shape in cls.shapes)
        options.append(
            OptionDescription("--as", shapes, f'"{cls.shapes[0]}"', "Kind of rows to import.")
        )
    if cls.takes:
        takes = " or ".join(f'"{take}"' for take in cls.takes)
        options.append(
            OptionDescription("--take", takes, f'"{cls.takes[0]}"', "Which rows to import.")
        )
    return tuple(options)


def _import_example(cls: Any) -> str:
    if not cls.fields:
        return (
            "instructgen import faq.csv --map instruction=question --map output=answer "
            "--license CC-BY-4.0 --out data/faq"
        )
    license = "" if cls.license else " --license CC-BY-4.0"
    return f"instructgen import {cls.name} rows.jsonl{license} --out data/{cls.name}"
