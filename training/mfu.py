"""The speed of a step relative to the GPUs' peak: model FLOPs utilisation (arXiv 2204.02311).

The products that the method needs are counted, without recomputation: 2 FLOPs per parameter and
token in the forward pass, 4 in the backward pass of a trained parameter, and 2 in that of a frozen
one; the output layer counts only at tokens that are learned. Attention is left out, so the number
is slightly too low. Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Dense bfloat16 FLOP/s from the vendors' data sheets (half of the values with sparsity). The first
# row whose words are all in a card's name applies, so the slower variant of a card comes first.
PEAK_FLOPS = {
    ("GB200",): 2500e12,
    ("B200",): 2250e12,
    ("H200", "NVL"): 836e12,
    ("GH200",): 989e12,
    ("H200",): 989e12,
    ("H100", "PCIe"): 756e12,
    ("H100", "NVL"): 836e12,
    ("H100",): 989e12,
    ("H20",): 148e12,
    ("A100",): 312e12,
    ("A30",): 165e12,
    ("A40",): 150e12,
    ("A10G",): 70e12,
    ("A10",): 125e12,
    ("L40S",): 362e12,
    ("L40",): 181e12,
    ("L4",): 121e12,
}


@dataclass(frozen=True)
class Work:
    """FLOPs of a training step, by kind of token."""

    per_token: float
    per_answer_token: float

    def flops(self, num_tokens: int, num_answer_tokens: int) -> float:
        return self.per_token * num_tokens + self.per_answer_token * num_answer_tokens


def work_of(model: Any) -> Work | None:
    """The work of a transformers model per token; None for a model with experts."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts")):
        return None
    head = model.get_output_embeddings().weight
    tables = {id(head), id(model.get_input_embeddings().weight)}
    inner = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    return Work(
        per_token=sum(_flops(parameter) for parameter in inner), per_answer_token=_flops(head)
    )


def _flops(parameter: Any) -> float:
    # ZeRO-3 leaves an empty tensor in its place and records the original size.
    size = getattr(parameter, "ds_numel", parameter.numel())
    return float(size) * (6 if parameter.requires_grad else 4)


def peak_flops(device_name: str | None) -> float | None:
    """The peak of a GPU by its name, such as "NVIDIA H100 80GB HBM3"; None without a GPU, and for
    an unknown one."""
    words = set((device_name or "").replace("-", " ").split())
    return next((peak for names, peak in PEAK_FLOPS.items() if words.issuperset(names)), None)
