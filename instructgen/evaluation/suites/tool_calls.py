"""Checks the calls of tools that a model writes, turn by turn, in held-out conversations.

Each turn in which the recorded assistant calls tools is a task: the model gets the conversation
before it. So a wrong call does not change the tasks after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

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

    def findings(self, subject: Subject, rows: list[Sample]) -> list[Finding]:
        """Return one result per measure."""
        turns = [turn for row in rows for turn in _turns(row)]
        tasks = self.fitting_tasks(subject, [task for task, _ in turns])
        if not tasks:
            raise InputError(
                "No row has calls of tools, or all are too long.",
                hint="Use conversations with tools and a model whose chat template shows tools, or "
                "increase --max-length.",
            )
        message_of = {task.id: message for task, message in turns}
        answers = self.answers(subject, tasks)
        names = (*MEASURES, *((STATE,) if self.environment else ()))
        scored = {
            name: [
                self._scores(task, message_of[task.id], answer)
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

    def _scores(self, task: Sample, recorded: Message, answer: str) -> dict[str, float]:
        scores = dict.fromkeys((*MEASURES, STATE), 0.0)
        calls, _ = read_turn(answer)
        if not calls:
            return scores
        tools = tools_of(task.tools)
        faults = [tools.fault(call) for call in calls]
        scores["valid_json"] = 1.0
        scores["known_tool"] = float(all(f is None or f[0] != "unknown_tool" for f in faults))
        scores["valid_arguments"] = float(not any(faults))
        wanted = [Call(c.name, json.loads(c.arguments)) for c in recorded.tool_calls]
        scores["same_calls"] = float(_sorted(calls) == _sorted(wanted))
        if self.environment and not any(faults):
            kind = find("environments", self.environment)
            earlier = [
                Call(c.name, json.loads(c.arguments))
                for message in task.steps
                for c in message.tool_calls
            ]
            valid = [call for call in earlier if tools.fault(call) is None]
            states = [
                _effects(executed(kind, [*valid, *new]), len(valid)) for new in (calls, wanted)
            ]
            scores[STATE] = float(states[0] == states[1])
        return scores


def _turns(row: Sample) -> list[tuple[Sample, Message]]:
    """Return the turns of a row in which tools are called, each with the row before it."""
    if not row.tools:
        return []
    turns = [
        (replace(row, steps=row.steps[:place]).with_answer(""), message)
        for place, message in enumerate(row.steps)
        # The loss does not cover wrong calls, and they are not expected here.
        if message.role == "assistant" and message.tool_calls and message.train
    ]
    if row.tool_calls:
        turns.append((row.with_answer(""), row.answer))
    return turns


def _sorted(calls: Sequence[Call]) -> list[str]:
    return sorted(json.dumps(call.to_dict(), sort_keys=True) for call in calls)


def _effects(done: tuple[list[Any], str, str], earlier: int) -> tuple[list[str], str]:
    results, _, after = done
    return sorted(json.dumps(r, sort_keys=True) for r in results[earlier:]), after
