"""The command `explain`: finds why a row is in a dataset, or why a candidate was rejected.

Explanations of generated rows are not stored. Instead, the run is replayed from its journal (the
recorded completions) up to the completion that contains the row, so that the explanation always
agrees with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgen.commands.explanation import (
    Exchange,
    Explanation,
    Neighbor,
    exchange_of,
    explain_row,
    unknown_id,
)
from instructgen.commands.generate import reopen, replayed, sequencer_of
from instructgen.commands.interface import command
from instructgen.commands.options import ExplainOptions
from instructgen.errors import RunError
from instructgen.filters.novelty import Novelty
from instructgen.generation.loop import Loop
from instructgen.generation.methods import Draft
from instructgen.schema.arrow import sample_row
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Sample
from instructgen.similarity import RougeLIndex, rouge_l, tokenize
from instructgen.store import Run, find_row, is_run, read_manifest

# The nearest neighbor is shown at any similarity above zero.
_ANY_SIMILARITY = 1e-6


@command(ExplainOptions, "data", "row_id")
def explain(options: ExplainOptions, watch: Watch | None = None) -> Explanation:
    """Explain where a row comes from, and why it was kept or rejected.

    ``row_id`` is the ID of a kept row or, if it starts with ``r-``, of a rejected row. In a run,
    ``row_id`` may also be the ID of a seed or of an accepted instruction, such as an ID from the
    column ``origin.parents`` or ``nearest``.

    Raises:
        RunError: the folder contains no run or dataset, or is in use, damaged or incomplete.
        InputError: no row, instruction or seed has this ID.
    """
    folder, row_id = options.data, options.row_id
    if not is_run(folder) and read_manifest(folder) is not None:
        return explain_row(folder, row_id)
    with Run.open(folder) as run:
        return _explain_generated(run, row_id)


@dataclass(frozen=True, slots=True)
class _Replay:
    """A request of a run: what was exchanged, its draft, and the number of rows before it."""

    exchange: Exchange
    draft: Draft
    instructions: int
    rows: int


def _explain_generated(run: Run, row_id: str) -> Explanation:
    verdict, row = _find(run, row_id)
    number = row["origin"]["request"]
    if verdict == "a seed":
        return Explanation(row_id, verdict, row)
    # The run is replayed twice: only the request of a row identifies its task, and only
    # the task identifies the request that proposed it.
    loop, requests = _replay(run, [number])
    task = requests[number].draft.task
    first = number if task is None else _request(loop.pool.tasks[task].sample)
    numbers = list(dict.fromkeys([first, number]))
    _, requests = _replay(run, numbers)
    passed, later = _evaluated(loop, row, verdict, proposed=task is None)
    return Explanation(
        id=row_id,
        verdict=verdict,
        row=row,
        parents=_parents(loop, row["origin"]["parents"]),
        written=tuple(requests[n].exchange for n in numbers),
        passed=passed,
        not_evaluated=later,
        nearest=_nearest(run, loop, row, requests[first]),
    )


def _find(run: Run, row_id: str) -> tuple[str, dict[str, Any]]:
    row = find_row(run.folder, row_id)
    if row is not None:
        return {"data": "kept", "rejected": "rejected"}[row[0]], row[1]
    loop = reopen(run)
    for seed in loop.pool.seeds:
        if seed.id == row_id:
            return "a seed", sample_row(seed)
    replayed(run, loop)
    for task in loop.pool.tasks:
        if task.sample.id == row_id:
            return "in the pool", sample_row(task.sample)
    raise unknown_id(run.folder, row_id)


def _evaluated(
    loop: Loop, row: dict[str, Any], verdict: str, *, proposed: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the filters that accepted the row, and those after the one that rejected it."""
    instruction = [f"instruction/{f.name}" for f in loop.chain.at("instruction")]
    answered = [f"row/{f.name}" for f in loop.chain.at("row")]
    if verdict == "in the pool" or row.get("reason") == "not_expanded":
        return tuple(instruction), ()
    if verdict == "kept":
        return (*instruction, *answered), ()
    # The instruction of a task in the pool was accepted in an earlier stage. A proposed
    # instruction is evaluated together with its answer, if it has one.
    before = [] if proposed else instruction
    order = [*instruction, *(answered if row["output"] else [])] if proposed else answered
    # A filter with both scopes is listed twice; the first one rejected the row.
    at = [i for i, f in enumerate(order) if f.endswith(f"/{row['filter']}")]
    if not at:
        return tuple(before), ()
    return (*before, *order[: at[0]]), tuple(order[at[0] + 1 :])


def _replay(run: Run, numbers: Sequence[int]) -> tuple[Loop, dict[int, _Replay]]:
    """Replay a run until these requests were committed; return the loop and the requests."""
    loop = reopen(run)
    sequencer = sequencer_of(run, loop, {}, None)
    missing, found = set(numbers), {}
    for number in sequencer.replay():
        if not missing:
            break
        if number not in missing:
            continue
        missing.remove(number)
        exchange = exchange_of(number, sequencer.request(number), sequencer.completion(number))
        before = len(loop.pool.tasks), len(loop.rows)
        found[number] = _Replay(exchange, loop.draft_of(number), *before)
    if missing:
        raise RunError(
            f"{run.folder}: the dataset contains rows that are not in the run's journal.",
            f"To recreate the dataset from the journal, run: instructgen rebuild {run.folder}",
        )
    return loop, found


def _parents(loop: Loop, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
    parents, texts = set(ids), {}
    for sample in _earlier(loop, None):
        if sample.id in parents:
            texts[sample.id] = sample.instruction
    return tuple((i, texts.get(i, "")) for i in ids)


def _request(sample: Sample) -> int:
    """Return the number of the request that generated a sample."""
    assert sample.origin.request is not None
    return sample.origin.request


def _earlier(loop: Loop, before: _Replay | None) -> list[Sample]:
    """Return the seeds and the instructions accepted before a request, or all of them."""
    # A method with one stage has no pool of instructions, so its rows are compared.
    generated = [task.sample for task in loop.pool.tasks]
    end = None if before is None else before.instructions
    if not generated:
        generated, end = loop.rows, None if before is None else before.rows
    return [*loop.pool.seeds, *generated[:end]]


def _nearest(run: Run, loop: Loop, row: dict[str, Any], first: _Replay) -> Neighbor | None:
    """Return the nearest row recorded with a rejection, or else the most similar earlier row."""
    gates = [f for f in loop.config.filters if isinstance(f, Novelty)]
    tokenizer = gates[0].tokenizer if gates else "unicode"
    if row.get("nearest"):
        # The score of the filter may be a different measure, so ROUGE-L is computed here.
        texts = {s.id: s.instruction for s in (*_earlier(loop, None), *loop.rows)}
        text = texts.get(row["nearest"])
        if text is None:
            # A row that waited for a score is compared again with rows kept in the meantime.
            found = find_row(run.folder, row["nearest"])
            text = "" if found is None else found[1]["instruction"]
        tokens, others = tokenize(row["instruction"], tokenizer), tokenize(text, tokenizer)
        return Neighbor(row["nearest"], text, rouge_l(tokens, others))
    earlier = _earlier(loop, first)
    index = RougeLIndex(_ANY_SIMILARITY, tokenizer)
    index.add([s.instruction for s in earlier])
    (match,) = index.nearest([row["instruction"]])
    if match is None:
        return None
    sample = earlier[match.row]
    return Neighbor(sample.id, sample.instruction, match.score)
