"""Builds generation prompts from the template for a language, and parses the completions.

There are two prompt styles: ``completion``, for base models, lets a model continue a few-shot
text, as in the Self-Instruct paper; ``chat`` uses the chat template of the model. Text from
rows that looks like a placeholder, such as {count}, is not replaced. This module does not choose
the examples in a prompt, and does not filter rows.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import orjson

from instructgen.filters.instance import instance_fault
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample
from instructgen.similarity import tokenize

Style = Literal["completion", "chat"]

_DECODER = json.JSONDecoder()
_COMMA = re.compile(r"\s*,\s*")
# The texts that ask for a verdict.
_VERDICTS = {
    *(("evol", "compare"), ("reverse", "score")),
    *(("document", key) for key in ("judge", "judge_unanswerable")),
    # Code is written in Python, and calls of tools in JSON.
    *(("code", key) for key in ("concepts", "task", "solution")),
}
# A number of up to three digits with a mark of a list, possibly in bold.
_LIST_NUMBER = re.compile(r"^\W{0,3}\d{1,3}\s?(?:[.):]|[、．]\s?)\W{0,3}(?:(?<=\s)|(?<=[、．]))")
_FOLDER = Path(__file__).parent / "templates"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_MARKS = "[:：]"
# White space in one line. If it could span lines, many empty lines would take quadratic time.
_INDENT = r"[^\S\n]*+"


@dataclass(frozen=True, slots=True)
class Instance:
    """An input and its output, parsed from a completion."""

    input: str
    output: str

    @property
    def fault(self) -> str | None:
        """The reason code of an invalid instance (Self-Instruct, section 2.2), or None if valid."""
        return instance_fault(self.input, self.output)


def languages() -> list[str]:
    """Return the ISO 639 codes of the languages that have a template."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


@cache
def prompt_texts() -> dict[str, dict[str, str]]:
    """Return the English texts by table and key, without the worked examples."""
    tables = _load("en").items()
    return {name: t for name, t in tables if isinstance(t, dict) and name != "worked"}


def placeholders(text: str) -> set[str]:
    """Return the names of the placeholders in a text of a template."""
    return set(_PLACEHOLDER.findall(text))


@cache
def template_for(language: str, brief: str = "", own: str = "{}") -> Template:
    """Return the template of a language, which is read once; see `Template`."""
    return Template(language, brief, orjson.loads(own))


