"""The commands `generate` (start or resume a run) and `rebuild` (recreate its dataset)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from instructgen.commands.interface import command
from instructgen.commands.options import GenerateOptions, PreviewOptions, RebuildOptions
from instructgen.engines import Supervisor
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.formats import OnBadRow
from instructgen.generation.loop import Loop, Stop
from instructgen.generation.methods import PromptSetup
from instructgen.generation.options import Config, from_recorded, load_config
from instructgen.generation.runner import Session, run_loop
from instructgen.generation.seed_pool import load_seeds, seeds_digest
from instructgen.models.folders import EMBEDDED
from instructgen.reports.cards import generated_card
from instructgen.schema.arrow import sample_of, sample_row
from instructgen.schema.progress import Watch
from instructgen.schema.records import JsonRecord
from instructgen.schema.sample import Rejected, Sample
from instructgen.store import (
    FORMAT,
    RejectionCount,
    Run,
    RunInfo,
    Seeds,
    SessionUse,
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
class RunFacts(JsonRecord):
    """Facts about a run, for its manifest.

    A candidate is an instruction or a row in a completion, or a completion that cannot be parsed.
    ``candidates`` is the sum of ``kept_instructions``, ``kept_rows`` and the number of rejected
    candidates. ``not_expanded`` is the number of kept instructions for which no row was
    generated; they are in ``rejected/`` with the reason ``not_expanded``.
    """

    run: str
    stopped: str
    stopped_detail: str
    requests: int
    failed_requests: int
    candidates: int
    kept_instructions: int
    kept_rows: int
    not_expanded: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The result of a run.

    ``facts`` cover the run from its first start. ``asked`` (the number of requests sent to the
    engine), ``seconds``, ``tokens_per_s`` and ``idle_share`` (the fraction of time in which the
    engine was idle) cover only this call, which may have resumed the run. ``healed`` is a message
    if an incomplete last line was removed from the journal, otherwise None. ``unchanged`` is true
    if the same dataset already existed. ``hint`` is advice if most completions cannot be parsed,
    otherwise empty.
    """

    out: Path
    rows: int
    rejected: int
    facts: RunFacts
    rejections: tuple[RejectionCount, ...]
    seconds: float
    tokens_per_s: float
    idle_share: float
    asked: int
    replayed: int
    restarts: int
    healed: str | None
    parts: tuple[str, ...]
    card: str
    invalid_seeds: int
    unchanged: bool = False
    hint: str = ""


@command(GenerateOptions, "seeds", "target", "out")
def generate(options: GenerateOptions, watch: Watch | None = None) -> GenerateResult:
    """Generate a dataset of ``target`` accepted rows from seed tasks, with a language model.

    Repeat the same call to resume a run that was stopped. Pass a higher target to continue a
    finished run.

    Raises:
        InputError: a seed file is invalid.
        ConfigError: an option or the recipe is invalid.
        RunError: the output folder contains a different run or other files, or is in use.
        EngineError: the engine cannot start or continue; the run can be resumed.
        StorageError: the files cannot be written; the run can be resumed.
    """
    config = configure(options)
    samples, invalid = seeds_for(options)
    with ExitStack() as stack:
        stack.callback(config.engine.close)
        run = stack.enter_context(begin(options.out, config, samples))
        session = Session(options.target, Loop(config, form_of(run), samples, run.id))
        restarts = _generated(run, session, watch)
        return _write(run, session, restarts, len(invalid))


def _generated(run: Run, session: Session, watch: Watch | None) -> int:
    """Run the generation loop until the run stops; return how often the engine was restarted."""
    supervisor = Supervisor(session.loop.config.engine)
    try:
        run_loop(session.loop, run, supervisor, session, watch)
    finally:
        if session.asked:
            run.end_session(
                SessionUse(round(session.engine_s, 2), session.asked, session.output_tokens)
            )
    return supervisor.restarts


@command(RebuildOptions, "run")
def rebuild(options: RebuildOptions, watch: Watch | None = None) -> GenerateResult:
    """Recreate the dataset of a run from the completions in its journal, without an engine.

    For an interrupted run, the dataset contains the rows from all complete batches.

    Raises:
        RunError: the folder is not a run or is in use, or the code of a plug-in has changed.
        DamagedFileError: the journal is damaged.
        StorageError: the files cannot be written.
    """
    with Run.open(options.run) as run:
        loop = reopen(run)
        session = Session(loop.config.generate.target, loop)
        run_loop(loop, run, None, session, watch)
        _reject_fewer_rows(run.folder, len(loop.rows), "Restore journal.jsonl from a copy.")
        return _write(run, session, 0, 0)


