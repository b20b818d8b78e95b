"""Defines the JSON files of runs, datasets and models, one dataclass per file.

The files are run.json, manifest.json, provenance.json, training.json and sealed.json. A
manifest.json with format version 2, 3 or 4 is converted to the current version when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from instructgen.errors import DamagedFileError, VersionError
from instructgen.schema.measures import Measure
from instructgen.schema.records import InputRef, JsonRecord, Plugins, read_json
from instructgen.schema.sample import Shape

# The format of runs and datasets. In format 2, rows have more columns than in format 1. In format
# 3, the facts of a command are under one key of the manifest. In format 4, rows may have tools,
# reasoning and labels of feedback, and the confidence of the language. In format 5, the journal of
# a run has a line per request, and the origin of a row has a draft instead of a batch.
FORMAT = 5
# The versions of instructgen that can resume runs of earlier formats.
VERSIONS_BEFORE = {2: "0.1.0", 3: "0.2.0", 4: "0.3.0"}


@dataclass(frozen=True, slots=True)
class Provenance(JsonRecord):
    """The contents of provenance.json: all that determines a dataset made from other data."""

    command: str
    inputs: tuple[InputRef, ...]
    options: dict[str, JsonValue]
    plugins: Plugins = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part(JsonRecord):
    """A Parquet file of a dataset, as listed in manifest.json."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LicenseCounts(JsonRecord):
    """Row counts by license, by generating model, and by attribution text."""

    licenses: dict[str, int]
    generators: dict[str, int]
    attributions: dict[str, int]


@dataclass(frozen=True, slots=True)
class RejectionCount(JsonRecord):
    """The number of rows that a filter rejected for one reason."""

    stage: str
    filter: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Manifest(JsonRecord):
    """The contents of manifest.json: the Parquet files and row counts of a complete dataset.

    ``rejections`` are the numbers of rejected rows by stage, filter and reason. ``facts`` are
    additional facts from the command that created the dataset, such as the number of rows read.
    """

    format: int
    shape: Shape
    rows: int
    rejected: int
    terms: LicenseCounts
    rejections: tuple[RejectionCount, ...]
    facts: dict[str, JsonValue]
    files: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Seeds(JsonRecord):
    """The seed tasks of a run: their SHA-256 digest and their number."""

    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class RunInfo(JsonRecord):
    """The contents of run.json: the settings with which a run was started.

    ``config`` contains the settings by TOML table of the recipe. ``form`` contains the prompt
    style and whether JSON schemas are enforced; it is empty for runs of the command `prefer`.
    ``known`` are the rows with which the run's rows are compared in addition to the seeds, and
    ``clusters`` the number of the topic of each seed if demonstrations cover all topics.
    """

    format: int
    run: str
    config: dict[str, JsonValue]
    seeds: Seeds
    versions: dict[str, str]
    form: dict[str, JsonValue] = field(default_factory=dict)
    known: Seeds | None = None
    clusters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingInputs(JsonRecord):
    """Everything that determines a trained model: the key ``inputs`` of training.json."""

    command: str
    model: InputRef
    data: InputRef
    reward: tuple[InputRef, ...]
    held_out: InputRef | None
    options: dict[str, JsonValue]
    plugins: Plugins = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainedRows(JsonRecord):
    """The row counts of a training run.

    ``train`` is the number of rows available for training, and ``seen`` the number of rows that
    the steps used. ``rejected`` contains the number of rejected rows by reason, and ``held_out``
    is the number of held-out rows that the model was evaluated on.
    """

    train: int
    seen: int
    sha256: str
    rejected: dict[str, int]
    held_out: int
    held_out_from: str


@dataclass(frozen=True, slots=True)
class TrainingFacts(JsonRecord):
    """The results of a training run: the key ``result`` of training.json.

    ``base`` is the model that was trained, and ``root`` the base model that a chain of training
    runs began with. ``reload`` contains the differences between the logits of the saved model
    and those of the trained model in memory.
    """

    base: str
    root: str
    trainer: str
    rows: TrainedRows
    steps: int
    supervised_tokens: int | None
    seconds: float
    total_seconds: float
    tokens_per_s: float | None
    resumed: bool
    reload: dict[str, float]
    evaluation: tuple[Measure, ...]
    terms: LicenseCounts
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class TrainingInfo(JsonRecord):
    """The contents of training.json. A training run without a result is not finished."""

    format: int
    inputs: TrainingInputs
    result: TrainingFacts | None = None


@dataclass(frozen=True, slots=True)
class Seal(JsonRecord):
    """The contents of sealed.json: file names and digests of a complete checkpoint."""

    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class SessionUse(JsonRecord):
    """The engine time, requests and tokens of one session of a run: a line of sessions.jsonl.

    A session lasts from a start of the run to its stop. ``asked`` is the number of requests.
    """

    engine_s: float
    asked: int
    output_tokens: int


def read_format(data: bytes, path: Path) -> Mapping[str, Any]:
    """Parse a JSON object, whose key ``format`` is the version of the file format.

    Raises:
        DamagedFileError: the data is not a JSON object.
    """
    values = read_json(data, path)
    if not isinstance(values, dict):
        raise DamagedFileError("the file is damaged (not a JSON object).", path=path)
    return values


def manifest_of(data: bytes, path: Path) -> Manifest:
    """Parse a manifest. A manifest of format 2, 3 or 4 is converted to the current format.

    Raises:
        DamagedFileError: the file is damaged.
        VersionError: the format version is not between 2 and the current version.
    """
    values = dict(read_format(data, path))
    if values.get("format") == 2:
        values = _migrated(values)
    if values.get("format") in (3, 4):
        # Their Parquet files lack columns for which there are defaults.
        values["format"] = FORMAT
    if values.get("format") != FORMAT:
        raise VersionError(path, values.get("format"), _AGAIN)
    return Manifest.of(values, path)


def _migrated(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a manifest of format 2, in which a command's facts were top-level keys."""
    known = ("format", "shape", "rows", "rejected", "terms", "files")
    facts = {k: v for k, v in values.items() if k not in (*known, "licenses", "funnel")}
    funnel = values.get("funnel", [])
    if isinstance(funnel, dict):
        # Manifests of runs counted requests, candidates and rejections in one table.
        facts["funnel"] = {k: v for k, v in funnel.items() if k != "rejected"}
        funnel = funnel.get("rejected", [])
    kept = {k: values[k] for k in known if k in values}
    return {**kept, "format": FORMAT, "rejections": funnel, "facts": facts}


def run_info_of(data: bytes, path: Path) -> RunInfo:
    """Parse the contents of run.json.

    Raises:
        DamagedFileError: the file is damaged.
        VersionError: the run has an unsupported format.
    """
    version = read_format(data, path).get("format")
    if version != FORMAT:
        writer = VERSIONS_BEFORE.get(version) if isinstance(version, int) else None
        hint = _OTHER if writer is None else f"Use instructgen {writer}, which wrote the file."
        raise VersionError(path, version, hint)
    return RunInfo.from_json(data, path)


_AGAIN = "Create the dataset again, or use the version of instructgen that wrote it."
_OTHER = "Use the version of instructgen that wrote the file."
