"""Reads and validates recipes: converts TOML tables to typed settings and reports invalid keys.

A recipe is a TOML file with settings. Nothing in a recipe is executed: the names of plug-ins in it
are only looked up among the installed plug-ins. The allowed tables and keys are defined
in the modules that use them.
"""

from __future__ import annotations

import math
import os
import re
import stat
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from instructgen.errors import ConfigError, first_line, quoted
from instructgen.plugins import suggest
from instructgen.resources import shipped

M = TypeVar("M", bound=BaseModel)
_MAX_BYTES = 2**20
_MAX_DEPTH = 32
# A key of very many parts, for which tomllib needs quadratic time.
_DEEP_KEY = re.compile(rb"(?<![\w-])(?:(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100,}")


def load_table(model: type[M], recipe: str | None, table: str, options: dict[str, Any]) -> M:
    """Return the settings in one TOML table of a recipe, overridden by options that were passed.

    Args:
        model: the pydantic model that defines the keys.
        recipe: the path of the recipe; None if there are only options.
        table: the name of the table, the only one that the recipe may contain.
        options: values that override those of the table, by key; a value of None is ignored.

    Raises:
        ConfigError: if the file or a key is invalid, with one line per invalid key.
    """
    path = Path(recipe or "options")
    tables = read_tables(path) if recipe is not None else {}
    check_tables(tables, (table,), path)
    values = tables.get(table, {})
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: {table} is not a TOML table.", f"Write [{table}] above its keys."
        )
    return merged(model, values, options, path, table)


def load_file(model: type[M], path: Path) -> M:
    """Read a TOML file, and validate its tables with the pydantic model ``model``.

    Raises:
        ConfigError: if the file or a key is invalid, with one line per invalid key.
    """
    return build(model, read_tables(path), path, "")


def check_tables(tables: dict[str, Any], known: Sequence[str], path: Path) -> None:
    """Check that every TOML table in a file has one of the names in ``known``.

    Raises:
        ConfigError: if a table name is unknown; the message suggests the most similar name.
    """
    if unknown := sorted(tables.keys() - set(known)):
        raise ConfigError(f"{path}: {unknown[0]}: unknown table.", suggest(unknown[0], [*known]))


def recipe_path(recipe: str) -> Path:
    """Return the path of a recipe; ``recipe`` is this path, or the name of an included recipe.

    Raises:
        ConfigError: if the recipe does not exist.
    """
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        return path
    names = [p.stem for p in shipped("filters").glob("*.toml")]
    if recipe not in names:
        raise ConfigError(
            f"--recipe={recipe}: no file and no included recipe has this name.",
            suggest(recipe, names),
        )
    return shipped("filters") / f"{recipe}.toml"


def read_small(path: Path) -> bytes:
    """Return the contents of a file of settings or of a description, which is never large.

    Raises:
        ConfigError: the file is missing, cannot be read, is a pipe or a device, or is longer than
            1 MiB.
    """
    try:
        # Opening a pipe that nobody writes to would never end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            regular = stat.S_ISREG(os.fstat(handle).st_mode)
            data = file.read(_MAX_BYTES + 1) if regular else b""
    except FileNotFoundError:
        raise ConfigError(f"{path}: the file does not exist.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the file cannot be read ({error}).", "Check the path."
        ) from error
    if not regular:
        raise ConfigError(f"{path}: it is not a file.", "Pass a file.")
    if len(data) > _MAX_BYTES:
        raise ConfigError(
            f"{path}: the file is longer than {_MAX_BYTES // 2**20} MiB.", "Pass a smaller file."
        )
    return data


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: if the file is missing, cannot be read, or is not valid TOML.
    """
    data = read_small(path)
    try:
        return parse_toml(data)
    except ValueError as error:
        raise ConfigError(
            f"{path}: the file is not valid TOML: {first_line(error)}.", "Correct the file."
        ) from error


def parse_toml(data: bytes) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: the text is not valid TOML, or tables or lists are nested too deep.
    """
    too_deep = ValueError(f"tables or lists are nested deeper than {_MAX_DEPTH} levels")
    if _DEEP_KEY.search(data) is not None:
        raise too_deep
    try:
        # A number with very many digits is a ValueError too.
        tables = tomllib.loads(data.decode())
    except RecursionError:
        raise too_deep from None
    if is_deeper(tables, _MAX_DEPTH):
        raise too_deep
    return tables


