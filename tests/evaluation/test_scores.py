from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from evaluation.predictions import PREDICTIONS_SCHEMA, Prediction
from evaluation.question import Question, question_table
from evaluation.scores import (
    commonest_share,
    compare_scores,
    format_scores,
    score_predictions,
    scores_table,
)


def question(
    number: int, task: str = "a", domain: Any = "in_domain", answer: str = "1"
) -> Question:
    return Question(f"{task}/test/{number}", task, "test", domain, f"q{number}", answer, "number")


def predicted(verdict: str, read_as: str) -> Prediction:
    return Prediction(question(0), "a response", verdict=verdict, read_as=read_as)


def test_scores_format_gain_is_told_apart_from_right_answers() -> None:
    questions = [question(n) for n in range(4)]
    base = {q.question_id: predicted("correct", "last") for q in questions}
    tuned = {q.question_id: predicted("correct", "boxed") for q in questions}
    score = compare_scores(questions, base, tuned)[0]
    assert (score.base_strict, score.tuned_strict) == (0.0, 1.0)
    assert (score.base_read, score.tuned_read) == (0.0, 1.0)
    assert score.tolerant_difference == 0.0


def test_scores_domains_are_kept_apart_and_summed() -> None:
    questions = [question(0), question(1, "b"), question(2, "c", "out_of_domain")]
    rows = {q.question_id: predicted("wrong", "boxed") for q in questions}
    rows[questions[1].question_id] = predicted("correct", "boxed")
    scores = compare_scores(questions, rows, rows)
    assert [(s.domain, s.task, s.num_questions) for s in scores] == [
        ("in_domain", "a", 1),
        ("in_domain", "b", 1),
        ("in_domain", "all", 2),
        ("out_of_domain", "c", 1),
    ]
    assert scores[2].base_strict == 0.5
    table = format_scores(scores).split("\n")
    assert len({len(line) for line in table}) == 1
    assert "in_domain/all" in table[4]


def test_commonest_answer_is_taken_task_by_task() -> None:
    questions = [question(0), question(1, answer="2"), question(2, answer="2")]
    assert commonest_share(questions) == pytest.approx(2 / 3)
    assert commonest_share([*questions, question(3, "b", answer="9")]) == pytest.approx(3 / 4)


def write_predictions(folder: Folder, questions: list[Question], response: str) -> None:
    rows = [
        question.to_row()
        | {
            "question_fingerprint": question.fingerprint,
            "attempt": 0,
            "response": response,
            "finish_reason": "stop",
            # By a grader of before; the score takes today's.
            "verdict": "no_answer",
            "read_as": "none",
        }
        for question in questions
    ]
    PartWriter(folder, PREDICTIONS_SCHEMA).write(rows)


def test_scores_are_of_the_questions_asked_and_by_todays_grader(tmp_path: Path) -> None:
    root = Folder.open(str(tmp_path))
    questions = [question(n, answer=str(n)) for n in range(4)]
    root.child("questions").write_table("questions.parquet", question_table(questions))
    asked = Questions(root.child("questions"), ("dev", "test"))
    changed = [question(n, answer="7") for n in range(4)]
    for name in ("base", "tuned"):
        # Questions that were asked before, and an old text of one that is.
        write_predictions(root.child(name), [question(9), *changed], "\\boxed{7}")
    write_predictions(root.child("base"), questions, "It may be 1")
    write_predictions(root.child("tuned"), questions[:1], "The answer is \\boxed{0}")
    write_predictions(root.child("tuned"), questions[1:], "The answer is \\boxed{1}")
    [score] = score_predictions(asked, root.child("base"), root.child("tuned"))
    assert score.num_questions == 4
    assert (score.base_strict, score.base_tolerant) == (0.0, 0.25)
    assert (score.tuned_strict, score.tuned_tolerant) == (0.5, 0.5)
    compact(root.child("tuned"), PREDICTIONS_SCHEMA)
    assert score_predictions(asked, root.child("base"), root.child("tuned")) == [score]
    assert scores_table([score]).to_pylist()[0]["tuned_strict"] == 0.5


def test_scores_question_without_a_prediction_is_an_error(tmp_path: Path) -> None:
    root = Folder.open(str(tmp_path))
    questions = [question(n) for n in range(2)]
    root.child("questions").write_table("questions.parquet", question_table(questions))
    asked = Questions(root.child("questions"), ("test",))
    write_predictions(root.child("base"), questions[:1], "1")
    with pytest.raises(KeyError, match="a/test/1"):
        score_predictions(asked, root.child("base"), root.child("base"))
