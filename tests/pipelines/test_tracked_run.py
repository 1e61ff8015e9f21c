"""The numbers of a run in TensorBoard files that are read back, across commands that continue."""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import pipelines.tracked_run as tracking_of_runs
from cluster.events import kept_log, read_events, record, timed
from cluster.store.folder import MANIFEST, Folder
from cluster.tracking import TENSORBOARD, TrackingSettings
from pipelines.analysis.overview import finished_state
from pipelines.stored_run import StoredRun
from pipelines.tracked_run import rate_numbers, step_numbers, tracked_run
from tests.report.invented_run import invented_run, with_decision
from tests.training.events import read_scalars

RATE: dict[str, Any] = {
    "tokens": 1000,
    "in_flight": 12,
    "engines": 2,
    "questions": {"paths": 4, "predictions": 1},
    "questions_left": {"paths": 6, "predictions": 3},
    "answers": {"paths": 20, "predictions": 0},
    "accepted": {"paths": 5, "predictions": 0},
    "truncated": {"paths": 2, "predictions": 0},
    "failed": {"paths": 1, "predictions": 0},
}


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    """A run of one round that has finished all its steps."""
    return invented_run(tmp_path, rounds=1, num_train=8, num_test=8)


def _command(
    run: StoredRun, settings: TrackingSettings | None = None, rates: int = 0, step: str = "scores"
) -> None:
    """A command that works on a step, of which the events tell so many rates."""
    settings = settings or TrackingSettings()
    with (
        kept_log("run", run.folder),
        tracked_run(run.folder, settings),
        timed("step", round=0, step=step),
    ):
        for number in range(rates):
            record("rate", **RATE | {"tokens": 1000 * (number + 1)})


def _points(run: StoredRun) -> dict[str, dict[int, float]]:
    return read_scalars(Path(run.folder.path) / TENSORBOARD)


def test_rates_of_the_same_pool_give_tokens_a_second_and_shares() -> None:
    first, second = RATE | {"at": 100.0}, RATE | {"at": 160.0, "tokens": 4000}
    assert "generation/tokens_per_s" not in rate_numbers(first, None)
    numbers = rate_numbers(second, first)
    assert numbers["generation/tokens_per_s"] == 50
    assert numbers["generation/paths/questions_done"] == 4
    assert numbers["generation/paths/right_share"] == 0.25
    assert numbers["generation/paths/truncated_share"] == 0.1
    assert "generation/predictions/truncated_share" not in numbers  # it has no answer so far


def test_scores_and_yields_of_the_finished_steps_are_those_of_their_files(run: StoredRun) -> None:
    _command(run)
    seen = {name: list(values.values()) for name, values in _points(run).items()}
    rows = run.table("round_0/paths").to_pylist()
    right = sum(path["verdict"] == "correct" for row in rows for path in row["paths"])
    number = sum(len(row["paths"]) for row in rows)
    assert seen["paths/right_share"] == [pytest.approx(right / number)]
    [mean] = [
        row
        for row in run.table("round_0/scores").to_pylist()
        if (row["domain"], row["task"]) == ("in_domain", "mean")
    ]
    for name, column in (("base", "base_strict"), ("tuned", "tuned_strict")):
        assert seen[f"scores/test/in_domain/{name}"] == [pytest.approx(mean[column])]
    assert {"predictions/truncated_share", "base/predictions/truncated_share"} <= set(seen)
    assert not [name for name in seen if "predictions/right_share" in name]
    assert 0 in seen["round"]


def test_later_command_continues_the_curves_and_sends_no_step_twice(run: StoredRun) -> None:
    _command(run, rates=2, step="paths")
    before = _points(run)
    _command(run, rates=2, step="model")
    after = _points(run)
    assert after["scores/test/in_domain/tuned"] == before["scores/test/in_domain/tuned"]
    last = max(step for steps in before.values() for step in steps)
    assert before["generation/engines"].items() < after["generation/engines"].items()
    assert all(
        step > last
        for step in after["generation/engines"].keys() - before["generation/engines"].keys()
    )
    told = [event["steps"] for event in read_events(run.folder) if event["event"] == "tracked"]
    assert len(told) == 1
    assert set(told[0]) == set(run.steps)


def test_step_that_finished_just_before_a_kill_is_sent_by_the_next_command(
    run: StoredRun, tmp_path: Path
) -> None:
    _command(run)
    decided = with_decision(run)
    _command(decided, step="decision")
    assert _points(decided)["decision/diversity"].values() == pytest.approx([0.12])
    told = [event["steps"] for event in read_events(run.folder) if event["event"] == "tracked"]
    assert [len(steps) for steps in told] == [len(run.steps), 1]


