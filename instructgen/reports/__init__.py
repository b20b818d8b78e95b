"""HTML reports about datasets, runs, models and evaluations, and README files (cards).

A report is one self-contained page. It loads no files and runs no scripts: charts are inline
SVG, each with its numbers in a table, and text from data is always escaped.
"""
