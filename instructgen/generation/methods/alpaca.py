"""The Alpaca method (Taori et al. 2023), which generates complete rows in one stage.

A prompt shows human-written seed rows (three by default) as examples. Generated rows are never
shown in later prompts.
"""

from __future__ import annotations

import random
from dataclasses import replace

from pydantic import Field

from instructgen.engines import Completion, Request
from instructgen.generation.methods import (
    Candidate,
    Method,
    Outcome,
    PromptSetup,
    RejectedCandidate,
    SamplingOptions,
    child_sample,
)
from instructgen.generation.prompts import (
    Instance,
    Template,
    capital,
    one_line,
    parse_json,
    record_of,
    schema_of,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Rejection, Sample

TRIPLES = "triples"


class Alpaca(Method):
    """Generates several rows (instruction, input and output) with each completion."""

    name = "alpaca"

    human: int = Field(3, ge=1, description="Number of human-written seed rows shown in a prompt.")
    new_tasks: int = Field(
        16, ge=1, description="Maximum number of rows to generate with one completion."
    )
    max_demonstration_characters: int = Field(
        2000,
        ge=100,
        description="Maximum length of a seed row, in characters. Longer ones are not shown in "
        "prompts.",
    )
    triples: SamplingOptions = Field(
        SamplingOptions(temperature=1.0, max_tokens=3072),
        description="Sampling parameters for all requests to the language model.",
    )

    def requests(
        self, pool: Pool, rng: random.Random, count: int, form: PromptSetup
    ) -> list[Request]:
        """Return ``count`` requests, each with randomly drawn seed rows as examples."""
        return [self._request(pool, rng, form) for _ in range(count)]

    def outcomes(self, pool: Pool, request: Request, completion: Completion) -> list[Outcome]:
        """Return the rows of a completion; if the completion was cut off, reject its last row."""
        blank = child_sample(pool, request.parents, request.language)
        if completion.finish_reason == "error":
            return [_reject(blank, "engine_error", completion.error or "")]
        items = self._parse(request, completion)
        outcomes: list[Outcome] = []
        for number, item in enumerate(items, start=1):
            instruction, instance = item or ("", Instance("", ""))
            sample = replace(
                blank, instruction=instruction, input=instance.input, output=instance.output
            )
            if number == len(items) and completion.finish_reason == "length":
                outcomes.append(_reject(sample, "cut_by_length", "the last task was cut off"))
            elif number > self.new_tasks:
                outcomes.append(
                    _reject(sample, "too_many_tasks", f"more than {self.new_tasks} tasks")
                )
            elif item is None:
                outcomes.append(_reject(sample, "incomplete_task", "a part of the task is missing"))
            elif not instance.output:
                outcomes.append(_reject(sample, "empty_output", "the task has no output"))
            else:
                outcomes.append(Candidate(sample))
        return outcomes or [_reject(blank, "no_instructions", "the completion has no valid task")]

    def _request(self, pool: Pool, rng: random.Random, form: PromptSetup) -> Request:
        language = pool.draw_language(rng)
        parents = pool.draw(rng, language, self.human, 0, fits=self._fits)
        shown = [pool.seeds[p] for p in parents]
        template = Template(language)
        if form.style == "completion":
            last = len(shown) + self.new_tasks
            return Request(
                template.triples_completion(shown, last),
                # Stop at the number after the last item, but only at the start of a line.
                self.triples.sampling((f"\n{last + 1}.", f"\n{last + 1} .")),
                stage=TRIPLES,
                language=language,
                parents=parents,
            )
        item = record_of("instruction", "input", "output")
        return Request(
            template.triples_chat(shown, self.new_tasks, form.structured),
            self.triples.sampling(),
            schema=schema_of("tasks", item, self.new_tasks) if form.structured else None,
            stage=TRIPLES,
            language=language,
            parents=parents,
        )

    def _fits(self, seed: Sample) -> bool:
        length = len(seed.instruction) + len(seed.input) + len(seed.output)
        return bool(seed.output) and length <= self.max_demonstration_characters

    def _parse(self, request: Request, completion: Completion) -> list[tuple[str, Instance] | None]:
        template = Template(request.language)
        if request.schema is None:
            return template.parse_triples(completion.text)
        cut = completion.finish_reason == "length"
        items = parse_json(completion.text, "tasks", cut=cut)
        return [_triple(template, item) for item in items]


def _triple(template: Template, item: object) -> tuple[str, Instance] | None:
    names = ("instruction", "input", "output")
    if not isinstance(item, dict) or not all(isinstance(item.get(n), str) for n in names):
        return None
    instance = Instance(template.given(item["input"]), item["output"].strip())
    return capital(one_line(item["instruction"])), instance


def _reject(sample: Sample, reason: str, detail: str) -> RejectedCandidate:
    return RejectedCandidate(sample, Rejection(Alpaca.name, reason, detail))
