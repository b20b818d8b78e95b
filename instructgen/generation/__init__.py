"""The Self-Instruct loop: pool, prompts, methods, the loop as a pure function, and its runner."""
