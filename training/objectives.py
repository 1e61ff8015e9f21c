"""The losses of a training: SFT, DPO with an NLL term, and KTO.

Each loss is a mean over the global batch, and a micro-batch contributes its part: parts are summed
over micro-batches and workers. Let `r` be a sequence's log-probability under the model minus that
under the model from which the training starts (for its answer tokens, in nats):

* sft: the weighted mean of the cross entropies of the answer tokens.
* dpo: preference_weight * mean over pairs of -log sigmoid(beta * (r_chosen - r_rejected))
  + nll_weight * the sft loss of the chosen answers (arXiv 2305.18290, 2404.19733).
* kto: mean over examples of desirable_weight * (1 - sigmoid(beta * (r - kl))) for a right path, and
  undesirable_weight * (1 - sigmoid(beta * (kl - r))) for a wrong one. `kl`, the distance that the
  model has moved, is the mean of r over the batch's prompts with answers to other prompts, at least
  0; it has no gradient (arXiv 2402.01306).

Runs on the training workers only; importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.batches import IGNORED, MicroBatch, answer_positions, example_numbers
from training.packing import model_inputs
from training.settings import DpoSettings, KtoSettings, TrainingSettings
from training.steps import WorkerBatch

Parts = dict[str, Any]
"""A micro-batch's parts of means over the global batch, as scalar tensors: `loss`, which has a
gradient, and the other numbers that are reported for a step."""


@dataclass(frozen=True)
class AnswerTokens:
    """The model's results for the answer tokens of a micro-batch, as one-dimensional tensors."""

    losses: Any
    """Cross entropies in float32, in nats; 0 where nothing is learned."""
    weights: Any
    examples: Any
    """The number of the example that each token belongs to."""
    num_examples: int

    @property
    def total_loss(self) -> Any:
        """The weighted sum of the cross entropies."""
        return self.losses @ self.weights

    @property
    def log_probs(self) -> Any:
        """The log-probability of each example's answer: [examples]."""
        sums = self.losses.new_zeros(max(self.num_examples, 1))
        return sums.index_add(0, self.examples, -self.losses)[: self.num_examples]


def answer_tokens(model: Any, micro: MicroBatch, device: Any) -> AnswerTokens:
    """A forward pass over a micro-batch.

    Logits are computed only at positions where some row's next token is learned: with a vocabulary
    of 100,000 tokens, those of the prompts would be the largest tensor of all.
    """
    import torch

    positions = answer_positions(micro.labels)
    logits = model(
        **model_inputs(micro, device),
        logits_to_keep=torch.from_numpy(positions).to(device),
        use_cache=False,
    ).logits
    labels, weights, examples = (
        torch.from_numpy(np.ascontiguousarray(array[:, positions + 1])).to(device).flatten()
        for array in (micro.labels, micro.weights, example_numbers(micro))
    )
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels, ignore_index=IGNORED, reduction="none"
    )
    return AnswerTokens(losses, weights, examples, len(micro.references))


def answer_loss(model: Any, micro: MicroBatch, device: Any) -> Any:
    """The weighted sum of the cross entropies of a micro-batch's answer tokens, in float32."""
    return answer_tokens(model, micro, device).total_loss


def log_ratios(tokens: AnswerTokens, micro: MicroBatch) -> Any:
    """`r` of each example of a micro-batch."""
    import torch

    return tokens.log_probs - torch.from_numpy(micro.references).to(tokens.losses.device)


def divergence(engine: Any, share: WorkerBatch) -> Any:
    """KTO's `kl` of a global batch. Every worker must call it, and gets the same value."""
    import torch

    total = torch.zeros((), device=engine.device)
    engine.eval()
    with torch.no_grad():
        for micro in share.mismatched:
            total += log_ratios(answer_tokens(engine, micro, engine.device), micro).sum()
    engine.train()
    torch.distributed.all_reduce(total)
    return (total / share.num_examples).clamp(min=0)


def micro_parts(
    model: Any,
    micro: MicroBatch,
    share: WorkerBatch,
    settings: TrainingSettings,
    device: Any,
    kl: Any,
) -> Parts:
    """The parts of a micro-batch for the objective of a training. Only kto uses `kl`."""
    tokens = answer_tokens(model, micro, device)
    nll = tokens.total_loss / share.total_weight
    if settings.objective == "dpo":
        return dpo_parts(log_ratios(tokens, micro), nll, share.num_examples, settings.dpo)
    if settings.objective == "kto":
        ratios = log_ratios(tokens, micro)
        return kto_parts(ratios, micro.are_desirable, kl, share.num_examples, settings.kto)
    return {"loss": nll}


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
