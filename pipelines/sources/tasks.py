"""Questions of a task that is known by name: GSM8K, ARC and the others in `evaluation/tasks/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pydantic

from cluster.settings import Settings
from evaluation.question import Domain, Question, Split
from evaluation.rows import resolve
from evaluation.task import Task, find_task, read_task


class TaskSource(Settings):
    """Questions of a known benchmark, from the Hugging Face hub or from files of the user's."""

    kind: Literal["task"]

    name: str
    """The task's name; `regenesis.py tasks` lists them."""

    path: str | None = None
    """A folder or a file, relative to `questions.folder`, or a URI; null: the Hugging Face hub.
    A folder holds upstream's own files, the hub's Parquet, or our `<name>.<split>.jsonl`."""

    splits: tuple[Split, ...] | None = None
    """Which of its splits are read; null: all that it has. A dev or test that is not read is carved
    from train, as `dev_share` and `test_share` say."""

    max_wrong_rows: pydantic.NonNegativeInt = 0
    """So many rows that are wrong upstream are left out and said; one more, and the task cannot be
    loaded."""

    @pydantic.field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name.startswith("reasoning_gym:"):
            family = name.partition(":")[2]
            raise ValueError(f"write source: {{kind: reasoning_gym, family: {family}}} instead")
        return find_task(name).name

    @pydantic.model_validator(mode="after")
    def _has_splits(self) -> TaskSource:
        for split in self.splits or ():
            if split not in self.task.splits:
                has = ", ".join(self.task.splits)
                raise ValueError(f"splits: task {self.name} has no {split}; it has {has}")
        return self

    @property
    def task(self) -> Task:
        """What the name stands for."""
        return find_task(self.name)

    def used_splits(self, domain: Domain) -> tuple[Split, ...]:
        """The splits that are read: of `out_of_domain` never train, unless it is asked for."""
        if self.splits is not None:
            return self.splits
        used = self.task.splits
        return used if domain == "in_domain" else tuple(s for s in used if s != "train")

    def check_domain(self, domain: Domain) -> None:
        """Raise ValueError where the splits do not fit what the dataset is for."""
        used = self.used_splits(domain)
        if domain == "out_of_domain" and "train" in used:
            raise ValueError("out_of_domain has no train; take train out of source.splits")
        if not used:
            raise ValueError(f"task {self.name} is read from no split; mend source.splits")
        if domain == "in_domain" and self.task.no_training:
            raise ValueError(
                f"task {self.name} may not be trained on, because {self.task.no_training}; "
                "set domain to out_of_domain"
            )
        if domain == "in_domain" and "train" not in used:
            raise ValueError(
                f"in_domain needs a train split, and of task {self.name} are used: "
                f"{', '.join(used)}; set domain to out_of_domain"
            )


def read_task_questions(
    source: TaskSource, folder: str, dataset: str, domain: Domain, wrong: list[str]
) -> Iterator[Question]:
    """The questions of the splits that are used, in upstream's order. Raises `InputError`.

    What is wrong with the rows that are left out is put into `wrong`, with file and line.
    """
    return read_task(
        source.task,
        source.used_splits(domain),
        resolve(source.path, folder) if source.path is not None else None,
        dataset=dataset,
        domain=domain,
        wrong=wrong,
        max_wrong=source.max_wrong_rows,
    )
