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
    Accept,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    SamplingOptions,
    Stage,
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
    without_number,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Sample

TRIPLES = "triples"


class Alpaca(Method):
    """Generates several rows (instruction, input and output) with each completion."""

    name = "alpaca"
    stages = (Stage(TRIPLES, 8.0),)

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

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Draw a language, and seed rows in this language as examples."""
        group = pool.draw_group(rng)
        parents = pool.draw(rng, group, self.human, 0)
        return Draft(number, TRIPLES, child_sample(pool, parents, group.language), parents)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the rows of a completion; if the completion was cut off, reject its last row."""
        blank = draft.sample
        if completion.finish_reason == "error":
            return [self.reject(blank, "engine_error", completion.error or "")]
        items = self._parse(blank.language, completion, form)
        outcomes: list[Outcome] = []
        for number, item in enumerate(items, start=1):
            instruction, instance = item or ("", Instance("", ""))
            sample = replace(
                blank, instruction=instruction, input=instance.input, output=instance.output
            )
            if number == len(items) and completion.finish_reason == "length":
                outcomes.append(self.reject(sample, "cut_by_length", "the last task was cut off"))
            elif number > self.new_tasks:
                outcomes.append(
                    self.reject(sample, "too_many_tasks", f"more than {self.new_tasks} tasks")
                )
            elif item is None:
                outcomes.append(
                    self.reject(sample, "incomplete_task", "a part of the task is missing")
                )
            elif not instance.output:
                outcomes.append(self.reject(sample, "empty_output", "the task has no output"))
            else:
                outcomes.append(Accept(sample))
        return outcomes or [
            self.reject(blank, "no_instructions", "the completion has no valid task")
        ]

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for several rows."""
        shown = [pool.at(p) for p in draft.parents]
        template = self.template(draft.sample.language)
        if form.style == "completion":
            last = len(shown) + self.new_tasks
            return Request(
                template.triples_completion(shown, last),
                # Stop at the number after the last item, but only at the start of a line.
                self.triples.sampling((f"\n{last + 1}.", f"\n{last + 1} .")),
                stage=TRIPLES,
            )
        item = record_of("instruction", "input", "output")
        return Request(
            template.triples_chat(shown, self.new_tasks, form.structured),
            self.triples.sampling(),
            schema=schema_of("tasks", item, self.new_tasks) if form.structured else None,
            stage=TRIPLES,
        )

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed has an answer and is short enough for a demonstration."""
        length = len(seed.instruction) + len(seed.input) + len(seed.output)
        return bool(seed.output) and length <= self.max_demonstration_characters

    def _parse(
        self, language: str, completion: Completion, form: PromptSetup
    ) -> list[tuple[str, Instance] | None]:
        template = self.template(language)
        if not form.structured:
            return template.parse_triples(completion.text)
        cut = completion.finish_reason == "length"
        items = parse_json(completion.text, "tasks", cut=cut)
        return [_triple(template, item) for item in items]


def _triple(template: Template, item: object) -> tuple[str, Instance] | None:
    names = ("instruction", "input", "output")
    if not isinstance(item, dict) or not all(isinstance(item.get(n), str) for n in names):
        return None
    instance = Instance(template.given(item["input"]), item["output"].strip())
    return capital(without_number(one_line(item["instruction"]))), instance
