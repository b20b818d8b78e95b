"""From a dataset to a trained model: options in, rows as tokens, TRL's trainers, weights out.

`options` says what can be set, `encode` turns rows into tokens and says which of
them are trained, `policy` loads and saves models, `trainers` is the one place
that knows TRL, `ppo` is ours, and `rewards` scores what a policy writes.
"""
