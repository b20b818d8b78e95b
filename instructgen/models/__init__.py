"""Loads local models and computes the likelihood of texts.

`folders` finds the folder of a model name, `loading` loads models and tokenizers, and `likelihood`
computes losses. All code that uses transformers directly loads models with `loading`, which
follows the rules of SECURITY.md.
"""
