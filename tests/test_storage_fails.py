"""A run whose disk is full, read-only or gone when a step begins, for every step of a round.

The driver's own command line, in this process, on the cluster that the tests share. As a step
begins, the disk fails; the command has to end with one sentence that names the folder, and leave
every file as it was. Then the disk is well again, and the same command goes on and makes the rows
of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import cluster.store.holder
import pipelines.plan
from cluster.store.folder import OPENED
from pipelines.steps import examples, model, paths, predictions, questions, scores
from tests.conftest import ledger_rows, run_here, scripted_on
from tests.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.slow

PAGE = 4096
"""What a file of a tmpfs takes at least."""
STEPS: Mapping[str, Any] = {
    "questions": questions,
    "paths": paths,
    "examples": examples,
    "model": model,
    "predictions": predictions,
    "scores": scores,
}
FREE_PAGES = {
    "questions": (0, 1, 2, 3, 5, 7),
    "paths": (0, 4, 8),
    "examples": (0, 1, 4, 7),
    "model": (0, 40),
    "predictions": (0, 4),
    "scores": (0, 2, 4),
}
"""How much room is left when a step begins, so that another file is the first that has none."""
STORAGE_ERROR = 4


@dataclass
class Trial:
    """One run on the small disk, and what its last command has printed."""

    disk: SmallDisk
    config: Path
    patch: pytest.MonkeyPatch
    output: str = ""
    kept: dict[str, bytes] = field(default_factory=dict)
    """The durable files when the step began."""

    @property
    def folder(self) -> Path:
        return self.disk.path / "runs" / "trial"

    @property
    def aside(self) -> Path:
        return self.disk.path / "aside"

    @property
    def ballast(self) -> Path:
        return self.disk.path / "ballast"

    def begin(self, whole: Path, step: str) -> None:
        """The run as it is before a step: an undisturbed one without this step and later ones."""
        if step == "questions":
            return
        shutil.copytree(whole, self.folder)
        (self.folder / "report.html").unlink()
        if step == "paths":  # with which the base is asked, too
            shutil.rmtree(self.folder / "base")
        for name in list(STEPS)[list(STEPS).index(step) :]:
            for made in self.folder.glob(f"round_0/{name}-*"):
                shutil.rmtree(made)

    def run(self, until: str | None, fails: Callable[[], Any] | None = None) -> int:
        """The command up to a step; `fails` is called when that step, or the report, begins."""
        with self.patch.context() as patch:
            if fails is not None:
                owner = STEPS[until] if until else pipelines.plan
                name = "make" if until else "write_own_report"
                patch.setattr(owner, name, self._failing(fails, getattr(owner, name)))
            done = run_here("run", self.config, *(["--until", until] if until else []))
        self.output = f"{done.stdout}{done.stderr}"
        return done.returncode

    def _failing(self, fails: Callable[[], Any], step: Callable[..., Any]) -> Callable[..., Any]:
        def both(*arguments: Any) -> Any:
            self.kept = self.durable()
            fails()
            return step(*arguments)

        return both

    def check_failed(self, code: int, *words: str) -> None:
        """The command ended as for a storage error, with one sentence that has these words."""
        assert code == STORAGE_ERROR, self.output
        assert "Traceback" not in self.output, self.output
        [sentence] = [line for line in self.output.splitlines() if line.startswith("regenesis: ")]
        assert str(self.folder) in sentence, self.output
        for word in words:
            assert word in sentence, self.output

    def check_kept(self) -> None:
        """What was durable when the step began is there, byte for byte."""
        after = self.durable()
        assert {name: after.get(name) for name in self.kept} == self.kept

    def check_same(self, step: str, whole: Path) -> None:
        """The step has made what the undisturbed run has."""
        assert what_made(step, self.folder) == what_made(step, whole)

    def fill(self, free_pages: int) -> None:
        """Fill the disk up to some pages."""
        with self.ballast.open("wb", buffering=0) as full, contextlib.suppress(OSError):
            while full.write(bytes(PAGE)):
                pass
        os.truncate(self.ballast, self.ballast.stat().st_size - free_pages * PAGE)

    def durable(self) -> dict[str, bytes]:
        """Every file of the run, without logs, holders, and the notes of a holder about the rows of
        an unfinished step, which the next one replaces; `check_same` compares the rows."""
        return {
            name: file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
            for name in [str(file.relative_to(self.folder))]
            if not name.startswith(("logs/", "holders/"))
            and not any(each in name for each in (".writing-", f"/{OPENED}", "/parts/"))
        }


def what_made(step: str, run: Path) -> Any:
    """The rows of a step of a run, or the hash of its weights."""
    if step == "questions":
        return [file.read_bytes() for file in run.glob("questions-*/questions.parquet")]
    [folder] = run.glob(f"round_0/{step}-*")
    if step == "paths":
        [base] = run.glob("base/predictions-*")
        return ledger_rows(folder), ledger_rows(base)
    if step == "predictions":
        return ledger_rows(folder)
    if step == "model":
        return json.loads((folder / "manifest.json").read_text())["weights_sha256"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.parquet")}


@pytest.fixture(scope="module")
def tree(
    model_folder: Path, ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The config of the undisturbed run."""
    root = tmp_path_factory.mktemp("whole")
    return scripted_on(ray_cluster, root, model_folder) | {"run": "trial"}


