"""Environments, the method tool_dialogue, and the example of a loans desk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from instructgen.engines import Request
from instructgen.environments import (
    Call,
    Environment,
    SqliteEnvironment,
    ToolError,
    Tools,
    executed,
    read_tools,
    tools_of,
)
from instructgen.errors import ConfigError, EngineError
from instructgen.generation.executing import EnvironmentExecutor
from instructgen.generation.methods.tool_dialogue import ToolDialogue
from instructgen.generation.seed_pool import load_seeds, seed_format
from instructgen.plugins import load_plugin
from instructgen.schema.sample import Label, Sample
from tests.conftest import ROOT
from tests.scripted import CHAT, PLAIN, Played, play

DESK = ROOT / "examples" / "desk"
TOOLS = read_tools(DESK / "tools.json")
(Desk,) = load_plugin(DESK / "desk.py")
SEEDS, _ = load_seeds([DESK / "tasks.jsonl"], own_format=seed_format("tool_tasks"))
Actions = list[dict[str, Any]]


def method(**options: Any) -> ToolDialogue:
    return ToolDialogue(tools=TOOLS, environment="loans_desk", **options)


def task(text: str, *actions: dict[str, Any], mentions: tuple[str, ...] = ()) -> Sample:
    labels = (
        Label("actions", json.dumps(actions)),
        Label("mentions", json.dumps(mentions)),
    )
    return Sample(text, language="en", license="CC0-1.0", labels=labels)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def turn(*calls: dict[str, Any], message: str = "") -> str:
    return json.dumps({"calls": calls, "message": message})


def conversation(
    seed: Sample, turns: list[str] | Callable[[int], str], target: int = 1, **options: Any
) -> Played:
    """Play an assistant that says these turns; the environment is real."""
    said = iter(turns) if isinstance(turns, list) else (turns(i) for i in range(10**6))

    def answer(request: Request) -> str:
        # After the task of the seed, the model plans others, which are not the subject here.
        return "" if request.stage == "plan" else next(said, "")

    return play(method(**options), [seed], answer, target=target, most=60)


LEND = task("Please lend book 205 to member 12.", call("lend", member_id=12, book_id=205))
FEES = task("Does member 13 owe anything?", call("member", member_id=13), mentions=("140",))


def test_a_perfect_assistant_gives_a_whole_trainable_trajectory() -> None:
    right = [turn(call("lend", member_id=12, book_id=205)), turn(message="Done, it is due on 121.")]
    (row,) = conversation(LEND, right).rows
    assert row.instruction == LEND.instruction
    assert row.output == "Done, it is due on 121."
    assistant, result = row.steps
    assert (assistant.role, result.role) == ("assistant", "tool")
    assert [c.to_dict(text=True) for c in assistant.tool_calls] == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "lend", "arguments": '{"member_id":12,"book_id":205}'},
        }
    ]
    assert json.loads(result.content) == {"due": 121}
    assert (result.tool_call_id, result.name) == ("call_1", "lend")
    assert json.loads(row.tools) == json.loads(TOOLS)
    assert {(x.name, x.value) for x in row.labels} == {("tool_calls", "1"), ("failed_calls", "0")}
    assert row.license == "CC0-1.0"


def test_an_assistant_recovers_from_errors_and_its_wrong_calls_are_not_learned() -> None:
    turns = [
        turn(call("lend", member_id="twelve", book_id=205)),
        turn(call("borrow", member_id=12)),
        turn(call("lend", member_id=12, book_id=202)),
        turn(call("lend", member_id=12, book_id=205)),
        turn(message="Done."),
    ]
    (row,) = conversation(LEND, turns).rows
    results = [json.loads(m.content) for m in row.steps if m.role == "tool"]
    assert "twelve" in results[0]["error"]
    assert "no tool 'borrow'" in results[1]["error"]
    assert "no copy" in results[2]["error"]
    assert results[3] == {"due": 121}
    assert [m.train for m in row.steps if m.role == "assistant"] == [False, False, True, True]
    assert {x.value for x in row.labels if x.name == "failed_calls"} == {"3"}


WRONG = turn(call("lend", member_id=12, book_id="205"))
UNKNOWN = turn(call("give", member_id=12, book_id=205))
BAD: dict[str, tuple[Sample, Any, str]] = {
    "wrong argument": (LEND, [WRONG, turn(message="Done.")], "invalid_arguments"),
    "unknown tool": (LEND, [UNKNOWN, turn(message="Done.")], "unknown_tool"),
    "loops": (LEND, lambda i: turn(call("member", member_id=12)), "too_many_calls"),
    "lies about a loan": (LEND, [turn(message="I have lent the book.")], "wrong_state"),
    "lies about fees": (FEES, [turn(message="Member 13 owes 140 cents.")], "not_looked_up"),
    "says the wrong fee": (
        FEES,
        [turn(call("member", member_id=13)), turn(message="No fees.")],
        "not_mentioned",
    ),
    "asks for another member": (
        FEES,
        [turn(call("member", member_id=16)), turn(message="It is 140.")],
        "not_looked_up",
    ),
    "says the fee as a part of a number": (
        FEES,
        [turn(call("member", member_id=13)), turn(message="Member 13 owes 1,140 or 140.5.")],
        "not_mentioned",
    ),
    "says yes, with no in it": (
        task("Is Night Ferry free?", call("find_books", words="Ferry"), mentions=("no",)),
        [turn(call("find_books", words="Ferry")), turn(message="Yes, it is free right now.")],
        "not_mentioned",
    ),
    "gets the same error for another member": (
        task("Renew The Quiet Gardener.", call("renew", member_id=14, book_id=206)),
        [turn(call("renew", member_id=11, book_id=202)), turn(message="It is reserved.")],
        "not_looked_up",
    ),
    "looks up another book": (
        task("Is Songs of the North there?", call("find_books", words="Songs"), mentions=("0",)),
        [turn(call("find_books", words="Numbers")), turn(message="0 copies.")],
        "not_looked_up",
    ),
    "does too much": (
        LEND,
        [turn(call("lend", member_id=12, book_id=205), call("reserve", member_id=12, book_id=202)),
         turn(call("reserve", member_id=11, book_id=203)), turn(message="Done.")],
        "wrong_state",
    ),
    "many calls at once": (LEND, [turn(*[call("member", member_id=12)] * 9)], "too_many_calls"),
    "says nothing": (LEND, [turn()], "empty_answer"),
    "writes no form": (LEND, ['{"answer": 1}'], "unreadable_turn"),
    "calls something else": (LEND, [json.dumps({"calls": ["lend"]})], "unreadable_turn"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_only_sound_trajectories_are_accepted(name: str) -> None:
    seed, turns, reason = BAD[name]
    done = conversation(seed, turns)
    assert not done.rows
    assert done.reasons()[0] == reason


def test_other_words_that_find_the_same_are_a_look_up() -> None:
    seed = task("Is Songs of the North there?", call("find_books", words="Songs"), mentions=("0",))
    turns = [turn(call("find_books", words="of the North")), turn(message="0 copies are left.")]
    assert len(conversation(seed, turns).rows) == 1


def test_labels_of_any_form_are_no_traceback() -> None:
    for value in ("lend(12)", "12", '"x"', "[1]"):
        assert not method().fits(Sample("Lend it.", labels=(Label("actions", value),)))


def test_parallel_calls_have_one_result_each() -> None:
    seed = task(
        "Take back 206 and 207 of 14.",
        call("take_back", member_id=14, book_id=206),
        call("take_back", member_id=14, book_id=207),
    )
    both = json.loads(seed.labels[0].value)
    turns = [turn(both[0], call("lend", member_id="x", book_id=1), both[1]), turn(message="Done.")]
    (row,) = conversation(seed, turns).rows
    results = [m for m in row.steps if m.role == "tool"]
    assert [m.tool_call_id for m in results] == ["call_1", "call_2", "call_3"]
    assert [json.loads(m.content).get("days_late") for m in results] == [2, None, 0]


def test_models_may_write_calls_in_tags_or_plain_text() -> None:
    tagged = '<tool_call>\n{"name": "lend", "arguments": {"member_id": 12, "book_id": 205}}\n</tool_call>'
    said = iter([tagged, "It is lent."])
    (row,) = play(method(), [LEND], lambda r: next(said), target=1, form=PLAIN).rows
    assert row.output == "It is lent."
    assert len(row.steps) == 2
    # What follows a call is invented.
    said = iter([f"I lend it.\n{tagged}\nThe result is 7.", "It is lent."])
    (row,) = play(method(), [LEND], lambda r: next(said), target=1, form=PLAIN).rows
    assert row.steps[0].content == "I lend it."


ODD = {
    "type": "object",
    "properties": {
        "size": {"type": "string", "enum": ["s", "m"]},
        "count": {"type": ["integer", "null"]},
        "code": {"$ref": "#/$defs/code"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^a+$"}},
        "any": True,
    },
    "required": ["size", "other"],
    "$defs": {"code": {"type": "string", "minLength": 3}},
}


def test_engines_get_only_simple_parts_of_a_schema() -> None:
    tools = Tools([{"name": "a", "parameters": ODD}, {"name": "b"}])
    schema = tools.call_schema()
    Draft202012Validator.check_schema(schema)
    one, two = (each["properties"]["arguments"] for each in schema["anyOf"])
    assert one["properties"] == {
        "size": {"type": "string", "enum": ["s", "m"]},
        "count": {},
        "code": {},
        "tags": {"type": "array"},
        "any": {},
    }
    assert one["required"] == ["size"]
    assert two == {"type": "object"}


def test_new_tasks_are_planned_and_checked_in_the_environment() -> None:
    plans = iter(
        [
            {"request": "Lend 207 to 12.", "actions": [call("lend", member_id=12, book_id=207)]},
            {"request": "Lend 999 to 12.", "actions": [call("lend", member_id=12, book_id=999)]},
            {"request": "Lend it.", "actions": [call("lend", member_id="a", book_id=1)]},
            {"request": "", "actions": []},
            {"request": "Renew 207 for 14.", "actions": [call("renew", member_id=14, book_id=207)]},
        ]
    )

    def answer(request: Request) -> str:
        if request.stage == "plan":
            assert request.schema is not None
            return json.dumps(next(plans, {}))
        text = request.prompt_text().partition("[user]")[2]
        if '"due"' in text:
            return turn(message="Done.")
        if "Renew" in text:
            return turn(call("renew", member_id=14, book_id=207))
        book = 207 if "Lend 207" in text else 205
        return turn(call("lend", member_id=12, book_id=book))

    done = play(method(), [LEND], answer, target=3, form=CHAT, most=60)
    assert [row.instruction for row in done.rows] == [
        LEND.instruction,
        "Lend 207 to 12.",
        "Renew 207 for 14.",
    ]
    assert Counter(done.reasons()) == Counter(["plan_fails", "invalid_plan", "unreadable_plan"])
    # A planned task was made from the tasks that its prompt showed.
    assert done.rows[1].origin.parents == (LEND.id,)


def test_the_shipped_tasks_are_valid_and_solved_by_their_own_calls() -> None:
    assert len(SEEDS) == 30
    # Engines that enforce schemas can write these calls, and none with other names or types.
    allowed = Draft202012Validator(tools_of(TOOLS).call_schema())
    calls = [
        c for seed in SEEDS for x in seed.labels if x.name == "actions" for c in json.loads(x.value)
    ]
    assert len(calls) > 30 and all(map(allowed.is_valid, calls))
    others = (call("give", member_id=12), call("lend", member_id="12", book_id=205), call("lend"))
    assert not any(map(allowed.is_valid, others))
    assert len(tools_of(TOOLS).names) == 6
    chosen = method()
    assert all(chosen.fits(seed) for seed in SEEDS)
    of_text = {seed.instruction: seed for seed in SEEDS}

    def answer(request: Request) -> str:
        if request.stage == "plan":
            return ""
        messages = list(request.prompt)
        seed = of_text[messages[1].content.split("\n")[0]]  # type: ignore[union-attr]
        labels = {x.name: json.loads(x.value) for x in seed.labels}
        made = sum(m.role == "assistant" for m in messages)  # type: ignore[union-attr]
        if made < len(labels["actions"]):
            return turn(labels["actions"][made])
        return turn(message=f"Done: {', '.join(labels['mentions'])}.")

    done = play(chosen, SEEDS, answer, target=30, window=4)
    assert len(done.rows) == 30
    assert set(done.reasons()) <= {"unreadable_plan"}


class Clock(Environment):
    name = "clock_for_tests"
    calls = 0

    def state(self) -> int:
        return 0

    def tick(self) -> int:
        Clock.calls += 1
        return Clock.calls

    def fail(self) -> int:
        raise KeyError("x")

    def infinite(self) -> float:
        return float("inf")

    def large(self) -> int:
        return 10**20

    def one(self, number: int) -> int:
        return number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr("instructgen.generation.executing.find", lambda *_: Clock)
    executor = EnvironmentExecutor(environment="clock_for_tests")

    def value(*calls: dict[str, Any], known: tuple[Any, ...] = (), by_model: bool = False) -> Any:
        asked = {"calls": calls, "known": known, "by_model": by_model}
        (done,) = executor.complete([Request(json.dumps(asked), sampling=None)])  # type: ignore[arg-type]
        return json.loads(done.text)

    return value


@pytest.mark.parametrize("tool", ["fail", "infinite", "large"])
def test_a_tool_that_fails_costs_a_row_of_a_model_but_stops_at_a_task_of_the_user(
    tool: str, clock: Callable[..., Any]
) -> None:
    assert clock(call("one", number=1))["results"] == [1]
    assert clock(call(tool), by_model=True).keys() == {"failed"}
    with pytest.raises(EngineError, match="seeds"):
        clock(call(tool))


def test_an_environment_that_is_not_deterministic_stops_the_run(clock: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="deterministic"):
        clock(call("tick"), call("tick"), known=(0,), by_model=True)


def test_arguments_that_the_schema_allows_and_the_method_does_not_take(
    clock: Callable[..., Any],
) -> None:
    (result,) = clock(call("one", number=1, note="x"))["results"]
    assert "note" in result["error"]
    large = Call("member", {"member_id": 2**63})
    assert "large" in executed(Desk, [large])[0][0]["error"]


def test_a_tool_that_fails_is_the_reason_of_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Desk, "member", lambda self, member_id: {}[member_id])
    done = conversation(LEND, [turn(call("member", member_id=12))])
    assert done.reasons()[0] == "tool_failed"


class Half(SqliteEnvironment):
    """Changes its data before it fails."""

    name = "half_for_tests"
    script = DESK / "desk.sql"

    def pay(self, member_id: int) -> None:
        self.database.execute("update members set fees = 0 where id = ?", (member_id,))
        if member_id == 13:
            raise ToolError("the till is closed")


def test_what_a_failed_call_changed_is_undone() -> None:
    results, before, after = executed(Half, [Call("pay", {"member_id": 13})])
    assert "till" in results[0]["error"]
    assert before == after
    _, before, after = executed(Half, [Call("pay", {"member_id": 16})])
    assert before != after


def test_the_rules_of_the_desk_agree_with_each_other() -> None:
    """A book that another member has reserved is available neither to lend nor to find."""
    desk = Desk()
    desk.call("take_back", {"member_id": 14, "book_id": 206})
    (found,) = desk.call("find_books", {"words": "Quiet Gardener"})
    assert found["available"] == 0
    with pytest.raises(ToolError, match="no copy"):
        desk.call("lend", {"member_id": 11, "book_id": 206})
    assert desk.call("reserve", {"member_id": 11, "book_id": 206}) == {"place_in_queue": 2}
    with pytest.raises(ToolError, match="has this book"):
        desk.call("reserve", {"member_id": 14, "book_id": 204})
    assert desk.call("lend", {"member_id": 15, "book_id": 206}) == {"due": 121}
    desk.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '[{"name": 1}]',
        '[{"name": "a b"}]',
        '[{"name": "a"}, {"name": "a"}]',
        '[{"name": "a", "parameters": {"type": "no such type"}}]',
        '[{"name": "a", "parameters": {"$ref": "http://example.org/schema.json"}}]',
        '[{"name": "a", "parameters": {"properties": {"x": {"$ref": "file:///etc/passwd"}}}}]',
        '[{"name": "a", "parameters": {"properties": {"x": {"$ref": "#/$defs/Missing"}}}}]',
        '[{"name": "a", "parameters": null}]',
        '["a"]',
        "[" * 100_000,
    ],
)
def test_invalid_tools_have_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "tools.json").write_text(text)
    with pytest.raises(ConfigError):
        read_tools(tmp_path / "tools.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_any_arguments_are_valid_or_have_a_fault(arguments: Any) -> None:
    tools = Tools(json.loads(TOOLS))
    fault = tools.fault(Call("member", arguments))
    valid = isinstance(arguments, dict) and arguments.keys() == {"member_id"}
    valid = valid and type(arguments["member_id"]) is int
    assert (fault is None) == valid


def test_a_schema_that_refers_to_itself_ends() -> None:
    fault = Tools([{"name": "a", "parameters": {"$ref": "#"}}]).fault(Call("a", {}))
    assert fault is not None and fault[0] == "invalid_arguments"
