"""Runs EleutherAI's evaluation harness (lm-eval) on its tasks or on tasks from a folder."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator

from instructgen.errors import ConfigError
from instructgen.evaluation.measures import MeasuredRows
from instructgen.evaluation.suites import Finding, Subject, Suite
from instructgen.models.loading import load_for_inference
from instructgen.schema.sample import Sample


class LmEval(Suite):
    """Evaluates models with the package lm-eval, and reports its metrics unchanged."""

    name = "lm-eval"
    shape = None

    tasks: tuple[str, ...] = Field((), description="Names of lm-eval tasks to run (required).")
    include_path: str | None = Field(None, description="Folder with additional lm-eval tasks.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Number of few-shot examples per prompt; default: set by the task."
    )
    apply_chat_template: bool = Field(
        False, description="Format prompts with the model's chat template."
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(v.strip() for v in value.split(",")) if isinstance(value, str) else value

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Return one measure per lm-eval task and metric; ``rows`` is not used."""
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise ConfigError(
                "The suite lm-eval requires the package lm-eval.", "Run: pip install 'lm-eval[hf]'."
            ) from None
        if not self.tasks:
            raise ConfigError(
                "The suite lm-eval requires at least one task.",
                "Pass for example --set=lm-eval.tasks=arc_easy.",
            )
        manager = TaskManager(include_path=self.include_path)
        tasks: list[str] = []
        for task in self.tasks:
            # Only registered names are passed on: lm-eval would open any other text as a file
            # and run the functions in it.
            matches = manager.match_tasks([task])
            if not matches:
                raise ConfigError(
                    f"lm-eval has no task {task!r}.",
                    "List tasks with `lm-eval ls tasks`, or add --set=lm-eval.include_path=FOLDER.",
                )
            tasks += matches
        by_model: list[dict[tuple[str, str], MeasuredRows]] = []
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
            by_model.append(_measures(result))
        others = by_model[1] if len(by_model) > 1 else {}
        return [
            Finding(m, others.get(key), details={"task": key[0]}) for key, m in by_model[0].items()
        ]


def _measures(result: Any) -> dict[tuple[str, str], MeasuredRows]:
    """Return the values that lm-eval computed for each document (test item), by task and metric.

    If a task has several lm-eval filters, which extract the answer from a reply, each document
    has one value per filter.
    """
    measures = {}
    for task, samples in result["samples"].items():
        by_filter: dict[str, list[Any]] = {}
        for sample in samples:
            by_filter.setdefault(sample["filter"], []).append(sample)
        for name, some in by_filter.items():
            for metric in some[0]["metrics"]:
                values = [s[metric] for s in some]
                # Some metrics have tuples of sums and counts, which only the harness combines.
                if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                    shown = f"{task}/{metric}" + (f",{name}" if name != "none" else "")
                    rows = [f"{task} {s['doc_id']}" for s in some]
                    ones = [1.0] * len(values)
                    measures[task, shown] = MeasuredRows(
                        shown, [float(v) for v in values], ones, rows
                    )
    return measures
