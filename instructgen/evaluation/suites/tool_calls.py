"""Checks the calls of tools that a model writes, turn by turn, in held-out conversations.

Each turn in which the recorded assistant calls tools is a task: the model gets the conversation
before it. So a wrong call does not change the tasks after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field, field_validator

from instructgen.environments import Call, executed, read_turn, tools_of
from instructgen.errors import InputError
from instructgen.evaluation.measures import MeasuredRows
from instructgen.evaluation.suites import AnsweringSuite, Finding, Subject
from instructgen.plugins import find
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample

MEASURES = ("valid_json", "known_tool", "valid_arguments", "same_calls")
STATE = "same_state"


class ToolCalls(AnsweringSuite):
    """Measures the fraction of turns whose calls are valid, and of those with the right effect.

    The measures are: calls that can be parsed (valid_json), whose tools exist (known_tool), whose
    arguments follow the schema (valid_arguments), that are those of the recorded turn (same_calls)
    and, with an environment, that lead to the same data and results as these (same_state).
    """

    name = "tool_calls"

    environment: str = Field(
        "",
        description="Name of an environment that a file in --plugin defines, to compare the state "
        "after the calls.",
    )

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, name: str) -> str:
        if name:
            find("environments", name)
        return name

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Return one result per measure."""
        recorded: dict[str, tuple[Sample, list[list[Call]]]] = {}
        for row in rows:
            for task, calls in _turns(row):
                # Two rows may continue the same conversation in different ways.
                recorded.setdefault(task.id, (task, []))[1].append(calls)
        tasks = self.fitting_tasks(subject, [task for task, _ in recorded.values()])
        if not tasks:
            raise InputError(
                "No row has valid calls of tools, or all are too long.",
                hint="Use conversations with tools and a model whose chat template shows tools, or "
                "increase --max-length.",
            )
        answers = self.answers(subject, tasks)
        names = (*MEASURES, *((STATE,) if self.environment else ()))
        scored = {
            name: [
                self._scores(task, recorded[task.id][1], answer)
                for task, answer in zip(tasks, answers[name], strict=True)
            ]
            for name in subject.models
        }
        ids = [task.id for task in tasks]
        findings = []
        for measure in names:
            measured = [
                MeasuredRows(measure, [s[measure] for s in scored[name]], [1.0] * len(ids), ids)
                for name in subject.models
            ]
            before = measured[1] if len(measured) > 1 else None
            findings.append(Finding(measured[0], before))
        return findings

    def _scores(self, task: Sample, recorded: list[list[Call]], answer: str) -> dict[str, float]:
        scores = dict.fromkeys((*MEASURES, STATE), 0.0)
        calls, _ = read_turn(answer)
        if not calls:
            return scores
        tools = tools_of(task.tools)
        faults = [tools.fault(call) for call in calls]
        scores["valid_json"] = 1.0
        scores["known_tool"] = float(all(f is None or f[0] != "unknown_tool" for f in faults))
        scores["valid_arguments"] = float(not any(faults))
        scores["same_calls"] = float(any(_sorted(calls) == _sorted(each) for each in recorded))
        if self.environment and not any(faults):
            earlier = [c for m in task.steps for c in _calls(m) if tools.fault(c) is None]
            effects = self._effects(earlier, calls)
            scores[STATE] = float(
                effects is not None
                and any(effects == self._effects(earlier, each) for each in recorded)
            )
        return scores

    def _effects(self, earlier: list[Call], calls: list[Call]) -> tuple[list[str], str] | None:
        """Return the results of calls and the digest of the state, or None if a tool fails."""
        kind = find("environments", self.environment)
        try:
            results, _, after = executed(kind, [*earlier, *calls])
        except Exception:  # noqa: BLE001 (an environment of a user raises any exception)
            return None
        return sorted(json.dumps(r, sort_keys=True) for r in results[len(earlier) :]), after


def _turns(row: Sample) -> list[tuple[Sample, list[Call]]]:
    """Return the turns of a row in which tools are called, each with the row before it.

    Turns whose recorded calls do not follow the definitions of the tools are left out.
    """
    try:
        tools = tools_of(row.tools)
    except (ValueError, RecursionError):
        return []
    turns = [
        (replace(row, steps=row.steps[:place]).with_answer(""), _calls(message))
        for place, message in enumerate(row.steps)
        # The loss does not cover wrong calls, and they are not expected here.
        if message.role == "assistant" and message.train
    ]
    turns.append((row.with_answer(""), _calls(row.answer)))
    return [(t, calls) for t, calls in turns if calls and not any(map(tools.fault, calls))]


def _calls(message: Message) -> list[Call]:
    return [Call(c.name, json.loads(c.arguments)) for c in message.tool_calls]


def _sorted(calls: Sequence[Call]) -> list[str]:
    return sorted(json.dumps(call.to_dict(), sort_keys=True) for call in calls)
