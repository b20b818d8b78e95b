"""Describes the progress of a generation run: rows, slots in use, rejections, the latest row."""

from __future__ import annotations

from collections import Counter

from instructgen.generation.loop import Loop
from instructgen.generation.sequencer import Activity
from instructgen.printable import printable
from instructgen.schema.progress import Progress

# Candidates that cannot be parsed before a hint is shown.
_HINT_AFTER = 16
_ROW_CHARACTERS = 110


def progress_of(loop: Loop, activity: Activity) -> Progress:
    """Return the progress of a run, with the time left if enough rows were accepted for it."""
    tally, target = loop.tally, loop.config.generate.target
    total = None if target == "all" else target
    left = None
    # The first rows come late, so an estimate from few of them would be far too high.
    if total and activity.engine_s and not activity.replayed and 10 * tally.kept_rows >= total:
        left = activity.engine_s * max(0, total - tally.kept_rows) / tally.kept_rows
    figures: dict[str, float] = {}
    if tally.kept_instructions or not tally.kept_rows:
        figures["instructions"] = tally.kept_instructions
    if tally.kept_rows:
        figures["requests per row"] = round(tally.requests / tally.kept_rows, 2)
    if activity.asked:
        figures |= {
            "tokens/s": round(activity.tokens_per_s),
            "slots busy": round(activity.slots_busy, 2),
        }
    notes = [
        _latest_row(loop),
        _in_progress(loop, activity),
        _rejections(loop),
        format_hint(loop),
    ]
    return Progress(
        "generate",
        # More rows of the last drafts may be accepted than are delivered.
        tally.kept_rows if total is None else min(tally.kept_rows, total),
        total,
        figures=figures,
        notes=tuple(note for note in notes if note),
        seconds_left=left,
    )


def format_hint(loop: Loop) -> str:
    """Return advice if most completions cannot be parsed; otherwise an empty string."""
    tally, method = loop.tally, loop.config.method.name
    unparsed = sum(n for (_, name, _), n in tally.rejected.items() if name == method)
    if unparsed < _HINT_AFTER or unparsed < 0.7 * tally.candidates or tally.kept_rows:
        return ""
    return (
        f"{unparsed:,} of {tally.candidates:,} candidates cannot be parsed: the model does "
        f"not follow the format of the method {method}. Try another --method or --model."
    )


def _latest_row(loop: Loop) -> str:
    row = loop.latest_row()
    if row is None:
        return ""
    text = printable(" ".join(f"{row.instruction} → {row.output}".split()))
    short = text if len(text) <= _ROW_CHARACTERS else text[: _ROW_CHARACTERS - 1] + "…"
    return f"latest row: {short}"


def _in_progress(loop: Loop, activity: Activity) -> str:
    counts = [f"{name} {count:,}" for name, count in loop.in_progress().items() if count]
    if not counts:
        return ""
    flight = ""
    if activity.asked:
        flight = (
            f"in flight {activity.in_flight:,} of {activity.window:,} "
            f"(mean {activity.mean_in_flight:,.1f}), "
        )
    return f"{flight}drafts in progress: {', '.join(counts)}"


def _rejections(loop: Loop) -> str:
    tally = loop.tally
    reasons: Counter[str] = Counter()
    for (_, name, reason), count in tally.rejected.items():
        reasons[f"{name}/{reason}"] += count
    share = tally.kept / tally.candidates if tally.candidates else 0.0
    note = f"{tally.candidates:,} candidates, {share:.0%} accepted"
    most = ", ".join(f"{name} {count}" for name, count in reasons.most_common(4))
    return f"{note}; rejected: {most}" if most else note
