"""The token sequences of each example: pure reading of the trainer's table.

An example of `objective: sft` is one sequence, its prompt and target. With preferences there is a
second one with the same prompt::

    dpo   1 9690 | 504 72 2      target: the chosen answer    learned, more likely
          1 9690 | 504 71 2      other: the rejected answer   learned, less likely
    kto   1 9690 | 504 72 2      target: right or wrong       learned as labelled
          1 9690 | 88 19 2       other: another prompt's      only for the divergence

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.batches import Example
from training.objectives import OBJECTIVES
from training.objectives.objective import OtherAnswer
from training.settings import TrainingSettings

REFERENCES = ("target_reference", "other_reference")
"""Columns with the log-probabilities of both sequences under the model from which training starts;
`training.reference` adds them."""


class Sequences:
    """The sequences of a table's examples, by row number."""

    def __init__(self, table: pa.Table, settings: TrainingSettings) -> None:
        self._table = table
        self._settings = settings
        self._ids: list[str] = table.column("example_id").to_pylist()
        self._prompts = table.column("prompt_token_ids").combine_chunks()
        self._targets = table.column("target_token_ids").combine_chunks()
        self._weights = _numbers(table, settings.weight_by, 1.0)
        self._references = [_numbers(table, name, 0.0) for name in REFERENCES]
        self._objective = OBJECTIVES[settings.objective]

    def __len__(self) -> int:
        return len(self._ids)

    def learnt(self, index: int) -> list[Example]:
        """What an example trains: one sequence, or a pair with the chosen one first."""
        if self._objective.learns_other:
            return [self.target(index), self.other(index)]
        return [self.target(index)]

    def looked_at(self, index: int) -> Example | None:
        """What goes through the model before a step without being learned; None if nothing does."""
        if self._objective.other_answers is None or self._objective.learns_other:
            return None
        return self.other(index)

    def target(self, index: int) -> Example:
        return Example(
            self._ids[index],
            self._prompts[index].values.to_numpy(),
            self._targets[index].values.to_numpy(),
            float(self._weights[index]),
            float(self._references[0][index]),
            bool(self._labels[index]),
        )

    def other(self, index: int) -> Example:
        """The other answer to the same prompt, cut to `max_length` (`Objective.other_answers`)."""
        of_target = self.target(index)
        room = self._settings.max_length - len(of_target.prompt)
        return replace(
            of_target,
            target=self._other_answers(index)[:room],
            weight=0.0,
            reference=float(self._references[1][index]),
            is_desirable=False,
        )

    @cached_property
    def _labels(self) -> npt.NDArray[np.bool_]:
        if self._objective.label is None:
            return np.ones(len(self), dtype=np.bool_)
        labels: npt.NDArray[np.bool_] = self._table.column(self._objective.label).to_numpy()
        return labels

    @cached_property
    def _other_answers(self) -> OtherAnswer:
        if self._objective.other_answers is None:
            raise LookupError(f"{self._objective.name} has one answer to each prompt")
        return self._objective.other_answers(self._table, self._settings.seed)


def _numbers(table: pa.Table, column: str | None, default: float) -> npt.NDArray[np.float32]:
    if column not in table.column_names:
        return np.full(table.num_rows, default, dtype=np.float32)
    numbers: npt.NDArray[np.float32] = table.column(column).to_numpy()
    return numbers.astype(np.float32)
