"""The command ablate: which dataset trains the better model, at equal supervised tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from instructgen.commands.derive import (
    Output,
    Written,
    common_shape,
    derive,
    inputs_of,
    name_of,
)
from instructgen.commands.train import train
from instructgen.errors import ConfigError, InputError
from instructgen.models.folders import default_model
from instructgen.reports.cards import table
from instructgen.schema.progress import Watch
from instructgen.store import (
    read_samples,
    read_training,
    splits_of,
    storage,
    write_atomic,
)
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.evaluation.measures import Measured

_DRAWS = 4_000
_CONTROL_IS = ", rows of the first dropped at random: the control of an ablation"
_CONTROL = "random-drop"


@dataclass(frozen=True, slots=True)
class Ablation:
    """What an ablation came to.

    ``arms`` are name, rows and bits per byte by seed; ``comparisons`` the differences
    between arms with intervals over held-out rows and seeds; ``verdict`` says it in words.
    """

    out: Path
    arms: list[dict[str, Any]]
    base: float
    comparisons: list[dict[str, Any]]
    verdict: list[str]


def ablate(
    datasets: Sequence[str | Path],
    out: str | Path,
    *,
    tokens: int,
    seeds: int = 3,
    model: str | None = None,
    data: str | Path | None = None,
    rows: int = 200,
    recipe: str | Path | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Ablation:
    """Train on each dataset and on a control, several times, and compare on held-out answers.

    The control is the first dataset with rows dropped at random until it is as large as
    the smallest: what curation has to beat is dropping alone.

    Args:
        datasets: two or more; the first is the one that the others were made from.
        out: a folder for the models, the control, and the result. Gone on with when it
            was begun from the same.
        tokens: supervised tokens that each model is trained on.
        seeds: models per dataset.
        model: what all begin with.
        data: held-out rows; without it the split ``test`` of the datasets.
        rows: how many of them are measured.
        recipe: a TOML file with the table [train].
        watch: called with the progress of each arm's training.
        options: of train sft.

    Raises:
        InputError: a dataset is bad, or there are no held-out rows.
        ConfigError: an option or the model is bad.
        TrainingError: a training failed.
    """
    _check_counts(datasets, rows, seeds)
    paths, folder = [Path(d) for d in datasets], Path(out)
    inputs = inputs_of(paths)
    if common_shape(paths) != "instructions":
        raise InputError("it holds preferences.", path=paths[0], hint="Give instructions.")
    held_out = _held_out(paths, None if data is None else Path(data))
    base_name = default_model() if model is None else model
    counts = {"tokens": tokens, "seeds": seeds, "rows": rows}
    made: dict[str, Any] = {
        "command": "ablate",
        "inputs": inputs,
        "options": {
            "model": name_of(Path(base_name)),
            "held_out": inputs_of([held_out])[0],
            **counts,
            **options,
        },
    }
    control = _control(folder / _CONTROL, paths)
    arms = dict(zip(_names(paths), paths, strict=True)) | {_CONTROL: control}
    given = {**options, "held_out_rows": rows, "evaluate": False}
    given |= {"tokens": tokens, "model": model, "recipe": recipe, "held_out": held_out}
    found: dict[str, list[Measured]] = {}
    for name, path in arms.items():
        for seed in range(seeds):
            place = folder / f"{name}-{seed}"
            told = None if watch is None else _named(watch, f"{name}, seed {seed}")
            train("sft", path, place, watch=told, seed=seed, **given)
            asked = read_training(place)["options"]
            found.setdefault(name, []).append(_measured(place, held_out, rows, asked))
    base = _measured(None, held_out, rows, asked, base_name, folder)
    ablation = _compared(folder, arms, base, found)
    _write(ablation, made)
    return ablation


def _check_counts(datasets: Sequence[str | Path], rows: int, seeds: int) -> None:
    if len(datasets) < 2:
        raise ConfigError("There is nothing to compare.", "Give two datasets: raw and curated.")
    if rows < 1:
        raise ConfigError("--rows is below 1.", "Give 100 or more.")
    if seeds < 1:
        raise ConfigError("--seeds is below 1.", "Give 3 or more.")


def _named(watch: Watch, name: str) -> Watch:
    return lambda progress: watch(replace(progress, stage=name))


def _held_out(paths: Sequence[Path], data: Path | None) -> Path:
    if data is not None:
        inputs_of([data])
        return data
    if "test" in splits_of(paths[0]):
        return paths[0]
    raise InputError(
        "there are no held-out rows: it has no split test.",
        path=paths[0],
        hint="Give --data HELDOUT, or merge with [split] test = 0.02 first.",
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The datasets' names, told apart where two folders are called the same."""
    names = [name_of(p) for p in paths]
    return [
        name if names.count(name) == 1 and name != _CONTROL else f"{name}-{i}"
        for i, name in enumerate(names, start=1)
    ]


def _control(folder: Path, paths: Sequence[Path]) -> Path:
    """The first dataset with rows dropped at random, as large as the smallest of them."""
    made = {"command": "ablate", "inputs": inputs_of(paths), "options": {"arm": _CONTROL}}

    def write(output: Output) -> Written:
        counts = [splits_of(p) for p in paths]
        least = min(c.get("train", sum(c.values())) for c in counts)
        split = "train" if "train" in counts[0] else None
        rows = list(read_samples(paths[0], split=split))
        kept = sorted(random.Random(0).sample(range(len(rows)), min(least, len(rows))))
        output.keep([rows[i] for i in kept])
        return Written({"read": len(rows)}, [], _CONTROL_IS)

    return derive(folder, made, "instructions", write).out


