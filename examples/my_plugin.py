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
    Candidate,
    Method,
    Outcome,
    PromptSetup,
    RejectedCandidate,
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

    def requests(
        self, pool: Pool, rng: random.Random, count: int, form: PromptSetup
    ) -> list[Request]:
        """Return ``count`` requests, each with one seed task."""
        requests = []
        for _ in range(count):
            language = pool.draw_language(rng)
            (position,) = pool.draw(rng, language, human=1, machine=0)
            task = pool.at(position).instruction
            prompt = f"Task: {task}\nThe same task in other words:"
            sampling = self.sampling.sampling(stop=("\n",))
            requests.append(
                Request(prompt, sampling, stage="rows", language=language, parents=(position,))
            )
        return requests

    def outcomes(self, pool: Pool, request: Request, completion: Completion) -> list[Outcome]:
        """Return one row per completion, or the reason why the completion is rejected."""
        seed = pool.at(request.parents[0])
        blank = child_sample(pool, request.parents, request.language)
        text = completion.text.strip()
        if not text or not seed.output:
            return [RejectedCandidate(blank, Rejection(self.name, "empty", "no text or no output"))]
        row = replace(blank, instruction=text, input=seed.input, output=seed.output)
        return [Candidate(row)]
