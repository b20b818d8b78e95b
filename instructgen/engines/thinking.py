"""Separates the reasoning of thinking models from their answers.

Such a model writes its reasoning between the tags ``<think>`` and ``</think>``, before the answer.
Some chat templates already write the opening tag.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from instructgen.engines import Completion, Request

Thinking = Literal["auto", "on", "off"]
_OPEN, _CLOSE = "<think>", "</think>"
# The opening tag is at the very end of a prompt, perhaps before a line break.
_LAST_TOKENS = 8


def template_options(request: Request, thinking: Thinking) -> dict[str, bool]:
    """Return the variables with which a chat template turns reasoning on or off.

    An enforced JSON schema applies from the first token on, so a request with a schema is answered
    without reasoning.
    """
    if request.schema is not None:
        return {"enable_thinking": False}
    return {} if thinking == "auto" else {"enable_thinking": thinking == "on"}


def is_chat(request: Request) -> bool:
    """Return whether the prompt consists of messages, so that the completion is an answer."""
    return not isinstance(request.prompt, str) and not any(
        isinstance(part, int) for part in request.prompt
    )


def can_think(tokenizer: Any) -> bool:
    """Return whether the chat template has a place for reasoning."""
    template = str(tokenizer.chat_template or "")
    return _OPEN in template or "enable_thinking" in template


def may_reason(tokenizer: Any, request: Request, thinking: Thinking) -> bool:
    """Return whether a completion of a request may begin with reasoning."""
    return is_chat(request) and thinking != "off" and can_think(tokenizer)


def opens_reasoning(tokenizer: Any, prompt: list[int]) -> bool:
    """Return whether a prompt ends with the opening tag."""
    return str(tokenizer.decode(prompt[-_LAST_TOKENS:])).rstrip().endswith(_OPEN)


def split_reasoning(completion: Completion, request: Request, *, opened: bool | None) -> Completion:
    """Return the completion with its reasoning separated from its text.

    Reasoning that does not end means that the completion was cut off, so its finish reason is
    ``length``, and its text is empty.

    Args:
        completion: a completion whose text may begin with reasoning.
        request: its request; only answers to messages are split.
        opened: whether the prompt ends with the opening tag; None if that is not known.
    """
    if not is_chat(request) or completion.finish_reason == "error":
        return completion
    text = completion.text.lstrip()
    begins = text.startswith(_OPEN)
    if not begins and opened is False:
        # The answer may be about these tags.
        return completion
    before, found, after = text.removeprefix(_OPEN).partition(_CLOSE)
    if found:
        return replace(completion, reasoning=before.strip(), text=after.lstrip())
    if begins or (opened and request.schema is None):
        return replace(completion, reasoning=before.strip(), text="", finish_reason="length")
    return completion
