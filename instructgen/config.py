"""What a run does: options and recipe, checked, with one line for every bad key.

A recipe is TOML with the tables [generate], [method], [engine] and any number
of [[filters]]. It is data: names are looked up among installed parts, nothing
in it is executed.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from instructgen.engines import Engine
from instructgen.errors import ConfigError, quoted
from instructgen.filters import Filter, SelectingFilter
from instructgen.methods import Method
from instructgen.mix import MixOptions, SplitOptions
from instructgen.plugins import find, provenance, suggest
from instructgen.shipped import shipped

M = TypeVar("M", bound=BaseModel)
_RESUMABLE: dict[str, JsonValue] = {"resumable": True}


class GenerateOptions(BaseModel):
    """The loop's own settings: the recipe's table [generate]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: int = Field(
        ge=1, le=10**9, description="accepted rows to make", json_schema_extra=_RESUMABLE
    )
    seed: int = Field(0, ge=0, lt=2**63, description="what all randomness comes from")
    batch_size: int = Field(
        32, ge=1, le=100_000, description="requests in a batch; eight batches are in flight"
    )
    max_tokens_total: int | None = Field(
        None,
        ge=1,
        description="stop after this many tokens of prompts and completions",
        json_schema_extra=_RESUMABLE,
    )
    acceptance_floor: float = Field(
        0.02,
        ge=0,
        le=1,
        description="stop when less than this share of the last 200 candidates is kept",
        json_schema_extra=_RESUMABLE,
    )


@dataclass(frozen=True, slots=True)
class Config:
    """A checked recipe: the parts of a run, ready to use."""

    generate: GenerateOptions
    method: Method
    engine: Engine
    filters: tuple[Filter, ...]

    def recorded(self) -> dict[str, Any]:
        """As plain data: what run.json holds and a resumed run is compared with."""
        return {
            "generate": self.generate.model_dump(mode="json"),
            "method": _named(self.method),
            "engine": {**_named(self.engine), **self.engine.identity()},
            "filters": [_named(f) for f in self.filters],
            **provenance(
                engines=[type(self.engine)],
                methods=[type(self.method)],
                filters=map(type, self.filters),
            ),
        }

    def may_change(self) -> set[str]:
        """Keys that cannot change what the recorded completions mean, as ``table.key``."""
        return {
            f"{table}.{key}"
            for table, model in (("generate", self.generate), ("engine", self.engine))
            for key, field in type(model).model_fields.items()
            if isinstance(field.json_schema_extra, dict)
            and field.json_schema_extra.get("resumable")
        }


def load_config(recipe: str, options: dict[str, dict[str, Any]]) -> Config:
    """A recipe by shipped name or path, with the user's options put over it.

    Args:
        recipe: ``default``, ``self_instruct``, ``alpaca``, or a TOML file.
        options: values by table, of the same keys as the recipe; None means not given.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    path = _recipe_path(recipe)
    tables = _read(path)
    _known_tables(tables, ("generate", "method", "engine", "filters"), path)
    for name in ("generate", "method", "engine"):
        if not isinstance(tables.get(name, {}), dict):
            raise ConfigError(f"{path}: {name}: not a table.", f"Write [{name}] above its keys.")
    filters = _filters(tables, path)
    for f in filters:
        if isinstance(f, SelectingFilter):
            raise ConfigError(
                f"{path}: the filter {f.name} needs the whole dataset.",
                "Leave it to: instructgen curate.",
            )
    return Config(
        generate=_merged(
            GenerateOptions,
            tables.get("generate", {}),
            options.get("generate", {}),
            path,
            "generate",
        ),
        method=_part("methods", "self_instruct", tables, options, path),
        engine=_part("engines", "vllm", tables, options, path),
        filters=filters,
    )


def load_filters(recipe: str) -> tuple[Filter, ...]:
    """The filters of a recipe; its tables for generating mean nothing here.

    Args:
        recipe: a shipped name, or a TOML file.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    path = _recipe_path(recipe)
    tables = _read(path)
    _known_tables(tables, ("generate", "method", "engine", "filters"), path)
    return _filters(tables, path)


