"""The command `ablate`: compares datasets by training a model on each of them.

All models are trained on the same number of supervised tokens, the tokens that the loss covers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import JsonValue

from instructgen.commands.derive import (
    Output,
    Written,
    common_shape,
    derive,
    inputs_of,
    name_of,
    readers_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import AblateOptions, TrainOptions
from instructgen.commands.train import train
from instructgen.config import load_table
from instructgen.errors import ConfigError, InputError
from instructgen.models.folders import default_model
from instructgen.reports.cards import code, one_line, table
from instructgen.schema.progress import Watch
from instructgen.schema.records import InputRef, JsonRecord
from instructgen.store import (
    Provenance,
    TrainingFacts,
    read_file,
    read_samples,
    read_training,
    splits_of,
    storage,
    write_record,
)
from instructgen.training.options import SftOptions
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.evaluation.measures import MeasuredRows

_RESAMPLES = 4_000
_CONTROL_IS = ", with rows of the first dataset removed at random: the control of an ablation"
_CONTROL = "random-drop"


@dataclass(frozen=True, slots=True)
class ControlFacts(JsonRecord):
    """Facts about the control of an ablation: a random sample of the first dataset.

    ``read`` is the number of rows from which the sample was drawn.
    """

    read: int


@dataclass(frozen=True, slots=True)
class Arm:
    """The results for one dataset of an ablation.

    ``arm`` is the name of the dataset. ``bits_per_byte`` has one value for each training seed
    (lower is better), and ``mean`` is the mean of these values.
    """

    arm: str
    rows: int
    supervised_tokens: int
    bits_per_byte: tuple[float, ...]
    mean: float


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """The comparison of the models trained on two datasets, named ``arm`` and ``against``.

    ``difference`` is the mean bits per byte of ``arm`` minus that of ``against``; if it is
    negative, ``arm`` is better. ``low`` and ``high`` are the bounds of its 95% confidence interval
    over held-out rows and seeds. With ``better_seeds`` of the ``seeds`` training seeds, ``arm`` is
    better.
    """

    arm: str
    against: str
    difference: float
    low: float
    high: float
    better_seeds: int
    seeds: int


@dataclass(frozen=True, slots=True)
class AblationRecord(JsonRecord):
    """The contents of ablation.json: the inputs, options and results of an ablation.

    ``arms``, ``base``, ``comparisons`` and ``verdict`` are explained in `Ablation`.
    """

    inputs: tuple[InputRef, ...]
    options: dict[str, JsonValue]
    base: float
    arms: tuple[Arm, ...]
    comparisons: tuple[ArmComparison, ...]
    verdict: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ablation:
    """The result of an ablation.

    ``arms`` are the results for each dataset. ``base`` is the bits per byte of the base model
    before training. ``verdict`` contains one sentence for each comparison.
    """

    out: Path
    arms: tuple[Arm, ...]
    base: float
    comparisons: tuple[ArmComparison, ...]
    verdict: tuple[str, ...]


@command(AblateOptions, "datasets", "out")
def ablate(options: AblateOptions, watch: Watch | None = None) -> Ablation:
    """Train models on several datasets and a control, and compare their loss on held-out rows.

    The control is the first dataset, with rows removed at random until it is as small as the
    smallest dataset. The control shows whether curation gives better models than removing rows at
    random. Repeat the same call to resume an ablation that was stopped.

    Raises:
        InputError: a dataset is invalid, or there are no held-out rows.
        ConfigError: an option or the model is invalid.
        TrainingError: a training run failed.
    """
    paths, folder, rows = options.datasets, options.out, options.rows
    if len(paths) < 2:
        raise ConfigError(
            "ablate requires at least two datasets.", "Pass the raw dataset, then the curated one."
        )
    inputs = inputs_of(paths)
    if common_shape(readers_of(paths)) != "instructions":
        raise InputError(
            "contains preference rows, but ablate requires instruction rows.",
            path=paths[0],
            hint="Use a dataset of instruction rows.",
        )
    held_out = _held_out(paths, options.data)
    recipe = None if options.recipe is None else str(options.recipe)
    chosen = load_table(SftOptions, recipe, "train", dict(options.settings))
    base_name = default_model() if options.model is None else options.model
    recorded: dict[str, JsonValue] = {
        "model": name_of(Path(base_name)),
        "held_out": inputs_of([held_out])[0].to_dict(),
        **options.model_dump(mode="json", include={"tokens", "seeds", "rows"}),
        **chosen.model_dump(mode="json", include=set(options.settings)),
    }
    control = _control(folder / _CONTROL, paths)
    arms = dict(zip(_names(paths), paths, strict=True)) | {_CONTROL: control}
    settings = {**options.settings, "held_out_rows": rows, "evaluate": False}
    settings["tokens"] = options.tokens
    measured: dict[str, list[MeasuredRows]] = {}
    for name, path in arms.items():
        for seed in range(options.seeds):
            place = folder / f"{name}-{seed}"
            values = {
                "trainer": "sft",
                "data": path,
                "out": place,
                "model": options.model,
                "recipe": options.recipe,
                "held_out": held_out,
                "settings": {**settings, "seed": seed},
            }
            watching = None if watch is None else _named(watch, f"{name}, seed {seed}")
            train.run(TrainOptions.checked(values), watching)
            used = read_training(place).inputs.options
            measured.setdefault(name, []).append(_measured(place, held_out, rows, used))
    base = _measured(None, held_out, rows, used, base_name, folder)
    ablation = _compared(folder, arms, base, measured)
    _write(ablation, inputs, recorded)
    return ablation


def _named(watch: Watch, name: str) -> Watch:
    return lambda progress: watch(replace(progress, stage=name))


def _held_out(paths: Sequence[Path], data: Path | None) -> Path:
    if data is not None:
        inputs_of([data])
        return data
    if "test" in splits_of(paths[0]):
        return paths[0]
    raise InputError(
        "does not contain a test split, so ablate lacks held-out rows to evaluate on.",
        path=paths[0],
        hint="Pass a dataset or file of held-out rows with --data=DATA. Alternatively, first run "
        "merge with a recipe that sets test = 0.02 in the table [split].",
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the datasets; a number is appended to names that are not unique."""
    names = [name_of(p) for p in paths]
    return [
        name if names.count(name) == 1 and name != _CONTROL else f"{name}-{i}"
        for i, name in enumerate(names, start=1)
    ]


