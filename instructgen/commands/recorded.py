"""Asks an engine for a command that derives a dataset, and records the completions in its folder.

Each completion is paid for once: if the command is interrupted, the same command continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from pydantic import JsonValue

from instructgen.engines import Completion, Engine, Request
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import RunError
from instructgen.generation.sequencer import answer_all
from instructgen.schema.arrow import sample_row
from instructgen.schema.progress import Progress, Watch
from instructgen.schema.sample import Sample
from instructgen.store import (
    FORMAT,
    IssueLine,
    Provenance,
    Run,
    RunInfo,
    Seeds,
    differences,
    is_run,
    read_info,
)
from instructgen.versions import OF_MODELS, versions


def recorded_id(made_from: Provenance, rows: Sequence[Sample]) -> str:
    """Return the id of the completions that a command asks for, from its options and rows."""
    what = [made_from.to_dict(), [row.id for row in rows]]
    return hashlib.sha256(orjson.dumps(what, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def recorded_form(folder: Path) -> Mapping[str, JsonValue]:
    """Return how the recorded requests of a folder were made, {} if nothing is recorded."""
    return read_info(folder).form if is_run(folder) else {}


def recorded_answers(
    folder: Path,
    engine: Engine | Supervisor,
    requests: Sequence[Request],
    rows: Sequence[Sample],
    made_from: Provenance,
    *,
    run: str,
    form: Mapping[str, JsonValue] | None = None,
    may_change: tuple[str, ...] = (),
    watch: Watch | None = None,
) -> list[Completion]:
    """Return the completion of each request; those that the folder contains are not asked again.

    Args:
        folder: where the completions are recorded.
        engine: the engine, which is closed at the end; or its supervisor, which is not.
        requests: requests that do not depend on each other.
        rows: the rows that the requests are about.
        made_from: what the requests are made from.
        run: the id of the completions.
        form: how the requests were made, which `recorded_form` returns later.
        may_change: beginnings of the keys of ``made_from`` that do not change the requests.
        watch: called with the progress.

    Raises:
        EngineError: the engine cannot continue; the same call resumes.
        RunError: the folder has completions that were made with other options.
    """

    def report(done: int) -> None:
        if watch is not None:
            watch(Progress(folder.name, done, len(requests), "completions"))

    with _journal(folder, rows, len(requests), made_from, run, form or {}, may_change) as journal:
        return answer_all(engine, requests, journal, report)


@contextmanager
def _journal(
    folder: Path,
    rows: Sequence[Sample],
    requests: int,
    made_from: Provenance,
    run: str,
    form: Mapping[str, JsonValue],
    may_change: tuple[str, ...],
) -> Iterator[Run]:
    if is_run(folder):
        with Run.open(folder) as journal:
            _check_same(journal, requests, made_from, may_change)
            yield journal
        return
    lines = [orjson.dumps(sample_row(row)) + b"\n" for row in rows]
    info = RunInfo(
        format=FORMAT,
        run=run,
        config=made_from.to_dict(),
        seeds=Seeds(hashlib.sha256(b"".join(lines)).hexdigest(), len(rows)),
        versions=versions(OF_MODELS),
        form=dict(form),
    )
    with Run.create(folder, info, lines) as journal:
        yield journal


def _check_same(
    journal: Run, requests: int, made_from: Provenance, may_change: tuple[str, ...]
) -> None:
    changed = [
        key
        for key in differences(journal.info.config, made_from.to_dict())
        if not key.startswith(may_change or ("\0",))
    ]
    if requests < sum(isinstance(line, IssueLine) for _, line in journal.lines()):
        changed.append("options.limit")
    if changed:
        raise RunError(
            f"{journal.folder} contains answers that were made differently; "
            f"changed: {', '.join(changed)}.",
            "Pass the same options, or another --out.",
        )
