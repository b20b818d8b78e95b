"""Draws the charts of a report as SVG, in the colors of the browser's light or dark scheme.

Kinds: bars, stacked bars, histograms, lines, points and intervals. A chart scales to the available
width. Hovering over a bar, point or line shows its name or value. The table below a chart lists
all values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from instructgen.reports.html import Markup, element, join_markup

WIDTH = 640
# Classes s0 to s7 of the style sheet: colors that color-blind readers can distinguish.
COLORS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 34
_HEIGHT = 240
_BAR, _LABELS = 24, 170
# The difference of two numbers up to this is finite, and its logarithm and its powers are, too.
_LARGEST, _SMALLEST = 1e300, 1e-300


class Series(NamedTuple):
    """A named series of values, one per label or horizontal position of a chart."""

    name: str
    values: Sequence[float]


def bars(labels: Sequence[str], series: Sequence[Series], unit: str = "") -> Markup:
    """Return a chart of horizontal bars, one per label; values of several series are stacked."""
    totals = [sum(s.values[i] for s in series) for i in range(len(labels))]
    largest, room = max([*totals, 1e-12]), WIDTH - _LABELS - 70
    marks = []
    for i, label in enumerate(labels):
        y, x = i * _BAR, float(_LABELS)
        marks.append(_text(_LABELS - 8, y + 16, _cut(label, 22), "end"))
        for number, s in enumerate(series):
            width = s.values[i] / largest * room
            if width > 0:
                name = f"{label}, {s.name}" if s.name else label
                marks.append(
                    element(
                        "rect",
                        element("title", f"{name}: {number_text(s.values[i])}{unit}"),
                        x=x,
                        y=y + 4,
                        width=max(width, 0.5),
                        height=_BAR - 8,
                        class_=f"s{number % COLORS}",
                    )
                )
            x += width
        marks.append(_text(x + 6, y + 16, number_text(totals[i]) + unit, "start", "dim"))
    return join_markup([_svg(marks, len(labels) * _BAR + 4), _legend(series)])


def histogram(edges: Sequence[float], series: Sequence[Series], axis: str) -> Markup:
    """Return a histogram of fractions; each series is normalized to sum to one.

    Args:
        edges: the edges of the bins, one more than there are bins. Bins are drawn with equal
            width, even if the edges are not evenly spaced.
        series: series of counts, one count per bin.
        axis: the label of the horizontal axis.
    """
    shares = []
    for s in series:
        total = sum(s.values) or 1.0
        shares.append(Series(s.name, [v / total for v in s.values]))
    largest = max([v for s in shares for v in s.values] or [1.0]) or 1.0
    bins = len(edges) - 1
    place = _scale(0, bins, _LEFT, WIDTH - _RIGHT)
    height = _scale(0.0, largest, _HEIGHT - _BOTTOM, _TOP)
    marks = _grid(0.0, largest, height, lambda v: f"{v:.0%}" if largest > 0.05 else f"{v:.1%}")
    for number, s in enumerate(shares):
        outline = [(place(0), height(0.0))]
        for i, value in enumerate(s.values):
            outline += [(place(i), height(value)), (place(i + 1), height(value))]
        outline.append((place(bins), height(0.0)))
        marks.append(
            element(
                "polygon",
                element("title", s.name),
                points=_points(outline),
                class_=f"area s{number % COLORS}",
            )
        )
    every = -(-bins // 10)
    marks += [
        _text(place(i), _HEIGHT - _BOTTOM + 14, number_text(edges[i]), "middle", "dim")
        for i in range(0, bins + 1, every)
    ]
    marks.append(_text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 2, axis, "middle", "dim"))
    return join_markup([_svg(marks, _HEIGHT), _legend(shares)])


def lines(
    x: Sequence[float],
    series: Sequence[Series],
    axis: str,
    *,
    share: bool = False,
) -> Markup:
    """Return a line chart, one line per series; values that are not finite are omitted.

    Args:
        x: the horizontal positions, ascending.
        series: values at these positions.
        axis: the label of the horizontal axis.
        share: whether to draw the values, which must be fractions, on a scale from 0% to 100%.
    """
    values = [v for s in series for v in s.values if math.isfinite(v)] or [0.0]
    low, high = (0.0, 1.0) if share else _span(min(values), max(values))
    place = _scale(x[0], x[-1] if x[-1] > x[0] else x[0] + 1, _LEFT, WIDTH - _RIGHT)
    height = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    marks = _grid(low, high, height, (lambda v: f"{v:.0%}") if share else number_text)
    for number, s in enumerate(series):
        points = [
            (place(a), height(b)) for a, b in zip(x, s.values, strict=True) if math.isfinite(b)
        ]
        name = element("title", s.name)
        if len(points) == 1:
            (cx, cy), *_ = points
            marks.append(element("circle", name, cx=cx, cy=cy, r=3, class_=f"s{number % COLORS}"))
        marks.append(
            element("polyline", name, points=_points(points), class_=f"line s{number % COLORS}")
        )
    marks += _ticks(x[0], x[-1], place)
    marks.append(_text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 2, axis, "middle", "dim"))
    return join_markup([_svg(marks, _HEIGHT), _legend(series)])


def points(groups: Mapping[str, Sequence[tuple[float, float, str]]]) -> Markup:
    """Return a scatter plot of groups of points (x, y, text); hovering shows a point's text."""
    every = [(x, y) for group in groups.values() for x, y, _ in group] or [(0.0, 0.0)]
    size = WIDTH - 2 * _RIGHT
    across = _scale(*_span(min(x for x, _ in every), max(x for x, _ in every)), _RIGHT, size)
    up = _scale(*_span(min(y for _, y in every), max(y for _, y in every)), size * 0.66, _TOP)
    marks = [
        element(
            "circle",
            element("title", f"{name}: {text}"),
            cx=across(x),
            cy=up(y),
            r=2.6,
            class_=f"dot s{number % COLORS}",
        )
        for number, (name, group) in enumerate(groups.items())
        for x, y, text in group
    ]
    drawn = _svg(marks, int(size * 0.66) + 12)
    return join_markup([drawn, _legend([Series(name, ()) for name in groups])])


