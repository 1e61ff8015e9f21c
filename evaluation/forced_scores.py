"""What forced readings say of two models: how much of a gain is knowledge, and how much format.

For each task and each reading (`evaluation.readings`): both models' shares right with their paired
difference, and strict minus forced, the part of the strict difference that is missing when every
answer is made to state its result. Beside it stands how many answers could be read strictly, and
how many of them are right when forced. If a domain has several tasks, `all` takes its questions
together and `mean` counts each task once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa

from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.terminal import format_table
from evaluation.grader import Verdict, same_answer
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.readings import CUES
from evaluation.scores import (
    by_group,
    format_difference,
    format_share,
    graded_pairs,
    is_correct,
    is_read,
    percent,
)
from evaluation.statistics import (
    Interval,
    clustered_bootstrap,
    mean_of_intervals,
    paired_difference,
    wilson_interval,
)

LIKELIHOODS = {"likelihood": "forced", "likelihood_no_reasoning": "no_reasoning"}
"""Readings by the likeliest option, and the reading whose likelihoods they take."""
FURTHER = (*CUES, *LIKELIHOODS)
"""The readings besides strict and tolerant."""
READINGS = ("strict", "tolerant", *FURTHER)
CELLS = ("read_right", "read_wrong", "unread_right", "unread_wrong")
"""Of the table readable x right."""
_DRAWS = 2_000


def right_under(prediction: Prediction, reading: str) -> bool | None:
    """Whether a graded prediction is right under a reading; None where it was not read like that.

    A likelihood needs a question with options.
    """
    if reading in ("strict", "tolerant"):
        return is_correct(prediction, tolerant=reading == "tolerant")
    found = prediction.readings.get(LIKELIHOODS.get(reading, reading))
    if found is None or (reading in LIKELIHOODS and not prediction.question.choices):
        return None
    if reading not in LIKELIHOODS:
        return found.verdict == Verdict.CORRECT
    question = prediction.question
    truths = (question.answer, *question.aliases)
    likeliest = found.likeliest
    return likeliest is not None and any(same_answer(likeliest, t, question) for t in truths)


@dataclass(frozen=True, slots=True)
class ForcedScore:
    """One line: a reading of one task; shares between 0 and 1, intervals of 95 %."""

    split: str
    domain: str
    task: str
    reading: str
    num_questions: int
    base: float
    base_low: float
    base_high: float
    tuned: float
    tuned_low: float
    tuned_high: float
    difference: float
    difference_low: float
    difference_high: float
    gained: int
    """Questions that only the tuned model has right."""
    lost: int
    format_part: float
    """The strict difference minus this one."""
    format_part_low: float | None
    """None with fewer than two questions."""
    format_part_high: float | None
    base_read_right: float
    """Share of questions whose answer is readable, strictly, and right under this reading."""
    base_read_wrong: float
    base_unread_right: float
    base_unread_wrong: float
    tuned_read_right: float
    tuned_read_wrong: float
    tuned_unread_right: float
    tuned_unread_wrong: float


def compare_readings(
    questions: Sequence[Question], base: Mapping[str, Prediction], tuned: Mapping[str, Prediction]
) -> list[ForcedScore]:
    """The lines of two models' graded predictions; none where either has no readings.

    Under a reading that only some questions of a task have, the others are left out.
    """
    scores: list[ForcedScore] = []
    for (split, domain), tasks in by_group(questions).items():
        for reading in FURTHER:
            groups = {
                task: [
                    (base[q.question_id], tuned[q.question_id])
                    for q in asked
                    if _is_read_by_both(base[q.question_id], tuned[q.question_id], reading)
                ]
                for task, asked in tasks.items()
            }
            place = (split, domain, reading)
            lines = [_line(place, task, pairs) for task, pairs in groups.items() if pairs]
            scores += lines
            if len(lines) > 1:
                together = [pair for pairs in groups.values() for pair in pairs]
                scores += [_line(place, "all", together), _mean(lines)]
    return scores


def _is_read_by_both(one: Prediction, other: Prediction, reading: str) -> bool:
    return None not in (right_under(one, reading), right_under(other, reading))


def _line(
    place: tuple[str, str, str], task: str, pairs: Sequence[tuple[Prediction, Prediction]]
) -> ForcedScore:
    split, domain, reading = place
    num = len(pairs)
    before, after = [base for base, _ in pairs], [tuned for _, tuned in pairs]
    was, now = ([bool(right_under(each, reading)) for each in side] for side in (before, after))
    strictly = [
        is_correct(tuned, tolerant=False) - is_correct(base, tolerant=False)
        for base, tuned in pairs
    ]
    of_format = [s - (n - w) for s, w, n in zip(strictly, was, now, strict=True)]
    low, high = _interval(of_format)
    difference = paired_difference(was, now)
    base_low, base_high = wilson_interval(sum(was), num)
    tuned_low, tuned_high = wilson_interval(sum(now), num)
    return ForcedScore(
        split=split,
        domain=domain,
        task=task,
        reading=reading,
        num_questions=num,
        base=sum(was) / num,
        base_low=base_low,
        base_high=base_high,
        tuned=sum(now) / num,
        tuned_low=tuned_low,
        tuned_high=tuned_high,
        difference=difference.value,
        difference_low=difference.low,
        difference_high=difference.high,
        gained=sum(n and not w for w, n in zip(was, now, strict=True)),
        lost=sum(w and not n for w, n in zip(was, now, strict=True)),
        format_part=sum(of_format) / num,
        format_part_low=low,
        format_part_high=high,
        **{f"base_{cell}": share for cell, share in readable_cells(before, was).items()},
        **{f"tuned_{cell}": share for cell, share in readable_cells(after, now).items()},
    )


def _interval(values: Sequence[int]) -> tuple[float | None, float | None]:
    """Of the mean over questions."""
    if len(values) < 2:
        return None, None
    found = clustered_bootstrap(values, range(len(values)), draws=_DRAWS)
    return found.low, found.high


def readable_cells(answers: Sequence[Prediction], right: Sequence[bool]) -> dict[str, float]:
    """The shares of `CELLS`: whether an answer can be read strictly, and whether it is right."""
    counts = Counter((is_read(each), ok) for each, ok in zip(answers, right, strict=True))
    found = [(True, True), (True, False), (False, True), (False, False)]
    return {cell: counts[both] / len(answers) for cell, both in zip(CELLS, found, strict=True)}


_WITH_ENDS = ("base", "tuned", "difference", "format_part")


def _mean(lines: Sequence[ForcedScore]) -> ForcedScore:
    """Each task counted once; the tasks have different questions, so they are independent."""
    first, num = lines[0], len(lines)
    changes: dict[str, Any] = {
        each.name: sum(getattr(line, each.name) for line in lines) / num
        for each in fields(ForcedScore)
        if isinstance(getattr(first, each.name), float) and not each.name.endswith(("low", "high"))
    }
    for name in _WITH_ENDS:
        ends = [
            tuple(getattr(line, f"{name}{end}") for end in ("", "_low", "_high")) for line in lines
        ]
        if all(None not in each for each in ends):
            mean = mean_of_intervals([Interval(*each) for each in ends])
            changes |= {f"{name}_low": mean.low, f"{name}_high": mean.high}
        else:
            changes |= {f"{name}_low": None, f"{name}_high": None}
    counts = {
        name: sum(getattr(line, name) for line in lines)
        for name in ("num_questions", "gained", "lost")
    }
    return replace(first, task="mean", **changes, **counts)


def score_readings(
    questions: Questions,
    base: Folder,
    tuned: Folder,
    tuned_on: str | None = None,
    hidden: Collection[str] = (),
) -> list[ForcedScore]:
    """The lines of two models' stored predictions; see `graded_pairs`. Runs as a task."""
    asked, answers = graded_pairs(questions, base, tuned, tuned_on, hidden)
    return compare_readings(asked, *answers)


