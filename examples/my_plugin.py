"""A plug-in: one file with a filter and a generation method, loaded with --plugin.

    instructgen filters no_questions --plugin examples/my_plugin.py
    instructgen generate --plugin examples/my_plugin.py --method rephrase --engine echo \\
        --seeds seeds/general.jsonl --target 5 --out runs/rephrased
    instructgen curate data/mix --plugin examples/my_plugin.py --recipe mine.toml --out data/clean

A recipe selects the filter by its name: [[filters]] name = "no_questions". A recipe cannot load
the file. Only the user can, on the command line.
"""

import random
from dataclasses import replace

from pydantic import Field

from instructgen.engines import Completion, Request
from instructgen.filters import Filter
from instructgen.generation.methods import (
    Accept,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    Reject,
    SamplingOptions,
    child_sample,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Rejection, Sample


class NoQuestions(Filter):
    """Reject instructions that are questions."""

    name = "no_questions"
    scope = "instruction"

    marks: str = Field("?", min_length=1, description="Characters that end a question.")

    def reason(self, sample: Sample) -> Rejection | None:
        """Return a rejection (``question``), or None to keep the row."""
        text = sample.instruction.rstrip()
        if text and text[-1] in self.marks:
            return self.reject("question", f"ends with {text[-1]!r}")
        return None


class Rephrase(Method):
    """Rephrase the instruction of a seed task, and keep its output."""

    name = "rephrase"

    sampling: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, max_tokens=64), description="Sampling parameters."
    )

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed task has an output."""
        return seed.output != ""

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Return a draft with a random seed task."""
        group = pool.draw_group(rng)
        parents = pool.draw(rng, group, human=1, machine=0)
        seed = pool.at(parents[0])
        row = child_sample(pool, parents, group.language)
        row = replace(row, instruction=seed.instruction, input=seed.input, output=seed.output)
        return Draft(number, "rows", row, parents)

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for another wording of the task."""
        prompt = f"Task: {draft.sample.instruction}\nThe same task in other words:"
        return Request(prompt, self.sampling.sampling(stop=("\n",)), stage="rows")

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return one row per completion, or the reason why the completion is rejected."""
        text = completion.text.strip()
        if not text:
            return [Reject(draft.sample, Rejection(self.name, "empty", "the completion is empty"))]
        return [Accept(replace(draft.sample, instruction=text))]
