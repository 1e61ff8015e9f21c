"""Several whole drivers on one run folder on S3, and no key in anything that they write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.store.folder import Folder
from cluster.store.holder import last_holder
from cluster.store.ledger import Ledger
from regenesis import main
from tests.chaos import sums_config
from tests.cluster.s3_proxy import CountingProxy
from tests.conftest import REPOSITORY, SCRIPTED_ENGINE

KEY_ID, SECRET, TOKEN = "AKIACANARYCANARY", "canary/secret/in/the/environment", "hf_canaryofthejob"
KEYS = (KEY_ID, SECRET, TOKEN)
NUM_TRAIN = 8
PATIENCE_S = 400
HOUR_S = 3600

SHIFTED = """
import sys, time, types
import regenesis
sys.argv[0], shift = "regenesis.py", float(sys.argv.pop(1))
clock = types.SimpleNamespace(**vars(time))
clock.time = lambda: time.time() + shift
clock.gmtime = lambda *seconds: time.gmtime(*seconds or [clock.time()])
shifted = [each for each in sys.modules.values() if getattr(each, "time", None) is time]
for module in shifted:
    if module.__name__.startswith(("cluster.", "pipelines.")):
        module.time = clock
sys.exit(regenesis.main(sys.argv[1:]))
"""
"""The driver whose modules see another clock."""


@dataclass
class Drivers:
    """Commands on one run in a bucket; each writes its output to a file."""

    place: Path
    address: str
    config: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def run(self) -> Folder:
        root, question, options = self.address.partition("?")
        return Folder.open(f"{root}/trial{question}{options}")

    def start(self, *arguments: str, shift_s: float = 0.0) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SHIFTED, str(shift_s), "run", str(self.config)]
        with self._output(len(self.started)).open("wb") as output:
            driver = subprocess.Popen(
                [*command, "--until", "paths", *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(driver)
        return driver

    def _output(self, number: int) -> Path:
        return self.place / f"driver-{number}.log"

    def said(self, driver: subprocess.Popen[bytes]) -> str:
        return self._output(self.started.index(driver)).read_text()

    def wait_for(self, driver: subprocess.Popen[bytes], part: str) -> None:
        """Until a file with this in its name is in the run's folder."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(part in name for name in self.run.walk()):
            assert driver.poll() is None, self.said(driver)
            assert time.monotonic() < deadline, self.said(driver)
            time.sleep(0.2)

    def outputs(self) -> str:
        return "\n".join(map(self.said, self.started))


