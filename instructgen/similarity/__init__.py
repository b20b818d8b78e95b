"""How alike two texts are: word tokens of any script and the exact ROUGE-L index."""

from instructgen.similarity.rouge import Match, RougeLIndex
from instructgen.similarity.tokens import Tokenizer, tokenize

__all__ = ["Match", "RougeLIndex", "Tokenizer", "tokenize"]
