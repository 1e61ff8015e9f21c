"""The measures of `benchmarks.prompts`, on texts whose values can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prompts.__main__ import main
from benchmarks.prompts.measures import Side, measure, share_told
from evaluation.question import Question
from pipelines.synthesis.reasoning_path import Generation, ReasoningPath
from tests.finished_run import write_finished_run

TEXTS = {"apples": "Anna buys 12 apples.", "trains": "A train needs 45 minutes."}
GUIDELINES = {"parts": "Split the problem into parts.", "check": "Verify the result."}


def test_text_that_names_its_question_tells_it() -> None:
    assert share_told([("Count the 12 apples first", "apples")], TEXTS) == 1
    assert share_told([("Count the 12 apples first", "trains")], TEXTS) == 0


def test_text_that_names_no_question_is_worth_a_guess() -> None:
    assert share_told([("Think it through.", "apples")] * 3, TEXTS) == 0.5
    assert share_told([], TEXTS) == 0


def fruit(number: str, text: str, answer: str) -> Question:
    """A question of one dataset."""
    return Question(f"fruit/{number}", "fruit", "train", "in_domain", text, answer, "number")


def path(question: Question, guideline: str, *texts: str, cut: str = "") -> ReasoningPath:
    """A path with an adaptation, a plan and a solution; the stage `cut` was cut off."""
    columns = dict(zip(("adapted_guideline", "structure", "reasoning"), texts, strict=True))
    made = tuple(
        Generation(stage, 0, "length" if stage == cut else "stop", 90, 0, 10)
        for stage in ("adapt", "structure", "path")
    )
    own = ReasoningPath("id", guideline, texts=columns, generations=made)
    return own.graded(question, ())


def test_measures_of_four_paths() -> None:
    apples = fruit("1", "Anna buys 12 apples and eats 5.", "7")
    trains = fruit("2", "A train needs 45 minutes twice.", "90")
    side = Side(
        [
            (apples, path(apples, "parts", "Split the 12 apples.", "Subtract.", r"\boxed{7}")),
            (apples, path(apples, "check", "It is clear.", "It leaves 7.", r"\boxed{8}")),
            (
                trains,
                path(trains, "parts", "Verify 45 minutes.", "Add.", r"\boxed{90}", cut="path"),
            ),
            (trains, path(trains, "check", "Verify the 90.", "Add.", r"\boxed{90}", cut="adapt")),
        ],
        GUIDELINES,
    )
    measured = measure(side)
    # The second is worth a guess, and the last one names no word of its question.
    assert measured.question_told == (1 + 0.5 + 1 + 0.5) / 4
    assert measured.guideline_told == (1 + 0.5 + 0 + 1) / 4
    assert (measured.question_chance, measured.guideline_chance) == (0.5, 0.5)
    assert (measured.adaptation_leaks, measured.plan_leaks) == (0.25, 0.25)
    assert measured.cut == {"adapt": 0.25, "structure": 0, "path": 0.25}
    assert (measured.num_paths, measured.num_right, measured.num_tokens) == (4, 2, 4 * 3 * 100)


def test_runs_are_compared_in_one_table(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run = write_finished_run(tmp_path, model_folder)
    file = tmp_path / "measures.json"
    folder = finished_run.folder.uri
    assert main([folder, "--show", "2", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"### {folder}") == 2
    assert "right per 10,000 tokens" in printed
    [row] = json.loads(file.read_text()).values()
    paths = [ReasoningPath.from_row(path) for row in finished_run.rows for path in row["paths"]]
    assert row["num_paths"] == len(paths)
    assert row["num_right"] == sum(path.verdict == "correct" and path.is_finished for path in paths)
