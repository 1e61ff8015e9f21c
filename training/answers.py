"""The log-probabilities of the answer tokens of a micro-batch, which every objective uses.

Runs on the training workers only; importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.batches import IGNORED, MicroBatch, answer_positions, example_numbers
from training.objectives import OBJECTIVES
from training.objectives.objective import Parts
from training.packing import model_inputs
from training.settings import TrainingSettings
from training.steps import WorkerBatch


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

    def log_ratios(self, micro: MicroBatch) -> Any:
        """Each answer's log-probability minus that under the model the training starts from."""
        import torch

        return self.log_probs - torch.from_numpy(micro.references).to(self.losses.device)


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


def micro_parts(
    model: Any, micro: MicroBatch, batch: WorkerBatch, settings: TrainingSettings, prepared: Any
) -> Parts:
    """The parts of a micro-batch under the objective of a training; see `Objective.parts`."""
    tokens = answer_tokens(model, micro, model.device)
    return OBJECTIVES[settings.objective].parts(tokens, micro, batch, settings, prepared)
