"""Statistics of scores: plain functions on NumPy arrays that read and write no files.

A score is an array of right (1) and wrong (0) over questions. Two models on the same questions are
two such arrays in the same order, and samples are an array of questions x samples. Differences are
the second minus the first. Nothing here depends on SciPy, but the tests compare with it.

    exact_mcnemar(base, tuned)  ->  0.0039
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NORMAL = NormalDist()
Z_95 = NORMAL.inv_cdf(0.975)
"""Two-sided 95 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """An estimate and the ends of its interval."""

    value: float
    low: float
    high: float


def wilson_interval(num_correct: int, num_questions: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which is also good near 0 and 1."""
    if num_questions == 0:
        return 0.0, 1.0
    share = num_correct / num_questions
    z2 = Z_95**2
    centre = (share + z2 / (2 * num_questions)) / (1 + z2 / num_questions)
    spread = math.sqrt(share * (1 - share) / num_questions + z2 / (4 * num_questions**2))
    half = Z_95 * spread / (1 + z2 / num_questions)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(base: ArrayLike, tuned: ArrayLike) -> Interval:
    """Tuned minus base over the same questions, with its 95 % interval.

    The interval adds half a question to each of the four cells of the paired table (Agresti and
    Min, 2005), which keeps its coverage when few questions changed.
    """
    gained, lost, num = _changed(base, tuned)
    if num == 0:
        return Interval(0.0, -1.0, 1.0)
    n, plus, minus = num + 2, gained + 0.5, lost + 0.5
    centre = (plus - minus) / n
    half = Z_95 * math.sqrt(max(0.0, (plus + minus) - (plus - minus) ** 2 / n)) / n
    return Interval((gained - lost) / num, max(-1.0, centre - half), min(1.0, centre + half))


def exact_mcnemar(base: ArrayLike, tuned: ArrayLike) -> float:
    """The two-sided p value for no difference on the same questions (McNemar, exact binomial)."""
    gained, lost, _ = _changed(base, tuned)
    num = gained + lost
    tail = sum(math.comb(num, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / (1 << num)))


def _changed(base: ArrayLike, tuned: ArrayLike) -> tuple[int, int, int]:
    """(gained, lost, questions)."""
    before, after = np.asarray(base, bool), np.asarray(tuned, bool)
    if before.shape != after.shape:
        raise ValueError(f"{before.size} and {after.size} answers are not of the same questions")
    return int((after & ~before).sum()), int((before & ~after).sum()), before.size


def clustered_bootstrap(
    values: ArrayLike, clusters: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The mean and its 95 % percentile interval, resampling whole clusters.

    All samples, prompts or forms of one question are a cluster, because they are correlated; if
    they were treated as independent, the interval would be too short. Needs two clusters.
    """
    numbers, names = np.asarray(values, float), np.asarray(clusters)
    _, index = np.unique(names, return_inverse=True)
    sums, sizes = np.bincount(index, numbers), np.bincount(index)
    if len(sizes) < 2:
        raise ValueError("a bootstrap over clusters needs at least two of them")
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for start in range(0, draws, 1_000):  # at most 1,000 x clusters numbers at a time
        rows = min(1_000, draws - start)
        drawn = random.integers(len(sizes), size=(rows, len(sizes)))
        means[start : start + rows] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(numbers.mean()), float(low), float(high))


def clustered_error(values: ArrayLike, clusters: ArrayLike) -> float:
    """The standard error of a mean whose values are correlated within clusters (CR0 sandwich)."""
    numbers, names = np.asarray(values, float), np.asarray(clusters)
    _, index = np.unique(names, return_inverse=True)
    sums = np.bincount(index, numbers - numbers.mean())
    return float(np.sqrt((sums**2).sum()) / numbers.size)


