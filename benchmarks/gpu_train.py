"""Runs every trainer on a GPU with a model of SmolLM2's size, and measures speed and memory.

    python benchmarks/gpu_train.py        writes benchmarks/gpu_train.json

The model has the shape of SmolLM2-135M with random weights, because the script must run without
access to a hub. So the measures show that training works and improves held-out rows; they do
not show how good a model becomes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
import trl

import instructgen
from instructgen.schema.sample import Label, Sample
from instructgen.verifiers.constraints import LABEL, Constraint

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.test_conversations import clock_rows
from tests.tiny_model import make_tiny_model
from tests.training_data import dataset, pairs, sentences

RESULT = Path(__file__).with_suffix(".json")
LOWER_CASE = Label(LABEL, Constraint("lower_case", {}).dumps())
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model(folder: Path) -> Path:
    """Save a Llama with the shape of SmolLM2-135M and random weights."""
    make_tiny_model(folder, positions=2048)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.update(
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
        }
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def long_rows(count: int) -> list[Sample]:
    """Return rows whose answers have about 300 tokens, to measure speed."""
    texts = sentences(count)
    return [replace(row, output=" ".join([row.output] * 12)) for row in texts]


def write(results: dict[str, Any]) -> None:
    """Write the results of the stages that have ended."""
    report = {
        "gpu": torch.cuda.get_device_name(0),
        "model": "Llama with the shape of SmolLM2-135M, random weights, vocabulary of 1,024",
        "versions": {
            "instructgen": instructgen.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
        "stages": results,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    work = Path(tempfile.mkdtemp())
    base = model(work / "base")
    template = work / "tools.jinja"
    template.write_text(TOOLS)
    data = {
        "long": dataset(work / "long", long_rows(4_000)),
        "pairs": dataset(work / "pairs", pairs(1_000)),
        "feedback": dataset(work / "feedback", clock_rows(1_000, labels=True)),
        "tools": dataset(work / "tools", clock_rows(1_000)),
        "prompts": dataset(work / "prompts", sentences(400, labels=(LOWER_CASE,))),
    }
    short = {"max_length": 512, "held_out_rows": 32, "learning_rate": 3e-4}
    online = {**short, "max_length": 128, "max_new_tokens": 32, "reward": ["verifiers:ifeval"]}
    tools = {**short, "chat_template": str(template)}
    stages: dict[str, tuple[str, str, dict[str, Any]]] = {
        "sft": ("sft", "long", {**short, "steps": 30, "batch_size": 32, "micro_batch_size": 32}),
        "sft, lora, bfloat16": (
            "sft",
            "long",
            {**short, "steps": 30, "batch_size": 32, "micro_batch_size": 32, "peft": "lora",
             "learning_rate": 3e-3},
        ),
        "sft, tool calls": ("sft", "tools", {**tools, "steps": 12, "batch_size": 16}),
        "reward": ("reward", "pairs", {**short, "steps": 20, "batch_size": 32}),
        "dpo": ("dpo", "pairs", {**short, "steps": 20, "batch_size": 32}),
        "kto, feedback": ("kto", "feedback", {**tools, "steps": 20, "batch_size": 32}),
        "grpo": ("grpo", "prompts", {**online, "steps": 12, "batch_size": 16}),
        "rloo": ("rloo", "prompts", {**online, "steps": 12, "batch_size": 16}),
        "ppo": ("ppo", "prompts", {**online, "steps": 12, "batch_size": 32, "kl_coef": 0.0}),
    }  # fmt: skip
    results: dict[str, Any] = {}
    for name, (trainer, rows, options) in stages.items():
        torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        try:
            result = instructgen.train(
                trainer, data[rows], work / name.replace(", ", "-"), model=str(base), **options
            )
        except Exception as error:  # noqa: BLE001 - one failing stage must not hide the others
            results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(name, results[name], flush=True)
            continue
        facts = result.facts
        assert facts is not None
        results[name] = {
            "steps": facts.steps,
            "seconds_per_step": round(facts.seconds / facts.steps, 4),
            "supervised_tokens": facts.supervised_tokens,
            "seconds_in_all": round(time.monotonic() - began, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "measures": {
                m.measure: [None if v is None else round(v.value, 4) for v in (m.before, m.after)]
                for m in facts.evaluation
            },
        }
        print(name, results[name], flush=True)
        write(results)


if __name__ == "__main__":
    main()
