"""The command prefer: several answers to each prompt, compared: pairs, or the best of them.

What a model writes is paid for once: completions go to a journal in ``answers/``, a judge's
replies to one in ``judgments/``, and the scores of a reward model to one in ``rewards/``. The rest
is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from instructgen.commands.derive import (
    Derived,
    Output,
    Written,
    check_separate,
    common_shape,
    derive,
    inputs_of,
    name_of,
    readers_of,
)
from instructgen.commands.interface import command
from instructgen.commands.options import PreferOptions
from instructgen.commands.recorded import recorded_answers, recorded_id
from instructgen.engines import Completion, Engine, Request
from instructgen.errors import ConfigError, InputError
from instructgen.generation.sequencer import request_digest
from instructgen.models.folders import model_digest
from instructgen.plugins import find, provenance, suggest
from instructgen.schema.progress import Watch
from instructgen.schema.records import JsonRecord, Plugins
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample, Score, Shape
from instructgen.store import Provenance, read_samples, root_of, training_split

_JUDGE = "judge:"
# What does not change the requests, except that a higher limit adds some.
_MAY_CHANGE = ("options.margin", "options.min_score", "options.as", "options.limit")


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer to a task, where it is recorded, and what it is worth.

    ``writer`` is the number of the model that wrote it, or None for the row's own answer.
    ``request`` is the number of its request in the journal of this model.
    """

    text: str
    finished: bool
    writer: int | None = None
    request: int | None = None
    digest: str | None = None
    reasoning: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class PreferFacts(JsonRecord):
    """The prompts read, the id of the recorded answers, and the decisions of a judge."""

    read: int
    run: str
    judge: dict[str, int] = field(default_factory=dict)


@command(PreferOptions, "data", "out")
def prefer(options: PreferOptions, watch: Watch | None = None) -> Derived[PreferFacts]:
    """Create preferences, or better answers, from what a model writes.

    The prompts of a dataset of instructions are answered several times, by one or several models,
    and the answers are compared by rewards, which are added up, or by a judge alone. With
    ``existing``, the answer of the row competes too. With the shape ``instructions`` the best
    answer is kept (rejection sampling). An answer that was cut off is never kept.

    Raises:
        InputError: the dataset is invalid.
        ConfigError: an option or a model is invalid.
        RunError: the folder contains something else.
        EngineError: an engine cannot continue; the same call resumes.
        StorageError: the files cannot be written.
    """
    _check_scores(options.score, unsafe=options.unsafe_code_execution)
    judge_engine = options.judge_engine or options.engine
    if options.endpoint and "openai" not in (options.engine, judge_engine):
        raise ConfigError("--endpoint is for the engine openai.", "Pass --engine=openai.")
    source, folder = options.data, options.out
    check_separate(folder, [source])
    if (shape := common_shape(readers_of([source]))) != "instructions":
        raise InputError(f"contains {shape}.", path=source, hint="Pass instruction rows.")
    writers = _writers(options)
    for writer in writers:
        if Path(writer.model or "").is_dir():
            _check_writes(str(writer.model))
    made_from = _provenance(options, writers, judge_engine)
    maker = _Maker(made_from, options, writers, judge_engine, watch)
    return derive(folder, made_from, options.shape, PreferFacts, lambda output: maker.write(output))


def _writers(options: PreferOptions) -> list[Engine]:
    """Return the engine of each model; a single endpoint serves all models.

    Raises:
        ConfigError: the number of endpoints does not fit, or a model is named twice.
    """
    models: list[str | None] = [*options.model] or [None]
    endpoints: list[str | None] = [*options.endpoint] or [None]
    if len(models) == 1:
        models = models * len(endpoints)
    if len(endpoints) == 1:
        endpoints = endpoints * len(models)
    if len(models) != len(endpoints):
        raise ConfigError(
            f"{len(models)} times --model and {len(endpoints)} times --endpoint.",
            "Pass one endpoint for all models, or one for each.",
        )
    pairs = list(zip(models, endpoints, strict=True))
    if len(set(pairs)) < len(pairs):
        raise ConfigError(
            "--model: the same model is named twice.", "Raise --samples for more answers of it."
        )
    return [_engine(options.engine, m, options.max_tokens, e) for m, e in pairs]