class Template:
    """The prompt texts for one language, and the parsers for completions in that language.

    A language without its own template, or whose template lacks the table of a method, uses the
    English texts; the prompts then name the language by its ISO 639 code.

    Args:
        language: the ISO 639 code of the language.
        brief: what every prompt begins with: the domain, the audience, the tone and the rules.
        own: texts by table and key of the template, which replace those of the template.
    """

    def __init__(
        self, language: str, brief: str = "", own: dict[str, dict[str, str]] | None = None
    ) -> None:
        self.language, self.brief = language, brief.strip()
        self.native = language in languages()
        own_texts = _load(language) if self.native else {}
        # A language may lack the texts of a method. Then the English ones name the language.
        self._lacking = _load("en").keys() - own_texts.keys()
        self._texts = {**_load("en"), **own_texts}
        for table, texts in (own or {}).items():
            self._texts = {**self._texts, table: {**self._texts[table], **texts}}
        self.labels: dict[str, str] = self._texts["labels"]

    # -- instructions -----------------------------------------------------------------

    def instructions_completion(self, demonstrations: Sequence[str]) -> str:
        """Return a prompt: a numbered list of instructions, followed by the next number."""
        lines = [f"{i}. {one_line(d)}" for i, d in enumerate(demonstrations, start=1)]
        return "\n".join([self._header("instructions"), *lines, f"{len(lines) + 1}."])

    def instructions_chat(
        self, demonstrations: Sequence[str], count: int, structured: bool, *, within: bool = False
    ) -> tuple[Message, ...]:
        """Return a chat request for ``count`` new instructions.

        If ``within`` is true, they stay with the topics of the demonstrations.
        """
        shown = "\n".join(f"{i}. {one_line(d)}" for i, d in enumerate(demonstrations, start=1))
        key = "instructions_within" if within else "instructions"
        return self._chat(key, structured, demonstrations=shown, count=str(count))

    # -- one text per stage ---------------------------------------------------------------

    def prompt(self, section: str, key: str, **values: str) -> tuple[Message, ...]:
        """Return a chat request with the text of a method for one of its stages."""
        text = self.briefed(self.text(section, key, **values))
        # A verdict has fixed words or numbers, in the language of the template.
        plain = section not in self._lacking or (section, key) in _VERDICTS
        language = "" if plain else f"\n\nWrite in this language: {self.language}."
        return (Message("user", f"{text}{language}"),)

    def ask(self, text: str) -> tuple[Message, ...]:
        """Return a chat request with a text that is not in the template, such as a plug-in's."""
        return (Message("user", self.briefed(text)),)

    def question(self, sample: Sample) -> tuple[Message, ...]:
        """Return the request for an answer to the sample's question, after its earlier messages."""
        return (*sample.history, Message("user", self.briefed(sample.question)))

    def text(self, section: str, key: str, **values: str) -> str:
        """Return a text of a method, with its placeholders filled."""
        return _fill(self._texts[section][key], **values)

    # -- classification -------------------------------------------------------------------

    def classification_completion(self, instruction: str) -> str:
        """Return a few-shot prompt that asks whether an instruction is a classification task."""
        question = self._texts["completion"]["question"]
        return f"{self._worked_kinds}\n\n{self.labels['task']}: {instruction}\n{question}"

    def classification_chat(self, instruction: str, structured: bool) -> tuple[Message, ...]:
        """Return a chat request that asks whether an instruction is a classification task."""
        return self._chat("classification", structured, task=instruction)

    def is_yes(self, answer: str) -> bool:
        """Return whether an answer begins with "yes" in this language. Other answers mean no."""
        yes = tokenize(self.labels["yes"])
        return tokenize(answer)[: len(yes)] == yes

    # -- instances ----------------------------------------------------------------------

    def input_first_completion(self, instruction: str, worked: Sequence[Sample] = ()) -> str:
        """Return a few-shot prompt: tasks with inputs and outputs, then the new instruction.

        Rows in ``worked`` replace the examples of the template.
        """
        shown = self._worked_inputs
        if worked:
            shown = "\n\n".join([self._header("input_first"), *map(self._answered, worked)])
        return f"{shown}\n\n{self._task(instruction, '')}"

    def output_first_completion(self, instruction: str, worked: Sequence[Sample] = ()) -> str:
        """Return a few-shot prompt: tasks with class labels and inputs, then the instruction.

        Rows in ``worked`` replace the examples of the template.
        """
        shown = self._worked_labels
        if worked:
            label, input_ = self.labels["class_label"], self.labels["input"]
            tasks = [
                self._task(w.instruction, f"{label}: {w.output}\n{input_}: {w.input}")
                for w in worked
            ]
            shown = "\n\n".join([self._header("output_first"), *tasks])
        return f"{shown}\n\n{self._task(instruction, '')}"

    def instances_chat(
        self,
        instruction: str,
        count: int,
        structured: bool,
        *,
        output_first: bool = False,
        joint: bool = False,
        worked: Sequence[Sample] = (),
    ) -> tuple[Message, ...]:
        """Return a chat request for up to ``count`` examples (input, output) of an instruction.

        If ``joint`` is true, it also asks whether the instruction is a classification task. The
        rows in ``worked`` are shown before it.
        """
        shown = ""
        if worked:
            tasks = "\n\n".join(map(self._answered, worked))
            shown = f"{self.labels['worked']}\n\n{tasks}\n\n"
        if joint:
            return self._joint(instruction, count, structured, shown)
        key = "output_first" if output_first else "input_first"
        return self._chat(key, structured, shown, task=instruction, count=str(count))

    def joint_answer(self, text: str) -> tuple[bool, str]:
        """Return whether a joint question is answered with "yes", and the text without this line.

        If the question is missing, this counts as no, and the text is unchanged.
        """
        before, question, answer = text.partition(self._texts["completion"]["question"])
        if not question:
            return False, text
        line, _, rest = answer.partition("\n")
        return self.is_yes(line), before + rest

    def instance_stops(self, most: int) -> tuple[str, ...]:
        """Return the strings at which generation stops: a task label, and example ``most + 1``."""
        return (f"\n{self.labels['task']}:", f"\n{self.labels['example']} {most + 1}\n")

    def parse_input_first(self, text: str) -> list[Instance | None]:
        """Return the instances in a completion, in order; one without an output becomes None."""
        labels = self.labels
        instances: list[Instance | None] = []
        for part in self._examples_of(text):
            # A model may skip the "Example" line, so a second input starts a new instance.
            for piece in _split_before(part, labels["input"]):
                before, has_output, after = _partition(piece, labels["output"])
                if has_output:
                    # Small models repeat the output label; the first output is used.
                    after, _, _ = _partition(after, labels["output"])
                    input_ = _without_label(before, labels["input"])
                    instances.append(Instance(self.given(input_), after.strip()))
                else:
                    instances.append(None)
        return instances

    def parse_output_first(self, text: str) -> list[Instance | None]:
        """Return the instances in a completion that has each class label before its input."""
        instances: list[Instance | None] = []
        for part in self._examples_of(text):
            for piece in _split_before(part, self.labels["class_label"]):
                _, has_label, body = _partition(piece, self.labels["class_label"])
                if has_label:
                    label, _, rest = body.strip().partition("\n")
                    input_ = _without_label(rest, self.labels["input"])
                    instances.append(Instance(self.given(input_), label.strip()))
        return instances

    # -- triples of instruction, input and output (Alpaca) --------------------------------

    def triples_completion(self, demonstrations: Sequence[Sample], total: int) -> str:
        """Return a few-shot prompt: (instruction, input, output) triples, to be continued."""
        header = _fill(self._header("triples"), total=str(total))
        shown = self._triples(demonstrations)
        return (
            f"{header}\n\n{shown}\n\n###\n{len(demonstrations) + 1}. {self.labels['instruction']}:"
        )

    def triples_chat(
        self, demonstrations: Sequence[Sample], count: int, structured: bool
    ) -> tuple[Message, ...]:
        """Return a chat request for ``count`` new triples of instruction, input and output."""
        shown = self._triples(demonstrations)
        return self._chat("triples", structured, demonstrations=shown, count=str(count))

    def parse_triples(self, text: str) -> list[tuple[str, Instance] | None]:
        """Return each triple as (instruction, instance); an incomplete triple becomes None."""
        triples: list[tuple[str, Instance] | None] = []
        for item in re.split(rf"^{_INDENT}###{_INDENT}$", text, flags=re.MULTILINE):
            # Remove the number of the item; `_at_line` accepts the numbers before its labels.
            item = re.sub(r"^\d+[ \t]*\.[ \t]+", "", item.strip())
            if not item:
                continue
            item = _without_label(item, self.labels["instruction"])
            instruction, has_input, rest = _partition(item, self.labels["input"])
            input_, has_output, output = _partition(rest, self.labels["output"])
            if has_input and has_output and instruction.strip():
                instance = Instance(self.given(input_), output.strip())
                triples.append((capital(one_line(instruction)), instance))
            else:
                triples.append(None)
        return triples

    # -- helpers --------------------------------------------------------------------------

    @cached_property
    def _worked_kinds(self) -> str:
        labels, question = self.labels, self._texts["completion"]["question"]
        answers = {True: labels["yes"], False: labels["no"]}
        worked = [
            f"{labels['task']}: {w['instruction']}\n{question} {answers[w['yes']]}"
            for w in self._texts["worked"]["classification"]
        ]
        return "\n\n".join([self._header("classification"), *worked])

    @cached_property
    def _worked_inputs(self) -> str:
        worked = [
            self._task(w["instruction"], self._examples(w["examples"]))
            for w in self._texts["worked"]["input_first"]
        ]
        return "\n\n".join([self._header("input_first"), *worked])

    @cached_property
    def _worked_labels(self) -> str:
        label, input_ = self.labels["class_label"], self.labels["input"]
        worked = [
            self._task(
                w["instruction"],
                "\n".join(f"{label}: {e['label']}\n{input_}: {e['input']}" for e in w["examples"]),
            )
            for w in self._texts["worked"]["output_first"]
        ]
        return "\n\n".join([self._header("output_first"), *worked])

    def briefed(self, text: str) -> str:
        """Return a text with the brief before it, if there is one."""
        return f"{self.labels['brief']}\n{self.brief}\n\n{text}" if self.brief else text

    def _header(self, key: str) -> str:
        text = self.briefed(self._texts["completion"][key])
        return text if self.native else f"{text} Language: {self.language}."

    def _chat(
        self, key: str, structured: bool, shown: str = "", **values: str
    ) -> tuple[Message, ...]:
        plain = self._texts["plain"][key.removesuffix("_within")]
        reply_format = self._texts["json"]["answer"] if structured else plain
        # Placeholders are filled first, so that the values cannot affect the reply format.
        text = self.briefed(f"{shown}{_fill(self._texts['chat'][key], **values)}")
        language = "" if self.native else f"\n\nWrite in this language: {self.language}."
        return (Message("user", f"{text}{language}\n\n{reply_format}"),)

    def _joint(
        self, instruction: str, count: int, structured: bool, shown: str
    ) -> tuple[Message, ...]:
        """Ask the question of the classification stage, and then for examples."""
        question = self._texts["chat"]["classification"]
        # The task is in the question.
        examples = self._texts["chat"]["input_first"].partition("{task}")[2].lstrip()
        text = _fill(f"{question}\n\n{examples}", task=instruction, count=str(count))
        text = self.briefed(f"{shown}{text}")
        reply_format = self._texts["json"]["answer"]
        if not structured:
            # The answer to the question is the first line of the form.
            head, _, form = self._texts["plain"]["input_first"].partition("\n")
            asked = self._texts["completion"]["question"]
            answers = f"{self.labels['yes']} / {self.labels['no']}"
            reply_format = f"{head}\n{asked} {answers}\n{form}"
        language = "" if self.native else f"\n\nWrite in this language: {self.language}."
        return (Message("user", f"{text}{language}\n\n{reply_format}"),)

    def _task(self, instruction: str, examples: str) -> str:
        return f"{self.labels['task']}: {instruction}\n{examples}"

    def _examples(self, examples: Sequence[dict[str, str]]) -> str:
        labels = self.labels
        if not examples[0]["input"]:
            return f"{labels['output']}: {examples[0]['output']}"
        input_, output = labels["input"], labels["output"]
        return "\n\n".join(
            f"{labels['example']} {i}\n{input_}: {e['input']}\n{output}: {e['output']}"
            for i, e in enumerate(examples, start=1)
        )

    def _answered(self, row: Sample) -> str:
        input_ = f"{self.labels['input']}: {row.input}\n" if row.input else ""
        return self._task(row.instruction, f"{input_}{self.labels['output']}: {row.output}")

    def _triples(self, demonstrations: Sequence[Sample]) -> str:
        labels = self.labels
        return "\n\n###\n".join(
            f"{i}. {labels['instruction']}: {one_line(d.instruction)}\n"
            f"{i}. {labels['input']}: {d.input or labels['no_input']}\n"
            f"{i}. {labels['output']}: {d.output}"
            for i, d in enumerate(demonstrations, start=1)
        )

    def given(self, text: str) -> str:
        """Return the input that a model wrote, or "" if it is only "none", "n/a" or similar."""
        text = text.strip()
        return (
            ""
            if text.lower().rstrip(".") in (self.labels["no_input"].lower(), "none", "n/a")
            else text
        )

    def _examples_of(self, text: str) -> list[str]:
        return self._example_head.split(self._task_head.split(text)[0])

    @cached_property
    def _example_head(self) -> re.Pattern[str]:
        head = rf"^[ \t]*{re.escape(self.labels['example'])}[ \t]*\d+[ \t]*[.:：]?[ \t]*$"
        return re.compile(head, re.MULTILINE)

    @cached_property
    def _task_head(self) -> re.Pattern[str]:
        """The line at which the next task begins."""
        return re.compile(rf"^[ \t]*{re.escape(self.labels['task'])}{_MARKS}", re.MULTILINE)


