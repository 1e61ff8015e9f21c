"""Many datasets in one run: all on one pool, each with its own weight, limits and result."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.conftest import run_here, sums

WriteConfig = Callable[[dict[str, Any]], Path]


def sums_of(name: str, number: int, num_train: int, **settings: Any) -> dict[str, Any]:
    """A dataset of sums with a separate stream."""
    settings |= {"num_train": num_train, "num_dev": 0, "num_test": 0}
    return sums(name, number * 100_000, "in_domain", **settings)


def paths_folder(config: dict[str, Any]) -> Path:
    [folder] = Path(config["storage"]["root"]).glob(f"{config['run']}/round_0/paths-*")
    return folder


def manifest(config: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads((paths_folder(config) / "manifest.json").read_text()))


def rows_by_dataset(config: dict[str, Any]) -> Counter[str]:
    files = paths_folder(config).glob("rows-*.parquet")
    return Counter(name for file in files for name in pq.read_table(file)["dataset"].to_pylist())


def test_run_fifty_datasets_on_one_pool_with_a_broken_one_set_aside_and_one_added_later(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    datasets: dict[str, Any] = {}
    for number in range(50):
        datasets |= sums_of(f"sums_{number:02d}", number, 2 + number % 3, weight=1.0 + number % 2)
    broken = {"source": {"kind": "files", "train": str(tmp_path / "missing.jsonl")}}
    scripted_config["questions"]["datasets"] = datasets | {"broken": broken}
    scripted_config["questions"]["on_error"] = "skip"
    path = write_config(scripted_config)
    result = run_here("run", path, "--until", "paths")
    assert result.returncode == 0, result.stderr
    assert "questions: broken is SKIPPED: no question file" in result.stdout
    wanted = {f"sums_{number:02d}": 2 + number % 3 for number in range(50)}
    assert rows_by_dataset(scripted_config) == wanted
    totals = manifest(scripted_config)["rows"]["datasets"]
    assert {name: total["num_done"] for name, total in totals.items()} == wanted
    assert result.stderr.count(", complete") == 50

    before = {file: file.read_bytes() for file in paths_folder(scripted_config).glob("rows-*")}
    scripted_config["questions"]["datasets"] |= sums_of("added", 60, 3)
    again = run_here("run", write_config(scripted_config), "--until", "paths")
    assert again.returncode == 0, again.stderr
    assert rows_by_dataset(scripted_config) == wanted | {"added": 3}
    assert {file: file.read_bytes() for file in before} == before
    assert manifest(scripted_config)["last_execution"]["num_generations"] == 3 * 3 * 3


def test_run_dataset_that_has_enough_begins_no_further_question_until_it_may_have_more(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    limited = sums_of("limited", 1, 40, max_accepted_paths=6)
    scripted_config["questions"]["datasets"] = limited | sums_of("free", 2, 8)
    scripted_config["engine"] |= {
        "options": {"latency_s": 0.1, "wrong_share": 0},
        "max_num_seqs": 2,
        "flush_s": 0.1,
    }
    path = write_config(scripted_config)
    first = run_here("run", path, "--until", "paths")
    assert first.returncode == 0, first.stderr
    rows = rows_by_dataset(scripted_config)
    assert rows["free"] == 8
    assert 2 <= rows["limited"] < 30
    assert "has enough" in first.stderr
    assert manifest(scripted_config)["rows"]["datasets"]["limited"]["num_accepted"] >= 6
    again = run_here("run", path, "--until", "paths", "--dry-run")
    assert re.search(r"round_0/paths-\w+: skip, finished", again.stdout)

    more = ["--set", "questions.datasets.limited.max_accepted_paths=null"]
    grown = run_here("run", path, "--until", "paths", *more)
    assert grown.returncode == 0, grown.stderr
    assert rows_by_dataset(scripted_config) == {"limited": 40, "free": 8}
