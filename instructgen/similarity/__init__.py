"""How alike two texts are: words of any script, exact ROUGE-L and Jaccard indexes."""

from instructgen.similarity.minhash import MinHashIndex
from instructgen.similarity.rouge import Match, RougeLIndex
from instructgen.similarity.tokens import Tokenizer, tokenize

__all__ = ["Match", "MinHashIndex", "RougeLIndex", "Tokenizer", "tokenize"]
