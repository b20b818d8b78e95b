"""Local models: which folder a name means, the one loader, and how likely a model finds a text.

`folders` resolves names, `loading` reads models and tokenizers, `likelihood` computes losses.
All that computes with transformers itself loads by `loading`, under the rules of SECURITY.md.
"""
