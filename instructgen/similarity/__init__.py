"""Compare texts by ROUGE-L, Jaccard or cosine similarity, and remove duplicates."""

from instructgen.similarity.dedup import (
    Deduplicated,
    DuplicateRow,
    Duplicates,
    RejectedDuplicate,
    deduplicate,
    find_duplicates,
)
from instructgen.similarity.embedding import EmbeddingIndex
from instructgen.similarity.matches import Match, Pairs
from instructgen.similarity.minhash import MinHashIndex
from instructgen.similarity.rouge import RougeLIndex, rouge_l
from instructgen.similarity.tokens import Tokenizer, tokenize

__all__ = [
    "Deduplicated",
    "DuplicateRow",
    "Duplicates",
    "EmbeddingIndex",
    "Match",
    "MinHashIndex",
    "Pairs",
    "RejectedDuplicate",
    "RougeLIndex",
    "Tokenizer",
    "deduplicate",
    "find_duplicates",
    "rouge_l",
    "tokenize",
]
