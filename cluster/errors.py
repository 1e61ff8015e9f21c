"""The errors that end a run early and are not bugs. The driver turns each into an exit code."""

from __future__ import annotations

import errno


class InputError(ValueError):
    """The user's input is wrong: one sentence names it and says what to do."""

    exit_code = 2


class OverBudgetError(InputError):
    """The run would cost more than its `budget` allows."""


class DamagedFileError(InputError):
    """A stored file is missing, damaged, or belongs to something else; the sentence names it."""


class HeldError(InputError):
    """Another command is working on the run; the sentence says which, and what to do."""


class TakenOverError(InputError):
    """Another command now holds the run; this one has to end and may not write anything more."""


class StoreRefusedError(InputError, OSError):
    """A store on a network refuses a request for good: a wrong key, a bucket that is not there."""


class StorageError(OSError):
    """A file cannot be written: the disk is full, read-only or gone. Finished work is kept."""

    exit_code = 4

    @property
    def lasts(self) -> bool:
        """Whether the next attempt would fail, too: a disk is full, and no network away."""
        return getattr(self.__cause__, "errno", None) in _LASTING


class StoreAwayError(StorageError):
    """A store on a network has not answered for as long as it is waited for."""


_LASTING = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENOENT, errno.ENOTDIR),
    }
)


class NoExamplesError(RuntimeError):
    """Synthesis has ended and no example is left to train on; the paths are kept."""

    exit_code = 3


class InterruptedRunError(RuntimeError):
    """Ctrl-C or SIGTERM: finished work is on disk, and the same command continues from there."""

    exit_code = 130


class GenerationStoppedError(RuntimeError):
    """The engines cannot continue; the message holds their last error. Finished work is kept."""

    exit_code = 4


EARLY_ENDS = (
    InputError,
    NoExamplesError,
    InterruptedRunError,
    GenerationStoppedError,
    StorageError,
)
"""All of these errors; each has an `exit_code`."""
