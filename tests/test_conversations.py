"""Conversations with tool calls and reasoning: import, storage, export, and the loss mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.commands.export import export, export_formats
from instructgen.commands.import_data import import_data
from instructgen.commands.train import train
from instructgen.errors import ConfigError, InputError
from instructgen.filters.clean import Clean
from instructgen.formats import BadRow, read
from instructgen.formats.conversation import Reader, parts_of
from instructgen.formats.fields import trimmed
from instructgen.schema.arrow import sample_of, sample_row
from instructgen.schema.messages import Message, ToolCall, json_text
from instructgen.schema.sample import Sample
from instructgen.store import dataset as dataset_module
from instructgen.store import read_rows, read_samples
from instructgen.store.dataset import write_dataset
from instructgen.training.encode import Encoded, Encoder, Unusable
from instructgen.training.options import PromptFormat
from tests import forks
from tests.tiny_model import CHATML, make_tiny_model

TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Returns the time.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "description": "Time zone."}},
            "required": ["zone"],
        },
    },
}
CALL = ToolCall("get_time", '{"zone":"UTC"}', "c1")
ASKED = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "12:00", tool_call_id="c1")
CLOCK = Sample(
    "What time is it?",
    output="Noon.",
    history=(Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello.")),
    steps=(ASKED, RESULT),
    tools=json_text([TOOL]),
    license="MIT",
    source="clock",
    language="en",
)


def write(path: Path, *rows: object) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def one(path: Path, row: object, **options) -> Sample:
    (sample,) = read(write(path / "rows.jsonl", row), license="MIT", **options)
    assert isinstance(sample, Sample)
    return sample


# -- import -------------------------------------------------------------------------------

CALL_TEXT = '{"name": "get_time", "arguments": {"zone": "UTC"}}'
# By the form in which a project writes it: the row of the same conversation with a tool call.
FORMS = {
    "openai": {
        "messages": [
            {"role": "user", "content": "Time?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_time", "arguments": '{"zone": "UTC"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
            {"role": "assistant", "content": "Noon."},
        ],
        "tools": [TOOL],
    },
    "openai, old": {
        "messages": [
            {"role": "user", "content": "Time?"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "get_time", "arguments": '{"zone": "UTC"}'},
            },
            {"role": "function", "name": "get_time", "content": "12:00"},
            {"role": "assistant", "content": "Noon."},
        ],
        "functions": [TOOL["function"]],
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Time?"},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "observation", "value": "12:00"},
            {"from": "gpt", "value": "Noon."},
        ],
        "tools": json.dumps([TOOL["function"]]),
    },
    "hermes": {
        "conversations": [
            {
                "from": "system",
                "value": "You are a function calling AI model. You are provided with function "
                f"signatures within <tools></tools> tags. <tools>{json.dumps([TOOL])}</tools> "
                "Return <tool_call>\n{...}\n</tool_call>",
            },
            {"from": "human", "value": "Time?"},
            {"from": "gpt", "value": f"<tool_call>\n{CALL_TEXT}\n</tool_call>"},
            {"from": "tool", "value": "<tool_response>\n12:00\n</tool_response>"},
            {"from": "gpt", "value": "Noon."},
        ],
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "value": "Time?"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "tool_call", "value": CALL_TEXT}]},
            {"role": "tool", "content": [{"type": "text", "value": "12:00"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "Noon."}]},
        ],
        "tools": json.dumps([TOOL]),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tool_call_in_any_form_gives_the_same_messages(tmp_path: Path, form: str) -> None:
    sample = one(tmp_path, FORMS[form])
    assert (sample.instruction, sample.output, sample.history) == ("Time?", "Noon.", ())
    call, result = sample.steps
    assert [(c.name, json.loads(c.arguments)) for c in call.tool_calls] == [
        ("get_time", {"zone": "UTC"})
    ]
    assert (call.content, result.role, result.content) == ("", "tool", "12:00")
    assert json.loads(sample.tools) == [TOOL]


def test_a_row_that_ends_with_a_tool_call_is_kept(tmp_path: Path) -> None:
    row = {**FORMS["openai"], "messages": FORMS["openai"]["messages"][:2]}
    sample = one(tmp_path, row)
    assert (sample.output, sample.steps, sample.tool_calls) == ("", (), (CALL,))
    assert sample.messages[-1] == ASKED


@pytest.mark.parametrize(
    ("turn", "fact"),
    [
        ({"from": "function_call", "value": "get_time()"}, "message 2"),
        ({"from": "function_call", "value": '{"arguments": {}}'}, "name"),
        ({"from": "function_call", "value": '{"name": "f", "arguments": [1]}'}, "arguments of f"),
        ({"from": "gpt", "value": "<tool_call>{</tool_call>"}, "message 2"),
        ({"from": "agent", "value": "x"}, "agent"),
    ],
)
def test_a_call_that_cannot_be_read_rejects_its_row(tmp_path: Path, turn, fact: str) -> None:
    row = {"conversations": [{"from": "human", "value": "Time?"}, turn]}
    (bad,) = read(write(tmp_path / "a.jsonl", row), license="MIT", on_bad_row="reject")
    assert isinstance(bad, BadRow)
    assert fact in bad.reason
    # The text of a rejected row is stored.
    assert json.loads(bad.record) == row


def test_reasoning_is_read_from_a_field_a_part_and_tags(tmp_path: Path) -> None:
    answers = [
        {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
        {"role": "assistant", "content": "<think>\n2+2\n</think>\n\n4"},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "2+2"}, "4"]},
    ]
    for answer in answers:
        sample = one(tmp_path, {"messages": [{"role": "user", "content": "Sum?"}, answer]})
        assert (sample.output, sample.reasoning_content) == ("4", "2+2")
    alpaca = one(tmp_path, {"instruction": "Sum?", "output": "<think>2+2</think>4"})
    assert (alpaca.output, alpaca.reasoning_content) == ("4", "2+2")


def test_a_weight_of_zero_excludes_a_message_from_the_loss(tmp_path: Path) -> None:
    for flag in ({"weight": 0}, {"train": False}, {"loss_weight": 0.0}):
        messages = [
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "B.", **flag},
            {"role": "user", "content": "C?"},
            {"role": "assistant", "content": "D."},
        ]
        sample = one(tmp_path, {"messages": messages})
        assert [m.train for m in sample.messages] == [True, False, True, True]


def test_roles_of_the_user_and_system_messages_inside(tmp_path: Path) -> None:
    turns = [
        {"from": "customer", "value": "A?"},
        {"from": "system", "value": "Note."},
        {"from": "agent", "value": "B."},
    ]
    row = {"conversations": turns}
    reader = Reader({"customer": "user", "agent": "assistant"})
    assert [m.role for m in one(tmp_path, row, reader=reader).messages] == [
        "user",
        "system",
        "assistant",
    ]
    moved = one(tmp_path, row, reader=replace(reader, inner_system="move"))
    assert [m.role for m in moved.messages] == ["system", "user", "assistant"]
    assert len(moved.edits) == 1
    path = write(tmp_path / "b.jsonl", row)
    options = {"license": "MIT", "roles": ["user=customer", "assistant=agent"]}
    assert import_data(path, tmp_path / "data", **options).rows == 1
    with pytest.raises(ConfigError, match="roles"):
        import_data(path, tmp_path / "other", license="MIT", roles="customer")


# -- ids and storage ----------------------------------------------------------------------


def test_ids_of_plain_rows_have_not_changed() -> None:
    # Ids that version 0.2.0 gave to these rows; tests/format_3 has rows with a history.
    plain = Sample("Name two rivers.", output="Nile, Rhine.")
    assert plain.id == "1e5e3c808eade5af"
    assert replace(plain, rejected_output="No.").id == "7b3214dc4d310742"


def test_ids_depend_on_every_part_of_a_conversation() -> None:
    call = replace(ASKED, tool_calls=(replace(CALL, arguments='{"zone":"CET"}'),))
    variants = [
        CLOCK,
        replace(CLOCK, tools=""),
        replace(CLOCK, steps=()),
        replace(CLOCK, steps=(call, RESULT)),
        replace(CLOCK, steps=(ASKED, replace(RESULT, tool_call_id="c2"))),
        replace(CLOCK, steps=(replace(ASKED, reasoning_content="Hm."), RESULT)),
        replace(CLOCK, reasoning_content="Hm."),
        replace(CLOCK, tool_calls=(CALL,)),
        replace(CLOCK, train=False),
        replace(CLOCK, label=True),
        replace(CLOCK, label=False),
        replace(CLOCK, rejected_output="One."),
        replace(CLOCK, rejected_output="One.", rejected_tool_calls=(CALL,)),
        replace(CLOCK, rejected_output="One.", rejected_reasoning_content="Hm."),
    ]
    assert len({v.id for v in variants}) == len(variants)


def test_a_dataset_with_tools_is_the_same_in_any_order_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "_ROWS_PER_GROUP", 3)
    monkeypatch.setattr(dataset_module, "_ROWS_PER_PART", 6)
    plain = [Sample(f"q{i}", output=f"a{i}", license="MIT", source="s") for i in range(16)]
    for place in (0, 8, 16):
        rows = [*plain[:place], CLOCK, *plain[place:]]
        folder = tmp_path / str(place)
        write_dataset(folder, rows, [], lambda _: "")
        assert list(read_samples(folder)) == rows
        assert not list(folder.rglob(".*"))
        (row,) = (r for r in read_rows(folder) if r["id"] == CLOCK.id)
        messages = row["messages"]
        assert messages[4]["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}
        # A chat template may fail on a field that is null.
        assert all(value is not None for m in messages for value in m.values())
        assert row["tools"] == [TOOL]


def test_a_parquet_file_of_a_dataset_is_read_as_the_dataset(tmp_path: Path) -> None:
    rows = [CLOCK, replace(CLOCK, instruction="And now?", generators=("gpt-4",))]
    datasets = {
        "instructions": rows,
        "preferences": [
            replace(r, rejected_output="No.", rejected_tool_calls=(CALL,)) for r in rows
        ],
        "feedback": [replace(r, label=i == 0) for i, r in enumerate(rows)],
    }
    for shape, samples in datasets.items():
        folder = tmp_path / shape
        write_dataset(folder, samples, [], lambda _: "", shape=shape)
        assert list(read(folder / "data" / "part-00000.parquet")) == samples
        assert list(read(folder)) == samples
        again = import_data(folder, tmp_path / f"{shape}-again")
        assert list(read_samples(again.out)) == samples
        assert [
            sample_of(orjson.loads(orjson.dumps(sample_row(s))), folder, 1) for s in samples
        ] == samples


# -- export -------------------------------------------------------------------------------

# No tags of Hermes or of reasoning, no blank lines outside, nothing that is not text.
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0<>"), min_size=1, max_size=12
).filter(lambda t: t.strip() and t == trimmed(t))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: ToolCall(name, json_text(arguments)),
        st.sampled_from(["f", "get_time"]),
        st.dictionaries(TEXTS, JSON, max_size=2),
    ),
    min_size=1,
    max_size=2,
).map(tuple)
REASONING = st.just("") | TEXTS.map(str.strip)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A row whose conversation may have every part that a format can express."""
    history: list[Message] = []
    if draw(st.booleans()):
        history.append(Message("system", draw(TEXTS)))
    for _ in range(draw(st.integers(0, 2))):
        train = draw(st.booleans())
        history.append(Message("user", draw(TEXTS)))
        history.append(Message("assistant", draw(TEXTS), draw(REASONING), train=train))
    steps: list[Message] = []
    for _ in range(draw(st.integers(0, 2))):
        content = draw(st.just("") | TEXTS)
        steps.append(Message("assistant", content, draw(REASONING), draw(CALLS)))
        steps.append(Message("tool", draw(TEXTS)))
    return Sample(
        draw(TEXTS),
        output=draw(TEXTS),
        history=tuple(history),
        steps=tuple(steps),
        reasoning_content=draw(REASONING),
        train=draw(st.booleans()),
        tools=json_text([TOOL]) if draw(st.booleans()) else "",
        license="MIT",
        language="en",
        source="x",
    )


