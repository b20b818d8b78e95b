"""Builds prompts from a language's template and reads what models write back.

Two styles: ``completion`` continues a few-shot text (the paper's, for base
models), ``chat`` asks through the model's chat template. Text from data is
inserted once and never scanned for placeholders. Nothing here samples or filters.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import orjson

from instructgen.filters.instance import instance_fault
from instructgen.schema.sample import Message, Sample
from instructgen.similarity import tokenize

Style = Literal["completion", "chat"]

_DECODER = json.JSONDecoder()
_COMMA = re.compile(r"\s*,\s*")
_FOLDER = Path(__file__).parent / "templates"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_MARKS = "[:：]"


@dataclass(frozen=True, slots=True)
class Instance:
    """An input and its output, as a completion gave them."""

    input: str
    output: str

    @property
    def fault(self) -> str | None:
        """Why it cannot be right (Self-Instruct, section 2.2), as a short code."""
        return instance_fault(self.input, self.output)


def languages() -> list[str]:
    """The languages that have templates, as ISO 639 codes."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


class Template:
    """The prompt texts of one language.

    A language without a file of its own uses the English one; the prompts then
    ask for that language by its code.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self.native = language in languages()
        self._texts = _load(language if self.native else "en")
        self.labels: dict[str, str] = self._texts["labels"]

    # -- instructions -----------------------------------------------------------------

    def instructions_completion(self, demonstrations: Sequence[str]) -> str:
        """Numbered instructions, ending with the next bare number."""
        lines = [f"{i}. {one_line(d)}" for i, d in enumerate(demonstrations, start=1)]
        return "\n".join([self._header("instructions"), *lines, f"{len(lines) + 1}."])

    def instructions_chat(
        self, demonstrations: Sequence[str], count: int, structured: bool
    ) -> tuple[Message, ...]:
        """A request for ``count`` new instructions."""
        shown = "\n".join(f"{i}. {one_line(d)}" for i, d in enumerate(demonstrations, start=1))
        return self._chat("instructions", structured, demonstrations=shown, count=str(count))

    # -- classification or not ----------------------------------------------------------

    def classification_completion(self, instruction: str) -> str:
        """Worked examples and the open question."""
        labels, question = self.labels, self._texts["completion"]["question"]
        answers = {True: labels["yes"], False: labels["no"]}
        worked = [
            f"{labels['task']}: {w['instruction']}\n{question} {answers[w['yes']]}"
            for w in self._texts["worked"]["classification"]
        ]
        asked = f"{labels['task']}: {instruction}\n{question}"
        return "\n\n".join([self._header("classification"), *worked, asked])

    def classification_chat(self, instruction: str, structured: bool) -> tuple[Message, ...]:
        """The question as a chat request."""
        return self._chat("classification", structured, task=instruction)

    def is_yes(self, answer: str) -> bool:
        """Whether a completion says yes; anything unclear is a no."""
        yes = tokenize(self.labels["yes"])
        return tokenize(answer)[: len(yes)] == yes

    # -- instances ----------------------------------------------------------------------

    def input_first_completion(self, instruction: str) -> str:
        """Worked tasks with their examples, then the task."""
        worked = [
            self._task(w["instruction"], self._examples(w["examples"]))
            for w in self._texts["worked"]["input_first"]
        ]
        return "\n\n".join([self._header("input_first"), *worked, self._task(instruction, "")])

    def output_first_completion(self, instruction: str) -> str:
        """Worked classification tasks, label before input, then the task."""
        label, input_ = self.labels["class_label"], self.labels["input"]
        worked = [
            self._task(
                w["instruction"],
                "\n".join(f"{label}: {e['label']}\n{input_}: {e['input']}" for e in w["examples"]),
            )
            for w in self._texts["worked"]["output_first"]
        ]
        return "\n\n".join([self._header("output_first"), *worked, self._task(instruction, "")])

    def instances_chat(
        self, instruction: str, count: int, structured: bool, *, output_first: bool
    ) -> tuple[Message, ...]:
        """A request for up to ``count`` examples of the task."""
        key = "output_first" if output_first else "input_first"
        return self._chat(key, structured, task=instruction, count=str(count))

    def instance_stops(self, most: int) -> tuple[str, ...]:
        """Where a few-shot completion goes on to the next task or past ``most`` examples."""
        return (f"\n{self.labels['task']}:", f"\n{self.labels['example']} {most + 1}\n")

    def parse_input_first(self, text: str) -> list[Instance | None]:
        """Examples of a completion in order; None for a part that has no output line."""
        labels = self.labels
        found: list[Instance | None] = []
        for part in self._examples_of(text):
            # A model may skip the "Example" line: a second input begins a new one.
            for piece in _split_before(part, labels["input"]):
                before, mark, after = _partition(piece, labels["output"])
                if mark:
                    # Small models repeat the label; the first output is the answer.
                    after, _, _ = _partition(after, labels["output"])
                    given = _without_label(before, labels["input"])
                    found.append(Instance(self.given(given), after.strip()))
                else:
                    found.append(None)
        return found

    def parse_output_first(self, text: str) -> list[Instance | None]:
        """Class label, then the input that deserves it."""
        found: list[Instance | None] = []
        for part in self._examples_of(text):
            for piece in _split_before(part, self.labels["class_label"]):
                _, mark, body = _partition(piece, self.labels["class_label"])
                if mark:
                    label, _, rest = body.strip().partition("\n")
                    given = _without_label(rest, self.labels["input"])
                    found.append(Instance(self.given(given), label.strip()))
        return found

    # -- whole triples (Alpaca) -----------------------------------------------------------

    def triples_completion(self, demonstrations: Sequence[Sample], total: int) -> str:
        """Numbered triples, ending with the next instruction's label."""
        header = _fill(self._header("triples"), total=str(total))
        shown = self._triples(demonstrations)
        return (
            f"{header}\n\n{shown}\n\n###\n{len(demonstrations) + 1}. {self.labels['instruction']}:"
        )

    def triples_chat(
        self, demonstrations: Sequence[Sample], count: int, structured: bool
    ) -> tuple[Message, ...]:
        """A request for ``count`` new triples."""
        shown = self._triples(demonstrations)
        return self._chat("triples", structured, demonstrations=shown, count=str(count))

    def parse_triples(self, text: str) -> list[tuple[str, Instance] | None]:
        """Instruction and instance of each item; None for one that lacks a part."""
        found: list[tuple[str, Instance] | None] = []
        for item in re.split(r"^\s*###\s*$", text, flags=re.MULTILINE):
            # The item's number; those of its labels are part of the label.
            item = re.sub(r"^\d+[ \t]*\.[ \t]+", "", item.strip())
            if not item:
                continue
            item = _without_label(item, self.labels["instruction"])
            instruction, has_input, rest = _partition(item, self.labels["input"])
            given, has_output, output = _partition(rest, self.labels["output"])
            if has_input and has_output and instruction.strip():
                instance = Instance(self.given(given), output.strip())
                found.append((capital(one_line(instruction)), instance))
            else:
                found.append(None)
        return found

    # -- inside ---------------------------------------------------------------------------

    def _header(self, key: str) -> str:
        text: str = self._texts["completion"][key]
        return text if self.native else f"{text} Language: {self.language}."

    def _chat(self, key: str, structured: bool, **values: str) -> tuple[Message, ...]:
        form = self._texts["json"]["answer"] if structured else self._texts["plain"][key]
        # Filled before the form is added: the form is ours, the values are data.
        text = _fill(self._texts["chat"][key], **values)
        language = "" if self.native else f"\n\nWrite in this language: {self.language}."
        return (Message("user", f"{text}{language}\n\n{form}"),)

    def _task(self, instruction: str, examples: str) -> str:
        return f"{self.labels['task']}: {instruction}\n{examples}"

    def _examples(self, examples: Sequence[dict[str, str]]) -> str:
        labels = self.labels
        if not examples[0]["input"]:
            return f"{labels['output']}: {examples[0]['output']}"
        given, output = labels["input"], labels["output"]
        return "\n\n".join(
            f"{labels['example']} {i}\n{given}: {e['input']}\n{output}: {e['output']}"
            for i, e in enumerate(examples, start=1)
        )

    def _triples(self, demonstrations: Sequence[Sample]) -> str:
        labels = self.labels
        return "\n\n###\n".join(
            f"{i}. {labels['instruction']}: {one_line(d.instruction)}\n"
            f"{i}. {labels['input']}: {d.input or labels['no_input']}\n"
            f"{i}. {labels['output']}: {d.output}"
            for i, d in enumerate(demonstrations, start=1)
        )

    def given(self, text: str) -> str:
        """An input as a model wrote it: "" where it wrote that there is none."""
        text = text.strip()
        return (
            ""
            if text.lower().rstrip(".") in (self.labels["no_input"].lower(), "none", "n/a")
            else text
        )

    def _examples_of(self, text: str) -> list[str]:
        head = rf"^[ \t]*{re.escape(self.labels['example'])}[ \t]*\d+[ \t]*[.:：]?[ \t]*$"
        return re.split(head, self._before_next_task(text), flags=re.MULTILINE)

    def _before_next_task(self, text: str) -> str:
        return re.split(
            rf"^[ \t]*{re.escape(self.labels['task'])}{_MARKS}", text, flags=re.MULTILINE
        )[0]


