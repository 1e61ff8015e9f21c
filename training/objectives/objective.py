"""The interface of a training objective.

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
"""A function from the number of an example to its other answer's token ids: an int array
[tokens]."""


def no_preparation(engine: Any, batch: WorkerBatch) -> None:
    """Do nothing: most objectives need no preparation before the micro-batches of a step."""


def any_weights(settings: TrainingSettings) -> tuple[float, ...]:
    """A nonzero weight, for an objective whose weights cannot all be 0."""
    return (1.0,)


@dataclass(frozen=True)
class Objective:
    """One objective: its rows, its sequences and its loss."""

    name: str
    """The name in `training.objective`."""

    parts: Callable[[AnswerTokens, MicroBatch, WorkerBatch, TrainingSettings, Any], Parts]
    """The parts of a micro-batch, given its answer tokens and what `prepare` returned."""

    nothing_there: str
    """Why there are no rows, and what to do; `{}` is the folder."""

    folder: str | None = None
    """The subfolder of the examples with its rows; None if they are in the folder itself."""

    stored_names: Mapping[str, str] = field(default_factory=dict)
    """The stored names of columns that the trainer calls by other names."""

    columns: tuple[str, ...] = ()
    """The columns that are read besides ids, prompts and targets."""

    label: str | None = None
    """The column that says whether a row is right; None if all rows are."""

    other_answers: Callable[[pa.Table, int], OtherAnswer] | None = None
    """A function from the rows and the seed to a second answer for each prompt; None if there is
    none. With a second answer, log-probabilities are compared with those of the initial model."""

    learns_other: bool = False
    """Whether the other answer goes through the model with the target, as one example. Otherwise
    only `prepare` uses it, once per step."""

    prepare: Callable[[Any, WorkerBatch], Any] = no_preparation
    """Called once per step on every worker, with the engine; its result is passed to `parts`."""

    weights: Callable[[TrainingSettings], tuple[float, ...]] = any_weights
    """The weights of the loss's terms. If all of them are 0, nothing is learned."""

    @property
    def needs_wrong_paths(self) -> bool:
        """Whether it learns from wrong paths, which are stored in separate files."""
        return self.folder is not None

    @property
    def sequences_per_example(self) -> int:
        """Rows of an unpacked micro-batch that one example needs."""
        return 2 if self.learns_other else 1
