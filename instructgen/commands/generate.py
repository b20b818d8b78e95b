"""The commands `generate` (start or resume a run) and `rebuild` (recreate its dataset)."""

from __future__ import annotations

import hashlib
import queue
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from instructgen.commands.interface import command
from instructgen.commands.options import GenerateOptions, GenerationOptions, RebuildOptions
from instructgen.config import read_small, read_tables
from instructgen.distributed.placement import Placement
from instructgen.distributed.replicas import incidents
from instructgen.engines import Role
from instructgen.engines.supervisor import Received, Supervisor
from instructgen.environments import Environment, executed, has_tool, read_tools, tools_of
from instructgen.errors import ConfigError, InputError, RunError, first_line
from instructgen.filters import AskingFilter, Filter
from instructgen.filters.chain import Chain
from instructgen.filters.cluster import Cluster, with_cluster
from instructgen.filters.contamination import Contamination
from instructgen.formats import Format, OnBadRow
from instructgen.generation.loop import Ended, Loop
from instructgen.generation.methods import PromptSetup
from instructgen.generation.options import Config, from_recorded, load_config
from instructgen.generation.progress import format_hint, progress_of
from instructgen.generation.scoring import ScoringEngine
from instructgen.generation.seed_pool import (
    is_code_folder,
    load_seeds,
    seed_format,
    seeds_digest,
    value_of,
)
from instructgen.generation.sequencer import Sequencer
from instructgen.generation.settings import Target
from instructgen.generation.work import Stop
from instructgen.models.folders import EMBEDDED
from instructgen.plugins import load_plugin
from instructgen.reports.cards import generated_card
from instructgen.schema.arrow import sample_row
from instructgen.schema.progress import Watch
from instructgen.schema.records import JsonRecord, checked
from instructgen.schema.sample import Sample
from instructgen.store import (
    FORMAT,
    RejectionCount,
    Run,
    RunInfo,
    Seeds,
    SessionLine,
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
class GroupShare(JsonRecord):
    """The number of seeds and rows of a language and of values of the columns of ``balance``."""

    group: tuple[str, ...]
    seeds: int
    rows: int


@dataclass(frozen=True, slots=True)
class RunFacts(JsonRecord):
    """Facts about a run, for its manifest.

    A candidate is an instruction or a row in a completion, or a completion that cannot be parsed.
    ``candidates`` is the sum of ``kept_instructions``, ``kept_rows`` and the number of rejected
    candidates. ``not_expanded`` is the number of kept instructions for which no row was
    generated; they are in ``rejected/`` with the reason ``not_expanded``. ``shares`` are the
    numbers of seeds and rows of each group that the seeds have; () if all are in one group.
    ``unused_seeds`` is the number of seeds that the method cannot use, such as rows without an
    answer.
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
    shares: tuple[GroupShare, ...] = ()
    unused_seeds: int = 0


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The result of a run.

    ``target`` is that of the options or the recipe. ``facts`` cover the run from its first start.
    ``asked`` (the number of requests sent to the engines), ``seconds``, ``tokens_per_s``,
    ``slots_busy`` (the mean fraction of the engine's slots that had a request) and
    ``mean_in_flight`` (the mean number of requests that the writer's engine had) cover only this
    call, which may have resumed the run. ``healed`` is a message if an incomplete last line was
    removed from the journal, otherwise None. ``unchanged`` is true if the same dataset already
    existed. ``hint`` is advice if most completions cannot be parsed, otherwise empty. ``warnings``
    name the languages and values of the seeds that no row has.
    """

    out: Path
    target: Target
    rows: int
    rejected: int
    facts: RunFacts
    rejections: tuple[RejectionCount, ...]
    seconds: float
    tokens_per_s: float
    slots_busy: float
    mean_in_flight: float
    asked: int
    replayed: int
    restarts: int
    healed: str | None
    parts: tuple[str, ...]
    card: str
    invalid_seeds: int
    unchanged: bool = False
    hint: str = ""
    warnings: tuple[str, ...] = ()


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
    samples, invalid = seeds_for(options, config)
    known = read_known(options.novel_against)
    with ExitStack() as stack:
        engines = stack.enter_context(started(config, placement_of(options)))
        run = stack.enter_context(begin(options.out, config, samples, known, engines))
        sequencer = sequencer_of(run, loop_of(run, config), engines, watch)
        try:
            sequencer.run_to_stop()
        finally:
            if (done := sequencer.activity).asked:
                use = SessionUse(round(done.engine_s, 2), done.asked, done.output_tokens)
                run.end_session(use)
        restarts, lost = incidents(set(engines.values()))
        result = _write(run, sequencer, sequencer.work.finish(), restarts, len(invalid))
        return replace(result, warnings=(*result.warnings, *lost))


@contextmanager
def started(config: Config, placement: Placement) -> Iterator[dict[Role, Supervisor]]:
    """Yield the supervisors of a run's engines by role, and close them at the end.

    A model is loaded when the first request is sent. The ``placement`` is that of the writer.
    """
    # Before a server is asked for the first time: its slots would wait for it.
    Chain(config.filters).prepare()
    results: queue.SimpleQueue[Received] = queue.SimpleQueue()
    with placement.engine(config.engine) as engine:
        writer = Supervisor(engine, results)
        judge = writer if config.judge is None else Supervisor(config.judge, results)
        engines: dict[Role, Supervisor] = {"writer": writer, "judge": judge}
        if (scores := ScoringEngine.of(config.filters)) is not None:
            engines["reward"] = Supervisor(scores, results)
        if (executor := config.method.executor()) is not None:
            engines["executor"] = Supervisor(executor, results)
        try:
            yield engines
        finally:
            for supervisor in set(engines.values()):
                supervisor.close()


def placement_of(options: GenerationOptions) -> Placement:
    """Return where the replicas of the writer run."""
    return Placement(options.replicas, options.endpoint, options.ray)


def loop_of(run: Run, config: Config) -> Loop:
    """Return the generation loop of a run, in its state before the first request."""
    seeds, known = list(run.seeds()), list(run.known())
    if clusters := run.info.clusters:
        seeds = [with_cluster(seed, n) for seed, n in zip(seeds, clusters, strict=True)]
    return Loop(config, form_of(run), seeds, run.id, known)


def sequencer_of(
    run: Run, loop: Loop, engines: Mapping[Role, Supervisor], watch: Watch | None
) -> Sequencer[Loop]:
    """Return what drives the loop of a run: with its settings, and with progress for ``watch``."""
    settings, engine = loop.config.generate, loop.config.engine
    if engines and (missing := {stage.role for stage in loop.path} - engines.keys()):
        raise ConfigError(
            f"The method {loop.config.method.name} needs an engine for the role {min(missing)}.",
            "Use another method.",
        )
    order = settings.commit_order or engine.commit_order

    def session(after: int) -> SessionLine:
        return SessionLine(
            after,
            settings.target,
            order,
            settings.in_flight,
            settings.max_tokens_total,
            settings.max_cost,
            versions(OF_RUNS)["instructgen"],
        )

    sequencer = Sequencer(
        loop, run, engines, order=order, window=settings.in_flight, session=session
    )
    if watch is not None:
        sequencer.watch = lambda: watch(progress_of(loop, sequencer.activity))
    return sequencer


@command(RebuildOptions, "run")
def rebuild(options: RebuildOptions, watch: Watch | None = None) -> GenerateResult:
    """Recreate the dataset of a run from the completions in its journal, without an engine.

    For an interrupted run, the dataset contains the rows from all recorded completions.

    Raises:
        RunError: the folder is not a run or is in use, or the code of a plug-in has changed.
        DamagedFileError: the journal is damaged.
        StorageError: the files cannot be written.
    """
    with Run.open(options.run) as run:
        sequencer = replayed(run, reopen(run), watch)
        ended = sequencer.work.finish()
        _reject_fewer_rows(run.folder, len(ended.rows), "Restore journal.jsonl from a copy.")
        return _write(run, sequencer, ended, 0, 0)


def replayed(run: Run, loop: Loop, watch: Watch | None = None) -> Sequencer[Loop]:
    """Apply the whole journal of a run to its loop, without an engine.

    Raises:
        RunError: the journal does not fit the run.
    """
    sequencer = sequencer_of(run, loop, {}, watch)
    for _ in sequencer.replay():
        pass
    sequencer.activity.end()
    return sequencer


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


def configure(options: GenerationOptions) -> Config:
    """Return the validated settings: the values of the recipe, overridden by the options.

    Raises:
        ConfigError: a key or value of the recipe or the options is invalid.
    """
    tables: dict[str, dict[str, Any]] = {
        "generate": {
            "target": options.target,
            "seed": options.seed,
            "passes": options.passes,
            "balance": options.balance or None,
            "in_flight": options.in_flight,
            "max_tokens_total": options.max_tokens_total,
            "price": options.price,
            "max_cost": options.max_cost,
        },
        "method": {
            "name": options.method,
            "brief": _brief(options.brief),
            "prompts": None if options.prompts is None else read_tables(options.prompts),
            "attempts": options.samples,
            **_tools(options.tools, options.environment),
            "verifier": options.verifier,
        },
        "engine": {
            "name": options.engine,
            "model": options.model,
            # The servers of the others are copies of the first.
            "endpoint": next(iter(options.endpoint), None),
        },
        "judge": {
            "name": options.judge_engine,
            "model": options.judge,
            "endpoint": options.judge_endpoint,
        },
    }
    given: set[str] = set()
    for key, value in options.settings.items():
        table, _, name = key.partition(".")
        name, _, part = name.partition(".")
        if table not in tables or not name:
            raise ConfigError(
                f"--set={key}: the name must begin with {', '.join(tables)} and a dot.",
                "Pass for example --set=method.human=4.",
            )
        known = tables[table].get(name)
        if known is not None and not part:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} and --set={key} are both set.", "Use only one of them.")
        before = known if isinstance(known, dict) else {}
        tables[table][name] = {**before, part: value} if part else value
        given.add(f"{table}.{name}")
    config = load_config(options.recipe, tables, given)
    if options.against:
        names = tuple(map(str, options.against))
        contamination = Contamination(against=names, function_names=True)
        config = replace(config, filters=(contamination, *config.filters))
    compare = [f for f in config.filters if type(f).remember is not Filter.remember]
    if options.novel_against and not compare:
        raise ConfigError(
            "--novel-against: no filter of the recipe compares new rows with others.",
            "Add the filter novelty to the recipe, or omit --novel-against.",
        )
    return config


