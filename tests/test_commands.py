"""The table of commands, each of which is a file that is imported when it is called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import regenesis
from cluster.errors import InterruptedRunError
from cluster.session import StopRequest
from pipelines.steps import guidelines
from tests.conftest import REPOSITORY

NO_COMMANDS = ("__init__", "arguments", "version")
FILES = {
    path.stem.replace("_", "-")
    for path in (REPOSITORY / "commands").glob("*.py")
    if path.stem not in NO_COMMANDS
}


def test_every_file_of_commands_is_in_the_table() -> None:
    assert FILES | {"run"} == set(regenesis.COMMANDS)


def test_driver_fits_on_a_few_screens() -> None:
    assert len((REPOSITORY / "regenesis.py").read_text().splitlines()) <= 200


@pytest.mark.parametrize("command", sorted(regenesis.COMMANDS))
def test_command_says_how_it_is_used(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        regenesis.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: regenesis {command}" in capsys.readouterr().out


def test_unknown_command_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        regenesis.main(["improve"])
    assert ended.value.code == 2
    written = capsys.readouterr().err
    assert all(command in written for command in regenesis.COMMANDS)


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenesis.main(["tasks"]) == 0
    assert "| gsm8k " in capsys.readouterr().out


def test_questions_of_a_task_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"ID": "1", "Body": "Two cats met three cats.", "Question": "How many cats are there?"}
    rows = [row | {"Equation": "( 2.0 + 3.0 )", "Answer": "5.0", "Type": "Addition"}]
    (tmp_path / "svamp.json").write_text(json.dumps(rows))
    assert regenesis.main(["tasks", "svamp", "--path", str(tmp_path / "svamp.json")]) == 0
    assert "How many cats are there?" in capsys.readouterr().out


@pytest.mark.parametrize("until", ["questions", "guidelines"])
def test_run_until_a_step_before_the_rounds_lays_out_no_round(
    until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(guidelines, "make", lambda run, _: made.append(run))
    regenesis.improve(None, StopRequest(), until)  # type: ignore[arg-type]
    assert made == ([] if until == "questions" else [None])


def test_request_to_stop_between_two_steps_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, made = StopRequest(), []

    class Asked:
        @staticmethod
        def make(_run: object, round_: object, asked: StopRequest) -> None:
            made.append(round_)
            asked._event.set()

    monkeypatch.setattr(regenesis, "ROUND_STEPS", {"paths": Asked, "examples": Asked})
    monkeypatch.setattr(regenesis, "record_steps", lambda _: None)
    monkeypatch.setattr(guidelines, "make", lambda *_: None)
    monkeypatch.setattr(regenesis, "lay_out_rounds", lambda _: [SimpleNamespace(number=0)])
    with pytest.raises(InterruptedRunError, match="stopped between two steps"):
        regenesis.improve(None, stop)  # type: ignore[arg-type]
    assert len(made) == 1


def test_second_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("commands.tasks.run", interrupted)
    assert regenesis.main(["tasks"]) == 130
    assert capsys.readouterr().err == "regenesis: interrupted\n"


def test_broken_pipe_of_something_else_than_the_output_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: object) -> int:
        raise BrokenPipeError(32, "the pipe of a subprocess")

    monkeypatch.setattr("commands.tasks.run", broken)
    monkeypatch.setattr(regenesis, "is_unread", lambda _: False)
    with pytest.raises(BrokenPipeError):
        regenesis.main(["tasks"])


def test_only_the_command_that_is_called_is_imported_and_nothing_heavy() -> None:
    code = (
        "import sys, regenesis\n"
        "regenesis.parse_arguments(['grade', 'file.jsonl'])\n"
        "print(sorted(name for name in sys.modules if name.startswith('commands.')))\n"
        "print([name for name in ('ray', 'torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [
        "['commands.arguments', 'commands.grade', 'commands.version']",
        "[]",
    ]
