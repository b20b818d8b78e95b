"""The evaluation suites verifiers and tool_calls, with answers that a test chooses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from instructgen.environments import read_tools
from instructgen.errors import ConfigError, InputError
from instructgen.evaluation.suites import Subject
from instructgen.evaluation.suites.tool_calls import ToolCalls
from instructgen.evaluation.suites.verifiers import Verifiers, pass_at
from instructgen.plugins import find, load_plugin
from instructgen.schema.messages import Message, ToolCall
from instructgen.schema.sample import Label, Sample
from instructgen.training.options import PromptFormat
from tests.conftest import ROOT, needs_sandbox

DESK = ROOT / "examples" / "desk"
load_plugin(DESK / "desk.py")
SUM = Sample("What is 40 + 2?", output="#### 42", language="en")
TRIPLE = Sample("Write triple(x).", output="x", labels=(Label("test", "assert triple(2) == 6"),))
OPEN = Sample("Who are you?", output="Nobody.")


def measured(suite: object, rows: list[Sample], answers: list[str], tiny: Path) -> dict[str, float]:
    """Run a suite whose model gives these answers; return the measures."""
    asked: list[int] = []

    def given_answers(
        self: object, subject: Subject, tasks: list[Sample], *, samples: int = 1, **_: object
    ) -> dict[str, list[str]]:
        asked.append(len(tasks) * samples)
        return {subject.model: answers}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(suite), "answers", given_answers)
        # The template of the tiny model has no tools.
        patch.setattr(ToolCalls, "fitting_tasks", lambda self, subject, tasks: tasks)
        subject = Subject(str(tiny), None, PromptFormat(max_length=1024))
        findings = suite.findings(subject, rows)  # type: ignore[attr-defined]
    assert asked == [len(answers)]
    return {f.after.name: sum(f.after.parts) / sum(f.after.wholes) for f in findings}


@needs_sandbox
def test_each_row_is_checked_by_the_first_verifier_that_can(tiny: Path) -> None:
    good = "```python\ndef triple(x):\n    return 3 * x\n```"
    found = measured(Verifiers(), [SUM, TRIPLE, OPEN], ["It is 42.", good], tiny)
    assert found == {"accuracy": 1.0}
    found = measured(Verifiers(), [SUM, TRIPLE, OPEN], ["It is 41.", good], tiny)
    assert found == {"accuracy": 0.5}


def test_pass_at_k_counts_all_answers_to_a_task(tiny: Path) -> None:
    suite = Verifiers(verifiers=("math",), samples=4, k=(1, 2, 4))
    answers = ["42", "1", "2", "3", "1", "2", "3", "4"]
    found = measured(suite, [SUM, Sample("What is 1 + 8?", output="#### 9")], answers, tiny)
    assert found == {"accuracy": 0.125, "pass@2": 0.25, "pass@4": 0.5}


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_pass_at_k_is_that_of_all_choices(samples: int, correct: int, k: int) -> None:
    correct, k = min(correct, samples), min(k, samples)
    choices = list(itertools.combinations(range(samples), k))
    share = sum(min(choice) < correct for choice in choices) / len(choices)
    assert pass_at(k, samples, correct) == pytest.approx(share)


def test_rows_and_numbers_that_cannot_be_used(tiny: Path) -> None:
    subject = Subject(str(tiny), None, PromptFormat())
    with pytest.raises(InputError):
        Verifiers().findings(subject, [OPEN])
    with pytest.raises(InputError):
        Verifiers(k=(8,), samples=4).findings(subject, [SUM])
    with pytest.raises(InputError):
        ToolCalls().findings(subject, [SUM])
    for values in ({"k": (0,)}, {"k": (1, 1)}, {"verifiers": ("none",)}):
        with pytest.raises((ValidationError, ConfigError)):
            Verifiers(**values)  # type: ignore[arg-type]


def conversation() -> Sample:
    lend = ToolCall("lend", '{"member_id":12,"book_id":205}', "call_1")
    return Sample(
        "Lend book 205 to member 12.",
        output="Done.",
        tools=read_tools(DESK / "tools.json"),
        steps=(
            Message("assistant", "", tool_calls=(lend,)),
            Message("tool", '{"due":121}', tool_call_id="call_1", name="lend"),
        ),
    )


RIGHT = '{"name": "lend", "arguments": {"book_id": 205, "member_id": 12}}'
ANSWERS = {
    "right": (f"<tool_call>{RIGHT}</tool_call>", (1, 1, 1, 1, 1)),
    "as JSON": (json.dumps({"calls": [json.loads(RIGHT)], "message": ""}), (1, 1, 1, 1, 1)),
    "other book": (f"<tool_call>{RIGHT.replace('205', '207')}</tool_call>", (1, 1, 1, 0, 0)),
    "looks first": (
        f'<tool_call>{{"name": "member", "arguments": {{"member_id": 12}}}}</tool_call>'
        f"<tool_call>{RIGHT}</tool_call>",
        (1, 1, 1, 0, 0),
    ),
    "wrong type": (f"<tool_call>{RIGHT.replace('205', 'true')}</tool_call>", (1, 1, 0, 0, 0)),
    "unknown tool": (f"<tool_call>{RIGHT.replace('lend', 'give')}</tool_call>", (1, 0, 0, 0, 0)),
    "no JSON": ("<tool_call>lend(12, 205)</tool_call>", (0, 0, 0, 0, 0)),
    "text": ("I have lent the book.", (0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_calls_are_valid_known_and_have_the_right_effect(name: str, tiny: Path) -> None:
    answer, expected = ANSWERS[name]
    suite = ToolCalls(environment="loans_desk")
    found = measured(suite, [conversation(), SUM], [answer], tiny)
    names = ("valid_json", "known_tool", "valid_arguments", "same_calls", "same_state")
    assert found == dict(zip(names, map(float, expected), strict=True))
    assert "same_state" not in measured(ToolCalls(), [conversation()], [answer], tiny)


def test_rows_that_continue_in_two_ways_count_once_and_unusable_ones_not_at_all(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = conversation()
    look = ToolCall("member", '{"member_id":12}', "call_1")
    other = replace(row, steps=(Message("assistant", "", tool_calls=(look,)), *row.steps[1:]))
    tools = json.loads(row.tools)
    broken = [
        replace(row, tools=json.dumps([*tools, tools[0]])),
        replace(row, tools=json.dumps([{"name": "lend", "parameters": None}])),
        replace(row, tools="[" * 10_000),
        replace(row, tools=json.dumps([{**tools[0]["function"], "name": "lend"}])),
    ]
    looks = '<tool_call>{"name": "member", "arguments": {"member_id": 12}}</tool_call>'
    suite = ToolCalls(environment="loans_desk")
    assert measured(suite, [row, other, *broken], [looks], tiny)["same_state"] == 1.0
    monkeypatch.setattr(find("environments", "loans_desk"), "member", lambda self, member_id: 1 / 0)
    assert measured(suite, [row, other], [looks], tiny)["same_state"] == 0.0
    assert measured(suite, [row, other], [looks], tiny)["same_calls"] == 1.0
