"""Evaluation of trained models: scores with 95% confidence intervals.

`intervals` computes bootstrap intervals, and `likelihood` the likelihood of given answers. Each
module of `suites` measures one property of a model, or of two models on the same rows.
"""
