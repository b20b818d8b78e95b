"""Split texts in any writing system into words, for comparing texts (not for language models).

``unicode`` (the default): The text is converted to NFC and lower case. Words are sequences of
letters, digits and combining marks of any writing system. Text in a writing system without spaces
(Han, kana, Thai, Lao, Khmer, Burmese) is split into characters, each with its combining marks. All
other characters, including the zero-width non-joiner, separate words.

``ascii``: the tokenizer of the package rouge-score without stemming. The text is converted to
lower case, and words are sequences of [a-z0-9]. By this definition, a Persian or Chinese text has
no words.

Both tokenizers return the same words for ASCII text. All texts of a call are split together, by
looking up the class of each character in an array. Splitting each text with a regular expression
would take ten times as long as searching for similar texts.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

Tokenizer = Literal["unicode", "ascii"]

# Separator of texts, a character that words never contain.
_BOUNDARY = "|"
_ASCII = bytes(c if chr(c).isalnum() or c == 10 else 32 for c in range(128)) + b" " * 128
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_OTHER, _WORD, _SINGLE, _MARK, _UNKNOWN = range(5)
_CLASS = regex.compile(
    rf"(?P<mark>\p{{M}})|(?P<single>[{_SPACELESS}--\p{{N}}])|(?P<word>[\p{{L}}\p{{N}}])", regex.V1
)
# A word, as the tokenizer unicode splits text in NFC.
_ONE_WORD = regex.compile(
    rf"[{_SPACELESS}--\p{{N}}]\p{{M}}*+|(?:[[\p{{L}}\p{{N}}]--[{_SPACELESS}--\p{{N}}]]\p{{M}}*+)++",
    regex.V1,
)
_NAMED = {"mark": _MARK, "single": _SINGLE, "word": _WORD}
# The class of every code point, determined when it first appears in a text.
_classes = np.full(0x110000, _UNKNOWN, dtype=np.uint8)
_TEXTS_AT_ONCE = 4096
# At most 24 texts are split one by one, because other filters have often split them before.
_FEW_TEXTS = 24
# The words of longer texts are not kept in memory.
_MOST_CHARACTERS = 10_000


def tokenize(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """Return the words of ``text`` in order, in lower case."""
    return list(_words(text, tokenizer))


def _words(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    return (_kept if len(text) <= _MOST_CHARACTERS else _kept.__wrapped__)(text, tokenizer)


# Several filters in a row look at the words of the same text.
@lru_cache(maxsize=256)
def _kept(text: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    return tuple(_spaced([text], tokenizer).split())


def tokenize_all(texts: Sequence[str], tokenizer: Tokenizer = "unicode") -> list[list[str]]:
    """Return the list of words of each text, in lower case."""
    if len(texts) <= _FEW_TEXTS:
        return [tokenize(text, tokenizer) for text in texts]
    return [words.split() for words in _spaced(texts, tokenizer).split("\n")]


def word_positions(text: str) -> list[int]:
    """Return the position of the first character of each word of a text, in order."""
    return [match.start() for match in _ONE_WORD.finditer(text)]


class Vocabulary(dict[str, int]):
    """Mapping from words to numbers, which count from 1 in order of first appearance."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        """Number these words from 1 in order. The words must be distinct."""
        super().__init__({_BOUNDARY: 0})
        self.update(zip(words, itertools.count(1)))

    def __missing__(self, word: str) -> int:
        """Assign the next number to a new word."""
        number = self[word] = len(self)
        return number

    def packed(self) -> npt.NDArray[np.uint8]:
        """Return the words as bytes, to be written to a file."""
        return np.frombuffer("\n".join(list(self)[1:]).encode(), np.uint8)

    @classmethod
    def unpacked(cls, data: npt.NDArray[np.uint8]) -> Vocabulary:
        """Restore a vocabulary from the bytes that `packed` returned."""
        text = data.tobytes().decode()
        return cls(text.split("\n") if text else ())

    def latest(self, count: int) -> list[str]:
        """Return the ``count`` words that were added last, in order."""
        return list(itertools.islice(reversed(self), count))[::-1]

    def encode(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the word numbers of all texts in one array, and the offset of each text in it.

        Returns:
            ``words`` (total,) and ``offsets`` (texts + 1,): text i is
            ``words[offsets[i]:offsets[i + 1]]``.
        """
        if len(texts) <= _FEW_TEXTS:
            lists = [_words(text, tokenizer) for text in texts]
            bounds = [*itertools.accumulate(map(len, lists), initial=0)]
            found = map(self.__getitem__, itertools.chain.from_iterable(lists))
            return np.fromiter(found, np.int32, bounds[-1]), np.array(bounds)
        parts, count = [np.zeros(0, np.int32)], 0
        offsets = [np.zeros(1, np.int64)]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            spaced = _spaced(texts[start : start + _TEXTS_AT_ONCE], tokenizer)
            words = f"{spaced}\n".replace("\n", f" {_BOUNDARY} ").split()
            numbers = np.fromiter(map(self.__getitem__, words), np.int32, len(words))
            # One boundary follows each text.
            ends = np.flatnonzero(numbers == 0)
            offsets.append(count + ends - np.arange(len(ends)))
            parts.append(numbers[numbers != 0])
            count += len(parts[-1])
        return np.concatenate(parts), np.concatenate(offsets)


def _spaced(texts: Sequence[str], tokenizer: Tokenizer) -> str:
    """Join the words of all texts with spaces between words and newlines between texts."""
    if tokenizer == "ascii":
        return _ascii(texts)
    plain = [t for t in texts if t.isascii()]
    if len(plain) == len(texts):
        return _ascii(texts)
    others = iter(_any_script([t for t in texts if not t.isascii()]).split("\n"))
    spaced = iter(_ascii(plain).split("\n"))
    return "\n".join([next(spaced if t.isascii() else others) for t in texts])


def _one_per_line(texts: Sequence[str]) -> str:
    return "\n".join([t.replace("\n", " ") for t in texts])


def _ascii(texts: Sequence[str]) -> str:
    return _one_per_line(texts).lower().encode("ascii", "replace").translate(_ASCII).decode()


def _any_script(texts: Sequence[str]) -> str:
    joined = unicodedata.normalize("NFC", _one_per_line(texts)).lower()
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes[points]
    if (classes == _UNKNOWN).any():
        _classify(np.unique(points[classes == _UNKNOWN]))
        classes = _classes[points]
    spaced = np.where((classes == _OTHER) & (points != 10), 32, points)
    # The class of the last character that is not a mark; the marks after it belong to it.
    places = np.arange(len(points))
    continued = classes[np.maximum.accumulate(np.where(classes == _MARK, 0, places))]
    starts_word = classes == _SINGLE
    starts_word[1:] |= (classes[1:] == _WORD) & (continued[:-1] == _SINGLE)
    out = np.full(len(points) + int(starts_word.sum()), 32, dtype="<u4")
    out[places + np.cumsum(starts_word)] = spaced
    return out.tobytes().decode("utf-32-le")


def _classify(points: npt.NDArray[np.uint32]) -> None:
    for point in points.tolist():
        match = _CLASS.match(chr(point))
        _classes[point] = _NAMED[match.lastgroup or ""] if match else _OTHER
