"""From a dataset to a trained model: options in, rows as tokens, TRL's trainers, weights out.

`options` says what can be set, `rows` and `encode` turn a dataset into tokens and say which of
them are trained. `sft`, `preference` and `online` each show on one page what a method trains on
and by which loss; `trainer` and `callbacks` are what they share, `ppo` is ours, and `rewards`
scores what a policy writes. `policy` is what training does to a model.
"""
