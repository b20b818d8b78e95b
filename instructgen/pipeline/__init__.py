"""Runs pipelines: each step once, and again only if what it depends on has changed.

A step is a command in a process of its own, so that a failure leaves the others as they are and
its memory is freed. pipeline.json records each step; commands resume themselves, so that a
killed pipeline continues inside its step. This package alone imports the command line, to
parse the words of a step.
"""
