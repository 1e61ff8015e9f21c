"""What other filters would keep of the paths that a run has, without generating anything.

`regenesis.py select RUN --set examples.verdict=majority` reads the run's own config and paths and
prints, for each round, a row a dataset::

    | dataset | paths | kept | of paths | expected lucky | dropped |
    | gsm8k   | 25000 | 4120 | 16.5 %   | 0.0 %          | 14800 wrong, 3011 over_max_per_question |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.errors import InputError
from cluster.steps import STEPS_FILE
from cluster.storage import Folder

CONFIG_FILE = "config.yaml"
"""The resolved config that was run last, in the run's folder."""


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder tells of it: the config that was run last, and the steps that it used."""

    folder: Folder
    config: Mapping[str, Any]
    steps: tuple[str, ...]

    @classmethod
    def read(cls, uri: str) -> StoredRun:
        """Raises `InputError` when the folder holds no run that was begun."""
        folder = Folder.open(uri)
        steps = folder.read_json(STEPS_FILE)
        if not isinstance(steps, list) or CONFIG_FILE not in folder.file_names():
            raise InputError(
                f"{uri} is no folder of a run (no {STEPS_FILE} and {CONFIG_FILE}); give the folder "
                "that `regenesis.py run` named in its first lines, or run it once more"
            )
        return cls(folder, yaml.safe_load(folder.read_bytes(CONFIG_FILE)), tuple(steps))

    def step(self, name: str) -> Folder:
        """The folder of the one step whose name begins so, such as `round_0/paths`."""
        return self.folder.child(next(step for step in self.steps if step.startswith(f"{name}-")))

    def rounds_with_paths(self) -> Iterator[tuple[int, Folder]]:
        """The number and the paths of each round that has some."""
        for number in range(int(self.config["rounds"])):
            paths = self.step(f"round_{number}/paths")
            if not paths.is_empty():
                yield number, paths


def format_selection(facts: Mapping[str, Any]) -> str:
    """The facts of `select_step_examples` as a table, a row a dataset and one of all."""
    lines = [
        "| dataset | paths | kept | of paths | expected lucky | dropped |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [_line(name, of_dataset) for name, of_dataset in facts["datasets"].items()]
    if len(facts["datasets"]) > 1:
        lines.append(_line("all", facts))
    return "\n".join([*lines, *format_overlaps(facts)])


def _line(name: str, facts: Mapping[str, Any]) -> str:
    num_paths, num_kept = facts["num_paths"], facts["num_kept_paths"]
    of_paths = f"{100 * num_kept / num_paths:.1f} %" if num_paths else ""
    share = facts.get("expected_lucky_share")
    lucky = f"{100 * share:.1f} %" if share is not None else ""
    dropped = ", ".join(f"{number} {reason}" for reason, number in facts["dropped"].items())
    return f"| {name} | {num_paths} | {num_kept} | {of_paths} | {lucky} | {dropped} |"


def format_overlaps(facts: Mapping[str, Any]) -> list[str]:
    """A line for each dataset whose training questions overlap with some of evaluation."""
    return [
        f"examples: {number} questions of {name} share a run of words with {other}'s of evaluation"
        for name, of_dataset in facts["datasets"].items()
        for other, number in of_dataset["overlaps_with"].items()
    ]
