"""Encoding of rows: the loss covers the answers and their end-of-turn tokens, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgen.errors import ConfigError
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample
from instructgen.training.encode import Encoded, Encoder, Unusable
from instructgen.training.options import PromptFormat
from tests.tiny_model import CHATML, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def tokenizer(folder: Path, template: str | None = CHATML):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def trained(encoder: Encoder, row: Encoded) -> str:
    """Return the text of the tokens that the loss covers."""
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


def test_the_loss_covers_answers_and_their_end_tokens(folder: Path) -> None:
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


def test_the_output_can_be_replaced_by_another_answer(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder))
    row = encoder.encode(TALK, "Seven.")
    assert encoder.tokenizer.decode(row.answer) == "Seven.<|im_end|>"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.text(min_size=1, max_size=40)), max_size=3),
    st.text(min_size=1, max_size=60),
    st.text(min_size=1, max_size=60).filter(str.strip),
)
def test_masks_are_correct_for_any_text(folder: Path, before, question: str, answer: str) -> None:
    encoder = Encoder(tokenizer(folder))
    history = [m for q, a in before for m in (Message("user", q), Message("assistant", a))]
    row = encoder.encode(Sample(question, output=answer, history=tuple(history)))
    if isinstance(row, Unusable):
        assert row.reason == "control_token"
        return
    special = encoder.tokenizer.all_special_ids
    ends = [i for i, t in zip(row.ids, row.trained, strict=True) if t and i in special]
    # One end-of-turn token per answer, and no other special token.
    assert len(ends) == sum(m.role == "assistant" for m in history) + 1
    kept = trained(encoder, row)
    earlier = "".join(f"{m.content}<|im_end|>" for m in history if m.role == "assistant")
    # Text that is not valid UTF-8 (lone surrogates) becomes the replacement character.
    assert kept == (earlier + f"{answer}<|im_end|>").encode("utf-8", "replace").decode()


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|>system", "<|pad|>"])
def test_text_with_special_tokens_is_unusable(folder: Path, text: str) -> None:
    encoder = Encoder(tokenizer(folder))
    for sample in (Sample(text, output="Yes."), Sample("Well?", output=text)):
        assert encoder.encode(sample).reason == "control_token"
    assert encoder.prompt(Sample(text, output="Yes.")).reason == "control_token"


def test_an_empty_answer_is_unusable(folder: Path) -> None:
    assert Encoder(tokenizer(folder)).encode(Sample("Well?", output=" \n")).reason == "empty_answer"


def test_the_alpaca_format_renders_the_published_prompts(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder, None), PromptFormat(format="alpaca"))
    plain = encoder.prompt(Sample("Name a fruit.", output="Fig."))
    assert plain == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a fruit.\n\n### Response:\n"
    )
    with_input = Sample("Sort them.", input="b a", output="a b")
    assert encoder.prompt(with_input) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSort them.\n\n### Input:\nb a\n\n### Response:\n"
    )
    assert trained(encoder, encoder.encode(with_input)) == "a b<|im_end|>"


def test_the_dolly_format_renders_the_published_prompt(folder: Path) -> None:
    encoder = Encoder(tokenizer(folder, None), PromptFormat(format="dolly"))
    with_input = Sample("Sort them.", input="b a", output="a b")
    assert encoder.prompt(with_input) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSort them.\n\nInput:\nb a\n\n"
        "### Response:\n"
    )
    row = encoder.encode(with_input)
    assert trained(encoder, row) == "a b\n\n### End<|im_end|>"
    # The loss covers the text that the template adds, but the evaluation does not.
    assert encoder.tokenizer.decode(row.ids[row.prompt : row.said]) == "a b"


def test_a_missing_chat_template_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tiny-model") as caught:
        Encoder(tokenizer(folder, None), name="tiny-model")
    assert "--format=alpaca" in caught.value.hint
    # No template was rendered: an error of a template is the cause of its ConfigError.
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)
    Encoder(tokenizer(folder, None), PromptFormat(format="alpaca"))


def test_a_template_without_an_end_token_is_an_error(folder: Path) -> None:
    endless = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="tiny-model") as caught:
        Encoder(tokenizer(folder, endless), name="tiny-model")
    assert "--format=alpaca" in caught.value.hint
    # The template itself renders without an error, and with the end token it is accepted.
    assert caught.value.__cause__ is None
    ended = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
    assert Encoder(tokenizer(folder, ended)).end_id


def test_earlier_answers_that_are_rendered_differently_are_context_only(folder: Path) -> None:
    # Some templates remove the reasoning of earlier turns.
    changing = CHATML.replace(
        "{{ message['content'] }}",
        "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}"
        "{{ message['content'] }}",
    )
    encoder = Encoder(tokenizer(folder, changing))
    row = encoder.encode(TALK)
    assert trained(encoder, row) == "<think></think>Six.<|im_end|>"


def test_a_row_on_which_the_template_fails_is_unusable(folder: Path) -> None:
    strict = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system messages') }}{% endif %}",
    )
    encoder = Encoder(tokenizer(folder, strict))
    assert encoder.encode(TALK).reason == "template"
    assert encoder.prompt(TALK).reason == "template"
    assert isinstance(encoder.encode(Sample("Well?", output="Yes.")), Encoded)
