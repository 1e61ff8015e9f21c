"""Dev while settings are chosen, test with `--final`, and what is recorded of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.events import kept_log, read_events
from cluster.models.model import Model
from cluster.settings import settings_of
from cluster.store.folder import Folder
from cluster.store.step import Step
from pipelines.config import Config, load_config
from pipelines.plan import all_steps, begin_run, begin_steps, nothing_to_report, plan_run
from pipelines.questions.loading import load_questions
from pipelines.reads_of_test import describe_reads, reads_of_test, record_test_read
from regenesis import parse_arguments
from tests.conftest import ledger_rows, run_here, scripted_tree, sums
from tests.test_identity import loaded


def laid_out(root: Path, **changes: Any) -> list[Step]:
    given = scripted_tree(root, root) | changes
    config = settings_of(Config, given, "test")
    facts = load_questions(config.questions).facts()
    base = Model("base", "base", "cache")
    return all_steps(plan_run(config, Folder.open(str(root / "runs")), base, facts))


def test_dev_and_test_share_their_folders_except_the_scores(tmp_path: Path) -> None:
    dev, test = (laid_out(tmp_path, report_on=split) for split in ("dev", "test"))
    moved = [a.name for a, b in zip(dev, test, strict=True) if a.folder != b.folder]
    assert moved == ["scores"]
    grown = [a.name for a, b in zip(dev, test, strict=True) if a.extent != b.extent]
    assert grown == ["predictions", "predictions"]
    assert [step.folder for step in test] == [step.folder for step in laid_out(tmp_path)]


def test_answers_to_test_are_also_those_to_dev_and_not_the_reverse(tmp_path: Path) -> None:
    dev, test = (
        next(step for step in laid_out(tmp_path, report_on=split) if step.name == "predictions")
        for split in ("dev", "test")
    )
    dev.commit(made=[])
    assert dev.is_done
    assert not test.is_done
    test.commit(made=[])
    assert dev.is_done
    assert test.is_done


def test_final_is_short_for_a_setting() -> None:
    given = parse_arguments(["run", "quickstart", "--set", "rounds=2", "--final"]).set
    assert given == ["rounds=2", "report_on=test"]
    assert parse_arguments(["run", "quickstart"]).set == []
    assert load_config("quickstart").report_on == "dev"
    assert load_config("quickstart", given).report_on == "test"
    assert loaded("quickstart").report_on == "test", "a config from before reports as it did"


def test_dev_without_a_dev_question_is_warned_of(tmp_path: Path) -> None:
    datasets = sums("sums", 0, num_train=4, num_dev=0, num_test=2)
    given = scripted_tree(tmp_path, tmp_path) | {"questions": {"datasets": datasets}}
    for split, expected in (("dev", "no dataset has a dev question"), ("test", None)):
        config = settings_of(Config, given | {"report_on": split}, "test")
        warning = nothing_to_report(config, load_questions(config.questions).facts())
        assert (expected in warning) if expected and warning else (warning is expected)


def test_run_begins_with_what_it_cannot_report_and_what_it_does_not_check(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = sums("sums", 0, num_train=4, num_dev=0, num_test=2)
    given = scripted_tree(tmp_path, model_folder) | {"questions": {"datasets": datasets}}
    config = settings_of(Config, given | {"report_on": "dev"}, "test")
    with kept_log("run") as log, begin_run(config, log) as run:
        step = run.questions_step
        manifest = step.manifest() or {}
        step.folder.commit({name: of for name, of in manifest.items() if name != "files"})
        begin_steps(run)
    told = capsys.readouterr().out
    assert "warning: report_on: dev, but no dataset has a dev question" in told
    assert f"note: {step.folder.uri} was finished by an earlier version, which listed no" in told


def test_reads_of_test_are_recorded_and_never_written_again(tmp_path: Path) -> None:
    run = Folder.open(str(tmp_path))
    assert describe_reads(reads_of_test(run)) == "test was not read"
    config = loaded("quickstart")
    with kept_log("run", run):
        for scores in ("a", "a", "b"):
            record_test_read(config, run, round=0, scores=scores)
    first = (tmp_path / "test_reads/000001.json").read_bytes()
    record_test_read(config, run, round=1, scores="c")
    assert (tmp_path / "test_reads/000001.json").read_bytes() == first
    found = reads_of_test(run)
    assert [each["scores"] for each in found] == ["a", "a", "b", "c"]
    assert describe_reads(found).startswith("test was read 4 times, of 3 models, last at 20")
    assert found[0]["config"].startswith("config-")
    events = [event for event in read_events(run) if event["event"] == "test_read"]
    assert [event["scores"] for event in events] == ["a", "a", "b"]


def test_run_asks_test_only_at_the_end(
    scripted_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    scripted_config["training"] |= {"max_steps": 500}
    path = write_config(scripted_config | {"report_on": "dev"})
    run = Path(scripted_config["storage"]["root"]) / "scripted"

    def asked() -> list[list[str]]:
        found = sorted(run.glob("*/predictions-*"))
        return [[row["question_id"].split("/")[1] for row in ledger_rows(f)] for f in found]

    first = run_here("run", path)
    assert first.returncode == 0, first.stderr
    assert "round 0, base > tuned, on dev in percent" in first.stdout
    assert "| in_domain/sums " in first.stdout
    assert re.search(
        r"warning: model: the training ended at \d+ of training.max_steps 500", first.stdout
    )
    assert asked() == [["dev"] * 4] * 2
    assert not (run / "test_reads").exists()
    made = {file: file.stat().st_mtime_ns for file in run.glob("round_0/model-*/*.safetensors")}

    final = run_here("run", path, "--final")
    assert final.returncode == 0, final.stderr
    assert "round 0, base > tuned, on test in percent" in final.stdout
    assert [sorted(each) for each in asked()] == [["dev"] * 4 + ["test"] * 12] * 2
    assert {file: file.stat().st_mtime_ns for file in made} == made
    [read] = sorted((run / "test_reads").iterdir())
    facts = json.loads(read.read_text())
    assert (facts["round"], facts["num_questions"]) == (0, 12)
    assert (run / facts["config"]).exists()
    assert (run / facts["scores"] / "scores.md").exists()
    for line in (r"the numbers are of this checkpoint", "tokens generated in 72 paths"):
        assert line in final.stdout

    again = run_here("run", path, "--dry-run")
    states = re.findall(r"-[0-9a-f]{12}: (.*)$", again.stdout, re.M)
    assert set(states) == {"skip, finished"}, again.stdout
    shown = run_here("show", run)
    assert "test was read 1 time, of 1 model, last at" in shown.stdout
    assert "round_0/scores, on test" in shown.stdout
