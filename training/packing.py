"""Attention for packed rows: within each example, never across examples.

Runs on the training workers only; importing this module imports neither torch nor transformers.

A row of two examples of five and two tokens has `cu_seq_lens_q = [0, 5, 7]`, the name under which
transformers passes such boundaries to every layer's attention. The attention in this module reads
them and builds no mask: on a GPU in 16 bits it is torch's variable-length flash attention;
elsewhere each example is computed separately, so a row costs as much as its examples alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from cluster.errors import InputError
from training.data.batches import Example, MicroBatch, pack

NAME = "regenesis_packed"
"""The attention's name in transformers; it is not written to a saved config."""

LEAK = 0.01
"""Difference of logits, in standard deviations, that shows that an example saw another one in a
model with experts, where the number of tokens of an expert changes the rounding. In other models
any difference shows it."""


def use_packed_attention(model: Any) -> None:
    """Make a transformers model use the attention of this module; it then needs `model_inputs`."""
    import transformers

    transformers.AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def model_inputs(micro: MicroBatch, device: Any) -> dict[str, Any]:
    """The arguments of a model's forward pass for a padded or a packed batch."""
    import torch

    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(micro.input_ids).to(device)}
    if micro.attention_mask is not None:
        inputs["attention_mask"] = torch.from_numpy(micro.attention_mask).to(device)
    if micro.position_ids is not None:
        bounds = (0, *micro.ends)
        ends = torch.tensor(bounds, dtype=torch.int32, device=device)
        longest = max(end - start for start, end in itertools.pairwise(bounds))
        inputs |= {
            "position_ids": torch.from_numpy(micro.position_ids).to(device),
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return inputs


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    cu_seq_lens_q: Any,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **_others: Any,
) -> tuple[Any, None]:
    """Causal attention within each example of a row, as transformers calls an attention.

    `query`, `key` and `value` are [1, heads, tokens, head size]; the result is [1, tokens, heads,
    head size]. Raises `InputError` for soft caps and sinks, which it does not compute.
    """
    if softcap is not None or s_aux is not None:
        raise InputError(
            "training.packing: the model's attention has soft caps or sinks, which packed "
            "attention does not compute; set training.packing: false"
        )
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if _has_kernel(query) and not dropout:
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    return _one_by_one(query, key, value, cu_seq_lens_q.tolist(), scaling, dropout, window), None


def _has_kernel(query: Any) -> bool:
    return bool(query.is_cuda) and query.element_size() == 2


def _by_kernel(
    query: Any, key: Any, value: Any, ends: Any, longest: int, scale: float | None, window: Any
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    # A window includes the token itself; (-1, 0) means all tokens before it and none after.
    left = window - 1 if window else -1
    output = varlen_attn(
        *rows,
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def _one_by_one(
    query: Any,
    key: Any,
    value: Any,
    ends: Sequence[int],
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Any:
    import torch

    lengths = [end - start for start, end in itertools.pairwise(ends)]
    # Split at once: the gradient of each slice would be a row of zeros except for its part.
    examples = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    outputs = []
    for length, (of_query, of_key, of_value) in zip(lengths, examples, strict=True):
        mask = _window_mask(length, window, query.device)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                of_query,
                of_key,
                of_value,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _window_mask(length: int, window: int | None, device: Any) -> Any:
    """Which tokens each token sees in a sliding window; None if the window contains all of them."""
    import torch

    if window is None or length <= window:
        return None
    everything = torch.ones(length, length, dtype=torch.bool, device=device)
    return everything.tril() & everything.triu(1 - window)


def refuse_leak(model: Any, vocab_size: int, device: Any) -> None:
    """Raise `InputError` when packed examples see each other in this model.

    An example goes through the model after two others of the same length, and its logits must stay
    the same. Two passes over 16 tokens are enough for any model, including one whose layers are not
    attention and carry a state along the row. Every worker must call it, with DeepSpeed's engine.
    """
    import torch

    ids = [token % vocab_size for token in range(1, 25)]
    neighbours = [Example("one", ids[:4], ids[4:8]), Example("other", ids[8:12], ids[12:16])]
    example = Example("same", ids[16:20], ids[20:])
    model.eval()
    with torch.no_grad():
        one, other = (
            model(**model_inputs(pack([neighbour, example], 0), device), use_cache=False)
            .logits[0, -example.length :]
            .float()
            for neighbour in neighbours
        )
    model.train()
    difference = float((one - other).abs().max() / one.std())
    # Written so that what is not a number is refused.
    if not (difference == 0 or (_rounds_by_batch(model) and difference < LEAK)):
        raise InputError(
            "training.packing: examples packed into one row see each other in this model (its "
            f"logits move by {difference:.2g} standard deviations); set training.packing: false"
        )


def _rounds_by_batch(model: Any) -> bool:
    """Whether the model has experts, and no layer that mixes neighbouring tokens by itself."""
    import torch

    mixes = (torch.nn.Conv1d, torch.nn.RNNBase)
    has_experts = any("expert" in name for name, _ in model.named_parameters())
    return has_experts and not any(isinstance(module, mixes) for module in model.modules())
