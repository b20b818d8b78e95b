"""The command `chat`: a conversation with a model, whose answers appear as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from instructgen.commands.options import ChatOptions
from instructgen.errors import ConfigError
from instructgen.schema.messages import Message


class Chat:
    """A conversation with a model.

    Args:
        options: the model, the system prompt, and the sampling options.

    Raises:
        ConfigError: the model cannot be loaded, has no chat template, or is a reward model.
    """

    def __init__(self, options: ChatOptions) -> None:
        from instructgen.models.loading import is_reward_model, load_model, load_tokenizer
        from instructgen.training.policy import require_training_packages

        require_training_packages()
        import torch

        model = options.model
        if is_reward_model(model):
            raise ConfigError(
                f"{model} is a reward model, which does not write text.", "Use a language model."
            )
        self._options = options
        self._tokenizer: Any = load_tokenizer(model, "eos")
        if not self._tokenizer.chat_template:
            raise ConfigError(
                f"{model} has no chat template.",
                "Use a model that was trained with instructgen train sft.",
            )
        self._model: Any = load_model(model, tokenizer=self._tokenizer).eval()
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.messages: list[Message] = []
        self.clear()
        if options.seed is not None:
            torch.manual_seed(options.seed)

    def clear(self) -> None:
        """Start a new conversation."""
        system = self._options.system
        self.messages = [Message("system", system)] if system else []

    def say(self, text: str) -> Iterator[str]:
        """Send ``text`` to the model, yield the answer in pieces, and add both to ``messages``."""
        from jinja2 import TemplateError
        from transformers import TextIteratorStreamer

        # Invalid UTF-8 arrives as lone surrogates, which tokenizers reject.
        text = text.encode("utf-8", "replace").decode()
        self.messages.append(Message("user", text))
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        try:
            inputs = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device)
        except TemplateError as error:
            raise ConfigError(
                f"the chat template of the model rejects the messages: {error}.",
                "Omit --system." if self._options.system else "Use a different model.",
            ) from None
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampled: dict[str, Any] = {"do_sample": self._options.temperature > 0}
        if self._options.temperature > 0:
            sampled |= {"temperature": self._options.temperature, "top_k": 0}
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self._model.generate(
                    **inputs, **sampled, max_new_tokens=self._options.max_tokens, streamer=streamer
                )
            except BaseException as error:  # noqa: BLE001 (raised again by the reader)
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        answer = ""
        for piece in streamer:
            answer += piece
            yield piece
        thread.join()
        if failed:
            raise failed[0]
        self.messages.append(Message("assistant", answer.strip()))
