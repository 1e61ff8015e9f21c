"""Grading from the command line, and a custom grader in a complete run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.terminal import is_unread
from regenesis import main
from tests.conftest import LOCAL_CLUSTER, REPOSITORY, driver_command, ledger_rows, run_driver

WriteConfig = Callable[[dict[str, Any]], Path]

ROW = {"response": "So \\boxed{72}.", "answer": "72", "answer_type": "number", "choices": None}

# The scripted engine's wrong answer is -1: this grader takes it and, by the question's data, the
# right one no more.
UPSIDE_DOWN = """
from evaluation.extraction.answer_extraction import find_answer
from evaluation.grader import Grade, ReadAs, Verdict


def grade(text, question, *, read_last, finished):
    read_as, answer = find_answer(text, last=read_last, finished=finished)
    if answer is None:
        return Grade(None, Verdict.NO_ANSWER, ReadAs.NOTHING)
    verdict = Verdict.CORRECT if answer == question.grader_data else Verdict.WRONG
    return Grade(answer, verdict, read_as)
"""


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_grade_command_writes_rows_and_counts_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROW | {"id": 1}, ROW | {"response": "Hm."})
    assert main(["grade", str(path)]) == 0
    written = capsys.readouterr()
    first, second = map(json.loads, written.out.splitlines())
    assert first == ROW | {"id": 1, "predicted": "72", "verdict": "correct", "read_as": "boxed"}
    assert second["verdict"] == "no_answer"
    assert written.err == "2 rows: 1 correct, 1 no_answer\n"


def test_grade_command_of_a_wrong_row_ends_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROW, ROW | {"answer_type": "poem"})
    assert main(["grade", str(path)]) == 2
    written = capsys.readouterr()
    assert len(written.out.splitlines()) == 1
    assert written.err.startswith(f"regenesis: {path}:2, field 'answer_type': 'poem' is unknown")


def test_grade_command_loads_no_heavy_library(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"response": "\\boxed{x + x}", "answer": "2x", "answer_type": "math"}]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    program = (
        "import sys, regenesis\n"
        f"code = regenesis.main(['grade', {str(path)!r}])\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'transformers', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "2 rows: 2 correct\n")


@pytest.mark.parametrize("command", ["grade", "tasks"])
def test_command_whose_reader_has_gone_ends_quietly(tmp_path: Path, command: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *[ROW] * 2000)  # more than a pipe holds
    arguments = [path] if command == "grade" else []
    process = subprocess.Popen(
        driver_command(command, *arguments),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (1, "")


def test_pipe_is_unread_once_its_reader_has_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert not is_unread(writing)
    os.close(reading)
    assert is_unread(writing)
    os.close(writing)
    with (tmp_path / "file").open("w") as file:
        assert not is_unread(file.fileno())


def test_run_with_a_grader_of_the_users_own_grades_by_it_in_the_workers(
    scripted_config: dict[str, Any],
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "graders"
    folder.mkdir()
    (folder / "upside_down.py").write_text(UPSIDE_DOWN)
    rows = [
        {"id": n, "question": f"What is {n} + 1?", "answer": n + 1, "grader_data": "-1"}
        for n in range(6)
    ]
    train = write_rows(tmp_path / "train.jsonl", *rows)
    source = {"kind": "files", "train": str(train), "answer_type": "number"}
    dataset = {"source": source, "dev_share": 0.0, "grader": "upside_down:grade"}
    scripted_config["questions"] = {"datasets": {"mine": dataset}}
    scripted_config["cluster"] = LOCAL_CLUSTER
    path = write_config(scripted_config)

    refused = run_driver("run", path, "--until", "paths")
    assert refused.returncode == 2
    assert "questions.datasets.mine.grader: the grader 'upside_down:grade' cannot be" in (
        refused.stderr
    )

    monkeypatch.setenv("PYTHONPATH", str(folder))
    result = run_driver("run", path, "--until", "paths")
    assert result.returncode == 0, result.stderr
    [paths] = Path(scripted_config["storage"]["root"]).glob("scripted/round_0/paths-*")
    graded = [path for row in ledger_rows(paths) for path in row["paths"]]
    assert {path["predicted"] for path in graded if path["verdict"] == "correct"} == {"-1"}
    assert len({path["predicted"] for path in graded if path["verdict"] == "wrong"}) > 1
