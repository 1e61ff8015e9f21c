"""Failures stay as small as possible: a generation, a question, an engine, a full disk."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.inference.engine_processes import end_processes
from tests.chaos import all_rows, check_complete, sums_config, terminate
from tests.conftest import (
    LOCAL_CLUSTER,
    REPOSITORY,
    SCRIPTED_ENGINE,
    driver_command,
    ledger_rows,
    run_driver,
    run_here,
)
from tests.small_disk import small_disk

NUM_TRAIN = 12
QUESTIONS = [
    f"{name}/train/{first + number}"
    for name, first in (("near_sums", 1000), ("other_sums", 2000))
    for number in range(NUM_TRAIN)
]
GUIDELINES = 3
POISON = "1005 + 4"
POISONED = "near_sums/train/1005"


@dataclass(frozen=True)
class Small:
    """A run of 24 questions with one scripted engine."""

    folder: Path
    tree: dict[str, Any]
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return Path(self.tree["storage"]["root"]) / "trial"

    @property
    def paths(self) -> Path:
        [folder] = self.run_folder.glob("round_0/paths-*")
        return folder

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["question_id"]: row for row in ledger_rows(self.paths)}

    def arguments(self, **engine: Any) -> list[str]:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.tree | {"engine": self.tree["engine"] | engine}))
        return ["run", str(path), "--until", "paths"]

    def run(self, **engine: Any) -> subprocess.CompletedProcess[str]:
        """The driver with the engine's further settings, to its end."""
        return run_here(*self.arguments(**engine))

    def start(self, **engine: Any) -> subprocess.Popen[str]:
        """The same, not waited for; its output goes to a file."""
        with (self.folder / "driver.log").open("w") as log:
            driver = subprocess.Popen(
                driver_command(*self.arguments(**engine)),
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.drivers.append(driver)
        return driver

    def wait_for_rows(self, driver: subprocess.Popen[str], num_rows: int) -> None:
        """Until so many questions are durable."""
        deadline = time.monotonic() + 240
        while len(all_rows(self.run_folder)) < num_rows:
            assert driver.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def reopen(self) -> None:
        """A finished step is skipped; without its manifest it goes on."""
        (self.paths / "manifest.json").unlink()

    def output(self) -> str:
        return (self.folder / "driver.log").read_text()


@pytest.fixture
def small(tmp_path: Path, ray_cluster: str) -> Iterator[Small]:
    tree = sums_config(tmp_path, NUM_TRAIN, 1) | {
        "synthesis": {"guidelines_per_question": GUIDELINES},
        "engine": {**SCRIPTED_ENGINE},
        "cluster": {"address": ray_cluster, "progress_every_s": 1.0},
        "storage": {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")},
    }
    small = Small(tmp_path, tree)
    yield small
    for driver in small.drivers:
        driver.kill()
        driver.wait()


def num_starts(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.parametrize(
    ("kind", "max_attempts"),
    [
        ("poison", 3),
        pytest.param("poison_exit", 3, marks=pytest.mark.slow),
        pytest.param("poison", 1, marks=pytest.mark.slow),
    ],
)
def test_question_that_kills_its_engine_is_set_aside_alone(
    small: Small, tmp_path: Path, kind: str, max_attempts: int
) -> None:
    starts = tmp_path / "starts"
    options = {"latency_s": 0.05, kind: POISON, "start_log": str(starts)}
    result = small.run(options=options, max_attempts=max_attempts)
    assert result.returncode == 0, result.stderr
    check_complete(small.paths, QUESTIONS)
    rows = small.rows()
    given_up = rows.pop(POISONED)
    deaths = max(2, max_attempts)  # one of them alone: the first may have been another's fault
    assert given_up["error"] == f"its engine died {deaths} times while answering it"
    assert given_up["paths"] == []
    assert given_up["num_failed"] == GUIDELINES
    assert given_up["attempt"] == deaths - 1
    assert not any(row["error"] or row["num_failed"] or row["attempt"] for row in rows.values())
    # A process that ends at once may take the first notice of the question with it.
    assert deaths < num_starts(starts) <= deaths + 2


def test_engine_that_dies_for_every_question_ends_the_run_with_its_own_error(
    small: Small, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    options = {"poison": " ", "start_log": str(starts)}
    result = small.run(options=options, max_restarts=2)
    assert result.returncode == 4, result.stderr
    assert "CUDA error: an illegal memory access was encountered" in result.stderr
    assert "Traceback" not in result.stderr
    assert num_starts(starts) == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"fail_share": 8}, "the request was refused", marks=pytest.mark.slow),
        ({"slow_share": 8}, "no answer within 0.5 s"),
    ],
)
def test_failed_generations_are_kept_with_their_reason_and_tried_again(
    small: Small, options: Mapping[str, Any], reason: str
) -> None:
    first = small.run(options=options, generation_timeout_s=0.5, max_attempts=2)
    assert first.returncode == 0, first.stderr
    before = small.rows()
    failed = {name: row for name, row in before.items() if row["num_failed"]}
    assert {*before} == {*QUESTIONS}
    assert 0 < len(failed) < len(before)
    assert {row["attempt"] for row in before.values()} == {0, 1}
    assert all(row["attempt"] == 1 for row in failed.values())
    errors = [p["error"] for row in before.values() for p in row["paths"] if p["error"]]
    assert len(errors) == sum(row["num_failed"] for row in before.values())
    assert all(error.partition(": ")[2] == reason for error in errors)

    small.reopen()
    again = small.run(options=options, generation_timeout_s=0.5, max_attempts=4)
    assert again.returncode == 0, again.stderr
    after = small.rows()
    check_complete(small.paths, QUESTIONS)
    assert {n: row for n, row in after.items() if n not in failed} == {
        n: row for n, row in before.items() if n not in failed
    }
    for name, row in failed.items():
        assert after[name]["attempt"] in (2, 3)
        whole = [path for path in row["paths"] if not path["error"]]
        assert [p for p in after[name]["paths"] if p in whole] == whole
    num_failed = Counter({"after": sum(row["num_failed"] for row in after.values())})
    assert num_failed["after"] < len(errors)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        yield disk.path


