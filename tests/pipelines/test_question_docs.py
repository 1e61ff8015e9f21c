"""The examples of docs/QUESTIONS.md, read from the document and run as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.question import LETTERS, Question
from pipelines.questions.loading import QuestionSettings, load_questions

DOCUMENT = (Path(__file__).parents[2] / "docs" / "QUESTIONS.md").read_text()
_SHAPE = re.compile(
    r"^### (?P<title>[^\n]+)\n.*?```\w+ (?P<file>\S+)\n(?P<rows>.*?)```\n\n"
    r"```yaml\n(?P<settings>.*?)```\n\n```text\n(?P<shown>.*?)```$",
    re.DOTALL | re.MULTILINE,
)
SHAPES = {shape["title"]: shape for shape in _SHAPE.finditer(DOCUMENT)}


def read_shape(folder: Path, shape: re.Match[str], **changes: Any) -> list[Question]:
    (folder / shape["file"]).write_text(shape["rows"])
    source = {"kind": "files"} | yaml.safe_load(shape["settings"]) | changes
    dataset = {"source": source, "domain": "out_of_domain"}
    tree = {"folder": str(folder), "datasets": {"mine": dataset}}
    loaded = load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))
    questions = {question.question_id: question for question in loaded.questions("test")}
    return [questions[name] for name in sorted(questions)]


def as_shown(question: Question) -> str:
    kind = f" [{question.kind}]" if question.kind else ""
    return f"{question.text}\n-> {question.answer}{kind}\n"


def test_every_shape_of_the_document_is_found() -> None:
    assert len(SHAPES) == DOCUMENT.count("\n### ") == 9


@pytest.mark.parametrize("title", SHAPES)
def test_shape_of_a_public_file_is_read_as_the_document_says(tmp_path: Path, title: str) -> None:
    shape = SHAPES[title]
    questions = read_shape(tmp_path, shape)
    assert len(questions) == 3
    assert "".join(map(as_shown, questions)) == shape["shown"]


def test_right_answer_of_its_own_column_is_somewhere_else_in_each_question(tmp_path: Path) -> None:
    shape = next(shape for title, shape in SHAPES.items() if "GPQA" in title)
    questions = read_shape(tmp_path, shape)
    right = [q.choices[LETTERS.index(q.answer)] for q in questions]
    assert right == ["7", "5", "0"]
    assert len({q.answer for q in questions}) > 1


def test_solution_is_what_comes_before_the_mark(tmp_path: Path) -> None:
    shape = next(shape for title, shape in SHAPES.items() if "GSM8K" in title)
    assert read_shape(tmp_path, shape)[0].solution == "She has 2 + 3 = 5 pens."
