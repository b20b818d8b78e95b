"""Runs a recipe: each step once, and again only when what it depends on has changed.

A step is a command in a process of its own, so that one that dies takes nothing along and
gives its memory back. What a step was asked, and what came of it, stands in pipeline.json;
commands resume themselves, so that a recipe that was killed goes on inside its step.
`instructgen.pipeline.steps` runs them; this package alone imports the command line, to
check a step's words as they would be typed.
"""
