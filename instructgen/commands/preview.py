"""The command `preview`: generates a few rows, and forecasts the complete run.

The results are written to a temporary folder, which is removed afterwards.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from instructgen.commands.explanation import Exchange, exchange_of
from instructgen.commands.generate import (
    begin,
    configure,
    loop_of,
    placement_of,
    read_known,
    reopen,
    seeds_for,
    sequencer_of,
    started,
)
from instructgen.commands.interface import command
from instructgen.commands.options import PreviewOptions
from instructgen.errors import ConfigError
from instructgen.filters import ComparingFilter
from instructgen.generation.loop import Loop
from instructgen.generation.sequencer import Activity
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Rejection, Sample
from instructgen.store import Run

# The number of rows, and the maximum number of requests to generate them.
_ROWS, _MOST_REQUESTS = 32, 400
# At exp(20), one new instruction takes half a billion proposals.
_MAX_EXPONENT = 20


@dataclass(frozen=True, slots=True)
class Forecast:
    """The results of a few requests, and a forecast of a run until ``target`` rows are accepted.

    ``duplicates`` is the fraction of proposed instructions that were too similar to an earlier
    one. ``duplicates_at_target`` and the fields after it are forecasts. They are None if too few
    rows were kept for an estimate. If nearly all proposals would be duplicates before the target
    is reached, ``duplicates_at_target`` is 1, and the fields after it are None.
    """

    rows: tuple[Sample, ...]
    prompts: tuple[Exchange, ...]
    requests: int
    candidates: int
    kept_instructions: int
    kept_rows: int
    acceptance: float
    duplicates: float
    output_tokens_per_s: float
    target: int
    duplicates_at_target: float | None
    prompt_tokens: int | None
    output_tokens: int | None
    seconds: float | None


@command(PreviewOptions, "seeds", "target")
def preview(options: PreviewOptions, watch: Watch | None = None) -> Forecast:
    """Generate a few rows as `generate` does; forecast the time and tokens of a complete run.

    The generated files are removed afterwards. The forecast of the time is an upper bound for an
    engine that works on many requests at the same time, which a few rows do not need.

    Raises:
        InputError, ConfigError, EngineError: for the same reasons as `generate`.
    """
    config = configure(options)
    target = config.generate.target
    if target == "all":
        raise ConfigError("--target=all: there is nothing to forecast.", "Pass a number of rows.")
    few = config.generate.model_copy(update={"target": min(target, _ROWS)})
    config = replace(config, generate=few)
    samples, _ = seeds_for(options, config)
    known = read_known(options.novel_against)
    with ExitStack() as stack:
        engines = stack.enter_context(started(config, placement_of(options)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="instructgen-")))
        run = stack.enter_context(begin(folder / "preview", config, samples, known, engines))
        loop = loop_of(run, config)
        sequencer = sequencer_of(run, loop, engines, watch)
        sequencer.run_to_stop(_MOST_REQUESTS)
        prompts = _first_prompts(run)
        shown = prompts if options.show_prompts else ()
        return _forecast(loop, sequencer.activity, target, shown)


def _first_prompts(run: Run) -> tuple[Exchange, ...]:
    """Return the first request of each stage with its completion, from the journal of a run."""
    found: dict[str, Exchange] = {}
    sequencer = sequencer_of(run, reopen(run), {}, None)
    for number in sequencer.replay():
        request = sequencer.request(number)
        if request.stage not in found:
            found[request.stage] = exchange_of(number, request, sequencer.completion(number))
    return tuple(found.values())


def _forecast(
    loop: Loop, activity: Activity, target: int, prompts: tuple[Exchange, ...]
) -> Forecast:
    t = loop.tally
    similar = _too_similar(loop)
    proposed = (t.kept_instructions or t.kept_rows) + len(similar)
    rows_per_instruction = _rows_per_instruction(loop)
    needed = math.ceil(target / rows_per_instruction) if rows_per_instruction else None
    at_target, effort = _growth(loop, proposed, needed)
    scale = None if effort is None or not proposed else effort / proposed
    return Forecast(
        rows=tuple(loop.rows[:10]),
        prompts=prompts,
        requests=t.requests,
        candidates=t.candidates,
        kept_instructions=t.kept_instructions,
        kept_rows=t.kept_rows,
        acceptance=t.kept / t.candidates if t.candidates else 0.0,
        duplicates=len(similar) / proposed if proposed else 0.0,
        output_tokens_per_s=activity.tokens_per_s,
        target=target,
        duplicates_at_target=at_target,
        prompt_tokens=None if scale is None else round(t.prompt_tokens * scale),
        output_tokens=None if scale is None else round(t.output_tokens * scale),
        seconds=None if scale is None else activity.engine_s * scale,
    )


def _too_similar(loop: Loop) -> list[Rejection]:
    """Return the rejections of instructions that were too similar to an earlier one."""
    filters = (f for f in loop.config.filters if isinstance(f, ComparingFilter))
    names = {f.name for f in filters if f.scope != "row"}
    return [r.rejection for r in loop.rejected if r.rejection.filter in names]


def _rows_per_instruction(loop: Loop) -> float:
    """Return the mean number of kept rows per instruction; 1 if a request generates full rows."""
    if not loop.pool.tasks:
        return 1.0
    resolved = sum(task.resolved for task in loop.pool.tasks)
    return loop.tally.kept_rows / resolved if resolved else 0.0


def _growth(loop: Loop, proposed: int, needed: int | None) -> tuple[float | None, float | None]:
    """Forecast the final duplicate fraction and the proposals for ``needed`` kept instructions.

    The forecast assumes that a proposal duplicates some seed with probability s, and each kept
    instruction with the same small probability h. The fraction of duplicates after n kept
    instructions is then 1 - (1 - s) * exp(-h * n). To estimate s and h, rejected proposals that
    are most similar to a seed, and those most similar to a kept instruction, are counted.
    """
    if not proposed or needed is None:
        return None, None
    seeds = {s.id for s in loop.pool.seeds}
    similar = _too_similar(loop)
    hit_seed = sum(r.nearest in seeds for r in similar)
    hit_kept = len(similar) - hit_seed
    kept = proposed - len(similar)
    s = hit_seed / proposed
    # A proposal was compared with 0 to ``kept`` earlier ones, on average half of them.
    h = hit_kept / max(1.0, (proposed - hit_seed) * kept / 2)
    survive = 1 - s
    if survive <= 0:
        return 1.0, None
    if h * needed > _MAX_EXPONENT:
        return 1.0, None
    duplicates = 1 - survive * math.exp(-h * needed)
    effort = (math.expm1(h * needed) / h if h else needed) / survive
    return duplicates, effort
