"""Recipes read and checked: TOML tables into typed parts, with one line for every bad key.

A recipe is data: names are looked up among installed parts, nothing in it is executed.
Which tables a command has is said where its options are.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from instructgen.errors import ConfigError, quoted
from instructgen.plugins import suggest
from instructgen.resources import shipped

M = TypeVar("M", bound=BaseModel)


def load_table(model: type[M], recipe: str | None, table: str, options: dict[str, Any]) -> M:
    """One table of a TOML file, with the user's options put over it.

    Args:
        model: its keys.
        recipe: the file; None without one.
        table: its name.
        options: values of the same keys; None means not given.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    path = Path(recipe or "options")
    tables = read_tables(path) if recipe is not None else {}
    known_tables(tables, (table,), path)
    values = tables.get(table, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {table}: not a table.", f"Write [{table}] above its keys.")
    return merged(model, values, options, path, table)


def load_whole(model: type[M], path: Path) -> M:
    """A TOML file of which every table is known to ``model``.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    return build(model, read_tables(path), path, "")


def known_tables(tables: dict[str, Any], known: Sequence[str], path: Path) -> None:
    """Refuse a table that is not one of ``known``.

    Raises:
        ConfigError: there is one; the message suggests the nearest name.
    """
    if unknown := sorted(tables.keys() - set(known)):
        raise ConfigError(f"{path}: {unknown[0]}: unknown table.", suggest(unknown[0], [*known]))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises:
        ConfigError: there is no such recipe.
    """
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        return path
    names = [p.stem for p in shipped("filters").glob("*.toml")]
    if recipe not in names:
        raise ConfigError(
            f"--recipe {recipe}: no such file and no shipped recipe.", suggest(recipe, names)
        )
    return shipped("filters") / f"{recipe}.toml"


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it is not there, cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe.", "Check the path.") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}).", "Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: no valid TOML: {error}.", "Mend that line.") from error


def merged(
    model: type[M], values: dict[str, Any], given: dict[str, Any], path: Path, table: str
) -> M:
    """The recipe's values with the user's options over them; both are checked."""
    for key, field in model.model_fields.items():
        extra = field.json_schema_extra
        if key in values and isinstance(extra, dict) and extra.get("typed_only"):
            raise ConfigError(
                f"{path}: {table}.{key}: a recipe cannot set it.",
                f"Leave it out, and give --{key.replace('_', '-')} on the command line.",
            )
    set_ = {k: v for k, v in given.items() if v is not None}
    # A value that an option hides is still a mistake in the recipe.
    build(model, {**set_, **values}, path, table, given.keys() - values.keys())
    return build(model, {**values, **set_}, path, table, given.keys())


def build(
    model: type[M],
    values: dict[str, Any],
    path: Path,
    table: str,
    options: Set[str] = frozenset(),
) -> M:
    """A part made of a table's values.

    Args:
        model: the part.
        values: its keys.
        path: the file, for messages.
        table: its name there.
        options: keys that a flag of the command line may have set.

    Raises:
        ConfigError: a key or value is bad; every bad key has its line.
    """
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        lines = [_line(e, model, path, table, options) for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    _check_numbers(values, path, table)
    return made


def _check_numbers(value: Any, path: Path, where: str) -> None:
    """Refuse numbers that no file of ours could hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, path, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_numbers(inner, path, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: {where}: {value} is no number here.", "Give a finite one.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{path}: {where}: the number is too large.", "Give a smaller one.")


def _line(error: Any, model: type[BaseModel], path: Path, table: str, options: Set[str]) -> str:
    """One error as one line; ``options`` are the keys that a flag may have set."""
    *outer, last = error["loc"] or ("",)
    # What stands in a list is counted from one.
    key = ".".join(str(p + 1 if isinstance(p, int) else p) for p in error["loc"])
    where = f"{path}: {'.'.join(filter(None, (table, key)))}"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    if error["type"] == "extra_forbidden" and key in options and table == "engine":
        return f"--{key.replace('_', '-')}: not an option of this engine."
    if error["type"] == "extra_forbidden":
        known = list(_inner(model, outer).model_fields)
        return f"{where}: unknown key. {suggest(str(last), known)}"
    if error["type"] == "missing":
        flag = f", or give --{key.replace('_', '-')}" if key in options else ""
        return f"{where}: is missing. Add it{flag}."
    if key in options:
        return f"--{key.replace('_', '-')}: {message} (it is {quoted(error['input'])})."
    return f"{where}: {message}" + (f" (it is {quoted(error['input'])})." if key else ".")


def _inner(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel]:
    """The table inside a table that an error's place leads to."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None:
            # The place in a list of tables, or the name in a table of tables.
            continue
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return model


def named(part: Any) -> dict[str, Any]:
    """A part as plain data, with its name: what run.json and made.json hold of it."""
    return {"name": part.name, **part.model_dump(mode="json")}
