"""Reads and validates the configuration of a generation run.

The configuration consists of the TOML tables ``[generate]``, ``[method]``, ``[engine]`` and
``[[filters]]`` of a recipe. This module does not start an engine or a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.config import build, check_tables, merged, named, read_tables, recipe_path
from instructgen.engines import Engine
from instructgen.errors import ConfigError
from instructgen.filters import Filter, SelectingFilter
from instructgen.filters.recipe import TABLES, filters_in
from instructgen.generation.methods import Method
from instructgen.generation.settings import RunSettings
from instructgen.plugins import find, provenance


@dataclass(frozen=True, slots=True)
class Config:
    """A validated recipe: the settings, method, engine and filters of a run, ready to use."""

    generate: RunSettings
    method: Method
    engine: Engine
    filters: tuple[Filter, ...]

    def recorded(self) -> dict[str, Any]:
        """Return the values that ``run.json`` records, which are compared when a run resumes."""
        return {
            "generate": self.generate.model_dump(mode="json"),
            "method": named(self.method),
            "engine": {**named(self.engine), **self.engine.identity()},
            "filters": [named(f) for f in self.filters],
            "plugins": self.plugins(),
        }

    def plugins(self) -> dict[str, dict[str, str]]:
        """Return the package, version and code digest of each plug-in that the run uses."""
        return provenance(
            engines=[type(self.engine)],
            methods=[type(self.method)],
            filters=map(type, self.filters),
        )

    def may_change(self) -> set[str]:
        """Return the keys (``table.key``) that may change when a run is resumed."""
        return {
            f"{table}.{key}"
            for table, model in (("generate", self.generate), ("engine", self.engine))
            for key, field in type(model).model_fields.items()
            if isinstance(field.json_schema_extra, dict)
            and field.json_schema_extra.get("resumable")
        }


def load_config(recipe: str, options: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration that a recipe sets; the user's options override its values.

    Args:
        recipe: ``default``, ``self_instruct``, ``alpaca``, or the path of a TOML file.
        options: the user's options as ``{table: {key: value}}``; the value None means not set.

    Raises:
        ConfigError: the file or a key is invalid; the message names each invalid key.
    """
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
    settings = merged(
        RunSettings,
        tables.get("generate", {}),
        options.get("generate", {}),
        path,
        "generate",
    )
    config = Config(
        generate=settings,
        method=_part("methods", "self_instruct", tables, options, path),
        engine=_part("engines", "vllm", tables, options, path),
        filters=filters,
    )
    unlimited = settings.max_tokens_total is None and settings.max_cost is None
    if settings.target == "all" and unlimited and not config.method.finite:
        raise ConfigError(
            f"--target=all: the method {config.method.name} draws seeds without an end.",
            "Pass a number, or a limit: --max-tokens-total, or --max-cost with --price.",
        )
    return config


def from_recorded(recorded: dict[str, Any], where: Path) -> Config:
    """Build a configuration from the values in ``run.json``, as returned by `Config.recorded`."""
    engine = {k: v for k, v in recorded["engine"].items() if k not in ("name", "digest")}
    engine_class = find("engines", recorded["engine"]["name"])
    method = {k: v for k, v in recorded["method"].items() if k != "name"}
    method_class = find("methods", recorded["method"]["name"])
    return Config(
        generate=build(RunSettings, recorded["generate"], where, "generate"),
        method=build(method_class, method, where, "method"),
        engine=build(engine_class, engine, where, "engine"),
        filters=filters_in(recorded, where),
    )


def _part(
    group: str,
    default: str,
    tables: dict[str, Any],
    options: dict[str, dict[str, Any]],
    path: Path,
) -> Any:
    table = group.removesuffix("s")
    values, overrides = dict(tables.get(table, {})), dict(options.get(table, {}))
    recipe_name = values.pop("name", default)
    name = overrides.pop("name", None) or recipe_name
    if name != recipe_name:
        # The recipe's keys are for the engine or method that the recipe names, not for this one.
        values = {}
    return merged(find(group, str(name)), values, overrides, path, table)
