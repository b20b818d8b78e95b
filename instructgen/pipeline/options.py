"""Checks the recipes of all steps of a pipeline as their commands do, before any step runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from instructgen.commands.generate import configure
from instructgen.commands.interface import Options
from instructgen.commands.mixing import load_mix
from instructgen.commands.options import (
    CurateOptions,
    GenerateOptions,
    MergeOptions,
    TrainOptions,
)
from instructgen.commands.train import check
from instructgen.errors import ConfigError
from instructgen.filters.recipe import load_filters
from instructgen.pipeline.step import Step


@contextmanager
def with_files(step: Step) -> Iterator[Options]:
    """Yield the options of a step; a recipe in the pipeline file is copied to a temporary file."""
    with TemporaryDirectory() as folder:
        options = step.parsed
        for path, text in step.files.items():
            file = Path(folder) / path.name
            file.write_text(text, "utf-8")
            recipe = str(file) if isinstance(options.model_dump()["recipe"], str) else file
            options = options.model_copy(update={"recipe": recipe})
        yield options


def check_recipe(step: Step, where: str) -> None:
    """Check the recipe and the trainer settings of a step with the checks of its command.

    Args:
        step: the step.
        where: the location of the step, which error messages start with.

    Raises:
        ConfigError: a key or value is invalid.
    """
    if str(step.options.get("recipe")).startswith("@"):
        # An earlier step writes it.
        return
    with with_files(step) as options:
        try:
            if isinstance(options, GenerateOptions):
                configure(options)
            elif isinstance(options, CurateOptions):
                load_filters(options.recipe)
            elif isinstance(options, MergeOptions):
                load_mix(None if options.recipe is None else str(options.recipe))
            elif isinstance(options, TrainOptions):
                check(options, look_at_data=False)
        except ConfigError as error:
            recipe = options.model_dump()["recipe"]
            text = str(error).replace(f"{recipe}: ", "recipe." if step.files else f"{recipe}: ")
            raise ConfigError(f"{where}: {text}") from None
