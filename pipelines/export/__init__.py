"""Folders that others may be given: the examples and the model of a run, each with its card."""
