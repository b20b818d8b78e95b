"""Thinking models: reasoning is separated from the answer, and has a budget of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.engines import Completion, Request, Sampling, prompt_tokens
from instructgen.engines.thinking import (
    can_think,
    opens_reasoning,
    split_reasoning,
    template_options,
)
from instructgen.engines.transformers import TransformersEngine
from instructgen.models.loading import read_tokenizer
from instructgen.schema.messages import Message
from instructgen.store import CompletionLine, Run, RunInfo, Seeds
from tests.test_openai import Server, engine_for, reply
from tests.tiny_model import CHATML, make_tiny_model

CHAT = Request((Message("user", "Hi"),), Sampling())
SCHEMA = Request((Message("user", "Hi"),), Sampling(), schema={"type": "object"})
PLAIN = Request("Hi", Sampling())
TOKENS = Request((1, 2), Sampling())
# As in the templates of Qwen3 and SmolLM3: thinking is the default, and can be turned off.
SWITCH = (
    CHATML + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
# As in the template of DeepSeek-R1: the prompt ends with the opening tag.
ALWAYS = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"


def split(
    text: str, request: Request = CHAT, *, opened: bool | None = False
) -> tuple[str, str, str]:
    done = split_reasoning(Completion(text, "stop", 1, 1), request, opened=opened)
    return done.reasoning, done.text, done.finish_reason


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>Hm.</think>\n\nHello", False, ("Hm.", "Hello", "stop")),
        ("\n<think>\nHm.\n</think>Hello", False, ("Hm.", "Hello", "stop")),
        ("<think></think>Hello", False, ("", "Hello", "stop")),
        ("<think>Hm, and", False, ("Hm, and", "", "length")),
        ("Hello", False, ("", "Hello", "stop")),
        # An answer about the tags.
        ("Write <think> first, </think> last.", False,
         ("", "Write <think> first, </think> last.", "stop")),
        ("Close it with </think>.", False, ("", "Close it with </think>.", "stop")),
        # The template wrote the opening tag.
        ("Hm.\n</think>\n\nHello", True, ("Hm.", "Hello", "stop")),
        ("Is <think> a tag?</think>Yes.", True, ("Is <think> a tag?", "Yes.", "stop")),
        ("Hm, and", True, ("Hm, and", "", "length")),
        # It may have, on a server.
        ("Hm.\n</think>\n\nHello", None, ("Hm.", "Hello", "stop")),
        ("Hello", None, ("", "Hello", "stop")),
    ],
)  # fmt: skip
def test_reasoning_is_separated(
    text: str, opened: bool | None, expected: tuple[str, str, str]
) -> None:
    assert split(text, opened=opened) == expected


@pytest.mark.parametrize("request_", [PLAIN, TOKENS])
def test_only_answers_to_messages_are_split(request_: Request) -> None:
    assert split("<think>Hm.</think>Hello", request_) == ("", "<think>Hm.</think>Hello", "stop")


def test_json_that_begins_within_open_reasoning_is_an_answer() -> None:
    assert split('{"a": 1}', SCHEMA, opened=True) == ("", '{"a": 1}', "stop")


@given(st.text(), st.text())
def test_no_text_is_lost(reasoning: str, answer: str) -> None:
    if "think>" in reasoning + answer:
        return
    found = split(f"<think>{reasoning}</think>{answer}")
    assert found == (reasoning.strip(), answer.lstrip(), "stop")


def test_the_template_gets_the_option_and_a_schema_turns_thinking_off() -> None:
    assert template_options(CHAT, "auto") == {}
    assert template_options(CHAT, "on") == {"enable_thinking": True}
    assert template_options(CHAT, "off") == {"enable_thinking": False}
    assert template_options(SCHEMA, "on") == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("template", "thinks", "opened"),
    [(CHATML, False, False), (SWITCH, True, False), (ALWAYS, True, True)],
    ids=["none", "switch", "always"],
)
def test_the_chat_template_shows_whether_a_model_thinks(
    tmp_path: Any, template: str, thinks: bool, opened: bool
) -> None:
    tokenizer = read_tokenizer(str(make_tiny_model(tmp_path / "m", template=template)))
    assert can_think(tokenizer) is thinks
    assert opens_reasoning(tokenizer, prompt_tokens(tokenizer, CHAT)) is opened
    off = tokenizer.decode(prompt_tokens(tokenizer, CHAT, enable_thinking=False))
    assert ("</think>" in off) is (template == SWITCH)


def test_a_thinking_model_gets_tokens_for_its_reasoning(tmp_path: Any) -> None:
    """A model with random weights never ends its reasoning, so it uses all of its tokens."""
    folder = make_tiny_model(tmp_path / "m", template=ALWAYS)
    request = Request((Message("user", "Hi"),), Sampling(temperature=0.0, max_tokens=4, seed=1))
    lengths = {}
    for thinking in ("auto", "off"):
        engine = TransformersEngine(model=str(folder), thinking=thinking, thinking_tokens=9)
        (completion,) = engine.complete([request])
        engine.close()
        lengths[thinking] = completion.output_tokens
        assert (completion.text, completion.finish_reason) == ("", "length")
    assert lengths["off"] == 4
    assert lengths["auto"] == 13


def message(**fields: Any) -> Any:
    choice = {"message": fields, "finish_reason": "stop"}
    return reply(200, {"choices": [choice], "usage": {}})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_server_may_separate_the_reasoning(name: str) -> None:
    server = Server(message(content="Hello", **{name: "Hm."}))
    engine, _ = engine_for(server)
    (done,) = complete_chat(engine)
    assert (done.text, done.reasoning) == ("Hello", "Hm.")


def test_a_server_may_leave_the_reasoning_in_the_text() -> None:
    server = Server(message(content="<think>Hm.</think>Hello"))
    engine, _ = engine_for(server, thinking="on")
    (done,) = complete_chat(engine)
    assert (done.text, done.reasoning) == ("Hello", "Hm.")
    (body,) = server.bodies
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert body["max_tokens"] == Sampling().max_tokens + 2048


def test_without_the_option_a_server_gets_only_standard_keys() -> None:
    server = Server(message(content="Hello", reasoning_content=None))
    engine, _ = engine_for(server)
    (done,) = complete_chat(engine)
    assert done.reasoning == ""
    (body,) = server.bodies
    assert "chat_template_kwargs" not in body
    assert body["max_tokens"] == Sampling().max_tokens


def complete_chat(engine: Any) -> list[Completion]:
    from instructgen.engines import ask

    try:
        return [completion for _, completion in ask(engine, [CHAT])]
    finally:
        engine.close()


def test_the_journal_keeps_the_reasoning(tmp_path: Any) -> None:
    info = RunInfo(5, "r", {}, Seeds("", 0), {})
    lines = [
        CompletionLine(0, "d", Completion("a", "stop", 1, 2, reasoning="Hm.")),
        CompletionLine(1, "d", Completion("a", "stop", 1, 2)),
    ]
    with Run.create(tmp_path / "run", info, []) as run:
        run.append(*lines)
    with Run.view(tmp_path / "run") as run:
        assert [line for _, line in run.lines()] == lines
    assert (tmp_path / "run" / "journal.jsonl").read_text().count("reasoning") == 1
