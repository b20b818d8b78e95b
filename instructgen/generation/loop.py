"""The state of a generation run as a pure function: what to ask next, and what to keep.

The same completions, used in the same order, always give the same rows. No clock, disk, network or
engine here; `instructgen.generation.sequencer` drives it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from instructgen.engines import Completion, Request, Role, Sampling
from instructgen.filters import ScoringFilter
from instructgen.filters import Stage as FilterStage
from instructgen.filters.chain import Chain, Unscored
from instructgen.generation.methods import (
    Accept,
    Continue,
    Draft,
    PromptSetup,
    Propose,
    Reject,
    Stage,
)
from instructgen.generation.options import Config
from instructgen.generation.scoring import SCORE, read_score
from instructgen.generation.seed_pool import Pool
from instructgen.generation.work import Choice, Stop
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample
from instructgen.schema.seeding import digest

# Candidates by which acceptance is judged.
_WINDOW = 200
# Instructions in a row without an accepted row, after which the run stops.
_MAX_EMPTY_STREAK = 200
# The weight of a stage's expected results, in completions, against the observed ones.
_PRIOR_WEIGHT = 4.0


@dataclass(slots=True)
class Tally:
    """The numbers of accepted and rejected candidates, requests and tokens.

    Each candidate is counted once.
    """

    candidates: int = 0
    kept_instructions: int = 0
    kept_rows: int = 0
    rejected: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    requests: int = 0
    failed_requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def kept(self) -> int:
        """Instructions and rows kept."""
        return self.kept_instructions + self.kept_rows

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return self.prompt_tokens + self.output_tokens


class Ended(NamedTuple):
    """The result of a run: its rows in draft order, all rejections, and the final counts."""

    rows: list[Sample]
    rejected: list[Rejected]
    tally: Tally


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row or a proposed instruction that waits for a score, and the filters that evaluate it."""

    draft: Draft
    sample: Sample
    stages: tuple[FilterStage, ...]
    filter: ScoringFilter
    asked_by: str
    proposed: bool


@dataclass(slots=True)
class _StageCounts:
    """The completions of a stage, their results, and the number of drafts at the stage now."""

    expected: float
    completions: int = 0
    results: int = 0
    in_progress: int = 0

    @property
    def rate(self) -> float:
        """The results per completion: the observed ones, mixed with the expected ones."""
        expected = _PRIOR_WEIGHT * self.expected
        return (expected + self.results) / (_PRIOR_WEIGHT + self.completions)