@pytest.fixture(scope="module")
def whole(tree: dict[str, Any]) -> Path:
    """The folder of an undisturbed run."""
    root = Path(tree["storage"]["root"])
    config = root.parent / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    done = run_here("run", config)
    assert done.returncode == 0, done.stderr
    return root / "trial"


@pytest.fixture
def trial(
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Trial]:
    with small_disk(tmp_path / "disk", "24m") as disk:
        storage = {**tree["storage"], "root": str(disk.path / "runs")}
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(tree | {"storage": storage}))
        # To the next command, each one looks like another process that has ended: it need not wait.
        began = iter(range(10**6))
        this = cluster.store.holder.this_process
        monkeypatch.setattr(
            cluster.store.holder,
            "this_process",
            lambda: this() | {"started": f"command {next(began)}"},
        )
        yield Trial(disk, config, monkeypatch)


@pytest.mark.parametrize("step", STEPS)
def test_full_disk_ends_a_step_with_its_folder_and_the_same_command_goes_on(
    step: str, trial: Trial, whole: Path
) -> None:
    trial.begin(whole, step)
    for free_pages in FREE_PAGES[step]:
        code = trial.run(step, lambda free=free_pages: trial.fill(free))  # type: ignore[misc]
        trial.ballast.unlink()
        if code == 0 and free_pages:
            break  # there was room for all that the step writes
        trial.check_failed(code, "bytes) cannot be written: ", "No space left on device")
        trial.check_kept()
    assert trial.run(step) == 0, trial.output
    trial.check_same(step, whole)


@pytest.mark.parametrize("step", STEPS)
def test_disk_that_becomes_read_only_ends_a_step_and_the_same_command_goes_on(
    step: str, trial: Trial, whole: Path
) -> None:
    trial.begin(whole, step)
    with contextlib.ExitStack() as stack:
        code = trial.run(step, lambda: stack.enter_context(trial.disk.read_only()))
    trial.check_failed(code, "Read-only file system")
    trial.check_kept()
    assert trial.run(step) == 0, trial.output
    trial.check_same(step, whole)


@pytest.mark.parametrize("step", [step for step in STEPS if step != "questions"])
def test_folder_that_is_removed_ends_a_step_and_the_same_command_begins_again(
    step: str, trial: Trial, whole: Path
) -> None:
    trial.begin(whole, step)
    code = trial.run(step, lambda: shutil.move(trial.folder, trial.aside))
    trial.check_failed(code)
    # What was left in its place does not keep the run from beginning again.
    assert trial.run("questions") == 0, trial.output
    trial.check_same("questions", whole)
    shutil.rmtree(trial.folder)
    shutil.move(trial.aside, trial.folder)
    assert trial.run(step) == 0, trial.output
    trial.check_same(step, whole)


@pytest.mark.parametrize("fault", ["full", "read-only", "removed"])
def test_report_that_cannot_be_written_is_said_and_changes_nothing_else(
    fault: str, trial: Trial, whole: Path
) -> None:
    trial.begin(whole, "scores")
    assert trial.run("scores") == 0, trial.output
    with contextlib.ExitStack() as stack:
        fail: dict[str, Callable[[], Any]] = {
            "full": lambda: trial.fill(4),
            "read-only": lambda: stack.enter_context(trial.disk.read_only()),
            "removed": lambda: shutil.move(trial.folder, trial.aside),
        }
        code = trial.run(None, fail[fault])
    assert "Traceback" not in trial.output, trial.output
    if fault == "removed":
        trial.check_failed(code)
        shutil.rmtree(trial.folder, ignore_errors=True)
        shutil.move(trial.aside, trial.folder)
    else:
        assert code == 0, trial.output
        [note] = [line for line in trial.output.splitlines() if "report could not be" in line]
        assert str(trial.folder) in note
        trial.ballast.unlink(missing_ok=True)
        trial.check_kept()
    assert not (trial.folder / "report.html").exists()
    assert trial.run(None) == 0
    assert (trial.folder / "report.html").stat().st_size > 100_000
