"""The verdict of a report: one sentence for each declared comparison and group of tasks.

A gain is `shown` when its p value, corrected for all sentences of its kind (Holm), is below 5 % and
the gain is above the margin; a loss is `worse` by the same rule; all else is `not shown`. The
margins are constants of this file, so nobody chooses them after seeing the result. One model of a
method is one draw: without further seeds the sentence holds for this checkpoint only, and
`pipelines.report.arms` makes the claims over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evaluation.comparison import Comparison
from evaluation.statistics import Interval, holm, non_inferiority
from pipelines.report.comparisons import LEVEL, Declared, detectable, main_lines, p_of

Lines = Mapping[str, Sequence[Sequence[Comparison]]]
"""By reading, the lines of each declared comparison."""
Verdict = Literal["shown", "not shown", "worse"]
MARGIN = 0.0
"""A difference has to be above this, as a share, to be a gain."""
KEPT_MARGIN = 0.1
"""Out of domain a tuned model may lose this part of the base's share and still counts as kept."""
CLAIMED = ("forced", "strict")
"""The reading that the verdict is about is the first of these that exists: forced needs no format,
so a gain under it is no mere gain in form."""


@dataclass(frozen=True)
class Claim:
    """One sentence. Shares lie in -1 to 1, intervals are of 95 %."""

    name: str
    group: str
    reading: str
    num_tasks: int
    num_questions: int
    num_seeds: int
    difference: Interval
    p_value: float
    others: Mapping[str, Interval]
    """The difference under the other readings."""
    kept: Mapping[str, Any] | None = None
    """Whether the abilities out of domain are kept; see `non_inferiority`."""


def claimed_reading(lines: Lines, number: int) -> str:
    """The reading that the verdict of a declared comparison is about."""
    return next(reading for reading in CLAIMED if lines.get(reading) and lines[reading][number])


def claims_of(declared: Sequence[Declared], lines: Lines) -> list[Claim]:
    """The claims of the declared comparisons, by group of tasks; `lines` are those by reading."""
    found = []
    for number, each in enumerate(declared):
        claimed = claimed_reading(lines, number)
        of_group = {reading: main_lines(lines[reading][number]) for reading in lines}
        for group, line in of_group[claimed].items():
            found.append(
                Claim(
                    each.name,
                    group,
                    claimed,
                    num_tasks=len(_tasks(each, group)),
                    num_questions=line.num_pairs,
                    num_seeds=1,
                    difference=line.difference,
                    p_value=p_of(line),
                    others={
                        reading: of_group[reading][group].difference
                        for reading in lines
                        if reading != claimed and group in of_group[reading]
                    },
                    kept=_kept(each, group) if each.kind == "tuned" else None,
                )
            )
    return found


def _tasks(declared: Declared, group: str) -> set[str]:
    return {first.task for first, _ in declared.pairs.pairs if first.group == group}


def _kept(declared: Declared, group: str) -> dict[str, Any] | None:
    """Whether a tuned model keeps what its base can do in a group that it was not tuned on."""
    if group != "out_of_domain":
        return None
    sides = [
        (bool(first.strict), bool(other.strict))
        for first, other in declared.pairs.pairs
        if first.group == group
    ]
    result = non_inferiority(*zip(*sides, strict=True), relative_margin=KEPT_MARGIN)
    return {"holds": result.holds, "margin": result.margin, "power": result.power}


def judge(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims with their verdicts, as JSON values.

    Claims over seeds are what a page with several seeds is made for. They are one family of Holm's
    correction, and those about single checkpoints are another, so that ten checkpoints do not hide
    what their seeds show together.
    """
    adjusted: dict[int, float] = {}
    for over_seeds in (True, False):
        family = {n: c.p_value for n, c in enumerate(claims) if (c.num_seeds > 1) == over_seeds}
        corrected = holm({str(number): p_value for number, p_value in family.items()})
        adjusted |= {int(number): p_value for number, p_value in corrected.items()}
    return [_judged(claim, adjusted[number]) for number, claim in enumerate(claims)]


def _judged(claim: Claim, adjusted: float) -> dict[str, Any]:
    return {
        "name": claim.name,
        "group": claim.group,
        "reading": claim.reading,
        "num_tasks": claim.num_tasks,
        "num_questions": claim.num_questions,
        "num_seeds": claim.num_seeds,
        "value": claim.difference.value,
        "low": claim.difference.low,
        "high": claim.difference.high,
        "p_value": claim.p_value,
        "adjusted": adjusted,
        "verdict": verdict_of(claim.difference, adjusted),
        "detectable": detectable(claim.difference) if claim.num_seeds == 1 else None,
        "others": [
            {"reading": reading, "value": each.value, "low": each.low, "high": each.high}
            for reading, each in claim.others.items()
        ],
        "kept": claim.kept,
    }


def verdict_of(difference: Interval, adjusted: float, margin: float = MARGIN) -> Verdict:
    """What a difference with its corrected p value shows."""
    if adjusted < LEVEL and difference.low > margin:
        return "shown"
    if adjusted < LEVEL and difference.high < -margin:
        return "worse"
    return "not shown"
