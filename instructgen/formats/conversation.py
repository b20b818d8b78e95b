"""Converts conversations of other projects to samples.

Reads the names that projects use for roles and keys, tool calls in the forms of OpenAI, ShareGPT
and Hermes, and reasoning in a field or in ``<think>`` tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from instructgen.config import is_deeper
from instructgen.formats.fields import MAX_DEPTH, RowError, checked, text, trimmed, truth
from instructgen.licensing.model_terms import UNNAMED_MODEL
from instructgen.schema.messages import Message, ToolCall, json_text
from instructgen.schema.sample import Edit, Sample

InnerSystem = Literal["keep", "move"]

# Names of the keys for role and content, as found in published files.
_KEYS = (
    ("role", "content"),
    ("from", "value"),
    ("from", "content"),
    ("role", "value"),
    ("role", "text"),
    ("user", "text"),
    ("speaker", "text"),
    ("speaker", "content"),
    ("speaker", "value"),
    ("role", "message"),
)
# The role names that FastChat, Axolotl and LLaMA-Factory read, and others that datasets use.
_NAMES = {
    "user": "user human prompter instruction question input 用户 人类 问 问题",
    "assistant": "assistant answer output response 助手 助理 答 回答",
    "system": "system developer 系统",
    "tool": "tool function observation ipython function_response tool_response tool_result 工具 "
    "function-response tool-response function_result",
    "call": "function_call tool_call function-call tool-call",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
# Speakers that are language models. For those in the second line, the name states which.
_MODELS = {
    **dict.fromkeys(("gpt", "model", "bot", "ai", "chatbot"), UNNAMED_MODEL),
    **{name: name for name in ("chatgpt", "bard", "bing", "claude", "gemini")},
}
_NAMED_MODEL = re.compile(r"(gpt|claude|gemini|llama|qwen|mistral|deepseek|gemma)-?[\d.][\w.-]*")
_THINK = re.compile(r"\s*<think>(.*?)</think>(?:(?:[ \t]*\r?\n)+|[ \t]*)", re.DOTALL)
# The beginning of the part of a system prompt that describes the tools and how to call them, in the
# datasets of Hermes (NousResearch/Hermes-Function-Calling) and in the chat templates of Qwen.
_TOOL_PROMPTS = ("You are a function calling AI model.", "# Tools")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TOOLS = ("tools", "functions", "available_tools", "function_definitions")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_JSON_LIST = re.compile(r"\s*\[\s*(?:\{|\[|\])")
_TEXT_PARTS = ("text", "output_text", "input_text")


# The parts of a conversation that not all formats can express. `parts_of` states which a row has.
CONVERSATION = frozenset(
    {"system", "inner_system", "history", "steps", "tools", "tool_calls", "reasoning_content"}
    | {"train", "tool_call_id", "name"}
)


@dataclass(frozen=True, slots=True)
class Reader:
    """How to read conversations: additional names of roles, and what to do with inner system turns.

    ``roles`` maps the name of a speaker to a role. ``inner_system`` states whether a system message
    after the first user message stays in its place (``keep``) or is moved to the beginning
    (``move``).
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    inner_system: InnerSystem = "keep"

    def turns(self, value: Any, field: str) -> Turns:
        """Convert a list of JSON objects to messages.

        Raises:
            RowError: the value is not a list of messages, a role is unknown, or a tool call is not
                valid JSON.
        """
        value = decoded(value)
        if not isinstance(value, list) or not value:
            raise RowError(f'"{field}" is not a list of messages.')
        messages: list[Message] = []
        speakers: list[str] = []
        edits: list[str] = []
        for number, turn in enumerate(value, start=1):
            place = f'message {number} of "{field}"'
            if not isinstance(turn, Mapping):
                raise RowError(f"{place} is not a JSON object.")
            role_key, content_key = _keys(turn)
            if role_key not in turn and (pair := _named_turns(turn)):
                # An exchange as one object, such as {"human": "Hi", "assistant": "Hello"}.
                messages += [
                    m for r, t in pair for m in _messages(r, {"content": t}, "content", place)
                ]
                continue
            role, speaker = self._role(turn.get(role_key), place)
            if role in ("assistant", "call"):
                speakers.append(speaker)
            if turn.get("name") and role in ("user", "system"):
                edits.append("names of speakers were removed")
            messages += _messages(role, turn, content_key, place)
        tools = ""
        if messages[0].role == "system":
            definitions, rest = _split_tools(messages[0].content)
            # Some datasets write one definition per line in place of a list.
            is_list = definitions.startswith("[")
            tools = tools_text(definitions if is_list else definitions.splitlines())
            messages[0] = replace(messages[0], content=rest)
        models = tuple(sorted({m for s in speakers if (m := _model(s))}))
        return Turns(tuple(messages), tools, models, tuple(dict.fromkeys(edits)))

    def sample(self, turns: Turns, tools: str = "") -> Sample:
        """Convert a conversation to a sample: its last question and answer, and all other turns.

        Consecutive messages of one role are joined, unless they contain tool calls or results.
        Empty messages, messages before the first user message, and messages after the last
        assistant message are removed. Each of these changes is recorded as an edit.

        Raises:
            RowError: no user message has an answer.
        """
        edits = list(turns.edits)
        messages, changes = self._arranged(turns.messages)
        edits += changes
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        question = max((i for i, m in enumerate(messages[:last]) if m.role == "user"), default=-1)
        if question < 0:
            raise RowError("the conversation has no user message with an answer.")
        if last < len(messages) - 1:
            after = "user message" if messages[-1].role == "user" else "message"
            edits.append(f"the last {after}, which has no answer, was removed")
        answer = messages[last]
        return Sample(
            instruction=messages[question].content,
            output=answer.content,
            history=tuple(messages[:question]),
            steps=tuple(messages[question + 1 : last]),
            reasoning_content=answer.reasoning_content,
            tool_calls=answer.tool_calls,
            train=answer.train,
            tools=turns.tools or tools,
            generators=turns.models,
            edits=tuple(Edit("import", "messages", detail) for detail in edits),
        )

    def _arranged(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """Return the messages that a sample keeps, in order, and descriptions of the changes."""
        edits = []
        first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
        system, rest = list(messages[:first]), list(messages[first:])
        inner = [m for m in rest if m.role == "system"]
        if inner and self.inner_system == "move":
            system, rest = system + inner, [m for m in rest if m.role != "system"]
            edits.append("system messages were moved to the beginning")
        # An empty answer at the end is kept: it is the answer of the row.
        kept = [m for i, m in enumerate(rest) if _filled(m) or _is_answer(rest, i)]
        if len(kept) < len(rest):
            edits.append("empty messages were removed")
        joined = list(_joined(kept))
        if len(joined) < len(kept):
            edits.append("consecutive messages of one role were joined")
        begin = next((i for i, m in enumerate(joined) if m.role in ("user", "system")), len(joined))
        if begin:
            edits.append("an assistant message before the first user message was removed")
        prompt = [m for m in system if m.content]
        return [*_joined(prompt), *joined[begin:]], edits

    def _role(self, name: Any, place: str) -> tuple[str, str]:
        """Return the role of a speaker and its normalized name."""
        speaker = name.strip().rstrip(":").strip().lower() if isinstance(name, str) else ""
        role = self.roles.get(speaker) or _ROLES.get(speaker)
        if role is None and _model(speaker):
            role = "assistant"
        if role is None:
            raise RowError(
                f"{place} has the unknown role {str(name)[:40]!r}; pass --role=user=NAME or "
                "--role=assistant=NAME."
            )
        return role, speaker


@dataclass(frozen=True, slots=True)
class Turns:
    """The messages of a conversation.

    ``tools`` is the JSON text of tool definitions that were part of the system message, ``models``
    are the models that the names of speakers state, and ``edits`` describe changes.
    """

    messages: tuple[Message, ...]
    tools: str = ""
    models: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()


def preference(better: Sample, worse: Sample) -> Sample:
    """Combine two samples that differ only in their answers into a preference.

    Raises:
        RowError: the samples differ before the answer, or are identical.
    """
    if better.prompt != worse.prompt:
        raise RowError('"chosen" and "rejected" differ before the last answer.')
    if better.answer == worse.answer:
        raise RowError('"chosen" and "rejected" are identical.')
    return replace(
        better,
        rejected_output=worse.output,
        rejected_reasoning_content=worse.reasoning_content,
        rejected_tool_calls=worse.tool_calls,
        generators=tuple(sorted({*better.generators, *worse.generators})),
    )


def messages_of(messages: Iterable[Message], *, text: bool = False) -> list[dict[str, Any]]:
    """Return messages as dicts for export; ``text`` is as in `Message.to_dict`."""
    return [message.to_dict(text=text) for message in messages]


def tools_of(sample: Sample) -> dict[str, Any]:
    """Return the field ``tools`` of an exported row, or nothing if the row has no tools."""
    return {"tools": json.loads(sample.tools)} if sample.tools else {}


def parts_of(sample: Sample) -> set[str]:
    """Return which parts of a conversation a row has that not all formats can express."""
    rejected = sample.rejected_answer
    messages = (*sample.history, *sample.steps, sample.answer, *((rejected,) if rejected else ()))
    extras = {name for message in messages for name in message.extras}
    alternates = all(
        m.role == ("user", "assistant")[i % 2]
        for i, m in enumerate(m for m in sample.history if m.role != "system")
    )
    present = {
        "input": bool(sample.input),
        "system": sample.history[:1] != () and sample.history[0].role == "system",
        "inner_system": any(m.role == "system" for m in (*sample.history, *sample.steps)[1:]),
        "history": any(m.role != "system" for m in sample.history) and alternates,
        "steps": bool(sample.steps) or not alternates,
        "tools": bool(sample.tools),
    }
    calls = [call for message in messages for call in message.tool_calls]
    return {
        *(name for name, has in present.items() if has),
        *extras,
        *({"tool_call_id"} if any(call.id for call in calls) else ()),
    }


def answer_of(content: str) -> Message:
    """Return an answer that is a single text as a message, with its reasoning and tool calls.

    Raises:
        RowError: a tool call is not valid JSON.
    """
    (message,) = _messages("assistant", {"content": content}, "content", "the answer")
    return message


def text_turns(reader: Reader, record: Mapping[str, Any], field: str, role: str) -> Turns:
    """Return the turns in a field that is a text, written by ``role``, or a list of messages.

    Raises:
        RowError: the field is missing, or is not valid.
    """
    value = record.get(field)
    if not isinstance(value, str):
        return reader.turns([value] if isinstance(value, Mapping) else value, field)
    content = text(record, field, filled=role == "user")
    return Turns((answer_of(content) if role == "assistant" else Message(role, content),))


def record_tools(record: Mapping[str, Any]) -> str:
    """Return the tool definitions that a column of the record contains, as `tools_text` does."""
    return next((tools for name in _TOOLS if (tools := tools_text(record.get(name)))), "")


def has_conversation(record: Mapping[str, Any], field: str) -> bool:
    """Return whether a field contains a list of messages, or the JSON text of such a list."""
    value = decoded(record.get(field))
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def decoded(value: Any) -> Any:
    """Return the value of a JSON list that is written as text, as in a CSV file."""
    if isinstance(value, str) and _JSON_LIST.match(value):
        try:
            return _loaded(value)
        except ValueError:
            return value
    return value


def _loaded(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError if it is not valid, or nested too deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # A text with few brackets cannot be deep.
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise ValueError("nested too deep")
    return value


def tools_text(value: Any) -> str:
    """Return the tool definitions of a row as JSON text, or an empty text if there are none.

    Args:
        value: a list of definitions, or its JSON text. A definition without ``type`` is wrapped
            in ``{"type": "function", "function": ...}``, the form that chat templates expect.

    Raises:
        RowError: the value is not a list of JSON objects with names.
    """
    if isinstance(value, str):
        value = _parsed(value, "the tool definitions are") if value.strip() else None
    if isinstance(value, Mapping):
        value = [value]
    if not value:
        return ""
    if not isinstance(value, list):
        raise RowError("the tool definitions are not a list.")
    definitions = [_parsed(v, "a tool definition is") if isinstance(v, str) else v for v in value]
    tools = []
    for definition in definitions:
        function = definition.get("function") if isinstance(definition, Mapping) else None
        if isinstance(function, Mapping) and function.get("name"):
            tools.append(definition)
        elif isinstance(definition, Mapping) and definition.get("name"):
            tools.append({"type": "function", "function": definition})
        else:
            raise RowError("a tool definition has no name.")
    return _json(tools, "the tool definitions are")


def with_tags(message: Message) -> str:
    """Return an assistant message as one text: reasoning, content, and calls in the tags of Hermes.

    `split_reasoning` and `Reader.turns` read this text.
    """
    reasoning = f"<think>\n{message.reasoning_content}\n</think>\n\n"
    calls = [
        f"\n<tool_call>\n{json.dumps(_plain_call(call), ensure_ascii=False)}\n</tool_call>"
        for call in message.tool_calls
    ]
    return "".join([reasoning if message.reasoning_content else "", message.content, *calls])


def calls_text(message: Message) -> str:
    """Return the tool calls of a message as JSON: an object, or a list if there are several."""
    calls = [_plain_call(call) for call in message.tool_calls]
    return json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)


def _plain_call(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": json.loads(call.arguments)}


def split_reasoning(content: str) -> tuple[str, str]:
    """Split ``<think>...</think>`` from the beginning of a text; return reasoning and the rest."""
    match = _THINK.match(content)
    return (match[1].strip(), content[match.end() :]) if match else ("", content)


# -- one message --------------------------------------------------------------------------


def _keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    for role, content in _KEYS:
        if role in turn and content in turn:
            return role, content
    return ("role" if "role" in turn else "from"), "content"


def _tagged(text: str, tag: str) -> tuple[list[str], str]:
    """Return the texts in ``<tag>...</tag>``, and the rest, without the line breaks before them."""
    rest, *parts = text.split(f"<{tag}>")
    texts = []
    for part in parts:
        inner, end, after = part.partition(f"</{tag}>")
        if end:
            texts.append(inner)
            rest = rest.removesuffix("\n") + after
        else:
            rest += f"<{tag}>{part}"
    return texts, rest


def _split_tools(text: str) -> tuple[str, str]:
    """Return the tool definitions that a system prompt contains, and the prompt without them.

    Only the prompts of Hermes and Qwen are recognized; other prompts are returned unchanged.
    """
    begin = min((at for start in _TOOL_PROMPTS if (at := text.find(start)) >= 0), default=-1)
    tools = text.rfind("<tools>")
    end_of_tools = text.find("</tools>", tools)
    end = text.rfind("</tool_call>")
    if not 0 <= begin < tools < end_of_tools < end:
        return "", text
    definitions = text[tools + len("<tools>") : end_of_tools].strip()
    rest = text[:begin] + text[end + len("</tool_call>") :]
    return (definitions, rest.strip()) if definitions else ("", text)


def _named_turns(turn: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the roles and texts of an object whose keys are the names of speakers."""
    pairs = [(_ROLES.get(str(k).lower(), ""), v) for k, v in turn.items()]
    known = [(role, v) for role, v in pairs if role in ("system", "user", "assistant")]
    return [(role, v) for role, v in known if isinstance(v, str) and (v or role != "system")]


def _messages(role: str, turn: Mapping[str, Any], key: str, place: str) -> Iterator[Message]:
    """Yield the message of a turn, or one message for each result that a tool turn contains."""
    parts = _Parts.of(turn.get(key), place)
    results, others = _tagged(parts.content, "tool_response")
    only_results = bool(results) and not others.strip()
    if role == "tool" or (role == "user" and only_results):
        results = results if only_results else [parts.content]
        for result in results:
            yield Message(
                "tool",
                checked(trimmed(result), place),
                tool_call_id=_word(turn.get("tool_call_id"), place),
                name=_word(turn.get("name"), place),
            )
        return
    if role not in ("assistant", "call"):
        yield Message(role, checked(trimmed(parts.content), place))
        return
    tagged, content = split_reasoning(parts.content)
    stated = (_Parts.of(turn.get(key), place).all_text for key in _REASONING)
    reasoning = "\n\n".join(dict.fromkeys(filter(None, (parts.reasoning, *stated, tagged))))
    calls = [*parts.calls, *_stated_calls(turn)]
    if role == "call":
        calls += _list(_parsed(content, f"{place} is a tool call that is"))
        content = ""
    elif "<tool_call>" in content:
        texts, content = _tagged(content, "tool_call")
        calls += [c for t in texts for c in _list(_parsed(t, f"a tool call in {place} is"))]
    yield Message(
        "assistant",
        checked(trimmed(content), place),
        reasoning_content=checked(reasoning.strip(), place),
        tool_calls=tuple(_call(call, place) for call in calls),
        train=_trained(turn),
    )


@dataclass(slots=True)
class _Parts:
    """The content of a turn: its text, and the reasoning and tool calls that it contains."""

    content: str
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)

    @property
    def all_text(self) -> str:
        """The text and the reasoning."""
        return "\n".join(text for text in (self.reasoning, self.content.strip()) if text)

    @classmethod
    def of(cls, value: Any, place: str) -> _Parts:
        """Read a text, a list of texts, or a list of typed parts (OpenAI, LLaMA-Factory)."""
        if value is None:
            return cls("")
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, list):
            is_text = isinstance(value, Mapping) and isinstance(value.get("text"), str)
            return cls(value["text"] if is_text else _json(value, f"{place} is"))
        parts, texts = cls(""), []
        for part in value:
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            inner = part if isinstance(part, str) else None
            if isinstance(part, Mapping):
                inner = next(
                    (part[k] for k in ("text", "value") if isinstance(part.get(k), str)), None
                )
            if inner is None or kind not in (*_TEXT_PARTS, "reasoning", "thinking", "tool_call"):
                raise RowError(
                    f'{place} contains a part of type "{str(kind)[:40]}" that is not text.'
                )
            if kind == "tool_call":
                # LLaMA-Factory writes calls as parts of the content.
                parts.calls += _list(_parsed(inner, f"a tool call in {place} is"))
            elif kind in ("reasoning", "thinking"):
                parts.reasoning = f"{parts.reasoning}\n{inner}".strip()
            else:
                texts.append(inner)
        parts.content = "\n".join(texts)
        return parts


def _stated_calls(turn: Mapping[str, Any]) -> list[Any]:
    calls = turn.get("tool_calls")
    if isinstance(calls, str):
        calls = _parsed(calls, "the tool calls are") if calls.strip() else None
    legacy = turn.get("function_call")
    return [*(_list(calls) if calls else ()), *([legacy] if legacy else ())]


def _call(value: Any, place: str) -> ToolCall:
    """Convert a call in any of the usual forms; the arguments may be JSON text or an object."""
    value = _parsed(value, f"a tool call in {place} is") if isinstance(value, str) else value
    function = value.get("function", value) if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name.strip():
        raise RowError(f"a tool call in {place} has no name.")
    key = next((key for key in _ARGUMENTS if key in function), None)
    unknown = function.keys() - {"name", "id", "type", "description", "index"}
    if key is None and unknown:
        raise RowError(f"the arguments of {name[:40]} in {place} have an unknown key.")
    arguments = function.get(key) if key else None
    if isinstance(arguments, str) and arguments.strip():
        arguments = _parsed(arguments, f"the arguments of {name[:40]} in {place} are")
    arguments = arguments or {}
    if not isinstance(arguments, Mapping):
        raise RowError(f"the arguments of {name[:40]} in {place} are not a JSON object.")
    text = _json(dict(arguments), f"the arguments of {name[:40]} in {place} are")
    return ToolCall(_word(name, place), text, _word(value.get("id"), place))


def _trained(turn: Mapping[str, Any]) -> bool:
    """Return whether the loss covers a message; a weight of zero means that it does not."""
    flags = (truth(turn.get(name)) for name in ("train", "loss"))
    weights = (turn.get(name) for name in ("weight", "loss_weight", "loss_mask"))
    return not any(flag is False for flag in flags) and not any(truth(w) is False for w in weights)


def _filled(message: Message) -> bool:
    return bool(message.content or message.tool_calls or message.role == "tool")


def _is_answer(messages: Sequence[Message], index: int) -> bool:
    """Return whether a message is the last one and answers a user message or a tool result."""
    before = messages[index - 1].role if index else ""
    is_last = index == len(messages) - 1 and messages[index].role == "assistant"
    return is_last and before in ("user", "tool")


def _joined(messages: Iterable[Message]) -> Iterator[Message]:
    """Join consecutive messages of one role that consist only of text."""
    for (_, plain, _), group in groupby(messages, key=lambda m: (m.role, m.plain, m.train)):
        if not plain:
            yield from group
            continue
        first, *others = group
        content = "\n\n".join(m.content for m in (first, *others) if m.content)
        yield replace(first, content=content)


def _model(speaker: str) -> str:
    """Return the name of the model that a speaker's name states, or an empty text."""
    return _MODELS.get(speaker) or (speaker if _NAMED_MODEL.fullmatch(speaker) else "")


# -- JSON ---------------------------------------------------------------------------------


def _parsed(value: str, subject: str) -> Any:
    try:
        return _loaded(value)
    except ValueError:
        raise RowError(f"{subject} not valid JSON.") from None


def _json(value: Any, subject: str) -> str:
    try:
        return checked(json_text(value), "the field")
    except (ValueError, TypeError, RecursionError):
        raise RowError(f"{subject} not valid JSON.") from None


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _word(value: Any, place: str) -> str:
    """Return a name or an id as text, or an empty text if there is none."""
    return checked(str(value).strip(), f"a name or id in {place}") if value is not None else ""
