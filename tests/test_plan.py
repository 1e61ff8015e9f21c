"""`regenesis.py plan`, the budget, and `regenesis.py clean`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.store.folder import Folder
from cluster.store.step import read_steps
from tests.conftest import log_of, run_driver

WriteConfig = Callable[[dict[str, Any]], Path]


def run_folder(config: dict[str, Any]) -> Path:
    return Path(config["storage"]["root"]) / str(config["run"])


def num_rows(folder: Path) -> int:
    return sum(
        pq.read_metadata(file).num_rows
        for file in folder.glob("round_0/paths-*/**/*.parquet")
        if file.name.startswith(("part-", "rows-"))
    )


def test_plan_probes_twenty_questions_that_the_run_then_keeps(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    scripted_config["engine"]["options"] = {"latency_s": 0.05}
    path = write_config(scripted_config)
    first = run_driver("plan", path)
    assert first.returncode == 0, first.stderr
    assert "estimated from 20 of 24 questions" in first.stdout
    assert re.search(r"\| generations +\| 24\d", first.stdout), first.stdout
    folder = run_folder(scripted_config)
    assert num_rows(folder) == 20
    again = run_driver("plan", path)
    assert again.stdout.splitlines()[-20:] == first.stdout.splitlines()[-20:]
    assert num_rows(folder) == 20
    assert "| generations " in log_of(folder, "plan")

    refused = run_driver("run", path, "--set", "budget.max_hours=1e-6", "--until", "paths")
    assert refused.returncode == 2
    assert "budget.max_hours" in refused.stderr
    done = run_driver("run", path, "--set", "budget.max_hours=10", "--until", "paths")
    assert done.returncode == 0, done.stderr
    assert num_rows(folder) == 24


def test_clean_says_what_goes_and_removes_only_that(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    path = write_config(scripted_config)
    for seed in (0, 1):
        result = run_driver("run", path, "--until", "paths", "--set", f"synthesis.seed={seed}")
        assert result.returncode == 0, result.stderr
    folder = run_folder(scripted_config)
    steps = sorted(step.name for step in folder.glob("round_0/paths-*"))
    assert len(steps) == 2
    # As after a crash between compaction and the removal of the parts.
    current = next(folder.glob(f"round_0/{_of_last_config(folder)}"))
    rows = next(current.glob("rows-*.parquet"))
    left = current / "parts" / "000001-000001-ab12" / "000000" / rows.name.replace("rows", "part")
    left.parent.mkdir(parents=True)
    left.write_bytes(rows.read_bytes())
    manifest = current / "manifest.json"
    manifest.write_bytes(manifest.read_bytes())

    dry = run_driver("clean", folder, "--dry-run")
    assert "its rows are in compacted files" in dry.stdout
    assert left.exists()
    unasked = run_driver("clean", folder)
    assert (unasked.returncode, left.exists()) == (2, True)
    assert "--yes" in unasked.stderr
    logs = {file: file.read_bytes() for file in folder.glob("logs/*/*")}
    assert run_driver("clean", folder, "--yes").returncode == 0
    assert " INFO removed folder=" in log_of(folder, "clean")
    assert not left.exists()
    assert sorted(step.name for step in folder.glob("round_0/paths-*")) == steps
    everything = run_driver("clean", folder, "--superseded", "--yes")
    assert "the last config does not use it" in everything.stdout
    assert [step.name for step in folder.glob("round_0/paths-*")] == [current.name]
    assert logs
    assert {file: file.read_bytes() for file in logs} == logs
    after = run_driver("run", path, "--until", "paths", "--set", "synthesis.seed=1", "--dry-run")
    assert re.search(r"round_0/paths-\w+: skip, finished", after.stdout)

    other = run_driver("clean", tmp_path / "nothing")
    assert other.returncode == 2
    assert "is not the folder of a run" in other.stderr


def _of_last_config(folder: Path) -> str:
    steps = read_steps(Folder.open(str(folder))) or []
    return next(step for step in steps if "/paths-" in step).partition("/")[2]
