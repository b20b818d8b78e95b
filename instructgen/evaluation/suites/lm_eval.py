"""EleutherAI's evaluation harness on any of its tasks, or on a folder of your own."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator

from instructgen.errors import ConfigError
from instructgen.evaluation.measures import Measured
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.models.loading import load_for_inference
from instructgen.schema.sample import Sample


class LmEval(Suite):
    """The package lm-eval, with its numbers as it gives them."""

    name = "lm-eval"
    shape = None

    tasks: tuple[str, ...] = Field((), description="names of its tasks")
    include_path: str | None = Field(None, description="a folder with tasks of your own")
    num_fewshot: int | None = Field(None, ge=0, description="examples in a prompt")
    apply_chat_template: bool = Field(False, description="put tasks to the model as chats")

    @field_validator("tasks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(v.strip() for v in value.split(",")) if isinstance(value, str) else value

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """One measure per task and metric."""
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise ConfigError(
                "The suite lm-eval needs the package lm-eval.", "Run: pip install 'lm-eval[hf]'."
            ) from None
        if not self.tasks:
            raise ConfigError(
                "The suite lm-eval needs tasks.", "Give --set lm-eval.tasks=arc_easy."
            )
        manager = TaskManager(include_path=self.include_path)
        tasks: list[str] = []
        for task in self.tasks:
            # Only names that are registered: another text would be opened as a file, whose
            # functions then run.
            named = manager.match_tasks([task])
            if not named:
                raise ConfigError(
                    f"lm-eval has no task {task!r}.",
                    "Run: lm-eval ls tasks; lm-eval.include_path is for your own.",
                )
            tasks += named
        made: list[dict[tuple[str, str], Measured]] = []
        for name in subject.models:
            tokenizer, model = load_for_inference(name)
            result: Any = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer),
                tasks=tasks,
                num_fewshot=self.num_fewshot,
                limit=subject.limit,
                task_manager=manager,
                apply_chat_template=self.apply_chat_template,
                bootstrap_iters=0,
                random_seed=subject.seed,
                verbosity="ERROR",
            )
            made.append(_measured(result))
        others = made[1] if len(made) > 1 else {}
        return [Finding(m, others.get(key), facts={"task": key[0]}) for key, m in made[0].items()]


def _measured(result: Any) -> dict[tuple[str, str], Measured]:
    """The harness's values per document, by task and metric.

    A document stands once for every filter of its task, such as ways to find the answer.
    """
    found = {}
    for task, samples in result["samples"].items():
        by_filter: dict[str, list[Any]] = {}
        for sample in samples:
            by_filter.setdefault(sample["filter"], []).append(sample)
        for name, some in by_filter.items():
            for metric in some[0]["metrics"]:
                values = [s[metric] for s in some]
                # Some metrics are sums and counts, to be put together by the harness.
                if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                    shown = f"{task}/{metric}" + (f",{name}" if name != "none" else "")
                    rows = [f"{task} {s['doc_id']}" for s in some]
                    ones = [1.0] * len(values)
                    found[task, shown] = Measured(shown, [float(v) for v in values], ones, rows)
    return found