def _measured(
    place: Path | None,
    held_out: Path,
    rows: int,
    options: Mapping[str, Any],
    name: str = "",
    folder: Path | None = None,
) -> Measured:
    """Bits per byte by held-out row; kept beside the model, as it takes a while."""
    from instructgen.evaluation.measures import Framing, Measured, bits_per_byte
    from instructgen.training.rows import held_out_at

    kept = folder / "base.json" if place is None and folder is not None else Path(f"{place}.json")
    if kept.exists():
        return Measured(**orjson.loads(kept.read_bytes()))
    samples = held_out_at(held_out)[:rows]
    framing = Framing(options["max_length"], options["format"], options["pad_token"])
    made = bits_per_byte(name or str(place), samples, framing)
    write_atomic(kept, [orjson.dumps(asdict(made))])
    return made


def _compared(
    folder: Path, arms: Mapping[str, Path], base: Measured, found: Mapping[str, Sequence[Measured]]
) -> Ablation:
    bytes_ = np.asarray(base.wholes)
    bits = {name: np.array([m.parts for m in made]) for name, made in found.items()}
    listed = []
    for name in arms:
        run = read_training(folder / f"{name}-0")
        by_seed = (bits[name].sum(1) / bytes_.sum()).tolist()
        listed.append(
            {
                "arm": name,
                "rows": run["rows"]["train"],
                "supervised_tokens": run["supervised_tokens"],
                "bits_per_byte": by_seed,
                "mean": sum(by_seed) / len(by_seed),
            }
        )
    names = list(arms)
    pairs = [(b, a) for b in names[1:-1] for a in (names[0], _CONTROL)] + [(_CONTROL, names[0])]
    comparisons = []
    for one, other in pairs:
        low, high = _interval(bits[one], bits[other], bytes_)
        value = float((bits[one].mean(0) - bits[other].mean(0)).sum() / bytes_.sum())
        wins = [
            a < b
            for a, b in zip((bits[one].sum(1)).tolist(), (bits[other].sum(1)).tolist(), strict=True)
        ]
        comparisons.append(
            {
                "arm": one,
                "against": other,
                "difference": value,
                "low": low,
                "high": high,
                "better_seeds": sum(wins),
                "seeds": len(wins),
            }
        )
    verdict = [_said(c) for c in comparisons]
    return Ablation(folder, listed, float(sum(base.parts) / bytes_.sum()), comparisons, verdict)


def _interval(one: np.ndarray, other: np.ndarray, bytes_: np.ndarray) -> tuple[float, float]:
    """95% of the difference over held-out rows, the same for both, and over seeds.

    A handful of seeds is too few to draw from: their variance is estimated, and the
    interval is Student's, with Welch and Satterthwaite's degrees of freedom for the sum
    of both variances. Of one seed nothing can be said but over rows.
    """
    from scipy.stats import t

    differences = one - other
    by_seed = differences.sum(1) / bytes_.sum()
    rng = np.random.default_rng([0, 2])
    count, seeds = len(bytes_), len(by_seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    over_rows = float(((draws @ differences.mean(0)) / (draws @ bytes_)).var())
    over_seeds = float(by_seed.var(ddof=1) / seeds) if seeds > 1 else 0.0
    whole = over_rows + over_seeds
    if not whole:
        # Arms of the same rows train the same models.
        return float(by_seed.mean()), float(by_seed.mean())
    freedom = whole**2 / (
        over_rows**2 / (count - 1) + (over_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    )
    reach = float(t.ppf(0.975, freedom)) * whole**0.5
    return float(by_seed.mean()) - reach, float(by_seed.mean()) + reach


def _said(c: Mapping[str, Any]) -> str:
    numbers = f"{c['difference']:+.4f} bits per byte [{c['low']:+.4f}, {c['high']:+.4f}]"
    seeds = f"better with {c['better_seeds']} of {c['seeds']} seeds"
    if c["seeds"] == 1:
        seeds = "of one seed, which says nothing of others"
    if c["high"] < 0:
        return f"{c['arm']} trains the better model than {c['against']}: {numbers}, {seeds}."
    if c["low"] > 0:
        return f"{c['arm']} trains the worse model than {c['against']}: {numbers}, {seeds}."
    return f"{c['arm']} and {c['against']}: the difference is inside the noise: {numbers}, {seeds}."


def _write(ablation: Ablation, made: Mapping[str, Any]) -> None:
    from instructgen.evaluation.plots import arms_plot

    options = made["options"]
    lines = [
        (
            a["arm"],
            f"{a['rows']:,}",
            f"{a['supervised_tokens']:,}",
            f"{a['mean']:.4f}",
            ", ".join(f"{v:.4f}" for v in a["bits_per_byte"]),
        )
        for a in ablation.arms
    ]
    text = [
        "# Which dataset trains the better model",
        "",
        f"`{options['model']}`, {options['tokens']:,} supervised tokens each, "
        f"{options['seeds']} seeds. Bits per byte of held-out answers; lower is better; "
        f"{ablation.base:.4f} before training. Intervals are 95%, over rows"
        + (" and seeds." if options["seeds"] > 1 else "; one seed says nothing of others."),
        "",
        *table(("dataset", "rows", "supervised tokens", "mean", "by seed"), lines),
        "",
        *(f"- {sentence}" for sentence in ablation.verdict),
        "",
    ]
    record = {
        **made,
        "base": ablation.base,
        "arms": ablation.arms,
        "comparisons": ablation.comparisons,
        "verdict": ablation.verdict,
        "versions": versions(OF_MODELS),
    }
    with storage(ablation.out):
        for name, data in {
            "ablation.json": orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n",
            "ablation.md": "\n".join(text).encode(),
            "ablation.png": arms_plot(ablation.arms, ablation.base),
        }.items():
            write_atomic(ablation.out / name, [data])
