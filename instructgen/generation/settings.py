"""The settings of the generation loop, which a recipe sets in its TOML table ``[generate]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from instructgen.engines import CommitOrder

_RESUMABLE: dict[str, JsonValue] = {"resumable": True}
_MOST_ROWS = 10**9


def _target(value: Any) -> Any:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == "all" or (type(number) is int and 1 <= number <= _MOST_ROWS):
        return number
    raise ValueError(f"must be a number from 1 to {_MOST_ROWS:,}, or all (it is {value!r})")


def _prices(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        prompt, output = (float(part) for part in value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} must have the form PROMPT,OUTPUT, such as 0.15,0.6") from None
    return prompt, output


Target = Annotated[int | Literal["all"], BeforeValidator(_target)]
# Prices per million prompt tokens and per million output tokens.
Price = Annotated[tuple[float, float], BeforeValidator(_prices)]


class RunSettings(BaseModel):
    """Settings of the generation loop: the recipe's TOML table ``[generate]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    renamed: ClassVar[Mapping[str, str]] = {"batch_size": "in_flight"}

    target: Target = Field(
        description="Number of accepted rows to generate, or all for as many as the seeds give "
        "or a limit on tokens or cost allows.",
        json_schema_extra=_RESUMABLE,
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the run.")
    balance: tuple[str, ...] = Field(
        (),
        description="Columns of the seeds (category, or names of labels) whose values get the same "
        "shares of the rows as of the seeds. Languages always do.",
    )
    demonstrations: Literal["uniform", "coverage"] = Field(
        "uniform",
        description="How demonstrations are drawn from the pool: all with the same probability "
        "(uniform), or from the topic that has the fewest instructions so far (coverage). Topics "
        "are clusters of sentence embeddings; the filter cluster has their options.",
    )
    passes: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Number of times that each seed is used, for methods that use every seed in "
        "turn.",
        json_schema_extra=_RESUMABLE,
    )
    in_flight: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Number of requests that the engine gets at the same time. Default: as many "
        "as the engine can work on; for a server, this number is measured.",
        json_schema_extra=_RESUMABLE,
    )
    commit_order: CommitOrder | None = Field(
        None,
        description="Order in which completions are used: as they arrive (arrival), or in the "
        "order of their requests (issued), which gives the same rows in every run. Default: "
        "arrival; for the engine echo, issued.",
        json_schema_extra=_RESUMABLE,
    )
    max_tokens_total: int | None = Field(
        None,
        ge=1,
        description="Stop the run when its prompts and completions have this many tokens in total.",
        json_schema_extra=_RESUMABLE,
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="Stop the run when its requests have cost this much, at the price that is set.",
        json_schema_extra=_RESUMABLE,
    )
    price: Price | None = Field(
        None,
        description="Price per million prompt tokens and per million output tokens, such as "
        "0.15,0.6.",
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

    @model_validator(mode="after")
    def _check_cost(self) -> Self:
        if self.max_cost is not None and self.price is None:
            raise ValueError(
                "max_cost needs a price; set price = [PROMPT, OUTPUT], or pass --price"
            )
        return self