def seeds_interval(means: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean over seeds and its t interval, with seeds - 1 degrees of freedom.

    Each value is the complete result of one seed, such as its difference between two arms. It needs
    two: with one, the interval says nothing about the method, only about the checkpoint.
    """
    values = np.asarray(means, float)
    if values.size < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    half = t_quantile((1 + confidence) / 2, values.size - 1)
    half *= values.std(ddof=1) / math.sqrt(values.size)
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The adjusted p value of each declared comparison (Holm, 1979), in the given order.

    It must get every comparison that was declared, including those that were not looked at.
    """
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def mean_of_intervals(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, each counted once, with its interval.

    Distances from the estimates to the ends add up in squares (Zou and Donner, 2008). Raises
    ValueError without an estimate.
    """
    if not intervals:
        raise ValueError("a mean needs an estimate")
    num = len(intervals)
    value = sum(each.value for each in intervals) / num
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in intervals)) / num
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in intervals)) / num
    return Interval(value, value - below, value + above)


class MacroMean(NamedTuple):
    """The mean over tasks, each counted once, and the mean without each of them."""

    value: float
    without: dict[str, float]


def macro_mean(by_task: Mapping[str, float], groups: Mapping[str, str] | None = None) -> MacroMean:
    """The mean of tasks' scores or differences, conditional on these tasks.

    Tasks of one group (ASDiv and SVAMP) count as one and are left out together. Raises ValueError
    without a task.
    """
    members: dict[str, list[float]] = {}
    for task, value in by_task.items():
        members.setdefault((groups or {}).get(task, task), []).append(value)
    means = {name: sum(values) / len(values) for name, values in members.items()}
    if not means:
        raise ValueError("a mean over tasks needs a task")
    total, num = sum(means.values()), len(means)
    without = {name: (total - mean) / (num - 1) for name, mean in means.items() if num > 1}
    return MacroMean(total / num, without)


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether a model keeps what its base can do. `margin` is the allowed loss, as a share."""

    margin: float
    difference: Interval
    power: float
    """The probability to show it if there is no loss at all."""
    holds: bool | None
    """None if nothing can be said, because the base is too weak or the power too small."""


def non_inferiority(
    base: ArrayLike,
    tuned: ArrayLike,
    *,
    relative_margin: float = 0.1,
    minimum_base: float = 0.2,
    minimum_power: float = 0.8,
    alpha: float = 0.025,
) -> NonInferiority:
    """Whether tuned loses less than `relative_margin` of the base's share, at one-sided `alpha`.

    A model near chance has nothing to lose, so nothing is claimed below `minimum_base`, or if there
    are too few questions to show it.
    """
    gained, lost, num = _changed(base, tuned)
    share = float(np.mean(np.asarray(base, bool))) if num else 0.0
    margin = relative_margin * share
    discordant = (gained + lost) / num if num else 0.0
    difference = paired_difference(base, tuned)
    power = _margin_power(margin, discordant, num, alpha)
    half = (difference.high - difference.low) / 2 * NORMAL.inv_cdf(1 - alpha) / Z_95
    centre = (difference.high + difference.low) / 2
    can_say = share >= minimum_base and power >= minimum_power
    return NonInferiority(margin, difference, power, centre - half > -margin if can_say else None)


def _margin_power(margin: float, discordant: float, num: int, alpha: float) -> float:
    """The probability that the bound of a difference of 0 is above -margin."""
    error = math.sqrt(max(discordant, 1 / max(num, 1)) / max(num, 1))
    return NORMAL.cdf(margin / error - NORMAL.inv_cdf(1 - alpha))


def questions_for_margin(
    margin: float, discordant: float, *, alpha: float = 0.025, power: float = 0.8
) -> int:
    """The number of questions that shows, with this power, that a difference of 0 is above
    -margin."""
    if margin <= 0:
        raise ValueError(f"margin {margin} must be above 0")
    z = NORMAL.inv_cdf(1 - alpha) + NORMAL.inv_cdf(power)
    return math.ceil(discordant * (z / margin) ** 2)


def chance_corrected(correct: ArrayLike, num_options: ArrayLike) -> float:
    """The share right beyond chance, with the number of options of each question.

    1 means all right, 0 means guessing: (share - mean of 1/k) / (1 - mean of 1/k).
    """
    chance = float(np.mean(1 / np.asarray(num_options, float)))
    if chance >= 1:
        raise ValueError("a question with one option cannot be corrected for chance")
    return (float(np.mean(np.asarray(correct, float))) - chance) / (1 - chance)


def pass_at_k(num_correct: ArrayLike, num_samples: int, k: int) -> float:
    """The mean probability that k of the samples contain a right one (Chen et al., 2021, unbiased).

    `num_correct` counts the right ones of each question. It is only for exchangeable samples; use
    `coverage_at_k` for guidelines.
    """
    return float(coverage_by_question(num_correct, num_samples, k).mean())


def coverage_at_k(solved: ArrayLike, k: int) -> float:
    """The mean share of questions that a random subset of k guidelines solves.

    `solved` is questions x guidelines. The guidelines are a finite population, so the result is
    exact and has no sampling error.
    """
    table = np.asarray(solved, bool)
    return float(coverage_by_question(table.sum(1), table.shape[1], k).mean())


def coverage_by_question(num_correct: ArrayLike, num_samples: int, k: int) -> Floats:
    """1 - C(n - c, k) / C(n, k) of each question, as a product that stays within floats."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k = {k} must be between 1 and the {num_samples} existing samples")
    right = np.asarray(num_correct, np.int64)
    missing = np.ones(right.shape)
    for drawn in range(k):
        missing *= np.clip(num_samples - right - drawn, 0, None) / (num_samples - drawn)
    return 1 - missing


def shapley_credit(solved: ArrayLike) -> Floats:
    """Each guideline's part of the coverage: the sum over questions of 1 / number that solve it.

    `solved` is questions x guidelines; the credits sum to the number of solved questions. This is
    the Shapley value of coverage by all guidelines, averaged over all orders of adding them.
    """
    table = np.asarray(solved, bool)
    solvers = table.sum(1, keepdims=True)
    credit: Floats = (table / np.maximum(solvers, 1)).sum(0)
    return credit


def shrunk_shares(right: ArrayLike, tries: ArrayLike) -> Floats:
    """Each group's share of right tries, shrunk towards the share of all groups together.

    The less the groups differ beyond chance, and the fewer tries a group has, the more it is
    shrunk. How much they differ is the correlation of tries within a group, estimated by the
    analysis of variance (Fleiss, 1981), bounded to 0 to 1. Groups need one try at least.
    """
    numbers, sizes = np.asarray(right, float), np.asarray(tries, float)
    total, groups = sizes.sum(), sizes.size
    shares, mean = numbers / sizes, numbers.sum() / total
    if groups < 2 or total == groups:
        return np.full(groups, mean)
    between = float((sizes * (shares - mean) ** 2).sum()) / (groups - 1)
    within = float((sizes * shares * (1 - shares)).sum()) / (total - groups)
    size = (total - (sizes**2).sum() / total) / (groups - 1)
    spread = between + (size - 1) * within
    correlation = min(1.0, max(0.0, (between - within) / spread)) if spread > 0 else 0.0
    weights = sizes * correlation / (1 + (sizes - 1) * correlation)
    shrunk: Floats = mean + weights * (shares - mean)
    return shrunk


def split_half_reliability(
    right: ArrayLike, tries: ArrayLike, *, draws: int = 200, seed: int = 0
) -> float | None:
    """How well the groups' shares on half of the questions predict those on the other half.

    `right` and `tries` are counts, questions x groups. The correlation of the two halves, averaged
    over random halves, is raised to the full number of questions (Spearman, 1910; Brown, 1910);
    1 means perfectly, 0 not at all or worse. None with fewer than three groups that have tries in
    both halves, or if the groups of a half do not differ.
    """
    counts, sizes = np.asarray(right, float), np.asarray(tries, float)
    num = len(sizes)
    random, found = np.random.default_rng(seed), []
    for _ in range(draws if num > 1 else 0):
        is_first = np.zeros(num, bool)
        is_first[random.permutation(num)[: num // 2]] = True
        halves = [(counts[half].sum(0), sizes[half].sum(0)) for half in (is_first, ~is_first)]
        is_known = (halves[0][1] > 0) & (halves[1][1] > 0)
        first, second = (c[is_known] / n[is_known] for c, n in halves)
        if is_known.sum() > 2 and first.std() > 0 and second.std() > 0:
            found.append(float(np.corrcoef(first, second)[0, 1]))
    if not found:
        return None
    mean = float(np.mean(found))
    return max(0.0, 2 * mean / (1 + mean)) if mean > -1 else 0.0


def majority_at_k(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    draws: int = 1_000,
    seed: int = 0,
) -> float:
    """The mean probability that the most common answer of k random samples is right.

    Answers that were not read (None) have no vote; ties are shared. Samples are drawn without
    replacement, and if all are taken the result is exact.
    """
    random = np.random.default_rng(seed)
    chances = []
    for said, right in zip(answers, correct, strict=True):
        if not 1 <= k <= len(said):
            raise ValueError(f"k = {k} must be between 1 and the {len(said)} existing samples")
        subsets = (
            [np.arange(k)]
            if k == len(said)
            else [random.permutation(len(said))[:k] for _ in range(draws)]
        )
        chances.append(np.mean([_majority_right(said, right, subset) for subset in subsets]))
    return float(np.mean(chances))


def _majority_right(
    said: Sequence[str | None], right: Sequence[bool], subset: NDArray[Any]
) -> float:
    votes: dict[str, int] = {}
    is_right: dict[str, bool] = {}
    for index in subset:
        answer = said[index]
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
            is_right[answer] = bool(right[index])
    most = max(votes.values(), default=0)
    leaders = [answer for answer, count in votes.items() if count == most]
    return sum(is_right[answer] for answer in leaders) / len(leaders) if leaders else 0.0


def detectable_difference(
    num_questions: int, discordant: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true difference that the exact McNemar test finds with this power.

    `discordant` is the share of questions on which exactly one of the two is right. The result is a
    share; it is infinite if even a difference of all discordant questions would be missed.
    """
    weights = {
        num: float(weight)
        for num, weight in enumerate(binomial_pmf(num_questions, discordant))
        if weight > 1e-9
    }
    critical = {num: _critical_count(num, alpha) for num in weights}

    def reaches(difference: float) -> bool:
        gain = (1 + difference / discordant) / 2
        return _mcnemar_power(weights, critical, gain) >= power

    if discordant <= 0 or not reaches(discordant):
        return math.inf
    return _bisect(lambda difference: float(reaches(difference)) - 0.5, 0.0, discordant)


def _critical_count(num: int, alpha: float) -> int:
    """The largest smaller count of `num` changed questions that is significant; -1 for none."""
    tails = 2 * np.cumsum(binomial_pmf(num, 0.5))[: (num + 1) // 2]
    return int((tails <= alpha).sum()) - 1


def _mcnemar_power(weights: Mapping[int, float], critical: Mapping[int, int], gain: float) -> float:
    """The probability of a significant result, over how many questions change and in which way."""
    power = 0.0
    for num, weight in weights.items():
        chances, count = binomial_pmf(num, gain), critical[num]
        if count >= 0:
            power += weight * float(chances[: count + 1].sum() + chances[num - count :].sum())
    return power


def binomial_pmf(num: int, chance: float) -> Floats:
    """The probabilities of 0 to `num` successes."""
    if chance <= 0 or chance >= 1:
        certain: Floats = np.zeros(num + 1)
        certain[num if chance >= 1 else 0] = 1
        return certain
    logs = np.array([math.lgamma(count + 1) for count in range(num + 1)])
    counts = np.arange(num + 1)
    log_chances = counts * math.log(chance) + (num - counts) * math.log1p(-chance)
    chances: Floats = np.exp(logs[num] - logs - logs[::-1] + log_chances)
    return chances


def t_quantile(share: float, degrees: int) -> float:
    """The value that Student's t with these degrees of freedom is below with this probability."""
    if not 0 < share < 1 or degrees < 1:
        raise ValueError(f"share {share} must be between 0 and 1, and degrees {degrees} at least 1")
    if share < 0.5:
        return -t_quantile(1 - share, degrees)
    high = 1.0
    while t_cdf(high, degrees) < share:
        high *= 2
    return _bisect(lambda value: t_cdf(value, degrees) - share, 0.0, high)


def t_cdf(value: float, degrees: int) -> float:
    """The probability that Student's t is below a value (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    angle = math.atan2(value, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total, start = (term, 3) if degrees % 2 else (term, 2)
    for index in range(start, degrees - 1, 2):
        term *= cosine**2 * (index - 1) / index
        total += term
    if degrees == 1:
        return 0.5 + angle / math.pi
    if degrees % 2:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses 0 between two values, to 12 digits of the larger one."""
    while high - low > 1e-12 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return high
