"""Models on the same questions: paired by question, by task and group, each against the first.

Two answers are a pair when their questions have one id or, where the ids are those of different
tools, one text. Texts that a file has twice pair nothing. A response whose question another file
has with its truth is judged by our grader, so that one rule judges all.

The declared comparisons are those of every further model with the first. Their p values are exact
(McNemar), and adjusted together (Holm): those of single tasks over all tasks and comparisons,
those of all questions of a group over the comparisons and groups.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.errors import InputError
from cluster.terminal import format_table
from evaluation.answers import Answer, AnswerSet
from evaluation.scores import format_difference, format_share
from evaluation.statistics import (
    Interval,
    exact_mcnemar,
    holm,
    mean_of_intervals,
    paired_difference,
    wilson_interval,
)

ALL, MEAN = "all", "mean"
"""All questions of a group's tasks together, and each of its tasks counted once."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """The questions that two models both answered; the first model's task and group count."""

    first: str
    other: str
    pairs: Sequence[tuple[Answer, Answer]]
    num_by_text: int
    """How many pairs were found by the text alone."""
    num_only_first: int
    num_only_other: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the table; shares between 0 and 1, intervals of 95 %."""

    first: str
    other: str
    group: str
    task: str
    num_pairs: int
    first_share: Interval
    other_share: Interval
    difference: Interval
    gained: int
    """Questions that only the other model answered right."""
    lost: int
    p_value: float | None
    """None for a mean over tasks."""
    adjusted: float | None = None
    """After Holm."""


# --- pairing -----------------------------------------------------------------------------------


def judged_alike(sets: Sequence[AnswerSet]) -> list[AnswerSet]:
    """The same sets, where every response is judged by our grader whose truth any set knows.

    Raises `InputError` for an answer that nobody can judge.
    """
    answers = [answer for each in sets for answer in each.answers]
    known = [answer for answer in answers if answer.question is not None]
    by_id = {answer.question_id: answer for answer in known}
    by_text = _unambiguous(known)

    def judged(answer: Answer) -> Answer:
        if answer.graded_here or answer.response is None:
            return answer
        other = _of_id(answer, by_id) or by_text.get(answer.text_key)
        if other is None or other.question is None:
            return answer
        return answer.graded_by(other.question)

    alike = [replace(each, answers=[judged(answer) for answer in each.answers]) for each in sets]
    for answer in (answer for each in alike for answer in each.answers):
        if answer.strict is None or answer.tolerant is None:
            raise InputError(
                f"{answer.place}: nothing says whether the answer is right; give answer and "
                "answer_type with the response, or correct, or compare with predictions that have "
                "the question"
            )
    return alike


def _of_id(answer: Answer, by_id: Mapping[str, Answer]) -> Answer | None:
    """The answer to the same question by id; with another text the id is one of another tool."""
    other = by_id.get(answer.question_id) if answer.question_id else None
    if other is None or (answer.text and other.text and answer.text_key != other.text_key):
        return None
    return other


def _unambiguous(answers: Iterable[Answer]) -> dict[str, Answer]:
    """By text, those whose question has a text that no other question has."""
    by_text: dict[str, Answer] = {}
    ids: dict[str, set[str]] = {}
    for answer in answers:
        if answer.text:
            by_text[answer.text_key] = answer
            ids.setdefault(answer.text_key, set()).add(answer.question_id or answer.place)
    return {text: answer for text, answer in by_text.items() if len(ids[text]) == 1}


def pair_answers(first: AnswerSet, other: AnswerSet) -> Pairs:
    """The pairs of two sets. Raises `InputError` when there is none, and for an id given twice."""
    for each in (first, other):
        _refuse_repeats(each)
    by_id = {answer.question_id: answer for answer in other.answers}
    of_id = [(answer, _of_id(answer, by_id)) for answer in first.answers]
    pairs = [(answer, found) for answer, found in of_id if found is not None]
    taken = {found.place for _, found in pairs}
    own = _unambiguous(answer for answer, found in of_id if found is None)
    left = _unambiguous(answer for answer in other.answers if answer.place not in taken)
    by_text = [(answer, left[text]) for text, answer in own.items() if text in left]
    if not (pairs or by_text):
        raise InputError(
            f"{first.name} and {other.name} have no question in common, neither by id nor by text; "
            "give predictions on the same questions"
        )
    num = len(pairs) + len(by_text)
    only_first, only_other = len(first.answers) - num, len(other.answers) - num
    return Pairs(first.name, other.name, [*pairs, *by_text], len(by_text), only_first, only_other)


def _refuse_repeats(answers: AnswerSet) -> None:
    counts = Counter(answer.question_id for answer in answers.answers if answer.question_id)
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise InputError(
            f"{answers.name}: the question {repeated!r} is answered twice; keep one answer, or "
            "give each file by itself"
        )


# --- comparing ---------------------------------------------------------------------------------


def compare(pairings: Sequence[Pairs], reading: str) -> list[Comparison]:
    """A line for each task, and for each group of several tasks two more: all its questions, and
    the mean over its tasks; for each declared comparison."""
    lines = [line for pairs in pairings for line in _compared(pairs, reading)]
    return [*_adjusted(lines)]


