"""The state of a generation run as a pure function: what to ask next, and what to keep.

The same completions, used in the same order, always give the same rows. No clock, disk, network or
engine here; `instructgen.generation.sequencer` drives it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

from instructgen.engines import Completion, Request, Role
from instructgen.filters import AskingFilter, ScoringFilter
from instructgen.filters import Stage as FilterStage
from instructgen.filters.chain import Chain, Unscored
from instructgen.filters.cluster import Cluster
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
from instructgen.generation.scoring import SCORE, read_score, score_request
from instructgen.generation.seed_pool import Pool
from instructgen.generation.shares import Group
from instructgen.generation.work import Choice, Stop
from instructgen.schema.copies import changed
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample
from instructgen.schema.seeding import digest

# Longer seeds are not used as demonstrations.
_MAX_DEMONSTRATION_WORDS = 150
# Candidates by which acceptance is judged.
_WINDOW = 200
# Instructions in a row without an accepted row, after which the run stops.
_MAX_EMPTY_STREAK = 200
# The weight of a stage's expected results, in completions, against the observed ones.
_PRIOR_WEIGHT = 4.0
# The fraction of the requests in flight up to which drafts may come before later stages. If those
# keep little, a run needs many drafts for its last rows, and would finish none of them in between.
_FEW_DRAFTS = 0.125


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
class _Asking:
    """A draft at a stage, and the completions of its request, which is made several times."""

    draft: Draft
    samples: int
    numbers: list[int] = field(default_factory=list)
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all completions have arrived."""
        return len(self.completions) == self.samples

    def in_order(self) -> list[Completion]:
        """Return the completions in the order of their requests."""
        return [self.completions[number] for number in self.numbers]


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
        tasks = config.method.starts_from in ("tasks", "rows")
        coverage = config.generate.demonstrations == "coverage"
        self.pool = Pool(
            seeds,
            # A method that uses each seed shows no demonstrations, which must be short.
            None if config.method.finite or not tasks else _MAX_DEMONSTRATION_WORDS,
            config.generate.balance,
            coverage,
            config.method.fits,
            config.method.order,
        )
        for f in config.filters:
            if isinstance(f, Cluster):
                f.fit(seeds)
        self.chain = Chain(config.filters)
        # Beside segments of documents, the other seeds are questions of the user.
        asked = [s for s in seeds if s.place is None] if any(s.place for s in seeds) else []
        for sample in (*(seeds if tasks else asked), *known):
            self.chain.remember(sample, "instruction")
            if sample.output:
                self.chain.remember(sample, "row")
        self.path: tuple[Stage, ...] = config.method.path(form)
        scores = [f for f in config.filters if isinstance(f, ScoringFilter)]
        self._counts = {s.name: _StageCounts(s.results) for s in self.path}
        self._counts |= {SCORE + f.score_name: _StageCounts(1.0) for f in scores}
        self._roles: dict[str, Role] = {s.name: s.role for s in self.path}
        self._roles |= {
            SCORE + f.score_name: "judge" if isinstance(f, AskingFilter) else "reward"
            for f in scores
        }
        self._queues: dict[str, deque[_Asking | _Waiting]] = {s: deque() for s in self._counts}
        self._open: dict[int, tuple[_Asking | _Waiting, Request]] = {}
        # By draft: what of it is in progress, and its accepted rows.
        self._unfinished: list[int] = []
        self._rows_of: list[int] = []
        self._ended, self._delivered = 0, 0
        # Accepted instructions of groups that have more than their shares.
        self._later: dict[Group, deque[Draft]] = {}
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
        return self._open[number][0].draft

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

        A draft is started only while the accepted rows, and the rows expected of the drafts in
        progress, are fewer than the target. Later stages come first, unless only few rows are
        missing: a draft for these has the longest way to go, and the end of the run waits for it.

        Args:
            free: whether a request may be sent to the engine of a role.
        """
        later: Choice | None = None
        for stage in reversed(self._queues):
            queue, role = self._queues[stage], self._roles[stage]
            if queue and free(role):
                later = Choice(queue[0].draft.number, stage, role)
                break
        if later is not None and not self._lacks_few():
            return later
        first = self.config.method.first_stage(self.pool, self.drafts, self.form)
        # A draft with samples that are not asked for yet comes before a new one.
        if not self._queues[first.name] and free(first.role) and self._needs_draft():
            return Choice(self.drafts, first.name, first.role)
        return later

    def _needs_draft(self) -> bool:
        idle = not self._open and not any(self._queues.values())
        if self.drafts >= self._limit():
            if idle and self.stopped is None:
                detail = f"all {self.drafts:,} drafts that the seeds give have ended"
                self.stopped = Stop("inputs_exhausted", detail)
            return False
        target = self.config.generate.target
        return target == "all" or idle or self._expected(target) < target

    def _lacks_few(self) -> bool:
        """Return whether rows are missing, but so few that they need few drafts."""
        target = self.config.generate.target
        if target == "all":
            return False
        missing = target - self._expected(target)
        drafts = _FEW_DRAFTS * len(self._open) - self._counts[self.path[0].name].in_progress
        rows_per_draft = math.prod(counts.rate for counts in self._counts.values())
        return 0 < missing < drafts * rows_per_draft

    def _limit(self) -> float:
        """Return the number of drafts that the inputs give."""
        if not self.config.method.finite:
            return float("inf")
        return self.config.generate.passes * len(self.pool.usable)

    def _expected(self, target: int) -> float:
        """Return the accepted rows and those expected of what is in progress, for a target.

        Rows of a group beyond its share are not counted, because the others need drafts, too.
        """
        value, expected, per_task = 1.0, 0.0, 1.0
        for stage, counts in reversed(self._counts.items()):
            value *= counts.rate
            expected += value * counts.in_progress
            if stage != self.path[0].name:
                per_task = value
        shares = self.pool.shares
        if len(shares.seeds) < 2:
            return len(self._rows) + expected
        of_drafts = max(0.0, expected - per_task * shares.pending.total())
        return shares.useful(target, per_task) + of_drafts

    # -- requests and completions ---------------------------------------------------------

    def issue(self, number: int, choice: Choice) -> Request:
        """Take a draft from its stage, and return its request, which gets this number.

        Raises:
            LookupError: no such draft waits at the stage.
        """
        item: _Asking | _Waiting
        if choice.draft == self.drafts:
            rng = random.Random(digest(self.config.generate.seed, "draft", choice.draft))
            draft = self.config.method.start(self.pool, rng, choice.draft, self.form)
            self.pool.start(draft.sample, draft.parents)
            self._unfinished.append(0)
            self._rows_of.append(0)
            self._enqueue(draft, first=True)
        item = self._queues[choice.stage][0]
        if item.draft.number != choice.draft:
            raise LookupError(f"draft {choice.draft}")
        if isinstance(item, _Asking):
            made = self.config.method.request(self.pool, item.draft, self.form)
            item.numbers.append(number)
        elif isinstance(item.filter, AskingFilter):
            made = item.filter.request(item.sample, structured=self.form.judge_structured)
        else:
            made = score_request(item.filter, item.sample)
        seed = digest(self.config.generate.seed, number) % 2**31
        request = changed(
            made,
            sampling=changed(made.sampling, seed=seed),
            role=choice.role,
            stage=choice.stage,
            model=self.config.model_of(choice.role),
        )
        if isinstance(item, _Waiting) or len(item.numbers) == item.samples:
            self._queues[choice.stage].popleft()
        self._open[number] = (item, request)
        return request

    def commit(self, number: int, completion: Completion) -> None:
        """Take in the completion of a request."""
        item, request = self._open.pop(number)
        self._count(completion)
        if isinstance(item, _Asking):
            item.completions[number] = completion
            if not item.complete:
                self.stopped = self._stop()
                return
        seen, kept, rows = self.tally.candidates, self.tally.kept, len(self._rows)
        counts, draft = self._counts[request.stage], item.draft
        counts.in_progress -= 1
        counts.completions += 1
        if isinstance(item, _Waiting):
            self._scored(number, item, completion)
        else:
            self._read(item, request)
        self._unfinished[draft.number] -= 1
        if draft.task is not None and (task := self.pool.tasks[draft.task]).ended:
            self._empty_streak += 1
            self.pool.shares.pending[self.pool.group_of(task.sample)] -= 1
            self._ask_for_rows()
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

    def _read(self, item: _Asking, request: Request) -> None:
        draft, numbers = item.draft, item.numbers
        if request.role != "writer" and draft.origins:
            # The texts are still those of the writer's last completions.
            origins, named = draft.origins, draft
        else:
            origins = tuple(self._origin(number, draft, request) for number in numbers)
            sample = self._named(draft.sample, origins[0])
            named = changed(draft, sample=sample, origins=origins)
        outcomes = self.config.method.read_all(named, item.in_order(), self.form)
        candidates: list[Sample] = []
        for outcome in outcomes:
            of = outcome.of if isinstance(outcome, Accept | Reject) else 0
            sample = (
                outcome.sample if isinstance(outcome, Accept | Reject) else outcome.draft.sample
            )
            # Methods usually derive the samples from that of the draft, which has the origin.
            same = sample.origin is origins[of]
            candidates.append(sample if same else self._named(sample, origins[of]))
        stages: tuple[FilterStage, ...] = ("instruction", "row")
        if draft.task is not None or self.config.method.keeps_instructions:
            stages = ("row",)
        judged = [i for i, o in enumerate(outcomes) if isinstance(o, Propose | Accept)]
        if judged and isinstance(outcomes[judged[0]], Propose):
            stages = ("instruction",)
        verdicts = dict(
            zip(
                judged,
                self.chain.evaluate(
                    [candidates[i] for i in judged], stages, exempt=self._ancestors(draft)
                ),
                strict=True,
            )
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
                waits = outcome.draft if isinstance(outcome, Propose) else draft
                asked_by = request.stage
                self._enqueue(
                    _Waiting(waits, verdict.sample, stages, verdict.filter, asked_by, proposed)
                )
                results += 1
                continue
            self.tally.candidates += 1
            if verdict.rejection is not None:
                self._reject(verdict.sample, verdict.rejection, request.stage)
                continue
            if isinstance(outcome, Propose):
                self._keep(outcome.draft, numbers[0], verdict.sample, proposed=True)
            else:
                number = numbers[min(outcome.of, len(numbers) - 1)]
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
        if isinstance(item.filter, AskingFilter):
            sample = item.filter.read(item.sample, completion)
        else:
            sample = item.sample.with_score(read_score(completion, item.filter.score_name))
        (verdict,) = self.chain.evaluate(
            [sample], item.stages, item.filter, self._ancestors(item.draft)
        )
        counts = self._counts[SCORE + item.filter.score_name]
        if isinstance(verdict, Unscored):
            self._enqueue(changed(item, sample=verdict.sample, filter=verdict.filter))
            counts.results += 1
            return
        self.tally.candidates += 1
        if verdict.rejection is not None:
            self._reject(verdict.sample, verdict.rejection, item.asked_by)
        else:
            counts.results += 1
            self._keep(item.draft, number, verdict.sample, proposed=item.proposed)

    def _enqueue(self, item: Draft | _Waiting, *, first: bool = False) -> None:
        queued: _Asking | _Waiting
        if isinstance(item, Draft):
            number, stage = item.number, item.stage
            queued = _Asking(item, self.config.method.samples(item, self.form))
        else:
            number, stage, queued = item.draft.number, SCORE + item.filter.score_name, item
            if item.draft.task is not None:
                self.pool.tasks[item.draft.task].waiting += 1
        self._unfinished[number] += 1
        self._counts[stage].in_progress += 1
        if first:
            self._queues[stage].appendleft(queued)
        else:
            self._queues[stage].append(queued)

    def _keep(self, draft: Draft, number: int, sample: Sample, *, proposed: bool) -> None:
        """Take in a row, or a proposed instruction, that all filters accepted."""
        if proposed:
            task = self.pool.add(sample)
            self.tally.kept_instructions += 1
            shares, group = self.pool.shares, self.pool.group_of(sample)
            draft = changed(draft, sample=sample, task=task)
            if self.config.method.finite or shares.has_room(group):
                shares.pending[group] += 1
                self._enqueue(draft)
            else:
                shares.waiting[group] += 1
                self._later.setdefault(group, deque()).append(draft)
            self._ask_for_rows()
            return
        key = (draft.number, number, len(self._rows))
        self._rows.append((key, sample))
        self._rows_of[draft.number] += 1
        self.pool.shares.accepted[self.pool.group_of(sample)] += 1
        self.tally.kept_rows += 1

    def _ask_for_rows(self) -> None:
        """Continue with instructions that had to wait, if their group has room for them now.

        Each becomes a draft of its own, because the one that it came from may have been delivered.
        """
        shares, more = self.pool.shares, True
        while more:
            more = False
            for group in sorted(self._later):
                if self._later[group] and shares.has_room(group):
                    shares.waiting[group] -= 1
                    shares.pending[group] += 1
                    draft = changed(self._later[group].popleft(), number=self.drafts)
                    self._unfinished.append(0)
                    self._rows_of.append(0)
                    self._enqueue(draft)
                    more = True

    def _reject(self, sample: Sample, rejection: Rejection, stage: str) -> None:
        self.rejected.append(Rejected(sample, rejection, stage, len(self.rejected)))
        self.tally.rejected[stage, rejection.filter, rejection.reason] += 1

    def _count(self, completion: Completion) -> None:
        self.tally.requests += 1
        self.tally.failed_requests += completion.finish_reason == "error"
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.output_tokens += completion.output_tokens

    def _named(self, sample: Sample, origin: Origin) -> Sample:
        """Return the sample with its origin, and the models whose terms apply."""
        model = self.config.engine.model
        generators = {*sample.generators, *([model] if model else [])}
        return changed(
            sample,
            origin=origin,
            source=self.config.method.name,
            generators=tuple(sorted(generators)),
        )

    def _origin(self, number: int, draft: Draft, request: Request) -> Origin:
        if draft.ancestors:
            parents = draft.ancestors[:1]
        elif draft.task is None:
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
            group=self._group(draft),
        )

    def _group(self, draft: Draft) -> str | None:
        """Return the group of the seed that a draft is made from: both must be in one split."""
        if not self.config.method.finite or not draft.parents:
            return None
        return self.pool.at(draft.parents[0]).origin.group

    def _ancestors(self, draft: Draft) -> frozenset[str]:
        """Return the ids of the rows that a draft is made from, and may therefore resemble.

        Demonstrations are not among them.
        """
        if not self.config.method.finite:
            return frozenset()
        return frozenset((*draft.ancestors, *(self.pool.id_at(p) for p in draft.parents)))

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
