"""Train a model on a dataset.

The module `options` defines the settings, `rows` selects the rows, and `encode` converts rows to
tokens and marks the tokens that count in the loss. `sft`, `preference` and `online` define the
examples and the loss of their trainers; `trainer` and `callbacks` contain the code that these
modules share. `rewards` scores completions, and `policy` prepares a model for training and checks
the saved weights. The trainers are those of the library TRL, except for `ppo`.
"""
