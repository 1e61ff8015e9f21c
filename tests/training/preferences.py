"""Preferences over small random sequences, and what DPO and KTO make of them with plain torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.store.folder import Folder
from tests.training.conftest import make_rows
from training.data.batches import mismatched_examples
from training.objectives.dpo import DpoSettings
from training.objectives.kto import KtoSettings
from training.settings import TrainingSettings

_IDS = pa.list_(pa.int32())
_PAIRS = pa.schema(
    [
        ("chosen_id", pa.string()),
        ("dataset", pa.string()),
        ("prompt_token_ids", _IDS),
        ("chosen_token_ids", _IDS),
        ("rejected_token_ids", _IDS),
    ]
)
_UNPAIRED = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("label", pa.bool_()),
        ("prompt_token_ids", _IDS),
        ("completion_token_ids", _IDS),
    ]
)


def write_preferences(folder: Folder, num_pairs: int) -> None:
    """Examples, pairs of their targets and others, and all of these one by one."""
    random = np.random.default_rng(1)
    pairs, unpaired = [], []
    for row in make_rows(num_pairs):
        rejected = [*random.integers(3, 200, random.integers(1, 8)).tolist(), 2]
        shared = {key: row[key] for key in ("question_id", "dataset", "prompt_token_ids")}
        pairs.append(
            shared
            | {
                "chosen_id": row["example_id"],
                "chosen_token_ids": row["target_token_ids"],
                "rejected_token_ids": rejected,
            }
        )
        for label, answer in ((True, row["target_token_ids"]), (False, rejected)):
            example_id = f"{row['example_id']}/{label}"
            unpaired.append(
                shared | {"example_id": example_id, "label": label, "completion_token_ids": answer}
            )
    table = pa.Table.from_pylist(pairs, schema=_PAIRS)
    folder.child("preference_pairs").write_table("pairs-00000.parquet", table)
    table = pa.Table.from_pylist(unpaired[:-1], schema=_UNPAIRED)
    folder.child("unpaired_preferences").write_table("unpaired-00000.parquet", table)


def preference_rows(examples: Folder, settings: TrainingSettings) -> list[dict[str, Any]]:
    """What is learnt, in the trainer's names; `other_token_ids` as `training.data.sequences` has
    it."""
    if settings.objective == "dpo":
        pairs = examples.child("preference_pairs").read_table().to_pylist()
        return [
            {
                "example_id": row["chosen_id"],
                "dataset": row["dataset"],
                "prompt_token_ids": row["prompt_token_ids"],
                "target_token_ids": row["chosen_token_ids"],
                "other_token_ids": row["rejected_token_ids"],
            }
            for row in pairs
        ]
    rows: list[dict[str, Any]] = examples.child("unpaired_preferences").read_table().to_pylist()
    for row in rows:
        row["target_token_ids"] = row.pop("completion_token_ids")
    ids, questions = ([row[key] for row in rows] for key in ("example_id", "question_id"))
    for row, other in zip(rows, mismatched_examples(ids, questions, settings.seed), strict=True):
        row["other_token_ids"] = rows[other]["target_token_ids"]
    return rows


def add_references(module: Any, rows: list[dict[str, Any]]) -> None:
    """The log-probabilities before the training."""
    import torch

    with torch.no_grad():
        for row in rows:
            row["target_reference"] = float(log_prob(module, row, "target_token_ids"))
            row["other_reference"] = float(log_prob(module, row, "other_token_ids"))


def log_prob(module: Any, row: dict[str, Any], answer: str) -> Any:
    """Of one answer to the row's prompt, alone in the model."""
    import torch

    prompt, target = row["prompt_token_ids"], row[answer]
    logits = module(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.arange(len(target)), torch.tensor(target)
    return torch.log_softmax(logits.float(), dim=-1)[chosen].sum()


def dpo_terms(module: Any, batch: list[dict[str, Any]], settings: DpoSettings) -> Iterator[Any]:
    """The loss of a batch, a pair at a time."""
    import torch

    num_tokens = sum(len(row["target_token_ids"]) for row in batch)
    for row in batch:
        chosen = log_prob(module, row, "target_token_ids")
        rejected = log_prob(module, row, "other_token_ids")
        margin = chosen - row["target_reference"] - (rejected - row["other_reference"])
        preference = torch.log(1 + torch.exp(-settings.beta * margin))
        yield settings.preference_weight * preference / len(batch)
        yield -settings.nll_weight * log_prob(module, row, "target_token_ids") / num_tokens


def kto_terms(module: Any, batch: list[dict[str, Any]], settings: KtoSettings) -> Iterator[Any]:
    """The loss of a batch, an example at a time."""
    import torch

    with torch.no_grad():
        gone = [
            float(log_prob(module, row, "other_token_ids")) - row["other_reference"]
            for row in batch
        ]
    kl = max(0.0, math.fsum(gone) / len(batch))
    for row in batch:
        ratio = log_prob(module, row, "target_token_ids") - row["target_reference"]
        sign, weight = (
            (1, settings.desirable_weight) if row["label"] else (-1, settings.undesirable_weight)
        )
        value = 1 / (1 + torch.exp(-sign * settings.beta * (ratio - kl)))
        yield weight * (1 - value) / len(batch)
