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
from cluster.events import EVENTS_FILE, LOG_FILE, kept_log, read_events, record, timed
from cluster.notify import announced, notify
from cluster.store.folder import Folder
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
    """A folder that is not taken for a local one, as in an object store."""
    below = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    return Folder(below, "run")


def test_kept_log_has_what_was_said_and_the_events_with_their_facts(run: Folder) -> None:
    with kept_log(run, "run"), timed("step", step="paths"):
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
    with pytest.raises(InputError), kept_log(run, "run"):
        raise InputError("a field is wrong")
    assert names(read_events(run)) == ["command_started", "command_failed"]
    assert "ERROR run ended with InputError: a field is wrong" in log_of(run)


def test_log_ends_with_its_command(run: Folder, tmp_path: Path) -> None:
    with kept_log(run, "run"):
        pass
    say("something later")
    assert "something later" not in log_of(run)
    assert len(list((tmp_path / "run").rglob("*.*"))) == 2


def test_events_of_a_killed_command_are_there_up_to_a_torn_line(run: Folder) -> None:
    """In a process that is gone between two lines; a line that was torn is left out."""
    code = (
        "import os; from cluster.events import *; from cluster.store.folder import Folder\n"
        f"with kept_log(Folder.open({run.path!r}), 'run'):\n"
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
    with kept_log(remote_run, "run"):
        record("rate", tokens=7)
        assert written.wait(30)
        assert "command_finished" not in names(read_events(remote_run))
    assert names(read_events(remote_run))[-1] == "command_finished"


def test_log_that_cannot_be_written_ends_no_run(
    remote_run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Folder, name: str, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Folder, "write_bytes", refuse)
    with kept_log(remote_run, "run"):
        record("rate", tokens=7)


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
def test_news_that_cannot_be_delivered_change_nothing(target: str) -> None:
    notify(target, run="mine", event="finished", text="")


def test_nobody_is_told_by_default() -> None:
    with announced(None, "mine"):
        assert os.getpid()
