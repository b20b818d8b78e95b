"""Why a row is in a run's dataset, or why a candidate is not: found by replay.

Nothing is stored for this beyond the journal: the run is replayed up to the
completion in question, so the explanation cannot drift from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.commands.generate import reopen
from instructgen.drive import Progress, drive
from instructgen.engines import Request
from instructgen.errors import InputError
from instructgen.loop import Loop
from instructgen.sample import Sample
from instructgen.similarity import RougeLIndex
from instructgen.store import Run, find_row

# The nearest neighbour is shown however far it is.
_ANY_SIMILARITY = 1e-6


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The most similar earlier instruction: its id, text and ROUGE-L F-measure."""

    id: str
    instruction: str
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Written:
    """A completion on a row's way: its place in the run, prompt and text."""

    stage: str
    batch: int
    request: int
    prompt: str
    completion: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything a run knows about one row or rejected candidate."""

    id: str
    kept: bool
    row: dict[str, Any]
    parents: tuple[tuple[str, str], ...]
    written: tuple[Written, ...]
    passed: tuple[str, ...]
    nearest: Neighbour | None


def explain(out: str | Path, row_id: str) -> Explanation:
    """The parents, prompts, model, filters and nearest neighbour of a row.

    Args:
        out: a run folder with a dataset.
        row_id: an id from ``data`` or ``rejected`` (those begin with ``r-``).

    Raises:
        RunError: no run there, in use, or damaged.
        InputError: no such row.
    """
    folder = Path(out)
    with Run.open(folder) as run:
        found = find_row(folder, row_id)
        if found is None:
            raise InputError(
                f"{folder}: no row has the id {row_id}.",
                hint="Ids stand in the column id of data/ and rejected/.",
            )
        table, row = found
        place = (row["origin"]["batch"], row["origin"]["request"])
        # Twice: where the instruction was written is only known at the end.
        loop, _ = _replay(run, place[0] + 1, [])
        first = _instruction_place(loop, row["instruction"])
        places = [p for p in (first, place) if p is not None]
        loop, requests = _replay(run, place[0] + 1, places)
        passed = [f.name for f in loop.config.filters]
        if table == "rejected" and row["filter"] in passed:
            passed = passed[: passed.index(row["filter"])]
        elif table == "rejected":
            passed = []
        return Explanation(
            id=row_id,
            kept=table == "data",
            row=row,
            parents=_parents(loop, row["origin"]["parents"]),
            written=tuple(_written(run, p, requests[p]) for p in dict.fromkeys(places)),
            passed=tuple(passed),
            nearest=_nearest(loop, row, first or place),
        )


def _replay(
    run: Run, batches: int, places: Sequence[tuple[int, int]]
) -> tuple[Loop, dict[tuple[int, int], Request]]:
    loop = reopen(run)
    kept: dict[tuple[int, int], Request] = {}

    def look(batch: int, requests: Sequence[Request]) -> None:
        kept.update({p: requests[p[1]] for p in places if p[0] == batch})

    progress = Progress(loop.config.generate.target, loop)
    drive(loop, run, None, progress, None, batches=batches, on_batch=look)
    return loop, kept


def _instruction_place(loop: Loop, instruction: str) -> tuple[int, int] | None:
    for task in loop.pool.tasks:
        if task.sample.instruction == instruction:
            origin = task.sample.origin
            assert origin.batch is not None and origin.request is not None
            return origin.batch, origin.request
    return None


def _written(run: Run, place: tuple[int, int], request: Request) -> Written:
    entry = run.recorded(*place)
    assert entry is not None  # the replay has just used it
    c = entry.completion
    return Written(
        stage=request.stage,
        batch=place[0],
        request=place[1],
        prompt=request.prompt_text(),
        completion=c.text,
        finish_reason=c.finish_reason,
        prompt_tokens=c.prompt_tokens,
        output_tokens=c.output_tokens,
    )


def _parents(loop: Loop, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
    wanted, texts = set(ids), {}
    for sample in _earlier(loop, None):
        if sample.id in wanted:
            texts[sample.id] = sample.instruction
    return tuple((i, texts.get(i, "")) for i in ids)


def _earlier(loop: Loop, place: tuple[int, int] | None) -> list[Sample]:
    """Seeds, then the instructions accepted from completions before ``place``."""
    # A method in one stage has no pool of instructions: its rows are compared.
    made = [task.sample for task in loop.pool.tasks] or loop.rows
    return [
        *loop.pool.seeds,
        *(s for s in made if place is None or (s.origin.batch, s.origin.request) < place),
    ]


def _nearest(loop: Loop, row: dict[str, Any], place: tuple[int, int]) -> Neighbour | None:
    earlier = _earlier(loop, place)
    if row.get("nearest"):
        # The filter's own verdict, which may name an instruction of the same completion.
        by_id = {s.id: s.instruction for s in _earlier(loop, None)}
        return Neighbour(row["nearest"], by_id.get(row["nearest"], ""), row["score"])
    index = RougeLIndex(_ANY_SIMILARITY)
    index.add([s.instruction for s in earlier])
    (match,) = index.nearest([row["instruction"]])
    if match is None:
        return None
    sample = earlier[match.row]
    return Neighbour(sample.id, sample.instruction, match.score)
