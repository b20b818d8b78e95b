"""Find benchmark prompts in texts by comparing words. Meanings are not compared.

One in three benchmark prompts is shorter than the usual n-grams of 13 words, so comparing n-grams
is not enough. The search applies three tests in this order: the text has the same words as the
prompt; the text contains a minimum fraction of the prompt's n-grams; the text contains, in order
and close together, a minimum fraction of the number of the prompt's words and a minimum fraction
of their total weight. Rare words have higher weights. This prevents false matches of common
phrases: "What is a X?" shares most of its words with "What is a Y?", but these weigh little.

Words alone do not distinguish short prompts. A text that has the same words as a prompt must also
have its numbers, operators and negations in order ("12 * 5" is not "12 + 5"). A text that contains
most words of a prompt without n-grams must contain its rarest words, too: "What is the capital of
Spain?" is not "What is the capital of France?".
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from instructgen.similarity.distinctions import (
    contains_exactly,
    distinctions,
    fold,
    may_be_duplicates,
)
from instructgen.similarity.tokens import tokenize, tokenize_all

if TYPE_CHECKING:
    from instructgen.similarity.alignment import Numbers

# The last test does not look for shorter prompts.
_MIN_WORDS = 5
_TEXTS_AT_ONCE = 1024


class BenchmarkPrompt(NamedTuple):
    """A prompt of a benchmark: the benchmark's name, the prompt's location in it, and the text."""

    benchmark: str
    place: str
    text: str


class PromptMatch(NamedTuple):
    """A benchmark prompt that was found in a text.

    ``tier`` is the test that found the prompt: ``equal`` (the same words), ``ngrams`` (enough
    n-grams) or ``words`` (enough words, in order and close together). ``share`` is the fraction
    of the prompt that was found, from 0 to 1.
    """

    prompt: BenchmarkPrompt
    tier: str
    share: float


class BenchmarkPrompts:
    """Index of benchmark prompts that finds a prompt that a text contains.

    Args:
        prompts: benchmark prompts to look for; prompts without words are ignored.
        background: additional texts, used only to count how common each word is.
        ngram: number of words in an n-gram; shorter prompts have no n-grams.
        ngram_share: minimum fraction of a prompt's n-grams that a matching text contains.
        words_share: minimum fraction of a prompt's words that a matching text contains, in
            order and close together.
        weight_share: minimum fraction of the total weight of a prompt's words that a matching
            text contains. A text must reach both ``words_share`` and ``weight_share``. The weight
            of a word is the logarithm of the inverse of the fraction of texts that contain it.
    """

    def __init__(
        self,
        prompts: Sequence[BenchmarkPrompt],
        background: Iterable[str],
        ngram: int,
        ngram_share: float,
        words_share: float,
        weight_share: float,
    ) -> None:
        from scipy.sparse import csr_matrix

        tokens = tokenize_all([fold(p.text) for p in prompts])
        self.prompts = [p for p, words in zip(prompts, tokens, strict=True) if words]
        self._distinctions = [distinctions(p.text) for p in self.prompts]
        tokens = [words for words in tokens if words]
        self._ngram, self._ngram_share = ngram, ngram_share
        self._words_share, self._weight_share = words_share, weight_share
        self._equal: dict[tuple[str, ...], list[int]] = defaultdict(list)
        # In scripts without spaces, each character is a word, and words have two characters or so.
        self._sizes = [sum(0.5 if len(w) == 1 and not w.isascii() else 1.0 for w in words)
                       for words in tokens]  # fmt: skip
        self._grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._gram_counts: list[int] = []
        for i, words in enumerate(tokens):
            self._equal[tuple(words)].append(i)
            grams = self._grams_of(words)
            self._gram_counts.append(len(grams))
            for gram in grams:
                self._grams[gram].append(i)
        documents = [*tokens, *(tokenize(fold(text)) for text in background)]
        document_counts = Counter(w for words in documents for w in set(words))
        self._numbers = {w: n for n, w in enumerate(dict.fromkeys(w for c in tokens for w in c), 1)}
        weight = np.zeros(len(self._numbers) + 1)
        for word, number in self._numbers.items():
            weight[number] = math.log((len(documents) + 1) / (document_counts[word] + 0.5))
        self._prompt_words = [
            np.array([self._numbers[w] for w in words], np.int32) for words in tokens
        ]
        self._prompt_weights = [weight[w] for w in self._prompt_words]
        rows, columns, values = [], [], []
        for i, (wanted, weights) in enumerate(
            zip(self._prompt_words, self._prompt_weights, strict=True)
        ):
            if len(wanted) >= _MIN_WORDS and weights.sum() > 0:
                rows += wanted.tolist()
                columns += [i] * len(wanted)
                values += (weights / weights.sum()).tolist()
        shape = (len(weight), len(tokens))
        self._matrix = csr_matrix((values, (rows, columns)), shape, np.float32)

    def find(self, texts: Sequence[str]) -> list[PromptMatch | None]:
        """For each text, return the match of the first test that finds a prompt, or None."""
        matches: list[PromptMatch | None] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            matches += self._find([fold(t) for t in texts[start : start + _TEXTS_AT_ONCE]])
        return matches

    def _find(self, texts: list[str]) -> list[PromptMatch | None]:
        tokens = tokenize_all(texts)
        numbers = [np.array([self._numbers.get(w, 0) for w in words], np.int32) for words in tokens]
        near = self._candidates_of(numbers)
        result: list[PromptMatch | None] = []
        for text, words, encoded, candidates in zip(texts, tokens, numbers, near, strict=True):
            result.append(
                self._by_equality(words, text)
                or self._by_ngrams(words)
                or self._by_words(encoded, text, candidates)
            )
        return result

    def _by_equality(self, words: list[str], text: str) -> PromptMatch | None:
        for i in self._equal.get(tuple(words), ()):
            if may_be_duplicates(self._distinctions[i], distinctions(text), ordered=False):
                return PromptMatch(self.prompts[i], "equal", 1.0)
        return None

    def _grams_of(self, words: Sequence[str]) -> set[tuple[str, ...]]:
        n = self._ngram
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    def _by_ngrams(self, words: list[str]) -> PromptMatch | None:
        overlap: Counter[int] = Counter()
        for gram in self._grams_of(words):
            if gram in self._grams:
                overlap.update(self._grams[gram])
        shares = ((count / self._gram_counts[i], -i) for i, count in overlap.items())
        share, i = max(shares, default=(0.0, 0))
        return (
            PromptMatch(self.prompts[-i], "ngrams", share) if share >= self._ngram_share else None
        )

    def _candidates_of(self, numbers: list[Numbers]) -> list[list[int]]:
        """For each text, return the indices of the prompts that the test by words must check.

        These are the prompts whose words in the text, in any order, have at least the minimum
        fraction of the prompt's weight. The test itself also requires the same order, so it
        never finds a higher weight, and no match is missed.
        """
        from scipy.sparse import csr_matrix

        words = [np.unique(n[n > 0]) for n in numbers]
        ends = np.cumsum([0, *(len(w) for w in words)])
        columns = np.concatenate([np.zeros(0, np.int32), *words])
        shape = (len(numbers), self._matrix.shape[0])
        overlap = (
            csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape) @ self._matrix
        )
        candidates: list[list[int]] = []
        for begin, end in zip(overlap.indptr[:-1], overlap.indptr[1:], strict=True):
            enough = overlap.data[begin:end] >= self._weight_share - 1e-5
            candidates.append(sorted(overlap.indices[begin:end][enough].tolist()))
        return candidates

    def _by_words(self, numbers: Numbers, text: str, candidates: list[int]) -> PromptMatch | None:
        from instructgen.similarity.alignment import shares

        best: PromptMatch | None = None
        for i in candidates:
            words, weight = shares(self._prompt_words[i], self._prompt_weights[i], numbers)
            enough = words >= self._words_share and weight >= self._weight_share
            if enough and self._is_specific(i, numbers, text):
                share = min(words, weight)
                if best is None or share > best.share:
                    best = PromptMatch(self.prompts[i], "words", share)
        return best

    def _is_specific(self, prompt: int, numbers: Numbers, text: str) -> bool:
        """Return whether a text contains what distinguishes a short prompt from similar ones."""
        words, weights = self._prompt_words[prompt], self._prompt_weights[prompt]
        if self._sizes[prompt] >= self._ngram:
            return True
        # The word that distinguishes two prompts may also occur in a background text.
        rarest = words[weights >= 0.75 * weights.max()]
        return bool(np.isin(rarest, numbers).all()) and contains_exactly(
            self._distinctions[prompt], distinctions(text)
        )
