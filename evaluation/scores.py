"""The `scores` step: compare the base and the tuned model, task by task.

Each answer is scored in two ways. Strict: only a boxed answer or a clear "the answer is ..."
counts. Tolerant: the last number or letter counts as well. A model that only learns to box its
answers improves in the first and not in the second.

If a domain has several tasks, `all` combines their questions and `mean` counts each task once, as
the paper does. The mean is conditional on these tasks: it says nothing about others.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol

import pyarrow as pa

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.terminal import format_table
from evaluation.grader import ReadAs, Verdict
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.statistics import (
    Interval,
    macro_mean,
    mean_of_intervals,
    paired_difference,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table; shares are between 0 and 1, and intervals have 95 %."""

    split: str
    domain: str
    task: str
    num_questions: int
    commonest_answer: float
    """The score of always giving the most common answer."""
    commonest_by_kind: float
    """The same with the most common answer of each kind of question; without kinds, the same
    number."""
    base_read: float
    """Share of answers that could be read strictly."""
    tuned_read: float
    base_strict: float
    base_strict_low: float
    base_strict_high: float
    tuned_strict: float
    tuned_strict_low: float
    tuned_strict_high: float
    strict_difference: float
    strict_difference_low: float
    strict_difference_high: float
    base_tolerant: float
    tuned_tolerant: float
    tolerant_difference: float
    tolerant_difference_low: float
    tolerant_difference_high: float
    base_truncated: float
    """Share of answers that the token limit cut off."""
    tuned_truncated: float
    base_tokens: float | None
    """Mean tokens of an answer; None if no engine reported them."""
    tuned_tokens: float | None
    left_out: tuple[str, ...] = ()
    """For a mean over three tasks or more: each task, and the mean differences without it."""
    strict_difference_without: tuple[float, ...] = ()
    tolerant_difference_without: tuple[float, ...] = ()


class Graded(Protocol):
    """What has a grade: a prediction, or one of several samples."""

    @property
    def verdict(self) -> str | None:
        """See `evaluation.grader.Verdict`."""

    @property
    def read_as(self) -> str | None:
        """See `evaluation.grader.ReadAs`."""


def is_read(prediction: Graded) -> bool:
    """Whether the response clearly states its answer."""
    return prediction.read_as in (ReadAs.BOXED, ReadAs.PHRASE)


def is_correct(prediction: Graded, *, tolerant: bool) -> bool:
    """Whether the answer is right; tolerant also accepts the last number or letter."""
    is_right = prediction.verdict == Verdict.CORRECT
    return is_right and (tolerant or is_read(prediction))


def score_task(
    split: str,
    domain: str,
    task: str,
    questions: Sequence[Question],
    base: Mapping[str, Prediction],
    tuned: Mapping[str, Prediction],
) -> Score:
    """The score of one task over its questions, all of which both models answered."""
    before = [base[question.question_id] for question in questions]
    after = [tuned[question.question_id] for question in questions]
    num = len(questions)
    base_strict = [is_correct(each, tolerant=False) for each in before]
    tuned_strict = [is_correct(each, tolerant=False) for each in after]
    base_tolerant = [is_correct(each, tolerant=True) for each in before]
    tuned_tolerant = [is_correct(each, tolerant=True) for each in after]
    strict, strict_low, strict_high = paired_difference(base_strict, tuned_strict)
    tolerant, tolerant_low, tolerant_high = paired_difference(base_tolerant, tuned_tolerant)
    base_low, base_high = wilson_interval(sum(base_strict), num)
    tuned_low, tuned_high = wilson_interval(sum(tuned_strict), num)
    return Score(
        split=split,
        domain=domain,
        task=task,
        num_questions=num,
        commonest_answer=commonest_share(questions),
        commonest_by_kind=commonest_share(questions, by_kind=True),
        base_read=sum(map(is_read, before)) / num,
        tuned_read=sum(map(is_read, after)) / num,
        base_strict=sum(base_strict) / num,
        base_strict_low=base_low,
        base_strict_high=base_high,
        tuned_strict=sum(tuned_strict) / num,
        tuned_strict_low=tuned_low,
        tuned_strict_high=tuned_high,
        strict_difference=strict,
        strict_difference_low=strict_low,
        strict_difference_high=strict_high,
        base_tolerant=sum(base_tolerant) / num,
        tuned_tolerant=sum(tuned_tolerant) / num,
        tolerant_difference=tolerant,
        tolerant_difference_low=tolerant_low,
        tolerant_difference_high=tolerant_high,
        base_truncated=sum(map(is_truncated, before)) / num,
        tuned_truncated=sum(map(is_truncated, after)) / num,
        base_tokens=mean_tokens(before),
        tuned_tokens=mean_tokens(after),
    )


