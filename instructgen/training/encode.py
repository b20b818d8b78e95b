"""Turn rows into tokens and mark the tokens that the loss covers.

A row is rendered with the chat template that is saved with the trained model, so that training
and inference use the same prompt format. The Alpaca and Dolly prompt formats for base models are
also chat templates. This module does not pad, pack or batch rows.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instructgen.config import read_small
from instructgen.errors import ConfigError, first_line
from instructgen.plugins import suggest
from instructgen.schema.messages import Message, ToolCall, json_text
from instructgen.schema.sample import Sample
from instructgen.training.options import PromptFormat

_TEMPLATES = Path(__file__).parent / "templates"
IGNORED = -100
_PROBE = (
    Message("user", "What is two and two?"),
    Message("assistant", "It is four."),
    Message("user", "And three?"),
    Message("assistant", "That is six."),
)
# Puts the text of the system message at the beginning of the first user message. It becomes part of
# the template, so that the trained model is used with it, too.
_FOLD = (
    "{%- if messages|length > 1 and messages[0]['role'] == 'system' "
    "and messages[1]['role'] == 'user' -%}{%- set system = messages[0]['content'] + '\\n\\n' -%}"
    "{%- set folded = dict(messages[1], content=system + messages[1]['content']) -%}"
    "{%- if 'instruction' in folded -%}"
    "{%- set folded = dict(folded, instruction=system + folded['instruction']) -%}{%- endif -%}"
    "{%- set messages = [folded] + messages[2:] -%}{%- endif -%}"
)
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Plays the {name}.",
            "parameters": {
                "type": "object",
                "properties": {"quartz": {"type": "string", "description": "A stone."}},
                "required": ["quartz"],
            },
        },
    }
    for name in ("xylophone", "vibraphone")
]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids, with marks on the tokens that the loss covers.

    Attributes:
        ids: token ids of the row.
        trained: True for each token that the loss covers (answers and the end-of-turn tokens after
            them), False for all other tokens.
        prompt: number of tokens before the last answer.
        said: number of tokens up to and including the text of the last answer, without the text
            that the template adds after the answer and without the end-of-turn token.
        text: the text of the tokens from ``prompt`` to ``said``.
    """

    ids: list[int]
    trained: list[bool]
    prompt: int
    said: int
    text: str

    @property
    def labels(self) -> list[int]:
        """The labels for the loss: the token ids, with -100 for tokens that the loss ignores."""
        return [i if t else IGNORED for i, t in zip(self.ids, self.trained, strict=True)]

    @property
    def answer(self) -> list[int]:
        """Token ids of the last answer, including its end-of-turn token."""
        return self.ids[self.prompt :]

    def cut(self, length: int) -> Encoded:
        """Return a copy that is truncated to its first ``length`` tokens."""
        return replace(self, ids=self.ids[:length], trained=self.trained[:length])


