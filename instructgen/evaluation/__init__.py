"""Evaluation of trained models: scores with 95% confidence intervals.

`intervals` computes bootstrap intervals and `likelihood` scores given answers. Each module of
`suites` measures one property of one or two models, always on the same rows.
"""
