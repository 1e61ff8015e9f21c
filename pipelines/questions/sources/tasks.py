"""Questions of a task that is known by name: GSM8K, ARC and the others in `evaluation/tasks/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pydantic

from cluster.settings import Settings
from evaluation.question import Domain, Split
from evaluation.reading.rows import resolve
from evaluation.task import Task, find_task, read_task
from pipelines.questions.sources.source import Asked, Ordered, carve, check_splits_exist


class TaskSource(Settings):
    """Questions of a known benchmark, from the Hugging Face hub or from the user's files."""

    kind: Literal["task"]

    name: str
    """The task's name; `regenesis.py tasks` lists them."""

    path: str | None = None
    """A folder or file, relative to `questions.folder`, or a URI; null is the Hugging Face hub. A
    folder contains upstream's files, the hub's Parquet files, or our `<name>.<split>.jsonl`."""

    splits: tuple[Split, ...] | None = None
    """The splits to read; null reads all that the task has. A dev or test split that is not read is
    carved from train, as `dev_share` and `test_share` say."""

    max_wrong_rows: pydantic.NonNegativeInt = 0
    """This many rows that are wrong upstream are skipped and reported; with one more, the task
    cannot be loaded."""

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
        """The task of this name."""
        return find_task(self.name)

    @property
    def domain(self) -> Domain:
        return self.task.domain

    @property
    def is_labelled(self) -> bool:
        return True

    @property
    def is_generated(self) -> bool:
        return False

    def given_splits(self, domain: Domain) -> tuple[Split, ...]:
        """The splits that are read; train of `out_of_domain` only if it is requested."""
        if self.splits is not None:
            return self.splits
        used = self.task.splits
        return used if domain == "in_domain" else tuple(s for s in used if s != "train")

    def check(self, asked: Asked) -> None:
        used, domain = self.given_splits(asked.domain), asked.domain
        if asked.dev_share + asked.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")
        if domain == "out_of_domain" and "train" in used:
            raise ValueError("out_of_domain has no train; take train out of source.splits")
        if not used:
            raise ValueError(f"task {self.name} has no split to read; fix source.splits")
        if domain == "in_domain" and self.task.no_training:
            raise ValueError(
                f"task {self.name} may not be trained on, because {self.task.no_training}; "
                "set domain to out_of_domain"
            )
        if domain == "in_domain" and "train" not in used:
            raise ValueError(
                f"in_domain needs a train split, but task {self.name} is read from "
                f"{', '.join(used)}; set domain to out_of_domain"
            )
        check_splits_exist(asked, used)

    def read(self, folder: str, asked: Asked) -> Iterator[Ordered]:
        """Read the rows in upstream's order; errors about skipped rows go to `asked`."""
        splits = self.given_splits(asked.domain)
        questions = read_task(
            self.task,
            splits,
            resolve(self.path, folder) if self.path is not None else None,
            dataset=asked.dataset,
            domain=asked.domain,
            wrong=asked.wrong_rows,
            max_wrong=self.max_wrong_rows,
        )
        return carve(questions, asked, splits)

    def digest(self, folder: str) -> str | None:
        return None  # only the task's reader knows its files
