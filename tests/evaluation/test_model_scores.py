from __future__ import annotations

import itertools

import pytest

from evaluation.model_scores import (
    Measure,
    format_measures,
    measure_model,
    measures_table,
    subset_sizes,
)
from evaluation.predictions import Prediction, Sample
from evaluation.question import Question
from evaluation.statistics import wilson_interval


def answered(task: str, number: int, said: str, samples: str = "") -> Prediction:
    """An answer to a question whose truth is 4: boxed, or as the last number; samples likewise."""
    question = Question(f"{task}/test/{number}", task, "test", "in_domain", "2 + 2?", "4", "number")
    drawn = tuple(Sample(seed, f"\\boxed{{{one}}}", "stop", 1) for seed, one in enumerate(samples))
    return Prediction(question, said, finish_reason="stop", num_tokens=3, samples=drawn).graded()


def find(measures: list[Measure], task: str, reading: str, metric: str) -> Measure:
    [found] = [m for m in measures if (m.task, m.reading, m.metric) == (task, reading, metric)]
    return found


def test_readings_are_scored_apart_and_the_mean_counts_each_task_once() -> None:
    few = [answered("few", 0, "\\boxed{4}")]
    many = [
        answered("many", n, said) for n, said in enumerate(["is 4", "is 4", "is 4", "\\boxed{5}"])
    ]
    measures = measure_model("m", [*few, *many])
    assert find(measures, "many", "strict", "accuracy").value == 0
    tolerant = find(measures, "many", "tolerant", "accuracy")
    assert (tolerant.value, tolerant.low, tolerant.high) == (0.75, *wilson_interval(3, 4))
    mean = find(measures, "mean", "tolerant", "accuracy")
    assert (mean.value, mean.num_questions) == (0.875, 5)
    assert find(measures, "many", "", "read").value == 0.25
    assert find(measures, "many", "", "tokens").value == 3


def test_samples_give_pass_at_k_and_the_majority() -> None:
    rows = [answered("t", 0, "4", "4555"), answered("t", 1, "4", "4445")]
    measures = measure_model("m", rows)

    def by_hand(samples: str, k: int) -> float:
        subsets = list(itertools.combinations(samples, k))
        return sum("4" in subset for subset in subsets) / len(subsets)

    for k in (1, 2, 4):
        expected = (by_hand("4555", k) + by_hand("4445", k)) / 2
        assert find(measures, "t", "strict", f"pass@{k}").value == pytest.approx(expected)
    assert find(measures, "t", "strict", "maj@4").value == 0.5
    low, high = (find(measures, "t", "tolerant", "pass@1").low, 0.25)
    assert low == high  # both draws of the bootstrap were the weaker question


def test_questions_without_samples_have_no_measure_of_samples() -> None:
    measures = measure_model("m", [answered("t", 0, "4")])
    assert not [m for m in measures if "@" in m.metric]
    assert subset_sizes(6) == [1, 2, 4, 6]


def test_failed_answer_is_counted_and_wrong() -> None:
    question = answered("t", 0, "4").question
    measures = measure_model("m", [Prediction(question, error="too long").graded()])
    assert find(measures, "t", "", "failed").value == 1
    assert find(measures, "t", "tolerant", "accuracy").value == 0


def test_table_has_a_row_for_each_model_and_task_and_a_second_one_for_samples() -> None:
    measures = [
        *measure_model("one", [answered("a", 0, "4", "45"), answered("b", 0, "5", "45")]),
        *measure_model("two", [answered("a", 0, "\\boxed{4}"), answered("b", 0, "5")]),
    ]
    accuracy, samples = format_measures(measures).split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in accuracy.splitlines()[2:]]
    assert rows == [[task, model] for task in ("a", "b", "mean") for model in ("one", "two")]
    assert "pass@2" in samples
    table = measures_table(measures)
    assert table.num_rows == len(measures)
    assert table.column("low").null_count > 0


def test_mean_leaves_out_what_not_every_task_has() -> None:
    measures = measure_model("m", [answered("t", 0, "4", "45"), answered("u", 0, "4")])
    of_the_mean = {each.metric for each in measures if each.task == "mean"}
    assert "accuracy" in of_the_mean
    assert not {metric for metric in of_the_mean if "@" in metric}
    assert "pass@1" in {each.metric for each in measures if each.task == "t"}


def test_table_without_samples_is_the_only_one() -> None:
    text = format_measures(measure_model("m", [answered("t", 0, "4")]))
    assert text.count("| task ") == 1
    assert "pass@" not in text
