"""The table of commands, each of which is a file that is imported when it is called."""

from __future__ import annotations

import subprocess
import sys

import pytest

import regenesis
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
