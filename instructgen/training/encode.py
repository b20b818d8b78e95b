"""Rows as tokens, with a mark on each that is trained.

A row is rendered by the chat template that will be used with the trained model,
so that what was trained is what is asked for later. The base-model prompts of
Alpaca and Dolly are such templates too, and are saved with the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instructgen.errors import ConfigError, first_line
from instructgen.schema.sample import Message, Sample

_TEMPLATES = Path(__file__).parent / "templates"
IGNORED = -100
_PROBE = (
    Message("user", "What is two and two?"),
    Message("assistant", "It is four."),
    Message("user", "And three?"),
    Message("assistant", "That is six."),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids; ``trained`` marks the tokens of answers, ends of turn included.

    ``prompt`` is the number of tokens before the last answer, ``said`` that of those before
    the end of its text, where a template's own words or the end of turn begin.
    """

    ids: list[int]
    trained: list[bool]
    prompt: int
    said: int

    @property
    def labels(self) -> list[int]:
        """The ids, with -100 where nothing is learned."""
        return [i if t else IGNORED for i, t in zip(self.ids, self.trained, strict=True)]

    @property
    def answer(self) -> list[int]:
        """The ids of the last answer and its end."""
        return self.ids[self.prompt :]

    def cut(self, length: int) -> Encoded:
        """The first tokens of the row."""
        return replace(self, ids=self.ids[:length], trained=self.trained[:length])


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a row cannot be trained on: a code and a sentence."""

    reason: str
    detail: str


class Encoder:
    """Renders and tokenises rows for one tokenizer.

    Args:
        tokenizer: of transformers; its chat template is replaced when ``format`` is
            not ``chat``, and saved so.
        format: ``chat``, or the name of a template of ours.
        name: of the model, for messages.

    Raises:
        ConfigError: there is no chat template, or none that ends its answers.
    """

    def __init__(self, tokenizer: Any, format: str = "chat", name: str = "the model") -> None:
        self.tokenizer = tokenizer
        if format != "chat":
            template = (_TEMPLATES / f"{format}.jinja").read_text()
            if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
                # What the tokenizer puts before a text stands before a prompt too.
                template = "{{ bos_token }}" + template
            tokenizer.chat_template = template
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{name} has no chat template.",
                "Give --format alpaca or --format dolly, or a model that chats.",
            )
        self._template = tokenizer.chat_template
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
            # A template is a program; this one fails on the plainest conversation.
            raise ConfigError(
                f"{name}: its chat template fails ({first_line(error)}).",
                "Mend it, or give --format alpaca or --format dolly.",
            ) from error
        if not spans or not text[: spans[-1][1]].endswith(tuple(self._special)):
            raise ConfigError(
                f"{name}: its chat template ends no answer with a special token, so that "
                "training could not teach where to stop.",
                "Give --format alpaca or --format dolly.",
            )
        last = next(t for t in self._special if text[: spans[-1][1]].endswith(t))
        self.end_id = int(tokenizer.convert_tokens_to_ids(last))

    def encode(self, sample: Sample, answer: str | None = None) -> Encoded | Unusable:
        """A row with its output, or with another answer, as tokens.

        The earlier answers of a conversation are trained too, unless the template
        renders them otherwise once the conversation goes on.
        """
        said = (*sample.prompt, Message("assistant", sample.output if answer is None else answer))
        if (forged := self._forged(said)) is not None:
            return forged
        if not said[-1].content.strip():
            return Unusable("empty_answer", "there is nothing to learn")
        from jinja2 import TemplateError

        try:
            text, spans = self._spans(said, sample)
        except TemplateError as error:
            return Unusable("template", f"the chat template refuses it: {error}")
        if not spans or spans[-1][2] != len(said) - 1:
            return Unusable("template", "the chat template changes the prompt under the answer")
        begin = spans[-1][0]
        # A template may strip an answer; what it adds behind is no part of it.
        answer = (
            said[-1].content
            if text.startswith(said[-1].content, begin)
            else (said[-1].content.strip())
        )
        return self._tokens(text[: spans[-1][1]], [span[:2] for span in spans], begin + len(answer))

    def prompt(self, sample: Sample) -> str | Unusable:
        """All that a row's output answers, as the template renders it."""
        from jinja2 import TemplateError

        if (forged := self._forged(sample.prompt)) is not None:
            return forged
        try:
            return self._render(sample.prompt, sample, ask=True)
        except TemplateError as error:
            return Unusable("template", f"the chat template refuses it: {error}")

    def ids(self, text: str) -> list[int]:
        """Rendered text as tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _forged(self, said: Sequence[Message]) -> Unusable | None:
        if self._control and any(self._control.search(m.content) for m in said):
            return Unusable("control_token", "its text holds one of the tokenizer's own tokens")
        return None

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._special))) if self._special else None

    def _spans(
        self, said: Sequence[Message], sample: Sample | None = None
    ) -> tuple[str, list[tuple[int, int, int]]]:
        """The conversation as text, and (begin, end, turn) of each answer that can be trained."""
        text = self._render(said, sample)
        spans = []
        for turn, message in enumerate(said):
            if message.role != "assistant":
                continue
            before = self._render(said[:turn], sample, ask=True)
            # What follows the end of turn, such as a line break, belongs to the next one.
            after = self._render(said[: turn + 1], sample).rstrip()
            if text.startswith(before) and text.startswith(after) and len(after) > len(before):
                spans.append((len(before), len(after), turn))
        return text, spans

    def _render(
        self, said: Sequence[Message], sample: Sample | None = None, *, ask: bool = False
    ) -> str:
        messages = [{"role": m.role, "content": m.content} for m in said]
        if sample is not None and sample.input:
            last = len(sample.history)
            if last < len(messages):
                # The templates of base models have a place of its own for the input.
                messages[last] |= {"instruction": sample.instruction, "input": sample.input}
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask, chat_template=self._template
        )
        return text

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]], said_to: int) -> Encoded:
        joint = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = list(joint["input_ids"]), joint["offset_mapping"]
        begins = {begin for begin, _ in offsets}
        if all(begin in begins for begin, _ in spans):
            trained = [
                any(begin <= a and b <= end for begin, end in spans) and a < b for a, b in offsets
            ]
            prompt = next(i for i, (a, _) in enumerate(offsets) if a == spans[-1][0])
            said = next((i for i, (a, _) in enumerate(offsets) if a >= said_to), len(ids))
            return Encoded(ids, trained, prompt, said)
        # A token spans the border of a prompt; generation will meet the prompt's own
        # tokens, and so the parts are tokenised each by itself.
        ids, trained, prompt, at = [], [], 0, 0
        for begin, end in spans:
            for part, is_answer in ((text[at:begin], False), (text[begin:end], True)):
                prompt = len(ids) if is_answer else prompt
                made = self.ids(part)
                ids += made
                trained += [is_answer] * len(made)
            at = end
        said = prompt + len(self.ids(text[spans[-1][0] : said_to]))
        return Encoded(ids, trained, prompt, min(said, len(ids)))


def _training_template(tokenizer: Any) -> str | None:
    """TRL's variant of a known template that renders earlier turns as it rendered them first."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        # It knows no variant; the last answers can still be trained.
        return None
    return template
