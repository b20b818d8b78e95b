"""Runs pipelines: each step once, and again only if something that it depends on has changed.

A step is a command in a separate process, so a failure does not affect the other steps, and
memory is freed after each step. pipeline.json records each step. Commands resume themselves, so
a killed pipeline resumes within its step. Only this package imports the command line, which
parses the options of a step.
"""