def parse_numbered(text: str, last: int) -> list[str]:
    """The items of a numbered list, each as one line.

    Cut at the line that begins with the number after ``last``, and only there: a
    year that ends a sentence is no stop.
    """
    text = re.split(rf"^\s*{last + 1}\s?\.", text, flags=re.MULTILINE)[0]
    items = re.split(r"(?:^|\n)\s*\d+\s?[.)]\s", f"{text}\n")
    return [capital(line) for item in items if (line := one_line(item))]


def parse_json(text: str, key: str, *, cut: bool = False) -> list[Any]:
    """The items of the list under ``key`` of a JSON object; none where there is no such list.

    Args:
        text: the completion.
        key: the object's key.
        cut: the text may end anywhere; its whole items are read, and None
            stands for the unfinished last one.
    """
    if not cut:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return []
        items = value.get(key) if isinstance(value, dict) else None
        return items if isinstance(items, list) else []
    head = re.match(rf'\s*\{{\s*"{re.escape(key)}"\s*:\s*\[\s*', text)
    found: list[Any] = []
    at = head.end() if head else len(text)
    while at < len(text):
        try:
            item, at = _DECODER.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            break
        comma = _COMMA.match(text, at)
        if comma is None:
            # Without a comma even a whole-looking item may go on (12 of 123).
            break
        found.append(item)
        at = comma.end()
    return [*found, None] if head else []


