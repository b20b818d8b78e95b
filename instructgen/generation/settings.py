"""The settings of the generation loop, which a recipe sets in its TOML table ``[generate]``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_RESUMABLE: dict[str, JsonValue] = {"resumable": True}


class RunSettings(BaseModel):
    """Settings of the generation loop: the recipe's TOML table ``[generate]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: int = Field(
        ge=1,
        le=10**9,
        description="Number of accepted rows to generate.",
        json_schema_extra=_RESUMABLE,
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the run.")
    batch_size: int = Field(
        32,
        ge=1,
        le=100_000,
        description="Number of requests per batch. The engine works on eight batches at a time.",
    )
    max_tokens_total: int | None = Field(
        None,
        ge=1,
        description="Stop the run when its prompts and completions have this many tokens in total.",
        json_schema_extra=_RESUMABLE,
    )
    acceptance_floor: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Stop if less than this fraction of the last 200 candidates (instructions and "
        "rows) was accepted; 0 turns this check off.",
        json_schema_extra=_RESUMABLE,
    )
