"""Files in a run's folder that are no longer needed: find them, list them, then remove them.

* part files of a finished step whose rows are all in compacted files (left by a crash)
* checkpoints of a finished training
* files that a killed process did not finish (`cluster.store.unfinished`)
* with `superseded`: steps that the last config does not use

Only files that a step of a run created can be removed: a folder whose name is that of a step and
its fingerprint, in the place of the steps, that contains the manifest of just this step or, while
it is unfinished, checkpoints or rows of a ledger. An unfinished step that was written to within the
last minutes is kept. The command holds the run in the meantime (`cluster.store.holder`), so no step
is at work.
"""

from __future__ import annotations

import posixpath
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.events import record
from cluster.settings import fingerprint
from cluster.store.contents import own_files
from cluster.store.folder import HOLDERS, MANIFEST, OPENED, Folder
from cluster.store.ledger import PARTS, Ledger, is_ledger_file
from cluster.store.step import RUN_FILE, STEPS_FILE, read_steps
from cluster.store.unfinished import left_behind

CHECKPOINTS = "checkpoints"
FRESH_S = 600.0
"""An unfinished step is kept if it was written to within these seconds of the storage's clock."""

_PARENT = re.compile(r"base(?:_[a-z_]+)?|round_\d+")
_STEP = re.compile(
    r"(?P<step>(questions|guidelines|paths|examples|model|predictions|scores|decision)(-.+)?)-[0-9a-f]{12}"
)


@dataclass(frozen=True)
class Leftover:
    """A folder that can be removed, or some files of a folder, and why."""

    folder: Folder
    num_bytes: int
    reason: str
    files: tuple[str, ...] = ()
    """The relative paths of the files; empty means the whole folder."""

    def remove(self) -> None:
        if self.files:
            self.folder.delete_files(self.files)
        else:
            self.folder.delete()


def check_is_run(run: Folder) -> None:
    """Raise `InputError` when the folder is not that of a run."""
    if run.read_json(RUN_FILE) is None:
        raise InputError(f"{run.uri} is not the folder of a run: it has no {RUN_FILE}")


def find_leftovers(run: Folder, *, superseded: bool = False) -> list[Leftover]:
    """Find what can be removed. Raises `InputError` when the folder is not that of a run, and, with
    `superseded`, when its list of the steps in use is missing."""
    check_is_run(run)
    used = _steps_in_use(run) if superseded else None
    found: list[Leftover] = []
    for name in _step_names(run):
        step = run.child(name)
        if used is not None and name not in used:
            if _may_go(run, step):
                found.append(_leftover(step, "the last config does not use it"))
        elif step.manifest() is not None:
            found += _within(step)
    return [*found, *_unfinished_files(run, [left.folder.path for left in found])]


def _unfinished_files(run: Folder, gone: Sequence[str]) -> list[Leftover]:
    """What killed processes left on a disk, apart from what is in folders that go anyway."""
    if not run.is_local:
        return []
    files = left_behind(Path(run.path), before=_storage_time(run) - FRESH_S)
    paths = [str(file) for file in files if not any(map(file.is_relative_to, gone))]
    names = tuple(sorted(path.removeprefix(f"{run.path}/") for path in paths))
    reason = f"{len(names)} unfinished files of processes that have ended"
    return [Leftover(run, run.num_bytes(names), reason, names)] if names else []


def _steps_in_use(run: Folder) -> set[str]:
    """The steps of the last config. Raises `InputError` when they are not known."""
    # An earlier version wrote no hash: one wrong digit would make a step that is in use superseded.
    used = read_steps(run) if isinstance(run.read_json(STEPS_FILE), dict) else None
    if used is None or not _is_sound(used):
        raise InputError(
            f"{run.uri}/{STEPS_FILE}, the list of the steps in use, is missing or damaged, so "
            "nothing was deleted; `regenesis.py run CONFIG --until questions` writes it again"
        )
    return set(used)


def _is_sound(used: list[str]) -> bool:
    kinds = {match["step"] for name in used if (match := _STEP.fullmatch(posixpath.basename(name)))}
    return {"questions", "paths", "predictions"} <= kinds