def _tools(definitions: Path | None, path: Path | None) -> dict[str, str | None]:
    """Return the tools in a file, the name of the environment in another one, and its digest.

    Raises:
        ConfigError: a file cannot be loaded, does not define one environment that works, or the
            environment does not have a tool.
    """
    tools = None if definitions is None else read_tools(definitions)
    if path is None:
        return {"tools": tools, "environment": None, "environment_sha256": None}
    found = [cls for cls in load_plugin(path) if issubclass(cls, Environment)]
    if len(found) != 1:
        raise ConfigError(
            f"--environment={path} defines {len(found)} environments.",
            "Define one subclass of instructgen.environments.Environment with the attribute name.",
        )
    try:
        _, state, _ = executed(found[0], [])
    except Exception as error:
        raise ConfigError(
            f"--environment={path}: {found[0].__name__} cannot be used ({type(error).__name__}: "
            f"{first_line(error)}).",
            "Its constructor takes no arguments, and state() returns a value for JSON.",
        ) from error
    for name in tools_of(tools).names if tools else ():
        if not has_tool(found[0], name):
            raise ConfigError(
                f"--environment={path}: {found[0].__name__} has no tool {name}.",
                "Define a method with the name of each tool in --tools, other than call, state and "
                "close.",
            )
    digest = hashlib.sha256(path.read_bytes() + state.encode()).hexdigest()
    return {"tools": tools, "environment": found[0].name, "environment_sha256": digest}