def _control(folder: Path, paths: Sequence[Path]) -> Path:
    """Write a sample of the first dataset, as large as the smallest dataset; return its path."""
    made_from = Provenance("ablate", inputs_of(paths), {"arm": _CONTROL})

    def write(output: Output) -> Written[ControlFacts]:
        counts = [splits_of(p) for p in paths]
        least = min(c.get("train", sum(c.values())) for c in counts)
        split = "train" if "train" in counts[0] else None
        rows = list(read_samples(paths[0], split=split))
        kept = sorted(random.Random(0).sample(range(len(rows)), min(least, len(rows))))
        output.keep([rows[i] for i in kept])
        return Written(ControlFacts(len(rows)), [], _CONTROL_IS)

    return derive(folder, made_from, "instructions", ControlFacts, write).out


def _measured(
    place: Path | None,
    held_out: Path,
    rows: int,
    options: Mapping[str, Any],
    name: str = "",
    folder: Path | None = None,
) -> MeasuredRows:
    """Return a model's bits per byte on the held-out rows, from the cache file if it exists."""
    from instructgen.evaluation.measures import MeasuredRows, bits_per_byte
    from instructgen.training.options import PromptFormat
    from instructgen.training.rows import held_out_at

    kept = folder / "base.json" if place is None and folder is not None else Path(f"{place}.json")
    if kept.exists():
        return MeasuredRows.from_json(read_file(kept), kept)
    samples = held_out_at(held_out)[:rows]
    prompt_format = PromptFormat(**{f.name: options[f.name] for f in fields(PromptFormat)})
    measured = bits_per_byte(name or str(place), samples, prompt_format)
    write_record(kept, measured.to_json())
    return measured


def _compared(
    folder: Path,
    arms: Mapping[str, Path],
    base: MeasuredRows,
    measured: Mapping[str, Sequence[MeasuredRows]],
) -> Ablation:
    bytes_ = np.asarray(base.wholes)
    bits = {name: np.array([m.parts for m in runs]) for name, runs in measured.items()}
    listed = []
    for name in arms:
        facts = _facts(folder / f"{name}-0")
        by_seed = (bits[name].sum(1) / bytes_.sum()).tolist()
        mean = sum(by_seed) / len(by_seed)
        tokens = facts.supervised_tokens or 0
        listed.append(Arm(name, facts.rows.train, tokens, tuple(by_seed), mean))
    names = list(arms)
    pairs = [(b, a) for b in names[1:-1] for a in (names[0], _CONTROL)] + [(_CONTROL, names[0])]
    comparisons = tuple(
        _comparison(one, other, bits[one], bits[other], bytes_) for one, other in pairs
    )
    verdict = tuple(_verdict(c) for c in comparisons)
    base_value = float(sum(base.parts) / bytes_.sum())
    return Ablation(folder, tuple(listed), base_value, comparisons, verdict)


