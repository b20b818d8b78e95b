"""Tests of the filters: each rejects bad rows with its reason, and keeps good rows."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from instructgen.filters import Filter, ScoringFilter, SelectingFilter, Stage
from instructgen.filters.chain import Chain, Unscored
from instructgen.filters.clean import Clean
from instructgen.filters.control_tokens import ControlTokens
from instructgen.filters.frame_quota import FrameQuota
from instructgen.filters.instance import InstanceFilter
from instructgen.filters.length import Length
from instructgen.filters.near_duplicate import NearDuplicate
from instructgen.filters.novelty import Novelty
from instructgen.filters.refusal import Refusal
from instructgen.filters.repetition import Repetition, repeated_share
from instructgen.filters.script import Script
from instructgen.filters.semantic_duplicate import SemanticDuplicate
from instructgen.filters.wording import Wording
from instructgen.plugins import classes
from instructgen.resources import word_list
from instructgen.schema.messages import Message
from instructgen.schema.sample import Rejection, Sample, Score
from instructgen.similarity import RougeLIndex

PAPER = Wording(
    lists=("not_for_text_models",), starts=("Write a program",), first_character="ascii"
)


def reason_code(
    f, instruction: str = "A plain task to do", input_: str = "", output: str = "Done.", **kw
):
    """Return the reason code for which the filter rejects a sample, or None."""
    rejection = f.reason(Sample(instruction, input_, output, **kw))
    return rejection and rejection.reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [(0, "too_short"), (3, "too_short"), (4, None), (150, None), (151, "too_long")],
)
@pytest.mark.parametrize("counting", ["whitespace", "unicode"])
def test_length(words: int, reason: str | None, counting: str) -> None:
    assert reason_code(Length(words=counting), " ".join(["word"] * words)) == reason


def test_length_counts_words_in_a_script_without_spaces() -> None:
    assert reason_code(Length(), "请写一首关于秋雨的短诗。") is None
    assert reason_code(Length(words="whitespace"), "请写一首关于秋雨的短诗。") == "too_short"


@pytest.mark.parametrize("word", word_list("not_for_text_models"))
def test_wording_rejects_whole_words_of_the_paper(word: str) -> None:
    assert reason_code(PAPER, f"Please {word} the thing") == "word"
    assert reason_code(PAPER, f"Please {word.upper()}, now") == "word"
    assert reason_code(PAPER, f"Please {word}ology the thing") is None


def test_the_word_lists_of_the_papers_are_complete() -> None:
    paper = "image images graph graphs picture pictures file files map maps draw plot".split()
    assert set(word_list("not_for_text_models")) == {*paper, "go to"}
    alpaca = {"video", "audio", "music", "flowchart", "diagram"}
    assert set(word_list("not_for_text_models_alpaca")) == alpaca


@pytest.mark.parametrize(
    ("text", "paper", "default"),
    [
        ("Write a program that adds", "start", "start"),
        ("(Optional) add numbers", "first_character", "first_character"),
        ("«Citer» une phrase", "first_character", "first_character"),
        ("Écris un poème court", "first_character", None),
        ("写一首诗", "first_character", None),
        ("¿Qué hora es en Lima?", "first_character", None),
        ("1 plus 1 is what?", None, None),
        ("write a program in lower case", None, None),
    ],
)
def test_wording_rejects_beginnings(text: str, paper: str | None, default: str | None) -> None:
    any_script = PAPER.model_copy(update={"first_character": "no_punctuation"})
    assert reason_code(PAPER, text) == paper
    assert reason_code(any_script, text) == default


def test_novelty_reports_the_nearest_instruction() -> None:
    f = Novelty(threshold=0.7)
    seed = Sample("Write a short poem about autumn rain")
    f.remember(seed)
    rejection = f.reason(Sample("Write a short poem about autumn leaves"))
    assert rejection is not None
    assert (rejection.reason, rejection.nearest) == ("too_similar", seed.id)
    assert rejection.score == pytest.approx(12 / 14)
    assert reason_code(f, "Explain how a sewing machine forms a stitch") is None


def test_semantic_duplicate_distinguishes_duplicates_and_paraphrases() -> None:
    pytest.importorskip("sentence_transformers")
    f = SemanticDuplicate()
    seeds = [
        Sample("Who is the best golfer to ever play the game?"),
        Sample("What is the largest employer in the world?"),
        Sample("با توجه به متن بگو هر نفر کدام ساز را می‌نوازد"),
    ]
    for seed in seeds:
        f.remember(seed)
    paraphrase = f.reason(Sample("Who is the greatest golfer ever?"))
    assert paraphrase is not None
    assert (paraphrase.reason, paraphrase.nearest) == ("paraphrase", seeds[0].id)
    assert 0.9 < paraphrase.score < 1
    assert "ROUGE-L" in paraphrase.detail
    assert reason_code(f, "Who is the largest employer in the world?") == "duplicate"
    assert reason_code(f, "What is the largest lake in the world?") is None
    # The model cannot read Persian: all Persian texts have similar embeddings.
    assert reason_code(f, "برنامهٔ هفتگی کلاس‌ها را به جدول بنویس") is None


def test_frame_quota_limits_instructions_per_frame() -> None:
    pytest.importorskip("sentence_transformers")
    f = FrameQuota(quota=2)
    for text in ("What is a Husky?", "What is the largest employer in the world?"):
        f.remember(Sample(text))
    assert reason_code(f, "What is a sitcom?") is None
    f.remember(Sample("What is a sitcom?"))
    full = f.reason(Sample("What is a mitochondrion?"))
    assert full is not None
    assert (full.reason, full.score) == ("same_frame", 0.75)
    assert re.search(r"\b2\b", full.detail)
    assert reason_code(f, "Who is the largest employer in the world?") == "duplicate"
    assert reason_code(f, "Name three fruits.") is None


# Real control tokens of ten model families.
TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>",
    "<|begin_of_text|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|channel|>",
    "<|message|>", "<|return|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>",
    "<end_of_turn>", "<bos>", "<eos>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "[TOOL_CALLS]", "[gMASK]", "<sop>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|fim_prefix|>", "<extra_id_0>",
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_control_tokens_are_rejected_in_every_field(token: str, field: str) -> None:
    texts = {"instruction": "Do it", "input": "", "output": "Yes"}
    texts[field] += f" {token} more"
    rejection = ControlTokens().reason(Sample(**texts))
    assert rejection is not None
    assert rejection.reason == "control_token"
    assert field in rejection.detail


@given(
    st.lists(st.text("<>|[]^-&~a# ", min_size=1, max_size=3), max_size=3),
    st.lists(st.text("<>|[]^-&~ab# \0", max_size=9), min_size=3, max_size=3),
)
def test_control_tokens_are_found_in_each_field_alone(words: list[str], texts: list[str]) -> None:
    """Two fields that contain a token only when they are joined are kept."""
    f = ControlTokens(words=words)
    alone = [f.reason(Sample("", text)) for text in texts]
    together = f.reason(Sample(*texts))
    assert (together is None) == all(r is None for r in alone)
    for text, rejection in zip(texts, alone, strict=True):
        assert rejection is not None or not any(w in text for w in words)


@pytest.mark.parametrize(
    "text",
    ["a <b> c", "x < y | z > w", "[INSTALL]", "<|", "if a<|b", "List[int] | None", "a | b || c"],
)
def test_similar_text_is_not_a_control_token(text: str) -> None:
    assert reason_code(ControlTokens(), output=text) is None


def test_the_turn_tokens_of_the_packaged_model_are_rejected() -> None:
    """Check every special token of a real tokenizer."""
    transformers = pytest.importorskip("transformers")
    from instructgen.errors import EngineError
    from instructgen.models.folders import prepare_embedded

    try:
        folder = prepare_embedded()
    except EngineError:
        pytest.skip("the included model is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    special = [t for t in special if t.startswith("<")]
    assert len(special) >= 3
    missed = [t for t in special if reason_code(ControlTokens(), output=f"a {t} b") is None]
    # Tokens of repository metadata, such as <repo_name>, exist in this model family only.
    # None of them begins or ends a turn.
    assert not [t for t in missed if "im_" in t or "end" in t]


def test_near_duplicate_compares_words_in_any_order() -> None:
    f = NearDuplicate()
    first = Sample("Name three fruits that grow in Spain.", "", "Oranges, lemons and olives.")
    f.remember(first)
    reordered = Sample("Name three fruits that grow in Spain", "", "Olives, lemons and oranges")
    rejection = f.reason(reordered)
    assert rejection is not None
    assert (rejection.reason, rejection.score, rejection.nearest) == (
        "near_duplicate",
        1.0,
        first.id,
    )
    other = Sample("Name three fruits that grow in Norway.", "", "Apples, plums, cherries.")
    assert f.reason(other) is None
    # Short rows with different outputs are kept.
    f.remember(Sample("Say yes.", "", "Yes"))
    assert reason_code(f, "Say no.", output="No") is None
    assert reason_code(f, "Say YES!", output="yes") == "near_duplicate"


def test_an_output_that_repeats_the_instruction_is_rejected() -> None:
    task = "You can't make this cake without chocolate!"
    output = "You can't make this cake without chocolate"
    assert reason_code(Repetition(), instruction=task, output=output) == "repeats_instruction"
    assert reason_code(Repetition(), instruction=task, output="With carob you can.") is None


def test_repetition() -> None:
    assert reason_code(Repetition(), output="the same four words " * 6) == "repetition"
    assert reason_code(Repetition(), output="Sunset\nOutput: Sunset\n" * 8) == "repetition"
    assert reason_code(Repetition(), output="short short short") is None
    prose = (
        "Bread rises because yeast turns sugar into gas, which the dough holds in small bubbles; "
        "the longer it rests, the more of them there are, and the lighter the loaf becomes."
    )
    assert reason_code(Repetition(), output=prose) is None


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(1, 5))
def test_repeated_share_is_between_zero_and_one(words: list[str], n: int) -> None:
    share = repeated_share(words, n)
    assert 0 <= share <= 1
    if len(set(words)) == len(words):
        assert share == 0
    if words:
        assert repeated_share(words * 3, n) >= (2 / 3 if len(words) >= n else 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m unable to open links.", "refusal"),
        ("As an AI language model, I have no feelings.", "refusal"),
        ("很抱歉，我不能帮助你。", "refusal"),
        ("متأسفم، نمی‌توانم کمک کنم.", "refusal"),
        ("The waiter said he was sorry, but the soup was cold.", None),
        ("x " * 150 + "as an AI", None),
    ],
)
def test_refusal(text: str, reason: str | None) -> None:
    assert reason_code(Refusal(), output=text) == reason


@pytest.mark.parametrize(
    ("text", "output", "reason"),
    [
        ("a", "a", "output_is_input"),
        ("a", " a ", "output_is_input"),
        ("a", " ", "empty_output"),
        ("a", "b:", "ends_in_colon"),
        ("a：", "b", "ends_in_colon"),
        ("a", "b", None),
        ("", "b", None),
    ],
)
def test_instance(text: str, output: str, reason: str | None) -> None:
    assert reason_code(InstanceFilter(), input_=text, output=output) == reason


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("Write a poem", "fa", "other_script"),
        ("یک شعر بنویس", "fa", None),
        ("یک شعر بنویس", "en", "other_script"),
        ("写一首 poem 诗歌吧", "zh", None),
        ("Écris un poème", "fr", None),
        ("Anything goes", "tlh", None),
        ("123", "zh", None),
    ],
)
def test_script(text: str, language: str, reason: str | None) -> None:
    assert reason_code(Script(), text, language=language) == reason


def test_every_filter_and_key_is_documented() -> None:
    for name, cls in classes("filters").items():
        assert cls.name == name == cls.__module__.rsplit(".", 1)[-1]
        assert cls.__doc__
        for key, field in cls.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_a_chain_filters_by_stage_and_stops_at_the_first_rejection() -> None:
    chain = Chain([Length(), InstanceFilter(), ControlTokens()])
    assert [f.name for f in chain.at("instruction")] == ["length", "control_tokens"]
    assert [f.name for f in chain.at("row")] == ["instance", "control_tokens"]
    sample = Sample("too short <s>", "", "")
    (verdict,) = chain.evaluate([sample], ("instruction",))
    assert verdict.rejection is not None
    assert verdict.rejection.filter == "length"
    (verdict,) = chain.evaluate([sample], ("row", "instruction"))
    assert verdict.rejection is not None
    assert verdict.rejection.filter == "instance"
    assert chain.evaluate([], ("instruction",)) == []


class Remembered(Filter):
    """Keeps every sample, and lists those that all filters kept."""

    name = "remembered"
    scope = "both"

    _seen: list[Sample] = PrivateAttr(default_factory=list)

    def reason(self, sample: Sample) -> Rejection | None:
        return None

    def remember(self, sample: Sample) -> None:
        self._seen.append(sample)


class Twice(Novelty):
    """Compares instructions at both stages; only short ones can be compared."""

    name = "twice"
    scope = "both"
    max_characters: ClassVar[int] = 24


class Known(ScoringFilter):
    """Has bounds for a score that rows have or do not have; it computes none."""

    name = "known"

    @property
    def score_name(self) -> str:
        return "known"

    def scores(self, samples: Sequence[Sample]) -> list[Score]:
        raise AssertionError("a chain computes no score")


CHAIN: list[Callable[[], Filter]] = [
    lambda: Novelty(threshold=0.6),
    lambda: NearDuplicate(threshold=0.5),
    lambda: Twice(threshold=0.8, tokenizer="ascii", compatible="rouge-score"),
    lambda: Clean(urls="remove"),
    lambda: InstanceFilter(),
    lambda: Length(min_words=1, max_words=6),
    lambda: Known(min=0.5),
]
WORDS = st.lists(
    st.sampled_from(["a", "b", "c", "d", "e", "word.[3]", "http://x.y/z", "\n"]), max_size=8
).map(" ".join)
SAMPLES = st.builds(
    lambda instruction, input_, output, score: Sample(
        instruction, input_, output, scores=() if score is None else (Score("known", score),)
    ),
    WORDS,
    WORDS | st.just(""),
    WORDS | st.just("Sure, here it is.\na b c"),
    st.sampled_from([0.9, 0.9, 0.1, None]),
)


def check_block(
    order: Sequence[int], stages: Sequence[Stage], blocks: Sequence[Sequence[Sample]]
) -> None:
    """Evaluate blocks at once and one by one, and compare the verdicts and what is remembered."""
    together, alone = (Chain([*(CHAIN[i]() for i in order), Remembered()]) for _ in range(2))
    for samples in blocks:
        expected = [alone.evaluate([sample], stages)[0] for sample in samples]
        got = together.evaluate(samples, stages)
        # Filters have the same fields, so that verdicts without a score are equal too.
        assert got == expected
    seen = [chain.filters[-1]._seen for chain in (together, alone)]
    assert seen[0] == seen[1]
    for sample in (s for samples in blocks for s in samples):
        for one, other in zip(together.filters, alone.filters, strict=True):
            if not isinstance(one, ScoringFilter):
                assert one.reason(sample) == other.reason(sample)


STAGES: list[tuple[Stage, ...]] = [("instruction",), ("row",), ("instruction", "row")]


@given(
    st.permutations(range(len(CHAIN))),
    st.sampled_from(STAGES),
    st.lists(st.lists(SAMPLES, max_size=6), max_size=3),
    st.data(),
)
def test_samples_are_evaluated_at_once_as_one_by_one(
    order: list[int],
    stages: tuple[Stage, ...],
    blocks: list[list[Sample]],
    data: st.DataObject,
) -> None:
    for samples in blocks:
        if samples:
            # The same sample, and parts of it, occur again in its block.
            again = data.draw(st.sampled_from(samples))
            at = data.draw(st.integers(0, len(samples)))
            samples.insert(at, data.draw(st.sampled_from([again, Sample(again.instruction)])))
    check_block(order, stages, blocks)


@pytest.mark.parametrize("stages", STAGES)
def test_many_samples_are_evaluated_at_once_as_one_by_one(stages: tuple[Stage, ...]) -> None:
    """From 25 texts on, novelty searches them with an index."""
    rng = random.Random(len(stages))
    words = "abcdefghijklmn"
    samples: list[Sample] = []
    for _ in range(120):
        if samples and rng.random() < 0.5:
            text = rng.choice(samples).instruction.split()
            text[rng.randrange(len(text))] = rng.choice(words)
        else:
            text = rng.choices(words, k=rng.randint(1, 7))
        score = (Score("known", rng.random()),)
        samples.append(Sample(" ".join(text), "", " ".join(text[::-1]) + ".[1]", scores=score))
    order = rng.sample(range(len(CHAIN)), len(CHAIN))
    check_block(order, stages, [samples[:24], samples[24:49], samples[49:], samples[:30]])


def test_a_row_without_a_score_is_returned_with_its_filter() -> None:
    chain = Chain([Clean(), NearDuplicate(), Known(min=0.5), Remembered()])
    row = Sample("Name a river", "", "The Nile.[1]")
    (unscored,) = chain.evaluate([row], ("row",))
    assert isinstance(unscored, Unscored)
    assert unscored.filter is chain.filters[2]
    assert unscored.sample.output == "The Nile."
    assert chain.filters[3]._seen == []
    verdicts = [
        chain.evaluate([unscored.sample.with_score(Score("known", value))], ("row",))[0]
        for value in (0.4, 0.6, 0.6)
    ]
    assert [v.rejection and v.rejection.reason for v in verdicts] == [
        "too_low",
        None,
        "near_duplicate",
    ]


ABC = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)
TEN = st.lists(st.sampled_from("ab"), min_size=10, max_size=10).map(" ".join)
# Their ROUGE-L F-measure is exactly 0.7, but 0.7000000000000001 in floating point.
EXACT = ["a b c d e f g h i j", "a b c d e f g x y z"]


@given(
    st.lists(ABC | TEN | st.sampled_from(["", "...", "é 漢字 ab", *EXACT]), max_size=9),
    st.sampled_from([0.2, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0]),
    st.sampled_from(["unicode", "ascii"]),
    st.sampled_from([None, "rouge-score"]),
    st.booleans(),
)
@example(EXACT, 0.7, "unicode", None, False)
@example(EXACT, 0.7, "ascii", "rouge-score", False)
@example(["", "", "a", "a"], 1.0, "unicode", "rouge-score", True)
def test_pairs_among_texts_equal_those_of_an_index(
    texts: list[str], threshold: float, tokenizer: str, compatible: str | None, used: bool
) -> None:
    settings = (threshold, tokenizer, compatible)
    index, other = RougeLIndex(*settings), RougeLIndex(*settings)
    index.add(texts)
    pairs = index.pairs(texts)
    before = pairs.row < pairs.text
    if used:
        # The rows of the index are not compared.
        other.add(["a b c", *texts])
    among = other.among(texts)
    for got, expected in zip(among, pairs, strict=True):
        assert got.tolist() == expected[before].tolist()
        assert got.dtype == expected.dtype
    f = Novelty(threshold=threshold, tokenizer=tokenizer, compatible=compatible)
    for got, expected in zip(f.pairs_among(texts), among, strict=True):
        assert got.tolist() == expected.tolist()


# Arguments of filters with required keys.
REQUIRED = {
    "diversity": {"rows": 1},
    "label": {"of": "status", "allowed": ("ok",)},
    "score": {"of": "quality", "min": 0.5},
    "topic": {"topics": ("weapons",)},
}


def build_filters() -> list[Filter]:
    # Filters that need a language model are tested in test_curation.py and test_row_judge.py.
    models = {"ifd", "perplexity", "reward", "judge"}
    return [
        cls(**REQUIRED.get(name, {}))
        for name, cls in classes("filters").items()
        if name not in models
    ]


@given(st.text(max_size=200))
# A digit that is newer than Python's table of characters.
@example("\U00011de0")
def test_no_filter_fails_on_any_text(text: str) -> None:
    sample = Sample(text, text, text, language="en", history=(Message("user", text),))
    for f in build_filters():
        if isinstance(f, SelectingFilter):
            f.select([sample, sample])
        else:
            f.evaluate([sample])
            f.remember(sample)


def test_long_texts_are_filtered_within_a_time_limit() -> None:
    start = time.perf_counter()
    for text in ("a" * 200_000, "a " * 100_000, "<|" * 100_000, "(" * 100_000):
        for f in build_filters():
            if not isinstance(f, SelectingFilter):
                f.evaluate([Sample(text, text, text, language="en")])
    assert time.perf_counter() - start < 30