def conversation(sample: Sample) -> Sample:
    """The parts of a row that a file of another format contains."""
    return Sample(
        *(sample.instruction, sample.input, sample.output),
        rejected_output=sample.rejected_output,
        label=sample.label,
        history=sample.history,
        steps=sample.steps,
        reasoning_content=sample.reasoning_content,
        tool_calls=sample.tool_calls,
        train=sample.train,
        tools=sample.tools,
    )


@pytest.mark.parametrize("name", export_formats())
@given(sample=samples(), other=TEXTS, label=st.booleans(), input_=st.just("") | TEXTS)
def test_an_exported_row_is_imported_as_the_same_row(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    sample: Sample,
    other: str,
    label: bool,
    input_: str,
) -> None:
    cls = export_formats()[name]
    if cls.exports[name] == "preferences":
        sample = replace(sample, rejected_output=f"{other}!", train=True)
        sample = replace(sample, rejected_output=sample.output + other)
    elif cls.exports[name] == "feedback":
        sample = replace(sample, label=label)
    elif "input" in cls.holds:
        sample = replace(sample, input=input_)
    lost = parts_of(sample) - cls.holds
    path = tmp_path_factory.getbasetemp() / f"{name}.jsonl"
    path.write_bytes(orjson.dumps(cls.row(sample, name)) + b"\n")
    again = next(iter(read(path, license="MIT")))
    assert isinstance(again, Sample)
    if not lost:
        assert conversation(again) == conversation(sample)
        assert again.id == sample.id
    assert (again.instruction, again.output) == (sample.instruction, sample.output)


