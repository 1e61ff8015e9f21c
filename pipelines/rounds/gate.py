"""The gate of a round: whether its model holds what the models before it could do.

A task holds by a bound and not by a point: the lower end of the 95 % interval of the paired
difference has to be above -margin, which is a test for non-inferiority at the 2.5 % level. The
model is compared with the last adopted one, and also with the base, so that small losses do not
add up over the rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InputError
from evaluation.forced_scores import right_under
from evaluation.predictions import Prediction
from evaluation.scores import format_difference, percent
from evaluation.statistics import Interval, paired_difference, questions_for_margin
from pipelines.questions.loading import QuestionFacts
from pipelines.rounds.settings import AfterRoundSettings, GateSettings, Reading

Answers = Mapping[str, Prediction]
"""Graded answers by the id of the question."""


@dataclass(frozen=True)
class GateResult:
    """One task, and the model that is compared with. Shares are between 0 and 1."""

    task: str
    against: str
    num_questions: int
    reference: float
    """The share that the other model answers rightly."""
    difference: Interval
    margin: float
    holds: bool | None
    """None if the other model is too weak for the task to decide."""

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return vars(self) | {"difference": list(self.difference)}

    def __str__(self) -> str:
        compared = (
            f"{self.task} against {self.against}: {format_difference(*self.difference)} on "
            f"{self.num_questions} questions, margin {percent(self.margin)}"
        )
        if self.holds is None:
            return (
                f"{compared}: decides nothing, since {self.against} answers only "
                f"{percent(self.reference)} %"
            )
        return f"{compared}: {'holds' if self.holds else 'does not hold'}"


def check_gate(settings: AfterRoundSettings, facts: QuestionFacts) -> None:
    """Raise `InputError` for a gate that could not decide, before anything is generated."""
    in_domain = {c["dataset"] for c in facts.counts if c["domain"] == "in_domain"}
    dev, test = facts.num_kept("dev"), facts.num_kept("test")
    gate = settings.gate
    for task in settings.gate_tasks:
        if test.get(task):
            raise InputError(
                f"after_round.gate.tasks: {task} also has {test[task]} test questions, which are "
                "reported; set its num_test: 0, or use another dataset for the gate"
            )
    if gate is not None:
        needed = questions_for_margin(gate.margin, gate.discordant, power=gate.power)
        for task in gate.tasks:
            if (num := dev.get(task, 0)) < needed:
                raise InputError(
                    f"after_round.gate: {task} has {num} dev questions, but the margin "
                    f"{gate.margin:g} needs {needed} (power {gate.power:g}, if "
                    f"{gate.discordant:g} of the answers differ); raise its num_dev or the margin"
                )
    if settings.stop.no_gain and not (in_domain & set(dev)) - set(settings.gate_tasks):
        raise InputError(
            "after_round.stop.no_gain needs dev questions in domain that are not the gate's; set "
            "num_dev of a dataset"
        )


def gate_results(
    settings: GateSettings,
    candidate: Answers,
    references: Mapping[str, Answers],
    reading: Reading,
) -> list[GateResult]:
    """Compare the candidate with each of the other models on the dev questions of each task."""
    return [
        _gate_result(settings, task, name, pairs_of(candidate, answers, [task]), reading)
        for task in settings.tasks
        for name, answers in references.items()
    ]


def _gate_result(
    settings: GateSettings,
    task: str,
    against: str,
    pairs: Sequence[tuple[Prediction, Prediction]],
    reading: Reading,
) -> GateResult:
    before, after = rights(pairs, reading)
    reference = sum(before) / len(before) if before else 0.0
    difference = paired_difference(before, after)
    can_say = bool(before) and reference >= settings.min_reference
    holds = difference.low > -settings.margin if can_say else None
    return GateResult(task, against, len(before), reference, difference, settings.margin, holds)


def is_held(results: Iterable[GateResult]) -> bool:
    """Whether no task fails and at least one decides."""
    outcomes = [each.holds for each in results]
    return False not in outcomes and True in outcomes


def pairs_of(
    candidate: Answers, reference: Answers, tasks: Iterable[str]
) -> list[tuple[Prediction, Prediction]]:
    """(reference, candidate) on the dev questions of some tasks, in the order of their ids."""
    wanted = set(tasks)
    return [
        (reference[name], candidate[name])
        for name in sorted(candidate)
        if candidate[name].question.split == "dev" and candidate[name].question.dataset in wanted
    ]


def rights(
    pairs: Sequence[tuple[Prediction, Prediction]], reading: Reading
) -> tuple[list[bool], list[bool]]:
    """Which answers of the first and of the second model are right; one that failed is not."""
    first, second = ([bool(right_under(pair[side], reading)) for pair in pairs] for side in (0, 1))
    return first, second
