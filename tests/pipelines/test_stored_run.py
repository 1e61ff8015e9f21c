"""Runs that an earlier version made: they are read, or refused with a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from cluster.errors import InputError
from cluster.settings import settings_of
from cluster.store.cleanup import find_leftovers
from cluster.store.folder import Folder
from cluster.store.step import read_steps, write_steps
from pipelines.config import Config
from pipelines.stored_run import StoredRun
from regenesis import main
from tests.test_golden import GOLDEN
from tests.test_identity import folders_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of commit 811bd38, with what it wrote of itself and an empty folder for each step."""
    folder = shutil.copytree(GOLDEN / "stored_run", tmp_path / "quickstart")
    for step in StoredRun.read(str(folder)).steps:
        (folder / step).mkdir(parents=True)
    return folder


def test_what_an_earlier_version_generated_with_the_base_model_is_used_again(run: Path) -> None:
    """The questions and the grader have other versions since, so that the other steps differ."""
    stored = StoredRun.read(str(run))
    config = settings_of(Config, stored.config, str(run))
    same = {name for name, _ in folders_of(config)} & set(stored.steps)
    assert {name.rpartition("-")[0] for name in same} == {"base/predictions", "round_0/paths"}
    assert stored.step("round_0/paths").name.startswith("paths-")
    assert list(stored.rounds_with_paths()) == []


def test_clean_leaves_the_steps_of_an_earlier_version(run: Path) -> None:
    folder = Folder.open(str(run))
    with pytest.raises(InputError, match=r"nothing was deleted; .* writes it again"):
        find_leftovers(folder, superseded=True)
    write_steps(folder, read_steps(folder) or [])
    assert find_leftovers(folder, superseded=True) == []


def test_run_with_a_setting_that_is_gone_is_refused_and_left_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["synthesis"]["of_old"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = sorted(run.rglob("*"))
    assert main(["select", str(run)]) == 2
    assert "unknown setting synthesis.of_old" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_step_that_a_run_does_not_have_is_refused(run: Path) -> None:
    stored = StoredRun.read(str(run))
    with pytest.raises(InputError, match=r"steps\.json names no step round_9/paths; .*--until"):
        stored.step("round_9/paths")
    with pytest.raises(InputError, match=r"round_9/paths: the run .* has the steps questions, "):
        stored.table("round_9/paths")


def test_step_that_is_not_finished_has_no_table(run: Path) -> None:
    stored = StoredRun.read(str(run))
    with pytest.raises(InputError, match=r"round_0/model: the step .* is not finished"):
        stored.table("round_0/model")


@pytest.mark.parametrize("gone", ["steps.json", "config.yaml"])
def test_folder_that_is_no_run_is_refused(run: Path, gone: str) -> None:
    (run / gone).unlink()
    with pytest.raises(InputError, match="is not the folder of a run"):
        StoredRun.read(str(run))


DAMAGES = {
    "config.yaml": ("rounds: [1", "just a text", ""),
    "steps.json": ("[]", "[1, 2]", '{"a": 1}', '["round_0/pa'),
    "run.json": ("{", ""),
}
READ_BY = {"select": ("config.yaml", "steps.json"), "clean": ("steps.json", "run.json")}


@pytest.mark.parametrize(
    ("command", "name", "text"),
    [(c, name, text) for c, names in READ_BY.items() for name in names for text in DAMAGES[name]],
)
def test_damaged_file_of_a_run_is_a_sentence_and_nothing_is_deleted(
    run: Path, command: str, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_text(text)
    before = {step for step in run.rglob("*") if step.is_dir()}
    options = ["--superseded", "--yes"] if command == "clean" else []
    assert main([command, str(run), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("regenesis: ")
    assert name in said
    assert before <= {step for step in run.rglob("*") if step.is_dir()}