def parse_numbered(text: str, last: int) -> list[str]:
    """Return the items of a numbered list, each as one line.

    The list ends at a line that begins with the number after ``last``. The same number
    inside a line, such as a year that ends a sentence, does not end the list.
    """
    text = re.split(rf"^{_INDENT}{last + 1}\s?\.", text, flags=re.MULTILINE)[0]
    items = re.split(rf"(?:^|\n){_INDENT}\d++\s?[.)]\s", f"{text}\n")
    return [capital(line) for item in items if (line := one_line(item))]


def parse_json(text: str, key: str, *, cut: bool = False) -> list[Any]:
    """Return the items of the list under ``key`` in a JSON object, or [] if there is no such list.

    Args:
        text: the completion.
        key: the key of the list in the object.
        cut: whether the text may be incomplete; then the complete items are returned,
            followed by None for the unfinished last item.
    """
    if not cut:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return []
        items = value.get(key) if isinstance(value, dict) else None
        return items if isinstance(items, list) else []
    head = re.match(rf'\s*\{{\s*"{re.escape(key)}"\s*:\s*\[\s*', text)
    complete: list[Any] = []
    at = head.end() if head else len(text)
    while at < len(text):
        try:
            _, end = _DECODER.raw_decode(text, at)
            # Unlike the decoder above, orjson rejects texts that no file can contain.
            item, at = orjson.loads(text[at:end]), end
        except (json.JSONDecodeError, RecursionError):
            break
        comma = _COMMA.match(text, at)
        if comma is None:
            # An item without a comma after it may be incomplete (12 could become 123).
            break
        complete.append(item)
        at = comma.end()
    return [*complete, None] if head else []