@dataclass(frozen=True, slots=True)
class _Span:
    """The place of an answer in a rendered text, its message number, and whether to train on it."""

    begin: int
    end: int
    turn: int
    trained: bool


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a row cannot be encoded: ``reason`` is a code, ``detail`` explains it in words."""

    reason: str
    detail: str


class Encoder:
    """Renders rows with a chat template and tokenizes them.

    Args:
        tokenizer: a transformers tokenizer. If the options replace its chat template, saving the
            tokenizer saves the new template.
        prompt_format: how rows are rendered.
        name: name of the model, for error messages.

    Raises:
        ConfigError: the chat template is missing, fails, or does not end answers with a
            special token.
    """

    def __init__(
        self, tokenizer: Any, prompt_format: PromptFormat | None = None, name: str = "the model"
    ) -> None:
        prompt_format = prompt_format or PromptFormat()
        self.tokenizer = tokenizer
        if prompt_format.chat_template:
            tokenizer.chat_template = named_template(prompt_format.chat_template)
        if prompt_format.format != "chat":
            template = (_TEMPLATES / f"{prompt_format.format}.jinja").read_text()
            if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
                # A tokenizer that starts every text with a BOS token expects it before a prompt.
                template = "{{ bos_token }}" + template
            tokenizer.chat_template = template
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{name} has no chat template.",
                "Pass --format=alpaca or --format=dolly, or use a chat model.",
            )
        if prompt_format.fold_system and not tokenizer.chat_template.startswith(_FOLD):
            tokenizer.chat_template = _FOLD + tokenizer.chat_template
        self._template = tokenizer.chat_template
        # The template of gpt-oss has its own name for the reasoning.
        own_name = "reasoning_content" not in self._template and ".thinking" in self._template
        self._reasoning_key = "thinking" if own_name else "reasoning_content"
        self._special = sorted(
            {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
            | set(tokenizer.all_special_tokens),
            key=len,
            reverse=True,
        )
        try:
            if len(self._spans(_PROBE)[1]) < 2:
                self._template = _training_template(tokenizer) or self._template
            text, spans = self._spans(_PROBE)
        except Exception as error:
            # Templates are programs: this one fails even on a minimal conversation.
            raise ConfigError(
                f"{name}: the chat template raised an error ({first_line(error)}).",
                "Fix the template, or pass --format=alpaca or --format=dolly.",
            ) from error
        if not spans or not text[: spans[-1].end].endswith(tuple(self._special)):
            raise ConfigError(
                f"{name}: the chat template does not end an answer with a special token. "
                "The model could not learn where an answer ends.",
                "Pass --format=alpaca or --format=dolly.",
            )
        last = next(t for t in self._special if text[: spans[-1].end].endswith(t))
        self.end_id = int(tokenizer.convert_tokens_to_ids(last))

    def encode(self, sample: Sample, answer: str | Message | None = None) -> Encoded | Unusable:
        """Encode a row with its answer, or with ``answer`` in place of its answer.

        The loss covers the answers of the assistant and its tool calls; it does not cover messages
        whose ``train`` is False, and earlier answers that the template renders differently when
        later turns follow. Return `Unusable` if the row contains special tokens, the answer is
        empty, or the template fails or does not render a part of the row, such as its tools.
        """
        final = sample.answer if answer is None else answer
        final = Message("assistant", final) if isinstance(final, str) else final
        messages = (*sample.prompt, final)
        if (unusable := self._check(messages, sample.tools)) is not None:
            return unusable
        if not final.content.strip() and not final.tool_calls:
            return Unusable("empty_answer", "the answer is empty")
        try:
            text, spans = self._spans(messages, sample)
        except _template_errors() as error:
            return _template_error(error)
        if not spans or spans[-1].turn != len(messages) - 1:
            return Unusable(
                "template", "the chat template renders the prompt differently if an answer follows"
            )
        if not any(span.trained for span in spans):
            return Unusable("not_trained", "no message of the row is to be trained on")
        begin, end = spans[-1].begin, spans[-1].end
        return self._tokenize(text[:end], spans, begin + self._length(text[begin:end], final))

    def prompt(self, sample: Sample) -> str | Unusable:
        """Render everything before a row's answer, including the start of the answer's turn."""
        if (unusable := self._check(sample.prompt, sample.tools)) is not None:
            return unusable
        try:
            return self._render(sample.prompt, sample, add_prompt=True)
        except _template_errors() as error:
            return _template_error(error)

    def ids(self, text: str) -> list[int]:
        """Tokenize rendered text, without adding special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _check(self, messages: Sequence[Message], tools: str) -> Unusable | None:
        """Return why the messages cannot be rendered completely, or None."""
        texts = [text for message in messages for text in message.texts]
        if self._pattern and any(self._pattern.search(text) for text in (*texts, tools)):
            return Unusable("control_token", "the text contains a special token of the tokenizer")
        present = {
            "tools": bool(tools),
            "tool_calls": any(m.tool_calls for m in messages),
            "tool_results": any(m.role == "tool" for m in messages),
            "reasoning_content": any(m.reasoning_content for m in messages),
        }
        for part, is_present in present.items():
            if is_present and part not in self._rendered_parts:
                what = part.replace("_", " ")
                return Unusable(
                    f"{part}_not_rendered",
                    f"the chat template does not render {what}; pass --chat-template with one "
                    "that does",
                )
        return None

    @cached_property
    def _rendered_parts(self) -> set[str]:
        """Which parts of a conversation the template renders, found by rendering examples."""
        call = Message(
            "assistant", "", tool_calls=(ToolCall("xylophone", '{"quartz":"Sitar."}', "c1"),)
        )
        asked = Message("user", "Play.")
        result = Message("tool", "Marimba.", tool_call_id="c1", name="xylophone")
        thought = Message("assistant", "Done.", reasoning_content="Glockenspiel.")
        tools = json_text(_TOOLS)
        examples = {
            "tools": ((asked, thought), tools, "vibraphone"),
            "tool_calls": ((asked, call), tools, "Sitar."),
            "tool_results": ((asked, call, result, thought), tools, "Marimba."),
            "reasoning_content": ((asked, thought), "", "Glockenspiel."),
        }
        rendered = set()
        for part, (messages, definitions, mark) in examples.items():
            try:
                text = self._render(messages, Sample("", tools=definitions))
            except _template_errors():
                continue
            if mark in text:
                rendered.add(part)
        return rendered

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._special))) if self._special else None

    def _spans(
        self, messages: Sequence[Message], sample: Sample | None = None
    ) -> tuple[str, list[_Span]]:
        """Return the rendered text, and the place of each answer that can be trained on."""
        text = self._render(messages, sample)
        spans = []
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:turn], sample, add_prompt=True)
            # White space after the end of turn belongs to the next turn.
            after = self._render(messages[: turn + 1], sample).rstrip()
            if text.startswith(before) and text.startswith(after) and len(after) > len(before):
                spans.append(_Span(len(before), len(after), turn, message.train))
        return text, spans

    def _length(self, answer: str, final: Message) -> int:
        """Return the length of the text of an answer, without what ends its turn."""
        content = final.content.strip()
        if content and not final.tool_calls and content in answer:
            # A template may strip the answer and add text that is not part of it.
            exact = final.content if final.content in answer else content
            return answer.rindex(exact) + len(exact)
        for token in self._special:
            answer = answer.removesuffix(token)
        return len(answer.rstrip())

    def _render(
        self, messages: Sequence[Message], sample: Sample | None = None, *, add_prompt: bool = False
    ) -> str:
        turns = [m.to_dict() for m in messages]
        for turn in turns:
            turn.pop("train", None)
            if self._reasoning_key in turn or "reasoning_content" not in turn:
                continue
            turn[self._reasoning_key] = turn.pop("reasoning_content")
        if sample is not None and sample.input:
            last = len(sample.history)
            if last < len(turns):
                # The templates for base models print the input in a separate section.
                turns[last] |= {"instruction": sample.instruction, "input": sample.input}
        tools = json.loads(sample.tools) if sample is not None and sample.tools else None
        text: str = self.tokenizer.apply_chat_template(
            turns,
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_prompt,
            chat_template=self._template,
        )
        return text

    def _tokenize(self, text: str, spans: Sequence[_Span], text_end: int) -> Encoded:
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        begins = {begin for begin, _ in offsets}
        if all(span.begin in begins for span in spans):
            trained = [
                a < b and any(s.trained and s.begin <= a and b <= s.end for s in spans)
                for a, b in offsets
            ]
            prompt = next(i for i, (a, _) in enumerate(offsets) if a == spans[-1].begin)
            answer_end = next((i for i, (a, _) in enumerate(offsets) if a >= text_end), len(ids))
            return Encoded(ids, trained, prompt, answer_end, text[spans[-1].begin : text_end])
        # A token spans the end of a prompt. Generation starts from the prompt tokenized alone,
        # so each part is tokenized separately.
        ids, trained, prompt, at = [], [], 0, 0
        for span in spans:
            parts = ((text[at : span.begin], False), (text[span.begin : span.end], True))
            for part, is_answer in parts:
                prompt = len(ids) if is_answer else prompt
                part_ids = self.ids(part)
                ids += part_ids
                trained += [is_answer and span.trained] * len(part_ids)
            at = span.end
        answer_end = prompt + len(self.ids(text[spans[-1].begin : text_end]))
        answer = text[spans[-1].begin : text_end]
        return Encoded(ids, trained, prompt, min(answer_end, len(ids)), answer)


def named_template(name: str) -> str:
    """Return the chat template in a file, or the one of this name that TRL contains.

    Raises:
        ConfigError: there is no such file and no such template, or TRL is not installed.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return read_small(path).decode()
    spec = importlib.util.find_spec("trl")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    templates = {} if folder is None else {p.stem: p for p in folder.glob("chat_templates/*.jinja")}
    if name not in templates:
        raise ConfigError(
            f"--chat-template={name}: no file and no template of TRL has this name.",
            f"Pass a file, or a name such as qwen3. {suggest(name, list(templates))}",
        )
    return templates[name].read_text(encoding="utf-8")


def _template_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a template raises for a conversation that it does not expect."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, AttributeError, LookupError)


def _template_error(error: Exception) -> Unusable:
    return Unusable("template", f"the chat template raised an error: {first_line(error)}")


def _training_template(tokenizer: Any) -> str | None:
    """Return TRL's training variant of the tokenizer's template, or None if TRL has none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        # TRL has no variant of this template. The loss can still cover the last answers.
        return None
    return template