def test_step_that_finished_again_is_sent_again(run: StoredRun) -> None:
    _command(run)
    folder = run.step("round_0/examples")
    folder.commit({**(folder.manifest() or {}), "num_examples": 99, "finished_at": "2027-01-01"})
    _command(run)
    assert 99 in _points(run)["examples/num_examples"].values()


def test_without_a_step_or_a_tracker_nothing_is_opened(run: StoredRun) -> None:
    with tracked_run(run.folder, TrackingSettings()):
        record("rate", **RATE)  # as `plan` does, which generates but makes no step
    _command(run, TrackingSettings(tensorboard=False), rates=2)
    assert TENSORBOARD not in run.folder.folder_names()


def test_tracker_that_fails_is_told_once_and_the_command_goes_on(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = types.ModuleType("wandb")  # it has no `init`
    monkeypatch.setitem(sys.modules, "wandb", package)
    _command(run, TrackingSettings(wandb_project="p"), rates=3)
    assert capsys.readouterr().out.count("Weights & Biases failed") == 1
    assert len(_points(run)["scores/test/in_domain/tuned"]) == 1


def test_tracker_that_takes_nothing_any_more_does_not_keep_the_command_from_ending(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = threading.Event()
    package = types.ModuleType("wandb")
    package.init = lambda **_: answers.wait(60)  # type: ignore[attr-defined]
    package.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(tracking_of_runs, "CLOSE_S", 0.1)
    try:
        _command(run, TrackingSettings(tensorboard=False, wandb_project="p"))
        assert "the trackers did not take the last numbers within 0 s" in capsys.readouterr().out
    finally:
        answers.set()
        for thread in threading.enumerate():
            if thread.name == "tracking":
                thread.join()


def test_step_of_which_no_time_is_recorded_is_sent_first(run: StoredRun) -> None:
    folder = run.step("round_0/examples")
    manifest = {k: v for k, v in (folder.manifest() or {}).items() if k != "finished_at"}
    folder.commit(manifest)
    _command(run)
    steps = {name: min(points) for name, points in _points(run).items()}
    assert steps["examples/num_examples"] == min(steps.values())


def test_manifest_that_cannot_be_read_ends_the_tracking_and_not_the_command(
    run: StoredRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run.step("round_0/examples").write_bytes(MANIFEST, b'{"xxh3": "another"}')
    _command(run)
    assert "are not tracked any more" in capsys.readouterr().out


def test_each_dataset_and_the_base_have_names_of_their_own(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    rows = {"num_done": 4, "num_accepted": 2, "num_truncated": 1, "num_failed": 0}
    manifest = {"rows": rows | {"num_tokens": 90}, "finished_at": "2026-11-30T08:00:00Z"}
    names = {
        "base/predictions-0123456789ab": "base/predictions/truncated_share",
        "round_1/predictions-gsm8k-0123456789ab": "predictions-gsm8k/truncated_share",
    }
    for name, expected in names.items():
        folder.child(name).commit(manifest)
        state = finished_state(folder, name)
        assert state is not None
        numbers = step_numbers(state)
        assert numbers[expected] == 0.25
        assert numbers.get("round") == (1.0 if name.startswith("round_1") else None)


def test_wandb_offline_has_one_run_for_both_commands(run: StoredRun) -> None:
    pytest.importorskip("wandb")
    settings = TrackingSettings(tensorboard=False, wandb_project="p", wandb_mode="offline")
    for step in ("paths", "model"):
        _command(run, settings, rates=2, step=step)
    found = [
        p.name.rpartition("-")[2] for p in Path(run.folder.path).glob("wandb/**/offline-run-*")
    ]
    assert len(set(found)) == 1


def test_mlflow_store_has_one_run_for_both_commands(run: StoredRun, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/runs.db"
    settings = TrackingSettings(tensorboard=False, mlflow_experiment="e", mlflow_uri=uri)
    for step in ("paths", "model"):
        _command(run, settings, rates=1, step=step)
    client = mlflow.MlflowClient(tracking_uri=uri)
    [found] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    history = client.get_metric_history(found.info.run_id, "scores/test/in_domain/tuned")
    assert len(history) == 1
    assert len(client.get_metric_history(found.info.run_id, "generation/engines")) == 2
