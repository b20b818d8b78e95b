"""What a run does: the tables [generate], [method], [engine] and [[filters]], checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from instructgen.config import build, known_tables, merged, named, read_tables, recipe_path
from instructgen.engines import Engine
from instructgen.errors import ConfigError
from instructgen.filters import Filter, SelectingFilter
from instructgen.filters.recipe import TABLES, filters_in
from instructgen.generation.methods import Method
from instructgen.plugins import find, provenance

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
            "method": named(self.method),
            "engine": {**named(self.engine), **self.engine.identity()},
            "filters": [named(f) for f in self.filters],
            **self.plugins(),
        }

    def plugins(self) -> dict[str, dict[str, dict[str, str]]]:
        """The code of the parts that other packages add; see `plugins.provenance`."""
        return provenance(
            engines=[type(self.engine)],
            methods=[type(self.method)],
            filters=map(type, self.filters),
        )

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
    path = recipe_path(recipe)
    tables = read_tables(path)
    known_tables(tables, TABLES, path)
    for name in ("generate", "method", "engine"):
        if not isinstance(tables.get(name, {}), dict):
            raise ConfigError(f"{path}: {name}: not a table.", f"Write [{name}] above its keys.")
    filters = filters_in(tables, path)
    for f in filters:
        if isinstance(f, SelectingFilter):
            raise ConfigError(
                f"{path}: the filter {f.name} needs the whole dataset.",
                "Leave it to: instructgen curate.",
            )
    return Config(
        generate=merged(
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


def from_recorded(recorded: dict[str, Any], where: Path) -> Config:
    """The configuration that a run was made with."""
    engine = {k: v for k, v in recorded["engine"].items() if k not in ("name", "digest")}
    engine_class = find("engines", recorded["engine"]["name"])
    method = {k: v for k, v in recorded["method"].items() if k != "name"}
    method_class = find("methods", recorded["method"]["name"])
    return Config(
        generate=build(GenerateOptions, recorded["generate"], where, "generate"),
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
    values, given = dict(tables.get(table, {})), dict(options.get(table, {}))
    recipe_name = values.pop("name", default)
    name = given.pop("name", None) or recipe_name
    if name != recipe_name:
        # Another part than the recipe's: the recipe's keys are not meant for it.
        values = {}
    return merged(find(group, str(name)), values, given, path, table)
