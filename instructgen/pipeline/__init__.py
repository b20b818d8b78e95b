"""Runs pipelines. A finished step runs again only if something that it depends on has changed.

Each step runs a command in a separate process, so a crash does not affect the outputs of other
steps, and memory is freed after each step. The file pipeline.json records the last run of each
step. Commands can resume, so a pipeline that was killed resumes within its unfinished step. This
is the only package that imports `instructgen.cli`, which parses the options of a step.
"""
