"""Conversations in which the assistant calls tools, checked by their effects.

The tools are executed in an environment. A conversation is kept if the environment is then in the
expected state (as in tau-bench, arXiv 2406.12045), and what must be said was said. The expected
state is that after the calls of a task, which a person or the model wrote before.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import orjson
from pydantic import Field, field_validator

from instructgen.engines import Completion, Engine, Request, Sampling
from instructgen.environments import Call, Tools, calls_of, json_object, read_turn, tools_of
from instructgen.generation.answers import find_text
from instructgen.generation.executing import EnvironmentExecutor
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Continue,
    Draft,
    Outcome,
    PromptSetup,
    SamplingOptions,
    Stage,
    Start,
    child_sample,
    completion_fault,
)
from instructgen.generation.seed_pool import Pool
from instructgen.schema.messages import Message, ToolCall, json_text
from instructgen.schema.sample import Label, Sample

PLAN, CHECK, ASSISTANT, EXECUTE = "plan", "check", "assistant", "execute"
_SHOWN = 3


class ToolDialogue(ChatMethod):
    """Plays an assistant with tools, and keeps conversations with the expected effects.

    The first drafts are the tasks of the seeds. For the others, the model plans new tasks in their
    style, with the calls that they need; plans that fail in the environment are rejected.
    """

    name = "tool_dialogue"
    stages = (
        Stage(PLAN, 0.6),
        Stage(CHECK, 0.6, role="executor"),
        Stage(ASSISTANT, 0.9),
        Stage(EXECUTE, 0.9, role="executor"),
    )
    starts_from: ClassVar[Start] = "tool_tasks"
    recipe: ClassVar[str] = "grounded"

    tools: str = Field(description="Definitions of the tools as JSON, from --tools=FILE.")
    environment: str = Field(description="Name of the environment in --environment=FILE.")
    environment_sha256: str = Field("", description="Digest of that file and of its data.")
    max_calls: int = Field(
        8, ge=1, le=100, description="Maximum number of turns in which tools are called."
    )
    parallel: int = Field(4, ge=1, le=20, description="Maximum number of calls in one turn.")
    plans: SamplingOptions = Field(
        SamplingOptions(temperature=1.0, top_p=0.95, max_tokens=400),
        description="Sampling parameters for new tasks.",
    )
    answers: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=600),
        description="Sampling parameters for the turns of the assistant.",
    )

    @field_validator("tools")
    @classmethod
    def _check_tools(cls, text: str) -> str:
        return tools_of(text).text

    def executor(self) -> Engine:
        """Return the engine that executes tools."""
        return EnvironmentExecutor(environment=self.environment)

    def fits(self, seed: Sample) -> bool:
        """Return whether a seed has the calls that it needs, all of them valid."""
        return not any(self._tools.fault(call) for call in _actions(seed)) and bool(_actions(seed))

    def first_stage(self, pool: Pool, number: int, form: PromptSetup) -> Stage:
        """Return the check of a task of the seeds, and later the plan of a new one."""
        plan, check, *_ = self.stages
        return check if number < len(pool.usable) else plan

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next task, or draw tasks as examples for a new one."""
        usable = pool.usable
        if number < len(usable):
            positions: tuple[int, ...] = (usable[number],)
            seed = pool.at(usable[number])
            sample = child_sample(pool, positions, seed.language)
            sample = replace(sample, instruction=seed.question, tools=self.tools)
            task = {"actions": [c.to_dict() for c in _actions(seed)], "mentions": _mentions(seed)}
            return Draft(number, CHECK, sample, positions, state=task)
        positions = tuple(rng.sample(usable, min(_SHOWN, len(usable))))
        sample = child_sample(pool, positions, pool.at(positions[0]).language)
        return Draft(number, PLAN, replace(sample, tools=self.tools), positions)

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for a task, for a turn of the assistant, or for the execution."""
        sample, state = draft.sample, draft.state
        template = self.template(sample.language)
        if draft.stage == CHECK:
            asked = {"calls": state["actions"], "known": [], "by_model": "planned" in state}
            return Request(orjson.dumps(asked).decode(), Sampling(), stage=CHECK)
        if draft.stage == EXECUTE:
            asked = {"calls": state["calls"], "known": state["results"], "by_model": True}
            return Request(orjson.dumps(asked).decode(), Sampling(), stage=EXECUTE)
        if draft.stage == PLAN:
            shown = "\n".join(json_text(_task(pool.at(p))) for p in draft.parents)
            prompt = template.prompt("tool_dialogue", "plan", tools=self.tools, examples=shown)
            schema = self._plan_schema() if form.structured else None
            return Request(prompt, self.plans.sampling(), schema, stage=PLAN)
        key = "system" if form.structured else "system_plain"
        system = template.text("tool_dialogue", key, tools=self.tools)
        turns = [Message("system", template.briefed(system)), *_shown(sample)]
        schema = self._turn_schema() if form.structured else None
        return Request(tuple(turns), self.answers.sampling(), schema, stage=ASSISTANT)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """Return the draft with its next turn or results, or the row at the end."""
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(draft.sample, *failed)]
        if draft.stage == PLAN:
            return [self._planned(draft, completion.text)]
        if draft.stage == ASSISTANT:
            return [self._turn(draft, completion)]
        done: dict[str, Any] = orjson.loads(completion.text)
        if "failed" in done:
            return [self.reject(draft.sample, "tool_failed", done["failed"])]
        return [self._checked(draft, done) if draft.stage == CHECK else self._executed(draft, done)]

    # -- tasks ----------------------------------------------------------------------------

    def _planned(self, draft: Draft, text: str) -> Outcome:
        plan = json_object(text)
        request = plan.get("request")
        actions = calls_of(plan.get("actions"))
        if not isinstance(request, str) or not request.strip() or not actions:
            return self.reject(draft.sample, "unreadable_plan", "the plan does not have the form")
        sample = replace(draft.sample, instruction=request.strip())
        for action in actions:
            if (fault := self._tools.fault(action)) is not None:
                return self.reject(sample, "invalid_plan", fault[1])
        state = {"actions": [a.to_dict() for a in actions], "mentions": [], "planned": True}
        return Continue(replace(draft, stage=CHECK, sample=sample, state=state))

    def _checked(self, draft: Draft, done: Mapping[str, Any]) -> Outcome:
        sample, state = draft.sample, draft.state
        errors = [r["error"] for r in done["results"] if _is_error(r)]
        if state.get("planned") and errors:
            return self.reject(sample, "plan_fails", str(errors[0]))
        fresh = {
            **state,
            "before": done["before"],
            "expected": done["after"],
            "expected_results": done["results"],
            "calls": [],
            "results": [],
            "turns": 0,
            "faults": [],
        }
        return Continue(replace(draft, stage=ASSISTANT, state=fresh))

    # -- the conversation -----------------------------------------------------------------

    def _turn(self, draft: Draft, completion: Completion) -> Outcome:
        """Add a turn of the assistant: calls, of which the valid ones are executed, or the end."""
        sample, state = draft.sample, draft.state
        calls, text = read_turn(completion.text)
        if calls is None:
            return self.reject(sample, "unreadable_turn", "a turn does not have the form")
        if not calls:
            answer = replace(sample, output=text, reasoning_content=completion.reasoning)
            return self._ended(replace(draft, sample=answer))
        if state["turns"] >= self.max_calls:
            detail = f"tools were called in more than {self.max_calls} turns"
            return self.reject(sample, "too_many_calls", detail)
        if len(calls) > self.parallel:
            return self.reject(sample, "too_many_calls", f"{len(calls)} calls in one turn")
        first = len([c for m in sample.steps for c in m.tool_calls])
        named = [
            ToolCall(call.name, json_text(call.arguments), f"call_{first + i}")
            for i, call in enumerate(calls, start=1)
        ]
        faults = [self._tools.fault(call) for call in calls]
        message = Message("assistant", text, completion.reasoning, tuple(named))
        if any(faults):
            # The loss must not cover calls that are wrong.
            message = replace(message, train=False)
        sample = replace(sample, steps=(*sample.steps, message))
        valid = [call.to_dict() for call, fault in zip(calls, faults, strict=True) if not fault]
        new = {
            **state,
            "turns": state["turns"] + 1,
            "calls": [*state["calls"], *valid],
            "waiting": [(c.id, c.name, f and f[1]) for c, f in zip(named, faults, strict=True)],
            "faults": [*state["faults"], *(f[0] for f in faults if f)],
        }
        draft = replace(draft, sample=sample, state=new)
        if not valid:
            return self._executed(draft, {"results": [], "after": state.get("after")})
        return Continue(replace(draft, stage=EXECUTE))

    def _executed(self, draft: Draft, done: Mapping[str, Any]) -> Outcome:
        """Add the results of the calls, with an error for those that are not valid."""
        state, results = draft.state, list(done["results"])
        messages = []
        for call_id, name, fault in state["waiting"]:
            result = {"error": fault} if fault else results.pop(0)
            messages.append(Message("tool", json_text(result), tool_call_id=call_id, name=name))
        sample = replace(draft.sample, steps=(*draft.sample.steps, *messages))
        new = {
            **state,
            "results": [*state["results"], *done["results"]],
            "after": done["after"],
            "waiting": [],
        }
        return Continue(replace(draft, stage=ASSISTANT, sample=sample, state=new))

    def _ended(self, draft: Draft) -> Outcome:
        """Return the row if the conversation has the expected effects."""
        sample, state = draft.sample, draft.state
        if not sample.output.strip():
            return self.reject(sample, "empty_answer", "the last turn has neither calls nor text")
        after = state.get("after") or state["before"]
        if after != state["expected"]:
            # What the assistant could not do because its calls were wrong, it did not do.
            reason = state["faults"][-1] if state["faults"] else "wrong_state"
            return self.reject(sample, reason, "the data is not in the expected state")
        if state["expected"] == state["before"] and not _looked_up(state):
            reason = state["faults"][-1] if state["faults"] else "not_looked_up"
            return self.reject(sample, reason, "what the answer says was not looked up")
        missing = [m for m in state["mentions"] if not _mentioned(m, sample.output)]
        if missing:
            return self.reject(sample, "not_mentioned", f"the answer does not contain {missing[0]}")
        failed = sum(_is_error(json.loads(m.content)) for m in sample.steps if m.role == "tool")
        labels = {"tool_calls": len(state["calls"]), "failed_calls": failed}
        for name, value in labels.items():
            sample = sample.with_label(Label(name, str(value)))
        return Accept(sample)

    @property
    def _tools(self) -> Tools:
        return tools_of(self.tools)

    def _plan_schema(self) -> dict[str, Any]:
        actions = {
            "type": "array",
            "items": self._tools.call_schema(),
            "minItems": 1,
            "maxItems": 6,
        }
        return _schema(request={"type": "string"}, actions=actions)

    def _turn_schema(self) -> dict[str, Any]:
        calls = {"type": "array", "items": self._tools.call_schema(), "maxItems": self.parallel}
        return _schema(calls=calls, message={"type": "string"})


def _schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _label(seed: Sample, name: str) -> list[Any]:
    text = next((label.value for label in seed.labels if label.name == name), "[]")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return []
    return value if isinstance(value, list) else []


def _actions(seed: Sample) -> list[Call]:
    return calls_of(_label(seed, "actions")) or []


def _mentions(seed: Sample) -> list[str]:
    return [str(text) for text in _label(seed, "mentions")]


def _task(seed: Sample) -> dict[str, Any]:
    return {"request": seed.question, "actions": [call.to_dict() for call in _actions(seed)]}


def _shown(sample: Sample) -> list[Message]:
    """Return the conversation so far, with calls and results as texts that any model reads."""
    shown = [Message("user", sample.question)]
    for message in sample.steps:
        if message.role == "assistant":
            calls = [
                {"name": c.name, "arguments": json.loads(c.arguments)} for c in message.tool_calls
            ]
            text = json_text({"calls": calls, "message": message.content})
            shown.append(Message("assistant", text))
        else:
            line = f"{message.name}: {message.content}"
            if shown[-1].role == "user":
                # Templates want the roles to alternate.
                shown[-1] = Message("user", f"{shown[-1].content}\n{line}")
            else:
                shown.append(Message("user", line))
    return shown


def _is_error(result: Any) -> bool:
    return isinstance(result, dict) and set(result) == {"error"}


def _looked_up(state: Mapping[str, Any]) -> bool:
    """Return whether each expected call was made, or one of the same tool with the same result.

    That two calls find nothing, or fail for the same reason, does not make them the same.
    """
    made = list(zip(state["calls"], state["results"], strict=True))

    def found(wanted: Mapping[str, Any], expected: Any) -> bool:
        return any(
            call["name"] == wanted["name"]
            and (
                call["arguments"] == wanted["arguments"]
                or (result and not _is_error(result) and result == expected)
            )
            for call, result in made
        )

    return all(map(found, state["actions"], state["expected_results"]))


def _mentioned(text: str, answer: str) -> bool:
    """Return whether an answer contains a text, and not only as a part of a word or number."""
    return not text.split() or find_text(text, answer, re.IGNORECASE) is not None