def one_line(text: str) -> str:
    """Return the text on one line, with single spaces and without a final colon."""
    text = " ".join(text.split())
    return text.removesuffix(":").removesuffix("：").rstrip()


def without_number(text: str) -> str:
    """Return the text without a list number, such as ``**2.**`` or ``3)``, at its beginning."""
    return _LIST_NUMBER.sub("", text, count=1)


def capital(text: str) -> str:
    """Return the text with a capital first letter; other letters, as in NASA, do not change."""
    return text[:1].upper() + text[1:]


def schema_of(key: str, item: dict[str, Any], most: int) -> dict[str, Any]:
    """Return the JSON schema of an object that has only ``key``: a list of 1 to ``most`` items."""
    return {
        "type": "object",
        "properties": {key: {"type": "array", "items": item, "minItems": 1, "maxItems": most}},
        "required": [key],
        "additionalProperties": False,
    }


def record_of(*names: str) -> dict[str, Any]:
    """Return the JSON schema of an object with text fields of these names, in this order."""
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }


def _fill(template: str, **values: str) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m.group(1)], template)


@cache
def _at_line(label: str) -> re.Pattern[str]:
    """Return the pattern of a label at the beginning of a line, with or without a list number."""
    number = r"^[ \t]*(?:\d+[ \t]*\.[ \t]*)?"
    return re.compile(rf"{number}{re.escape(label)}[ \t]*{_MARKS}", re.MULTILINE)


def _split_before(text: str, label: str) -> list[str]:
    places = [0, *(match.start() for match in _at_line(label).finditer(text)), len(text)]
    return [part for a, b in pairwise(places) if (part := text[a:b]).strip()]


def _partition(text: str, label: str) -> tuple[str, bool, str]:
    parts = _at_line(label).split(text, maxsplit=1)
    return (parts[0], True, parts[1]) if len(parts) == 2 else (text, False, "")


def _without_label(text: str, label: str) -> str:
    text = text.strip()
    label_at_start = _at_line(label).match(text)
    return text[label_at_start.end() :].strip() if label_at_start else text


@cache
def _load(language: str) -> dict[str, Any]:
    with (_FOLDER / f"{language}.toml").open("rb") as file:
        return tomllib.load(file)
