"""Generates instruction data: seed pool, prompts, methods, the loop and its runner."""