def is_truncated(prediction: Prediction) -> bool:
    """Whether the token limit cut the answer off."""
    return prediction.finish_reason not in (None, "stop")


def mean_tokens(predictions: Iterable[Prediction]) -> float | None:
    """Mean tokens of the answers whose number of tokens is known; None if there are none."""
    known = [each.num_tokens for each in predictions if each.num_tokens is not None]
    return sum(known) / len(known) if known else None


def commonest_share(questions: Iterable[Question], *, by_kind: bool = False) -> float:
    """The share of questions whose answer is the most common one of their task, or of their kind
    within it."""
    answers_of: dict[tuple[str, str], Counter[str]] = {}
    for question in questions:
        group = (question.dataset, question.kind if by_kind else "")
        answers_of.setdefault(group, Counter())[question.answer] += 1
    num = sum(sum(answers.values()) for answers in answers_of.values())
    return sum(max(answers.values()) for answers in answers_of.values()) / num if num else 0.0


_INTERVALS = ("base_strict", "tuned_strict", "strict_difference", "tolerant_difference")


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean over tasks, each counted once, with leave-one-task-out for three tasks or more.

    The tasks have different questions, so their intervals are independent.
    """
    first, num = scores[0], len(scores)
    changes: dict[str, Any] = {
        field.name: _mean([getattr(score, field.name) for score in scores])
        for field in fields(Score)
        if isinstance(getattr(first, field.name), float | None)
    }
    for name in _INTERVALS:
        mean = mean_of_intervals([_interval(score, name) for score in scores])
        changes |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
    if num > 2:
        changes["left_out"] = tuple(score.task for score in scores)
        for name in ("strict_difference", "tolerant_difference"):
            means = macro_mean({score.task: getattr(score, name) for score in scores})
            changes[f"{name}_without"] = tuple(means.without[score.task] for score in scores)
    num_questions = sum(score.num_questions for score in scores)
    return replace(first, task="mean", num_questions=num_questions, **changes)


def _interval(score: Score, name: str) -> Interval:
    return Interval(*(getattr(score, f"{name}{end}") for end in ("", "_low", "_high")))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def compare_scores(
    questions: Sequence[Question], base: Mapping[str, Prediction], tuned: Mapping[str, Prediction]
) -> list[Score]:
    """One score for each task, one for all questions of a domain, and one for the mean over its
    tasks, by split."""
    scores: list[Score] = []
    for (split, domain), tasks in by_group(questions).items():
        by_task = [
            score_task(split, domain, task, asked, base, tuned) for task, asked in tasks.items()
        ]
        scores += by_task
        if len(tasks) > 1:
            group = [question for asked in tasks.values() for question in asked]
            scores.append(score_task(split, domain, "all", group, base, tuned))
            scores.append(mean_score(by_task))
    return scores


def by_group(questions: Iterable[Question]) -> dict[tuple[str, str], dict[str, list[Question]]]:
    """The questions of each task, by split and domain: dev before test, in domain first."""
    groups: dict[tuple[str, str], dict[str, list[Question]]] = {}
    for question in questions:
        tasks = groups.setdefault((question.split, question.domain), {})
        tasks.setdefault(question.dataset, []).append(question)
    return {place: groups[place] for place in sorted(groups) if place[0] != "train"}


def graded_pairs(
    questions: Questions,
    base: Folder,
    tuned: Folder,
    tuned_on: str | None = None,
    hidden: Collection[str] = (),
) -> tuple[list[Question], list[dict[str, Prediction]]]:
    """The questions, and both models' stored predictions with the verdicts of today's grader.

    For a model that was tuned on one dataset, all others are out of domain. `hidden` are datasets
    that are not scored.
    """
    asked = questions.read()
    answers = [
        {
            row["question_id"]: Prediction.from_row(row).graded()
            for row in Ledger.read(folder).of(asked).rows()
        }
        for folder in (base, tuned)
    ]
    rows = [row for row in asked.to_pylist() if row["dataset"] not in hidden]
    if tuned_on is not None:
        rows = [
            row if row["dataset"] == tuned_on else row | {"domain": "out_of_domain"} for row in rows
        ]
    return [Question.from_row(row) for row in rows], answers


def score_predictions(
    questions: Questions,
    base: Folder,
    tuned: Folder,
    tuned_on: str | None = None,
    hidden: Collection[str] = (),
) -> list[Score]:
    """Score two models' predictions with the current grader; see `graded_pairs`. Runs as a task."""
    asked, answers = graded_pairs(questions, base, tuned, tuned_on, hidden)
    return compare_scores(asked, *answers)


