"""Supervised fine-tuning: the weighted mean of the cross entropies of the answer tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.objectives.objective import Objective, Parts

if TYPE_CHECKING:
    from training.answers import AnswerTokens
    from training.data.batches import MicroBatch
    from training.settings import TrainingSettings
    from training.steps import WorkerBatch


def _parts(
    tokens: AnswerTokens,
    micro: MicroBatch,
    batch: WorkerBatch,
    settings: TrainingSettings,
    prepared: None,
) -> Parts:
    return {"loss": tokens.total_loss / batch.total_weight}


OBJECTIVE = Objective(
    name="sft",
    parts=_parts,
    nothing_there="no training examples in {}; generate some, or leave its questions out",
)