@pytest.mark.slow
def test_full_disk_ends_the_run_with_its_folder_and_the_run_goes_on_once_there_is_room(
    small: Small, tiny_disk: Path
) -> None:
    small.tree["storage"]["root"] = str(tiny_disk / "runs")
    driver = small.start(options={"latency_s": 0.3})
    small.wait_for_rows(driver, 1)
    ballast = tiny_disk / "ballast"
    with ballast.open("wb", buffering=0) as full:
        try:
            while full.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert driver.wait(240) == 4, small.output()
    [last] = [line for line in small.output().splitlines() if line.startswith("regenesis: ")]
    assert str(small.run_folder) in last
    assert "No space left on device" in last
    assert "Traceback" not in small.output()
    kept = all_rows(small.run_folder)
    assert 0 < len(kept) < len(QUESTIONS)
    still_full = small.run(options={"latency_s": 0.3})
    assert still_full.returncode not in (0, 130)
    assert "No space left on device" in still_full.stderr
    ballast.unlink()
    result = small.run(options={"latency_s": 0.3})
    assert result.returncode == 0, result.stderr
    check_complete(small.paths, QUESTIONS)
    assert all(row in all_rows(small.run_folder) for row in kept)


def test_terminated_run_keeps_what_is_finished_and_leaves_no_process(
    small: Small, tmp_path: Path
) -> None:
    log = tmp_path / "generations.log"
    # Nothing would be flushed by time alone, and a stop of one engine is not that of the other.
    engines = {"min_workers": 2, "max_workers": 2, "cpus_per_worker": 0.5, "flush_s": 600}
    small.tree["cluster"] = LOCAL_CLUSTER
    driver = small.start(options={"latency_s": 0.5, "log_file": str(log)}, **engines)
    deadline = time.monotonic() + 120
    while (num_finished := finished_questions(log)) < 4:
        assert driver.poll() is None, small.output()
        assert time.monotonic() < deadline, small.output()
        time.sleep(0.1)
    time.sleep(0.3)
    below = psutil.Process(driver.pid).children(recursive=True)
    print(f"ended after {terminate(driver):.1f} s")
    assert driver.returncode == 130, small.output()
    assert "Traceback" not in small.output()
    assert num_finished <= len(small.rows()) < len(QUESTIONS)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


def test_second_command_on_a_run_is_refused_until_it_takes_over(small: Small) -> None:
    slow = {"latency_s": 1.0}  # the first command has to outlast the next two
    driver = small.start(options=slow)
    small.wait_for_rows(driver, 1)
    cleaned = run_here("clean", small.run_folder, "--yes")
    assert (cleaned.returncode, cleaned.stderr.count(f"process {driver.pid}")) == (2, 1)
    second = small.run(options=slow)
    assert second.returncode == 2
    assert f"(process {driver.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    kept = all_rows(small.run_folder)
    third = run_driver(*small.arguments(options=slow), "--take-over", timeout_s=400)
    assert third.returncode == 0, third.stderr
    assert driver.wait(60) == 2, small.output()
    assert "was taken over by `regenesis.py run" in small.output()
    assert "Traceback" not in small.output()
    check_complete(small.paths, QUESTIONS)
    assert all(row in all_rows(small.run_folder) for row in kept)


def finished_questions(log: Path) -> int:
    """The questions whose last generation is in the log."""
    if not log.exists():
        return 0
    made = Counter(line.split()[0] for line in log.read_text().splitlines())
    return sum(count == 3 * GUIDELINES for count in made.values())


def test_run_terminated_while_engines_start_ends_at_once(small: Small, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    small.tree["cluster"] = LOCAL_CLUSTER
    driver = small.start(options={"start_s": 240, "start_log": str(starts)})
    deadline = time.monotonic() + 120
    while not num_starts(starts):
        assert driver.poll() is None, small.output()
        assert time.monotonic() < deadline, small.output()
        time.sleep(0.1)
    print(f"ended after {terminate(driver):.1f} s")
    assert driver.returncode == 130, small.output()
    assert "Traceback" not in small.output()


def test_process_that_got_the_id_of_an_ended_one_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        started = psutil.Process(process.pid).create_time()
        assert end_processes([(process.pid, started - 60)], 0.2) == []
        assert process.poll() is None
        assert end_processes([(process.pid, started)], 0.2) == [process.pid]
