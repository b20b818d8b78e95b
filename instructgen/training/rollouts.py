"""Sample completions with vLLM on a CPU: save the current weights, and let vLLM reload them.

TRL's vLLM mode transfers weights with collective operations that the CPU build of vLLM does not
support. On a GPU, TRL's vLLM mode is used instead of this module.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructgen.models.folders import has_gpu
from instructgen.training.options import OnlineOptions

# (model, step, token ids of the prompts, maximum number of new tokens, temperature)
# -> token ids of one completion per prompt
Sampler = Callable[[Any, int, list[list[int]], int, float], list[list[int]]]


def vllm_sampler(tokenizer: Any, options: OnlineOptions, folder: Path) -> Sampler | None:
    """Return a vLLM sampler that reloads the weights of the trained model once per training step.

    Args:
        tokenizer: tokenizer to save together with the weights.
        options: provides the maximum row length and the random seed.
        folder: folder whose subfolder ``.rollout`` receives the weights.

    Returns:
        The sampler, or None on a GPU, where TRL's vLLM mode is used. The sampler raises
        EngineError if vLLM is not installed or does not start.
    """
    if has_gpu():
        return None
    from instructgen.engines.vllm import VllmEngine

    weights = folder / ".rollout"
    state: dict[str, Any] = {"llm": None, "step": None}

    def sample(
        model: Any, step: int, prompts: list[list[int]], most: int, temperature: float
    ) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        if state["step"] != step:
            _save_policy(model, tokenizer, weights)
            if state["llm"] is None:
                engine = VllmEngine(
                    model=str(weights), max_model_len=options.max_length, dtype="float32"
                )
                state["llm"] = engine.load()
            else:
                state["llm"].collective_rpc("reload_weights", kwargs={"weights_path": str(weights)})
                # Cached prefixes were computed with the previous weights.
                state["llm"].reset_prefix_cache()
            state["step"] = step
        parameters = [
            SamplingParams(
                temperature=temperature,
                max_tokens=most,
                seed=(options.seed * 1_000_003 + step * 8_191 + i) & 0x7FFFFFFF,
            )
            for i in range(len(prompts))
        ]
        outputs = state["llm"].generate(
            [TokensPrompt(prompt_token_ids=ids) for ids in prompts], parameters, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return sample


def _save_policy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save the trained model, with its adapters merged into the weights, and the tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    if hasattr(model, "merge_adapter"):
        model.merge_adapter()
        try:
            base = model.get_base_model()
            state = {
                k.replace(".base_layer", ""): v
                for k, v in base.state_dict().items()
                if "lora_" not in k and "ia3_" not in k
            }
            base.save_pretrained(folder, state_dict=state)
        finally:
            model.unmerge_adapter()
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
