"""The table of a run: what it shows is what a recount of the answers gives."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter
from evaluation.comparison import format_p_value
from evaluation.predictions import PREDICTIONS_SCHEMA, Prediction
from evaluation.question import Question, question_table
from evaluation.run_table import Asked, format_run, run_table
from evaluation.scores import format_difference, format_share
from evaluation.statistics import exact_mcnemar, holm, paired_difference, wilson_interval

TASKS = {"products": "in_domain", "sums": "in_domain", "far": "out_of_domain"}


def question(task: str, number: int, split: str = "test") -> Question:
    domain = TASKS.get(task, "in_domain")
    name = f"{task}/{split}/{number:03d}"
    return Question(name, task, split, domain, f"{task}?{number}", "1", "number")  # type: ignore[arg-type]


def answered(seed: int, share: float) -> list[Prediction]:
    """Answers to 40 questions of each task; a third of them is right by the last number alone."""
    rng = random.Random(seed)
    return [
        Prediction(
            question(task, number),
            rng.choice(["\\boxed{%d}", "\\boxed{%d}", "so %d"]) % (rng.random() < share),
            finish_reason="stop" if rng.random() < 0.9 else "length",
            num_tokens=rng.randrange(9, 90),
        ).graded()
        for task in TASKS
        for number in range(40)
    ]


@pytest.fixture(scope="module")
def models() -> dict[str, list[Prediction]]:
    return {"base": answered(0, 0.4), "round 0": answered(1, 0.7), "round 1": answered(2, 0.5)}


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of the tables after the one that begins with this cell, up to the next such row."""
    rows = [[c.strip() for c in ln.strip("|").split("|")] for ln in text.split("\n") if "|" in ln]
    start = next(number for number, row in enumerate(rows) if row[0] == first)
    others = (n for n, row in enumerate(rows) if n > start and row[0])
    return rows[start : next(others, len(rows))]


def rights(answers: list[Prediction], task: str, *, tolerant: bool) -> list[bool]:
    kept = [p for p in answers if p.question.dataset == task]
    boxed = ("boxed", "phrase")
    return [p.verdict == "correct" and (tolerant or p.read_as in boxed) for p in kept]


@pytest.mark.parametrize("reading", ["strict", "tolerant"])
def test_each_number_is_a_recount(models: dict[str, list[Prediction]], reading: str) -> None:
    tolerant = reading == "tolerant"
    text = format_run(models)
    table = next(part for part in text.split("\n\n") if f"| {reading} " in part)
    right = {
        (name, task): rights(answers, task, tolerant=tolerant)
        for name, answers in models.items()
        for task in TASKS
    }
    p_values = {
        key: exact_mcnemar(right["base", key[1]], of_model)
        for key, of_model in right.items()
        if key[0] != "base"
    }
    adjusted = holm({f"{name} {task}": p for (name, task), p in p_values.items()})
    for task, domain in TASKS.items():
        base, *others = cells(table, f"{domain}/{task}")
        share = sum(right["base", task]) / 40
        interval = wilson_interval(sum(right["base", task]), 40)
        assert base[1:] == ["base", format_share(share, *interval), "", "", ""]
        assert [row[1] for row in others] == ["round 0", "round 1"]
        for row in others:
            of_model = right[row[1], task]
            assert row[3] == format_difference(*paired_difference(right["base", task], of_model))
            assert row[4] == format_p_value(p_values[row[1], task])
            assert row[5] == format_p_value(adjusted[f"{row[1]} {task}"])
    assert cells(table, "in_domain/all")[1][4]
    assert cells(table, "in_domain/mean")[1][4] == "", "a mean over tasks has no p value"


def test_how_they_answered_and_the_notes(models: dict[str, list[Prediction]]) -> None:
    text = format_run(models)
    table = next(part for part in text.split("\n\n") if "| cut off " in part)
    base, first, _ = cells(table, "out_of_domain/far")
    assert base[:4] == ["out_of_domain/far", "40", "100.0", "base"]
    own = [p for p in models["round 0"] if p.question.dataset == "far"]
    cut = sum(p.finish_reason == "length" for p in own) / 40
    assert first[5:] == [f"{100 * cut:.1f}", f"{sum(p.num_tokens or 0 for p in own) / 40:.0f}"]
    assert "over the 6 comparisons of single tasks of its table" in text.replace("\n", " ")
    assert "separately over the 2 of `all`" in text.replace("\n", " ")
    assert "in_domain/mean counts each task once." in text
    assert max(map(len, text.split("\n"))) <= 120


def test_mean_over_three_tasks_is_told_without_each_of_them() -> None:
    def model(right: dict[str, int]) -> list[Prediction]:
        """So many right ones of the four answers to each task."""
        return [
            Prediction(
                question(task, n), f"\\boxed{{{int(n < number)}}}", finish_reason="stop"
            ).graded()
            for task, number in right.items()
            for n in range(4)
        ]

    base = model({"a": 0, "b": 0, "c": 0})
    text = format_run({"base": base, "round 0": model({"a": 4, "b": 2, "c": 0})})
    said = " ".join(text.split("\n\n")[-1].replace("\N{NO-BREAK SPACE}", " ").split())
    assert (
        "in_domain/mean counts each task once; the difference of round 0 (strict, tolerant) "
        "without one task: a +25.0 +25.0, b +50.0 +50.0, c +75.0 +75.0."
    ) in said


def test_commonest_answer_of_each_kind_is_a_baseline(models: dict[str, list[Prediction]]) -> None:
    def with_kind(prediction: Prediction) -> Prediction:
        kind = str(int(prediction.question.question_id[-3:]) % 2)
        asked = replace(prediction.question, kind=kind, answer=kind)
        return replace(prediction, question=asked)

    text = format_run({name: list(map(with_kind, of)) for name, of in models.items()})
    assert cells(text.split("\n\n")[2], "in_domain/sums")[0][2] == "50.0 100.0*"
    assert "most common answer of each kind" in text


def test_gate_tasks_and_the_other_split_are_not_shown(tmp_path: Path) -> None:
    root = Folder.open(str(tmp_path))
    asked = [
        question(task, n, split) for task in TASKS for n in range(3) for split in ("dev", "test")
    ]
    root.child("questions").write_table("questions.parquet", question_table(asked))
    for name in ("base", "tuned"):
        rows = [
            Prediction(each, "\\boxed{1}", finish_reason="stop").graded().to_row() | {"attempt": 0}
            for each in asked
        ]
        PartWriter(root.child(name), PREDICTIONS_SCHEMA).write(rows)
    stored = Questions(root.child("questions"), ("dev", "test"))
    folders = {"base": root.child("base"), "tuned": root.child("tuned")}
    text = run_table(Asked(stored, "dev", hidden=("far",)), folders)
    assert "sums" in text
    assert "far" not in text
    assert cells(text.split("\n\n")[2], "in_domain/sums")[0][1] == "3"
    alone = run_table(Asked(stored, "test", in_domain="sums"), folders)
    assert "in_domain/sums" in alone
    assert "out_of_domain/products" in alone
    assert run_table(Asked(stored, "dev", hidden=tuple(TASKS)), folders) == ""
