"""Scores rows with a reward model, and rejects rows whose score is too low or too high."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

from pydantic import Field

from instructgen.filters import ScoringFilter
from instructgen.models.loading import load_for_inference
from instructgen.schema.sample import Sample, Score


class RewardFilter(ScoringFilter):
    """Score rows with a reward model: a sequence-classification model with a single output.

    The reward model reads the whole conversation, including the row's answer.
    """

    name: ClassVar[str] = "reward"

    model: str = Field(
        description="Reward model with safetensors weights: a folder, or the name of a model on "
        "the Hugging Face Hub."
    )

    @property
    def score_name(self) -> str:
        """Return the name of the score, which includes the name of the model."""
        return f"reward/{self.model}"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        """Return the score of each sample, in order."""
        if not samples:
            return []
        import torch

        tokenizer, model = _loaded(self.model)
        scores = []
        for sample in samples:
            messages = [m.to_dict() for m in sample.messages]
            if sample.input:
                # As in training: some chat templates have a separate place for the input.
                asked = {"instruction": sample.instruction, "input": sample.input}
                messages[len(sample.history)] |= asked
            if tokenizer.chat_template:
                # The model puts the score at the last token, which must end the answer and
                # not be a line break after it.
                text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                ids = tokenizer("\n\n".join(m["content"] for m in messages))["input_ids"]
            max_tokens = int(getattr(model.config, "max_position_embeddings", 2_048))
            if len(ids) > max_tokens:
                scores.append(
                    Score(
                        self.score_name,
                        None,
                        f"the row has {len(ids)} tokens, more than {max_tokens}",
                    )
                )
                continue
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
            scores.append(Score(self.score_name, round(float(logits[0, 0]), 4)))
        return scores


@cache
def _loaded(name: str) -> tuple[Any, Any]:
    return load_for_inference(name, "reward")