def _brief(text: str) -> str | None:
    """Return a brief, which is read from a file if ``text`` is the path of one."""
    path = Path(text)
    try:
        if text and path.is_file():
            return read_small(path).decode().strip()
    except (OSError, ValueError) as error:
        if path.suffix in (".txt", ".md"):
            raise ConfigError(f"--brief={text}: {error}.", "Pass a text file in UTF-8.") from error
    if path.suffix in (".txt", ".md") and len(text.split()) == 1:
        raise ConfigError(f"--brief={text}: the file does not exist.", "Check the path.")
    return text or None


def seeds_for(options: GenerationOptions, config: Config) -> tuple[list[Sample], list[Any]]:
    """Read the seeds that the method starts from; return the valid seeds and the invalid rows.

    Raises:
        ConfigError: the method needs other seeds, or no seed has a column of ``balance``.
    """
    start, name = config.method.starts_from, config.method.name
    paths = (*options.personas, *options.seeds) if start == "personas" else options.seeds
    if options.personas and start != "personas":
        raise ConfigError(f"--personas: the method {name} starts from {start}.", "Pass --seeds.")
    if options.documents and start not in ("documents", "segments"):
        raise ConfigError(f"--documents: the method {name} starts from {start}.", "Pass --seeds.")
    if start == "nothing":
        if paths:
            raise ConfigError(f"--seeds: the method {name} starts from nothing.", "Omit --seeds.")
        return [], []
    segments = read_segments(options.documents)
    if not segments and (not paths or start == "segments"):
        hint = {"personas": "Pass --personas=FILE.", "segments": "Pass --documents=FOLDER."}
        raise ConfigError(
            f"--seeds: the method {name} starts from {start}.",
            hint.get(start, "Pass --seeds=FILE."),
        )
    # Beside documents, the seeds are tasks.
    form = None if segments else seed_format(start)
    samples, bad = (
        read_seeds(
            *(paths, options.license, options.language, options.on_bad_row, options.mapping),
            form,
        )
        if paths
        else ([], [])
    )
    samples = [*segments, *samples]
    for column in config.generate.balance:
        if not any(value_of(sample, column) for sample in samples):
            labels = sorted({label.name for sample in samples for label in sample.labels})
            raise ConfigError(
                f"--balance={column}: no seed has this column. The labels of the seeds are: "
                f"{', '.join(labels) or 'none'}.",
                f"Pass category, or read the column with --map=label.{column}=FIELD.",
            )
    return samples, bad


