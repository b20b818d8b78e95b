"""The transformers engine, for machines on which PyTorch runs but vLLM does not.

It is much slower than vLLM and does not enforce JSON schemas. All requests of a batch use the
seed of the first request, so a completion also depends on the other requests in its batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import PrivateAttr

from instructgen.engines import (
    Completion,
    LocalEngine,
    QueueEngine,
    Request,
    Sampling,
    operational,
    prompt_tokens,
    user_turn_of,
)
from instructgen.engines.thinking import (
    may_reason,
    opens_reasoning,
    split_reasoning,
    template_options,
)
from instructgen.models.loading import fastest_dtype, load_for_inference, read_tokenizer


class TransformersEngine(LocalEngine, QueueEngine):
    """Runs the model with the package transformers, on machines on which vLLM does not run."""

    name = "transformers"

    batch: int = operational(16, "Number of requests decoded at the same time.", ge=1)

    _model: Any = PrivateAttr(None)
    _tokenizer: Any = PrivateAttr(None)

    def at_once(self) -> int:
        """Return the number of requests decoded at the same time."""
        return self.batch

    def has_chat_template(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        return bool(read_tokenizer(self.model).chat_template)

    def user_turn(self, system: str = "") -> tuple[tuple[int, ...], str]:
        """Return the beginning of a user's message in the chat template, and what follows it."""
        return user_turn_of(read_tokenizer(self.model), system)

    def window(self) -> int:
        """Return the number of requests decoded at the same time."""
        return self.batch

    def start(self) -> None:
        """Load the model, on a GPU if there is one."""
        if self._model is not None:
            return
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        self._tokenizer, self._model = load_for_inference(self.model, dtype=fastest_dtype())
        self._tokenizer.padding_side = "left"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete requests in batches with equal sampling parameters."""
        self.start()
        completions: dict[int, Completion] = {}
        groups: dict[Sampling, list[tuple[int, list[int]]]] = {}
        for i, request in enumerate(requests):
            variables = template_options(request, self.thinking)
            tokens = prompt_tokens(self._tokenizer, request, **variables)
            room = self.max_model_len - len(tokens)
            if not tokens or room < 1:
                error = f"the prompt has {len(tokens)} tokens; the limit is {self.max_model_len}"
                completions[i] = Completion.failed(error, len(tokens))
            else:
                thinks = may_reason(self._tokenizer, request, self.thinking)
                extra = self.thinking_tokens if thinks and request.schema is None else 0
                max_tokens = min(request.sampling.max_tokens + extra, room)
                sampling = replace(request.sampling, seed=None, max_tokens=max_tokens)
                groups.setdefault(sampling, []).append((i, tokens))
        for sampling, group in groups.items():
            seed = requests[group[0][0]].sampling.seed
            generated = self._generate([tokens for _, tokens in group], sampling, seed)
            for (i, tokens), completion in zip(group, generated, strict=True):
                opened = opens_reasoning(self._tokenizer, tokens)
                completions[i] = split_reasoning(completion, requests[i], opened=opened)
        return [completions[i] for i in range(len(requests))]

    def close(self) -> None:
        """Remove the reference to the model, so that its memory can be freed."""
        super().close()
        self._model = None

    def _generate(
        self, prompts: list[list[int]], sampling: Sampling, seed: int | None
    ) -> list[Completion]:
        import torch

        if seed is not None:
            torch.manual_seed(seed)
        tokenizer, model = self._tokenizer, self._model
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        width = inputs["input_ids"].shape[1]
        sampled: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if sampling.temperature > 0:
            sampled = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
            }
        stops = (
            {"stop_strings": list(sampling.stop), "tokenizer": tokenizer} if sampling.stop else {}
        )
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **sampled,
                **stops,
                top_k=None,
                max_new_tokens=sampling.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=[_Penalties(width, sampling)],
            )
        return [
            self._completion(prompt, row[width:].tolist(), sampling)
            for prompt, row in zip(prompts, output, strict=True)
        ]

    def _completion(self, prompt: list[int], output: list[int], sampling: Sampling) -> Completion:
        eos = self._model.generation_config.eos_token_id
        eos = set(eos if isinstance(eos, list) else [eos])
        last = next((i for i, token in enumerate(output) if token in eos), None)
        tokens = output if last is None else output[:last]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        cuts = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
        finished = last is not None or bool(cuts)
        return Completion(
            text=text[: min(cuts)] if cuts else text,
            finish_reason="stop" if finished else "length",
            prompt_tokens=len(prompt),
            output_tokens=len(tokens),
        )


class _Penalties:
    """Applies presence and frequency penalties to repeated tokens, as OpenAI and vLLM do."""

    def __init__(self, prompt_width: int, sampling: Sampling) -> None:
        self.prompt_width = prompt_width
        self.presence = sampling.presence_penalty
        self.frequency = sampling.frequency_penalty

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the logits of the next token, lowered for tokens that were already generated."""
        import torch

        generated = input_ids[:, self.prompt_width :]
        counts = torch.zeros_like(scores).scatter_add_(
            1, generated, torch.ones_like(generated, dtype=scores.dtype)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)
