"""`regenesis watch`: what the files of a run tell while another command works on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.events import kept_log, timed
from cluster.store.folder import Folder
from cluster.store.holder import DEAD_AFTER_S, hold, this_process
from commands.watch import _Life
from pipelines.analysis.overview import StepState
from pipelines.analysis.progress import format_progress, progress_of
from regenesis import main
from tests.finished_run import FinishedRun, folder_of, lasting_files

Copy = Callable[[], FinishedRun]
Capture = pytest.CaptureFixture[str]
NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)


def event(minute: int, name: str, **facts: Any) -> dict[str, Any]:
    return {"at": f"2026-11-29T12:{minute:02d}:00.000Z", "event": name, **facts}


def rate(minute: int, tokens: int, done: int, left: int) -> dict[str, Any]:
    return event(
        minute,
        "rate",
        tokens=tokens,
        engines=2,
        questions={"paths": done},
        questions_left={"paths": left},
    )


BEGUN = [
    event(0, "command_started", command="run"),
    event(1, "step_started", round=0, step="paths"),
]


def test_rate_and_time_left_are_those_of_the_pool_at_work() -> None:
    before = [rate(2, 900_000, 90, 10), event(3, "generated"), *BEGUN]
    looked = [event(15, "command_started", command="select")]
    looked.append(event(16, "command_finished", command="select"))
    events = [*BEGUN, *before, rate(10, 1_000, 10, 90), *looked, rate(20, 61_000, 40, 60)]
    progress = progress_of(events)
    assert progress is not None
    assert progress.tokens_per_s == pytest.approx(60_000 / 600)
    assert progress.questions_per_s == pytest.approx(30 / 600)
    state = StepState(
        "round_0/paths",
        "round_0/paths-1",
        "unfinished",
        num_questions=100,
        num_done=45,
        facts={"num_paths": 200, "num_accepted": 50},
    )
    line = format_progress(progress, [state], NOW)
    assert line == (
        "round 0: paths for 29 min 00 s | round_0/paths: 45 of 100 questions, 25.0 % right | "
        "100 tokens/s | 2 engines | about 20 min 00 s of generation left"
    )


def test_first_rate_tells_no_speed_and_training_has_none() -> None:
    progress = progress_of([*BEGUN, rate(2, 10, 0, 100)])
    assert progress is not None
    assert progress.tokens_per_s is None
    assert progress.num_left == 100
    training = [
        rate(2, 10, 0, 9),
        event(4, "generated"),
        event(5, "step_started", round=0, step="model"),
    ]
    line = format_progress(progress_of([*BEGUN, *training]), [], NOW)
    assert line == "round 0: model for 25 min 00 s"


@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_end_of_the_command_is_told(outcome: str) -> None:
    events = [*BEGUN, rate(2, 10, 0, 9), event(9, f"command_{outcome}", command="run")]
    line = format_progress(progress_of(events), [StepState("questions", "q-1", "finished")], NOW)
    assert line == f"`run` has {outcome}; 1 of 1 steps are finished"
    assert "no command" in format_progress(progress_of([]), [], NOW)


def test_watch_follows_until_the_run_is_released(copied_run: Copy, capsys: Capture) -> None:
    run = copied_run()
    (folder_of(run, "round_0/paths") / "manifest.json").unlink()
    working, over = threading.Event(), threading.Event()

    def work() -> None:
        with hold(run.folder) as held, kept_log("run", held), timed("step", round=0, step="paths"):
            working.set()
            over.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    working.wait(30)
    before = lasting_files(run)
    assert main(["watch", run.folder.uri, "--once"]) == 0
    assert before == lasting_files(run)
    line = capsys.readouterr().out
    assert line.startswith("round 0: paths for ")
    assert "round_0/paths: 24 of 24 questions" in line
    threading.Timer(0.3, over.set).start()
    started = time.monotonic()
    assert main(["watch", run.folder.uri, "--every", "0.05"]) == 0
    assert time.monotonic() - started < 25
    worker.join()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "`run` has finished; 6 of 7 steps are finished" in last
    assert "the command has ended" in last


def test_run_without_a_command_ends_the_watch_at_once(
    finished_run: FinishedRun, capsys: Capture
) -> None:
    assert main(["watch", finished_run.folder.uri]) == 0
    assert "no command works on the run" in capsys.readouterr().out


def test_wrong_interval_is_refused(finished_run: FinishedRun, capsys: Capture) -> None:
    assert main(["watch", finished_run.folder.uri, "--every", "0"]) == 2
    assert "--every 0" in capsys.readouterr().err


def test_command_that_shows_no_sign_of_life_ends_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Folder.open(str(tmp_path))
    elsewhere = this_process() | {"machine": "another boot", "host": "elsewhere"}
    run.child("holders").write_json("000001.json", elsewhere)
    life = _Life(run)
    assert life.why_over() == ""
    now = time.monotonic() + 10 * DEAD_AFTER_S
    monkeypatch.setattr("commands.watch.time.monotonic", lambda: now)
    assert "no sign of life from" in life.why_over()
    assert "elsewhere" in life.why_over()
    run.child("holders").write_bytes("000001.beat", b"7")
    assert life.why_over() == ""


def test_between_two_steps_the_command_is_named() -> None:
    assert format_progress(progress_of(BEGUN[:1]), [], NOW) == "`run` is between two steps"
