"""What a run's folder holds that nothing needs any more: found, said, then removed.

* part files of a finished step whose rows all stand in compacted files (a crash left them)
* checkpoints of a finished training
* with `superseded`: steps that the config which was run last does not use

A step that is not finished, or that has parts newer than its manifest, may be at work: it is left
alone.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.ledger import PARTS, Ledger
from cluster.steps import RUN_FILE, STEPS_FILE
from cluster.storage import MANIFEST, Folder

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Leftover:
    """A folder that can go, and why."""

    folder: Folder
    num_bytes: int
    reason: str


def find_leftovers(run: Folder, *, superseded: bool = False) -> list[Leftover]:
    """What could be removed. Raises `InputError` when the folder is not that of a run."""
    if run.read_json(RUN_FILE) is None:
        raise InputError(f"{run.uri} is not the folder of a run: it has no {RUN_FILE}")
    used = run.read_json(STEPS_FILE) or []
    found: list[Leftover] = []
    for name in _step_names(run):
        step = run.child(name)
        if superseded and name not in used:
            found.append(_leftover(step, "the config that was run last does not use it"))
        elif step.manifest() is not None:
            found += _within(step)
    return found


def _step_names(run: Folder) -> list[str]:
    """Step folders, as paths relative to the run's: `questions-...`, `round_0/paths-...`."""
    return sorted(
        path
        for name in run.folder_names()
        for path in ([name] if "-" in name else _children(run, name))
    )


def _children(run: Folder, name: str) -> list[str]:
    return [posixpath.join(name, child) for child in run.child(name).folder_names()]


def _within(step: Folder) -> Iterator[Leftover]:
    """What a finished step no longer needs."""
    children = step.folder_names()
    if CHECKPOINTS in children:
        yield _leftover(step.child(CHECKPOINTS), "checkpoints of a finished training")
    if PARTS in children and not _is_at_work(step) and _is_compacted(step):
        yield _leftover(step.child(PARTS), "its rows stand in compacted files")


def _is_at_work(step: Folder) -> bool:
    """Whether anything was written since the step was finished."""
    finished = step.written_at([MANIFEST])
    return step.written_at(step.walk(PARTS)) > finished


def _is_compacted(step: Folder) -> bool:
    ledger = Ledger.read(step)
    valid = {ledger.files[n] for n in ledger.index.column("file").unique().to_pylist()}
    return not any(name.startswith(f"{PARTS}/") for name in valid)


def _leftover(folder: Folder, reason: str) -> Leftover:
    return Leftover(folder, folder.num_bytes(folder.walk()), reason)


def format_leftovers(leftovers: list[Leftover]) -> str:
    """One line each, and the sum."""
    lines = [f"{_size(left.num_bytes)}  {left.folder.uri}: {left.reason}" for left in leftovers]
    total = sum(left.num_bytes for left in leftovers)
    return "\n".join([*lines, f"{_size(total)}  in all"])


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:10,.1f} MiB"


def remove_leftovers(leftovers: list[Leftover]) -> None:
    """Remove them all."""
    for leftover in leftovers:
        leftover.folder.delete()