@pytest.fixture
def drivers(
    s3_proxy: CountingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> Iterator[Drivers]:
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    of_the_job = {"runtime_env": {"env_vars": keys | {"HF_TOKEN": TOKEN}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(of_the_job))  # as Ray's jobs do
    address = s3_proxy.uri(f"bucket/{tmp_path.name}")
    tree = sums_config(tmp_path, NUM_TRAIN, 1) | {
        "synthesis": {"guidelines_per_question": 3},
        "engine": SCRIPTED_ENGINE | {"options": {"latency_s": 1.0}},
        # The driver of a job starts no Ray.
        "cluster": {"address": ray_cluster, "progress_every_s": 1.0},
        "storage": {"root": address, "cache": str(tmp_path / "cache")},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    made = Drivers(tmp_path, address, config)
    yield made
    for driver in made.started:
        driver.send_signal(signal.SIGCONT)
        driver.kill()
        driver.wait()


def everything_in(run: Folder) -> str:
    """The contents of all files of a run, with the rows of its tables."""
    texts = []
    for name in run.walk():
        if name.endswith(".parquet"):
            texts.append(str(run.read_parquet(name).to_pylist()))
        else:
            texts.append(run.read_bytes(name).decode("utf-8", "replace"))
    return "\n".join(texts)


def paths_step(run: Folder) -> Folder:
    [name] = [n for n in run.child("round_0").folder_names() if n.startswith("paths-")]
    return run.child(f"round_0/{name}")


@pytest.mark.slow
def test_drivers_on_one_folder_of_a_store_lose_nothing_and_write_no_key(drivers: Drivers) -> None:
    first = drivers.start(shift_s=HOUR_S)
    drivers.wait_for(first, "holders/000001.json")
    second = drivers.start(shift_s=-HOUR_S)
    assert second.wait(PATIENCE_S) == 2
    since = last_holder(drivers.run).process["since"]
    assert f"process {first.pid} on {os.uname().nodename}, since {since}" in drivers.said(second)
    assert "--take-over" in drivers.said(second)

    drivers.wait_for(first, "/part-")
    first.send_signal(signal.SIGSTOP)
    kept = [*Ledger.read(paths_step(drivers.run)).rows()]
    third = drivers.start("--take-over", shift_s=-HOUR_S)
    drivers.wait_for(third, "/opened-000002.json")
    third.kill()
    third.wait()
    fourth = drivers.start()
    assert fourth.wait(PATIENCE_S) == 0, drivers.said(fourth)
    step = paths_step(drivers.run)
    manifest, names = step.manifest(), step.walk()
    assert manifest
    assert manifest["epoch"] == 3

    first.send_signal(signal.SIGCONT)
    assert first.wait(PATIENCE_S) == 2, drivers.said(first)
    assert "was taken over by `regenesis.py run" in drivers.said(first)
    assert (step.manifest(), [n for n in step.walk() if "/" not in n]) == (
        manifest,
        [n for n in names if "/" not in n],
    )
    rows = {row["question_id"]: row for row in Ledger.read(step).rows()}
    assert len(rows) == 2 * NUM_TRAIN
    assert all(rows[row["question_id"]] == row for row in kept)
    assert "Traceback" not in drivers.outputs()

    written = everything_in(drivers.run) + drivers.outputs()
    assert "command_started" in written  # the events are looked through as well
    assert not [key for key in KEYS if key in written]


@pytest.mark.parametrize(
    "root", [f"s3://{KEY_ID}:{SECRET}@bucket/runs", f"s3://bucket/runs?secret_key={SECRET}"]
)
def test_key_in_an_address_is_neither_printed_nor_written(
    root: str, s3_proxy: CountingProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree: dict[str, Any] = sums_config(tmp_path, 1, 1) | {"storage": {"root": root}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    commands = [
        ["run", str(config)],
        ["run", str(config), "--dry-run"],
        ["plan", str(config)],
        ["show", root],
        ["clean", root, "--yes"],
        ["export", str(tmp_path), "--to", root],
        ["report", str(tmp_path), "-o", root.replace("runs", "page.html")],
        ["evaluate", "--model", "m", "--tasks", "gsm8k", "--out", root],
    ]
    before = sorted(tmp_path.rglob("*"))
    for command in commands:
        assert main(command) == 2, command
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err, command
        assert "holds a key or a password" in said.err, command
    assert sorted(tmp_path.rglob("*")) == before
    assert not s3_proxy.requests


@pytest.mark.parametrize("command", ["clean", "plan", "run"])
def test_every_command_that_writes_is_refused_on_a_run_that_another_holds_on_s3(
    command: str, s3_proxy: CountingProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.store.holder import hold
    from cluster.store.step import claim_run_folder

    address = s3_proxy.uri(f"bucket/{tmp_path.name}")
    tree = sums_config(tmp_path, 1, 1) | {"engine": {**SCRIPTED_ENGINE}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree | {"storage": {"root": address}}))
    run = Folder.open(address.replace("?", "/trial?"))
    claim_run_folder(run, "trial")
    given = address.replace("?", "/trial?") if command == "clean" else str(config)
    with hold(run) as held:
        held.child("holders").write_bytes("000001.beat", b"0")
        assert main([command, given, *(["--yes"] if command == "clean" else [])]) == 2
        said = capsys.readouterr().err
        assert f"(process {os.getpid()} on {os.uname().nodename}, since " in said
        assert "or take the run from it with --take-over" in said
        held.check_claim()
