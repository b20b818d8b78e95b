"""Loads local models and computes the likelihood of texts.

`folders` finds the folder of a model name, `loading` loads models and tokenizers, and `likelihood`
computes losses. Code that calls transformers loads models only through `loading`, which
follows the security rules in SECURITY.md.
"""
