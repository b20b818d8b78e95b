"""Loads local models and computes the likelihood of texts.

`folders` resolves model names, `loading` loads models and tokenizers, and `likelihood` computes
losses. All code that uses transformers directly loads through `loading`, which follows the
rules of SECURITY.md.
"""
