"""The Self-Instruct method (Wang et al. 2022), which generates instructions and their instances.

Its stages generate instructions, decide which are classification tasks, and generate the instances
(pairs of input and output).

The defaults are those of the paper and its code; a recipe may change them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from instructgen.engines import Completion, Request
from instructgen.errors import ConfigError
from instructgen.generation.methods import (
    Accept,
    Continue,
    Draft,
    Method,
    Outcome,
    PromptSetup,
    Propose,
    SamplingOptions,
    Stage,
    child_sample,
)
from instructgen.generation.prompts import (
    Instance,
    capital,
    one_line,
    parse_json,
    parse_numbered,
    record_of,
    schema_of,
    without_number,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.copies import changed
from instructgen.schema.messages import Message
from instructgen.schema.sample import Kind, Sample
from instructgen.schema.seeding import digest

_ANSWER_TOKENS = 8
# The number of consecutive drafts with the same worked examples.
_SHARED = 16
INSTRUCTIONS, CLASSIFICATION, INSTANCES = "instructions", "classification", "instances"
_FLAG = re.compile(r'^\s*\{\s*"classification"\s*:\s*(true|false)\s*,')


def _options(**values: float) -> SamplingOptions:
    return SamplingOptions.model_validate(values)


class SelfInstruct(Method):
    """Generates instructions from demonstrations, classifies them, and generates their rows."""

    name = "self_instruct"
    # With the included model, seven instructions per request give about four new ones.
    stages = (Stage(INSTRUCTIONS, 4.0), Stage(CLASSIFICATION), Stage(INSTANCES))

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
    classification: Literal["separate", "joint", "off"] | None = Field(
        None,
        description="How to find out whether an instruction is a classification task: with a "
        "request of its own, as in the paper (separate), in the request for its instances (joint, "
        "for the prompt style chat), or not at all (off). Default: joint for the prompt style "
        "chat, and separate for completion.",
    )
    diversity: Literal["broad", "within"] = Field(
        "broad",
        description="Whether new instructions leave the topics of the seeds (broad) or vary inside "
        "them (within), in the prompt style chat.",
    )
    worked: Literal["seeds", "built_in"] = Field(
        "seeds",
        description="Worked examples in prompts for instances: seeds of the same language and "
        "category with their answers, or those of the template, as in the paper (built_in).",
    )
    worked_seeds: int = Field(5, ge=1, description="Maximum number of seeds as worked examples.")
    max_worked_characters: int = Field(
        1500, ge=100, description="Maximum length of a seed that is a worked example."
    )
    instructions: SamplingOptions = Field(
        _options(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_tokens=1024),
        description="Sampling parameters for generating new instructions when the prompt style is "
        "completion.",
    )
    classification_answers: SamplingOptions = Field(
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

    def check(self, style: str) -> None:
        """Raise ConfigError if the classification is joint, and the prompts do not ask for it."""
        if self.classification == "joint" and style == "completion":
            raise ConfigError(
                f"the method {self.name} has classification = joint, but prompts of the style "
                "completion do not ask for it.",
                "Set classification to separate or off, or the style to chat, in the table "
                "[method].",
            )

    def path(self, form: PromptSetup) -> tuple[Stage, ...]:
        """Return the stages: without the classification stage, unless it is separate."""
        if self._classification(form) == "separate":
            return self.stages
        return tuple(stage for stage in self.stages if stage.name != CLASSIFICATION)

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Draw a language, and demonstrations in this language."""
        group = pool.draw_group(rng)
        parents = pool.draw(rng, group, self.human, self.machine)
        return Draft(number, INSTRUCTIONS, child_sample(pool, parents, group.language), parents)

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for new instructions, for the kind of one, or for its instances."""
        if draft.stage == INSTRUCTIONS:
            return self._ask_instructions(pool, draft, form)
        if draft.stage == CLASSIFICATION:
            return self._ask_kind(draft, form)
        return self._ask_instances(pool, draft, form)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return new instructions, the draft with its kind, or its rows."""
        if completion.finish_reason == "error":
            return [self.reject(draft.sample, "engine_error", completion.error or "")]
        if draft.stage == INSTRUCTIONS:
            return self._read_instructions(draft, completion, form)
        if draft.stage == CLASSIFICATION:
            yes = self.template(draft.sample.language).is_yes(_answer(completion, form))
            kind = Kind.CLASSIFICATION if yes else Kind.GENERATION
            sample = changed(draft.sample, kind=kind)
            return [Continue(changed(draft, stage=INSTANCES, sample=sample))]
        return self._read_rows(draft.sample, completion, form)

    def _classification(self, form: PromptSetup) -> Literal["separate", "joint", "off"]:
        if self.classification is not None:
            return self.classification
        return "joint" if form.style == "chat" else "separate"

    # -- instructions ---------------------------------------------------------------

    def _ask_instructions(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        shown = [pool.at(p).instruction for p in draft.parents]
        template = self.template(draft.sample.language)
        if form.style == "completion":
            # Stop only at the start of a line: "16." may also occur inside a sentence.
            last = len(shown) + self.new_instructions
            return Request(
                template.instructions_completion(shown),
                self.instructions.sampling(("\n\n", f"\n{last + 1}.", f"\n{last + 1} .")),
                stage=INSTRUCTIONS,
            )
        item = {"type": "string", "minLength": 1, "maxLength": 600}
        return Request(
            template.instructions_chat(
                shown,
                self.new_instructions,
                form.structured,
                within=self.diversity == "within",
            ),
            self.chat_instructions.sampling(),
            schema=schema_of("tasks", item, self.new_instructions) if form.structured else None,
            stage=INSTRUCTIONS,
        )

    def _read_instructions(
        self, draft: Draft, completion: Completion, form: PromptSetup
    ) -> list[Outcome]:
        blank = draft.sample
        if completion.finish_reason == "length":
            unparsed = changed(blank, instruction=completion.text.strip())
            return [self.reject(unparsed, "cut_by_length", "the completion was cut off")]
        if form.structured:
            items = parse_json(completion.text, "tasks")
            texts = [t for item in items if isinstance(item, str) and (t := _plain(item))]
        elif form.style == "completion":
            texts = parse_numbered(completion.text, len(draft.parents) + self.new_instructions)
        else:
            texts = list(map(_plain, parse_numbered(completion.text, self.new_instructions)))
        if not texts:
            unparsed = changed(blank, instruction=completion.text.strip())
            return [
                self.reject(unparsed, "no_instructions", "the completion has no valid instruction")
            ]
        following = self.path(form)[1].name
        return [
            Propose(changed(draft, stage=following, sample=changed(blank, instruction=text)))
            for text in texts[: self.new_instructions]
        ]

    # -- classification ---------------------------------------------------------------

    def _ask_kind(self, draft: Draft, form: PromptSetup) -> Request:
        sample = draft.sample
        template = self.template(sample.language)
        prompt: str | tuple[Message, ...]
        if form.style == "completion":
            prompt = template.classification_completion(sample.instruction)
            options = self.classification_answers
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
        )

    # -- instances ----------------------------------------------------------------------

    def _ask_instances(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        sample, text = draft.sample, draft.sample.instruction
        template = self.template(sample.language)
        output_first = sample.kind == Kind.CLASSIFICATION
        worked = self._worked(pool, draft)
        if form.style == "completion":
            fill = (
                template.output_first_completion
                if output_first
                else template.input_first_completion
            )
            options = self.classification_instances if output_first else self.instances
            sampling = options.sampling(template.instance_stops(self.max_instances))
            return Request(fill(text, worked), sampling, stage=INSTANCES)
        item = record_of("label", "input") if output_first else record_of("input", "output")
        joint = self._classification(form) == "joint"
        schema = schema_of("examples", item, self.max_instances)
        return Request(
            template.instances_chat(
                text,
                self.max_instances,
                form.structured,
                output_first=output_first,
                joint=joint,
                worked=worked,
            ),
            self.chat_answers.sampling(),
            schema=(_with_flag(schema) if joint else schema) if form.structured else None,
            stage=INSTANCES,
        )

    def _worked(self, pool: Pool, draft: Draft) -> list[Sample]:
        """Return seeds with answers as worked examples: of the same group, kind and category."""
        if self.worked == "built_in":
            return []
        sample, group = draft.sample, pool.group_of(draft.sample)
        classification = sample.kind == Kind.CLASSIFICATION
        answered = pool.answered(self.max_worked_characters)
        fitting = answered.get((group, classification, sample.category or ""), [])
        if len(fitting) < self.worked_seeds:
            fitting = answered.get((group, classification, None), [])
        # Prompts with the same beginning are faster (prefix caching), so drafts share examples.
        most = min(self.worked_seeds, len(fitting))
        shown = _drawn(draft.number // _SHARED, most, len(fitting))
        return [pool.at(fitting[place]) for place in shown]

    def _read_rows(self, task: Sample, completion: Completion, form: PromptSetup) -> list[Outcome]:
        if self._classification(form) == "joint":
            task = changed(task, kind=self._kind_in(task, completion, form))
        parsed = self._parse_instances(task, completion, form)
        text = completion.text.strip()
        cut: list[Outcome] = []
        if completion.finish_reason == "length":
            last = parsed.pop() if parsed else None
            unfinished = _row(task, last) if last else changed(task, output=text)
            cut.append(self.reject(unfinished, "cut_by_length", "the last instance was cut off"))
        instances = [instance for instance in parsed if instance is not None]
        if not instances and not cut:
            unparsed = changed(task, output=text)
            return [self.reject(unparsed, "no_instances", "the completion has no valid instance")]
        return [*self._consistent(task, instances), *cut]

    def _kind_in(self, task: Sample, completion: Completion, form: PromptSetup) -> Kind:
        """Return the kind that the model stated before the instances."""
        if form.structured:
            flag = _FLAG.match(completion.text)
            yes = flag is not None and flag[1] == "true"
        else:
            yes, _ = self.template(task.language).joint_answer(completion.text)
        return Kind.CLASSIFICATION if yes else Kind.GENERATION

    def _parse_instances(
        self, task: Sample, completion: Completion, form: PromptSetup
    ) -> list[Instance | None]:
        joint = self._classification(form) == "joint"
        output_first = task.kind == Kind.CLASSIFICATION and not joint
        template = self.template(task.language)
        if not form.structured:
            parse = template.parse_output_first if output_first else template.parse_input_first
            return parse(template.joint_answer(completion.text)[1] if joint else completion.text)
        cut = completion.finish_reason == "length"
        output = "label" if output_first else "output"
        return [
            Instance(template.given(item["input"]), item[output].strip())
            if isinstance(item, dict)
            and isinstance(item.get("input"), str)
            and isinstance(item.get(output), str)
            else None
            for item in parse_json(_FLAG.sub("{", completion.text), "examples", cut=cut)
        ]

    def _consistent(self, task: Sample, instances: list[Instance]) -> Iterable[Outcome]:
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
            sample = _row(task, instance)
            if not instance.output:
                yield self.reject(sample, "empty_output", "the instance has no output")
            elif instance.fault:
                yield Accept(sample)
            elif conflict:
                detail = "instances have the same input but different outputs"
                yield self.reject(sample, "conflicting_instances", detail)
            elif instance in seen:
                yield self.reject(
                    sample, "duplicate_instance", "the instance was already generated"
                )
            elif len(seen) >= self.max_instances:
                yield self.reject(
                    sample, "too_many_instances", f"more than {self.max_instances} rows"
                )
            else:
                seen.add(instance)
                yield Accept(sample)


def _plain(text: str) -> str:
    """Return an instruction of a chat model on one line, without a list number."""
    return capital(without_number(one_line(text)))


@lru_cache(maxsize=64)
def _drawn(drafts: int, most: int, count: int) -> list[int]:
    """Return ``most`` places of a list with ``count`` entries, drawn for a group of drafts."""
    return random.Random(digest(0, "worked", drafts)).sample(range(count), most)


def _row(task: Sample, instance: Instance) -> Sample:
    return changed(task, input=instance.input, output=instance.output)


def _answer(completion: Completion, form: PromptSetup) -> str:
    if not form.structured:
        return completion.text
    items = parse_json(completion.text, "answer")
    return str(items[0]) if items else ""


def _with_flag(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that also states the kind, before the instances."""
    properties = {"classification": {"type": "boolean"}, **schema["properties"]}
    return {**schema, "properties": properties, "required": list(properties)}
