"""The ways a run ends early that are not bugs. The driver turns each into its exit code."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that names it and says what to do."""

    exit_code = 2


class OverBudgetError(InputError):
    """The run would take more than its `budget` allows."""


class DamagedFileError(InputError):
    """A stored file is missing, damaged, or another one's; the sentence names it."""


class HeldError(InputError):
    """Another command works on the run; the sentence says which, and what to do."""


class TakenOverError(InputError):
    """Another command holds the run now; this one has to end and may write nothing more."""


class StoreRefusedError(InputError, OSError):
    """A store on a network refuses a request for good: a wrong key, a bucket that is not there."""


class StorageError(OSError):
    """A file cannot be written: the disk is full, read-only or gone. What is finished is kept."""

    exit_code = 4


class NoExamplesError(RuntimeError):
    """Synthesis ended and nothing is left to train on; its paths are kept."""

    exit_code = 3


class InterruptedRunError(RuntimeError):
    """Ctrl-C or SIGTERM: what was finished is on disk, the same command goes on from there."""

    exit_code = 130


class GenerationStoppedError(RuntimeError):
    """The engines cannot go on, with their own last error; what was finished is kept."""

    exit_code = 4


EARLY_ENDS = (
    InputError,
    NoExamplesError,
    InterruptedRunError,
    GenerationStoppedError,
    StorageError,
)
"""All of them; each has an `exit_code`."""
