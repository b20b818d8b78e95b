"""The Self-Instruct loop as a pure function: batches of requests out, completions in.

Batch k is built from the state after batch k-LAG was committed, whatever the
timing, so the same completions always give the same rows. No clock, disk,
network or engine here; `instructgen.generation.runner` drives it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from instructgen.engines import Completion, Request
from instructgen.filters import Stage
from instructgen.filters.chain import Chain
from instructgen.generation.methods import Classified, PromptSetup, RejectedCandidate
from instructgen.generation.options import Config
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Origin, Rejected, Rejection, Sample
from instructgen.schema.seeding import digest

# Batches in flight. See docs/decisions/0002-batches-in-flight.md.
LAG = 8
# Candidates by which acceptance is judged.
_WINDOW = 200

# Instructions in a row without an accepted row, after which the run stops.
_MAX_EMPTY_STREAK = 200


class Stop(NamedTuple):
    """Why a run ended: a short code, and a sentence."""

    reason: str
    detail: str


@dataclass(slots=True)
class Tally:
    """Candidates by fate; every one is counted once."""

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


class Loop:
    """The state of a run. Call `build` and `commit` in turn, as `LAG` demands.

    Args:
        config: the run's configuration.
        form: how prompts are made.
        seeds: the human seed tasks.
        run_id: what rows name as their run.
    """

    def __init__(
        self, config: Config, form: PromptSetup, seeds: Sequence[Sample], run_id: str
    ) -> None:
        self.config, self.form, self.run_id = config, form, run_id
        self.pool = Pool(seeds)
        self.chain = Chain(config.filters)
        for seed in seeds:
            self.chain.remember(seed, "instruction")
            if seed.output:
                self.chain.remember(seed, "row")
        self.rows: list[Sample] = []
        self.rejected: list[Rejected] = []
        self.tally = Tally()
        self.stopped: Stop | None = None
        self.resolved = 0
        self.batches_built = 0
        self.batches_committed = 0
        self._recent: deque[tuple[int, int]] = deque()
        self._empty_streak = 0

    def build(self) -> list[Request]:
        """The requests of the next batch, each with its own seed."""
        assert self.batches_built < self.batches_committed + LAG
        number = self.batches_built
        self.batches_built += 1
        rng = random.Random(digest(self.config.generate.seed, number))
        method, size = self.config.method, self.config.generate.batch_size
        requests = method.requests(self.pool, rng, size, self.form)
        return [
            r.with_seed(digest(self.config.generate.seed, number, i) % 2**31)
            for i, r in enumerate(requests)
        ]

    def commit(self, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
        """Take in the completions of the oldest batch, in request order."""
        batch = self.batches_committed
        self.batches_committed += 1
        seen, kept = self.tally.candidates, self.tally.kept
        for number, (request, completion) in enumerate(zip(requests, completions, strict=True)):
            self._count(completion)
            rows = len(self.rows)
            origin = self._origin(batch, number, request)
            for outcome in self.config.method.outcomes(self.pool, request, completion):
                if isinstance(outcome, Classified):
                    self.pool.tasks[outcome.task].kind = outcome.kind
                    self.pool.classified.append(outcome.task)
                    continue
                self.tally.candidates += 1
                sample = replace(
                    outcome.sample,
                    origin=origin,
                    source=self.config.method.name,
                    generators=self._generators(outcome.sample),
                )
                if isinstance(outcome, RejectedCandidate):
                    self._reject(sample, outcome.rejection, request.stage)
                else:
                    self._consider(sample, outcome.is_row, request)
                if request.task is not None and not self.pool.tasks[request.task].resolved:
                    self.pool.tasks[request.task].resolved = True
                    self.resolved += 1
            if request.task is not None and self.pool.tasks[request.task].resolved:
                self._empty_streak = 0 if len(self.rows) > rows else self._empty_streak + 1
        self._recent.append((self.tally.candidates - seen, self.tally.kept - kept))
        while sum(s for s, _ in self._recent) - self._recent[0][0] >= _WINDOW:
            self._recent.popleft()
        self.stopped = self._stop()

    def finish(self) -> list[Rejected]:
        """Close the books: an instruction that was never asked for rows is a rejection too.

        Returns:
            All rejections of the run.

        Raises:
            RuntimeError: a candidate is missing or counted twice.
        """
        rejected = list(self.rejected)
        for task in self.pool.tasks:
            if not task.resolved:
                rejection = Rejection("loop", "not_expanded", "the run ended before it had rows")
                rejected.append(Rejected(task.sample, rejection, "pool", len(rejected)))
        t = self.tally
        if (
            t.candidates != t.kept + sum(t.rejected.values())
            or len(self.rows) != t.kept_rows
            or len(self.rejected) != sum(t.rejected.values())
            or len(self.pool.tasks) != t.kept_instructions
            or len({r.id for r in rejected}) != len(rejected)
        ):
            raise RuntimeError("the funnel does not add up; please report this run")
        return rejected

    # -- inside ---------------------------------------------------------------------------

    def _consider(self, sample: Sample, is_row: bool, request: Request) -> None:
        if is_row and self._full:
            full = Rejection("loop", "target_reached", "the run had already reached its target")
            return self._reject(sample, full, request.stage)
        # An instruction is judged once: when it is proposed, alone or with its answer.
        proposed = request.task is None
        stages: list[Stage] = ["instruction"] if proposed else []
        if is_row:
            stages.append("row")
        for stage in stages:
            verdict = self.chain.evaluate(sample, stage)
            sample = verdict.sample
            if verdict.rejection is not None:
                return self._reject(sample, verdict.rejection, request.stage)
        if proposed:
            self.chain.remember(sample, "instruction")
        if is_row:
            self.chain.remember(sample, "row")
            self.rows.append(sample)
            self.tally.kept_rows += 1
        else:
            self.pool.unclassified.append(self.pool.add(sample))
            self.tally.kept_instructions += 1
        return None

    def _reject(self, sample: Sample, rejection: Rejection, stage: str) -> None:
        self.rejected.append(Rejected(sample, rejection, stage, len(self.rejected)))
        self.tally.rejected[stage, rejection.filter, rejection.reason] += 1

    def _count(self, completion: Completion) -> None:
        self.tally.requests += 1
        self.tally.failed_requests += completion.finish_reason == "error"
        self.tally.prompt_tokens += completion.prompt_tokens
        self.tally.output_tokens += completion.output_tokens

    def _origin(self, batch: int, number: int, request: Request) -> Origin:
        if request.task is None:
            parents = tuple(self.pool.at(p).id for p in request.parents)
        else:
            parents = self.pool.tasks[request.task].sample.origin.parents
        return Origin(
            method=self.config.method.name,
            model=self.config.engine.model or self.config.engine.name,
            run=self.run_id,
            batch=batch,
            request=number,
            parents=parents,
            prompt_sha256=hashlib.sha256(request.prompt_text().encode()).hexdigest(),
        )

    def _generators(self, sample: Sample) -> tuple[str, ...]:
        """The models whose terms apply: this run's, and those of the demonstrations."""
        model = self.config.engine.model
        return tuple(sorted({*sample.generators, *([model] if model else [])}))

    @property
    def _full(self) -> bool:
        return len(self.rows) >= self.config.generate.target

    def _stop(self) -> Stop | None:
        options, t = self.config.generate, self.tally
        if self._full:
            return Stop("target", f"{len(self.rows)} rows accepted")
        if options.max_tokens_total is not None and t.tokens >= options.max_tokens_total:
            return Stop("max_tokens_total", f"{t.tokens:,} tokens used")
        seen = sum(s for s, _ in self._recent)
        share = sum(k for _, k in self._recent) / max(seen, 1)
        if seen >= _WINDOW and share < options.acceptance_floor:
            detail = (
                f"{share:.2%} of the last {seen} candidates were kept, less than "
                f"acceptance_floor = {options.acceptance_floor:.1%}"
            )
            return Stop("acceptance_floor", detail)
        if options.acceptance_floor and self._empty_streak >= _MAX_EMPTY_STREAK:
            detail = f"{self._empty_streak} instructions in a row led to no row that was kept"
            return Stop("acceptance_floor", detail)
        return None


def request_digest(request: Request) -> str:
    """16 hex digits over all that decides a completion: prompt, schema and sampling."""
    prompt: object = request.prompt
    if not isinstance(prompt, str):
        prompt = [m if isinstance(m, int) else [m.role, m.content] for m in request.prompt]  # type: ignore[union-attr]
    s = request.sampling
    sampling = [s.temperature, s.top_p, s.max_tokens, s.presence_penalty, s.frequency_penalty]
    parts = [prompt, request.schema, sampling, s.stop, s.seed]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:16]
