"""Generates instruction data: the seed pool, the prompts, the methods, and the generation loop."""
