from __future__ import annotations

import pytest

from cluster.errors import InputError
from evaluation.answers import Answer, AnswerSet
from evaluation.comparison import (
    Comparison,
    compare,
    format_comparison,
    judged_alike,
    notes_on_judges,
    of_split,
    pair_answers,
    warnings_of,
)
from evaluation.question import Question
from evaluation.statistics import exact_mcnemar, holm, paired_difference, wilson_interval


def answers(name: str, verdicts: str, *, task: str = "t", group: str = "") -> AnswerSet:
    """`1101`: which of the questions 0, 1, ... are right; `-` is a question that is not asked."""
    found = [
        Answer(f"{name}:{n}", f"{task}/{n}", "", task, group, strict=v == "1", tolerant=v == "1")
        for n, v in enumerate(verdicts)
        if v != "-"
    ]
    return AnswerSet(name, found)


def together(*sets: AnswerSet) -> AnswerSet:
    return AnswerSet(sets[0].name, [answer for each in sets for answer in each.answers])


def compared(first: AnswerSet, *others: AnswerSet) -> list[Comparison]:
    return compare([pair_answers(first, other) for other in others], "strict")


def test_line_has_the_statistics_of_the_pairs() -> None:
    before, after = "1100000000", "1011111100"
    [line] = compared(answers("a", before), answers("b", after))
    one, other = [v == "1" for v in before], [v == "1" for v in after]
    assert line.first_share == (0.2, *wilson_interval(2, 10))
    assert line.difference == paired_difference(one, other)
    assert (line.gained, line.lost) == (6, 1)
    assert line.p_value == line.adjusted == exact_mcnemar(one, other)


def test_holm_takes_the_tasks_of_all_comparisons_together_and_whole_groups_apart() -> None:
    def model(name: str, first: str, second: str) -> AnswerSet:
        return together(answers(name, first, task="t"), answers(name, second, task="u"))

    base = model("base", "0" * 12, "0" * 12)
    lines = compared(
        base, model("b", "1" * 12, "1" * 8 + "0" * 4), model("c", "1" * 6 + "0" * 6, "0" * 12)
    )
    assert [line.task for line in lines] == ["t", "u", "all", "mean"] * 2
    single = [line for line in lines if line.task in ("t", "u")]
    expected = holm({str(n): line.p_value or 0.0 for n, line in enumerate(single)})
    assert [line.adjusted for line in single] == list(expected.values())
    whole = [line for line in lines if line.task == "all"]
    assert whole[0].adjusted == 2 * (whole[0].p_value or 0.0)
    means = [line for line in lines if line.task == "mean"]
    assert [line.p_value for line in means] == [None, None]
    assert means[0].difference.value == pytest.approx((1 + 8 / 12) / 2)


def test_mean_counts_each_task_once_where_all_counts_each_question() -> None:
    first = together(answers("a", "0" * 9, task="t"), answers("a", "1", task="u"))
    other = together(answers("b", "1" * 9, task="t"), answers("b", "0", task="u"))
    lines = {line.task: line for line in compared(first, other)}
    assert lines["all"].difference.value == pytest.approx(0.8)
    assert lines["mean"].difference.value == pytest.approx(0.0)


def test_questions_without_a_counterpart_are_left_out_and_said() -> None:
    pairs = pair_answers(answers("a", "110-"), answers("b", "-011"))
    assert len(pairs.pairs) == 2
    [warning] = warnings_of([pairs])
    assert "of a 1 answers and of b 1 answers have no counterpart; 2 pairs" in warning
    assert not list(warnings_of([pair_answers(answers("a", "1"), answers("b", "0"))]))


def test_other_ids_are_paired_by_the_text_unless_it_is_ambiguous() -> None:
    texts = ["What is 1 + 1?", "What is  2 + 2?", "Same?", "Same?"]
    own = [
        Answer(f"a:{n}", f"t/{n}", text, "t", strict=True, tolerant=True)
        for n, text in enumerate(texts)
    ]
    foreign = [
        Answer(f"b:{n}", f"x/{n}", text.upper(), "x", strict=False, tolerant=True)
        for n, text in enumerate(["What is 2 + 2?", "What is 1 + 1?", "Same?", "Same?"])
    ]
    pairs = pair_answers(AnswerSet("a", own), AnswerSet("b", foreign))
    assert [(a.question_id, b.question_id) for a, b in pairs.pairs] == [
        ("t/0", "x/1"),
        ("t/1", "x/0"),
    ]
    said = list(warnings_of([pairs]))
    assert "2 answers and of b 2 answers have no counterpart" in said[0]
    assert "2 of the 2 pairs" in said[1]


def test_one_id_with_two_texts_is_no_pair() -> None:
    own = AnswerSet("a", [Answer("a", "7", "One?", strict=True, tolerant=True)])
    other = AnswerSet("b", [Answer("b", "7", "Another?", strict=True, tolerant=True)])
    with pytest.raises(InputError, match="a and b have no question in common"):
        pair_answers(own, other)


def test_responses_of_another_tool_are_judged_by_our_grader_where_the_truth_is_known() -> None:
    question = Question("t/0", "t", "test", "in_domain", "2 + 2?", "4", "number")
    own = Answer("a", "t/0", "2 + 2?", "t").graded_by(question)
    foreign = Answer("b", "9", "2 + 2?", "x", response="It is 4.", strict=False, tolerant=False)
    _, judged = judged_alike([AnswerSet("a", [own]), AnswerSet("b", [foreign])])
    [answer] = judged.answers
    assert (answer.strict, answer.tolerant, answer.graded_here) == (False, True, True)
    unknown = Answer("b", "9", "3 + 3?", response="6")
    with pytest.raises(InputError, match="b: nothing says whether the answer is right"):
        judged_alike([AnswerSet("b", [unknown])])
    [note] = notes_on_judges([AnswerSet("b", [foreign])])
    assert "1 of 1 answers of b are judged by the file itself" in note


def test_question_that_is_answered_twice_is_refused() -> None:
    twice = together(answers("a", "1"), answers("a", "0"))
    with pytest.raises(InputError, match="a: the question 't/0' is answered twice"):
        pair_answers(twice, answers("b", "1"))


def test_split_is_taken_where_it_is_known() -> None:
    known = Answer("a", "1", "", split="dev", strict=True, tolerant=True)
    unknown = Answer("a", "2", "", strict=True, tolerant=True)
    assert of_split(AnswerSet("a", [known, unknown]), "test").answers == [unknown]
    with pytest.raises(InputError, match="a has no answer to a question of test"):
        of_split(AnswerSet("a", [known]), "test")


def test_table_names_groups_where_there_are_several() -> None:
    first = together(answers("a", "10", group="near"), answers("a", "01", task="u", group="far"))
    other = together(answers("b", "11", group="near"), answers("b", "01", task="u", group="far"))
    text = format_comparison(compared(first, other))
    assert "| near/t " in text
    assert "| far/u " in text
    assert "| +1 -0 " in text


def test_table_shows_no_p_value_of_a_mean_over_tasks() -> None:
    first = together(answers("a", "10"), answers("a", "01", task="u"))
    other = together(answers("b", "11"), answers("b", "01", task="u"))
    lines = format_comparison(compared(first, other)).splitlines()
    [of_all], [mean] = ([row for row in lines if f"| {name} " in row] for name in ("all", "mean"))
    assert "1.0000" in of_all
    assert not any(cell.strip() for cell in mean.split("|")[-3:-1])
