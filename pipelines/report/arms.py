"""Arms: runs that differ in their seeds only, and what they show over their seeds.

A seed draws everything again (questions, guidelines, selection, training), so with fewer than eight
seeds an interval comes from the seeds' own results, by Student's t with seeds - 1 degrees of
freedom. Arms are compared seed by seed: what the runs of a seed share is no difference of arms.

    Arm("regenesis", {(0, 0, 0): "regenesis_0", (1, 1, 1): "regenesis_1"})
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.settings import fingerprint
from evaluation.comparison import Comparison
from evaluation.statistics import Interval, seeds_interval, t_cdf, t_quantile
from pipelines.report.comparisons import Declared, main_lines
from pipelines.report.verdict import CLAIMED, Claim, Lines

Seeds = tuple[Any, ...]
_SEEDS = (("synthesis", "seed"), ("examples", "seed"), ("training", "seed"))
_NAMES = ("run", "storage", "cluster", "cost", "budget")
"""Branches of a config that do not change what a run is about."""
_END_OF_NAME = re.compile(r"[\W_]+(?:seeds?|s)?[\W_]*\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Arm:
    """Runs of one method."""

    name: str
    runs: Mapping[Seeds, str]
    """The name of the run of each seed."""


@dataclass(frozen=True)
class OverSeeds:
    """One quantity of an arm, a value for each seed. Shares lie in -1 to 1."""

    name: str
    """For people, such as `regenesis: tuned - base`."""
    arm: str
    quantity: str
    """`score` of the last models, their `gain` over the base, or `difference` to the first arm."""
    group: str
    reading: str
    num_questions: int
    values: Mapping[str, float]
    """By the name of the run."""

    @property
    def interval(self) -> Interval:
        """The mean over the seeds and its t interval of 95 %."""
        return seeds_interval(list(self.values.values()))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each seed, and one with an empty `run` for all of them."""
        about = {"arm": self.arm, "quantity": self.quantity, "group": self.group}
        about |= {"reading": self.reading, "name": self.name}
        mean = self.interval
        over = {"run": "", "value": mean.value, "low": mean.low, "high": mean.high}
        of_seeds = [{"run": run, "value": value} for run, value in self.values.items()]
        return [about | {"num_seeds": len(self.values)} | each for each in (over, *of_seeds)]


def arm_of(config: Mapping[str, Any]) -> str:
    """What is the same for runs that differ in their seeds only."""
    same = {k: v for k, v in config.items() if k not in _NAMES}
    for branch, name in _SEEDS:
        if isinstance(same.get(branch), Mapping):
            same[branch] = {k: v for k, v in same[branch].items() if k != name}
    return fingerprint(same)


def seeds_of(config: Mapping[str, Any]) -> Seeds:
    """The seeds of a run, in a fixed order."""
    return tuple((config.get(branch) or {}).get(name) for branch, name in _SEEDS)


