"""More than one process: replicas of an engine, and curation on a Ray cluster.

One machine with one model needs none of this, and nothing here imports Ray before it is asked for.
"""
