"""Why a row is in a run's dataset, or why a candidate is not: found by replay.

Nothing is stored for this beyond the journal: the run is replayed up to the
completion in question, so the explanation cannot drift from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.commands.explain_row import RowExplanation, explain_row
from instructgen.commands.generate import reopen
from instructgen.engines import Request
from instructgen.errors import InputError, RunError, quoted
from instructgen.filters.novelty import Novelty
from instructgen.generation.loop import Loop
from instructgen.generation.runner import Session, drive
from instructgen.schema.arrow import sample_row
from instructgen.schema.sample import Sample
from instructgen.similarity import RougeLIndex, rouge_l, tokenize
from instructgen.store import Run, find_row, is_run, read_manifest

# The nearest neighbour is shown however far it is.
_ANY_SIMILARITY = 1e-6


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The most similar earlier instruction: its id, text and ROUGE-L F-measure."""

    id: str
    instruction: str
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Exchange:
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
    """Everything a run knows about one row, rejected candidate, pool instruction or seed.

    ``verdict`` is ``kept``, ``rejected``, ``in the pool`` or ``a seed``. ``passed``
    are the filters that saw it and did not object, as ``stage/filter``.
    """

    id: str
    verdict: str
    row: dict[str, Any]
    parents: tuple[tuple[str, str], ...]
    written: tuple[Exchange, ...]
    passed: tuple[str, ...]
    nearest: Neighbour | None


def explain(out: str | Path, row_id: str) -> Explanation | RowExplanation:
    """Where a row comes from and why it was kept, or why it was rejected.

    Args:
        out: a run folder with a dataset, or a dataset that another command made.
        row_id: an id from ``data`` or ``rejected`` (those begin with ``r-``); of a run
            also one of an instruction or seed that such a row names as parent or
            nearest.

    Raises:
        RunError: no run or dataset there, in use, damaged, or not complete.
        InputError: nothing there has this id.
    """
    folder = Path(out)
    if not is_run(folder) and read_manifest(folder) is not None:
        return explain_row(folder, row_id)
    with Run.open(folder) as run:
        verdict, row = _find(run, row_id)
        place = (row["origin"]["batch"], row["origin"]["request"])
        if verdict == "a seed":
            return Explanation(row_id, verdict, row, (), (), (), None)
        # Twice: which task a completion was for is known by its request only,
        # and where that task was written by the task.
        loop, requests = _replay(run, [place])
        task = requests[place].task
        first = place if task is None else _place(loop.pool.tasks[task].sample)
        places = list(dict.fromkeys([first, place]))
        _, requests = _replay(run, places)
        return Explanation(
            id=row_id,
            verdict=verdict,
            row=row,
            parents=_parents(loop, row["origin"]["parents"]),
            written=tuple(_written(run, p, requests[p]) for p in places),
            passed=_passed(loop, row, verdict, proposed=task is None),
            nearest=_nearest(loop, row, first),
        )


def _find(run: Run, row_id: str) -> tuple[str, dict[str, Any]]:
    found = find_row(run.folder, row_id)
    if found is not None:
        return {"data": "kept", "rejected": "rejected"}[found[0]], found[1]
    loop = reopen(run)
    for seed in loop.pool.seeds:
        if seed.id == row_id:
            return "a seed", sample_row(seed)
    drive(loop, run, None, Session(loop.config.generate.target, loop), None)
    for task in loop.pool.tasks:
        if task.sample.id == row_id:
            return "in the pool", sample_row(task.sample)
    raise InputError(
        f"{run.folder}: nothing has the id {quoted(row_id)}.",
        hint="Ids stand in the columns id, nearest and origin.parents of data/ and rejected/.",
    )


def _passed(loop: Loop, row: dict[str, Any], verdict: str, *, proposed: bool) -> tuple[str, ...]:
    """The filters that let it pass, in the order in which they saw it."""
    instruction = [f"instruction/{f.name}" for f in loop.chain.at("instruction")]
    answered = [f"row/{f.name}" for f in loop.chain.at("row")]
    if verdict == "in the pool" or row.get("reason") == "not_expanded":
        return tuple(instruction)
    if verdict == "kept":
        return (*instruction, *answered)
    # Of a task in the pool the instruction had passed before; of a proposal it
    # was judged now, and the rest only where it came with an answer.
    before = [] if proposed else instruction
    seen = [*instruction, *(answered if row["output"] else [])] if proposed else answered
    # A filter of both stages would have objected at the first.
    at = [i for i, f in enumerate(seen) if f.endswith(f"/{row['filter']}")]
    return (*before, *(seen[: at[0]] if at else ()))


def _replay(
    run: Run, places: Sequence[tuple[int, int]]
) -> tuple[Loop, dict[tuple[int, int], Request]]:
    """The loop up to the last of these places, and the requests made there."""
    loop = reopen(run)
    kept: dict[tuple[int, int], Request] = {}

    def look(batch: int, requests: Sequence[Request]) -> None:
        kept.update({p: requests[p[1]] for p in places if p[0] == batch})

    session = Session(loop.config.generate.target, loop)
    last = max(batch for batch, _ in places)
    drive(loop, run, None, session, None, batches=last + 1, on_batch=look)
    if len(kept) < len(set(places)):
        raise RunError(
            f"{run.folder}: its dataset holds rows that its journal does not lead to.",
            f"Run: instructgen rebuild {run.folder}",
        )
    return loop, kept


def _written(run: Run, place: tuple[int, int], request: Request) -> Exchange:
    entry = run.recorded(*place)
    assert entry is not None  # the replay has just used it
    c = entry.completion
    return Exchange(
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


def _place(sample: Sample) -> tuple[int, int]:
    """The batch and request that wrote a generated sample."""
    batch, request = sample.origin.batch, sample.origin.request
    assert batch is not None and request is not None
    return batch, request


def _earlier(loop: Loop, place: tuple[int, int] | None) -> list[Sample]:
    """Seeds, then the instructions accepted from completions before ``place``."""
    # A method in one stage has no pool of instructions: its rows are compared.
    made = [task.sample for task in loop.pool.tasks] or loop.rows
    return [
        *loop.pool.seeds,
        *(s for s in made if place is None or _place(s) < place),
    ]


def _nearest(loop: Loop, row: dict[str, Any], place: tuple[int, int]) -> Neighbour | None:
    """The row that the filter named, or else the nearest of what earlier completions brought."""
    gates = [f for f in loop.config.filters if isinstance(f, Novelty)]
    tokenizer = gates[0].tokenizer if gates else "unicode"
    if row.get("nearest"):
        # Its score may be of another measure: it stands in the row's detail.
        texts = {s.id: s.instruction for s in (*_earlier(loop, None), *loop.rows)}
        text = texts.get(row["nearest"], "")
        ours, theirs = tokenize(row["instruction"], tokenizer), tokenize(text, tokenizer)
        return Neighbour(row["nearest"], text, rouge_l(ours, theirs))
    earlier = _earlier(loop, place)
    index = RougeLIndex(_ANY_SIMILARITY, tokenizer)
    index.add([s.instruction for s in earlier])
    (match,) = index.nearest([row["instruction"]])
    if match is None:
        return None
    sample = earlier[match.row]
    return Neighbour(sample.id, sample.instruction, match.score)
