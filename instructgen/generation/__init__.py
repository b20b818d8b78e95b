"""Generates instruction data: seed pool, prompts, methods, generation loop and its runner."""
