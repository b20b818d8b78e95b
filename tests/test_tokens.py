"""Word tokenizers: ascii equals rouge-score's tokenizer, unicode works for every script."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from instructgen.similarity import tokenize, tokens
from instructgen.similarity.tokens import Vocabulary, tokenize_all

REFERENCE = DefaultTokenizer(use_stemmer=False)


@given(st.text())
def test_ascii_equals_rouge_score(text: str) -> None:
    assert tokenize(text, "ascii") == REFERENCE.tokenize(text)


SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(
    rf"[{SPACELESS}--\p{{M}}--\p{{N}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[{SPACELESS}--\p{{M}}--\p{{N}}]]+",
    regex.V1,
)
# Scripts with and without spaces, marks, digits, and a sigma, which has another form at word ends.
MIXED = st.text(st.sampled_from("aZ9 \n.İΣσ\u0301\u0345ß漢かกั้ခ់ກี१٣ه\u200c\u064bé\ud800|_ﬀ한ᄀ"))


@given(st.text() | MIXED)
def test_unicode_words_equal_those_of_a_regular_expression(text: str) -> None:
    assert tokenize(text) == WORD.findall(unicodedata.normalize("NFC", text).lower())


@given(st.lists(st.text() | MIXED), st.sampled_from(["unicode", "ascii"]))
def test_a_text_is_split_the_same_alone_and_among_others(texts: list[str], mode: str) -> None:
    # Few texts are split one by one, many together.
    for each in (texts, texts * 25):
        vocabulary = Vocabulary()
        words, offsets = vocabulary.encode(each, mode)
        names = list(vocabulary)
        encoded = [[names[w] for w in words[a:b]] for a, b in itertools.pairwise(offsets)]
        assert encoded == tokenize_all(each, mode) == [tokenize(text, mode) for text in each]


def test_the_words_of_long_texts_are_not_kept_in_memory() -> None:
    tokenize_all(["x"])
    before = tokens._kept.cache_info().currsize
    assert [len(words) for words in tokenize_all(["é b " * 3_000] * 2)] == [6_000] * 2
    assert tokens._kept.cache_info().currsize == before


def test_more_texts_than_are_split_at_once() -> None:
    vocabulary = Vocabulary()
    words, offsets = vocabulary.encode([f"w{i} x" * (i % 2) for i in range(10_000)], "unicode")
    assert (len(words), len(offsets)) == (10_000, 10_001)
    assert set(np.diff(offsets)) == {0, 2}
    assert Vocabulary(list(vocabulary)[1:]) == vocabulary


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_both_tokenizers_agree_on_ascii_text(text: str) -> None:
    assert tokenize(text) == tokenize(text, "ascii")


@given(st.text())
def test_the_unicode_normalization_form_does_not_matter(text: str) -> None:
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(
        unicodedata.normalize("NFC", text)
    )


@given(st.text())
def test_every_letter_and_digit_is_kept(text: str) -> None:
    lowered = unicodedata.normalize("NFC", text).lower()
    expected = [c for c in lowered if unicodedata.category(c)[0] in "LN"]
    kept = [c for c in "".join(tokenize(text)) if unicodedata.category(c)[0] in "LN"]
    if not text.isascii():
        assert kept == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write NASA's plan", ["write", "nasa", "s", "plan"]),
        ("می‌روم به خانه ۱۲۳", ["می", "روم", "به", "خانه", "۱۲۳"]),
        ("اكتب رسالةً قصيرة.", ["اكتب", "رسالةً", "قصيرة"]),
        ("写一首诗 in 2024年", ["写", "一", "首", "诗", "in", "2024", "年"]),
        ("ひらがなとカナ", list("ひらがなとカナ")),
        ("สวัสดี ๑๒", ["ส", "วั", "ส", "ดี", "๑๒"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("naïve Éa b_c", ["naïve", "éa", "b", "c"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("", []),
        ("!?…", []),
    ],
)
def test_words_of_different_scripts(text: str, words: list[str]) -> None:
    assert tokenize(text) == words