def _reject_fewer_rows(folder: Path, rows: int, hint: str) -> None:
    try:
        manifest = read_manifest(folder)
    except RunError:
        # A damaged manifest must not stop rebuild, which replaces it.
        return
    files = [] if manifest is None else manifest.files
    existing = sum(part.rows for part in files if part.path.startswith("data/"))
    if existing > rows:
        raise RunError(
            f"{folder} contains a dataset of {existing:,} rows, which would shrink to {rows:,}.",
            hint,
        )


def configure(options: PreviewOptions, batch_size: int | None = None) -> Config:
    """Return the validated settings: the values of the recipe, overridden by the options.

    Args:
        options: the options of `generate` or `preview`.
        batch_size: the batch size if the options do not set one; None for that of the recipe.

    Raises:
        ConfigError: a key or value of the recipe or the options is invalid.
    """
    return load_config(
        options.recipe,
        {
            "generate": {
                "target": options.target,
                "seed": options.seed,
                "batch_size": batch_size if options.batch_size is None else options.batch_size,
                "max_tokens_total": options.max_tokens_total,
            },
            "method": {"name": options.method},
            "engine": {
                "name": options.engine,
                "model": options.model,
                "endpoint": options.endpoint,
            },
        },
    )


def seeds_for(options: PreviewOptions) -> tuple[list[Sample], list[Any]]:
    """Read the seeds that --seeds specifies; return the valid seeds and the invalid rows."""
    return read_seeds(
        options.seeds, options.license, options.language, options.on_bad_row, options.mapping
    )


def read_seeds(
    paths: Sequence[Path],
    license: str,
    language: str,
    on_bad_row: OnBadRow,
    mapping: Mapping[str, str] | None = None,
) -> tuple[list[Sample], list[Any]]:
    """Read seeds from files and dataset folders; return the valid seeds and the invalid rows.

    From a dataset with splits, only the training rows are read, so that no generation prompt
    contains an evaluation row.

    Raises:
        InputError: a file is invalid, or a dataset contains preferences.
        ConfigError: no row is valid.
    """
    folders = [path for path in paths if _is_folder(path)]
    files = [path for path in paths if path not in folders]
    samples, invalid = load_seeds(
        files, license=license, language=language, on_bad_row=on_bad_row, mapping=mapping
    )
    shapes = [(folder, shape_of(folder)) for folder in folders]
    for path, shape in (*shapes, *((files[0], sample.shape) for sample in samples)):
        if shape != "instructions":
            raise InputError(
                f"contains {shape}, but seeds must be instruction rows.",
                path=path,
                hint="Use a dataset of instruction rows, such as from import --as=instructions.",
            )
    for folder in folders:
        samples += read_samples(folder, split=training_split(folder))
    if not samples:
        raise ConfigError("--seeds: no row is valid.", "Add rows with instruction and output.")
    return samples, invalid


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # The function that reads the file reports the invalid name.
        return False


def reopen(run: Run) -> Loop:
    """Return the generation loop of an existing run, in its state before the first batch.

    Raises:
        RunError: the code of a plug-in has changed since the run was generated.
    """
    config = from_recorded(run.info.config, run.folder)
    before: Any = run.info.config["plugins"]
    now = config.plugins()
    if changed := [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]:
        raise RunError(
            f"{run.folder}: the code of the plug-in {changed[0]} has changed since this run.",
            "Install the version of the plug-in's package that run.json records.",
        )
    seeds = [sample_of(row) for row in run.seeds()]
    return Loop(config, form_of(run), seeds, run.id)


@contextmanager
def begin(folder: Path, config: Config, seeds: Sequence[Sample]) -> Iterator[Run]:
    """Open the run in a folder to resume it, or create a run there; yield the locked run.

    Raises:
        RunError: the folder contains a run with different settings, or files other than a run.
        ConfigError: the prompt style requires a chat template, and the model has none.
    """
    recorded = config.recorded()
    digest = seeds_digest(seeds)
    if is_run(folder):
        with Run.open(folder) as run:
            _check_same_run(folder, config, run.info, digest)
            if run.info.config != recorded:
                run.update(replace(run.info, config=recorded))
            yield run
        return
    fixed = {k: v for k, v in _flat(recorded).items() if k not in config.may_change()}
    info = RunInfo(
        format=FORMAT,
        run=hashlib.sha256(orjson.dumps([sorted(fixed.items()), digest])).hexdigest()[:16],
        config=recorded,
        seeds=Seeds(digest, len(seeds)),
        versions=versions(OF_RUNS),
        form=_decide_form(config)._asdict(),
    )
    lines = (orjson.dumps(sample_row(s)) + b"\n" for s in seeds)
    with Run.create(folder, info, lines) as run:
        yield run


