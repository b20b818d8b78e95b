"""Rows as tokens: what is trained is the answers and their ends, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgen.errors import ConfigError
from instructgen.schema.sample import Message, Sample
from instructgen.training.encode import Encoded, Encoder, Unusable
from tests.tiny_model import CHATML, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def tokenizer(folder: Path, template: str | None = CHATML):
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder)
    made.chat_template = template
    return made


def trained(encoder: Encoder, row: Encoded) -> str:
    kept = [i for i, t in zip(row.ids, row.trained, strict=True) if t]
    return encoder.tokenizer.decode(kept)


TALK = Sample(
    instruction="And three?",
    output="Six.",
    history=(
        Message("system", "Be brief."),
        Message("user", "What is two and two?"),
        Message("assistant", "Four."),
    ),
)


def test_answers_and_ends_are_trained(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder))
    row = encoder.encode(TALK)
    assert trained(encoder, row) == "Four.<|im_end|>Six.<|im_end|>"
    assert encoder.tokenizer.decode(row.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is two and two?"
        "<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n<|im_start|>user\nAnd three?"
        "<|im_end|>\n<|im_start|>assistant\nSix.<|im_end|>"
    )
    assert row.ids[: row.prompt] == encoder.ids(encoder.prompt(TALK))
    assert encoder.tokenizer.decode(row.ids[row.prompt : row.said]) == "Six."
    assert encoder.end_id == encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert row.labels.count(-100) == row.trained.count(False)


def test_an_answer_can_be_another(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder))
    row = encoder.encode(TALK, "Seven.")
    assert encoder.tokenizer.decode(row.answer) == "Seven.<|im_end|>"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.text(min_size=1, max_size=40)), max_size=3),
    st.text(min_size=1, max_size=60),
    st.text(min_size=1, max_size=60).filter(str.strip),
)
def test_masks_hold_for_any_text(folder: Path, before, question: str, answer: str) -> None:
    encoder = Encoder(tokenizer(folder))
    history = [m for q, a in before for m in (Message("user", q), Message("assistant", a))]
    row = encoder.encode(Sample(question, output=answer, history=tuple(history)))
    if isinstance(row, Unusable):
        assert row.reason == "control_token"
        return
    special = encoder.tokenizer.all_special_ids
    ends = [i for i, t in zip(row.ids, row.trained, strict=True) if t and i in special]
    # One end of turn for every answer, and no other token of the tokenizer's own.
    assert len(ends) == sum(m.role == "assistant" for m in history) + 1
    kept = trained(encoder, row)
    wanted = "".join(f"{m.content}<|im_end|>" for m in history if m.role == "assistant")
    # Bytes that are no UTF-8 (lone surrogates) become the replacement character.
    assert kept == (wanted + f"{answer}<|im_end|>").encode("utf-8", "replace").decode()


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>system", "<|pad|>"])
def test_text_that_forges_a_turn_is_refused(folder: Path, text: str) -> None:
    encoder = Encoder(tokenizer(folder))
    for sample in (Sample(text, output="Yes."), Sample("Well?", output=text)):
        assert encoder.encode(sample).reason == "control_token"
    assert encoder.prompt(Sample(text, output="Yes.")).reason == "control_token"


def test_empty_answers_are_refused(folder: Path) -> None:
    assert Encoder(tokenizer(folder)).encode(Sample("Well?", output=" \n")).reason == "empty_answer"


def test_alpaca_prompts_are_the_published_ones(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder, None), "alpaca")
    plain = encoder.prompt(Sample("Name a fruit.", output="Fig."))
    assert plain == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a fruit.\n\n### Response:\n"
    )
    given = Sample("Sort them.", input="b a", output="a b")
    assert encoder.prompt(given) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSort them.\n\n### Input:\nb a\n\n### Response:\n"
    )
    assert trained(encoder, encoder.encode(given)) == "a b<|im_end|>"


def test_dolly_prompts_are_the_published_ones(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder, None), "dolly")
    given = Sample("Sort them.", input="b a", output="a b")
    assert encoder.prompt(given) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSort them.\n\nInput:\nb a\n\n"
        "### Response:\n"
    )
    row = encoder.encode(given)
    assert trained(encoder, row) == "a b\n\n### End<|im_end|>"
    # The template's own words are learned, and are no part of what is measured.
    assert encoder.tokenizer.decode(row.ids[row.prompt : row.said]) == "a b"


def test_no_chat_template_is_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no chat template. Give --format alpaca"):
        Encoder(tokenizer(folder, None))


def test_a_template_that_ends_no_answer_is_refused(folder: Path) -> None:
    endless = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="could not teach where to stop"):
        Encoder(tokenizer(folder, endless))


def test_earlier_turns_that_are_rendered_otherwise_are_context_only(folder: Path) -> None:
    # Like templates that drop what a model thought in earlier turns.
    changing = CHATML.replace(
        "{{ message['content'] }}",
        "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ message['content'] }}",
    )
    encoder = Encoder(tokenizer(folder, changing))
    row = encoder.encode(TALK)
    assert trained(encoder, row) == "<think></think>Six.<|im_end|>"


def test_a_template_that_refuses_a_row_costs_that_row(folder: Path) -> None:
    strict = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system messages') }}{% endif %}",
    )
    encoder = Encoder(tokenizer(folder, strict))
    assert encoder.encode(TALK).reason == "template"
    assert encoder.prompt(TALK).reason == "template"
    assert isinstance(encoder.encode(Sample("Well?", output="Yes.")), Encoded)
