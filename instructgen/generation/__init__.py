"""Generation of instruction data: seed pool, prompts, methods, the pure loop and its runner."""
