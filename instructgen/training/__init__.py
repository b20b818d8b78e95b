"""Train a model on a dataset.

`options` defines the settings, `rows` selects the rows, and `encode` turns them into tokens and
marks the ones that the loss covers. `sft`, `preference` and `online` each show in one file what a
trainer trains on and with which loss; `trainer` and `callbacks` hold the code that they share.
All trainers are TRL's except `ppo`; `rewards` scores completions, and `policy` prepares a model
for training and checks the saved weights.
"""
