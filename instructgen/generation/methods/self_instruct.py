"""The Self-Instruct method (Wang et al. 2022), which generates instructions and their instances.

Its stages generate instructions, decide which are classification tasks, and generate the instances
(pairs of input and output).

The defaults are those of the paper and its code; a recipe may change them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from pydantic import Field

from instructgen.engines import Completion, Request
from instructgen.generation.methods import (
    Candidate,
    Classified,
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
    parse_numbered,
    record_of,
    schema_of,
)
from instructgen.generation.seed_pool import Pool, Task
from instructgen.schema.messages import Message
from instructgen.schema.sample import Kind, Rejection, Sample

_ANSWER_TOKENS = 8
INSTRUCTIONS, CLASSIFICATION, INSTANCES = "instructions", "classification", "instances"


def _options(**values: float) -> SamplingOptions:
    return SamplingOptions.model_validate(values)


class SelfInstruct(Method):
    """Generates instructions from demonstrations, classifies them, and generates their rows."""

    name = "self_instruct"
    stages = ("instructions", "classification", "instances")

    human: int = Field(
        6,
        ge=1,
        description="Number of seed instructions shown as demonstrations in a prompt for new "
        "instructions.",
    )
    machine: int = Field(
        2,
        ge=0,
        description="Maximum number of generated instructions shown as demonstrations in a prompt "
        "for new instructions. While there are fewer, more seed instructions are shown.",
    )
    new_instructions: int = Field(
        7, ge=1, description="Maximum number of new instructions to use from one completion."
    )
    max_instances: int = Field(5, ge=1, description="Maximum number of rows per instruction.")
    instructions: SamplingOptions = Field(
        _options(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_tokens=1024),
        description="Sampling parameters for generating new instructions when the prompt style is "
        "completion.",
    )
    classification: SamplingOptions = Field(
        _options(temperature=0.0, max_tokens=3),
        description="Sampling parameters for deciding whether an instruction is a classification "
        "task when the prompt style is completion.",
    )
    instances: SamplingOptions = Field(
        _options(temperature=0.0, presence_penalty=1.5, max_tokens=350),
        description="Sampling parameters for generating instances (inputs and outputs), except "
        "for classification tasks, when the prompt style is completion.",
    )
    classification_instances: SamplingOptions = Field(
        _options(temperature=0.0, presence_penalty=1.5, max_tokens=300),
        description="Sampling parameters for generating instances of classification tasks when the "
        "prompt style is completion.",
    )
    # No penalties, because they would damage the format of the list or of the JSON.
    chat_instructions: SamplingOptions = Field(
        _options(temperature=0.9, top_p=0.95, max_tokens=1024),
        description="Sampling parameters for generating new instructions when the prompt style is "
        "chat.",
    )
    chat_answers: SamplingOptions = Field(
        _options(temperature=0.0, max_tokens=1024),
        description="Sampling parameters for classifying instructions and generating instances "
        "when the prompt style is chat.",
    )

    def requests(
        self, pool: Pool, rng: random.Random, count: int, form: PromptSetup
    ) -> list[Request]:
        """Return requests for pending classifications, then for instances, then for instructions.

        Classifications do not count towards ``count``, because they need only a few tokens and
        batches full of them would leave half of the engine idle. At least a sixteenth of a batch
        is for new instructions, so that the pool keeps growing, and at most half of it, because
        each accepted instruction needs two more requests.
        """
        requests = [self._classification(pool, task, form) for task in pool.unclassified]
        pool.unclassified.clear()
        ready = min(len(pool.classified), max(1, count - -(-count // 16)))
        requests += [self._instances(pool, pool.classified.popleft(), form) for _ in range(ready)]
        room = min(count - ready, -(-count // 2))
        return requests + [self._instructions(pool, rng, form) for _ in range(room)]

    def outcomes(self, pool: Pool, request: Request, completion: Completion) -> list[Outcome]:
        """Parse a completion; return candidates and rejections, or the kind of its task."""
        if request.task is None:
            return self._new_instructions(pool, request, completion)
        task = pool.tasks[request.task]
        if completion.finish_reason == "error":
            return [_reject(task.sample, "engine_error", completion.error or "")]
        if request.stage == CLASSIFICATION:
            yes = Template(request.language).is_yes(_answer(request, completion))
            kind = Kind.CLASSIFICATION if yes else Kind.GENERATION
            return [Classified(request.task, kind)]
        return self._rows(task, request, completion)

    # -- instructions ---------------------------------------------------------------

    def _instructions(self, pool: Pool, rng: random.Random, form: PromptSetup) -> Request:
        language = pool.draw_language(rng)
        parents = pool.draw(rng, language, self.human, self.machine)
        shown = [pool.at(p).instruction for p in parents]
        template = Template(language)
        if form.style == "completion":
            # Stop only at the start of a line: "16." may also occur inside a sentence.
            last = len(shown) + self.new_instructions
            return Request(
                template.instructions_completion(shown),
                self.instructions.sampling(("\n\n", f"\n{last + 1}.", f"\n{last + 1} .")),
                stage=INSTRUCTIONS,
                language=language,
                parents=parents,
            )
        item = {"type": "string", "minLength": 1, "maxLength": 600}
        return Request(
            template.instructions_chat(shown, self.new_instructions, form.structured),
            self.chat_instructions.sampling(),
            schema=schema_of("tasks", item, self.new_instructions) if form.structured else None,
            stage=INSTRUCTIONS,
            language=language,
            parents=parents,
        )

    def _new_instructions(
        self, pool: Pool, request: Request, completion: Completion
    ) -> list[Outcome]:
        blank = child_sample(pool, request.parents, request.language)
        unparsed = replace(blank, instruction=completion.text.strip())
        if completion.finish_reason == "error":
            return [_reject(blank, "engine_error", completion.error or "")]
        if completion.finish_reason == "length":
            return [_reject(unparsed, "cut_by_length", "the completion was cut off")]
        if request.schema is not None:
            items = parse_json(completion.text, "tasks")
            texts = [capital(one_line(t)) for t in items if isinstance(t, str) and t.strip()]
        elif isinstance(request.prompt, str):
            texts = parse_numbered(completion.text, len(request.parents) + self.new_instructions)
        else:
            texts = parse_numbered(completion.text, self.new_instructions)
        if not texts:
            return [_reject(unparsed, "no_instructions", "the completion has no valid instruction")]
        return [Candidate(replace(blank, instruction=t)) for t in texts[: self.new_instructions]]

    # -- classification ---------------------------------------------------------------

    def _classification(self, pool: Pool, task: int, form: PromptSetup) -> Request:
        sample = pool.tasks[task].sample
        template = Template(sample.language)
        prompt: str | tuple[Message, ...]
        if form.style == "completion":
            prompt = template.classification_completion(sample.instruction)
            options = self.classification
            if sample.language != "en":
                # Three tokens are enough for an English "Yes", but not for an Arabic one.
                room = {"max_tokens": max(_ANSWER_TOKENS, options.max_tokens)}
                options = options.model_copy(update=room)
        else:
            prompt = template.classification_chat(sample.instruction, form.structured)
            options = self.chat_answers
        item = {"type": "string", "enum": [template.labels["yes"], template.labels["no"]]}
        return Request(
            prompt,
            options.sampling(),
            schema=schema_of("answer", item, 1) if form.structured else None,
            stage=CLASSIFICATION,
            language=sample.language,
            task=task,
        )

    # -- instances ----------------------------------------------------------------------

    def _instances(self, pool: Pool, number: int, form: PromptSetup) -> Request:
        task = pool.tasks[number]
        language, text = task.sample.language, task.sample.instruction
        template = Template(language)
        output_first = task.kind == Kind.CLASSIFICATION
        if form.style == "completion":
            fill = (
                template.output_first_completion
                if output_first
                else template.input_first_completion
            )
            options = self.classification_instances if output_first else self.instances
            sampling = options.sampling(template.instance_stops(self.max_instances))
            return Request(fill(text), sampling, stage=INSTANCES, language=language, task=number)
        item = record_of("label", "input") if output_first else record_of("input", "output")
        return Request(
            template.instances_chat(
                text, self.max_instances, form.structured, output_first=output_first
            ),
            self.chat_answers.sampling(),
            schema=schema_of("examples", item, self.max_instances) if form.structured else None,
            stage=INSTANCES,
            language=language,
            task=number,
        )

    def _rows(self, task: Task, request: Request, completion: Completion) -> list[Outcome]:
        parsed = self._parse_instances(task, request, completion)
        unparsed = replace(task.sample, output=completion.text.strip(), kind=task.kind)
        cut: list[Outcome] = []
        if completion.finish_reason == "length":
            last = parsed.pop() if parsed else None
            unfinished = self._row(task, last) if last else unparsed
            cut.append(_reject(unfinished, "cut_by_length", "the last instance was cut off"))
        instances = [instance for instance in parsed if instance is not None]
        if not instances and not cut:
            return [_reject(unparsed, "no_instances", "the completion has no valid instance")]
        return [*self._consistent(task, instances), *cut]

    def _parse_instances(
        self, task: Task, request: Request, completion: Completion
    ) -> list[Instance | None]:
        output_first = task.kind == Kind.CLASSIFICATION
        template = Template(request.language)
        if request.schema is None:
            parse = template.parse_output_first if output_first else template.parse_input_first
            return parse(completion.text)
        cut = completion.finish_reason == "length"
        output = "label" if output_first else "output"
        return [
            Instance(template.given(item["input"]), item[output].strip())
            if isinstance(item, dict)
            and isinstance(item.get("input"), str)
            and isinstance(item.get(output), str)
            else None
            for item in parse_json(completion.text, "examples", cut=cut)
        ]

    def _consistent(self, task: Task, instances: list[Instance]) -> Iterable[Outcome]:
        """Check the instances of one instruction against each other, and return one outcome each.

        Empty, contradictory and repeated instances are rejected, and those beyond the maximum
        number. Instances with a fault are returned unchecked: the filter ``instance`` rejects them.
        """
        valid = [instance for instance in instances if instance.fault is None]
        outputs: dict[str, set[str]] = {}
        for instance in valid:
            outputs.setdefault(instance.input, set()).add(instance.output)
        conflict = any(input_ and len(answers) > 1 for input_, answers in outputs.items())
        seen: set[Instance] = set()
        for instance in instances:
            sample = self._row(task, instance)
            if not instance.output:
                yield _reject(sample, "empty_output", "the instance has no output")
            elif instance.fault:
                yield Candidate(sample)
            elif conflict:
                detail = "instances have the same input but different outputs"
                yield _reject(sample, "conflicting_instances", detail)
            elif instance in seen:
                yield _reject(sample, "duplicate_instance", "the instance was already generated")
            elif len(seen) >= self.max_instances:
                yield _reject(sample, "too_many_instances", f"more than {self.max_instances} rows")
            else:
                seen.add(instance)
                yield Candidate(sample)

    def _row(self, task: Task, instance: Instance) -> Sample:
        return replace(task.sample, input=instance.input, output=instance.output, kind=task.kind)


def _answer(request: Request, completion: Completion) -> str:
    if request.schema is None:
        return completion.text
    items = parse_json(completion.text, "answer")
    return str(items[0]) if items else ""


def _reject(sample: Sample, reason: str, detail: str) -> RejectedCandidate:
    return RejectedCandidate(sample, Rejection(SelfInstruct.name, reason, detail))
