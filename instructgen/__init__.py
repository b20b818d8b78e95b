"""instructgen: from a few human-written tasks to a licensed, explainable instruction dataset.

The functions here are the commands of the same names. Importing this package
imports no torch, vllm, transformers, datasets or trl.
"""
