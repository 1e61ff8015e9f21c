"""A small random model and examples for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.store.folder import Folder

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("target_token_ids", pa.list_(pa.int32())),
        ("dataset", pa.string()),
        ("vote_share", pa.float32()),
    ]
)


def make_rows(count: int) -> list[dict[str, Any]]:
    """Rows with something to learn: each target token follows from one of the prompt's."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        prompt = [1, *random.integers(3, 60, random.integers(4, 12)).tolist()]
        target = [2 * token % 200 + 3 for token in prompt[-random.integers(2, 5) :]]
        rows.append(
            {
                "example_id": f"example/{index}",
                "question_id": f"question/{index}",
                "prompt_token_ids": prompt,
                "target_token_ids": [*target, 2],
                "dataset": "few" if index < 5 else "many",
                "vote_share": (1 + index % 4) / 4,
            }
        )
    return rows


def write_rows(folder: Folder, name: str, rows: list[dict[str, Any]]) -> None:
    folder.write_table(name, pa.Table.from_pylist(rows, schema=SCHEMA))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with tied embeddings, float32, 256 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    return folder


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """19 examples in two files: with batches of 8, the last of an epoch holds three."""
    folder = Folder.open(str(tmp_path_factory.mktemp("examples")))
    rows = make_rows(19)
    write_rows(folder, "part-000.parquet", rows[:11])
    write_rows(folder, "part-001.parquet", rows[11:])
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of workers that consists of this process."""
    import torch

    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
