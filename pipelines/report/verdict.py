"""The verdict of a report: one sentence for each declared comparison and group of tasks.

A gain is `shown` when its p value, corrected for all sentences of the page (Holm), is below 5 % and
the gain is above the margin; a loss is `worse` by the same rule; all else is `not shown`. The
margins are constants of this file, so nobody chooses them after seeing the result. One model of a
method is one draw: without further seeds the sentence holds for this checkpoint only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.settings import fingerprint
from evaluation.comparison import Comparison
from evaluation.statistics import (
    Interval,
    holm,
    non_inferiority,
    seeds_interval,
    t_cdf,
    t_quantile,
)
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
_SEEDS = (("synthesis", "seed"), ("examples", "seed"), ("training", "seed"))
_NAMES = ("run", "storage", "cluster", "cost", "budget")
"""Branches of a config that do not change what a run is about."""


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


def _claimed(lines: Lines, number: int) -> str:
    """The reading that the verdict of a declared comparison is about."""
    return next(reading for reading in CLAIMED if lines.get(reading) and lines[reading][number])


def claims_of(declared: Sequence[Declared], lines: Lines) -> list[Claim]:
    """The claims of the declared comparisons, by group of tasks; `lines` are those by reading."""
    found = []
    for number, each in enumerate(declared):
        claimed = _claimed(lines, number)
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
    """The claims with their verdicts, as JSON values."""
    adjusted = holm({str(number): claim.p_value for number, claim in enumerate(claims)})
    return [_judged(claim, adjusted[str(number)]) for number, claim in enumerate(claims)]


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


# --- several seeds -----------------------------------------------------------------------------


def arm_of(config: Mapping[str, Any]) -> str:
    """What is the same for runs that differ in their seeds only."""
    same = {k: v for k, v in config.items() if k not in _NAMES}
    for branch, name in _SEEDS:
        if isinstance(same.get(branch), Mapping):
            same[branch] = {k: v for k, v in same[branch].items() if k != name}
    return fingerprint(same)


def claims_over_seeds(
    arms: Mapping[str, str],
    declared: Sequence[Declared],
    lines: Lines,
) -> list[Claim]:
    """For each arm of several seeds, the gain of its last models over their bases.

    `arms` has the arm of each run by the run's name. The interval is over the seeds.
    """
    last: dict[str, int] = {e.other.run: n for n, e in enumerate(declared) if e.kind == "tuned"}
    found = []
    for arm in dict.fromkeys(arms.values()):
        runs = [run for run in last if arms[run] == arm]
        if len(runs) < 2:
            continue
        readings = {_claimed(lines, last[run]) for run in runs}
        claimed = readings.pop() if len(readings) == 1 else CLAIMED[-1]
        of_runs = [main_lines(lines[claimed][last[run]]) for run in runs]
        for group in of_runs[0]:
            if all(group in each for each in of_runs):
                found.append(_over_seeds(runs, group, claimed, [e[group] for e in of_runs]))
    return found


def _over_seeds(
    runs: Sequence[str], group: str, reading: str, lines: Iterable[Comparison]
) -> Claim:
    found = list(lines)
    interval = seeds_interval([line.difference.value for line in found])
    return Claim(
        f"{', '.join(runs)}: tuned \N{MINUS SIGN} base",
        group,
        reading,
        num_tasks=0,
        num_questions=found[0].num_pairs,
        num_seeds=len(found),
        difference=interval,
        p_value=_p_over_seeds(interval, len(found) - 1),
        others={},
    )


def _p_over_seeds(interval: Interval, degrees: int) -> float:
    """The two-sided p value of 0, given a t interval of 95 %."""
    half = (interval.high - interval.low) / 2
    if half <= 0:
        return 1.0 if interval.value == 0 else 0.0
    return 2 * (1 - t_cdf(abs(interval.value) / half * t_quantile(0.975, degrees), degrees))