def is_deeper(value: Any, most: int) -> bool:
    """Return whether lists and dicts are nested deeper than ``most`` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def merged(
    model: type[M],
    values: dict[str, Any],
    options: dict[str, Any],
    path: Path,
    table: str,
    settings: Set[str] = frozenset(),
) -> M:
    """Validate a table and the options that override it, and return the combined settings.

    An option that is a dict, such as ``{"max_tokens": 100}`` for ``answers``, changes only these
    keys of a table in the table. Errors name the option --set for the keys in ``settings``, as
    ``table.key``, and a flag of their own for the others.
    """
    for key, field in model.model_fields.items():
        extra = field.json_schema_extra
        if key in values and isinstance(extra, dict) and extra.get("command_line_only"):
            raise ConfigError(
                f"{path}: {table}.{key}: for security, this key is not allowed in recipes, because "
                "recipes may come from other people.",
                f"Delete the key, and pass --{key.replace('_', '-')} on the command line.",
            )
    overrides = {k: _completed(model, values, k, v) for k, v in options.items() if v is not None}
    # An invalid value in the recipe is an error even if an option overrides it.
    build(model, {**overrides, **values}, path, table, options.keys() - values.keys(), settings)
    return build(model, {**values, **overrides}, path, table, options.keys(), settings)


def _completed(model: type[BaseModel], values: dict[str, Any], key: str, value: Any) -> Any:
    """Return an option's value, with the other keys of the table that it is a part of."""
    field = model.model_fields.get(key)
    if not isinstance(value, dict) or field is None or not isinstance(field.default, BaseModel):
        return value
    before = values.get(key)
    return {**(before if isinstance(before, dict) else field.default.model_dump()), **value}


def build(
    model: type[M],
    values: dict[str, Any],
    path: Path,
    table: str,
    options: Set[str] = frozenset(),
    settings: Set[str] = frozenset(),
) -> M:
    """Validate the values of a TOML table, and build a pydantic model from them.

    Args:
        model: the class of the pydantic model.
        values: the values by key.
        path: the file of the table, for error messages.
        table: the name of the table, for error messages.
        options: keys that flags may have set; error messages name these flags.
        settings: those that --set has set, as ``table.key``.

    Raises:
        ConfigError: if a key or value is invalid, with one line per invalid key.
    """
    try:
        built = model.model_validate(values)
    except ValidationError as error:
        lines = [_line(e, model, path, table, options, settings) for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    _check_numbers(values, path, table)
    return built


def _check_numbers(value: Any, path: Path, where: str) -> None:
    """Raise ConfigError if a value contains a number that JSON or Parquet files cannot store."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, path, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_numbers(inner, path, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"{path}: {where}: {value} is not a finite number.", "Use a finite number."
        )
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{path}: {where}: the number is too large.", "Use a smaller number.")


def _line(
    error: Any,
    model: type[BaseModel],
    path: Path,
    table: str,
    options: Set[str],
    settings: Set[str],
) -> str:
    """Return one line about a validation error; see `build`."""
    *outer, last = error["loc"] or ("",)
    # Positions in a list are counted from one.
    key = ".".join(str(p + 1 if isinstance(p, int) else p) for p in error["loc"])
    where = f"{path}: {'.'.join(filter(None, (table, key)))}"
    flag = f"--{key.replace('_', '-')}"
    if (outer[:1] and f"{table}.{outer[0]}" in settings) or f"{table}.{key}" in settings:
        where = flag = f"--set={table}.{key}"
    if error["type"] == "extra_forbidden" and key in options and table == "engine":
        return f"{flag}: this engine does not have this option."
    if error["type"] == "extra_forbidden":
        inner = _inner(model, outer)
        hint = renamed_option(inner, str(last)) or suggest(str(last), list(inner.model_fields))
        return f"{where}: unknown key. {hint}"
    if error["type"] == "missing":
        return (
            f"{where}: this key is missing. Add it{f', or pass {flag}' if key in options else ''}."
        )
    return f"{flag if key in options else where}: {describe(error)}"


def renamed_option(model: type[BaseModel], name: str) -> str:
    """Return a hint with the new name if ``name`` is the old name of a field, otherwise ""."""
    new = getattr(model, "renamed", {}).get(name)
    return f"{name} was renamed to {new}." if new else ""


def describe(error: Any) -> str:
    """Return a sentence with the message of a pydantic error and the invalid value."""
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1).removesuffix(".")
    for long, short in _SHORTER.items():
        message = message.replace(long, short)
    message = f"{message[:1].lower()}{message[1:]}"
    if error["type"] == "missing":
        return "is missing."
    shown = error["type"] != "value_error" and error["loc"]
    return f"{message} (it is {quoted(error['input'])})." if shown else f"{message}."


_SHORTER = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "tuple should have at least 1 item after validation, not 0": "must not be empty",
    "Tuple should have at least 1 item after validation, not 0": "must not be empty",
}


def _inner(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel]:
    """Return the pydantic model of the nested TOML table in which an error is located."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            # An index in a list of tables, or a name in a table of tables.
            continue
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return model


def named(plugin: Any) -> dict[str, Any]:
    """Return a plug-in's name and settings, as stored in run.json and provenance.json."""
    return {"name": plugin.name, **plugin.model_dump(mode="json")}
