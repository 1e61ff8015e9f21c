"""What every source of questions offers, so that nobody has to ask which of them it is.

A source is a branch of the config (`kind: files`, `task` or `reasoning_gym`) with the methods of
`Source`. What a dataset's settings ask of it is in `Asked`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from evaluation.question import Domain, Question, Split

DEV_SHARE, TEST_SHARE = 0.1, 0.0
"""The shares of train that become dev and test where neither the source nor the config says."""

Ordered = tuple[int, Question]
"""The number that a limit goes by, smallest first; and the question."""


@dataclass(frozen=True)
class Asked:
    """What a dataset asks of its source."""

    dataset: str
    domain: Domain
    limits: Mapping[Split, int | None]
    """At most so many questions of a split; None: all."""
    dev_share: float
    """The share of train that becomes dev where the source has no dev."""
    test_share: float
    wrong_rows: list[str] = field(default_factory=list)
    """Takes what is wrong with the rows that the source may leave out."""


class Source(Protocol):
    """Where the questions of a dataset come from."""

    @property
    def domain(self) -> Domain:
        """What its questions are for unless the config says otherwise."""

    @property
    def is_labelled(self) -> bool:
        """Whether its questions come with right answers."""

    @property
    def is_generated(self) -> bool:
        """Whether a program makes its questions, so that all of a kind share their words."""

    def given_splits(self, domain: Domain) -> tuple[Split, ...]:
        """The splits that the source itself has; dev and test may be carved from its train."""

    def check(self, asked: Asked) -> None:
        """Raise `ValueError` where the settings of the dataset do not fit the source."""

    def read(self, folder: str, asked: Asked) -> Iterator[Ordered]:
        """The questions in their final splits. Relative paths start at `folder`.

        Raises `InputError` for whatever is wrong with them.
        """

    def digest(self, folder: str) -> str | None:
        """What the questions come from, beside the settings; None where that cannot be told.

        Raises `InputError` where a file cannot be read.
        """


def check_splits_exist(asked: Asked, splits: tuple[Split, ...]) -> None:
    """Raise `ValueError` for a limit of a split that the source has not and that is not carved."""
    shares: dict[Split, float] = {"dev": asked.dev_share, "test": asked.test_share}
    for split, share in shares.items():
        carved = "train" in splits and share > 0
        if asked.limits[split] and split not in splits and not carved:
            raise ValueError(
                f"num_{split} is {asked.limits[split]}, but there is no {split}; "
                f"name a {split} in source, set {split}_share, or remove num_{split}"
            )


def carve(
    questions: Iterable[Question], asked: Asked, given: tuple[Split, ...]
) -> Iterator[Ordered]:
    """Give the splits that the source has not their share of train, by the hash of each id.

    Hash order makes the choice independent of the file's order and of how many are asked for.
    """
    dev_share = 0.0 if "dev" in given else asked.dev_share
    test_share = 0.0 if "test" in given else asked.test_share
    for question in questions:
        order = stable_hash(question.question_id)
        split = question.split
        if split == "train":
            split = split_of(order, dev_share, test_share)
        yield order, question if split == question.split else replace(question, split=split)


def split_of(hashed: int, dev_share: float, test_share: float) -> Split:
    """A split by the key's hash alone, so that it never changes as questions are added."""
    position = (hashed >> 16) / 2**48
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def stable_hash(key: str) -> int:
    """The first 8 bytes of the SHA-256, as a number."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
