"""Turn rows into tokens and mark the tokens that the loss covers.

A row is rendered with the chat template that is saved with the trained model, so that training
and inference use the same prompt format. The Alpaca and Dolly prompt formats for base models are
also chat templates. This module does not pad, pack or batch rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from instructgen.errors import ConfigError, first_line
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample

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
    """A row as token ids, with marks on the tokens that the loss covers.

    Attributes:
        ids: token ids of the row.
        trained: True for each token that the loss covers (answers and the end-of-turn tokens after
            them), False for all other tokens.
        prompt: number of tokens before the last answer.
        said: number of tokens up to and including the text of the last answer, without the text
            that the template adds after the answer and without the end-of-turn token.
    """

    ids: list[int]
    trained: list[bool]
    prompt: int
    said: int

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
class Unusable:
    """Why a row cannot be encoded: ``reason`` is a code, ``detail`` explains it in words."""

    reason: str
    detail: str


class Encoder:
    """Renders rows with a chat template and tokenizes them.

    Args:
        tokenizer: a transformers tokenizer. If ``format`` is not ``chat``, the tokenizer's chat
            template is replaced, and saving the tokenizer saves the new template.
        format: ``chat`` for the tokenizer's own template, or the name of a file in
            ``templates/`` without its extension (``alpaca`` or ``dolly``).
        name: name of the model, for error messages.

    Raises:
        ConfigError: the chat template is missing, fails, or does not end answers with a
            special token.
    """

    def __init__(self, tokenizer: Any, format: str = "chat", name: str = "the model") -> None:
        self.tokenizer = tokenizer
        if format != "chat":
            template = (_TEMPLATES / f"{format}.jinja").read_text()
            if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
                # A tokenizer that starts every text with a BOS token expects it before a prompt.
                template = "{{ bos_token }}" + template
            tokenizer.chat_template = template
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{name} has no chat template.",
                "Pass --format=alpaca or --format=dolly, or use a chat model.",
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
            # Templates are programs: this one fails even on a minimal conversation.
            raise ConfigError(
                f"{name}: the chat template raised an error ({first_line(error)}).",
                "Fix the template, or pass --format=alpaca or --format=dolly.",
            ) from error
        if not spans or not text[: spans[-1][1]].endswith(tuple(self._special)):
            raise ConfigError(
                f"{name}: the chat template does not end an answer with a special token. "
                "The model could not learn where an answer ends.",
                "Pass --format=alpaca or --format=dolly.",
            )
        last = next(t for t in self._special if text[: spans[-1][1]].endswith(t))
        self.end_id = int(tokenizer.convert_tokens_to_ids(last))

    def encode(self, sample: Sample, answer: str | None = None) -> Encoded | Unusable:
        """Encode a row with its output, or with ``answer`` in place of the output.

        The loss also covers the earlier answers of a conversation, unless the template
        renders them differently when later turns follow. Return `Unusable` if the row contains
        special tokens, the answer is empty, or the template fails.
        """
        final = sample.output if answer is None else answer
        messages = (*sample.prompt, Message("assistant", final))
        if (unusable := self._check_control_tokens(messages)) is not None:
            return unusable
        if not final.strip():
            return Unusable("empty_answer", "the answer is empty")
        from jinja2 import TemplateError

        try:
            text, spans = self._spans(messages, sample)
        except TemplateError as error:
            return Unusable("template", f"the chat template raised an error: {error}")
        if not spans or spans[-1][2] != len(messages) - 1:
            return Unusable(
                "template", "the chat template renders the prompt differently if an answer follows"
            )
        begin = spans[-1][0]
        # A template may strip the answer and append text that is not part of it.
        answer = final if text.startswith(final, begin) else final.strip()
        text, borders = text[: spans[-1][1]], [span[:2] for span in spans]
        return self._tokenize(text, borders, begin + len(answer))

    def prompt(self, sample: Sample) -> str | Unusable:
        """Render the prompt of a row with the template, up to where the answer begins."""
        from jinja2 import TemplateError

        if (unusable := self._check_control_tokens(sample.prompt)) is not None:
            return unusable
        try:
            return self._render(sample.prompt, sample, add_prompt=True)
        except TemplateError as error:
            return Unusable("template", f"the chat template raised an error: {error}")

    def ids(self, text: str) -> list[int]:
        """Tokenize rendered text, without adding special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _check_control_tokens(self, messages: Sequence[Message]) -> Unusable | None:
        if self._pattern and any(self._pattern.search(m.content) for m in messages):
            return Unusable("control_token", "the text contains a special token of the tokenizer")
        return None

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._special))) if self._special else None

    def _spans(
        self, messages: Sequence[Message], sample: Sample | None = None
    ) -> tuple[str, list[tuple[int, int, int]]]:
        """Return the rendered text, and (begin, end, message index) of each answer to train on."""
        text = self._render(messages, sample)
        spans = []
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:turn], sample, add_prompt=True)
            # White space after the end of turn belongs to the next turn.
            after = self._render(messages[: turn + 1], sample).rstrip()
            if text.startswith(before) and text.startswith(after) and len(after) > len(before):
                spans.append((len(before), len(after), turn))
        return text, spans

    def _render(
        self, messages: Sequence[Message], sample: Sample | None = None, *, add_prompt: bool = False
    ) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if sample is not None and sample.input:
            last = len(sample.history)
            if last < len(turns):
                # The templates for base models print the input in a separate section.
                turns[last] |= {"instruction": sample.instruction, "input": sample.input}
        text: str = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_prompt, chat_template=self._template
        )
        return text

    def _tokenize(self, text: str, spans: Sequence[tuple[int, int]], text_end: int) -> Encoded:
        encoding = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        begins = {begin for begin, _ in offsets}
        if all(begin in begins for begin, _ in spans):
            trained = [
                any(begin <= a and b <= end for begin, end in spans) and a < b for a, b in offsets
            ]
            prompt = next(i for i, (a, _) in enumerate(offsets) if a == spans[-1][0])
            answer_end = next((i for i, (a, _) in enumerate(offsets) if a >= text_end), len(ids))
            return Encoded(ids, trained, prompt, answer_end)
        # A token spans the end of a prompt. Generation starts from the prompt tokenized alone,
        # so each part is tokenized separately.
        ids, trained, prompt, at = [], [], 0, 0
        for begin, end in spans:
            for part, is_answer in ((text[at:begin], False), (text[begin:end], True)):
                prompt = len(ids) if is_answer else prompt
                part_ids = self.ids(part)
                ids += part_ids
                trained += [is_answer] * len(part_ids)
            at = end
        answer_end = prompt + len(self.ids(text[spans[-1][0] : text_end]))
        return Encoded(ids, trained, prompt, min(answer_end, len(ids)))


def _training_template(tokenizer: Any) -> str | None:
    """Return TRL's training variant of the tokenizer's template, or None if TRL has none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template: str | None = get_training_chat_template(tokenizer)
    except ValueError:
        # TRL has no variant of this template. The loss can still cover the last answers.
        return None
    return template