def _facts(place: Path) -> TrainingFacts:
    facts = read_training(place).result
    assert facts is not None  # The model was trained before.
    return facts


def _comparison(
    name: str, against: str, one: np.ndarray, other: np.ndarray, bytes_: np.ndarray
) -> ArmComparison:
    low, high = _interval(one, other, bytes_)
    value = float((one.mean(0) - other.mean(0)).sum() / bytes_.sum())
    better = sum(a < b for a, b in zip(one.sum(1).tolist(), other.sum(1).tolist(), strict=True))
    return ArmComparison(name, against, value, low, high, better, len(one))


def _interval(one: np.ndarray, other: np.ndarray, bytes_: np.ndarray) -> tuple[float, float]:
    """Return the 95% confidence interval of the difference in bits per byte between two datasets.

    The variance over rows is estimated by resampling the same rows for both datasets; the
    variance over seeds is the sample variance, because few seeds cannot be resampled. The result
    is a Student's t interval with the Welch-Satterthwaite degrees of freedom for the sum of both
    variances. With one seed, only the variance over rows is used.
    """
    from scipy.stats import t

    differences = one - other
    by_seed = differences.sum(1) / bytes_.sum()
    rng = np.random.default_rng([0, 2])
    count, seeds = len(bytes_), len(by_seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    over_rows = float(((draws @ differences.mean(0)) / (draws @ bytes_)).var())
    over_seeds = float(by_seed.var(ddof=1) / seeds) if seeds > 1 else 0.0
    total = over_rows + over_seeds
    if not total:
        # The datasets have the same rows, so they train the same models.
        return float(by_seed.mean()), float(by_seed.mean())
    freedom = total**2 / (
        over_rows**2 / (count - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    )
    margin = float(t.ppf(0.975, freedom)) * total**0.5
    return float(by_seed.mean()) - margin, float(by_seed.mean()) + margin


def _verdict(c: ArmComparison) -> str:
    numbers = f"{c.difference:+.4f} bits per byte [{c.low:+.4f}, {c.high:+.4f}]"
    seeds = f"better with {c.better_seeds} of {c.seeds} seeds"
    if c.seeds == 1:
        seeds = "with a single seed, so the variation between seeds is unknown"
    if c.high < 0:
        return f"{c.arm} trains a better model than {c.against}: {numbers}, {seeds}."
    if c.low > 0:
        return f"{c.arm} trains a worse model than {c.against}: {numbers}, {seeds}."
    return f"{c.arm} and {c.against} do not differ significantly: {numbers}, {seeds}."


def _write(ablation: Ablation, inputs: tuple[InputRef, ...], options: dict[str, JsonValue]) -> None:
    from instructgen.evaluation.plots import arms_plot

    lines = [
        (
            a.arm,
            f"{a.rows:,}",
            f"{a.supervised_tokens:,}",
            f"{a.mean:.4f}",
            ", ".join(f"{v:.4f}" for v in a.bits_per_byte),
        )
        for a in ablation.arms
    ]
    seeds = options["seeds"]
    text = [
        "# Which dataset trains the better model",
        "",
        f"Base model {code(str(options['model']))}; {options['tokens']:,} supervised tokens per "
        f"model; {seeds} seeds. The values are bits per byte of held-out answers; lower is better. "
        f"The base model has the value {ablation.base:.4f}. The 95% confidence intervals are over "
        + ("rows and seeds." if seeds != 1 else "rows only."),
        "",
        *table(("dataset", "rows", "supervised tokens", "mean", "by seed"), lines),
        "",
        *(f"- {one_line(sentence)}" for sentence in ablation.verdict),
        "",
    ]
    record = AblationRecord(
        inputs,
        options,
        ablation.base,
        ablation.arms,
        ablation.comparisons,
        ablation.verdict,
        versions(OF_MODELS),
    )
    with storage(ablation.out):
        for name, data in {
            "ablation.json": record.to_json() + b"\n",
            "ablation.md": "\n".join(text).encode(),
            "ablation.png": arms_plot(ablation.arms, ablation.base),
        }.items():
            write_record(ablation.out / name, data)
