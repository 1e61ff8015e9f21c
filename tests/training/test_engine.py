from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.deepspeed_engine import attention_of


@pytest.mark.parametrize(("cap", "attention"), [(0.5, "eager"), (None, None)])
def test_attention_of_a_model_with_a_soft_cap_keeps_it(
    cap: float | None, attention: str | None, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        head_dim=16,
        attn_logit_softcapping=cap,
        **sizes,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():  # scores large enough for the cap to show
        parameter.data *= 8
    model.save_pretrained(tmp_path)

    def logits(implementation: str | None) -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=implementation)
        with torch.no_grad():
            return loaded(input_ids=torch.arange(3, 23)[None]).logits

    assert attention_of(str(tmp_path)) == attention
    by_hand = logits("eager")
    assert torch.allclose(logits(attention), by_hand, atol=1e-4)
    # What the choice is for: the other attention leaves the cap out.
    assert torch.allclose(logits("sdpa"), by_hand, atol=1e-4) == (cap is None)