def test_fields_that_a_format_cannot_express_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    rows = [CLOCK, replace(CLOCK, history=(), steps=(), tools="", output="One.")]
    write_dataset(folder, rows, [], lambda _: "")
    result = export(folder, tmp_path / "a.jsonl", format="alpaca")
    assert result.not_written == {
        "steps": 1,
        "tools": 1,
        "tool_calls": 1,
        "tool_call_id": 1,
    }
    assert export(folder, tmp_path / "b.jsonl", format="openai").not_written == {}
    lost = export(folder, tmp_path / "c.jsonl", format="sharegpt").not_written
    assert lost == {"tool_call_id": 1}


def test_sharegpt_writes_the_entry_for_llama_factory_and_keeps_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_dataset(folder, [CLOCK], [], lambda _: "")
    info = tmp_path / "dataset_info.json"
    info.write_text('{"other": {"file_name": "o.json"}}')
    export(folder, tmp_path / "clock.jsonl", format="sharegpt")
    assert json.loads(info.read_text()) == {
        "other": {"file_name": "o.json"},
        "clock": {
            "file_name": "clock.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
    }


# -- training -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), positions=1024)


def tokenizer(folder: Path, *special: str):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    loaded.chat_template = CHATML
    return loaded


# By name of a template in TRL with generation markers: its special tokens.
TEMPLATES = {
    "qwen2_5_training": (),
    "qwen3_training": (),
    "lfm2_v2_training": ("<|tool_call_start|>", "<|tool_call_end|>"),
    "glm4moe_training": ("<|assistant|>", "<|user|>", "<|observation|>", "<|system|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_covers_the_tokens_that_the_template_marks(folder: Path, name: str) -> None:
    """The oracle is TRL's own templates, which mark what the model writes."""
    encoder = Encoder(tokenizer(folder, *TEMPLATES[name]), PromptFormat(chat_template=name))
    row = encoder.encode(CLOCK)
    assert isinstance(row, Encoded)
    marked = encoder.tokenizer.apply_chat_template(
        [m.to_dict() for m in CLOCK.messages],
        tools=[TOOL],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids = marked["input_ids"][: len(row.ids)]
    assert row.ids == ids
    # TRL also marks the line break after a turn, which is not part of the answer.
    texts = [encoder.tokenizer.decode([i]) for i in ids]
    masks = marked["assistant_masks"][: len(ids)]
    differing = [t for t, a, b in zip(texts, row.trained, masks, strict=True) if a != bool(b)]
    assert set(differing) <= {"\n"}
    text = encoder.tokenizer.decode([i for i, t in zip(row.ids, row.trained, strict=True) if t])
    assert "UTC" in text and "Noon." in text and "Hello." in text
    assert "12:00" not in text and "Returns the time." not in text and "Be brief." not in text


def test_messages_without_loss_and_rows_without_any(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder), PromptFormat(chat_template="qwen2_5_training"))
    silent = replace(ASKED, train=False)
    row = encoder.encode(replace(CLOCK, steps=(silent, RESULT)))
    assert isinstance(row, Encoded)
    text = encoder.tokenizer.decode([i for i, t in zip(row.ids, row.trained, strict=True) if t])
    assert "UTC" not in text and "Noon." in text
    last = encoder.encode(replace(CLOCK, train=False))
    assert isinstance(last, Encoded)
    text = encoder.tokenizer.decode([i for i, t in zip(last.ids, last.trained, strict=True) if t])
    assert "UTC" in text and "Noon." not in text
    none = replace(CLOCK, history=(), steps=(), train=False)
    unusable = encoder.encode(none)
    assert isinstance(unusable, Unusable) and unusable.reason == "not_trained"


def test_a_row_whose_tools_the_template_does_not_render_is_rejected(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder))
    thinking = Sample("Sum?", output="4", reasoning_content="2+2")
    bare = replace(CLOCK, tools="")
    reasons = [getattr(encoder.encode(s), "reason", None) for s in (CLOCK, bare, thinking)]
    assert reasons == [
        "tools_not_rendered",
        "tool_calls_not_rendered",
        "reasoning_content_not_rendered",
    ]
    with pytest.raises(ConfigError, match="chat-template"):
        Encoder(tokenizer(folder), PromptFormat(chat_template="qwen33"))


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)


def test_the_system_message_can_be_folded_into_the_first_user_message(
    folder: Path, tmp_path: Path
) -> None:
    template = tmp_path / "no_system.jinja"
    template.write_text(NO_SYSTEM)
    sample = Sample("Hi?", output="Yes.", history=(Message("system", "Be brief."),))
    strict = Encoder(tokenizer(folder), PromptFormat(chat_template=str(template)))
    unusable = strict.encode(sample)
    assert isinstance(unusable, Unusable)
    assert unusable.reason == "template" and "no system role" in unusable.detail
    folding = Encoder(
        tokenizer(folder), PromptFormat(chat_template=str(template), fold_system=True)
    )
    row = folding.encode(sample)
    assert isinstance(row, Encoded)
    text = folding.tokenizer.decode(row.ids)
    assert "user\nBe brief.\n\nHi?" in text and "system" not in text


def test_the_folded_template_is_saved_and_folds_prompts_with_an_input(folder: Path) -> None:
    sample = Sample("Add.", "2 and 3", "5", history=(Message("system", "Be brief."),))
    for format in ("chat", "alpaca"):
        encoder = Encoder(tokenizer(folder), PromptFormat(format=format, fold_system=True))
        row = encoder.encode(sample)
        assert isinstance(row, Encoded)
        text = encoder.tokenizer.decode(row.ids)
        assert "Be brief.\n\nAdd." in text and text.count("Be brief.") == 1
        # The trained model is used with its own template, which folds, too.
        again = Encoder(encoder.tokenizer).encode(sample)
        assert isinstance(again, Encoded) and again.ids == row.ids


def test_a_short_answer_is_found_after_the_reasoning_that_contains_it(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder), PromptFormat(chat_template="qwen3"))
    row = encoder.encode(Sample("Sum?", output="4", reasoning_content="It is 4, so I say it."))
    assert isinstance(row, Encoded)
    assert row.text.endswith("</think>\n\n4")


