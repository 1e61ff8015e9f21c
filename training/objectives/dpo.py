"""Direct preference optimisation with an NLL term (arXiv 2305.18290, 2404.19733).

preference_weight * mean over pairs of -log sigmoid(beta * (r_chosen - r_rejected)) + nll_weight *
the loss of supervised fine-tuning on what was chosen. `r` is a sequence's log-probability under the
model minus that under the model the training starts from (of its answer tokens, in nats).
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
    """Direct preference optimisation (arXiv 2305.18290) with an NLL term (arXiv 2404.19733); read
    only when `objective: dpo`."""

    beta: Annotated[float, Field(ge=0)] = 0.1
    """How strongly the model is held to the one it starts from; towards 0 the preference teaches
    nothing."""

    preference_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the preference term, the mean over the pairs of a step; 0 leaves plain SFT on what was
    chosen."""

    nll_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the negative log-likelihood of what was chosen, which is SFT's loss; 0 is plain DPO."""


def dpo_parts(ratios: Any, nll: Any, num_pairs: int, settings: DpoSettings) -> Parts:
    """Of a micro-batch of pairs, of which `ratios` holds chosen and rejected in turn.

    Beside the loss: its two terms, the mean margin between the rewards, beta * r, and the share of
    the pairs where it is above 0.
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
        "wrong one; make more paths a question, or set training.objective: sft"
    ),
    folder="preference_pairs",
    stored_names={"example_id": "chosen_id", "target_token_ids": "chosen_token_ids"},
    columns=("rejected_token_ids",),
    other_answers=_rejected,
    learns_other=True,
    weights=lambda settings: (settings.dpo.preference_weight, settings.dpo.nll_weight),
)
