"""The command chat: talk to a model, word by word."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from instructgen.errors import ConfigError
from instructgen.schema.sample import Message


class Chat:
    """A conversation with a model.

    Args:
        model: a folder, a Hub name, or ``smollm2``.
        system: a message that stands before all others.
        temperature: 0 for the likeliest words.
        max_tokens: of an answer.
        seed: of sampling.

    Raises:
        ConfigError: the model cannot be loaded, has no chat template, or gives no text.
    """

    def __init__(
        self,
        model: str,
        *,
        system: str = "",
        temperature: float = 0.7,
        max_tokens: int = 512,
        seed: int | None = None,
    ) -> None:
        from instructgen.models.loading import is_reward_model, load_model, load_tokenizer
        from instructgen.training.policy import needs_packages

        if max_tokens < 1:
            raise ConfigError(f"--max-tokens is {max_tokens}.", "Give 1 or more.")
        if not 0 <= temperature <= 100:
            raise ConfigError(f"--temperature is {temperature}.", "Give 0 to 100.")
        needs_packages()
        import torch

        if is_reward_model(model):
            raise ConfigError(f"{model} is a reward model.", "Give a model that writes.")
        self._tokenizer: Any = load_tokenizer(model, "eos")
        if not self._tokenizer.chat_template:
            raise ConfigError(f"{model} has no chat template.", "Train it by: train sft.")
        self._model: Any = load_model(model, tokenizer=self._tokenizer).eval()
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._system, self._temperature, self._most = system, temperature, max_tokens
        self.said: list[Message] = []
        self.forget()
        if seed is not None:
            torch.manual_seed(seed)

    def forget(self) -> None:
        """Begin anew."""
        self.said = [Message("system", self._system)] if self._system else []

    def say(self, text: str) -> Iterator[str]:
        """The pieces of the model's answer as they come; afterwards it is part of ``said``."""
        from jinja2 import TemplateError
        from transformers import TextIteratorStreamer

        # Bytes that are no UTF-8 come as lone surrogates, which no tokenizer takes.
        text = text.encode("utf-8", "replace").decode()
        self.said.append(Message("user", text))
        messages = [{"role": m.role, "content": m.content} for m in self.said]
        try:
            inputs = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device)
        except TemplateError as error:
            raise ConfigError(
                f"The chat template refuses it: {error}.",
                "Leave --system out." if self._system else "Give a model with another.",
            ) from None
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampled: dict[str, Any] = {"do_sample": self._temperature > 0}
        if self._temperature > 0:
            sampled |= {"temperature": self._temperature, "top_k": 0}
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self._model.generate(
                    **inputs, **sampled, max_new_tokens=self._most, streamer=streamer
                )
            except BaseException as error:  # noqa: BLE001 (raised again by who reads)
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
        self.said.append(Message("assistant", answer.strip()))