def _provenance(
    options: PreferOptions, writers: Sequence[Engine], judge_engine: str | None
) -> Provenance:
    """What determines the dataset."""
    fields = {"samples", "temperature", "max_tokens", "margin", "min_score", "limit", "seed"}
    recorded = {
        "models": [
            {"name": w.model, "digest": model_digest(w.model) if w.name != "openai" else ""}
            for w in writers
        ],
        "engine": writers[0].name,
        "existing": options.existing,
        "score": [_identity(s, judge_engine) for s in options.score],
        "as": options.shape,
        **options.model_dump(mode="json", include=fields),
    }
    plugins = _plugins(writers[0], options.score, judge_engine)
    return Provenance("prefer", inputs_of([options.data]), recorded, plugins=plugins)


def _judge_of(score: Sequence[str]) -> str | None:
    return next((s.removeprefix(_JUDGE) for s in score if s.startswith(_JUDGE)), None)


def _check_scores(score: Sequence[str], *, unsafe: bool) -> None:
    if not score or (_judge_of(score) is not None and len(score) > 1):
        raise ConfigError(
            "--score takes rewards, or one judge.",
            "Pass --score=models/rm, --score=verifiers:ifeval, or --score=judge:MODEL.",
        )
    if len(set(score)) < len(score):
        raise ConfigError("--score: the same score is named twice.", "Name each score once.")
    for said in score:
        kind, colon, _ = said.partition(":")
        if colon and f"{kind}:" not in (_JUDGE, "verifiers:") and not Path(said).exists():
            raise ConfigError(
                f"--score={said}: unknown score.", suggest(kind, ["judge", "verifiers"])
            )
        if not said.startswith((_JUDGE, "verifiers:")):
            # Now, and not when all answers are paid for.
            from instructgen.models.loading import check_reward_model
            from instructgen.training.policy import require_training_packages

            require_training_packages()
            check_reward_model(said)
    if any(said.startswith("verifiers:") for said in score):
        from instructgen.training.rewards import verifiers_of

        verifiers_of(score, unsafe=unsafe)


def _engine(name: str | None, model: str | None, max_tokens: int, endpoint: str | None) -> Engine:
    values: dict[str, Any] = {} if model is None else {"model": model}
    kind = find("engines", name or "vllm")
    # The prompt, the answer, and the reasoning of a thinking model.
    longest = max(2048, 2 * max_tokens) + Engine.model_fields["thinking_tokens"].default
    also = {"endpoint": endpoint, "max_model_len": longest}
    values |= {k: v for k, v in also.items() if v is not None and k in kind.model_fields}
    made: Engine = kind(**values)
    return made


def _plugins(writer: Engine, score: Sequence[str], judge_engine: str | None) -> Plugins:
    from instructgen.training.rewards import verifiers_in

    judges = [find("engines", judge_engine)] if judge_engine and _judge_of(score) else []
    return provenance(engines=[type(writer), *judges], verifiers=verifiers_in(score))


def _check_writes(model: str) -> None:
    from instructgen.models.loading import is_reward_model
    from instructgen.training.policy import require_training_packages

    require_training_packages()
    if is_reward_model(model):
        raise ConfigError(
            f"--model={model} is a reward model, which does not write text.",
            "Give a language model.",
        )


def _identity(score: str, judge_engine: str | None) -> dict[str, str]:
    if score.startswith("verifiers:"):
        return {"name": score}
    name = score.removeprefix(_JUDGE)
    served = score.startswith(_JUDGE) and judge_engine == "openai"
    found = {"name": name_of(Path(name)), "digest": "" if served else model_digest(name)}
    return found | ({"engine": judge_engine or "vllm"} if score.startswith(_JUDGE) else {})