def test_filters_change_all_messages_and_reject_what_they_empty() -> None:
    link = "See https://example.org/x now."
    call = ToolCall("get", json_text({"url": "https://example.org/x", "deep": [link, 3]}))
    sample = Sample(
        "Read it.",
        output="Done.",
        history=(Message("system", link),),
        steps=(Message("assistant", "", link, (call,)), Message("tool", link)),
        rejected_output="https://example.org/x",
    )
    verdict = Clean(urls="mask").evaluate([sample])[0]
    assert "https" not in json.dumps([m.to_dict() for m in verdict.sample.messages])
    assert verdict.sample.rejected_output == "[URL]"
    assert verdict.rejection is None
    emptied = Clean(urls="remove").evaluate([sample])[0]
    assert emptied.rejection is not None and emptied.rejection.reason == "empty_rejected_output"
    only_calls = replace(sample, output="", tool_calls=(call,), rejected_output=None)
    assert Clean(urls="remove").evaluate([only_calls])[0].rejection is None


def test_another_answer_does_not_keep_the_calls_of_the_first() -> None:
    thinking = replace(CLOCK, tool_calls=(CALL,), reasoning_content="Hm.", train=False)
    better = thinking.with_answer("Noon.", "Night.")
    assert better.answer == Message("assistant", "Noon.")
    assert better.rejected_answer == Message("assistant", "Night.")
    assert better.prompt == CLOCK.prompt


