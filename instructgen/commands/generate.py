"""The commands generate and rebuild: begin or resume a run, drive it, write its dataset."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from instructgen.engines import Supervisor
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.formats import OnBadRow
from instructgen.generation.loop import Loop, Stop
from instructgen.generation.methods import Form
from instructgen.generation.options import Config, from_recorded, load_config
from instructgen.generation.runner import Session, drive
from instructgen.generation.seed_pool import load_seeds, seeds_digest
from instructgen.models.folders import EMBEDDED
from instructgen.reports.cards import generated_card
from instructgen.schema.arrow import sample_of, sample_row
from instructgen.schema.progress import Watch
from instructgen.schema.sample import Rejected, Sample
from instructgen.store import (
    FORMAT,
    Run,
    is_run,
    manifest_bytes,
    read_info,
    read_manifest,
    read_samples,
    shape_of,
    training_split,
    write_dataset,
)
from instructgen.versions import OF_RUNS, versions


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """What a run came to."""

    out: Path
    rows: int
    rejected: int
    stopped: Stop
    funnel: dict[str, Any]
    prompt_tokens: int
    output_tokens: int
    seconds: float
    tokens_per_s: float
    idle_share: float
    asked: int
    replayed: int
    restarts: int
    healed: str | None
    parts: tuple[str, ...]
    card: str
    bad_seed_rows: int
    unchanged: bool = False


def generate(
    seeds: str | Path | Sequence[str | Path],
    target: int,
    out: str | Path,
    *,
    model: str | None = None,
    engine: str | None = None,
    endpoint: str | None = None,
    method: str | None = None,
    recipe: str | Path = "default",
    license: str = "",
    language: str = "",
    on_bad_row: OnBadRow = "fail",
    seed: int | None = None,
    batch_size: int | None = None,
    max_tokens_total: int | None = None,
    watch: Watch | None = None,
) -> GenerateResult:
    """Expand seed tasks into a dataset of ``target`` rows, or go on with such a run.

    Args:
        seeds: files of our seed tasks, Dolly, Alpaca or Self-Instruct, and dataset folders.
        target: accepted rows to make. May be raised when a run is resumed.
        out: the run's folder; one that holds this run is resumed.
        model: a path, a Hub name, or ``smollm2``.
        engine: ``vllm``, ``openai``, ``transformers`` or ``echo``.
        endpoint: the server of ``openai``, in place of what a recipe names; the key goes
            to it.
        method: ``self_instruct`` or ``alpaca``.
        recipe: a shipped name or a TOML file.
        license: SPDX licence of seeds that name none.
        language: ISO 639 language of seeds that name none.
        on_bad_row: ``fail`` or ``reject``.
        seed: what all randomness comes from.
        batch_size: requests in a batch.
        max_tokens_total: a budget of prompt and completion tokens.
        watch: called whenever there is progress to show.

    Returns:
        Counts, paths and speed.

    Raises:
        InputError: a seed file is bad.
        ConfigError: an option or the recipe is bad.
        RunError: the folder holds another run, or is in use.
        EngineError: the engine cannot start or go on; the run can be resumed.
        StorageError: the disk refuses; the run can be resumed.
    """
    config = configure(
        target, model, engine, endpoint, method, recipe, seed, batch_size, max_tokens_total
    )
    samples, bad = read_seeds(seeds, license, language, on_bad_row)
    folder = Path(out)
    with ExitStack() as stack:
        stack.callback(config.engine.close)
        run = stack.enter_context(begin(folder, config, samples))
        session = Session(target, Loop(config, form_of(run), samples, run.id))
        restarts = _driven(run, session, watch)
        return _write(run, session, restarts, len(bad))


def _driven(run: Run, session: Session, watch: Watch | None) -> int:
    """Take the loop to its stop, and note what the engine did; how often it was restarted."""
    supervisor = Supervisor(session.loop.config.engine)
    try:
        drive(session.loop, run, supervisor, session, watch)
    finally:
        if session.asked:
            run.end_session(
                {
                    "engine_s": round(session.engine_s, 2),
                    "asked": session.asked,
                    "output_tokens": session.output_tokens,
                }
            )
    return supervisor.restarts


def rebuild(out: str | Path, *, watch: Watch | None = None) -> GenerateResult:
    """Make a run's dataset again from its journal; no engine is started.

    Of a run that was interrupted, the rows of all whole batches.

    Args:
        out: the run's folder.
        watch: called whenever there is progress to show.

    Raises:
        RunError: no run there, in use, or its journal is damaged or of other code.
        StorageError: the disk refuses.
    """
    with Run.open(Path(out)) as run:
        loop = reopen(run)
        session = Session(loop.config.generate.target, loop)
        drive(loop, run, None, session, watch)
        _refuse_to_shrink(run.folder, len(loop.rows), "Restore journal.jsonl from a copy.")
        return _write(run, session, 0, 0)


def _refuse_to_shrink(folder: Path, rows: int, hint: str) -> None:
    try:
        manifest = read_manifest(folder)
    except RunError:
        # A damaged manifest is what rebuild is there to mend.
        return
    files = [] if manifest is None else manifest["files"]
    there = sum(file["rows"] for file in files if file["path"].startswith("data/"))
    if there > rows:
        raise RunError(
            f"{folder} has a dataset of {there:,} rows; this would leave {rows:,}.", hint
        )


def configure(
    target: int,
    model: str | None,
    engine: str | None,
    endpoint: str | None,
    method: str | None,
    recipe: str | Path,
    seed: int | None,
    batch_size: int | None,
    max_tokens_total: int | None,
) -> Config:
    """The checked configuration that these options and the recipe come to."""
    return load_config(
        str(recipe),
        {
            "generate": {
                "target": target,
                "seed": seed,
                "batch_size": batch_size,
                "max_tokens_total": max_tokens_total,
            },
            "method": {"name": method},
            "engine": {"name": engine, "model": model, "endpoint": endpoint},
        },
    )


def read_seeds(
    seeds: str | Path | Sequence[str | Path],
    license: str,
    language: str,
    on_bad_row: OnBadRow,
) -> tuple[list[Sample], list[Any]]:
    """The seeds of files and dataset folders, and the rows rejected.

    Of a folder that is split only what is trained on, so that no prompt shows the rest.
    """
    paths = [Path(p) for p in ([seeds] if isinstance(seeds, str | Path) else seeds)]
    folders = [path for path in paths if _is_folder(path)]
    files = [path for path in paths if path not in folders]
    samples, bad = load_seeds(files, license=license, language=language, on_bad_row=on_bad_row)
    for folder in folders:
        if shape_of(folder) != "instructions":
            raise InputError("it holds preferences.", path=folder, hint="Give instructions.")
        samples += read_samples(folder, split=training_split(folder))
    if not samples:
        raise ConfigError("--seeds: no usable row is left.", "Give seed tasks.")
    return samples, bad


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # Its reader says what is wrong with the name.
        return False


def reopen(run: Run) -> Loop:
    """The loop of a recorded run, at its beginning."""
    config = from_recorded(run.info["config"], run.folder)
    then, now = (c.get("plugins", {}) for c in (run.info["config"], config.plugins()))
    if changed := [n for n in sorted(then.keys() | now.keys()) if then.get(n) != now.get(n)]:
        raise RunError(
            f"{run.folder} was generated with different code of the plug-in {changed[0]}.",
            "Install the plug-in version that run.json names.",
        )
    seeds = [sample_of(row) for row in run.seeds()]
    return Loop(config, form_of(run), seeds, run.id)


@contextmanager
def begin(folder: Path, config: Config, seeds: Sequence[Sample]) -> Iterator[Run]:
    """The run in a folder: this one resumed, or a new one begun.

    Raises:
        RunError: the folder holds something else, or a run with other settings.
        ConfigError: the prompts' style does not suit the model.
    """
    recorded = config.recorded()
    digest = seeds_digest(seeds)
    if is_run(folder):
        with Run.open(folder) as run:
            _same_run(folder, config, run.info, digest)
            if run.info["config"] != recorded:
                run.update({**run.info, "config": recorded})
            yield run
        return
    fixed = {k: v for k, v in _flat(recorded).items() if k not in config.may_change()}
    info = {
        "format": FORMAT,
        "run": hashlib.sha256(orjson.dumps([sorted(fixed.items()), digest])).hexdigest()[:16],
        "config": recorded,
        "form": _decide_form(config)._asdict(),
        "seeds": {"sha256": digest, "rows": len(seeds)},
        "versions": versions(OF_RUNS),
    }
    lines = (orjson.dumps(sample_row(s)) + b"\n" for s in seeds)
    with Run.create(folder, info, lines) as run:
        yield run


def resumable(folder: Path, config: Config, seeds: Sequence[Sample]) -> bool:
    """Whether `generate` would go on with the run in the folder."""
    try:
        _same_run(folder, config, read_info(folder), seeds_digest(seeds))
    except RunError:
        return False
    return True


def _same_run(folder: Path, config: Config, info: dict[str, Any], digest: str) -> None:
    """Refuse what the recorded run cannot be taken further with."""
    then, now = _flat(info["config"]), _flat(config.recorded())
    changed = [
        f"{key} ({then.get(key)!r} there, {now.get(key)!r} now)"
        for key in sorted(then.keys() | now.keys())
        if key not in config.may_change() and then.get(key) != now.get(key)
    ]
    if info["seeds"]["sha256"] != digest:
        changed.append(f"the seeds ({info['seeds']['rows']} rows there, others now)")
    if changed:
        raise RunError(
            f"{folder} is a run with other settings: {'; '.join(changed)}.",
            "Give the same to resume it, or another --out.",
        )
    _refuse_to_shrink(folder, config.generate.target, "Give the same --target or a higher one.")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Settings by ``table.key``; nested tables and the filters as one value each."""
    tables = ("generate", "method", "engine")
    flat = {f"{t}.{k}": v for t in tables for k, v in config[t].items()}
    flat |= {f"plugins.{name}": part for name, part in config.get("plugins", {}).items()}
    return {**flat, **{f"filters.{i}": f for i, f in enumerate(config["filters"], start=1)}}