def load_mix(recipe: str | None) -> tuple[MixOptions, SplitOptions]:
    """The tables [mix] and [split] of a TOML file; the defaults without one.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    if recipe is None:
        return MixOptions(), SplitOptions()
    path = Path(recipe)
    tables = _read(path)
    _known_tables(tables, ("mix", "split"), path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name}: not a table.", f"Write [{name}] above its keys.")
    return (
        _build(MixOptions, tables.get("mix", {}), path, "mix"),
        _build(SplitOptions, tables.get("split", {}), path, "split"),
    )


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
    tables = _read(path) if recipe is not None else {}
    _known_tables(tables, (table,), path)
    values = tables.get(table, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {table}: not a table.", f"Write [{table}] above its keys.")
    return _merged(model, values, options, path, table)


def load_whole(model: type[M], path: Path) -> M:
    """A TOML file of which every table is known to ``model``.

    Raises:
        ConfigError: the file or a key is bad; every bad key has its line.
    """
    return _build(model, _read(path), path, "")


def recorded_filters(filters: Sequence[Filter]) -> list[dict[str, Any]]:
    """The filters as plain data: what a dataset that they made is described by."""
    return [_named(f) for f in filters]


def _known_tables(tables: dict[str, Any], known: Sequence[str], path: Path) -> None:
    if unknown := sorted(tables.keys() - set(known)):
        raise ConfigError(f"{path}: {unknown[0]}: unknown table.", suggest(unknown[0], [*known]))


def from_recorded(recorded: dict[str, Any], where: Path) -> Config:
    """The configuration that a run was made with."""
    engine = {k: v for k, v in recorded["engine"].items() if k not in ("name", "digest")}
    engine_class = find("engines", recorded["engine"]["name"])
    method = {k: v for k, v in recorded["method"].items() if k != "name"}
    method_class = find("methods", recorded["method"]["name"])
    return Config(
        generate=_build(GenerateOptions, recorded["generate"], where, "generate"),
        method=_build(method_class, method, where, "method"),
        engine=_build(engine_class, engine, where, "engine"),
        filters=_filters(recorded, where),
    )


def _recipe_path(recipe: str) -> Path:
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        return path
    names = [p.stem for p in shipped("filters").glob("*.toml")]
    if recipe not in names:
        raise ConfigError(
            f"--recipe {recipe}: no such file and no shipped recipe.", suggest(recipe, names)
        )
    return shipped("filters") / f"{recipe}.toml"


def _read(path: Path) -> dict[str, Any]:
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


def _part(
    group: str,
    default: str,
    tables: dict[str, Any],
    options: dict[str, dict[str, Any]],
    path: Path,
) -> Any:
    table = group.removesuffix("s")
    values, given = dict(tables.get(table, {})), dict(options.get(table, {}))
    recipe_name = values.pop("name", default)
    name = given.pop("name", None) or recipe_name
    if name != recipe_name:
        # Another part than the recipe's: the recipe's keys are not meant for it.
        values = {}
    return _merged(find(group, str(name)), values, given, path, table)


def _merged(
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
    _build(model, {**set_, **values}, path, table, given.keys() - values.keys())
    return _build(model, {**values, **set_}, path, table, given.keys())


def _filters(tables: dict[str, Any], path: Path) -> tuple[Filter, ...]:
    listed = tables.get("filters", [])
    if not isinstance(listed, list) or not all(isinstance(f, dict) for f in listed):
        raise ConfigError(f"{path}: filters: not a list of tables.", "Write [[filters]].")
    made = []
    for number, values in enumerate(listed, start=1):
        name = values.get("name")
        if not isinstance(name, str):
            raise ConfigError(f'{path}: filters {number}: "name" is missing.', "Add it.")
        rest = {k: v for k, v in values.items() if k != "name"}
        made.append(_build(find("filters", name), rest, path, f"filters {number} ({name})"))
    return tuple(made)


def _build(
    model: type[M],
    values: dict[str, Any],
    path: Path,
    table: str,
    options: Set[str] = frozenset(),
) -> M:
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


def _named(part: Any) -> dict[str, Any]:
    return {"name": part.name, **part.model_dump(mode="json")}
