"""The evaluation of any models on any questions, without synthesis and training.

`settings` is its config tree, `models` and `datasets` are what `--model` and `--tasks` name, and
`examine` lays out the steps and makes them.
"""