def forced_table(scores: Sequence[ForcedScore]) -> pa.Table:
    """The scores as an Arrow table, a column for each field of `ForcedScore`."""
    return pa.Table.from_pylist([asdict(score) for score in scores])


# --- what people see ---------------------------------------------------------------------------


def format_forced(scores: Sequence[ForcedScore], split: str = "test") -> str:
    """One split's two tables as Markdown, in percent; empty without scores."""
    shown = [score for score in scores if score.split == split]
    return "\n\n".join(_tables(shown)) if shown else ""


def _tables(shown: Sequence[ForcedScore]) -> Iterator[str]:
    head = ["task", "reading", "n", "base", "tuned", "difference", "changed", "strict - reading"]
    yield format_table([head, *map(_shares, shown)])
    head = ["task", "reading", "read & right", "read & wrong", "unread & right", "unread & wrong"]
    of_answers = [each for each in shown if each.reading in ("forced", "boxed")]
    yield format_table([head, *map(_readable, of_answers)])


def _shares(score: ForcedScore) -> list[str]:
    low, high = score.format_part_low, score.format_part_high
    part = f"{100 * score.format_part:+.1f}"
    if low is not None and high is not None:
        part = format_difference(score.format_part, low, high)
    return [
        f"{score.domain}/{score.task}",
        score.reading,
        str(score.num_questions),
        format_share(score.base, score.base_low, score.base_high),
        format_share(score.tuned, score.tuned_low, score.tuned_high),
        format_difference(score.difference, score.difference_low, score.difference_high),
        f"+{score.gained} -{score.lost}",
        part,
    ]


def _readable(score: ForcedScore) -> list[str]:
    changes = (
        f"{percent(getattr(score, f'base_{cell}'))} > {percent(getattr(score, f'tuned_{cell}'))}"
        for cell in CELLS
    )
    return [f"{score.domain}/{score.task}", score.reading, *changes]