class _Maker:
    """One dataset in the making."""

    def __init__(
        self,
        made: Provenance,
        options: PreferOptions,
        writers: Sequence[Engine],
        judge_engine: str | None,
        watch: Watch | None,
    ) -> None:
        self.made, self.options, self.writers = made, options, writers
        self.judge_engine, self.watch = judge_engine, watch
        self.folder, self.score = options.out, list(options.score)

    def write(self, output: Output) -> Written[PreferFacts]:
        """Sample answers, score them, and write the result."""
        from instructgen.evaluation.answers import requests_for
        from instructgen.training.rewards import rewards_of, tasks_of

        options, source, shape = self.options, self.options.data, self.options.shape
        rows = list(read_samples(source, split=training_split(source)))[: options.limit]
        judge = _judge_of(self.score)
        # Verifiers before the answers, as they say what is asked; models after them,
        # so that two never share the memory.
        verifiers = [s for s in self.score if s.startswith("verifiers:")]
        unsafe = options.unsafe_code_execution
        rewards = rewards_of(verifiers, unsafe=unsafe) if verifiers else []
        models = len(verifiers) < len(self.score)
        tasks, unjudged = tasks_of(rewards, rows, options.seed, models=models)
        requests = requests_for(
            [task.prompt for task in tasks],
            samples=options.samples,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            seed=options.seed,
        )
        digests = [request_digest(request) for request in requests]
        run = recorded_id(self.made, tasks)
        answers = [self._existing(task) for task in tasks]
        for number, writer in enumerate(self.writers):
            name = f"answers-{number + 1}" if number else "answers"
            completions = self._answered(name, writer, requests, tasks, run)
            for at, c in enumerate(completions):
                finished = c.finish_reason == "stop"
                answer = _Answer(c.text.strip(), finished, number, at, digests[at], c.reasoning)
                answers[at // options.samples].append(answer)
        decisions: dict[str, int] = {}
        if judge is None:
            scored = self._rewarded(tasks, answers, rewards, run)
        else:
            scored, decisions = self._judged(tasks, answers, judge, run)
        self._write_rows(output, shape, tasks, scored, unjudged, run)
        facts = PreferFacts(len(tasks) + len(unjudged), run, decisions)
        sections = _section(self.made, options, scored, facts)
        return Written(facts, sections, ", answered and compared")

    def _endpoint_of(self, model: str) -> str | None:
        """Return the endpoint of the writer with this model, or else of the first one."""
        endpoints = {w.model: getattr(w, "endpoint", None) for w in reversed(self.writers)}
        return endpoints.get(model) or getattr(self.writers[0], "endpoint", None)

    def _existing(self, task: Sample) -> list[_Answer]:
        """Return the row's own answer if it competes; one with calls of tools does not."""
        if not self.options.existing or not task.output or task.tool_calls:
            return []
        return [_Answer(task.output, True, reasoning=task.reasoning_content)]

    def _answered(
        self,
        name: str,
        engine: Engine,
        requests: Sequence[Request],
        tasks: Sequence[Sample],
        run: str,
    ) -> list[Completion]:
        """Return the completion of each request; recorded completions are not asked again."""
        return recorded_answers(
            self.folder / name,
            engine,
            requests,
            tasks,
            self.made,
            run=run,
            may_change=_MAY_CHANGE,
            watch=self.watch,
        )

    def _rewarded(
        self,
        tasks: Sequence[Sample],
        answers: list[list[_Answer]],
        verifiers: Sequence[Any],
        run: str,
    ) -> list[list[_Answer]]:
        """Each answer with the sum of the rewards that know it, or none where none does."""
        from instructgen.evaluation.rewards import RewardEngine, reward_scores

        flat = [(task, a.text) for task, some in zip(tasks, answers, strict=True) for a in some]
        scored, texts = [task for task, _ in flat], [text for _, text in flat]
        columns = [verifier.score(scored, texts) for verifier in verifiers]
        models = [s for s in self.score if not s.startswith("verifiers:")]
        for number, model in enumerate(models):
            name = f"rewards-{number + 1}" if number else "rewards"
            engine = RewardEngine(model=model)
            ask = partial(self._answered, name, engine, tasks=tasks, run=run)
            columns.append(reward_scores(scored, texts, ask))
        totals = iter([_total(values) for values in zip(*columns, strict=True)])
        return [[replace(a, score=next(totals)) for a in some] for some in answers]

    def _judged(
        self, tasks: Sequence[Sample], answers: list[list[_Answer]], judge: str, run: str
    ) -> tuple[list[list[_Answer]], dict[str, int]]:
        """Each answer with the share of its contests that it won; undecided ones do not count."""
        from instructgen.evaluation.judge import Contest, judge_requests, verdicts

        contests, places = [], []
        for number, (task, some) in enumerate(zip(tasks, answers, strict=True)):
            whole = [i for i, a in enumerate(some) if a.finished and a.text]
            for a, b in combinations(whole, 2):
                contests.append(Contest(task, some[a].text, some[b].text))
                places.append((number, a, b))
        longest = 2 * self.options.max_tokens + 512
        endpoint = self.options.judge_endpoint or self._endpoint_of(judge)
        engine = _engine(self.judge_engine, judge, longest, endpoint)
        replies = self._answered("judgments", engine, judge_requests(contests), tasks, run)
        results, counts = verdicts(replies)
        won: dict[tuple[int, int], list[float]] = {}
        for (number, a, b), result in zip(places, results, strict=True):
            if result is not None:
                won.setdefault((number, a), []).append(result)
                won.setdefault((number, b), []).append(1 - result)
        scored = [
            [
                replace(a, score=sum(w) / len(w) if (w := won.get((number, i))) else None)
                for i, a in enumerate(some)
            ]
            for number, some in enumerate(answers)
        ]
        return scored, counts

    def _write_rows(
        self,
        output: Output,
        shape: Shape,
        tasks: Sequence[Sample],
        scored: list[list[_Answer]],
        unjudged: Sequence[Sample],
        run: str,
    ) -> None:
        models = [root_of(str(writer.model)) for writer in self.writers]

        def reject(task: Sample, rejection: Rejection) -> None:
            empty = replace(task, output="")
            output.reject([Rejected(empty, rejection, "prefer", output.rejected)])

        for sample in unjudged:
            reject(sample, Rejection("prefer", "no_verifier", "no verifier can judge it"))
        for number, (task, some) in enumerate(zip(tasks, scored, strict=True)):
            chosen = self._chosen(some, shape)
            if isinstance(chosen, Rejection):
                reject(task, chosen)
            else:
                output.keep([_row(task, number, *chosen, shape, run, models)])

    def _chosen(self, some: Sequence[_Answer], shape: Shape) -> tuple[_Answer, _Answer] | Rejection:
        """The best and the worst of a task's answers, or why they make no row."""
        whole = [a for a in some if a.finished and a.text]
        # The order of equal scores is that of the answers: the row's own comes first.
        known = sorted((a for a in whole if a.score is not None), key=lambda a: -(a.score or 0.0))
        least = 2 if shape == "preferences" else 1
        if len(whole) < least:
            ended = f"{len(whole)} of {len(some)} answers are complete"
            return Rejection("prefer", "unfinished", ended)
        if len(known) < least:
            return Rejection("prefer", "undecided", "the answers have the same score, or none")
        best, worst = known[0], known[-1]
        value = best.score or 0.0
        gap = value - (worst.score or 0.0)
        same = gap <= 0 or best.text == worst.text
        if shape == "preferences" and (same or gap < self.options.margin):
            return Rejection("prefer", "tie", f"best and worst differ by {gap:.3g}", gap)
        if self.options.min_score is not None and value < self.options.min_score:
            return Rejection("prefer", "low_score", f"the best is worth {value:.3g}", value)
        return best, worst


def _total(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _row(
    task: Sample,
    number: int,
    best: _Answer,
    worst: _Answer,
    shape: Shape,
    run: str,
    models: Sequence[str],
) -> Sample:
    pair = shape == "preferences"
    scores = [Score("reward", best.score)]
    if pair:
        margin = (best.score or 0.0) - (worst.score or 0.0)
        scores += [Score("reward_rejected", worst.score), Score("margin", round(margin, 6))]
    written_by = [
        models[a.writer] for a in ((best, worst) if pair else (best,)) if a.writer is not None
    ]
    row = replace(
        task.with_answer(best.text, worst.text if pair else None),
        reasoning_content=best.reasoning,
        rejected_reasoning_content=worst.reasoning if pair else "",
    )
    return replace(
        row,
        origin=Origin(
            method="preference" if pair else "best_of_n",
            model=task.origin.model if best.writer is None else models[best.writer],
            run=run,
            draft=number,
            request=best.request,
            parents=(task.id,),
            prompt_sha256=best.digest,
            group=task.origin.group,
        ),
        scores=tuple(scores),
        generators=tuple(dict.fromkeys((*task.generators, *written_by))),
        edits=(),
    )


def _section(
    made: Provenance,
    options: PreferOptions,
    scored: Sequence[Sequence[_Answer]],
    facts: PreferFacts,
) -> list[str]:
    values = [a.score for some in scored for a in some if a.score is not None]
    mean = f"{sum(values) / len(values):.3f}" if values else "none"
    names = ", ".join(name_of(Path(s)) if Path(s).exists() else s for s in options.score)
    models: Any = made.options["models"]
    by = " and by ".join(f"`{model['name']}`" for model in models)
    own = "and the answers that the rows already had, " if options.existing else ""
    lines = [
        "## Answers",
        "",
        f"{options.samples} answers per prompt by {by} at temperature {options.temperature}, "
        f"{own}compared by {names}; mean score {mean}. An answer that was cut off is never chosen.",
        "",
    ]
    if facts.judge:
        counts = ", ".join(f"{name} {count:,}" for name, count in facts.judge.items())
        lines += [
            f"Contests, each judged in both orders: {counts}. Undecided contests do not count.",
            "",
        ]
    return lines
