"""What the trainer has to know of an objective.

Each loss is a mean over the global batch, and a micro-batch contributes its part: parts are summed
over micro-batches and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from training.answers import AnswerTokens
    from training.data.batches import MicroBatch
    from training.settings import TrainingSettings
    from training.steps import WorkerBatch

Parts = dict[str, Any]
"""A micro-batch's parts of means over the global batch, as scalar tensors: `loss`, which has a
gradient, and the other numbers that are reported for a step."""

OtherAnswer = Callable[[int], Any]
"""From the number of an example to the token ids of its other answer: an int array [tokens]."""


def no_preparation(engine: Any, batch: WorkerBatch) -> None:
    """Most objectives need nothing before the micro-batches of a step."""


def any_weights(settings: TrainingSettings) -> tuple[float, ...]:
    """The objective has no weights that could all be 0."""
    return (1.0,)


@dataclass(frozen=True)
class Objective:
    """One objective: its rows, its sequences and its loss."""

    name: str
    """As `training.objective` names it."""

    parts: Callable[[AnswerTokens, MicroBatch, WorkerBatch, TrainingSettings, Any], Parts]
    """The parts of a micro-batch, given its answer tokens and what `prepare` returned."""

    nothing_there: str
    """Why there are no rows, and what to do; `{}` is the folder."""

    folder: str | None = None
    """Where the rows are within the folder of the examples; None: in that folder itself."""

    stored_names: Mapping[str, str] = field(default_factory=dict)
    """What a column is called on storage, where the trainer calls it otherwise."""

    columns: tuple[str, ...] = ()
    """The columns that are read besides ids, prompts and targets."""

    label: str | None = None
    """The column that says whether a row is right; None: all rows are."""

    other_answers: Callable[[pa.Table, int], OtherAnswer] | None = None
    """From the rows and the seed to a second answer of each prompt; None: there is none. With a
    second answer, log-probabilities are compared with those of the model that training starts
    from."""

    learns_other: bool = False
    """Whether the other answer goes through the model with the target, as one example. Otherwise
    it is only looked at, once a step, by `prepare`."""

    prepare: Callable[[Any, WorkerBatch], Any] = no_preparation
    """Called once a step on every worker, with the engine; the result goes to `parts`."""

    weights: Callable[[TrainingSettings], tuple[float, ...]] = any_weights
    """The weights of the loss's terms. When all of them are 0, nothing is learned."""

    @property
    def needs_wrong_paths(self) -> bool:
        """Whether it learns from wrong paths, which have files and schemas to themselves."""
        return self.folder is not None

    @property
    def sequences_per_example(self) -> int:
        """Rows of an unpacked micro-batch that one example needs."""
        return 2 if self.learns_other else 1
