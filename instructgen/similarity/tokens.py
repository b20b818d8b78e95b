"""Words of any script, for comparing texts. Not a model tokenizer.

``unicode`` (the default): NFC, lower case, then runs of letters, digits and
combining marks of any script are words; scripts written without spaces (Han,
kana, Thai, Lao, Khmer, Burmese) are cut into characters, each with its marks.
Everything else, the zero-width non-joiner included, separates words.

``ascii``: exactly rouge-score's tokenizer without stemming: lower case, words
are runs of [a-z0-9]. It sees nothing of a Persian or Chinese text.

On ASCII text both give the same words. All texts of a call are cut at once, by
tables over their code points: a regular expression per text costs ten times
more than the search that follows.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

Tokenizer = Literal["unicode", "ascii"]

# What stands between two texts: a mark that no word holds.
_BOUNDARY = "|"
_ASCII = bytes(c if chr(c).isalnum() or c == 10 else 32 for c in range(128)) + b" " * 128
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_OTHER, _WORD, _SINGLE, _MARK, _UNKNOWN = range(5)
_CLASS = regex.compile(
    rf"(?P<mark>\p{{M}})|(?P<single>[{_SPACELESS}--\p{{N}}])|(?P<word>[\p{{L}}\p{{N}}])", regex.V1
)
_NAMED = {"mark": _MARK, "single": _SINGLE, "word": _WORD}
# The class of every code point; looked up when a text first holds it.
_classes = np.full(0x110000, _UNKNOWN, dtype=np.uint8)
_TEXTS_AT_ONCE = 4096


def tokenize(text: str, tokenizer: Tokenizer = "unicode") -> list[str]:
    """The words of ``text`` in order, lower-cased."""
    return _spaced([text], tokenizer).split()


def tokenize_all(texts: Sequence[str], tokenizer: Tokenizer = "unicode") -> list[list[str]]:
    """The words of each text."""
    return [words.split() for words in _spaced(texts, tokenizer).split("\n")] if texts else []


class Vocabulary(dict[str, int]):
    """Words by number, from 1, in the order in which they were first seen."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        """With these words, all different, numbered in their order."""
        super().__init__({_BOUNDARY: 0})
        self.update(zip(words, itertools.count(1)))

    def __missing__(self, word: str) -> int:
        """A new word gets the next number."""
        number = self[word] = len(self)
        return number

    def packed(self) -> npt.NDArray[np.uint8]:
        """The words as bytes, for a file."""
        return np.frombuffer("\n".join(list(self)[1:]).encode(), np.uint8)

    @classmethod
    def unpacked(cls, data: npt.NDArray[np.uint8]) -> Vocabulary:
        """The vocabulary that `packed` gave these bytes of."""
        text = data.tobytes().decode()
        return cls(text.split("\n") if text else ())

    def latest(self, count: int) -> list[str]:
        """The last ``count`` words, in their order."""
        return list(itertools.islice(reversed(self), count))[::-1]

    def encode(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The texts' words as numbers: all in one array, and where each text begins.

        Returns:
            ``words`` (total,) and ``offsets`` (texts + 1,): text i is
            ``words[offsets[i]:offsets[i + 1]]``.
        """
        parts = [np.zeros(0, np.int32)]
        lengths = [np.zeros(1, np.int64)]
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            spaced = _spaced(texts[at : at + _TEXTS_AT_ONCE], tokenizer)
            words = f"{spaced}\n".replace("\n", f" {_BOUNDARY} ").split()
            numbers = np.fromiter(map(self.__getitem__, words), np.int32, len(words))
            ends = np.flatnonzero(numbers == 0)
            lengths.append(np.diff(ends, prepend=-1) - 1)
            parts.append(numbers[numbers != 0])
        return np.concatenate(parts), np.cumsum(np.concatenate(lengths))


def _spaced(texts: Sequence[str], tokenizer: Tokenizer) -> str:
    """The words of the texts with spaces between words and newlines between texts."""
    if tokenizer == "ascii":
        return _ascii(texts)
    plain = [t for t in texts if t.isascii()]
    if len(plain) == len(texts):
        return _ascii(texts)
    others = iter(_any_script([t for t in texts if not t.isascii()]).split("\n"))
    spaced = iter(_ascii(plain).split("\n"))
    return "\n".join([next(spaced if t.isascii() else others) for t in texts])


def _joined(texts: Sequence[str]) -> str:
    return "\n".join([t.replace("\n", " ") for t in texts])


def _ascii(texts: Sequence[str]) -> str:
    return _joined(texts).lower().encode("ascii", "replace").translate(_ASCII).decode()


def _any_script(texts: Sequence[str]) -> str:
    joined = unicodedata.normalize("NFC", _joined(texts)).lower()
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes[points]
    if (classes == _UNKNOWN).any():
        _classify(np.unique(points[classes == _UNKNOWN]))
        classes = _classes[points]
    spaced = np.where((classes == _OTHER) & (points != 10), 32, points)
    # The class that a mark continues: that of the last character before it.
    places = np.arange(len(points))
    continued = classes[np.maximum.accumulate(np.where(classes == _MARK, 0, places))]
    cut = classes == _SINGLE
    cut[1:] |= (classes[1:] == _WORD) & (continued[:-1] == _SINGLE)
    out = np.full(len(points) + int(cut.sum()), 32, dtype="<u4")
    out[places + np.cumsum(cut)] = spaced
    return out.tobytes().decode("utf-32-le")


def _classify(points: npt.NDArray[np.uint32]) -> None:
    for point in points.tolist():
        match = _CLASS.match(chr(point))
        _classes[point] = _NAMED[match.lastgroup or ""] if match else _OTHER