def partners_of(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By the name of each further run, the run whose last model it is compared with.

    That is the run of the first arm with the same seeds, or else the first run. Another seed of the
    first arm has no partner, because two draws of one method are no comparison.
    """
    if not configs:
        return {}
    first, *others = configs
    arm = arm_of(configs[first])
    of_first = [name for name in configs if arm_of(configs[name]) == arm]
    by_seeds = {seeds_of(configs[name]): name for name in reversed(of_first)}
    found = {name: by_seeds.get(seeds_of(configs[name]), first) for name in others}
    return {
        name: partner
        for name, partner in found.items()
        if partner != name and (name not in of_first or _is_drawn_alike(configs, name, partner))
    }


def _is_drawn_alike(configs: Mapping[str, Mapping[str, Any]], name: str, partner: str) -> bool:
    return seeds_of(configs[name]) == seeds_of(configs[partner])


def arms_of(configs: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """The arms of runs in their order; of a seed that is there twice, the first run counts."""
    found: dict[str, dict[Seeds, str]] = {}
    for name, config in configs.items():
        found.setdefault(arm_of(config), {}).setdefault(seeds_of(config), name)
    names = [_common_name(list(runs.values())) for runs in found.values()]
    return [
        Arm(name if names.count(name) == 1 else ", ".join(runs.values()), runs)
        for name, runs in zip(names, found.values(), strict=True)
    ]


def _common_name(runs: Sequence[str]) -> str:
    """`regenesis` for `regenesis_s0` and `regenesis_s1`; where nothing is common, all names."""
    letters = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*runs, strict=False))
    common = "".join(each[0] for each in letters)
    end = _END_OF_NAME.search(common)
    if len(runs) == 1 or end is None or not end.start():
        return ", ".join(runs)
    return common[: end.start()]


def quantities_over_seeds(
    arms: Sequence[Arm], declared: Sequence[Declared], lines: Lines
) -> list[OverSeeds]:
    """What each arm of several seeds shows, by group of tasks and reading: first the differences to
    the first arm, then gains and scores. `lines` are those of the declared comparisons."""
    of_last = {each.other.run: n for n, each in enumerate(declared) if each.kind == "tuned"}
    of_pair = {
        (each.first.run, each.other.run): n
        for n, each in enumerate(declared)
        if each.kind == "runs"
    }
    found: list[OverSeeds] = []
    for reading, of_declared in lines.items():
        for arm in arms[1:]:
            pairs = {
                run: of_pair.get((arms[0].runs[seeds], run))
                for seeds, run in arm.runs.items()
                if seeds in arms[0].runs
            }
            name = f"{arm.name} \N{MINUS SIGN} {arms[0].name}"
            found += _over_seeds("difference", name, arm, reading, _lines_of(pairs, of_declared))
        for arm in arms:
            own = _lines_of({run: of_last.get(run) for run in arm.runs.values()}, of_declared)
            gain = f"{arm.name}: tuned \N{MINUS SIGN} base"
            found += _over_seeds("gain", gain, arm, reading, own)
            found += _over_seeds("score", arm.name, arm, reading, own)
    order = ("difference", "gain", "score")
    return sorted(found, key=lambda each: order.index(each.quantity))


def _lines_of(
    numbers: Mapping[str, int | None], of_declared: Sequence[Sequence[Comparison]]
) -> dict[str, dict[str, Comparison]]:
    """By run and group, the line of the comparison with this number."""
    return {run: main_lines(of_declared[n]) for run, n in numbers.items() if n is not None}


def _over_seeds(
    quantity: str,
    name: str,
    arm: Arm,
    reading: str,
    by_run: Mapping[str, Mapping[str, Comparison]],
) -> Iterator[OverSeeds]:
    """The quantity in each group that at least two seeds, and all of those given, have."""
    groups = next(iter(by_run.values()), {}) if len(by_run) > 1 else {}
    for group in groups:
        if all(group in of_run for of_run in by_run.values()):
            of_group = {run: of_run[group] for run, of_run in by_run.items()}
            values = {
                run: (line.other_share if quantity == "score" else line.difference).value
                for run, line in of_group.items()
            }
            number = min(line.num_pairs for line in of_group.values())
            yield OverSeeds(name, arm.name, quantity, group, reading, number, values)


def claims_over_seeds(found: Sequence[OverSeeds]) -> list[Claim]:
    """The claims about differences of arms and about gains, each under the first reading of
    `CLAIMED` that it has."""
    claims: dict[tuple[str, str], Claim] = {}
    for reading in CLAIMED:
        for each in found:
            if each.reading == reading and each.quantity != "score":
                others = {
                    other.reading: other.interval
                    for other in found
                    if (other.name, other.group) == (each.name, each.group)
                    and other.quantity == each.quantity
                    and other.reading != reading
                }
                claims.setdefault((each.name, each.group), _claim(each, others))
    return list(claims.values())


def _claim(found: OverSeeds, others: Mapping[str, Interval]) -> Claim:
    interval, num_seeds = found.interval, len(found.values)
    return Claim(
        found.name,
        found.group,
        found.reading,
        num_tasks=0,
        num_questions=found.num_questions,
        num_seeds=num_seeds,
        difference=interval,
        p_value=_p_over_seeds(interval, num_seeds - 1),
        others=others,
    )


def _p_over_seeds(interval: Interval, degrees: int) -> float:
    """The two-sided p value of 0, given a t interval of 95 %."""
    half = (interval.high - interval.low) / 2
    if half <= 0:
        return 1.0 if interval.value == 0 else 0.0
    return 2 * (1 - t_cdf(abs(interval.value) / half * t_quantile(0.975, degrees), degrees))
