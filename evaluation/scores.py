"""The `scores` step: the base and the tuned model side by side, task by task.

Two readings of each answer are scored. Strict: only a boxed answer or a clear "the answer is ..."
counts. Tolerant: the last number or letter counts as well. A model that merely learns to box its
answers gains in the first and not in the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.terminal import format_table
from evaluation.grader import ReadAs, Verdict
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.statistics import paired_difference, wilson_interval


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table; shares between 0 and 1, intervals of 95 %."""

    split: str
    domain: str
    task: str
    num_questions: int
    commonest_answer: float
    """What always giving the commonest answer would score."""
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


def is_read(prediction: Prediction) -> bool:
    """Whether the response states its answer clearly."""
    return prediction.read_as in (ReadAs.BOXED, ReadAs.PHRASE)


def is_correct(prediction: Prediction, *, tolerant: bool) -> bool:
    """Whether the answer is right; tolerant also takes the last number or letter as the answer."""
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
    """The score of one task over its questions, which both models answered."""
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
    )


def commonest_share(questions: Iterable[Question]) -> float:
    """The share of questions that the commonest answer of their task answers."""
    by_task: dict[str, Counter[str]] = {}
    for question in questions:
        by_task.setdefault(question.dataset, Counter())[question.answer] += 1
    num = sum(sum(answers.values()) for answers in by_task.values())
    return sum(max(answers.values()) for answers in by_task.values()) / num if num else 0.0


def compare_scores(
    questions: Sequence[Question], base: Mapping[str, Prediction], tuned: Mapping[str, Prediction]
) -> list[Score]:
    """One score for each task and one for all tasks of a domain together, by split."""
    scores = []
    for split in ("dev", "test"):
        for domain in ("in_domain", "out_of_domain"):
            group = [q for q in questions if q.split == split and q.domain == domain]
            tasks = list(dict.fromkeys(question.dataset for question in group))
            for task in tasks:
                of_task = [question for question in group if question.dataset == task]
                scores.append(score_task(split, domain, task, of_task, base, tuned))
            if len(tasks) > 1:
                scores.append(score_task(split, domain, "all", group, base, tuned))
    return scores


def score_predictions(
    questions: Questions, base: Folder, tuned: Folder, tuned_on: str | None = None
) -> list[Score]:
    """The scores of two models' predictions, judged by today's grader. Runs as a task.

    For a model tuned on one dataset, all others are out of domain.
    """
    asked = questions.read()
    answers = [
        {
            row["question_id"]: Prediction.from_row(row).graded()
            for row in Ledger.read(folder).of(asked).rows()
        }
        for folder in (base, tuned)
    ]
    rows = asked.to_pylist()
    if tuned_on is not None:
        rows = [
            row if row["dataset"] == tuned_on else row | {"domain": "out_of_domain"} for row in rows
        ]
    return compare_scores([Question.from_row(row) for row in rows], *answers)


def scores_table(scores: Sequence[Score]) -> pa.Table:
    """The scores as an Arrow table, a column for each field of `Score`."""
    return pa.Table.from_pylist([asdict(score) for score in scores])


_COLUMNS: tuple[tuple[str, Callable[[Score], str]], ...] = (
    ("task", lambda s: f"{s.domain}/{s.task}"),
    ("n", lambda s: str(s.num_questions)),
    ("commonest", lambda s: _percent(s.commonest_answer)),
    ("read", lambda s: f"{_percent(s.base_read)} > {_percent(s.tuned_read)}"),
    (
        "strict accuracy, base",
        lambda s: _with_interval(s.base_strict, s.base_strict_low, s.base_strict_high),
    ),
    (
        "tuned",
        lambda s: _with_interval(s.tuned_strict, s.tuned_strict_low, s.tuned_strict_high),
    ),
    (
        "difference",
        lambda s: _difference(
            s.strict_difference, s.strict_difference_low, s.strict_difference_high
        ),
    ),
    (
        "tolerant accuracy",
        lambda s: f"{_percent(s.base_tolerant)} > {_percent(s.tuned_tolerant)}",
    ),
    (
        "difference",
        lambda s: _difference(
            s.tolerant_difference, s.tolerant_difference_low, s.tolerant_difference_high
        ),
    ),
)


def format_scores(scores: Sequence[Score], split: str = "test") -> str:
    """One split's table as Markdown, in percent with 95 % intervals.

    Test by default: dev is there to choose by, and stays in the Parquet file.
    """
    rows = [[title for title, _ in _COLUMNS]]
    rows += [[cell(score) for _, cell in _COLUMNS] for score in scores if score.split == split]
    return format_table(rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{_percent(value)} [{_percent(low)}, {_percent(high)}]"


def _difference(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