def _decide_form(config: Config) -> Form:
    """Settle the prompts' style once; whether schemas bind is tried, not believed."""
    style = config.method.style
    if style == "auto":
        # Measured: the embedded model writes usable tasks when it continues a
        # list, and rambles when it is asked for one (docs/decisions/0003).
        chat = config.engine.model != EMBEDDED and config.engine.chats()
        style = "chat" if chat else "completion"
    if style == "chat" and not config.engine.chats():
        raise ConfigError(
            f"style = chat, but {config.engine.model or config.engine.name} has no chat template.",
            "Use style = completion.",
        )
    return Form(style, structured=style == "chat" and config.engine.binds_schema())


def form_of(run: Run) -> Form:
    """How the run's prompts are made, as settled when it began."""
    return Form(**run.info["form"])


def _write(run: Run, session: Session, restarts: int, bad_seed_rows: int) -> GenerateResult:
    loop = session.loop
    rejected = loop.finish()
    stopped = loop.stopped or Stop("interrupted", "the journal ends here; generate goes on")
    funnel = funnel_of(loop, rejected)
    facts = {
        "run": run.id,
        "stopped": stopped._asdict(),
        "funnel": funnel,
        "tokens": {"prompt": loop.tally.prompt_tokens, "output": loop.tally.output_tokens},
    }
    before = manifest_bytes(run.folder)
    parts = write_dataset(
        run.folder,
        loop.rows,
        rejected,
        lambda contents: generated_card(run, loop, contents, funnel, stopped),
        facts,
    )
    return GenerateResult(
        out=run.folder,
        rows=len(loop.rows),
        rejected=len(rejected),
        stopped=stopped,
        funnel=funnel,
        prompt_tokens=loop.tally.prompt_tokens,
        output_tokens=loop.tally.output_tokens,
        seconds=time.monotonic() - session.started,
        tokens_per_s=session.tokens_per_s,
        idle_share=session.idle_share,
        asked=session.asked,
        replayed=session.replayed,
        restarts=restarts,
        healed=run.healed,
        parts=tuple(str(run.folder / p.path) for p in parts),
        card=str(run.folder / "README.md"),
        bad_seed_rows=bad_seed_rows,
        unchanged=manifest_bytes(run.folder) == before,
    )


def funnel_of(loop: Loop, rejected: Sequence[Rejected]) -> dict[str, Any]:
    """Every candidate of a run by its fate.

    ``candidates`` is the sum of ``kept_instructions``, ``kept_rows`` and the
    rejected. ``not_expanded`` of the kept instructions never had rows asked for;
    they are no rows, and stand among the rejected parts with that reason.
    """
    t = loop.tally
    return {
        "requests": t.requests,
        "failed_requests": t.failed_requests,
        "candidates": t.candidates,
        "kept_instructions": t.kept_instructions,
        "kept_rows": t.kept_rows,
        "not_expanded": len(rejected) - sum(t.rejected.values()),
        "rejected": [
            {"stage": stage, "filter": name, "reason": reason, "count": count}
            for (stage, name, reason), count in sorted(t.rejected.items())
        ],
    }
