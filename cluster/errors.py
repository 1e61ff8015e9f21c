"""The ways a run ends early that are not bugs. The driver turns each into its exit code."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that names it and says what to do."""

    exit_code = 2


class OverBudgetError(InputError):
    """The run would take more than its `budget` allows."""


class NoExamplesError(RuntimeError):
    """Synthesis ended and nothing is left to train on; its paths are kept."""

    exit_code = 3


class InterruptedRunError(RuntimeError):
    """Ctrl-C or SIGTERM: what was finished is on disk, the same command goes on from there."""

    exit_code = 130


class GenerationStoppedError(RuntimeError):
    """The engines cannot go on, with their own last error; what was finished is kept."""

    exit_code = 4