class Loop:
    """The state of a run. Call `choose`, `issue` and `commit`, as `Sequencer` does.

    Rows are delivered in draft order: the run ends when the target is reached by the drafts that
    have ended and have no unfinished draft before them. Otherwise short answers, which arrive
    first, would crowd out long ones.

    Args:
        config: the run's configuration.
        form: how prompts are made.
        seeds: the human seed tasks.
        run_id: what rows name as their run.
        known: rows of other datasets, which new rows must differ from.
    """

    def __init__(
        self,
        config: Config,
        form: PromptSetup,
        seeds: Sequence[Sample],
        run_id: str,
        known: Sequence[Sample] = (),
    ) -> None:
        self.config, self.form, self.run_id = config, form, run_id
        self.pool = Pool(seeds)
        self.chain = Chain(config.filters)
        for sample in (*seeds, *known):
            self.chain.remember(sample, "instruction")
            if sample.output:
                self.chain.remember(sample, "row")
        self.path: tuple[Stage, ...] = config.method.path(form)
        scores = [f for f in config.filters if isinstance(f, ScoringFilter)]
        self._counts = {s.name: _StageCounts(s.results) for s in self.path}
        self._counts |= {SCORE + f.score_name: _StageCounts(1.0) for f in scores}
        self._roles: dict[str, Role] = {s.name: s.role for s in self.path}
        self._roles |= {SCORE + f.score_name: "reward" for f in scores}
        self._queues: dict[str, deque[Draft | _Waiting]] = {s: deque() for s in self._counts}
        self._open: dict[int, tuple[Draft | _Waiting, Request]] = {}
        # By draft: what of it is in progress, and its accepted rows.
        self._unfinished: list[int] = []
        self._rows_of: list[int] = []
        self._ended, self._delivered = 0, 0
        self._rows: list[tuple[tuple[int, int, int], Sample]] = []
        self.rejected: list[Rejected] = []
        self.tally = Tally()
        self.stopped: Stop | None = None
        self._recent: deque[tuple[int, int]] = deque()
        self._seen = self._kept = 0
        self._empty_streak = 0

    @property
    def rows(self) -> list[Sample]:
        """The accepted rows in the order of their acceptance."""
        return [sample for _, sample in self._rows]

    def latest_row(self) -> Sample | None:
        """Return the row that was accepted last, or None before the first one."""
        return self._rows[-1][1] if self._rows else None

    def draft_of(self, number: int) -> Draft:
        """Return the draft of a request that is issued and not committed."""
        item = self._open[number][0]
        return item if isinstance(item, Draft) else item.draft

    @property
    def drafts(self) -> int:
        """The number of drafts that were started."""
        return len(self._unfinished)

    def in_progress(self) -> dict[str, int]:
        """Return the number of drafts by stage, waiting or asked for."""
        return {name: counts.in_progress for name, counts in self._counts.items()}

    # -- the issue policy -----------------------------------------------------------------

    def choose(self, free: Callable[[Role], bool]) -> Choice | None:
        """Return what to ask next, or None if nothing is to be asked now.

        Later stages come first. A draft is started only while the accepted rows, and the rows
        expected of the drafts in progress, are fewer than the target.

        Args:
            free: whether a request may be sent to the engine of a role.
        """
        for stage in reversed(self._queues):
            queue, role = self._queues[stage], self._roles[stage]
            if queue and free(role):
                head = queue[0]
                draft = head if isinstance(head, Draft) else head.draft
                return Choice(draft.number, stage, role)
        first = self.path[0]
        if free(first.role) and self._needs_draft():
            return Choice(self.drafts, first.name, first.role)
        return None

    def _needs_draft(self) -> bool:
        idle = not self._open and not any(self._queues.values())
        if self.drafts >= self._limit():
            if idle and self.stopped is None:
                detail = f"all {self.drafts:,} drafts that the seeds give have ended"
                self.stopped = Stop("inputs_exhausted", detail)
            return False
        target = self.config.generate.target
        return target == "all" or idle or len(self._rows) + self._expected() < target

    def _limit(self) -> float:
        """Return the number of drafts that the inputs give."""
        if not self.config.method.finite:
            return float("inf")
        return self.config.generate.passes * len(self.pool.seeds)

    def _expected(self) -> float:
        """Return the number of rows that the drafts in progress are expected to give."""
        value, total = 1.0, 0.0
        for counts in reversed(self._counts.values()):
            value *= counts.rate
            total += value * counts.in_progress
        return total

    # -- requests and completions ---------------------------------------------------------

    def issue(self, number: int, choice: Choice) -> Request:
        """Take a draft from its stage, and return its request, which gets this number.

        Raises:
            LookupError: no such draft waits at the stage.
        """
        request: Request
        if choice.stage == self.path[0].name and choice.draft == self.drafts:
            rng = random.Random(digest(self.config.generate.seed, "draft", choice.draft))
            item: Draft | _Waiting = self.config.method.start(
                self.pool, rng, choice.draft, self.form
            )
            self._unfinished.append(1)
            self._rows_of.append(0)
            self._counts[choice.stage].in_progress += 1
        else:
            item = self._queues[choice.stage].popleft()
            draft = item if isinstance(item, Draft) else item.draft
            if draft.number != choice.draft:
                raise LookupError(f"draft {choice.draft}")
        if isinstance(item, _Waiting):
            row = item.sample
            request = Request(row.messages, Sampling(), role="reward", stage=choice.stage, row=row)
        else:
            made = self.config.method.request(self.pool, item, self.form)
            seed = digest(self.config.generate.seed, number) % 2**31
            sampling = replace(made.sampling, seed=seed)
            model = self.config.engine.model
            request = Request(made.prompt, sampling, made.schema, choice.role, made.stage, model)
        self._open[number] = (item, request)
        return request

    def commit(self, number: int, completion: Completion) -> None:
        """Take in the completion of a request."""
        item, request = self._open.pop(number)
        seen, kept = self.tally.candidates, self.tally.kept
        self._count(request.stage, completion)
        draft = item if isinstance(item, Draft) else item.draft
        rows = len(self._rows)
        if isinstance(item, _Waiting):
            self._scored(number, item, completion)
        else:
            self._read(number, item, request, completion)
        self._unfinished[draft.number] -= 1
        if draft.task is not None and self.pool.tasks[draft.task].ended:
            self._empty_streak += 1
        if len(self._rows) > rows:
            self._empty_streak = 0
        while self._ended < self.drafts and not self._unfinished[self._ended]:
            self._delivered += self._rows_of[self._ended]
            self._ended += 1
        self._update_recent(self.tally.candidates - seen, self.tally.kept - kept)
        self.stopped = self._stop()

    def finish(self) -> Ended:
        """Return the result; instructions without rows and rows after the target are rejections.

        Raises:
            RuntimeError: a candidate is missing or counted twice.
        """
        t = self.tally
        if (
            t.candidates != t.kept + sum(t.rejected.values())
            or len(self._rows) != t.kept_rows
            or len(self.rejected) != sum(t.rejected.values())
            or len(self.pool.tasks) != t.kept_instructions
        ):
            raise RuntimeError("the funnel does not add up; please report this run")
        ordered = [sample for _, sample in sorted(self._rows, key=lambda row: row[0])]
        target = self.config.generate.target
        limit = len(ordered) if target == "all" else target
        rejected, counts = list(self.rejected), Counter(t.rejected)
        last = self.path[-1].name
        for sample in ordered[limit:]:
            detail = "the run had already reached its target"
            rejection = Rejection("loop", "target_reached", detail)
            rejected.append(Rejected(sample, rejection, last, len(rejected)))
            counts[last, "loop", "target_reached"] += 1
        waiting = [*(item for item, _ in self._open.values()), *chain(*self._queues.values())]
        unscored = [item for item in waiting if isinstance(item, _Waiting)]
        for item in unscored:
            rejection = Rejection("loop", "not_scored", "the run ended before it had a score")
            rejected.append(Rejected(item.sample, rejection, item.asked_by, len(rejected)))
            counts[item.asked_by, "loop", "not_scored"] += 1
        for task in self.pool.tasks:
            if not task.resolved:
                rejection = Rejection("loop", "not_expanded", "the run ended before it had rows")
                rejected.append(Rejected(task.sample, rejection, "pool", len(rejected)))
        if len({r.id for r in rejected}) != len(rejected):
            raise RuntimeError("two rejections have the same id; please report this run")
        delivered = ordered[:limit]
        candidates = t.candidates + len(unscored)
        ended = replace(t, candidates=candidates, kept_rows=len(delivered), rejected=counts)
        if candidates != ended.kept + sum(counts.values()):
            raise RuntimeError("a candidate is missing; please report this run")
        return Ended(delivered, rejected, ended)

    # -- inside ---------------------------------------------------------------------------

    def _read(self, number: int, draft: Draft, request: Request, completion: Completion) -> None:
        origin = self._origin(number, draft, request)
        named = replace(draft, sample=self._named(draft.sample, origin))
        outcomes = self.config.method.read(named, completion, self.form)
        samples = [
            o.draft.sample if isinstance(o, Propose | Continue) else o.sample for o in outcomes
        ]
        # Methods usually derive the samples from that of the draft, which has the origin.
        candidates = [s if s.origin is origin else self._named(s, origin) for s in samples]
        stages: tuple[FilterStage, ...] = ("row",) if draft.task is not None else (
            "instruction", "row",
        )  # fmt: skip
        judged = [i for i, o in enumerate(outcomes) if isinstance(o, Propose | Accept)]
        if judged and isinstance(outcomes[judged[0]], Propose):
            stages = ("instruction",)
        verdicts = dict(
            zip(judged, self.chain.evaluate([candidates[i] for i in judged], stages), strict=True)
        )
        results = 0
        for i, outcome in enumerate(outcomes):
            if isinstance(outcome, Continue):
                self._enqueue(outcome.draft)
                results += 1
                continue
            if isinstance(outcome, Reject):
                self.tally.candidates += 1
                self._reject(candidates[i], outcome.rejection, request.stage)
                continue
            verdict = verdicts[i]
            if isinstance(verdict, Unscored):
                # It is counted when its score decides.
                proposed = isinstance(outcome, Propose)
                of = outcome.draft if isinstance(outcome, Propose) else draft
                asked_by = request.stage
                self._enqueue(
                    _Waiting(of, verdict.sample, stages, verdict.filter, asked_by, proposed)
                )
                results += 1
                continue
            self.tally.candidates += 1
            if verdict.rejection is not None:
                self._reject(verdict.sample, verdict.rejection, request.stage)
                continue
            if isinstance(outcome, Propose):
                self._keep(outcome.draft, number, verdict.sample, proposed=True)
            else:
                self._keep(draft, number, verdict.sample, proposed=False)
            results += 1
        self._counts[request.stage].results += results
        self._resolve(draft, outcomes)

    def _resolve(self, draft: Draft, outcomes: Sequence[object]) -> None:
        if draft.task is None or any(isinstance(o, Continue) for o in outcomes):
            return
        task = self.pool.tasks[draft.task]
        task.resolved = True

    def _scored(self, number: int, item: _Waiting, completion: Completion) -> None:
        if item.draft.task is not None:
            self.pool.tasks[item.draft.task].waiting -= 1
        score = read_score(completion, item.filter.score_name)
        sample = item.sample.with_score(score)
        (verdict,) = self.chain.evaluate([sample], item.stages, item.filter)
        counts = self._counts[SCORE + item.filter.score_name]
        if isinstance(verdict, Unscored):
            self._enqueue(replace(item, sample=verdict.sample, filter=verdict.filter))
            counts.results += 1
            return
        self.tally.candidates += 1
        if verdict.rejection is not None:
            self._reject(verdict.sample, verdict.rejection, item.asked_by)
        else:
            counts.results += 1
            self._keep(item.draft, number, verdict.sample, proposed=item.proposed)

    def _enqueue(self, item: Draft | _Waiting) -> None:
        if isinstance(item, Draft):
            number, stage = item.number, item.stage
        else:
            number, stage = item.draft.number, SCORE + item.filter.score_name
            if item.draft.task is not None:
                self.pool.tasks[item.draft.task].waiting += 1
        self._unfinished[number] += 1
        self._counts[stage].in_progress += 1
        self._queues[stage].append(item)

    def _keep(self, draft: Draft, number: int, sample: Sample, *, proposed: bool) -> None:
        """Take in a row, or a proposed instruction, that all filters accepted."""
        if proposed:
            task = self.pool.add(sample)
            self.tally.kept_instructions += 1
            self._enqueue(replace(draft, sample=sample, task=task))
            return
        key = (draft.number, number, len(self._rows))
        self._rows.append((key, sample))
        self._rows_of[draft.number] += 1
        self.tally.kept_rows += 1

    def _reject(self, sample: Sample, rejection: Rejection, stage: str) -> None:
        self.rejected.append(Rejected(sample, rejection, stage, len(self.rejected)))
        self.tally.rejected[stage, rejection.filter, rejection.reason] += 1

    def _count(self, stage: str, completion: Completion) -> None:
        counts = self._counts[stage]
        counts.in_progress -= 1
        counts.completions += 1
        self.tally.requests += 1
        self.tally.failed_requests += completion.finish_reason == "error"
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.output_tokens += completion.output_tokens

    def _named(self, sample: Sample, origin: Origin) -> Sample:
        """Return the sample with its origin, and the models whose terms apply."""
        model = self.config.engine.model
        generators = {*sample.generators, *([model] if model else [])}
        return replace(
            sample,
            origin=origin,
            source=self.config.method.name,
            generators=tuple(sorted(generators)),
        )

    def _origin(self, number: int, draft: Draft, request: Request) -> Origin:
        if draft.task is None:
            parents = tuple(self.pool.id_at(p) for p in draft.parents)
        else:
            parents = self.pool.tasks[draft.task].sample.origin.parents
        return Origin(
            method=self.config.method.name,
            model=self.config.engine.model or self.config.engine.name,
            run=self.run_id,
            draft=draft.number,
            request=number,
            parents=parents,
            prompt_sha256=hashlib.sha256(request.prompt_text().encode()).hexdigest(),
        )

    def _update_recent(self, seen: int, kept: int) -> None:
        if not seen and not kept:
            return
        self._recent.append((seen, kept))
        self._seen += seen
        self._kept += kept
        while self._seen - self._recent[0][0] >= _WINDOW:
            oldest = self._recent.popleft()
            self._seen -= oldest[0]
            self._kept -= oldest[1]

    def _stop(self) -> Stop | None:
        options, t = self.config.generate, self.tally
        if options.target != "all" and self._delivered >= options.target:
            return Stop("target", f"{options.target:,} rows accepted")
        if options.max_tokens_total is not None and t.tokens >= options.max_tokens_total:
            return Stop("max_tokens_total", f"{t.tokens:,} tokens used")
        if options.max_cost is not None and (cost := self.cost()) >= options.max_cost:
            return Stop("max_cost", f"the requests have cost {cost:,.2f}")
        share = self._kept / max(self._seen, 1)
        if self._seen >= _WINDOW and share < options.acceptance_floor:
            detail = (
                f"{share:.2%} of the last {self._seen} candidates were kept, less than "
                f"acceptance_floor = {options.acceptance_floor:.1%}"
            )
            return Stop("acceptance_floor", detail)
        if options.acceptance_floor and self._empty_streak >= _MAX_EMPTY_STREAK:
            detail = f"{self._empty_streak} instructions in a row led to no row that was kept"
            return Stop("acceptance_floor", detail)
        return None

    def cost(self) -> float:
        """Return the cost of all requests at the set price, 0 without a price."""
        prompt, output = self.config.generate.price or (0.0, 0.0)
        return (self.tally.prompt_tokens * prompt + self.tally.output_tokens * output) / 1e6