def resumable(folder: Path, config: Config, seeds: Sequence[Sample]) -> bool:
    """Return whether `generate` would resume the run in a folder with these settings and seeds."""
    try:
        _check_same_run(folder, config, read_info(folder), seeds_digest(seeds))
    except RunError:
        return False
    return True


def _check_same_run(folder: Path, config: Config, info: RunInfo, digest: str) -> None:
    """Raise RunError if the recorded run cannot be resumed with these settings."""
    before, now = _flat(info.config), _flat(config.recorded())
    changed = [
        f"{key} (was {before.get(key)!r}, now {now.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if key not in config.may_change() and before.get(key) != now.get(key)
    ]
    if info.seeds.sha256 != digest:
        changed.append(f"the seeds ({info.seeds.rows} rows before, different rows now)")
    if changed:
        raise RunError(
            f"{folder} contains a run with different settings: {'; '.join(changed)}.",
            "Use the same settings to resume the run, or use another --out.",
        )
    _reject_fewer_rows(folder, config.generate.target, "Use the same --target or a higher one.")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as a dict with keys such as ``engine.model`` (``table.key``)."""
    tables = ("generate", "method", "engine")
    flat = {f"{t}.{k}": v for t in tables for k, v in config[t].items()}
    flat |= {f"plugins.{name}": part for name, part in config.get("plugins", {}).items()}
    return {**flat, **{f"filters.{i}": f for i, f in enumerate(config["filters"], start=1)}}


def _decide_form(config: Config) -> PromptSetup:
    """Choose the prompt style (chat or completion); test if the engine enforces JSON schemas."""
    style = config.method.style
    if style == "auto":
        # Measured: the included model writes usable tasks as the continuation of a list, but
        # not as the answer to a question (docs/decisions/0003).
        chat = config.engine.model != EMBEDDED and config.engine.has_chat_template()
        style = "chat" if chat else "completion"
    if style == "chat" and not config.engine.has_chat_template():
        raise ConfigError(
            f"the recipe sets style = chat, but {config.engine.model or config.engine.name} has no "
            "chat template.",
            "Set style = completion in the table [method], or use a different model.",
        )
    return PromptSetup(style, structured=style == "chat" and config.engine.enforces_schema())


def form_of(run: Run) -> PromptSetup:
    """Return the prompt style, and whether schemas are enforced, as stored when the run started."""
    form: dict[str, Any] = run.info.form
    return PromptSetup(**form)


def _write(run: Run, session: Session, restarts: int, invalid_seeds: int) -> GenerateResult:
    loop = session.loop
    rejected = loop.finish()
    stopped = loop.stopped or Stop(
        "interrupted", "the run was interrupted, and generate can resume it"
    )
    facts = facts_of(loop, rejected, stopped)
    rejections = rejections_of(loop)
    before = manifest_bytes(run.folder)
    parts = write_dataset(
        run.folder,
        loop.rows,
        rejected,
        lambda contents: generated_card(run, loop, contents, facts, rejections),
        rejections,
        facts.to_dict(),
    )
    return GenerateResult(
        out=run.folder,
        rows=len(loop.rows),
        rejected=len(rejected),
        facts=facts,
        rejections=tuple(rejections),
        seconds=time.monotonic() - session.started,
        tokens_per_s=session.tokens_per_s,
        idle_share=session.idle_share,
        asked=session.asked,
        replayed=session.replayed,
        restarts=restarts,
        healed=run.healed,
        parts=tuple(str(run.folder / p.path) for p in parts),
        card=str(run.folder / "README.md"),
        invalid_seeds=invalid_seeds,
        unchanged=manifest_bytes(run.folder) == before,
        hint=session.format_hint(),
    )


def facts_of(loop: Loop, rejected: Sequence[Rejected], stopped: Stop) -> RunFacts:
    """Return the counts of a run's requests, candidates and tokens, for its manifest."""
    t = loop.tally
    return RunFacts(
        run=loop.run_id,
        stopped=stopped.reason,
        stopped_detail=stopped.detail,
        requests=t.requests,
        failed_requests=t.failed_requests,
        candidates=t.candidates,
        kept_instructions=t.kept_instructions,
        kept_rows=t.kept_rows,
        not_expanded=len(rejected) - sum(t.rejected.values()),
        prompt_tokens=t.prompt_tokens,
        output_tokens=t.output_tokens,
    )


def rejections_of(loop: Loop) -> list[RejectionCount]:
    """Return the counts of a run's rejected candidates by stage, filter and reason."""
    return [RejectionCount(*key, count) for key, count in sorted(loop.tally.rejected.items())]