def _compared(pairs: Pairs, reading: str) -> Iterator[Comparison]:
    groups: dict[str, dict[str, list[tuple[Answer, Answer]]]] = {}
    for first, other in pairs.pairs:
        groups.setdefault(first.group, {}).setdefault(first.task, []).append((first, other))
    for group, tasks in sorted(groups.items()):
        lines = [
            _line(pairs, group, task, answers, reading) for task, answers in sorted(tasks.items())
        ]
        yield from lines
        if len(lines) > 1:
            together = list(itertools.chain.from_iterable(tasks.values()))
            yield _line(pairs, group, ALL, together, reading)
            yield _mean(lines)


def _line(
    pairs: Pairs,
    group: str,
    task: str,
    answers: Sequence[tuple[Answer, Answer]],
    reading: str,
) -> Comparison:
    first, other = (
        [bool(each.right(reading)) for each in side] for side in zip(*answers, strict=True)
    )
    return Comparison(
        pairs.first,
        pairs.other,
        group,
        task,
        len(answers),
        _share(first),
        _share(other),
        paired_difference(first, other),
        gained=sum(after and not before for before, after in zip(first, other, strict=True)),
        lost=sum(before and not after for before, after in zip(first, other, strict=True)),
        p_value=exact_mcnemar(first, other),
    )


def _share(right: Sequence[bool]) -> Interval:
    return Interval(sum(right) / len(right), *wilson_interval(sum(right), len(right)))


def _mean(lines: Sequence[Comparison]) -> Comparison:
    return replace(
        lines[0],
        task=MEAN,
        num_pairs=sum(line.num_pairs for line in lines),
        first_share=mean_of_intervals([line.first_share for line in lines]),
        other_share=mean_of_intervals([line.other_share for line in lines]),
        difference=mean_of_intervals([line.difference for line in lines]),
        gained=sum(line.gained for line in lines),
        lost=sum(line.lost for line in lines),
        p_value=None,
    )


def _adjusted(lines: Sequence[Comparison]) -> Iterator[Comparison]:
    """The lines with the p values of Holm; single tasks are one family, whole groups another."""
    families: dict[bool, dict[str, float]] = {False: {}, True: {}}
    for number, line in enumerate(lines):
        if line.p_value is not None:
            families[line.task == ALL][str(number)] = line.p_value
    adjusted = {**holm(families[False]), **holm(families[True])}
    for number, line in enumerate(lines):
        yield replace(line, adjusted=adjusted.get(str(number)))


# --- what people see ---------------------------------------------------------------------------


def format_comparison(lines: Sequence[Comparison]) -> str:
    """The table as Markdown, in percent with 95 % intervals; differences are in points."""
    with_group = len({line.group for line in lines}) > 1
    head = ["task", "first", "other", "pairs", "first right", "other right", "difference"]
    rows = [
        [
            f"{line.group}/{line.task}" if with_group else line.task,
            line.first,
            line.other,
            str(line.num_pairs),
            format_share(*line.first_share),
            format_share(*line.other_share),
            format_difference(*line.difference),
            f"+{line.gained} -{line.lost}",
            format_p_value(line.p_value),
            format_p_value(line.adjusted),
        ]
        for line in lines
    ]
    return format_table([[*head, "changed", "p", "p (Holm)"], *rows])


def format_p_value(value: float | None) -> str:
    """A p value with four decimals; empty where there is none."""
    if value is None:
        return ""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def warnings_of(pairings: Sequence[Pairs]) -> Iterator[str]:
    """A sentence for each pairing that left answers out or went by the texts."""
    for each in pairings:
        if each.num_only_first or each.num_only_other:
            yield (
                f"warning: of {each.first} {each.num_only_first} answers and of {each.other} "
                f"{each.num_only_other} answers have no counterpart; {len(each.pairs)} pairs are "
                "compared"
            )
        if each.num_by_text:
            yield (
                f"note: {each.num_by_text} of the {len(each.pairs)} pairs of {each.first} and "
                f"{each.other} were found by the text of the question, since their ids differ"
            )


def notes_on_judges(sets: Sequence[AnswerSet]) -> Iterator[str]:
    """A sentence for each set whose own verdicts were taken for some of its answers."""
    for each in sets:
        own = sum(not answer.graded_here for answer in each.answers)
        if own:
            yield (
                f"note: {own} of {len(each.answers)} answers of {each.name} are judged by the file "
                "itself, since it has no response or no file has the truth"
            )


def with_reading(answers: AnswerSet, reading: str) -> AnswerSet:
    """The answers that have a reading. Raises `InputError` where none has it."""
    kept = [answer for answer in answers.answers if answer.right(reading) is not None]
    if not kept:
        raise InputError(
            f"{answers.name} has no answer with the reading {reading}; ask the model again with "
            "--readings (likelihoods also need questions with options), or compare under strict or "
            "tolerant"
        )
    return replace(answers, answers=kept)


def of_split(answers: AnswerSet, split: str) -> AnswerSet:
    """The answers to the questions of a split, and those whose split is not known."""
    kept = [answer for answer in answers.answers if answer.split in ("", split)]
    if not kept:
        raise InputError(f"{answers.name} has no answer to a question of {split}; give --split")
    return replace(answers, answers=kept)
