"""Kahneman-Tversky optimisation (arXiv 2402.01306).

The loss is the mean over examples of desirable_weight * (1 - sigmoid(beta * (r - kl))) for a right
path, and undesirable_weight * (1 - sigmoid(beta * (kl - r))) for a wrong one. Here `r` is a
sequence's log-probability under the model minus that under the model from which the training starts
(for its answer tokens, in nats). `kl`, the distance that the model has moved, is the mean of r over
the batch's prompts with answers to other prompts, at least 0; it has no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.settings import Settings
from training.data.batches import mismatched_examples
from training.objectives.objective import Objective, OtherAnswer, Parts

if TYPE_CHECKING:
    from training.answers import AnswerTokens
    from training.data.batches import MicroBatch
    from training.settings import TrainingSettings
    from training.steps import WorkerBatch


class KtoSettings(Settings):
    """Kahneman-Tversky optimisation (arXiv 2402.01306); used only with `objective: kto`."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the model is kept close to the one it starts from."""

    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a right path's loss. If the kinds are not equally frequent, the paper weights them
    so that right paths count 1 to 4/3 times as much in total as wrong ones."""

    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a wrong path's loss."""


def divergence(engine: Any, batch: WorkerBatch) -> Any:
    """KTO's `kl` of a global batch. Every worker must call it, and gets the same value."""
    import torch

    from training.answers import answer_tokens

    total = torch.zeros((), device=engine.device)
    engine.eval()
    with torch.no_grad():
        for micro in batch.mismatched:
            total += answer_tokens(engine, micro, engine.device).log_ratios(micro).sum()
    engine.train()
    torch.distributed.all_reduce(total)
    return (total / batch.num_examples).clamp(min=0)


def kto_parts(
    ratios: Any, are_desirable: Any, kl: Any, num_examples: int, settings: KtoSettings
) -> Parts:
    """The parts of a micro-batch of right and wrong paths.

    Besides the loss, these are `kl` and the mean reward (beta * r), in which the rewards of wrong
    paths count as negative.
    """
    import torch

    desirable = torch.from_numpy(are_desirable).to(ratios.device)
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
    losses = weights * (1 - torch.sigmoid(signs * settings.beta * (ratios - kl)))
    return {
        "loss": losses.sum() / num_examples,
        "kl": kl * (len(ratios) / num_examples),
        "reward_margin": settings.beta * (signs * ratios).sum() / num_examples,
    }


def _parts(
    tokens: AnswerTokens,
    micro: MicroBatch,
    batch: WorkerBatch,
    settings: TrainingSettings,
    kl: Any,
) -> Parts:
    ratios = tokens.log_ratios(micro)
    return kto_parts(ratios, micro.are_desirable, kl, batch.num_examples, settings.kto)


def _of_other_questions(table: pa.Table, seed: int) -> OtherAnswer:
    """For each example, the target of another question, chosen by the seed."""
    ids = table.column("example_id").to_pylist()
    others = mismatched_examples(ids, table.column("question_id").to_pylist(), seed)
    targets = table.column("target_token_ids").combine_chunks()
    return lambda index: targets[others[index]].values.to_numpy()


OBJECTIVE = Objective(
    name="kto",
    parts=_parts,
    nothing_there=(
        "no right or wrong paths in {}, which training.objective kto needs; generate more paths "
        "per question, or set training.objective: sft"
    ),
    folder="unpaired_preferences",
    stored_names={"target_token_ids": "completion_token_ids"},
    columns=("question_id", "label"),
    label="label",
    other_answers=_of_other_questions,
    prepare=divergence,
    weights=lambda settings: (settings.kto.desirable_weight, settings.kto.undesirable_weight),
)