def one_line(text: str) -> str:
    """White space folded and one trailing colon cut."""
    text = " ".join(text.split())
    return text.removesuffix(":").removesuffix("：").rstrip()


def capital(text: str) -> str:
    """The first letter made a capital and the rest left alone, so that NASA stays NASA."""
    return text[:1].upper() + text[1:]


def schema_of(key: str, item: dict[str, Any], most: int) -> dict[str, Any]:
    """The JSON schema of an object with one list of 1 to ``most`` items."""
    return {
        "type": "object",
        "properties": {key: {"type": "array", "items": item, "minItems": 1, "maxItems": most}},
        "required": [key],
        "additionalProperties": False,
    }


def record_of(*names: str) -> dict[str, Any]:
    """The JSON schema of an object with these text fields, in this order."""
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }


def _fill(template: str, **values: str) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m.group(1)], template)


def _at_line(label: str) -> str:
    return rf"^[ \t]*(?:\d+[ \t]*\.[ \t]*)?{re.escape(label)}[ \t]*{_MARKS}"


def _split_before(text: str, label: str) -> Iterator[str]:
    return (p for p in re.split(rf"(?={_at_line(label)})", text, flags=re.MULTILINE) if p.strip())


def _partition(text: str, label: str) -> tuple[str, bool, str]:
    parts = re.split(_at_line(label), text, maxsplit=1, flags=re.MULTILINE)
    return (parts[0], True, parts[1]) if len(parts) == 2 else (text, False, "")


def _without_label(text: str, label: str) -> str:
    return re.sub(_at_line(label), "", text.strip(), count=1).strip()


@cache
def _load(language: str) -> dict[str, Any]:
    with (_FOLDER / f"{language}.toml").open("rb") as file:
        return tomllib.load(file)
