"""The report: what a dataset, a run, a model or an evaluation holds, as one HTML page.

The page loads nothing, runs nothing and needs nothing: pictures are SVG drawn here, every
one with its numbers in a table under it, and text from data is only ever text.
"""
