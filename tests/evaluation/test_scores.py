from __future__ import annotations

import random
from dataclasses import replace
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
    mean_score,
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
        ("in_domain", "mean", 2),
        ("out_of_domain", "c", 1),
    ]
    assert scores[2].base_strict == 0.5
    accuracy, answers, note = format_scores(scores).split("\n\n")
    for table in (accuracy, answers):
        assert len({len(line) for line in table.split("\n")}) == 1
        assert "in_domain/all" in table.split("\n")[4]
    assert note == "in_domain/mean counts each task once."


def answered(right: int, of: int, task: str) -> dict[str, Prediction]:
    return {
        question(n, task).question_id: predicted("correct" if n < right else "wrong", "boxed")
        for n in range(of)
    }


def test_mean_over_tasks_counts_each_once_and_shows_what_one_of_them_does() -> None:
    sizes = {"a": 40, "b": 40, "c": 40, "d": 40, "e": 40, "f": 400}
    gains = {"a": 6, "b": 6, "c": 6, "d": 6, "e": 6, "f": -20}
    questions = [question(n, task) for task, size in sizes.items() for n in range(size)]
    base: dict[str, Prediction] = {}
    tuned: dict[str, Prediction] = {}
    for task, size in sizes.items():
        base |= answered(size // 2, size, task)
        tuned |= answered(size // 2 + gains[task], size, task)
    *tasks, pooled, mean = compare_scores(questions, base, tuned)
    assert pooled.strict_difference == pytest.approx(10 / 600)
    assert mean.strict_difference == pytest.approx((5 * 0.15 - 0.05) / 6)
    assert mean.base_strict == pytest.approx(0.5)
    assert mean.left_out == tuple(sizes)
    assert mean.strict_difference_without[-1] == pytest.approx(0.15)
    assert mean.tolerant_difference_without[0] == pytest.approx((4 * 0.15 - 0.05) / 5)
    assert mean.strict_difference_low < mean.strict_difference < mean.strict_difference_high
    width = mean.strict_difference_high - mean.strict_difference_low
    assert width < min(s.strict_difference_high - s.strict_difference_low for s in tasks[:5])
    assert "without one task: a +11.0 (+11.0)" in format_scores([mean])
    assert compare_scores(questions[:80], base, tuned)[-1].left_out == ()
    assert mean_score(tasks[:1]).strict_difference_low == pytest.approx(
        tasks[0].strict_difference_low
    )


@pytest.mark.slow
def test_interval_of_the_mean_over_tasks_covers_as_often_as_it_says() -> None:
    rng, sizes, gain, covered = random.Random(0), {"a": 60, "b": 200, "c": 100}, 0.1, 0
    questions = [question(n, task) for task, size in sizes.items() for n in range(size)]
    for _ in range(200):
        base, tuned = {}, {}
        for one in questions:
            before = rng.random() < 0.4
            after = before or rng.random() < gain / 0.6
            name = one.question_id
            base[name] = predicted("correct" if before else "wrong", "boxed")
            tuned[name] = predicted("correct" if after else "wrong", "boxed")
        mean = compare_scores(questions, base, tuned)[-1]
        covered += mean.strict_difference_low <= gain <= mean.strict_difference_high
    assert 0.9 <= covered / 200 <= 0.99


def test_scores_say_what_was_cut_off_and_how_long_answers_are() -> None:
    questions = [question(n) for n in range(4)]
    base = {
        q.question_id: replace(predicted("wrong", "boxed"), finish_reason="stop", num_tokens=10 * n)
        for n, q in enumerate(questions)
    }
    tuned = {name: replace(each, finish_reason="length") for name, each in base.items()}
    [score] = compare_scores(questions, base, tuned)
    assert (score.base_truncated, score.tuned_truncated) == (0.0, 1.0)
    assert score.base_tokens == score.tuned_tokens == 15.0
    assert "0.0 > 100.0 | 15 > 15" in format_scores([score])
    unknown = {name: replace(each, num_tokens=None) for name, each in base.items()}
    [score] = compare_scores(questions, unknown, unknown)
    assert score.base_tokens is None
    assert "? > ?" in format_scores([score])


def test_tables_fit_a_terminal_of_120_columns() -> None:
    tasks = ["strategyqa", "openbookqa", "a"]
    questions = [
        replace(question(n, task, "out_of_domain"), kind=str(n % 2))
        for task in tasks
        for n in range(1000)
    ]
    rows = {
        q.question_id: replace(predicted("correct", "boxed"), num_tokens=2048) for q in questions
    }
    text = format_scores(compare_scores(questions, rows, rows))
    assert max(map(len, text.split("\n"))) <= 120


def test_commonest_answer_is_taken_task_by_task() -> None:
    questions = [question(0), question(1, answer="2"), question(2, answer="2")]
    assert commonest_share(questions) == pytest.approx(2 / 3)
    assert commonest_share([*questions, question(3, "b", answer="9")]) == pytest.approx(3 / 4)


def test_commonest_answer_of_each_kind_is_shown_where_there_are_kinds() -> None:
    questions = [
        replace(question(n, answer=str(n // 3)), kind=f"subtask {n // 3}") for n in range(6)
    ]
    assert commonest_share(questions) == pytest.approx(1 / 2)
    assert commonest_share(questions, by_kind=True) == 1.0
    rows = {q.question_id: predicted("wrong", "boxed") for q in questions}
    text = format_scores(compare_scores(questions, rows, rows))
    assert "50.0 100.0*" in text
    assert "each kind of question" in text
    plain = [replace(q, kind="") for q in questions]
    assert "*" not in format_scores(compare_scores(plain, rows, rows))


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
    write_predictions(root.child("base"), questions, "I count 1")
    write_predictions(root.child("tuned"), questions[:1], "The answer is \\boxed{0}")
    write_predictions(root.child("tuned"), questions[1:], "The answer is \\boxed{1}")
    [score] = score_predictions(asked, root.child("base"), root.child("tuned"))
    assert score.num_questions == 4
    assert (score.base_strict, score.base_tolerant) == (0.0, 0.25)
    assert (score.tuned_strict, score.tuned_tolerant) == (0.5, 0.5)
    compact(root.child("tuned"), PREDICTIONS_SCHEMA)
    assert score_predictions(asked, root.child("base"), root.child("tuned")) == [score]
    assert scores_table([score]).to_pylist()[0]["tuned_strict"] == 0.5


def test_scores_of_a_model_tuned_on_one_dataset_call_the_others_out_of_domain(
    tmp_path: Path,
) -> None:
    root = Folder.open(str(tmp_path))
    questions = [question(0, task="a"), question(0, task="b")]
    root.child("questions").write_table("questions.parquet", question_table(questions))
    asked = Questions(root.child("questions"), ("test",))
    write_predictions(root.child("base"), questions, "\\boxed{1}")
    both = (root.child("base"), root.child("base"))
    for tuned_on, domains in (
        ("b", {"a": "out_of_domain", "b": "in_domain"}),
        (None, {"a": "in_domain", "b": "in_domain"}),
    ):
        scores = score_predictions(asked, *both, tuned_on)
        assert {s.task: s.domain for s in scores if s.task in ("a", "b")} == domains


def test_scores_question_without_a_prediction_is_an_error(tmp_path: Path) -> None:
    root = Folder.open(str(tmp_path))
    questions = [question(n) for n in range(2)]
    root.child("questions").write_table("questions.parquet", question_table(questions))
    asked = Questions(root.child("questions"), ("test",))
    write_predictions(root.child("base"), questions[:1], "1")
    with pytest.raises(KeyError, match="a/test/1"):
        score_predictions(asked, root.child("base"), root.child("base"))
