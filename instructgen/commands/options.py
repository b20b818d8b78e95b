"""The options of every command: names, types, defaults, bounds and help in one place.

The command-line flags, the Python functions, the validation of pipelines and docs/commands.md
are derived from these classes. The code that runs the commands is in other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from instructgen.commands.interface import Options, argument, inherited, option, sentence
from instructgen.config import renamed_option
from instructgen.formats import OnBadRow
from instructgen.generation.settings import Price, RunSettings, Target
from instructgen.plugins import suggest
from instructgen.schema.measures import PassRate
from instructgen.schema.sample import Shape
from instructgen.training.options import OPTIONS, SftOptions, Trainer, TrainerOptions


def _listed(value: Any) -> Any:
    """Put a single name or path into a tuple; return other values unchanged."""
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
_SETTINGS = frozenset(key for model in OPTIONS.values() for key in model.model_fields)
# Only the fields that a settings object sets explicitly, so that a recipe can set the others.
Settings = Annotated[
    dict[str, Any],
    BeforeValidator(
        lambda v: v.model_dump(exclude_unset=True) if isinstance(v, TrainerOptions) else v
    ),
]
# The name or path of a recipe. A dict was already written to a file (see `command`).
RecipeName = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]

_HUB = "a folder, or the name of a model on the Hugging Face Hub"
_DATASET_OUT = (
    "Output folder for the dataset. If it already contains the same dataset, nothing is written."
)
_RECIPE = "Recipe with filters and settings: the name of a built-in recipe, or a TOML file."
_LICENSE = option("", "License (SPDX identifier) for rows that do not specify one.", metavar="SPDX")
_LANGUAGE = option("", "Language (ISO 639 code) for rows that do not specify one.", metavar="CODE")
_ON_BAD_ROW = option(
    "fail",
    "What to do when a row is invalid: stop with an error (fail), or reject the row and continue "
    "(reject).",
)
_ENDPOINT = option(
    None,
    "URL of the server for the engine openai. The API key is sent to this server.",
    metavar="URL",
    shown="environment variable OPENAI_BASE_URL",
)
_RAY = option(
    None,
    "Use a Ray cluster: its address, or auto for the cluster that runs on this machine. If none "
    "does, auto starts one.",
    metavar="auto_or_ADDRESS",
    shown="no cluster",
)
_FORMAT = option(
    "chat",
    "Prompt format: the tokenizer's chat template (chat), or a plain-text format for base models "
    "(alpaca or dolly).",
)
_PAD_TOKEN = option(
    None,
    "Padding token for a tokenizer that has none: a token of its vocabulary, or eos for its "
    "end-of-sequence token.",
    metavar="TOKEN",
)
_MAP = option(
    {},
    "For a file in an unsupported format: a field of the dataset (FIELD), and the field or "
    "column of the file that contains its values (NAME), such as instruction=question.",
    flag="--map",
    metavar="FIELD=NAME",
    many="pairs",
)
_DEFAULT_MODEL = "smollm2; with a GPU, HuggingFaceTB/SmolLM3-3B"
_MODEL = option(None, f"Base model: {_HUB}.", metavar="PATH_OR_HUB", shown=_DEFAULT_MODEL)


_JUDGE = (
    "a folder, the name of a model on the Hugging Face Hub or, for the engine openai, on the "
    "server."
)
_UNSAFE_CODE = option(
    False,
    "Whether the verifier code may run programs that a model wrote without a sandbox, where "
    "bubblewrap does not work. Such a program can read and change your files, and use the network.",
)
_JUDGE_ENDPOINT = option(
    None, "URL of the server of the judge, for the engine openai.", metavar="URL"
)


class GenerationOptions(Options):
    """Options of both `generate` and `preview`."""

    renamed: ClassVar[Mapping[str, str]] = {"batch_size": "in_flight"}

    seeds: Paths = option(
        (),
        "Seeds: files in any supported format, or dataset folders. `instructgen methods METHOD` "
        "states what a method starts from: tasks, rows, documents (a field text), personas (a "
        "field persona), or nothing.",
        metavar="FILE",
        many="repeat",
        takes="rows",
    )
    personas: Paths = option(
        (),
        "Descriptions of persons (a field persona), for a method that starts from personas.",
        metavar="FILE",
        many="repeat",
        takes="rows",
    )
    documents: Paths = option(
        (),
        "Datasets of segments from `import documents`, for a method that starts from documents. "
        "For the method document, --seeds are then questions whose style it follows.",
        metavar="FOLDER",
        many="repeat",
        takes="rows",
    )
    tools: Path | None = option(
        None,
        "JSON file with the definitions of tools, as for OpenAI, for the method tool_dialogue.",
        metavar="FILE",
    )
    environment: Path | None = option(
        None,
        "Python file that defines the environment in which tools are executed. The file is "
        "executed.",
        metavar="FILE",
    )
    target: Target | None = option(
        None,
        sentence(RunSettings.model_fields["target"].description or ""),
        metavar="N_OR_all",
        shown="all, if the method uses each seed in turn",
    )
    model: str | None = option(
        None,
        "Model that generates the rows: a folder, the name of a model on the Hugging Face Hub, or, "
        "for the engine openai, the name of a model on the server.",
        metavar="NAME",
        shown=_DEFAULT_MODEL,
    )
    engine: str | None = option(
        None,
        "Engine that runs the model: vllm, openai (an OpenAI-compatible server), transformers or "
        "echo (no model: random words, for tests).",
        metavar="NAME",
        shown="vllm",
    )
    endpoint: Names = option(
        (),
        "URL of the server for the engine openai. The API key is sent to it. If several servers "
        "are passed, each is a replica.",
        metavar="URL",
        many="repeat",
        shown="environment variable OPENAI_BASE_URL",
    )
    replicas: int | None = option(
        None,
        "Number of processes that load the model, each with its own GPUs (as many as the engine's "
        "option tensor_parallel_size) or cores. With --ray, they run on the cluster.",
        metavar="N",
        ge=1,
        le=10_000,
        shown="1",
    )
    ray: str | None = _RAY
    method: str | None = option(
        None,
        "Generation method; `instructgen methods` lists them.",
        metavar="NAME",
        shown="self_instruct",
    )
    samples: int | None = option(
        None,
        "Number of completions for each seed, for methods that keep one of several, such as solve.",
        metavar="N",
        ge=1,
    )
    verifier: str | None = option(
        None,
        "Verifier that checks the answers, for the methods solve and rationale.",
        metavar="NAME",
    )
    recipe: RecipeName | None = option(
        None,
        _RECIPE,
        metavar="NAME_OR_FILE",
        takes="recipe",
        shown="grounded for the methods code, document, solve and tool_dialogue; otherwise default",
    )
    brief: str = option(
        "",
        "Description of the data that you need: its domain, audience, tone and rules. Every prompt "
        "begins with it.",
        metavar="TEXT_OR_FILE",
    )
    prompts: Path | None = option(
        None,
        "TOML file with texts that replace those of the prompts; "
        "instructgen/generation/templates/en.toml shows its tables and keys.",
        metavar="FILE",
    )
    balance: Names = option(
        (),
        "Column of the seeds (category, or the name of a label) whose values get the same shares "
        "of the rows as of the seeds. Languages always do.",
        metavar="COLUMN",
        many="repeat",
    )
    judge: str | None = option(
        None,
        f"Model that judges drafts and rows: {_JUDGE}",
        metavar="NAME",
        shown="same as --model",
    )
    judge_engine: str | None = option(
        None, "Engine that runs the judge.", metavar="NAME", shown="same as --engine"
    )
    judge_endpoint: str | None = _JUDGE_ENDPOINT
    settings: dict[str, Any] = option(
        {},
        "Key of a table of the recipe, such as method.human=4 or engine.dtype=float32; "
        "`instructgen methods METHOD` lists the keys of a method.",
        flag="--set",
        metavar="TABLE.KEY=VALUE",
        many="settings",
    )
    mapping: dict[str, str] = _MAP
    license: str = _LICENSE
    language: str = _LANGUAGE
    on_bad_row: OnBadRow = _ON_BAD_ROW
    seed: int | None = inherited(RunSettings, "seed")
    passes: int | None = inherited(RunSettings, "passes")
    against: Paths = option(
        (),
        "Files with benchmark prompts. Rows that contain one of these prompts, or that define one "
        "of their functions, are rejected.",
        metavar="FILE",
        many="repeat",
        takes="rows",
    )
    novel_against: Paths = option(
        (),
        "Datasets, runs or files whose instructions new instructions must differ from, in "
        "addition to the seeds, so that several runs do not repeat each other.",
        metavar="DATA",
        many="repeat",
        takes="rows",
    )
    in_flight: int | None = inherited(RunSettings, "in_flight")
    max_tokens_total: int | None = inherited(RunSettings, "max_tokens_total")
    price: Price | None = inherited(RunSettings, "price", metavar="PROMPT,OUTPUT")
    max_cost: float | None = inherited(RunSettings, "max_cost", metavar="AMOUNT")


class PreviewOptions(GenerationOptions):
    """Options of `preview`."""

    show_prompts: bool = option(False, "Print the first prompt of each stage, with its completion.")


class GenerateOptions(GenerationOptions):
    """Options of `generate`."""

    out: Path = option(
        ..., "Output folder for the run. If it contains an unfinished run, that run is resumed."
    )


class ExplainOptions(Options):
    """Options of `explain`."""

    renamed: ClassVar[Mapping[str, str]] = {"out": "data"}

    data: Path = argument("Folder of a run or dataset.", metavar="RUN_OR_DATASET")
    row_id: str = argument(
        "ID of the row to explain, from one of the columns id, nearest and origin.parents.",
        metavar="ROW_ID",
    )


class RebuildOptions(Options):
    """Options of `rebuild`."""

    renamed: ClassVar[Mapping[str, str]] = {"out": "run"}

    run: Path = argument("Folder of the run whose dataset is recreated.", metavar="RUN")


class SnapshotOptions(Options):
    """Options of `snapshot`."""

    run: Path = argument("Folder of a run, which may be in progress.", metavar="RUN")
    out: Path | None = option(None, _DATASET_OUT, shown="the folder snapshot in the run's folder")


class ImportOptions(Options):
    """Options of `import`."""

    path: Path = argument(
        "What to read: a file (JSON, JSON Lines, CSV, Parquet or Arrow), a pattern in quotes such "
        "as 'data/*.jsonl', a folder of files, a clone from the Hugging Face Hub, or the name of a "
        "dataset on the Hub (ORG/NAME). Text files can be compressed (.gz or .zst). For the format "
        "documents: a file or a folder of .txt, .md, .html, .pdf and .docx files.",
        metavar="PATH_OR_HUB",
        takes="rows",
    )
    out: Path = option(..., _DATASET_OUT)
    format: str | None = argument(
        "Format of the file, such as oasst or sharegpt; `instructgen formats` lists all. By "
        "default, it is detected from the fields of the rows. documents: text files, web pages, "
        "PDF and Word files, which are divided into segments.",
        metavar="[FORMAT]",
        default=None,
    )
    mapping: dict[str, str] = _MAP
    shape: Shape | None = option(
        None,
        "Kind of rows to import from a format that contains several kinds, such as oasst or "
        "hh-rlhf: prompts with an answer (instructions), with a chosen and a rejected answer "
        "(preferences), or with an answer that is labeled as good or bad (feedback).",
        flag="--as",
    )
    take: str | None = option(
        None,
        "Part of the data to import; the first value of each format is its default. oasst: the "
        "conversation with the best-ranked replies (best), all conversations (all), or only the "
        "first prompt and its best answer (first). hh-rlhf: the complete dialogue (dialogue), or "
        "its first prompt and answer (first). self-instruct: the first instance of each task "
        "(first), or all instances (all).",
        metavar="WHICH",
    )
    roles: Names = option(
        (),
        "Role of a speaker in conversations whose names are unknown: user, assistant, system or "
        "tool, and the name in the file, such as user=customer.",
        flag="--role",
        metavar="ROLE=NAME",
        many="repeat",
    )
    inner_system: Literal["keep", "move"] = option(
        "keep",
        "What to do with a system message after the first user message: leave it in its place "
        "(keep), or move it to the beginning of the conversation (move).",
    )
    license: str = _LICENSE
    language: str = _LANGUAGE
    attribution: str = option(
        "", "Names and notices to credit, for rows that do not specify any.", metavar="TEXT"
    )
    model: str = option(
        "",
        "Name of the model that generated the rows, if they are synthetic, or human if people "
        "wrote them although the file says otherwise.",
        metavar="NAME",
    )
    source: str = option(
        "",
        "Name of the dataset, for the column source of all rows.",
        metavar="NAME",
        shown="the name of the format, or what the rows specify",
    )
    split: str = option(
        "train", "Split to read, if the path is a folder with splits or a dataset on the Hub."
    )
    encoding: str | None = option(
        None,
        "Character encoding of text files, such as cp1252.",
        metavar="NAME",
        shown="UTF-8, or UTF-16 if the file begins with its byte-order mark",
    )
    on_bad_row: OnBadRow = _ON_BAD_ROW
    segment_words: int = option(
        250,
        "For the format documents: maximum number of words of a segment. A character of a script "
        "without spaces, such as Chinese, counts as a word.",
        ge=20,
    )
    overlap: int = option(
        0,
        "For the format documents: number of words of a segment that the next one repeats, if no "
        "heading is between them.",
        ge=0,
    )
    recipe: str = option(
        "documents",
        "For the format documents: recipe with the filters of segments.",
        metavar="NAME_OR_FILE",
        takes="recipe",
    )


class MergeOptions(Options):
    """Options of `merge`."""

    inputs: Paths = argument(
        "Folders of datasets or runs to merge.", metavar="INPUTS", many=True, min_length=1
    )
    out: Path = option(..., _DATASET_OUT)
    recipe: Path | None = option(
        None,
        "TOML file whose table [mix] sets how many rows of each source to take, and whose table "
        "[split] sets the fractions of the rows for validation and test.",
        metavar="FILE",
        takes="recipe",
    )
    require: str | None = option(
        None,
        "Requirement for licenses and for the terms of the models that wrote the rows: "
        "commercial-use (no terms forbid or restrict it), permissive (also no share-alike "
        "license), or a comma-separated list of SPDX licenses. Other rows are rejected.",
        metavar="WHAT",
    )
    accept_terms: Names = option(
        (),
        "Name of a model, or of its terms such as OpenAI, whose conditions you accept: with "
        "--require, rows that this model wrote are not rejected for them.",
        metavar="NAME",
        many="repeat",
    )


class CurateOptions(Options):
    """Options of `curate`."""

    data: Path = argument("Folder of a dataset or run.", metavar="DATA")
    out: Path = option(..., _DATASET_OUT)
    recipe: RecipeName = option(
        "default",
        _RECIPE,
        metavar="NAME_OR_FILE",
        takes="recipe",
    )
    against: Paths = option(
        (),
        "Files with benchmark prompts. Rows that contain one of these prompts are rejected.",
        metavar="FILE...",
        many="words",
        takes="rows",
    )
    pass_rate: PassRate | None = option(
        None,
        "Range of the score pass_rate of the rows to keep, such as 0.1:0.9.",
        metavar="MIN:MAX",
    )
    scores_from: Path | None = option(
        None,
        "Curated dataset whose recorded scores are reused, so that filters do not compute them "
        "again.",
        metavar="DATASET",
    )
    judge: str | None = option(
        None, f"Model that judges rows, for the recipe judged: {_JUDGE}", metavar="NAME"
    )
    judge_engine: str | None = option(
        None, "Engine that runs the judge.", metavar="NAME", shown="vllm"
    )
    judge_endpoint: str | None = _JUDGE_ENDPOINT
    ray: str | None = _RAY


class DedupOptions(Options):
    """Options of `dedup`."""

    inputs: Paths = argument(
        "Folders of datasets or runs, or files in any supported format.",
        metavar="INPUTS",
        many=True,
        min_length=1,
        takes="rows",
    )
    out: Path = option(..., _DATASET_OUT)
    how: Names = option(
        ("exact", "minhash", "semantic"),
        "Stages of the comparison, in order: any of exact (equal texts), minhash (Jaccard "
        "similarity of words), rouge_l (ROUGE-L), semantic (embeddings) and two_key (both ROUGE-L "
        "and embeddings).",
        metavar="STAGES",
        many="commas",
        min_length=1,
    )
    threshold: float | dict[str, float] | None = option(
        None,
        "Similarity above which two rows are duplicates, for all stages (NUMBER) or for one stage "
        "(STAGE=NUMBER).",
        metavar="[STAGE=]NUMBER",
        many="numbers",
        shown="minhash=0.7, rouge_l=0.7, semantic=0.9",
    )
    priority: Names = option(
        ("source", "license", "quality", "length"),
        "Criteria that decide which duplicate is kept, the most important first: any of source "
        "(see --sources), human (written by a human), license (fewest conditions), quality "
        "(highest score) and length (longest output).",
        metavar="CRITERIA",
        many="commas",
    )
    sources: Names = option(
        (),
        "Names of sources, the preferred one first, for the criterion source of --priority. If "
        "rows are duplicates, the row from the source that is named first is kept.",
        metavar="NAMES",
        many="commas",
    )
    compared: Literal["row", "prompt", "instruction"] = option(
        "row",
        "Text to compare: the complete row (row), all text except the outputs (prompt), or only "
        "the instruction (instruction).",
    )
    frame_quota: int = option(
        3,
        "For the stage two_key: maximum number of kept rows with the same sentence pattern but "
        "different meanings, such as 'What is a ...?'.",
        ge=1,
        le=10**9,
    )
    same_if_equal: Names = option(
        (),
        "Labels or fields, such as category. Two rows are duplicates only if they have the same "
        "values of these.",
        metavar="NAMES",
        many="commas",
    )
    embedding_model: str = option(
        "minilm",
        "Embedding model for the stages semantic and two_key: minilm (included, for English), a "
        "folder, or the name of a model on the Hugging Face Hub.",
        metavar="NAME",
    )
    license: str = _LICENSE
    language: str = _LANGUAGE
    on_bad_row: OnBadRow = _ON_BAD_ROW
    ray: str | None = _RAY


class ExportOptions(Options):
    """Options of `export`."""

    data: Path = argument("Folder of a dataset or run.", metavar="DATA")
    to: Path = option(
        ...,
        "Output file (JSON Lines). Its folder is created if it does not exist. For a dataset with "
        "splits, one file per split is written, such as rows-train.jsonl for rows.jsonl.",
    )
    format: str = option(
        ...,
        "Output format: alpaca, sharegpt, openai or trl; trl-preference for preferences, "
        "trl-feedback for feedback.",
        metavar="NAME",
    )
    columns: Names = option(
        (),
        "Columns to write in addition to those of the format: any of id, category, language, "
        "source, license, attribution and generators (the models that wrote the row).",
        metavar="NAMES",
        many="commas",
    )
    split: str | None = option(
        None, "Split to write: train, validation or test. By default, every split is written."
    )
    overwrite: bool = option(False, "Replace the output file if it exists.")


class PublishOptions(Options):
    """Options of `publish`."""

    data: Path = argument("Folder of a dataset or run.", metavar="DATA")
    name: str = argument("Name for the dataset on the Hugging Face Hub.", metavar="ORG/NAME")
    private: bool = option(False, "Make the dataset private when it is created on the Hub.")


class ReportOptions(Options):
    """Options of `report`."""

    inputs: Paths = argument(
        "Folders to report on: datasets, runs, models or evaluations.",
        metavar="INPUTS",
        many=True,
        min_length=1,
    )
    out: Path = option(..., "Output file (HTML). Its folder is created if it does not exist.")
    seeds: Paths = option(
        (),
        "Seed tasks (files or dataset folders) to compare the rows with. By default, a run is "
        "compared with its own seeds.",
        metavar="FILE",
        many="repeat",
        takes="rows",
    )
    reference: Path | None = option(
        None, "Dataset of human-written rows to compare text lengths with.", metavar="DATA"
    )
    price: Price | None = option(
        None,
        "Price per million prompt tokens and per million output tokens, such as 0.15,0.6. The "
        "report then shows the cost of a run.",
        metavar="PROMPT,OUTPUT",
    )


class TrainOptions(Options):
    """Options of `train`. The field ``settings`` contains the settings of the trainer."""

    renamed: ClassVar[Mapping[str, str]] = {"method": "trainer"}
    open_field: ClassVar[str | None] = "settings"
    open_keys: ClassVar[frozenset[str]] = _SETTINGS

    trainer: Trainer = argument(
        "Training algorithm: sft, reward, dpo, kto, grpo, rloo or ppo.", metavar="TRAINER"
    )
    data: Path = argument(
        "Rows to train on: the folder of a dataset or run, or a file in any supported format.",
        metavar="DATA",
        takes="rows",
    )
    out: Path | None = option(
        None,
        "Output folder for the model (required). If it contains an unfinished training run, that "
        "run is resumed.",
    )
    model: str | None = _MODEL
    recipe: Path | None = option(
        None,
        "TOML file whose table [train] contains settings of the trainer.",
        metavar="FILE",
        takes="recipe",
    )
    reward: Names = option(
        (),
        "Reward for grpo, rloo and ppo: the folder of a reward model, or a list of verifiers "
        "(programs that check answers), such as verifiers:ifeval,math.",
        metavar="WHAT",
        many="repeat",
    )
    unsafe_code_execution: bool = _UNSAFE_CODE
    held_out: Path | None = option(
        None,
        "Dataset or file with rows to evaluate the model on before and after training. These rows "
        "are not trained on.",
        metavar="DATA",
        shown="the validation split, or rows held out from the data",
        takes="rows",
    )
    settings: Settings = option(
        {},
        "Setting of the trainer that is not listed here; `instructgen trainers TRAINER` lists all "
        "settings.",
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
    """Check that the trainer has these settings, and none that the command sets itself (``fixed``).

    Raises:
        ValueError: a setting is not allowed; the message suggests the most similar name.
    """
    model = OPTIONS[trainer]
    known = sorted(model.model_fields.keys() - set(fixed))
    for key in settings:
        if key not in known:
            hint = renamed_option(model, key) or suggest(key, known)
            raise ValueError(f"{key} is not an option of train {trainer}. {hint}")


# Settings of the trainer that have their own flags.
TRAIN_FLAGS: dict[str, Any] = {
    "tokens": inherited(SftOptions, "tokens", shown="one epoch"),
    "pass_rate": inherited(SftOptions, "pass_rate", metavar="MIN:MAX", shown="all rows"),
    "epochs": inherited(SftOptions, "epochs"),
    "steps": inherited(SftOptions, "steps"),
    "peft": inherited(
        SftOptions,
        "peft",
        help="Method of parameter-efficient fine-tuning (PEFT): lora, qlora, dora, ia3 or adapter; "
        "none trains all weights.",
        shown="none, which is full fine-tuning",
    ),
    "learning_rate": inherited(
        SftOptions,
        "learning_rate",
        help="Peak learning rate.",
        shown="depends on the trainer and on --peft",
    ),
    "batch_size": inherited(SftOptions, "batch_size"),
    "max_length": inherited(
        SftOptions,
        "max_length",
        help="Maximum number of tokens per row; 0 selects the default. Longer rows are not trained "
        "on, or are truncated with --set=too_long=truncate (only sft).",
        shown="1024, or the context length of the model if it is smaller",
    ),
    "format": inherited(SftOptions, "format"),
    "chat_template": inherited(SftOptions, "chat_template", metavar="FILE_OR_NAME"),
    "fold_system": inherited(SftOptions, "fold_system"),
    "pad_token": inherited(SftOptions, "pad_token", metavar="TOKEN"),
    "seed": inherited(SftOptions, "seed"),
}
ABLATE_FLAGS = {
    name: TRAIN_FLAGS[name] for name in ("peft", "learning_rate", "batch_size", "max_length")
}
# Settings that `ablate` sets itself.
_ABLATED = ("tokens", "seed", "steps", "epochs", "held_out_rows", "evaluate")


class EvaluateOptions(Options):
    """Options of `evaluate`."""

    model: str = argument(f"Model to evaluate: smollm2 (included), {_HUB}.", metavar="MODEL")
    against: str | None = option(
        None,
        "Second model, which is evaluated on the same rows for comparison.",
        metavar="PATH_OR_HUB",
    )
    data: Paths = option(
        (),
        "Datasets or files with the rows to evaluate on. For a dataset with splits, only the test "
        "split is used, or the validation split if it has no test split.",
        metavar="DATA...",
        many="words",
        takes="rows",
    )
    suites: Names = option(
        (),
        "Evaluation suites to run: any of likelihood (bits per byte of the answers), constraints "
        "(how well answers meet a constraint on their form), verifiers (how many answers to "
        "problems and programming tasks are correct), tool_calls (how many calls of tools are "
        "valid and as recorded), preference (how often the chosen answer is preferred), winrate "
        "(comparison with the second model) and lm-eval (tasks of the package lm-eval).",
        flag="--suite",
        metavar="NAME...",
        many="words",
        shown="likelihood for instruction rows, preference for preference rows",
    )
    judge: str = option(
        "",
        "Model that decides whose answer is better in the suite winrate: the folder of a reward "
        "model, or the name or folder of a language model.",
        metavar="MODEL",
    )
    out: Path | None = option(
        None,
        "Output folder for the results: the measures, a table and a plot. Answers and verdicts are "
        "recorded in it too, so that the same command continues an evaluation that was stopped.",
    )
    limit: int = option(200, "Maximum number of rows to use from each dataset.", ge=1, le=10**9)
    max_length: int = option(
        1024, "Maximum number of tokens per row. Longer rows are skipped.", ge=16
    )
    seed: int = option(
        0,
        "Random seed for sampling answers, and for choosing few-shot examples and constraints on "
        "the form of answers.",
        ge=0,
        lt=2**32,
    )
    format: Literal["chat", "alpaca", "dolly"] = _FORMAT
    pad_token: str | None = _PAD_TOKEN
    settings: dict[str, Any] = option(
        {},
        "Option of a suite, such as constraints.engine=vllm; `instructgen suites SUITE` lists the "
        "options of a suite.",
        flag="--set",
        metavar="SUITE.KEY=VALUE",
        many="settings",
    )


class AblateOptions(Options):
    """Options of `ablate`. The field ``settings`` contains settings of the trainer ``sft``."""

    open_field: ClassVar[str | None] = "settings"
    open_keys: ClassVar[frozenset[str]] = _SETTINGS

    datasets: Paths = argument(
        "Two or more datasets: the original first, then the datasets derived from it.",
        metavar="DATASETS",
        many=True,
        min_length=1,
    )
    tokens: int = option(
        ...,
        "Number of supervised tokens (tokens that the loss covers) to train each model on.",
        ge=1,
        le=10**9,
    )
    seeds: int = option(
        3, "Number of random seeds. One model per dataset is trained with each seed.", ge=1
    )
    model: str | None = _MODEL
    data: Path | None = option(
        None,
        "Dataset or file with rows to evaluate the models on. These rows are not trained on.",
        metavar="DATA",
        shown="the test split of the first dataset",
    )
    rows: int = option(200, "Maximum number of rows from --data to evaluate on.", ge=1, le=10**9)
    out: Path = option(Path("ablation"), "Output folder for the models and results.")
    recipe: Path | None = option(
        None,
        "TOML file whose table [train] contains settings of the trainer.",
        metavar="FILE",
        takes="recipe",
    )
    settings: Settings = option(
        {},
        "Setting of the trainer sft that is not listed here; `instructgen trainers sft` lists all "
        "settings.",
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

    data: Path = argument("Dataset of instruction rows whose prompts are answered.", metavar="DATA")
    out: Path = option(
        ..., "Output folder for the dataset. If it contains an unfinished dataset, it is completed."
    )
    score: Names = option(
        ...,
        "Scorer for the answers: the folder of a reward model, a list of verifiers "
        "(programs that check answers, such as verifiers:ifeval,math), or a language model that "
        "compares the answers (judge:MODEL).",
        metavar="WHAT",
        many="repeat",
        min_length=1,
    )
    model: Names = option(
        (),
        f"Model that answers the prompts: {_HUB}. If it is repeated, the answers of all models are "
        "compared.",
        metavar="PATH_OR_HUB",
        many="repeat",
        shown=_DEFAULT_MODEL,
    )
    existing: bool = option(False, "Whether the answer that a row has competes too.")
    shape: Shape = option(
        "preferences",
        "What to keep for each prompt: only the best answer (instructions), or the best and the "
        "worst answer (preferences).",
        flag="--as",
    )
    samples: int = option(
        4, "Number of answers to sample for each prompt and model.", ge=1, le=10**9
    )
    temperature: float = option(0.8, "Sampling temperature.", ge=0, allow_inf_nan=False)
    max_tokens: int = option(256, "Maximum number of tokens per answer.", ge=1, le=10**9)
    margin: float = option(
        0.0,
        "Minimum difference between the scores of the best and the worst answer. Prompts with a "
        "smaller difference are rejected.",
        ge=0,
        allow_inf_nan=False,
    )
    min_score: float | None = option(
        None,
        "Minimum score of the best answer. Prompts whose best answer scores lower are rejected.",
        allow_inf_nan=False,
    )
    limit: int | None = option(None, "Maximum number of prompts to answer.", ge=1, le=10**9)
    engine: str | None = option(
        None, "Engine that runs the model: vllm, openai or transformers.", metavar="NAME",
        shown="vllm",
    )  # fmt: skip
    judge_engine: str | None = option(
        None, "Engine that runs the judge (judge:MODEL).", metavar="NAME", shown="same as --engine"
    )
    endpoint: Names = option(
        (),
        "URL of a server, for the engine openai: one for all models, or one for each.",
        metavar="URL",
        many="repeat",
    )
    judge_endpoint: str | None = _JUDGE_ENDPOINT
    unsafe_code_execution: bool = _UNSAFE_CODE
    seed: int = option(
        0,
        "Random seed for sampling answers, and for choosing the constraints that the verifier "
        "ifeval adds to prompts.",
        ge=0,
        lt=2**32,
    )

    @model_validator(mode="after")
    def _comparable(self) -> PreferOptions:
        models = max(len(self.model), len(self.endpoint), 1)
        if self.shape == "preferences" and self.samples * models + self.existing < 2:
            raise ValueError("--samples must be at least 2 to compare answers")
        return self


class ChatOptions(Options):
    """Options of `chat`."""

    model: str = argument(
        f"Model to chat with: smollm2 (included), {_HUB}.", metavar="[MODEL]", default="smollm2"
    )
    system: str = option("", "System prompt.")
    temperature: float = option(0.7, "Sampling temperature; 0 means greedy decoding.", ge=0, le=100)
    max_tokens: int = option(512, "Maximum number of tokens per answer.", ge=1, le=10**9)
    seed: int | None = option(None, "Random seed for sampling.", ge=0)


class RunOptions(Options):
    """Options of `run`."""

    renamed: ClassVar[Mapping[str, str]] = {"limit": "small", "recipe": "pipeline"}

    pipeline: RecipeName = argument(
        "Pipeline to run: the name of a built-in pipeline, or a TOML file.", metavar="NAME_OR_FILE"
    )
    out: Path | None = option(None, "Output folder for all steps.", shown="runs/NAME")
    inputs: dict[str, str] = option(
        {},
        "Path for an input of the pipeline, such as oasst1=oasst.jsonl. It replaces the file or "
        "dataset that the pipeline specifies.",
        flag="--input",
        metavar="NAME=PATH",
        many="pairs",
    )
    small: bool = option(
        False, "Run the reduced version of the pipeline, which is small enough for a CPU."
    )
