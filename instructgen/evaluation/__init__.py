"""Evaluation of trained models: scores with 95% confidence intervals.

`intervals` computes bootstrap intervals, and `likelihood` the likelihood of the answers of a
dataset under a model. Each module of `suites` measures one property, such as pair accuracy, of one
model or of two models on the same rows.
"""
