"""The comparisons that a report declares, task by task.

In a run: each tuned model with the base. In an evaluation: each further model with the first.
Between runs: the last model of a run with that of its partner (`pipelines.report.arms`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.errors import InputError
from evaluation.comparison import MEAN, Comparison, Pairs, compare, pair_answers
from evaluation.statistics import NORMAL, Z_95, Interval
from pipelines.report.answers import BASE, ModelAnswers, asked_split

POWER = 0.8
LEVEL = 0.05


@dataclass(frozen=True)
class Declared:
    """Two models that a report compares, and how it speaks of them."""

    kind: str
    """`tuned` (with its base), `models` (of an evaluation) or `runs`."""
    first: ModelAnswers
    other: ModelAnswers
    pairs: Pairs
    split: str

    @property
    def name(self) -> str:
        """For people: `quickstart: round 0 - base`."""
        if self.first.run == self.other.run:
            return f"{self.other.run}: {self.other.model} \N{MINUS SIGN} {self.first.model}"
        sides = [f"{each.run} ({each.model})" for each in (self.other, self.first)]
        return " \N{MINUS SIGN} ".join(sides)


def declared_comparisons(
    runs: Mapping[str, Sequence[ModelAnswers]], partners: Mapping[str, str]
) -> list[Declared]:
    """The comparisons of runs, given by name with their models; two models without a common
    question are none. `partners` has the run that another one is compared with."""
    split = asked_split(model for models in runs.values() for model in models)
    found = [_declared(kind, first, other, split) for kind, first, other in _sides(runs, partners)]
    return [each for each in found if each is not None]


def _sides(
    runs: Mapping[str, Sequence[ModelAnswers]], partners: Mapping[str, str]
) -> Iterator[tuple[str, ModelAnswers, ModelAnswers]]:
    for models in runs.values():
        base = next((each for each in models if each.model == BASE), None)
        tuned = [each for each in models if each.round is not None]
        if base is not None:
            yield from (("tuned", base, each) for each in tuned)
        elif not tuned:
            yield from (("models", models[0], each) for each in models[1:])
    last = {name: models[-1] for name, models in runs.items() if models}
    for other, first in partners.items():
        if first in last and other in last:
            yield "runs", last[first], last[other]


def _declared(kind: str, first: ModelAnswers, other: ModelAnswers, split: str) -> Declared | None:
    sets = first.answer_set(split, other.tuned_on), other.answer_set(split)
    try:
        return Declared(kind, first, other, pair_answers(*sets), split)
    except InputError:  # no question in common, as in a run that has just begun
        return None


def compared(declared: Sequence[Declared], reading: str) -> list[list[Comparison]]:
    """The lines of each declared comparison under a reading, their p values adjusted over all.

    Answers without this reading are left out, and a comparison without any has no line.
    """
    having = [_with_reading(each.pairs, reading) for each in declared]
    lines = compare([pairs for pairs in having if pairs.pairs], reading)
    of_sides: dict[tuple[str, str], list[Comparison]] = {}
    for line in lines:
        of_sides.setdefault((line.first, line.other), []).append(line)
    return [of_sides.get((pairs.first, pairs.other), []) for pairs in having]


def _with_reading(pairs: Pairs, reading: str) -> Pairs:
    kept = [
        (first, other)
        for first, other in pairs.pairs
        if first.right(reading) is not None and other.right(reading) is not None
    ]
    return replace(pairs, pairs=kept)


def main_lines(lines: Sequence[Comparison]) -> dict[str, Comparison]:
    """By group, the line that the verdict is about: the mean over the tasks, or the only task."""
    found: dict[str, Comparison] = {}
    for line in lines:
        if line.group not in found or line.task == MEAN:
            found[line.group] = line
    return found


def p_of(line: Comparison) -> float:
    """The p value of no difference: exact, or for a mean over tasks from its interval."""
    return line.p_value if line.p_value is not None else p_of_interval(line.difference)


def p_of_interval(interval: Interval) -> float:
    """The two-sided p value of 0, given an interval of 95 %, as if the estimate were normal."""
    half = (interval.high - interval.low) / 2
    if half <= 0:
        return 1.0 if interval.value == 0 else 0.0
    return 2 * (1 - NORMAL.cdf(abs(interval.value) / (half / Z_95)))


def detectable(interval: Interval) -> float:
    """The smallest true difference that a comparison of this precision finds with a power of 80 %
    at a level of 5 %, two-sided; from the width of its 95 % interval, as if it were normal."""
    half = (interval.high - interval.low) / 2
    return half * (1 + NORMAL.inv_cdf(POWER) / Z_95) if math.isfinite(half) else math.inf
