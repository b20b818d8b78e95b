"""Local models: which folder a name means, the one loader, and how likely a model finds a text.

`folders` resolves names, `loading` reads models and tokenizers, `likelihood` computes losses.
Only `loading` calls ``from_pretrained``, so that the rules of SECURITY.md hold for every load.
"""
