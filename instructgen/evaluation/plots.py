"""Plots of measures, ablations and training logs, as PNG images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from instructgen.schema.measures import Measure


def measures_plot(measures: Sequence[Measure], names: Sequence[str]) -> bytes:
    """Return a PNG with a panel per measure; each model is a point with its confidence interval.

    Args:
        measures: measures to plot.
        names: name of the model, then of the model it is compared with, if any.
    """
    figure, axes = _panels(len(measures))
    for axis, measure in zip(axes, measures, strict=True):
        values = zip(names, (measure.after, measure.before), strict=False)
        shown = [(name, value) for name, value in values if value is not None]
        for place, (_, value) in enumerate(shown):
            errors = [[value.value - value.low], [value.high - value.value]]
            axis.errorbar([value.value], [place], xerr=errors, fmt="o", capsize=4)
        axis.set_yticks(range(len(shown)), [n for n, _ in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.set_title(measure.measure, loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def arms_plot(arms: Sequence[Any], base: float) -> bytes:
    """Return a PNG of an ablation: the bits per byte of the model trained on each dataset (arm).

    Each random seed is a point, and a bar marks the mean of an arm. ``base``, the bits per byte
    before training, is a dotted line.
    """
    figure, axes = _panels(1)
    for place, arm in enumerate(arms):
        values = arm.bits_per_byte
        axes[0].plot(values, [place] * len(values), "o", alpha=0.7)
        axes[0].plot([arm.mean], [place], "|", markersize=24, color="black")
    axes[0].axvline(base, linestyle=":", color="gray")
    axes[0].set_yticks(range(len(arms)), [arm.arm for arm in arms])
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    axes[0].set_title("bits per byte (dotted line: before training)", loc="left", fontsize=10)
    return _png(figure)


def log_plot(log: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a PNG with a panel for each known metric in a training log, such as the loss."""
    known = ("loss", "reward", "accuracy", "rewards/accuracies", "kl", "mean_token_accuracy")
    wanted = [k for k in known if any(k in entry for entry in log)]
    figure, axes = _panels(max(1, len(wanted)))
    for axis, key in zip(axes, wanted, strict=False):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set_title(key, loc="left", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    return _png(figure)


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.9 * count), layout="constrained")
    return figure, figure.subplots(count, 1, squeeze=False)[:, 0]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without a date and a version, the same numbers give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
