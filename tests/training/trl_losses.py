"""The losses that TRL's DPO and KTO trainers compute, to be compared with ours.

    pip install --no-deps --target /tmp/trl 'trl==1.16.0'
    PYTHONPATH=/tmp/trl:. python -m tests.training.trl_losses

prints the numbers that `test_objectives.py` states: of one batch of four pairs and of one of eight
labelled paths, each of which KTO also sees with the answer to another prompt. Model and reference
are given by a formula, so that no random generator has a part in it.
"""

from __future__ import annotations

import tempfile
from typing import Any

from tests.training.conftest import make_rows
from training.objectives.dpo import DpoSettings
from training.objectives.kto import KtoSettings

DPO = DpoSettings(beta=0.3, preference_weight=1.0, nll_weight=0.2)
KTO = KtoSettings(beta=0.3, desirable_weight=1.0, undesirable_weight=1.3)

MODEL, REFERENCE = 1.0, 0.0
"""Phases of the two models. With these KTO's divergence is above 0."""


def made_model(phase: float) -> Any:
    """A two-layer model whose weights are sines."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if weight.dim() == 2:
                places = torch.arange(weight.numel(), dtype=torch.float64)
                sines = torch.sin(places * (1.7 + 0.3 * number) + phase)
                weight.copy_(0.3 * sines.reshape(weight.shape))
    return model


def pairs() -> list[dict[str, Any]]:
    """Four prompts with the answer that was chosen and the one that was not."""
    rows = make_rows(4)
    return [
        {
            "prompt_ids": row["prompt_token_ids"],
            "chosen_ids": row["target_token_ids"],
            "rejected_ids": [*row["target_token_ids"][:-1:2], 9 + number, 2],
        }
        for number, row in enumerate(rows)
    ]


def unpaired() -> list[dict[str, Any]]:
    """Their answers one by one, each with the one before it as the answer to another prompt."""
    rows = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[name],
            "label": name == "chosen_ids",
        }
        for name in ("chosen_ids", "rejected_ids")
        for row in pairs()
    ]
    for number, row in enumerate(rows):
        row["KL_completion_ids"] = rows[number - 1]["completion_ids"]
    return rows


def _loss(trainer_class: Any, arguments: Any, rows: list[dict[str, Any]]) -> float:
    """Of all rows as one batch."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class OfIds(trainer_class):  # type: ignore[misc]
        """TRL tokenizes texts; here are the ids."""

        def _prepare_dataset(self, dataset: Any, *_arguments: Any, **_others: Any) -> Any:
            return dataset

    words = Tokenizer(models.WordLevel({"<end>": 2, "<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )
    trainer = OfIds(
        model=made_model(MODEL),
        ref_model=made_model(REFERENCE),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    [batch] = trainer.get_train_dataloader()
    trainer.model.train()
    return float(trainer.compute_loss(trainer.model, batch).detach())


def main() -> None:
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": 8,
            "gradient_checkpointing": False,
            "max_length": None,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
        }
        dpo = DPOConfig(
            beta=DPO.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[DPO.preference_weight, DPO.nll_weight],
            **common,
        )
        kto = KTOConfig(
            beta=KTO.beta,
            desirable_weight=KTO.desirable_weight,
            undesirable_weight=KTO.undesirable_weight,
            train_sampling_strategy="sequential",
            **common,
        )
        print("dpo", _loss(DPOTrainer, dpo, pairs()))
        print("kto", _loss(KTOTrainer, kto, unpaired()))


if __name__ == "__main__":
    main()
