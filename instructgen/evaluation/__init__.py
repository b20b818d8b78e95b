"""What a model can do, in numbers with intervals.

`intervals` bootstraps, `likelihood` reads people's answers, and the suites of
`suites` each measure one thing of one or two models on the same rows.
"""
