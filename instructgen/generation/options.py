"""Reads and validates the configuration of a generation run.

The configuration consists of the TOML tables ``[generate]``, ``[method]``, ``[engine]``,
``[judge]`` and ``[[filters]]`` of a recipe. This module does not start an engine or a run.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from instructgen.config import build, check_tables, merged, named, read_tables, recipe_path
from instructgen.engines import Engine, Role
from instructgen.errors import ConfigError, DamagedFileError
from instructgen.filters import AskingFilter, Filter, SelectingFilter
from instructgen.filters.cluster import Cluster
from instructgen.filters.recipe import TABLES, filters_in
from instructgen.generation.methods import Method
from instructgen.generation.settings import RunSettings
from instructgen.plugins import find, provenance
from instructgen.schema.records import checked
from instructgen.similarity.encoders import check_model


@dataclass(frozen=True, slots=True)
class Config:
    """A validated recipe: the settings, method, engines and filters of a run, ready to use.

    ``judge`` is the engine for requests with the role ``judge``; None for the same as ``engine``.
    """

    generate: RunSettings
    method: Method
    engine: Engine
    filters: tuple[Filter, ...]
    judge: Engine | None = None

    def model_of(self, role: Role) -> str:
        """Return the name of the model that answers the requests of a role."""
        return self.judge.model if role == "judge" and self.judge else self.engine.model

    def recorded(self) -> dict[str, Any]:
        """Return the values that ``run.json`` records, which are compared when a run resumes."""
        judge = {} if self.judge is None else {"judge": _recorded(self.judge)}
        return {
            "generate": self.generate.model_dump(mode="json"),
            "method": named(self.method),
            "engine": _recorded(self.engine),
            **judge,
            "filters": [named(f) for f in self.filters],
            "plugins": self.plugins(),
        }

    def plugins(self) -> dict[str, dict[str, str]]:
        """Return the package, version and code digest of each plug-in that the run uses."""
        return provenance(
            engines=[type(self.engine), *([type(self.judge)] if self.judge else [])],
            methods=[type(self.method)],
            filters=map(type, self.filters),
            verifiers=[find("verifiers", name) for name in self.method.verifiers()],
        )

    def may_change(self) -> set[str]:
        """Return the keys (``table.key``) that may change when a run is resumed."""
        return {
            f"{table}.{key}"
            for table, model in (
                ("generate", self.generate),
                ("engine", self.engine),
                ("judge", self.judge),
            )
            if model is not None
            for key in _resumable(model)
        }


def load_config(
    recipe: str | None, options: dict[str, dict[str, Any]], given: Set[str] = frozenset()
) -> Config:
    """Return the configuration that a recipe sets; the user's options override its values.

    Args:
        recipe: the name of an included recipe, or the path of a TOML file; None for the recipe of
            the method that the options name.
        options: the user's options as ``{table: {key: value}}``; the value None means not set.
        given: those of --set, as ``table.key``.

    Raises:
        ConfigError: the file or a key is invalid; the message names each invalid key.
    """
    if recipe is None:
        chosen_method = options.get("method", {}).get("name")
        recipe = "default" if chosen_method is None else find("methods", chosen_method).recipe
    path = recipe_path(recipe)
    tables = read_tables(path)
    check_tables(tables, TABLES, path)
    for name in ("generate", "method", "engine"):
        if not isinstance(tables.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} must be a table.", f"Write [{name}] above its keys.")
    filters = filters_in(tables, path)
    for f in filters:
        if isinstance(f, SelectingFilter):
            raise ConfigError(
                f"{path}: the filter {f.name} compares rows across the whole dataset, so it cannot "
                "be used while rows are generated.",
                "Remove the filter from the recipe, and apply it later with instructgen curate.",
            )
    _check_method_options(tables, options)
    method: Method = _part("methods", "self_instruct", tables, options, path, given)
    chosen = options.get("generate", {})
    if chosen.get("target") is None and "target" not in tables.get("generate", {}):
        if not method.finite:
            raise ConfigError(
                f"--target is missing: the method {method.name} draws seeds without an end.",
                "Pass the number of rows, such as --target=100.",
            )
        chosen = {**chosen, "target": "all"}
    settings = merged(RunSettings, tables.get("generate", {}), chosen, path, "generate", given)
    engine = _part("engines", "vllm", tables, options, path, given)
    judge = _judge(tables, options, filters, path, given, engine)
    if settings.demonstrations == "coverage" and not any(isinstance(f, Cluster) for f in filters):
        filters = (*filters, Cluster())
    config = Config(
        generate=settings,
        method=method,
        engine=engine,
        filters=judged_by(filters, judge or engine),
        judge=judge,
    )
    if settings.demonstrations == "coverage":
        _check_coverage(config)
    unlimited = settings.max_tokens_total is None and settings.max_cost is None
    if settings.target == "all" and unlimited and not config.method.finite:
        raise ConfigError(
            f"--target=all: the method {config.method.name} draws seeds without an end.",
            "Pass a number, or a limit: --max-tokens-total, or --max-cost with --price.",
        )
    return config


# Options of the command that are keys of some methods.
_OF_METHODS = {
    "attempts": "samples",
    "verifier": "verifier",
    "tools": "tools",
    "environment": "environment",
}


def _check_method_options(tables: dict[str, Any], options: dict[str, dict[str, Any]]) -> None:
    """Check that the method has the keys that options of the command set."""
    given = options.get("method", {})
    name = given.get("name") or tables.get("method", {}).get("name") or "self_instruct"
    fields = find("methods", str(name)).model_fields
    for key, flag in _OF_METHODS.items():
        if given.get(key) is not None and key not in fields:
            raise ConfigError(
                f"--{flag}: the method {name} does not use it.",
                f"Run: instructgen methods {name}, which lists its options.",
            )


def _check_coverage(config: Config) -> None:
    method = config.method
    if method.starts_from != "tasks" or method.finite:
        raise ConfigError(
            f"demonstrations = coverage: the method {method.name} shows no demonstrations.",
            "Use it with a method such as self_instruct.",
        )
    for f in config.filters:
        if isinstance(f, Cluster):
            check_model(f.model)


@dataclass(frozen=True, slots=True)
class RecordedConfig:
    """The settings in ``run.json``, by table of the recipe; see `Config.recorded`."""

    generate: dict[str, JsonValue]
    method: dict[str, JsonValue]
    engine: dict[str, JsonValue]
    filters: list[dict[str, JsonValue]]
    plugins: dict[str, dict[str, JsonValue]]
    judge: dict[str, JsonValue] | None = None


def check_recorded(values: Any, where: Path) -> None:
    """Check the settings in ``run.json``.

    Raises:
        DamagedFileError: a table is missing, has the wrong type or has no name.
    """
    found = checked(RecordedConfig, values, where)
    named = [found.method, found.engine, *found.filters, *([found.judge] if found.judge else [])]
    if not all(isinstance(table.get("name"), str) for table in named):
        raise DamagedFileError("a table of the settings has no name.", path=where)


def from_recorded(recorded: dict[str, Any], where: Path) -> Config:
    """Build a configuration from the values in ``run.json``, as returned by `Config.recorded`.

    Raises:
        DamagedFileError: the values do not have this form.
        ConfigError: a method, engine, filter or setting is unknown.
    """
    check_recorded(recorded, where)
    engines = {
        table: build(
            find("engines", recorded[table]["name"]),
            {k: v for k, v in recorded[table].items() if k not in ("name", "digest")},
            where,
            table,
        )
        for table in ("engine", "judge")
        if table in recorded
    }
    method = {k: v for k, v in recorded["method"].items() if k != "name"}
    method_class = find("methods", recorded["method"]["name"])
    return Config(
        generate=build(RunSettings, recorded["generate"], where, "generate"),
        method=build(method_class, method, where, "method"),
        engine=engines["engine"],
        filters=filters_in(recorded, where),
        judge=engines.get("judge"),
    )


def lasting(engine: Engine) -> dict[str, Any]:
    """Return the values of an engine that affect its completions."""
    changing = _resumable(engine)
    return {k: v for k, v in _recorded(engine).items() if k not in changing}


def _resumable(model: BaseModel) -> set[str]:
    """Return the fields that may change when a run is resumed."""
    return {
        name
        for name, field in type(model).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("resumable")
    }


def _recorded(engine: Engine) -> dict[str, Any]:
    return {**named(engine), **engine.identity()}


def load_judge(recipe: str, options: dict[str, Any], filters: Sequence[Filter]) -> Engine | None:
    """Return the engine of the judge that a recipe or the user's options set, or None.

    Args:
        recipe: as for `load_config`.
        options: the user's options for the table ``[judge]``; the value None means not set.
        filters: the filters of the recipe.

    Raises:
        ConfigError: the table or an option is invalid.
    """
    path = recipe_path(recipe)
    return _judge(read_tables(path), {"judge": options}, filters, path)


def judged_by(filters: Sequence[Filter], judge: Engine) -> tuple[Filter, ...]:
    """Return the filters; those that ask a judge have its name."""
    name = judge.model or judge.name
    return tuple(
        f.model_copy(update={"model": name}) if isinstance(f, AskingFilter) and not f.model else f
        for f in filters
    )


def _judge(
    tables: dict[str, Any],
    options: dict[str, dict[str, Any]],
    filters: Sequence[Filter],
    path: Path,
    given: Set[str] = frozenset(),
    writer: Engine | None = None,
) -> Engine | None:
    """Return the engine of the judge, or None if the recipe and the options have none.

    What they do not set is that of the writer, if the judge has the same engine.
    """
    if not isinstance(tables.get("judge", {}), dict):
        raise ConfigError(f"{path}: judge must be a table.", "Write [judge] above its keys.")
    values = dict(tables.get("judge", {}))
    overrides = {k: v for k, v in options.get("judge", {}).items() if v is not None}
    models = {f.model for f in filters if isinstance(f, AskingFilter) and f.model}
    if models and overrides.get("model", values.get("model", min(models))) != max(models):
        raise ConfigError(
            f"{path}: the filters and the table [judge] name different models.",
            "A run has one judge: name it only in the table [judge], or with --judge.",
        )
    if models:
        overrides["model"] = min(models)
    if not values and not overrides:
        return None
    default = "vllm" if writer is None else writer.name
    name = overrides.pop("name", None) or values.get("name") or default
    values.pop("name", None)
    kind = find("engines", str(name))
    if writer is not None:
        shared = type(writer).model_fields if kind is type(writer) else ("model",)
        inherited = {k: getattr(writer, k) for k in shared if k not in values}
        overrides = {k: v for k, v in inherited.items() if v not in (None, "")} | overrides
    judge: Engine = merged(kind, values, overrides, path, "judge", given)
    return judge


def _part(
    group: str,
    default: str,
    tables: dict[str, Any],
    options: dict[str, dict[str, Any]],
    path: Path,
    given: Set[str],
) -> Any:
    table = group.removesuffix("s")
    values, overrides = dict(tables.get(table, {})), dict(options.get(table, {}))
    recipe_name = values.pop("name", default)
    name = overrides.pop("name", None) or recipe_name
    if name != recipe_name:
        # The recipe's keys are for the engine or method that the recipe names, not for this one.
        values = {}
    return merged(find(group, str(name)), values, overrides, path, table, given)
