"""Prompts of benchmarks, and the question whether a text holds one of them.

In three tiers, since a third of real benchmark prompts are shorter than the 13
words that n-grams are usually made of: equal words; a share of n-grams; and the
words in order and close together, by number and by weight. The second count of
the last tier is for frames: "What is a X?" shares most of its words with "What is
a Y?", and little of the weight.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from instructgen.similarity.tokens import tokenize, tokenize_all

if TYPE_CHECKING:
    from instructgen.similarity.alignment import Numbers

# A shorter prompt is found only where a text is nothing else.
_LEAST_WORDS = 5
_TEXTS_AT_ONCE = 1024


class BenchmarkPrompt(NamedTuple):
    """One prompt: its benchmark, its place there, and its text."""

    benchmark: str
    place: str
    text: str


class PromptMatch(NamedTuple):
    """The prompt that a text holds, by which tier, and the share found: 0 to 1."""

    prompt: BenchmarkPrompt
    tier: str
    share: float


class BenchmarkPrompts:
    """Looks for prompts in texts.

    Args:
        prompts: what is looked for.
        background: texts that tell which words are common, besides the prompts.
        ngram: words of an n-gram; shorter prompts have none.
        ngram_share: a text that has this share of a prompt's n-grams holds it.
        words_share: likewise of its words, in order and close together.
        weight_share: and at the same time this share of their weight, which is
            the logarithm of their rarity.
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

        cut = tokenize_all([p.text for p in prompts])
        self.prompts = [p for p, words in zip(prompts, cut, strict=True) if words]
        cut = [words for words in cut if words]
        self._ngram, self._ngram_share = ngram, ngram_share
        self._words_share, self._weight_share = words_share, weight_share
        self._equal: dict[tuple[str, ...], int] = {}
        self._grams: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._gram_counts: list[int] = []
        for i, words in enumerate(cut):
            self._equal.setdefault(tuple(words), i)
            grams = self._grams_of(words)
            self._gram_counts.append(len(grams))
            for gram in grams:
                self._grams[gram].append(i)
        known = [*cut, *map(tokenize, background)]
        common = Counter(w for words in known for w in set(words))
        self._numbers = {w: n for n, w in enumerate(dict.fromkeys(w for c in cut for w in c), 1)}
        weight = np.zeros(len(self._numbers) + 1)
        for word, number in self._numbers.items():
            weight[number] = math.log((len(known) + 1) / (common[word] + 0.5))
        self._wanted = [np.array([self._numbers[w] for w in words], np.int32) for words in cut]
        self._weights = [weight[w] for w in self._wanted]
        rows, columns, values = [], [], []
        for i, (wanted, weights) in enumerate(zip(self._wanted, self._weights, strict=True)):
            if len(wanted) >= _LEAST_WORDS and weights.sum() > 0:
                rows += wanted.tolist()
                columns += [i] * len(wanted)
                values += (weights / weights.sum()).tolist()
        shape = (len(weight), len(cut))
        self._matrix = csr_matrix((values, (rows, columns)), shape, np.float32)

    def find(self, texts: Sequence[str]) -> list[PromptMatch | None]:
        """For each text the prompt that it holds, by the first tier that finds one, or None."""
        found: list[PromptMatch | None] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            found += self._find(tokenize_all(texts[at : at + _TEXTS_AT_ONCE]))
        return found

    def _find(self, cut: list[list[str]]) -> list[PromptMatch | None]:
        numbers = [np.array([self._numbers.get(w, 0) for w in words], np.int32) for words in cut]
        near = self._near(numbers)
        result: list[PromptMatch | None] = []
        for words, text, candidates in zip(cut, numbers, near, strict=True):
            equal = self._equal.get(tuple(words)) if words else None
            if equal is not None:
                result.append(PromptMatch(self.prompts[equal], "equal", 1.0))
                continue
            result.append(self._by_ngrams(words) or self._by_words(text, candidates))
        return result

    def _grams_of(self, words: Sequence[str]) -> set[tuple[str, ...]]:
        n = self._ngram
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    def _by_ngrams(self, words: list[str]) -> PromptMatch | None:
        held: Counter[int] = Counter()
        for gram in self._grams_of(words):
            if gram in self._grams:
                held.update(self._grams[gram])
        shares = ((count / self._gram_counts[i], -i) for i, count in held.items())
        share, i = max(shares, default=(0.0, 0))
        return (
            PromptMatch(self.prompts[-i], "ngrams", share) if share >= self._ngram_share else None
        )

    def _near(self, numbers: list[Numbers]) -> list[list[int]]:
        """For each text the prompts of which it has enough by weight, in any order.

        No alignment can have more, so none is missed.
        """
        from scipy.sparse import csr_matrix

        words = [np.unique(n[n > 0]) for n in numbers]
        ends = np.cumsum([0, *(len(w) for w in words)])
        columns = np.concatenate([np.zeros(0, np.int32), *words])
        shape = (len(numbers), self._matrix.shape[0])
        held = csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape) @ self._matrix
        found: list[list[int]] = []
        for begin, end in zip(held.indptr[:-1], held.indptr[1:], strict=True):
            good = held.data[begin:end] >= self._weight_share - 1e-5
            found.append(sorted(held.indices[begin:end][good].tolist()))
        return found

    def _by_words(self, text: Numbers, candidates: list[int]) -> PromptMatch | None:
        from instructgen.similarity.alignment import shares

        best: PromptMatch | None = None
        for i in candidates:
            words, weight = shares(self._wanted[i], self._weights[i], text)
            if words >= self._words_share and weight >= self._weight_share:
                share = min(words, weight)
                if best is None or share > best.share:
                    best = PromptMatch(self.prompts[i], "words", share)
        return best
