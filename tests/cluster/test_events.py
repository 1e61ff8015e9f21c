"""The log and the events of a command, on a disk and where a file cannot grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

import cluster.events
from cluster.errors import InputError, InterruptedRunError, OverBudgetError
from cluster.events import (
    EVENTS_FILE,
    LOG_FILE,
    KeptLog,
    kept_log,
    logger,
    read_events,
    record,
    timed,
)
from cluster.notify import announced, notify
from cluster.store.folder import Folder
from cluster.store.step import claim_run_folder
from cluster.terminal import say
from tests.conftest import REPOSITORY


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def log_of(run: Folder) -> str:
    [name] = run.child("logs").folder_names()
    return run.child("logs").child(name).read_bytes(LOG_FILE).decode()


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "run"))


@pytest.fixture
def remote_run(tmp_path: Path) -> Folder:
    """The folder of a run that is not taken for a local one, as in an object store."""
    below = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    run = Folder(below, "run")
    claim_run_folder(run, "run")
    return run


def test_kept_log_has_what_was_said_and_the_events_with_their_facts(run: Folder) -> None:
    with kept_log("run", run), timed("step", step="paths"):
        say("questions: two lines\nof counts")
        record("rate", tokens=5, questions={"paths": 3})
    events = read_events(run)
    assert names(events) == [
        "command_started",
        "step_started",
        "rate",
        "step_finished",
        "command_finished",
    ]
    assert events[2]["tokens"] == 5
    assert events[2]["questions"] == {"paths": 3}
    assert events[3]["step"] == "paths"
    assert events[3]["seconds"] >= 0
    lines = log_of(run).splitlines()
    assert [line.split(" ", 1)[1] for line in lines if "questions: two" in line or "counts" in line]
    assert all(line[10] == "T" and line.split()[1] == "INFO" for line in lines)


def test_kept_log_tells_how_a_command_failed(run: Folder) -> None:
    with pytest.raises(InputError), kept_log("run", run):
        raise InputError("a field is wrong")
    assert names(read_events(run)) == ["command_started", "command_failed"]
    assert "ERROR run ended with InputError: a field is wrong" in log_of(run)


def test_log_is_held_back_until_the_folder_is_known(run: Folder) -> None:
    with kept_log("plan") as log:
        say("warning: a setting is odd")
        assert run.is_empty()
        log.keep_in(run)
        say("questions: 3 kept")
    lines = [line.split(" ", 2)[2] for line in log_of(run).splitlines()]
    assert lines[0].startswith("command_started command=plan")
    assert lines[1:3] == ["warning: a setting is odd", "questions: 3 kept"]
    assert names(read_events(run)) == ["command_started", "command_finished"]


def test_command_that_ends_before_it_has_a_folder_leaves_none(run: Folder) -> None:
    with pytest.raises(InputError), kept_log("run"):
        raise InputError("a field is wrong")
    assert run.is_empty()


def test_commands_of_the_same_second_keep_a_log_each(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.events.time.strftime", lambda *_: "20261129T171502")
    for _ in range(3):
        with kept_log("select", run):
            pass
    stamp = "20261129T171502-select"
    assert run.child("logs").folder_names() == [stamp, f"{stamp}-2", f"{stamp}-3"]


def test_log_that_has_no_place_on_a_disk_ends_no_command(
    run: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run.path).write_text("a file where the folder should be")
    with kept_log("select", run):
        say("round 0")
        record("rate", tokens=7)
    written = capsys.readouterr()
    assert written.out == "round 0\n"
    assert written.err.startswith(f"the log in {run.uri}/logs cannot be written: ")
    assert written.err.count("\n") == 1


def test_log_on_a_full_disk_ends_no_command_and_goes_on_once_there_is_room(
    run: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept_log("run", run):
        with monkeypatch.context() as full, Path("/dev/full").open("wb", buffering=0) as device:
            log = next(each for each in logger.handlers if isinstance(each, KeptLog))
            full.setattr(log._files, "_files", dict.fromkeys((LOG_FILE, EVENTS_FILE), device))
            record("rate", tokens=7)
            record("rate", tokens=8)
        record("rate", tokens=9)
    assert names(read_events(run)) == ["command_started", "rate", "command_finished"]
    assert capsys.readouterr().err.count("cannot be written: No space left on device") == 1


def test_log_is_not_written_to_a_run_that_was_removed(remote_run: Folder) -> None:
    with kept_log("run", remote_run):
        remote_run.delete()
    assert remote_run.is_empty()


def test_log_ends_with_its_command(run: Folder, tmp_path: Path) -> None:
    with kept_log("run", run):
        pass
    say("something later")
    assert "something later" not in log_of(run)
    assert len(list((tmp_path / "run").rglob("*.*"))) == 2


def test_events_of_a_killed_command_are_there_up_to_a_torn_line(run: Folder) -> None:
    """In a process that is gone between two lines; a line that was torn is left out."""
    code = (
        "import os; from cluster.events import *; from cluster.store.folder import Folder\n"
        f"with kept_log('run', Folder.open({run.path!r})):\n"
        "    record('rate', tokens=7)\n"
        "    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    [name] = run.child("logs").folder_names()
    with (Path(run.path) / "logs" / name / EVENTS_FILE).open("a") as file:
        file.write('{"at": "2026')
    assert names(read_events(run)) == ["command_started", "rate"]


def test_log_of_an_object_store_is_written_while_the_command_works_and_at_its_end(
    remote_run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.events, "WRITE_EVERY_S", 0.01)
    written = threading.Event()
    write = Folder.write_bytes

    def noticed(self: Folder, name: str, data: bytes) -> None:
        write(self, name, data)
        if name == EVENTS_FILE and b"rate" in data:
            written.set()

    monkeypatch.setattr(Folder, "write_bytes", noticed)
    with kept_log("run", remote_run):
        record("rate", tokens=7)
        assert written.wait(30)
        assert "command_finished" not in names(read_events(remote_run))
    assert names(read_events(remote_run))[-1] == "command_finished"


def test_log_that_an_object_store_refuses_ends_no_command(
    remote_run: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Folder, name: str, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "write_bytes", refuse)
    with kept_log("run", remote_run):
        record("rate", tokens=7)
    written = capsys.readouterr().err
    assert written == f"the log in {remote_run.uri}/logs cannot be written: no space left\n"


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server, and the JSON that was posted to it."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (OverBudgetError("too much"), "budget"),
        (InterruptedRunError("stopped"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (InputError("wrong"), "failed"),
    ],
)
def test_announced_tells_a_url_how_a_run_ended(
    posted: tuple[str, list[dict[str, Any]]], error: BaseException, event: str
) -> None:
    url, got = posted
    with pytest.raises(type(error)), announced(url, "mine"):
        raise error
    assert got == [{"run": "mine", "event": event, "text": str(error)}]


def test_announced_tells_a_command_that_a_run_is_finished(tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"import os, sys; open({str(told)!r}, 'w').write(sys.stdin.read())"
    with announced(f'{sys.executable} -c "{code}"', "mine"):
        pass
    assert json.loads(told.read_text())["event"] == "finished"


@pytest.mark.parametrize("target", ["no-such-command-here", "http://127.0.0.1:1/", "false", '"'])
def test_news_that_cannot_be_delivered_are_in_the_log_and_change_nothing(
    run: Folder, target: str
) -> None:
    with kept_log("run", run):
        notify(target, run="mine", event="finished", text="")
    assert " WARNING cluster.notify: " in log_of(run)


def test_nobody_is_told_by_default() -> None:
    with announced(None, "mine"):
        assert os.getpid()
