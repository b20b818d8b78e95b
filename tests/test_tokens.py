"""Word tokens: equal to rouge-score's in ascii mode, sound for every script in unicode mode."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from instructgen.similarity import tokenize

REFERENCE = DefaultTokenizer(use_stemmer=False)


@given(st.text())
def test_ascii_equals_rouge_score(text: str) -> None:
    assert tokenize(text, "ascii") == REFERENCE.tokenize(text)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_modes_agree_on_ascii(text: str) -> None:
    assert tokenize(text) == tokenize(text, "ascii")


@given(st.text())
def test_composition_does_not_matter(text: str) -> None:
    assert tokenize(unicodedata.normalize("NFD", text)) == tokenize(
        unicodedata.normalize("NFC", text)
    )


@given(st.text())
def test_every_letter_and_digit_is_kept(text: str) -> None:
    lowered = unicodedata.normalize("NFC", text).lower()
    wanted = [c for c in lowered if unicodedata.category(c)[0] in "LN"]
    got = [c for c in "".join(tokenize(text)) if unicodedata.category(c)[0] in "LN"]
    if not text.isascii():
        assert got == wanted


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
def test_scripts(text: str, words: list[str]) -> None:
    assert tokenize(text) == words
