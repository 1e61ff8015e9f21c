"""A run as its folder records it: its config, its steps, and their tables.

It serves commands that read a run, whichever version of this program made it. They need no model
and no questions, and change nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from cluster.errors import InputError
from cluster.secrets import host_only
from cluster.settings import Settings, fingerprint
from cluster.store.folder import HOLDERS, Folder
from cluster.store.ledger import Ledger, is_ledger_file
from cluster.store.named import folder_to_read
from cluster.store.step import STEPS_FILE, Step, check_steps, read_steps

CONFIG_FILE = "config.yaml"
"""The resolved config of the last run, in the run's folder."""


def resolved_config(config: Settings) -> str:
    """The config with all its defaults, as YAML; of who is told of the end, only the host or the
    program is shown, since the rest may be a secret."""
    tree = config.model_dump(mode="json")
    if (notify := tree["cluster"]["notify"]) is not None:
        tree["cluster"]["notify"] = host_only(notify)
    return yaml.safe_dump(tree, sort_keys=False)


def record_config(config: Settings, folder: Folder) -> None:
    """Record the config as the last one, and also under a name that no other config has."""
    for name in (config_file_of(config), CONFIG_FILE):
        folder.write_bytes(name, resolved_config(config).encode())


def config_file_of(config: Settings) -> str:
    """The name of the file that keeps this config in the folder of its run."""
    return f"config-{fingerprint(resolved_config(config))}.yaml"


@dataclass(frozen=True)
class StoredRun:
    """The last config of a run, and the steps that it used."""

    folder: Folder
    config: Mapping[str, Any]
    steps: tuple[str, ...]

    @classmethod
    def read(cls, location: str | Folder) -> StoredRun:
        """Open the folder. Raises `InputError` when it does not contain a run.

        A `Folder` that is open already keeps its endpoint and keys, which its address lacks.
        """
        folder = (
            location if isinstance(location, Folder) else folder_to_read("the run folder", location)
        )
        steps = read_steps(folder)
        if not steps or CONFIG_FILE not in folder.file_names():
            raise InputError(
                f"{folder.uri} is not the folder of a run (no {STEPS_FILE} and {CONFIG_FILE}); "
                "give the folder that `regenesis.py run` named in its first lines, or start the "
                "run again"
            )
        try:
            config = yaml.safe_load(folder.read_bytes(CONFIG_FILE))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise InputError(
                f"{folder.uri}/{CONFIG_FILE} is damaged; `regenesis.py run CONFIG --until "
                "questions` writes it again"
            )
        return cls(folder, _with_names_of_today(config), tuple(steps))

    def check(self) -> None:
        """Compare the names and sizes of the files of all finished steps with their manifests.

        Raises `DamagedFileError`, so that nothing is computed from a part of a step.
        """
        steps = ((posixpath.basename(name), self.folder.child(name)) for name in self.steps)
        check_steps((Step(n.rpartition("-")[0], f, {}) for n, f in steps), contents=False)

    def step(self, name: str) -> Folder:
        """The folder of the step whose name begins like this, such as `round_0/paths`."""
        for step in self.steps:
            if step.startswith(f"{name}-"):
                return self.folder.child(step)
        raise InputError(
            f"{self.folder.uri}/{STEPS_FILE} names no step {name}; `regenesis.py run CONFIG "
            "--until questions` writes it again"
        )

    def table(self, name: str) -> pa.Table:
        """The rows of a finished step: `questions`, `base/predictions`, `round_0/paths`, ...

        The schemas are those of the steps. Raises `InputError` for a step that the run does not
        have, that is not finished, or that contains no rows (a model).
        """
        known = [step.rpartition("-")[0] for step in self.steps]
        if name not in known:
            raise InputError(f"{name}: the run {self.folder.uri} has the steps {', '.join(known)}")
        self.check()
        folder = self.step(name)
        if folder.manifest() is None:
            raise InputError(f"{name}: the step {folder.uri} is not finished; run the config again")
        if not folder.file_names(".parquet"):
            raise InputError(f"{name}: the step {folder.uri} contains no table")
        if any(is_ledger_file(file) for file in folder.file_names(".parquet")):
            return pa.Table.from_pylist(list(Ledger.read(folder).rows()))
        return folder.read_table()

    def beside(self, step: str, kind: str) -> Folder | None:
        """The step of a kind in the same round as another; None where the run has none, or one for
        each dataset."""
        parent = step.rpartition("/")[0]
        found = [name for name in self.steps if name.startswith(f"{parent}/{kind}-")]
        return self.folder.child(found[0]) if len(found) == 1 else None

    def commands(self) -> list[str]:
        """The commands that worked on the run, each once, in their order."""
        holders = self.folder.child(HOLDERS)
        found = [holders.read_json(name) or {} for name in holders.file_names(".json")]
        return list(dict.fromkeys(str(each["command"]) for each in found if "command" in each))

    def rounds_with_paths(self) -> Iterator[tuple[int, Folder]]:
        """The number and the paths of each round that has paths."""
        for number in range(int(self.config["rounds"])):
            paths = self.step(f"round_{number}/paths")
            if not paths.is_empty():
                yield number, paths


def _with_names_of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config in which renamed settings have their current names."""
    questions = dict(config.get("questions") or {})
    if "broken" in questions:
        questions["on_error"] = {"set_aside": "skip"}.get(questions.pop("broken"), "stop")
        return config | {"questions": questions}
    return config
