"""Swapped adaptations: the control for what it is worth that an adaptation fits its question.

With `synthesis.swap_adaptations: questions` a path goes on with the adaptation of its guideline to
another question, with `guidelines` with that of another guideline to its own question. The prompt
and the seed of that adaptation are those of the path that it is taken from, so an unswapped run has
the same text wherever its engine reproduces a text from its seed.

The other question or guideline is the next one on a ring that a seed has shuffled. So none gets its
own adaptation, and each adaptation is used once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from cluster.inference.schedule import Questions
from evaluation.question import Question
from pipelines.synthesis.seeds import stable_seed


def next_on_ring(names: Iterable[str], *seed: object) -> dict[str, str]:
    """The successor of each of the names on a ring that the seed has shuffled; a single name is its
    own."""
    ring = sorted(names, key=lambda name: stable_seed(*seed, "swap", name))
    return dict(itertools.pairwise([*ring, *ring[:1]]))


@dataclass(frozen=True)
class OtherQuestions:
    """The question whose adaptations each training question gets, of the same dataset."""

    questions: Questions
    seed: int

    def of(self, question: Question) -> Question:
        """The next question of the dataset. It is another one if the dataset has two."""
        name = self._next[question.question_id]
        return Question.from_row(self._table.slice(self._place[name], 1).to_pylist()[0])

    @cached_property
    def _table(self) -> pa.Table:
        return self.questions.read()

    @cached_property
    def _place(self) -> dict[str, int]:
        names = self._table.column("question_id").to_pylist()
        return {name: place for place, name in enumerate(names)}

    @cached_property
    def _next(self) -> dict[str, str]:
        datasets = self._table.column("dataset").to_pylist()
        of_dataset: dict[str, list[str]] = {}
        for name, dataset in zip(self._place, datasets, strict=True):
            of_dataset.setdefault(dataset, []).append(name)
        rings = (next_on_ring(names, self.seed) for names in of_dataset.values())
        return {one: other for ring in rings for one, other in ring.items()}