def intervals(labels: Sequence[str], values: Sequence[tuple[float, float, float]]) -> Markup:
    """Return a chart with a point and an interval per label, from tuples (value, low, high)."""
    low, high = _span(min(v[1] for v in values), max(v[2] for v in values))
    place = _scale(low, high, _LABELS, WIDTH - _RIGHT - 40)
    marks = []
    for i, (label, (value, lower, upper)) in enumerate(zip(labels, values, strict=True)):
        y = i * _BAR + 14
        marks += [
            _text(_LABELS - 8, y + 4, _cut(label, 22), "end"),
            element(
                "line", x1=place(lower), x2=place(upper), y1=float(y), y2=float(y), class_="whisker"
            ),
            element(
                "circle",
                element("title", f"{label}: {value:.4f} [{lower:.4f}, {upper:.4f}]"),
                cx=place(value),
                cy=float(y),
                r=4,
                class_=f"s{i % COLORS}",
            ),
        ]
    foot = len(labels) * _BAR + 8
    marks += _ticks(low, high, place, foot)
    return _svg(marks, foot + 18)


def number_text(value: float) -> str:
    """Return a number as text for display, or "none" if it is not finite.

    Integers have thousands separators; other numbers have four significant digits.
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


# -- parts --------------------------------------------------------------------------------


def _svg(marks: Sequence[Markup], height: int) -> Markup:
    return element("svg", *marks, viewBox=f"0 0 {WIDTH} {height}", role="img")


def _legend(series: Sequence[Series]) -> Markup:
    names = [(number, s.name) for number, s in enumerate(series) if s.name]
    if len(names) < 2:
        return join_markup([])
    entries = [
        element("li", element("span", class_=f"key s{number % COLORS}"), name)
        for number, name in names
    ]
    return element("ul", *entries, class_="legend")


def _text(x: float, y: float, text: str, anchor: str, kind: str | None = None) -> Markup:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: first + (value - low) / span * (last - first)


def _span(one: float, other: float) -> tuple[float, float]:
    """Return the bounds of an axis that shows both numbers, in order and within the limits."""
    low, high = sorted(max(-_LARGEST, min(value, _LARGEST)) for value in (one, other))
    margin = max((high - low or abs(high) or 1.0) * 0.05, _SMALLEST)
    return low - margin, high + margin


def _steps(low: float, high: float, most: int = 5) -> list[float]:
    """Return about ``most`` round numbers between two bounds, for the ticks of an axis."""
    rough = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(
    low: float, high: float, height: Callable[[float], float], label: Callable[[float], str]
) -> list[Markup]:
    marks = []
    for value in _steps(low, high):
        y = height(value)
        marks.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        marks.append(_text(_LEFT - 6, y + 4, label(value), "end", "dim"))
    return marks


def _ticks(
    low: float, high: float, place: Callable[[float], float], foot: float = _HEIGHT - _BOTTOM
) -> list[Markup]:
    return [
        _text(place(value), foot + 14, number_text(value), "middle", "dim")
        for value in _steps(low, high, 8)
    ]


def _cut(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