def _step_names(run: Folder) -> list[str]:
    """Folders that are named like steps: `questions-3f2ac81d09be`, `round_0/paths-...`."""
    names = run.folder_names()
    below = [posixpath.join(p, n) for p in names if _PARENT.fullmatch(p) for n in _names(run, p)]
    return sorted(n for n in (*names, *below) if _STEP.fullmatch(posixpath.basename(n)))


def _names(run: Folder, parent: str) -> list[str]:
    return run.child(parent).folder_names()


def _may_go(run: Folder, step: Folder) -> bool:
    """Whether a step created this folder and is not working on it."""
    if _is_link(step):
        return False
    if (manifest := step.read_json(MANIFEST)) is not None:
        return _is_of_step(step, manifest) and not _foreign_files(step, manifest)
    files = step.walk()
    is_ours = any(
        is_ledger_file(name) or name.startswith(OPENED) or name == f"{CHECKPOINTS}/plan.json"
        for name in files
    )
    return is_ours and _storage_time(run) - step.written_at(files) > FRESH_S


def _foreign_files(step: Folder, manifest: Mapping[str, Any]) -> list[str]:
    """What somebody else has put into a finished step's folder."""
    listed = manifest.get("files")
    if listed is None:  # an earlier version's
        return []
    return [n for n in own_files(step) if n not in listed and not is_ledger_file(n)]


def _is_link(folder: Folder) -> bool:
    """Whether a folder is elsewhere, where other files may be as well."""
    return folder.is_local and Path(folder.path).is_symlink()


def _is_of_step(step: Folder, manifest: Any) -> bool:
    named = _STEP.fullmatch(step.name)
    return bool(
        isinstance(manifest, dict)
        and named
        and manifest.get("step") == named["step"]
        and step.name.endswith(fingerprint(manifest.get("content")))
    )


def _storage_time(run: Folder) -> float:
    """Approximately now, by the clock that stamps the files: when this command took the run."""
    if run.claim is None:
        return time.time()
    holders = run.child(HOLDERS)
    return holders.written_at(holders.file_names())


def _within(step: Folder) -> Iterator[Leftover]:
    """What a finished step no longer needs."""
    children = [name for name in step.folder_names() if not _is_link(step.child(name))]
    if CHECKPOINTS in children and step.name.startswith("model-"):
        yield _leftover(step.child(CHECKPOINTS), "checkpoints of a finished training")
    if PARTS in children and not _is_at_work(step) and _is_compacted(step):
        yield _leftover(step.child(PARTS), "its rows are in compacted files")


def _is_at_work(step: Folder) -> bool:
    """Whether anything was written after the step was finished."""
    finished = step.written_at([MANIFEST])
    return step.written_at(step.walk(PARTS)) > finished


def _is_compacted(step: Folder) -> bool:
    ledger = Ledger.read(step)
    valid = {ledger.files[n] for n in ledger.index.column("file").unique().to_pylist()}
    return not any(name.startswith(f"{PARTS}/") for name in valid)


def _leftover(folder: Folder, reason: str) -> Leftover:
    return Leftover(folder, sum(folder.sizes().values()), reason)


def format_leftovers(leftovers: list[Leftover]) -> str:
    """One line for each folder, and the total."""
    lines = [f"{_size(left.num_bytes)}  {left.folder.uri}: {left.reason}" for left in leftovers]
    total = sum(left.num_bytes for left in leftovers)
    return "\n".join([*lines, f"{_size(total)}  in all, {total} bytes in {_counted(leftovers)}"])


def _counted(leftovers: list[Leftover]) -> str:
    num_files = sum(len(left.files) for left in leftovers)
    num_folders = sum(not left.files for left in leftovers)
    return f"{num_folders} folders" + (f" and {num_files} files" if num_files else "")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:10,.1f} MiB"


def ask_to_delete(leftovers: list[Leftover]) -> bool:
    """Ask on the terminal. Raises `InputError` when there is no terminal."""
    if not sys.stdin.isatty():
        raise InputError(
            "clean asks before it deletes, but there is no terminal to ask on; nothing was "
            "deleted: give --yes, or --dry-run to only see the list"
        )
    answer = input(f"delete these {_counted(leftovers)}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def remove_leftovers(leftovers: list[Leftover]) -> None:
    """Remove them all, and record each one that is gone."""
    for leftover in leftovers:
        leftover.remove()
        facts = {"bytes": leftover.num_bytes, "reason": leftover.reason}
        record("removed", folder=leftover.folder.uri, **facts)