def scores_table(scores: Sequence[Score]) -> pa.Table:
    """The scores as an Arrow table, with a column for each field of `Score`."""
    return pa.Table.from_pylist([asdict(score) for score in scores])


Columns = tuple[tuple[str, Callable[[Score], str]], ...]

_ACCURACY: Columns = (
    ("task", lambda s: f"{s.domain}/{s.task}"),
    ("n", lambda s: str(s.num_questions)),
    ("commonest", lambda s: _commonest(s)),
    (
        "strict, base",
        lambda s: format_share(s.base_strict, s.base_strict_low, s.base_strict_high),
    ),
    (
        "tuned",
        lambda s: format_share(s.tuned_strict, s.tuned_strict_low, s.tuned_strict_high),
    ),
    (
        "difference",
        lambda s: format_difference(
            s.strict_difference, s.strict_difference_low, s.strict_difference_high
        ),
    ),
)
_ANSWERS: Columns = (
    ("task", lambda s: f"{s.domain}/{s.task}"),
    ("tolerant", lambda s: _change(s.base_tolerant, s.tuned_tolerant)),
    (
        "difference",
        lambda s: format_difference(
            s.tolerant_difference, s.tolerant_difference_low, s.tolerant_difference_high
        ),
    ),
    ("read", lambda s: _change(s.base_read, s.tuned_read)),
    ("cut off", lambda s: _change(s.base_truncated, s.tuned_truncated)),
    ("tokens", lambda s: f"{_tokens(s.base_tokens)} > {_tokens(s.tuned_tokens)}"),
)
WIDTH = 120
"""Width of a line in characters, so that a table is readable in a terminal."""
_NO_BREAK = "\N{NO-BREAK SPACE}"


def format_scores(scores: Sequence[Score], split: str = "test") -> str:
    """One split's tables as Markdown, in percent with 95 % intervals, and their notes.

    By default it is test: dev is for choosing settings, and stays in the Parquet file.
    """
    shown = [score for score in scores if score.split == split]
    tables = [
        format_table(
            [[title for title, _ in columns], *([cell(s) for _, cell in columns] for s in shown)]
        )
        for columns in (_ACCURACY, _ANSWERS)
    ]
    lines = [textwrap.fill(note, WIDTH).replace(_NO_BREAK, " ") for note in _notes(shown)]
    return "\n\n".join([*tables, *lines])


def _notes(scores: Sequence[Score]) -> Iterator[str]:
    if any(_has_kinds(score) for score in scores):
        yield "\\* score of the most common answer of each kind of question"
    for score in scores:
        if score.task == "mean":
            yield _note_of_mean(score)


def _note_of_mean(score: Score) -> str:
    says = f"{score.domain}/mean counts each task once"
    without = zip(
        score.left_out,
        score.strict_difference_without,
        score.tolerant_difference_without,
        strict=True,
    )
    each = [
        f"{task} {100 * strict:+.1f} ({100 * tolerant:+.1f})".replace(" ", _NO_BREAK)
        for task, strict, tolerant in without
    ]
    if not each:
        return f"{says}."
    return f"{says}; its strict (tolerant) difference without one task: {', '.join(each)}."


def _has_kinds(score: Score) -> bool:
    return score.commonest_by_kind != score.commonest_answer


def _commonest(score: Score) -> str:
    by_kind = f" {percent(score.commonest_by_kind)}*" if _has_kinds(score) else ""
    return f"{percent(score.commonest_answer)}{by_kind}"


def _change(base: float, tuned: float) -> str:
    return f"{percent(base)} > {percent(tuned)}"


def _tokens(mean: float | None) -> str:
    return "?" if mean is None else f"{mean:.0f}"


def percent(share: float) -> str:
    """A share between 0 and 1 in percent, with one decimal."""
    return f"{100 * share:.1f}"


def format_share(value: float, low: float, high: float) -> str:
    """A share and its interval in percent."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def format_difference(value: float, low: float, high: float) -> str:
    """A difference and its interval in points, with their signs."""
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