def clock_rows(count: int, *, labels: bool = False) -> list[Sample]:
    """Rows with a tool call each; with ``labels``, answers that are alternately good and bad."""
    rows = []
    for i in range(count):
        call = ToolCall("get_time", json_text({"zone": f"UTC+{i % 12}"}), f"c{i}")
        row = replace(
            CLOCK,
            instruction=f"What time is it in zone {i}?",
            history=(),
            steps=(
                Message("assistant", "", tool_calls=(call,)),
                replace(RESULT, tool_call_id=call.id),
            ),
            output=f"It is {i % 12} o'clock.",
        )
        if labels and i % 2:
            row = replace(row, output=f"ASK {i} SOMEBODY ELSE {i}!")
        rows.append(replace(row, label=i % 2 == 0) if labels else row)
    return rows


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML with tools, in a file: the special tokens are those of the tiny model."""
    path = tmp_path_factory.mktemp("template") / "tools.jinja"
    path.write_text(
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return path


@pytest.mark.slow
def test_a_dataset_of_tool_calls_is_trained_shown_exported_and_read_by_trl(
    folder: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    data = tmp_path / "data"
    write_dataset(data, clock_rows(40), [], lambda _: "")
    options = {"model": str(folder), "chat_template": str(template), "max_length": 512}
    trained = train("sft", data, tmp_path / "m", steps=6, learning_rate=2e-3, **options)
    assert trained.facts.rows.rejected == {}
    (measure,) = trained.facts.evaluation
    assert measure.difference.value < 0
    # The trained model keeps the template.
    saved = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert saved.chat_template == template.read_text()
    words = ("train", "sft", data, "--show-masks", 1, "--model", folder)
    done = forks.command(*words, "--chat-template", template)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "⟦<call>" in shown and "⟦It is 0 o'clock." in shown and "⟦12:00" not in shown
    # Without a template that renders tools, every row is rejected, with the reason.
    with pytest.raises(InputError, match="tools_not_rendered"):
        train("sft", data, tmp_path / "n", steps=1, model=str(folder), max_length=512)
    # Other tools open the Parquet files and the export, and train on them unchanged.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    file = tmp_path / "clock.jsonl"
    export(data, file, format="trl")
    kinds = {"parquet": str(data / "data" / "*.parquet"), "json": str(file)}
    tokenizer_ = AutoTokenizer.from_pretrained(folder)
    tokenizer_.chat_template = template.read_text()
    for kind, files in kinds.items():
        rows = load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / kind))
        columns = [c for c in rows.column_names if c in ("messages", "tools")]
        args = SFTConfig(
            str(tmp_path / f"trl-{kind}"),
            max_steps=2,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            report_to=[],
            max_length=512,
        )
        trainer = SFTTrainer(
            str(folder),
            args,
            train_dataset=rows.select_columns(columns),
            processing_class=tokenizer_,
        )
        seen = trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"])
        assert '<call>{"name": "get_time"' in seen and "Returns the time." in seen
        trainer.train()
        assert trainer.state.global_step == 2


@pytest.mark.slow
def test_kto_learns_from_feedback(folder: Path, template: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, clock_rows(48, labels=True), [], lambda _: "", shape="feedback")
    result = train(
        *("kto", data, tmp_path / "m"),
        model=str(folder),
        chat_template=str(template),
        max_length=512,
        steps=20,
        batch_size=4,
        learning_rate=2e-3,
        held_out_rows=16,
    )
    (measure,) = result.facts.evaluation
    assert measure.measure == "label_accuracy"
    assert measure.after.value > 0.6
    for trainer in ("sft", "dpo", "reward"):
        with pytest.raises(InputError, match="feedback"):
            train(trainer, data, tmp_path / trainer, model=str(folder))
