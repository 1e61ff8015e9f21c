"""Direct preference optimisation with an NLL term (arXiv 2305.18290, 2404.19733).

The loss is preference_weight * mean over pairs of -log sigmoid(beta * (r_chosen - r_rejected))
+ nll_weight * the loss of supervised fine-tuning on the chosen answers. Here `r` is a sequence's
log-probability under the model minus that under the model from which the training starts (for its
answer tokens, in nats).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.settings import Settings
from training.objectives.objective import Objective, OtherAnswer, Parts

if TYPE_CHECKING:
    from training.answers import AnswerTokens
    from training.data.batches import MicroBatch
    from training.settings import TrainingSettings
    from training.steps import WorkerBatch


class DpoSettings(Settings):
    """Direct preference optimisation (arXiv 2305.18290) with an NLL term (arXiv 2404.19733); used
    only with `objective: dpo`."""

    beta: Annotated[float, Field(ge=0)] = 0.1
    """How strongly the model is kept close to the one it starts from; near 0 the preference has no
    effect."""

    preference_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the preference term, the mean over the pairs of a step; 0 is plain SFT on the
    chosen answers."""

    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen answers' negative log-likelihood, which is SFT's loss; 0 is plain
    DPO."""


def dpo_parts(ratios: Any, nll: Any, num_pairs: int, settings: DpoSettings) -> Parts:
    """The parts of a micro-batch of pairs; `ratios` alternates between chosen and rejected.

    Besides the loss, these are its two terms, the mean margin between the rewards (beta * r), and
    the share of the pairs whose margin is above 0.
    """
    import torch

    margins = settings.beta * (ratios[0::2] - ratios[1::2])
    preference = -torch.nn.functional.logsigmoid(margins).sum() / num_pairs
    return {
        "loss": settings.preference_weight * preference + settings.nll_weight * nll,
        "preference_loss": preference,
        "nll": nll,
        "reward_margin": margins.sum() / num_pairs,
        "reward_accuracy": (margins > 0).float().sum() / num_pairs,
    }


def _parts(
    tokens: AnswerTokens,
    micro: MicroBatch,
    batch: WorkerBatch,
    settings: TrainingSettings,
    prepared: None,
) -> Parts:
    nll = tokens.total_loss / batch.total_weight
    return dpo_parts(tokens.log_ratios(micro), nll, batch.num_examples, settings.dpo)


def _rejected(table: pa.Table, seed: int) -> OtherAnswer:
    rejected = table.column("rejected_token_ids").combine_chunks()
    return lambda index: rejected[index].values.to_numpy()


OBJECTIVE = Objective(
    name="dpo",
    parts=_parts,
    nothing_there=(
        "no preference pairs in {}: training.objective dpo needs questions with a kept path and a "
        "wrong one; generate more paths per question, or set training.objective: sft"
    ),
    folder="preference_pairs",
    stored_names={"example_id": "chosen_id", "target_token_ids": "chosen_token_ids"},
    columns=("rejected_token_ids",),
    other_answers=_rejected,
    learns_other=True,
    weights=lambda settings: (settings.dpo.preference_weight, settings.dpo.nll_weight),
)