def read_seeds(
    paths: Sequence[Path],
    license: str,
    language: str,
    on_bad_row: OnBadRow,
    mapping: Mapping[str, str] | None = None,
    form: Format | None = None,
) -> tuple[list[Sample], list[Any]]:
    """Read seeds from files and dataset folders; return the valid seeds and the invalid rows.

    From a dataset with splits, only the training rows are read, so that no generation prompt
    contains an evaluation row.

    Raises:
        InputError: a file is invalid, or a dataset contains preferences.
        ConfigError: no row is valid.
    """
    # A folder of code is not a dataset.
    is_code = form is not None and form.name == "snippet"
    folders = [p for p in paths if _is_folder(p) and not (is_code and is_code_folder(p))]
    files = [path for path in paths if path not in folders]
    samples, invalid = load_seeds(
        files,
        license=license,
        language=language,
        on_bad_row=on_bad_row,
        mapping=mapping,
        own_format=form,
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


def read_segments(folders: Sequence[Path]) -> list[Sample]:
    """Return the segments of documents in dataset folders; of one with splits, those to train on.

    Raises:
        InputError: a folder contains other rows.
        RunError: a folder is not a complete dataset.
    """
    segments: list[Sample] = []
    for folder in folders:
        if (shape := shape_of(folder)) != "documents":
            raise InputError(
                f"contains {shape}, not segments of documents.",
                path=folder,
                hint="Create it with instructgen import documents.",
            )
        segments += read_samples(folder, split=training_split(folder))
    return segments


def read_known(paths: Sequence[Path]) -> list[Sample]:
    """Return the rows of datasets, runs and files that new rows must differ from.

    Raises:
        InputError: a file is invalid.
        RunError: a folder is not a complete dataset.
    """
    samples: list[Sample] = []
    for path in paths:
        samples += read_samples(path) if _is_folder(path) else load_seeds([path])[0]
    return samples


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # The function that reads the file reports the invalid name.
        return False


def reopen(run: Run) -> Loop:
    """Return the generation loop of an existing run, in its state before the first request.

    Raises:
        RunError: the code of a plug-in has changed since the run was generated.
    """
    config = from_recorded(run.info.config, run.folder / "run.json")
    before: Any = run.info.config["plugins"]
    now = config.plugins()
    if changed := [n for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]:
        raise RunError(
            f"{run.folder}: the code of the plug-in {changed[0]} has changed since this run.",
            "Install the version of the plug-in's package that run.json records.",
        )
    return loop_of(run, config)


@contextmanager
def begin(
    folder: Path,
    config: Config,
    seeds: Sequence[Sample],
    known: Sequence[Sample],
    engines: Mapping[Role, Supervisor],
) -> Iterator[Run]:
    """Open the run in a folder to resume it, or create a run there; yield the locked run.

    Args:
        folder: the folder of the run.
        config: the settings.
        seeds: the seed tasks.
        known: other rows that new rows must differ from.
        engines: the engines, which may have to show whether they enforce schemas.

    Raises:
        RunError: the folder contains a run with different settings, or files other than a run.
        ConfigError: the prompt style requires a chat template, and the model has none.
    """
    recorded = config.recorded()
    inputs, compared = _digests(seeds, known)
    if is_run(folder):
        with Run.open(folder) as run:
            _check_same_run(folder, config, run.info, inputs, compared)
            if run.info.config != recorded:
                run.update(replace(run.info, config=recorded))
            yield run
        return
    fixed = {k: v for k, v in _flat(recorded).items() if k not in config.may_change()}
    decides = [sorted(fixed.items()), inputs.sha256, *([compared.sha256] if compared else [])]
    info = RunInfo(
        format=FORMAT,
        run=hashlib.sha256(orjson.dumps(decides)).hexdigest()[:16],
        config=recorded,
        seeds=inputs,
        versions=versions(OF_RUNS),
        form=asdict(_decide_form(config, engines)),
        known=compared,
        # Recorded, because embeddings may differ on another machine.
        clusters=next(
            (
                tuple(f.clusters_of(seeds))
                for f in config.filters
                if isinstance(f, Cluster) and config.generate.demonstrations == "coverage"
            ),
            (),
        ),
    )
    with Run.create(folder, info, _lines(seeds), _lines(known)) as run:
        yield run


def _lines(samples: Sequence[Sample]) -> Iterator[bytes]:
    return (orjson.dumps(sample_row(s)) + b"\n" for s in samples)


def resumable(
    folder: Path, config: Config, seeds: Sequence[Sample], known: Sequence[Sample]
) -> bool:
    """Return whether `generate` would resume the run in a folder with these settings and seeds."""
    inputs, compared = _digests(seeds, known)
    try:
        _check_same_run(folder, config, read_info(folder), inputs, compared)
    except RunError:
        return False
    return True


def _digests(seeds: Sequence[Sample], known: Sequence[Sample]) -> tuple[Seeds, Seeds | None]:
    compared = Seeds(seeds_digest(known), len(known)) if known else None
    return Seeds(seeds_digest(seeds), len(seeds)), compared


def _check_same_run(
    folder: Path, config: Config, info: RunInfo, seeds: Seeds, known: Seeds | None
) -> None:
    """Raise RunError if the recorded run cannot be resumed with these settings."""
    before, now = _flat(info.config), _flat(config.recorded())
    changed = [
        f"{key} (was {before.get(key)!r}, now {now.get(key)!r})"
        for key in sorted(before.keys() | now.keys())
        if key not in config.may_change() and before.get(key) != now.get(key)
    ]
    if info.known != known:
        changed.append("the rows of --novel-against")
    if info.seeds.sha256 != seeds.sha256:
        changed.append(f"the seeds ({info.seeds.rows} rows before, different rows now)")
    if changed:
        raise RunError(
            f"{folder} contains a run with different settings: {'; '.join(changed)}.",
            "Use the same settings to resume the run, or use another --out.",
        )
    if config.generate.target != "all":
        _reject_fewer_rows(folder, config.generate.target, "Use the same --target or a higher one.")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as a dict with keys such as ``engine.model`` (``table.key``)."""
    tables = ("generate", "method", "engine", "judge")
    flat = {f"{t}.{k}": v for t in tables for k, v in config.get(t, {}).items()}
    flat |= {f"plugins.{name}": part for name, part in config.get("plugins", {}).items()}
    return {**flat, **{f"filters.{i}": f for i, f in enumerate(config["filters"], start=1)}}


def _decide_form(config: Config, engines: Mapping[Role, Supervisor]) -> PromptSetup:
    """Choose the prompt style (chat or completion); test if the engines enforce JSON schemas."""
    style = config.method.style
    if style == "auto":
        # Measured: the included model writes usable tasks as the continuation of a list, but
        # not as the answer to a question (docs/decisions/0003).
        chat = config.engine.model != EMBEDDED and config.engine.has_chat_template()
        style = "chat" if chat else "completion"
    if style == "chat" and not config.engine.has_chat_template():
        other = "completion" in str(type(config.method).model_fields["style"].annotation)
        raise ConfigError(
            f"the method {config.method.name} has style = chat, but the model "
            f"{config.engine.model or config.engine.name} has no chat template.",
            f"Use a chat model{', or set style = completion in the table [method]' * other}.",
        )
    config.method.check(style)
    structured = style == "chat" and engines["writer"].enforces_schemas()
    form = PromptSetup(style, structured)
    if any(stage.role == "judge" for stage in config.method.path(form)) or any(
        isinstance(f, AskingFilter) for f in config.filters
    ):
        form = replace(form, judge_structured=engines["judge"].judge_enforces_schemas())
    if config.method.starts_from != "nothing":
        return form
    user_turn, turn_end = config.engine.user_turn(config.method.brief)
    return replace(form, user_turn=user_turn, turn_end=turn_end)


def form_of(run: Run) -> PromptSetup:
    """Return the prompt style, and whether schemas are enforced, as stored when the run started."""
    setup: PromptSetup = checked(PromptSetup, run.info.form, run.folder / "run.json")
    return setup


def _write(
    run: Run, sequencer: Sequencer[Loop], ended: Ended, restarts: int, invalid_seeds: int
) -> GenerateResult:
    loop, activity = sequencer.work, sequencer.activity
    facts = facts_of(loop, ended)
    rejections = rejections_of(ended)
    before = manifest_bytes(run.folder)
    parts = write_dataset(
        run.folder,
        ended.rows,
        ended.rejected,
        lambda contents: generated_card(run, loop, contents, facts, rejections),
        rejections,
        facts.to_dict(),
    )
    return GenerateResult(
        out=run.folder,
        target=loop.config.generate.target,
        rows=len(ended.rows),
        rejected=len(ended.rejected),
        facts=facts,
        rejections=tuple(rejections),
        seconds=time.monotonic() - activity.started,
        tokens_per_s=activity.tokens_per_s,
        slots_busy=activity.slots_busy,
        mean_in_flight=activity.mean_in_flight,
        asked=activity.asked,
        replayed=activity.replayed,
        restarts=restarts,
        healed=run.healed,
        parts=tuple(str(run.folder / p.path) for p in parts),
        card=str(run.folder / "README.md"),
        invalid_seeds=invalid_seeds,
        unchanged=manifest_bytes(run.folder) == before,
        hint=format_hint(loop),
        warnings=_warnings(facts),
    )


def facts_of(loop: Loop, ended: Ended) -> RunFacts:
    """Return the counts of a run's requests, candidates and tokens, for its manifest."""
    t = ended.tally
    stopped = loop.stopped or Stop(
        "interrupted", "the run was interrupted, and generate can resume it"
    )
    return RunFacts(
        run=loop.run_id,
        stopped=stopped.reason,
        stopped_detail=stopped.detail,
        requests=t.requests,
        failed_requests=t.failed_requests,
        candidates=t.candidates,
        kept_instructions=t.kept_instructions,
        kept_rows=t.kept_rows,
        not_expanded=len(ended.rejected) - sum(t.rejected.values()),
        prompt_tokens=t.prompt_tokens,
        output_tokens=t.output_tokens,
        shares=_shares(loop, ended.rows),
        unused_seeds=0 if loop.config.method.uses_others else len(loop.pool.others),
    )


def _warnings(facts: RunFacts) -> tuple[str, ...]:
    """Return a warning that names the groups of the seeds without a row, if there are any."""
    missing = [
        f"{' and '.join(map(repr, share.group))} ({share.seeds:,} seeds)"
        for share in facts.shares
        if not share.rows
    ]
    warnings = [f"No row has these values of the seeds: {', '.join(missing)}."] if missing else []
    if facts.unused_seeds:
        warnings.append(f"The method cannot use {facts.unused_seeds:,} of the seeds.")
    return tuple(warnings)


def _shares(loop: Loop, rows: Sequence[Sample]) -> tuple[GroupShare, ...]:
    seeds = loop.pool.shares.seeds
    if len(seeds) < 2 or loop.config.method.finite:
        return ()
    counts = Counter(loop.pool.group_of(row) for row in rows)
    return tuple(
        GroupShare((group.language, *group.values), seeds[group], counts[group])
        for group in sorted(seeds)
    )


def rejections_of(ended: Ended) -> list[RejectionCount]:
    """Return the counts of a run's rejected candidates by stage, filter and reason."""
    return [RejectionCount(*key, count) for key, count in sorted(ended.tally.rejected.items())]
