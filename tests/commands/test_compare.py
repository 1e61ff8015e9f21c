"""`regenesis compare` on stored predictions and files; it needs neither a model nor Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import regenesis
from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.store.step import STEPS_FILE, Step
from evaluation.predictions import PREDICTIONS_SCHEMA, Prediction
from evaluation.question import Question
from pipelines.stored_answers import find_answers


def store(run: Path, parent: str, said: dict[str, str], *, finished: bool = True) -> str:
    """A step with answers, by the numbers of their questions, whose truths are the numbers."""
    folder = Folder.open(str(run)).child(parent)
    step = Step.below(folder, "predictions", {"of": parent, "said": said})
    rows = []
    for number, response in said.items():
        text = f"What is {number}?"
        question = Question(f"t/test/{number}", "t", "test", "in_domain", text, number, "number")
        prediction = Prediction(question, response, finish_reason="stop").graded()
        rows.append(prediction.to_row() | {"attempt": 0})
    PartWriter(step.folder, PREDICTIONS_SCHEMA).write(rows)
    if finished:
        compact(step.folder, PREDICTIONS_SCHEMA)
        step.commit()
    return f"{parent}/{step.folder.name}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose base boxes one of four answers, and whose tuned model boxes all of them."""
    folder = tmp_path / "run"
    numbers = [str(number) for number in range(1, 5)]
    base = {n: f"\\boxed{{{n}}}" if n == "1" else f"I count {n}" for n in numbers}
    tuned = {n: f"\\boxed{{{n}}}" for n in numbers}
    steps = [store(folder, "base", base), store(folder, "round_0", tuned)]
    store(folder, "round_0", {"1": "superseded"})
    Folder.open(str(folder)).write_json(STEPS_FILE, ["questions-000000000000", *steps])
    return folder


def compare(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = regenesis.main(["compare", *map(str, arguments)])
    written = capsys.readouterr()
    return written.out if code == 0 else f"{code}: {written.err}"


def test_models_of_a_run_are_compared_with_its_base(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = compare(capsys, run)
    assert "| t    | base  | round_0 | 4 " in strict
    assert "| 25.0 [4.6, 69.9] " in strict
    assert "| +75.0 " in strict
    assert "| 0.2500 | 0.2500 " in strict
    assert "| +0.0 " in compare(capsys, run, "--reading", "tolerant")
    refused = compare(capsys, run, "--reading", "forced")
    assert refused.startswith("2: ")
    assert "base has no answer with the reading forced; ask the model again" in refused


def test_part_of_a_run_is_found_with_the_step_that_the_run_uses(run: Path) -> None:
    [found] = find_answers(str(run / "round_0"))
    assert (found.name, len(found.answers)) == ("round_0", 4)
    [named] = find_answers(f"tuned={run / 'round_0'}")
    assert named.name == "tuned"
    assert [each.name for each in find_answers(f"mine={run}")] == ["mine/base", "mine/round_0"]


def test_same_model_of_two_runs_is_told_apart_by_its_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    step = store(other, "base", {"1": "\\boxed{1}", "2": "\\boxed{2}"})
    Folder.open(str(other)).write_json(STEPS_FILE, [step])
    said = compare(capsys, run / "base", other)
    assert f"{run / 'base'}:base" in said
    assert f"{other}:base" in said
    assert "have no counterpart; 2 pairs" in said
    assert "is given twice" in compare(capsys, run / "base", run / "base")


def test_predictions_that_are_not_finished_are_refused(tmp_path: Path) -> None:
    step = store(tmp_path, "base", {"1": "1"}, finished=False)
    Folder.open(str(tmp_path)).write_json(STEPS_FILE, [step])
    with pytest.raises(InputError, match="not finished; give the command"):
        find_answers(str(tmp_path))


def test_logs_of_one_model_are_one_set_and_two_of_a_task_are_refused(tmp_path: Path) -> None:
    row = {"doc_id": 0, "doc": {}, "resps": [["4"]], "filtered_resps": ["4"], "acc": 1.0}
    for task in ("a", "b"):
        (tmp_path / f"samples_{task}_2026-01-01T00-00-00.1.jsonl").write_text(json.dumps(row))
    [found] = find_answers(str(tmp_path))
    assert [answer.task for answer in found.answers] == ["a", "b"]
    (tmp_path / "samples_a_2026-01-02T00-00-00.1.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="several logs of a"):
        find_answers(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere", "there is no file or folder"),
        (".", "holds no predictions; give the folder"),
        ("empty.jsonl", "empty.jsonl holds no predictions; give another file"),
    ],
)
def test_place_without_predictions_is_refused(
    name: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    said = compare(capsys, tmp_path / name)
    assert said.startswith("2: ")
    assert complaint in said


def test_one_model_cannot_be_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has the answers of one model" in compare(capsys, run / "base")


def test_place_on_a_storage_that_is_not_known_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "cannot read ftp://host/run: " in compare(capsys, "ftp://host/run")
