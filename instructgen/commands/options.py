"""The options of every command: names, types, defaults, bounds and help in one place.

The flags of the command line, the Python functions, the checks of pipelines and
docs/commands.md are derived from these classes. The commands themselves are in other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from instructgen.commands.interface import Options, argument, inherited, option
from instructgen.formats import OnBadRow
from instructgen.generation.settings import RunSettings
from instructgen.plugins import suggest
from instructgen.schema.sample import Shape
from instructgen.training.options import OPTIONS, SftOptions, Trainer, TrainerOptions


def _listed(value: Any) -> Any:
    """Return a single name or path as a tuple of one."""
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
# Trainer options passed as an object set only its explicit fields, so a recipe can set others.
Settings = Annotated[
    dict[str, Any],
    BeforeValidator(
        lambda v: v.model_dump(exclude_unset=True) if isinstance(v, TrainerOptions) else v
    ),
]
# The name or path of a recipe. A dict has been written to a file before (see `command`).
RecipeName = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]

_DATASET_OUT = "Output folder of the dataset. An identical dataset in it is not rewritten."
_RECIPE = option("default", "Filters and settings: the name of a recipe, or a TOML file.",
                 metavar="NAME_OR_FILE", takes="recipe")  # fmt: skip
_LICENSE = option("", "License (SPDX) for rows that do not specify one.", metavar="SPDX")
_LANGUAGE = option("", "Language (ISO 639) for rows that do not specify one.", metavar="CODE")
_ON_BAD_ROW = option("fail", "Whether an invalid row ends the command or is rejected.")
_ENDPOINT = option(
    None,
    "URL of the server for the openai engine. The API key is sent to it.",
    metavar="URL",
    shown="OPENAI_BASE_URL",
)
_MODEL = option(
    None, "Base model: a folder or a Hub name.", metavar="PATH_OR_HUB", shown="smollm2, embedded"
)
_FORMAT = option("chat", "Prompt format of rows.")
_PAD_TOKEN = option(
    None, "Padding token for tokenizers that have none, such as eos.", metavar="TOKEN"
)


class PreviewOptions(Options):
    """Options of `preview`; `generate` also has them."""

    seeds: Paths = option(
        ..., "Seed tasks: files in any known format, or datasets.", metavar="FILE", many="repeat",
        takes="rows",
    )  # fmt: skip
    target: int = option(..., "Number of accepted rows to generate.", ge=1, le=10**9)
    model: str | None = option(
        None,
        "Model: a folder, a Hub name, or the name of a model on the server.",
        metavar="NAME",
        shown="smollm2, embedded",
    )
    engine: str | None = option(
        None,
        "Engine that runs the model: vllm, openai, transformers or echo.",
        metavar="NAME",
        shown="vllm",
    )
    endpoint: str | None = _ENDPOINT
    method: str | None = option(
        None,
        "Generation method: self_instruct or alpaca.",
        metavar="NAME",
        shown="self_instruct",
    )
    recipe: RecipeName = _RECIPE
    license: str = _LICENSE
    language: str = _LANGUAGE
    on_bad_row: OnBadRow = _ON_BAD_ROW
    seed: int | None = inherited(RunSettings, "seed")
    batch_size: int | None = inherited(RunSettings, "batch_size")
    max_tokens_total: int | None = inherited(RunSettings, "max_tokens_total")


class GenerateOptions(PreviewOptions):
    """Options of `generate`."""

    out: Path = option(..., "Run folder. An unfinished run in it is resumed.")


class ExplainOptions(Options):
    """Options of `explain`."""

    renamed: ClassVar[Mapping[str, str]] = {"out": "data"}

    data: Path = argument("Run or dataset folder.", metavar="RUN_OR_DATASET")
    row_id: str = argument("Id of a row, from the columns id, nearest or origin.parents.",
                           metavar="ROW_ID")  # fmt: skip


class RebuildOptions(Options):
    """Options of `rebuild`."""

    renamed: ClassVar[Mapping[str, str]] = {"out": "run"}

    run: Path = argument("Run folder.", metavar="RUN")


class ImportOptions(Options):
    """Options of `import`."""

    renamed: ClassVar[Mapping[str, str]] = {"source": "format"}

    path: Path = argument(
        "File (.jsonl, .json, .csv or .parquet; text also .gz or .zst), or ORG/NAME on the Hub.",
        metavar="PATH_OR_HUB",
        takes="rows",
    )
    out: Path = option(..., _DATASET_OUT)
    format: str | None = argument(
        "Format of the file. By default, it is recognized by the fields.",
        metavar="[FORMAT]",
        default=None,
    )
    mapping: dict[str, str] = option(
        {},
        "Field of a row and its name in the file, for a file in an unknown format.",
        flag="--map",
        metavar="FIELD=NAME",
        many="pairs",
    )
    shape: Shape | None = option(
        None,
        "Kind of rows, for formats that contain both, such as oasst and hh-rlhf.",
        flag="--as",
    )
    take: str | None = option(
        None,
        "Rows to take. oasst: best, all or first. hh-rlhf: dialogue or first. "
        "self-instruct: first or all.",
        metavar="WHICH",
    )
    license: str = _LICENSE
    language: str = _LANGUAGE
    attribution: str = option(
        "", "Attribution text for rows that do not specify one.", metavar="TEXT"
    )
    model: str = option(
        "", "Name of the model that wrote the rows, if a model wrote them.", metavar="NAME"
    )
    split: str = option("train", "Split of a dataset on the Hub.")
    on_bad_row: OnBadRow = _ON_BAD_ROW


class MergeOptions(Options):
    """Options of `merge`."""

    inputs: Paths = argument("Dataset or run folders.", metavar="INPUTS", many=True)
    out: Path = option(..., _DATASET_OUT)
    recipe: Path | None = option(
        None, "TOML file with the tables [mix] and [split].", metavar="FILE", takes="recipe"
    )
    require: str | None = option(
        None,
        "License requirement: commercial-use, permissive, or SPDX licenses separated by commas. "
        "Other rows are rejected.",
        metavar="WHAT",
    )


class CurateOptions(Options):
    """Options of `curate`."""

    data: Path = argument("Dataset or run folder.", metavar="DATA")
    out: Path = option(..., _DATASET_OUT)
    recipe: RecipeName = _RECIPE
    against: Paths = option(
        (),
        "Files of benchmark prompts. Rows that contain one are rejected as contaminated.",
        metavar="FILE...",
        many="words",
        takes="rows",
    )
    scores_from: Path | None = option(
        None,
        "Curated dataset. The scores of its rows are reused and not computed again.",
        metavar="DATASET",
    )


class DedupOptions(Options):
    """Options of `dedup`."""

    inputs: Paths = argument(
        "Dataset folders, or files in any known format.", metavar="INPUTS", many=True, takes="rows"
    )
    out: Path = option(..., _DATASET_OUT)
    how: Names = option(
        ("exact", "minhash", "semantic"),
        "Stages: exact, minhash, rouge_l, semantic, two_key.",
        metavar="STAGES",
        many="commas",
    )
    threshold: float | dict[str, float] | None = option(
        None,
        "Highest similarity of two kept rows, for all stages or for one.",
        metavar="[STAGE=]NUMBER",
        many="numbers",
        shown="minhash=0.7, rouge_l=0.7, semantic=0.9",
    )
    priority: Names = option(
        ("source", "license", "quality", "length"),
        "Criteria for which duplicate is kept: source, human, license, quality, length.",
        metavar="CRITERIA",
        many="commas",
    )
    sources: Names = option(
        (),
        "Sources in order of preference, for the criterion source.",
        metavar="NAMES",
        many="commas",
    )
    compared: Literal["row", "prompt", "instruction"] = option(
        "row", "Text that is compared: the complete row, the prompt, or the instruction."
    )
    frame_quota: int = option(
        3, "Maximum number of rows with the same frame that two_key keeps.", ge=1
    )
    embedding_model: str = option(
        "minilm",
        "Embedding model: minilm (packaged, for English), a folder, or a Hub name.",
        metavar="NAME",
    )
    license: str = _LICENSE
    language: str = _LANGUAGE
    on_bad_row: OnBadRow = _ON_BAD_ROW


class ExportOptions(Options):
    """Options of `export`."""

    data: Path = argument("Dataset or run folder.", metavar="DATA")
    to: Path = option(..., "Output file: JSON lines. Its folder is created.")
    format: str = option(..., "Format: alpaca, sharegpt, openai or trl-preference.", metavar="NAME")
    columns: Names = option(
        (),
        "Additional columns: id, category, language, source, license, attribution, generators.",
        metavar="NAMES",
        many="commas",
    )
    split: str | None = option(None, "Split to write: train, validation or test.")
    overwrite: bool = option(False, "Replace an existing file.")


class PublishOptions(Options):
    """Options of `publish`."""

    data: Path = argument("Dataset or run folder.", metavar="DATA")
    name: str = argument("Name of the dataset on the Hub.", metavar="ORG/NAME")
    private: bool = option(False, "Create the dataset as private.")


def _prices(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        prompt, output = (float(part) for part in value.split(","))
    except ValueError:
        raise ValueError(f"{value!r} is not PROMPT,OUTPUT, such as 0.15,0.6") from None
    return prompt, output


class ReportOptions(Options):
    """Options of `report`."""

    inputs: Paths = argument(
        "Dataset, run, model and evaluation folders.", metavar="INPUTS", many=True
    )
    out: Path = option(..., "Output file: one HTML page. Its folder is created.")
    seeds: Paths = option(
        (),
        "Seed tasks or a dataset to compare rows with. A run is compared with its own seeds.",
        metavar="FILE",
        many="repeat",
        takes="rows",
    )
    reference: Path | None = option(
        None, "Dataset of human-written rows to compare lengths with.", metavar="DATA"
    )
    price: Annotated[tuple[float, float], BeforeValidator(_prices)] | None = option(
        None,
        "Price of one million prompt tokens and of one million output tokens.",
        metavar="PROMPT,OUTPUT",
    )


class TrainOptions(Options):
    """Options of `train`; ``settings`` are the options of the trainer."""

    renamed: ClassVar[Mapping[str, str]] = {"method": "trainer"}
    open_field: ClassVar[str | None] = "settings"

    trainer: Trainer = argument("Training algorithm.", metavar="TRAINER")
    data: Path = argument(
        "Dataset or run folder, or a file in any known format.", metavar="DATA", takes="rows"
    )
    out: Path | None = option(
        None, "Output folder of the model (required). An unfinished training in it is resumed."
    )
    model: str | None = _MODEL
    recipe: Path | None = option(
        None, "TOML file with the table [train].", metavar="FILE", takes="recipe"
    )
    reward: Names = option(
        (),
        "Reward for grpo, rloo and ppo: the folder of a reward model, or verifiers:ifeval,math.",
        metavar="WHAT",
        many="repeat",
    )
    held_out: Path | None = option(
        None,
        "Rows to evaluate on before and after training.",
        metavar="DATA",
        shown="split validation, or rows held out of the data",
        takes="rows",
    )
    settings: Settings = option(
        {},
        "Any other setting of the trainer. An unknown KEY lists all settings.",
        flag="--set",
        metavar="KEY=VALUE",
        many="settings",
    )

    @model_validator(mode="after")
    def _known(self) -> TrainOptions:
        check_settings(self.trainer, self.settings)
        return self


def check_settings(
    trainer: Trainer, settings: Mapping[str, Any], fixed: tuple[str, ...] = ()
) -> None:
    """Reject settings that the trainer does not have.

    Raises:
        ValueError: a key is unknown; the message suggests the most similar name.
    """
    model = OPTIONS[trainer]
    known = sorted(model.model_fields.keys() - set(fixed))
    for key in settings:
        if key not in known:
            new = model.renamed.get(key)
            hint = f"It was renamed to {new}." if new else suggest(key, known)
            raise ValueError(f"{key} is not an option of train {trainer}. {hint}")


# Settings of the trainer that have their own flags.
TRAIN_FLAGS: dict[str, Any] = {
    "tokens": inherited(SftOptions, "tokens", shown="one epoch"),
    "epochs": inherited(SftOptions, "epochs"),
    "steps": inherited(SftOptions, "steps"),
    "peft": inherited(SftOptions, "peft", shown="none: full fine-tuning"),
    "learning_rate": inherited(SftOptions, "learning_rate", shown="depends on the trainer"),
    "batch_size": inherited(SftOptions, "batch_size"),
    "max_length": inherited(SftOptions, "max_length", shown="1024, or the model's limit"),
    "format": inherited(SftOptions, "format"),
    "pad_token": inherited(SftOptions, "pad_token", metavar="TOKEN"),
    "seed": inherited(SftOptions, "seed"),
}
ABLATE_FLAGS = {
    name: TRAIN_FLAGS[name] for name in ("peft", "learning_rate", "batch_size", "max_length")
}
# Settings that ablate decides itself.
_ABLATED = ("tokens", "seed", "steps", "epochs", "held_out_rows", "evaluate")


class EvaluateOptions(Options):
    """Options of `evaluate`."""

    model: str = argument("Model: a folder, a Hub name, or smollm2.", metavar="MODEL")
    against: str | None = option(
        None, "Second model, measured on the same rows.", metavar="PATH_OR_HUB"
    )
    data: Paths = option(
        (),
        "Datasets or files of rows. If a dataset has splits, test or else validation is measured.",
        metavar="DATA...",
        many="words",
        takes="rows",
    )
    suites: Names = option(
        (),
        "Suites: likelihood, constraints, preference, winrate, lm-eval.",
        flag="--suite",
        metavar="NAME...",
        many="words",
        shown="likelihood or preference, by the kind of rows",
    )
    judge: str = option("", "Judge for winrate: a reward model or a generative model.",
                        metavar="MODEL")  # fmt: skip
    out: Path | None = option(None, "Output folder of the measures, a table and a plot.")
    limit: int = option(200, "Maximum number of rows per dataset.", ge=1)
    max_length: int = option(1024, "Maximum tokens of a row. Longer rows are not measured.", ge=16)
    seed: int = option(0, "Random seed of constraints, sampling and few-shot examples.", ge=0)
    format: Literal["chat", "alpaca", "dolly"] = _FORMAT
    pad_token: str | None = _PAD_TOKEN
    settings: dict[str, Any] = option(
        {},
        "Any option of a suite, such as constraints.engine=vllm.",
        flag="--set",
        metavar="SUITE.KEY=VALUE",
        many="settings",
    )


class AblateOptions(Options):
    """Options of `ablate`; ``settings`` are options of `train sft`."""

    open_field: ClassVar[str | None] = "settings"

    datasets: Paths = argument(
        "Two or more datasets. The others were derived from the first.",
        metavar="DATASETS",
        many=True,
    )
    tokens: int = option(..., "Number of supervised tokens to train each model on.", ge=1)
    seeds: int = option(3, "Number of random seeds, and of models per dataset.", ge=1)
    model: str | None = _MODEL
    data: Path | None = option(
        None, "Held-out rows to measure on.", metavar="DATA", shown="split test of the first"
    )
    rows: int = option(200, "Number of held-out rows to measure.", ge=1)
    out: Path = option(Path("ablation"), "Output folder of models and results.")
    recipe: Path | None = option(
        None, "TOML file with the table [train].", metavar="FILE", takes="recipe"
    )
    settings: Settings = option(
        {},
        "Any other setting of train sft.",
        flag="--set",
        metavar="KEY=VALUE",
        many="settings",
    )

    @model_validator(mode="after")
    def _known(self) -> AblateOptions:
        check_settings("sft", self.settings, _ABLATED)
        return self


class PreferOptions(Options):
    """Options of `prefer`."""

    data: Path = argument("Dataset of instructions.", metavar="DATA")
    out: Path = option(..., "Output folder of the dataset. An unfinished dataset in it is resumed.")
    score: Names = option(
        ...,
        "Score to compare answers by: the folder of a reward model, verifiers:ifeval,math, "
        "or judge:MODEL.",
        metavar="WHAT",
        many="repeat",
    )
    model: str | None = option(
        None, "Model that answers.", metavar="PATH_OR_HUB", shown="smollm2, embedded"
    )
    shape: Shape = option(
        "preferences",
        "Keep the best and the worst answer to each prompt, or only the best.",
        flag="--as",
    )
    samples: int = option(4, "Number of answers per prompt.", ge=1)
    temperature: float = option(0.8, "Sampling temperature.", ge=0, allow_inf_nan=False)
    max_tokens: int = option(256, "Maximum tokens of an answer.", ge=1)
    margin: float = option(
        0.0, "Minimum difference between the best and the worst score.", ge=0, allow_inf_nan=False
    )
    min_score: float | None = option(None, "Minimum score of the best answer.", allow_inf_nan=False)
    limit: int | None = option(None, "Maximum number of prompts.", ge=1)
    engine: str | None = option(
        None, "Engine that runs the model: vllm, openai or transformers.", metavar="NAME",
        shown="vllm",
    )  # fmt: skip
    judge_engine: str | None = option(
        None, "Engine that runs the judge.", metavar="NAME", shown="as --engine"
    )
    endpoint: str | None = _ENDPOINT
    seed: int = option(0, "Random seed of sampling and constraints.", ge=0)

    @model_validator(mode="after")
    def _comparable(self) -> PreferOptions:
        if self.shape == "preferences" and self.samples < 2:
            raise ValueError("--samples must be at least 2 to compare answers")
        return self


class ChatOptions(Options):
    """Options of `chat`."""

    model: str = argument(
        "Model: a folder, a Hub name, or smollm2.", metavar="[MODEL]", default="smollm2"
    )
    system: str = option("", "System prompt.")
    temperature: float = option(0.7, "Sampling temperature. 0 is greedy decoding.", ge=0, le=100)
    max_tokens: int = option(512, "Maximum tokens of an answer.", ge=1)
    seed: int | None = option(None, "Random seed of sampling.", ge=0)


class RunOptions(Options):
    """Options of `run`."""

    renamed: ClassVar[Mapping[str, str]] = {"limit": "small", "recipe": "pipeline"}

    pipeline: RecipeName = argument(
        "Pipeline: the name of a shipped one, or a TOML file.", metavar="NAME_OR_FILE"
    )
    out: Path | None = option(None, "Output folder of all steps.", shown="runs/NAME")
    inputs: dict[str, str] = option(
        {},
        "Path of an input of the pipeline, in place of the path in the pipeline.",
        flag="--input",
        metavar="NAME=PATH",
        many="pairs",
    )
    small: bool = option(False, "Run the reduced version of the pipeline, which a CPU can run.")
