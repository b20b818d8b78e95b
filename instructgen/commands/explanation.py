"""Defines `Explanation`, which describes where a row comes from and why it was kept or rejected.

`explain_row` explains rows of derived datasets: those that a command other than `generate` wrote.
The module `instructgen.commands.explain` explains rows that `generate` wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgen.engines import Completion, Request
from instructgen.errors import InputError, quoted
from instructgen.generation.answers import find_text
from instructgen.licensing.licenses import obligations
from instructgen.licensing.model_terms import generator_terms
from instructgen.printable import printable
from instructgen.schema.messages import json_text
from instructgen.store import find_row, manifest_in, read_provenance


@dataclass(frozen=True, slots=True)
class Neighbor:
    """The row most similar to the explained row, with the ROUGE-L F-measure of the two or None."""

    id: str
    instruction: str
    rouge_l: float | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A completion from which a row was created, with its prompt and the number of its request."""

    stage: str
    request: int
    prompt: str
    completion: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int


def exchange_of(number: int, request: Request, completion: Completion) -> Exchange:
    """Return a request of a run and its completion, for display."""
    return Exchange(
        stage=request.stage,
        request=number,
        prompt=request.prompt_text(),
        completion=completion.text,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.output_tokens,
    )


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """The explanation of a row, a seed task, or a generated instruction that has no row.

    ``verdict`` is ``kept``, ``rejected``, ``a seed``, or ``in the pool`` (an instruction that was
    accepted but has no row). ``written`` are the completions from which the row was created.
    ``passed`` are the filters that accepted the row, and ``not_evaluated`` those after the one that
    rejected it. ``command`` is the command that created a
    derived dataset, and ``inputs`` are its inputs. ``obligations`` are sentences that list what
    the licenses and models of the row require of users. ``str`` returns the explanation as text.
    """

    id: str
    verdict: str
    row: dict[str, Any]
    parents: tuple[tuple[str, str], ...] = ()
    written: tuple[Exchange, ...] = ()
    passed: tuple[str, ...] = ()
    not_evaluated: tuple[str, ...] = ()
    nearest: Neighbor | None = None
    command: str = ""
    inputs: tuple[str, ...] = ()
    obligations: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the explanation as text."""
        return "\n".join(self.lines())

    __repr__ = __str__

    def lines(self) -> Iterator[str]:
        """Yield the explanation as lines of text."""
        yield from self._verdict_lines()
        yield from self._origin_lines()
        for edit in self.row.get("edits") or ():
            yield f"edited  {edit['filter']}, {edit['field']}: {edit['detail']}"
        yield from self._score_lines()
        if self.passed:
            yield f"filters passed  {', '.join(self.passed)}"
        if self.not_evaluated:
            yield f"filters not evaluated  {', '.join(self.not_evaluated)}"
        if self.nearest is not None:
            measure = (
                "" if self.nearest.rouge_l is None else f"ROUGE-L {self.nearest.rouge_l:.3f}  "
            )
            yield f"nearest  {measure}{self.nearest.id}  {_short(self.nearest.instruction)}"
        for w in self.written:
            yield (
                f"{w.stage}  request {w.request}, {w.prompt_tokens:,} prompt and "
                f"{w.output_tokens:,} output tokens, finish reason {w.finish_reason}"
            )
            yield f"  prompt\n    {_indented(w.prompt, 4)}"
            yield f"  completion\n    {_indented(w.completion, 4)}"
        if self.command:
            yield f"dataset  created by {self.command} from {', '.join(self.inputs)}"

    def _verdict_lines(self) -> Iterator[str]:
        row, verdict = self.row, self.verdict
        if verdict == "rejected":
            verdict = f"rejected by {row['filter']}: {row['reason']}"
            if row["score"] is not None:
                verdict += f", {row['score']:.4g}"
        yield f"{self.id}  {printable(verdict)}"
        if row.get("detail"):
            yield f"  {printable(row['detail'])}"
        before, steps, answer = _conversation(row)
        for message in before:
            yield from _message_lines("earlier message", message)
        quotes = _quotes(row)
        for field in ("text", "instruction", "input"):
            if text := row.get(field):
                yield f"{field}\n  {_indented(marked(text, quotes) if field == 'input' else text)}"
        for message in steps:
            yield from _message_lines("message", message)
        yield from _message_lines("output", answer)
        if isinstance(row.get("rejected"), list) and row["rejected"]:
            yield from _message_lines("rejected answer", row["rejected"][0])
        if row.get("label") is not None:
            yield f"label  {'good' if row['label'] else 'bad'}"
        if row.get("tools"):
            names = ", ".join(str(tool.get("function", tool).get("name")) for tool in row["tools"])
            yield f"tools  {printable(names)}"

    def _origin_lines(self) -> Iterator[str]:
        row, origin = self.row, self.row["origin"]
        facts = [f"source {row['source']}", f"method {origin['method']}"]
        facts += [f"{key} {origin[key]}" for key in _ORIGIN if origin.get(key)]
        facts.append(f"language {row['language']}")
        yield f"origin  {printable(', '.join(facts))}"
        if self.parents:
            yield "parents"
            yield from (f"  {parent}  {_short(text)}" for parent, text in self.parents)
            if (quotes := _quotes(row)) and not row.get("input"):
                # The row does not contain the passage in which the evidence is.
                for _, text in self.parents:
                    yield f"passage\n  {_indented(marked(text, quotes))}"
        elif origin["parents"]:
            yield f"parents  {', '.join(origin['parents'])}"
        yield f"license  {printable(row['license'] or 'none')}"
        yield from (f"  {printable(sentence)}" for sentence in self.obligations)

    def _score_lines(self) -> Iterator[str]:
        scores = [
            f"{s['name']} {s['error'] if s['value'] is None else format(s['value'], '.4g')}"
            for s in self.row.get("scores") or ()
        ]
        labels = [f"{label['name']} {label['value']}" for label in self.row.get("labels") or ()]
        measured = [f"{v['filter']} {v['value']:.4g}" for v in self.row.get("filter_values") or ()]
        for name, values in (
            ("scores", scores),
            ("labels", labels),
            ("values of filters", measured),
        ):
            if values:
                yield f"{name}  {printable(', '.join(values))}"


_ORIGIN = ("record", "group", "model", "run")


def _quotes(row: Mapping[str, Any]) -> list[str]:
    """Return the evidence of a row: quotes from the passage that it is about."""
    labels = row.get("labels") or ()
    names = ("evidence", "evidence_2")
    return [label["value"] for label in labels if label["name"] in names]


def marked(text: str, quotes: Sequence[str]) -> str:
    """Return a text with each quote that it contains between the marks >>> and <<<."""
    for quote in quotes:
        if (place := find_text(quote, text)) is not None:
            start, end = place
            text = f"{text[:start]}>>>{text[start:end]}<<<{text[end:]}"
    return text


def _short(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= 100 else line[:99] + "…"


def _indented(text: str, by: int = 2) -> str:
    return printable(text).replace("\n", "\n" + " " * by)


def explain_row(folder: Path, row_id: str) -> Explanation:
    """Explain a row of a dataset that a command other than `generate` wrote.

    Raises:
        RunError: the folder contains no complete dataset, or a Parquet file was changed.
        InputError: no row has this ID.
    """
    provenance, manifest = read_provenance(folder), manifest_in(folder)
    place = find_row(folder, row_id)
    if place is None:
        raise unknown_id(folder, row_id)
    table, row = place
    names = manifest.facts.get("filters")
    filters = tuple(map(str, names)) if isinstance(names, list) else ()
    passed, later = filters, tuple[str, ...]()
    if table == "rejected":
        at = filters.index(row["filter"]) if row["filter"] in filters else len(filters)
        passed, later = filters[:at] if at < len(filters) else (), filters[at + 1 :]
    near = find_row(folder, row["nearest"]) if row.get("nearest") else None
    return Explanation(
        id=row_id,
        verdict="kept" if table == "data" else "rejected",
        row=row,
        command=provenance.command,
        inputs=tuple(ref.name for ref in provenance.inputs),
        passed=passed,
        not_evaluated=later,
        nearest=Neighbor(row["nearest"], text_of(near[1])) if near else None,
        obligations=_obligations(row),
    )


def text_of(row: Mapping[str, Any]) -> str:
    """Return the instruction of a row, or the text of a segment."""
    return str(row.get("instruction") or row.get("text") or "")


def unknown_id(folder: Path, row_id: str) -> InputError:
    """Return the error to raise if a run or dataset has no row with this ID."""
    return InputError(
        f"the ID {quoted(row_id)} was not found.",
        path=folder,
        hint="Use an ID from the columns id, nearest or origin.parents in data/ or rejected/.",
    )


def _conversation(row: Mapping[str, Any]) -> tuple[list[Any], list[Any], Any]:
    """Return the messages before the instruction, those after it, and the answer of a row."""
    messages = [
        *(row.get("messages") or row.get("prompt") or ()),
        *(row.get("chosen") or row.get("completion") or ()),
    ]
    if not messages:
        # A seed or an instruction in the pool, as it is stored in a run.
        return [], [], {"role": "assistant", "content": row.get("output") or ""}
    question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    return messages[:question], messages[question + 1 : -1], messages[-1]


def _message_lines(title: str, message: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message with its reasoning and tool calls; an empty message yields nothing."""
    if title.endswith("message"):
        title += f", {message['role']}"
    if message.get("reasoning_content"):
        yield f"reasoning\n  {_indented(message['reasoning_content'])}"
    if message["content"]:
        yield f"{title}\n  {_indented(message['content'])}"
    for call in message.get("tool_calls") or ():
        function = call["function"]
        text = f"{function['name']} {json_text(function['arguments'])}"
        yield f"{title}, tool call\n  {_indented(text)}"


def _obligations(row: dict[str, Any]) -> tuple[str, ...]:
    if not row["license"]:
        return ()
    models = {model: 1 for model in row["generators"] if generator_terms(model) is not None}
    sentences = obligations({row["license"]: 1}, models, dict.fromkeys(row["attribution"], 1))
    return tuple(sentence.replace("1 rows", "this row") for sentence in sentences)
