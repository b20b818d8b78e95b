"""Runs pipelines: each step runs once, and again only if what it depends on has changed.

Each step runs a command in a separate process, so a failure does not affect the other steps, and
memory is freed after each step. pipeline.json records each step. Commands can resume, so a killed
pipeline resumes within its unfinished step. Only this package imports the command line, which
parses the options of a step.
"""
