"""What stands in a step's ``recipe`` and ``set``, checked as its command will read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from instructgen.commands.generate import configure
from instructgen.commands.mixing import load_mix
from instructgen.commands.train import check
from instructgen.errors import ConfigError
from instructgen.filters.recipe import load_filters
from instructgen.generation.options import Config
from instructgen.pipeline.step import Step
from instructgen.training.options import OPTIONS

_CONFIGURED = (
    "target",
    "model",
    "engine",
    "endpoint",
    "method",
    "recipe",
    "seed",
    "batch_size",
    "max_tokens_total",
)


@contextmanager
def parameters(step: Step) -> Iterator[dict[str, Any]]:
    """The command's parameters, with a table of options as the file that it will be."""
    with TemporaryDirectory() as folder:
        found = dict(step.params)
        for path, text in step.files.items():
            found["recipe"] = Path(folder) / path.name
            found["recipe"].write_text(text, "utf-8")
        yield found


def configured(given: Mapping[str, Any]) -> Config:
    """What generate's parameters and its recipe come to.

    Raises:
        ConfigError: a key or value is bad.
    """
    return configure(**{name: given[name] for name in _CONFIGURED})


def check_options(step: Step, where: str) -> None:
    """Refuse what the command would refuse of its recipe, and train of ``set``.

    Raises:
        ConfigError: a key or value is bad; ``where`` stands before it.
    """
    with parameters(step) as given:
        recipe = given.get("recipe")
        if str(step.options.get("recipe")).startswith("@"):
            # What an earlier step makes is not there yet.
            return
        try:
            if step.command == "generate":
                configured(given)
            elif step.command == "curate":
                load_filters(str(recipe))
            elif step.command == "merge":
                load_mix(None if recipe is None else str(recipe))
            elif step.command == "train":
                known = OPTIONS[given["method"]].model_fields
                options = {k: v for k, v in given.items() if k in known and v is not None}
                check(given["method"], None, given["reward"], recipe, options | given["more"])
        except ConfigError as error:
            lines = str(error).replace(f"{recipe}: ", "recipe." if step.files else f"{recipe}: ")
            raise ConfigError(f"{where}: {lines}") from None
