"""The interface of every source of questions, so that callers need not distinguish them.

A source is a branch of the config (`kind: files`, `task` or `reasoning_gym`) with the methods of
`Source`. `Asked` has what a dataset requests from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from evaluation.question import Domain, Question, Split

DEV_SHARE, TEST_SHARE = 0.1, 0.0
"""The shares of train that become dev and test if neither the source nor the config sets them."""

Ordered = tuple[int, Question]
"""The number that orders the questions for a limit, smallest first, and the question."""


@dataclass(frozen=True)
class Asked:
    """The request of a dataset to its source."""

    dataset: str
    domain: Domain
    limits: Mapping[Split, int | None]
    """Limits on the questions by split; None means all."""
    dev_share: float
    """The share of train that becomes dev if the source has no dev."""
    test_share: float
    wrong_rows: list[str] = field(default_factory=list)
    """Receives the errors about rows that the source may skip."""


class Source(Protocol):
    """Where the questions of a dataset come from."""

    @property
    def domain(self) -> Domain:
        """What its questions are used for unless the config sets it."""

    @property
    def is_labelled(self) -> bool:
        """Whether its questions come with right answers."""

    @property
    def is_generated(self) -> bool:
        """Whether a program generates its questions, so that all of a kind share their words."""

    def check(self, asked: Asked) -> None:
        """Raise `ValueError` if the settings of the dataset do not fit the source."""

    def read(self, folder: str, asked: Asked) -> Iterator[Ordered]:
        """The questions in their final splits. Relative paths start at `folder`.

        Raises `InputError` for anything that is wrong with them.
        """

    def digest(self, folder: str) -> str | None:
        """A hash of what the questions come from, besides the settings; None if it is unknown.

        Raises `InputError` when a file cannot be read.
        """


def check_splits_exist(asked: Asked, splits: tuple[Split, ...]) -> None:
    """Raise `ValueError` for a limit on a split that neither exists nor is carved."""
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
    """Give missing splits their share of train, by the hash of each id.

    The order by hash makes the choice independent of the file's order and of the number requested.
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
    """The split of a key, by its hash alone, so that it never changes as questions are added."""
    position = (hashed >> 16) / 2**48
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def stable_hash(key: str) -> int:
    """The first 8 bytes of the SHA-256 as a number."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
