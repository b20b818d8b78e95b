"""Train a model on a dataset.

`options` defines the settings, `rows` selects the rows, and `encode` turns them into tokens and
marks the ones that the loss covers. `sft`, `preference` and `online` define the examples and the
loss of their trainers; `trainer` and `callbacks` contain the code that they share.
All trainers except `ppo` are TRL's; `rewards` scores completions, and `policy` prepares a model
for training and checks the saved weights.
"""
