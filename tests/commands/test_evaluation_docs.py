"""The commands of docs/EVALUATION.md: what they say is understood, and comparisons are made."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import regenesis
from cluster.store.folder import Folder
from cluster.store.step import STEPS_FILE
from commands.evaluate import settings_of_arguments
from evaluation.reading.prediction_rows import NAMES
from tests.commands.test_compare import store

DOCUMENT = (Path(__file__).parents[2] / "docs" / "EVALUATION.md").read_text()
_BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in _BLOCKS for line in block.replace("\\\n", " ").splitlines()]
EVALUATE = [command for command in COMMANDS if command.startswith("regenesis evaluate ")]
COMPARE = [command for command in COMMANDS if command.startswith("regenesis compare ")]


def test_document_has_commands_of_both_kinds_and_no_others() -> None:
    assert len(EVALUATE) >= 5
    assert len(COMPARE) >= 4
    assert [*EVALUATE, *COMPARE] == sorted(COMMANDS, key=lambda each: " evaluate " not in each)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shots.jsonl").write_text('{"question": "1 + 1?", "response": "2"}\n')
    said = {"1": "\\boxed{1}", "2": "\\boxed{2}"}
    for run, parents in (("both", ("models/a", "models/b")), ("quickstart", ("base", "round_0"))):
        at = tmp_path / "runs" / run
        steps = [store(at, parent, said) for parent in parents]
        Folder.open(str(at)).write_json(STEPS_FILE, steps)
    rows = [{"id": f"t/test/{number}", "response": number} for number in said]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "predictions.jsonl").write_text(lines)
    verdict = {"resps": [["1"]], "filtered_resps": ["1"], "exact_match": 1.0}
    log = {"doc_id": 0, "doc": {"question": "What is 1?"}, "filter": "none"} | verdict
    (tmp_path / "logs" / "other").mkdir(parents=True)
    (tmp_path / "logs" / "other" / "samples_t.jsonl").write_text(json.dumps(log))
    return tmp_path


@pytest.mark.parametrize("command", EVALUATE)
def test_evaluation_of_the_document_is_understood(command: str, folder: Path) -> None:
    arguments = regenesis.parse_arguments(shlex.split(command)[1:])
    settings = settings_of_arguments(arguments)
    asked = arguments.tasks.split(",")
    assert len(settings.questions.datasets) == len(asked)
    assert settings.evaluation.samples is None or settings.evaluation.samples.number == 8
    assert (settings.evaluation.shots != ()) == ("--shots" in command)


@pytest.mark.parametrize("command", COMPARE)
def test_comparison_of_the_document_is_made(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regenesis.main(shlex.split(command)[1:]) == 0
    assert "| t " in capsys.readouterr().out


def test_document_names_all_columns_of_other_tools() -> None:
    for names in NAMES.values():
        assert all(f"`{name}`" in DOCUMENT for name in names)
