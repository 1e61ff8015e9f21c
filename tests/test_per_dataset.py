"""One synthesis run, one model for each dataset: the paper's set-up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import run_here, sums

WriteConfig = Callable[[dict[str, Any]], Path]


@pytest.fixture
def two_datasets(scripted_config: dict[str, Any]) -> dict[str, Any]:
    """Two datasets for training, and one for evaluation only."""
    limits: dict[str, Any] = {"num_train": 12, "num_dev": 0, "num_test": 4}
    scripted_config["questions"]["datasets"] = (
        sums("sums", 0, "in_domain", **limits)
        | sums("more_sums", 10**6, "in_domain", **limits)
        | sums("far_sums", 2 * 10**6, "out_of_domain", num_dev=0, num_test=4)
    )
    scripted_config["training"] |= {"mix": "per_dataset"}
    return scripted_config


def check_readings(scores: Path, dataset: str) -> None:
    """The scripted engine knows every answer, and writes half of them wrong."""
    rows = pq.read_table(scores / "readings.parquet").to_pylist()
    tasks = {row["task"] for row in rows if row["domain"] == "in_domain"}
    assert tasks == {dataset}
    for row in rows:
        assert (row["base"], row["difference"]) == (1.0, 0.0)
        assert row["base_read_right"] == 1.0
    said = (scores / "scores.md").read_text()
    assert "| in_domain/" in said.split("strict - reading")[1]
    assert 'behind "My answer, in short:", which 0 of ' in said


@pytest.mark.slow
def test_per_dataset_tunes_each_model_on_its_own_examples_of_one_synthesis(
    two_datasets: dict[str, Any], write_config: WriteConfig
) -> None:
    path = write_config(two_datasets | {"evaluation": {"readings": True}})
    result = run_here("run", path)
    assert result.returncode == 0, result.stderr
    [round_folder] = Path(two_datasets["storage"]["root"]).glob("*/round_0")
    assert len(list(round_folder.glob("paths-*"))) == 1
    [examples] = round_folder.glob("examples-*")
    tables = [pq.read_table(file) for file in examples.glob("*.parquet")]
    names = [name for table in tables for name in table["dataset"].to_pylist()]
    for dataset in ("sums", "more_sums"):
        [model] = round_folder.glob(f"model-{dataset}-*")
        facts = json.loads((model / "manifest.json").read_text())
        assert facts["num_examples"] == names.count(dataset) > 0
        [scores] = round_folder.glob(f"scores-{dataset}-*")
        rows = pq.read_table(scores / "scores.parquet").to_pylist()
        assert {row["task"] for row in rows if row["domain"] == "in_domain"} == {dataset}
        assert f"base > tuned on {dataset}" in result.stdout
        check_readings(scores, dataset)
    weights = {file.read_bytes() for file in round_folder.glob("model-*/model.safetensors")}
    assert len(weights) == 2
    again = run_here("run", path)
    assert again.returncode == 0, again.stderr
    assert "step 1/" not in again.stdout
