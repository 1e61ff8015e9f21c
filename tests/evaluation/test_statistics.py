"""Statistics: the same numbers as SciPy and statsmodels, values by hand, and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from evaluation.statistics import (
    binomial_pmf,
    chance_corrected,
    clustered_bootstrap,
    clustered_error,
    coverage_at_k,
    detectable_difference,
    exact_mcnemar,
    holm,
    macro_mean,
    majority_at_k,
    mean_of_intervals,
    non_inferiority,
    paired_difference,
    pass_at_k,
    questions_for_margin,
    seeds_interval,
    shapley_credit,
    shrunk_shares,
    t_cdf,
    t_quantile,
    wilson_interval,
)

RANDOM = np.random.default_rng(11)


@pytest.mark.parametrize(
    ("num_correct", "num", "low", "high"),
    [
        # Brown, Cai and DasGupta (2001) give the formula; values by hand with z = 1.959964.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_interval_matches_values_by_hand(
    num_correct: int, num: int, low: float, high: float
) -> None:
    assert wilson_interval(num_correct, num) == pytest.approx((low, high), abs=1e-4)


def test_difference_is_paired_and_its_interval_holds_it() -> None:
    base = [True] * 10 + [False] * 90
    better = [True] * 40 + [False] * 60
    difference, low, high = paired_difference(base, better)
    assert difference == pytest.approx(0.3)
    assert 0.15 < low < 0.3 < high < 0.45
    assert paired_difference(base, base)[0] == 0.0
    assert paired_difference(base, base)[1] < 0.0 < paired_difference(base, base)[2]


def test_intervals_of_no_question_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert paired_difference([], []) == (0.0, -1.0, 1.0)


def test_mean_of_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="a mean needs an estimate"):
        mean_of_intervals([])


def test_difference_swapped_models_swap_the_interval() -> None:
    base = [True, False, True, False, False, True]
    tuned = [True, True, False, True, True, True]
    difference, low, high = paired_difference(base, tuned)
    assert paired_difference(tuned, base) == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize(("num_correct", "num"), [(0, 7), (3, 10), (299, 300), (811, 1319)])
def test_wilson_interval_is_that_of_statsmodels(num_correct: int, num: int) -> None:
    expected = proportion_confint(num_correct, num, method="wilson")
    assert wilson_interval(num_correct, num) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (9, 1), (12, 12), (80, 45)])
def test_exact_mcnemar_is_that_of_statsmodels(gained: int, lost: int) -> None:
    base = np.array([False] * gained + [True] * lost + [True] * 20)
    tuned = np.array([True] * gained + [False] * lost + [True] * 20)
    expected = mcnemar([[20, lost], [gained, 0]], exact=True).pvalue
    assert exact_mcnemar(base, tuned) == pytest.approx(expected)


def test_statistics_of_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same questions"):
        exact_mcnemar([True], [True, False])


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 101])
def test_t_is_that_of_scipy(degrees: int) -> None:
    for share in (0.005, 0.3, 0.5, 0.8, 0.975, 0.999):
        value = stats.t.ppf(share, degrees)
        assert t_quantile(share, degrees) == pytest.approx(value, rel=1e-7, abs=1e-9)
        assert t_cdf(value, degrees) == pytest.approx(share)


@pytest.mark.parametrize(("share", "degrees"), [(0.0, 3), (1.0, 3), (-0.1, 3), (0.5, 0)])
def test_t_of_what_is_no_share_or_no_degree_is_refused(share: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=f"share {share} must be between 0 and 1"):
        t_quantile(share, degrees)


def test_seeds_interval_is_that_of_scipy() -> None:
    means = [0.031, 0.052, 0.044, 0.020, 0.061]
    expected = stats.t.interval(0.95, 4, np.mean(means), stats.sem(means))
    assert seeds_interval(means)[1:] == pytest.approx(expected)
    with pytest.raises(ValueError, match="two seeds"):
        seeds_interval([0.1])


def test_holm_is_that_of_statsmodels() -> None:
    values = {"base": 0.03, "direct": 0.001, "unfiltered": 0.02, "random": 0.6}
    expected = multipletests(list(values.values()), method="holm")[1]
    assert list(holm(values).values()) == pytest.approx(list(expected))
    assert list(holm(values)) == list(values)


def test_binomial_pmf_is_that_of_scipy() -> None:
    for num, chance in ((0, 0.3), (5, 0.0), (5, 1.0), (40, 0.15), (2_000, 0.5)):
        expected = stats.binom.pmf(range(num + 1), num, chance)
        assert binomial_pmf(num, chance) == pytest.approx(expected, abs=1e-12)


def clustered(num: int, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Samples of questions that differ in how hard they are: rights, and their questions."""
    chances = random.beta(0.6, 0.9, num)
    return (random.random((num, size)) < chances[:, None]).ravel(), np.repeat(np.arange(num), size)


def test_clustered_error_is_that_of_statsmodels_and_of_the_bootstrap() -> None:
    correct, questions = clustered(120, 8, RANDOM)
    model = OLS(correct.astype(float), np.ones(correct.size))
    groups = {"groups": questions, "use_correction": False}
    expected = model.fit(cov_type="cluster", cov_kwds=groups).bse[0]
    assert clustered_error(correct, questions) == pytest.approx(expected)
    value, low, high = clustered_bootstrap(correct, questions, draws=4_000)
    assert value == pytest.approx(correct.mean())
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)
    alone = clustered_bootstrap(correct, np.arange(correct.size), draws=4_000)
    assert alone.high - alone.low < 0.6 * (high - low)
    with pytest.raises(ValueError, match="two of them"):
        clustered_bootstrap([1, 0], ["q", "q"])


def test_macro_mean_counts_each_task_once_and_leaves_each_out() -> None:
    by_task = {"gsm8k": 0.04, "asdiv": 0.02, "svamp": 0.00, "arc": -0.03}
    mean = macro_mean(by_task, {"asdiv": "word problems", "svamp": "word problems"})
    assert mean.value == pytest.approx((0.04 + 0.01 - 0.03) / 3)
    assert mean.without["arc"] == pytest.approx(0.025)
    assert mean.without["word problems"] == pytest.approx(0.005)
    assert macro_mean({"one": 0.5}).without == {}
    with pytest.raises(ValueError, match="needs a task"):
        macro_mean({})


def test_non_inferiority_says_yes_no_or_nothing() -> None:
    base = np.array([True] * 600 + [False] * 400)
    same, harmed, weak = base.copy(), base.copy(), np.zeros(1_000, bool)
    same[[1, 2, 998, 999]] ^= True
    harmed[:120] = False
    weak[:100] = True
    assert non_inferiority(base, same).holds is True
    assert non_inferiority(base, harmed).holds is False
    assert non_inferiority(weak, weak).holds is None  # a base of 10 % is near chance
    few = non_inferiority(base[590:610], ~base[590:610])
    assert few.holds is None
    assert few.power < 0.8
    assert non_inferiority(base, same).margin == pytest.approx(0.06)


def test_questions_for_margin_are_as_many_as_its_power_needs() -> None:
    num = questions_for_margin(0.03, 0.15)
    # Normal approximation by hand: 0.15 * ((1.959964 + 0.841621) / 0.03)^2 = 1308.1.
    assert num == 1309
    with pytest.raises(ValueError, match="above 0"):
        questions_for_margin(0.0, 0.15)


def test_chance_corrected_is_0_for_guessing_and_1_for_all_right() -> None:
    options = np.array([2, 4, 4, 5])
    assert chance_corrected([1, 1, 1, 1], options) == pytest.approx(1.0)
    assert chance_corrected(1 / options, options) == pytest.approx(0.0)
    assert chance_corrected([0, 0, 0, 0], [2, 2, 2, 2]) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="one option"):
        chance_corrected([1], [1])


def test_coverage_and_pass_at_k_are_the_mean_over_all_subsets() -> None:
    solved = RANDOM.random((9, 6)) < 0.3
    for k in range(1, 7):
        subsets = itertools.combinations(range(6), k)
        expected = np.mean([solved[:, list(subset)].any(1).mean() for subset in subsets])
        assert coverage_at_k(solved, k) == pytest.approx(expected)
        assert pass_at_k(solved.sum(1), 6, k) == pytest.approx(expected)
    with pytest.raises(ValueError, match="between 1 and the 6"):
        coverage_at_k(solved, 7)


def test_shapley_credit_is_the_mean_gain_over_all_orders() -> None:
    solved = RANDOM.random((12, 5)) < 0.35
    credit = np.zeros(5)
    for order in itertools.permutations(range(5)):
        known = np.zeros(12, bool)
        for guideline in order:
            credit[guideline] += (solved[:, guideline] & ~known).sum()
            known |= solved[:, guideline]
    assert shapley_credit(solved) == pytest.approx(credit / math.factorial(5))
    assert shapley_credit(solved).sum() == pytest.approx(solved.any(1).sum())


def test_majority_at_k_of_all_samples_is_exact_and_shares_ties() -> None:
    answers: list[list[str | None]] = [
        ["5", "5", "6"],
        ["1", "2", None],
        [None, None, None],
        ["7", "8", "8"],
    ]
    correct = [[True, True, False], [True, False, False], [False] * 3, [True, False, False]]
    assert majority_at_k(answers, correct, 3) == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    # One sample of each: its share of right ones.
    assert majority_at_k(answers, correct, 1, draws=20_000) == pytest.approx(
        (2 / 3 + 1 / 3 + 0 + 1 / 3) / 4, abs=0.01
    )
    with pytest.raises(ValueError, match="between 1 and the 3"):
        majority_at_k(answers, correct, 4)


@pytest.mark.parametrize(("num", "points"), [(300, 6.5), (500, 5.3)])
def test_detectable_difference_has_the_power_it_is_asked_for(num: int, points: float) -> None:
    difference = detectable_difference(num, 0.15)
    assert 100 * difference == pytest.approx(points, abs=0.4)
    gain = (1 + difference / 0.15) / 2
    changed = RANDOM.binomial(num, 0.15, 4_000)
    gained = RANDOM.binomial(changed, gain)
    p_values = [
        stats.binomtest(int(a), int(n)).pvalue if n else 1.0
        for a, n in zip(gained, changed, strict=True)
    ]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.8, abs=0.03)
    assert detectable_difference(5, 0.1) == math.inf


SIMULATED = 2_000


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
def test_wilson_interval_holds_the_true_share_in_95_of_100(share: float) -> None:
    correct = RANDOM.binomial(200, share, SIMULATED)
    intervals = [wilson_interval(int(count), 200) for count in correct]
    assert np.mean([low <= share <= high for low, high in intervals]) == pytest.approx(
        0.95, abs=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.5, 0.7])
def test_paired_difference_holds_the_true_one_in_95_of_100(gain: float) -> None:
    true, held = 0.15 * (2 * gain - 1), 0
    for _ in range(SIMULATED):
        changed = RANDOM.random(300) < 0.15
        gains = RANDOM.random(300) < gain
        base = np.where(changed, ~gains, True)
        tuned = np.where(changed, gains, True)
        _, low, high = paired_difference(base, tuned)
        held += low <= true <= high
    assert held / SIMULATED == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
def test_exact_mcnemar_is_never_too_often_significant() -> None:
    changed = RANDOM.binomial(300, 0.15, SIMULATED)
    gained = RANDOM.binomial(changed, 0.5)
    p_values = [
        exact_mcnemar(
            [False] * int(a) + [True] * int(n - a), [True] * int(a) + [False] * int(n - a)
        )
        for a, n in zip(gained, changed, strict=True)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.055


@pytest.mark.slow
def test_clustered_bootstrap_holds_the_mean_where_a_plain_one_does_not() -> None:
    held, plainly = 0, 0
    for seed in range(400):
        correct, questions = clustered(80, 10, RANDOM)
        _, low, high = clustered_bootstrap(correct, questions, draws=500, seed=seed)
        held += low <= 0.4 <= high  # the mean of beta(0.6, 0.9)
        _, low, high = clustered_bootstrap(correct, np.arange(800), draws=300, seed=seed)
        plainly += low <= 0.4 <= high
    assert held / 400 == pytest.approx(0.945, abs=0.03)
    assert plainly / 400 < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_interval_holds_the_mean_in_95_of_100(seeds: int) -> None:
    drawn = RANDOM.normal(0.03, 0.02, (SIMULATED, seeds))
    held = [low <= 0.03 <= high for _, low, high in map(seeds_interval, drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_shares_of_groups_that_differ_by_chance_are_shrunk_to_the_mean() -> None:
    shrunk = shrunk_shares([5, 5, 5], [10, 10, 10])
    assert shrunk.tolist() == [0.5, 0.5, 0.5]
    assert shrunk_shares([1, 0], [1, 1]).tolist() == [0.5, 0.5]
    assert shrunk_shares([3], [4]).tolist() == [0.75]


def test_shares_of_groups_that_differ_are_kept_where_there_are_many_tries() -> None:
    shrunk = shrunk_shares([100, 900, 1], [1000, 1000, 2])
    assert shrunk[0] == pytest.approx(0.1, abs=0.01)
    assert shrunk[1] == pytest.approx(0.9, abs=0.01)
    assert abs(shrunk[2] - 0.5) < 0.01


def test_shrunk_shares_are_nearer_to_the_truth_than_the_raw_ones() -> None:
    random = np.random.default_rng(3)
    truth = random.beta(6, 6, size=400)
    tries = random.integers(3, 12, size=400)
    right = random.binomial(tries, truth)
    raw = ((right / tries - truth) ** 2).mean()
    shrunk = ((shrunk_shares(right, tries) - truth) ** 2).mean()
    best = (((right + 6) / (tries + 12) - truth) ** 2).mean()
    assert shrunk < raw / 2
    assert shrunk < 1.1 * best
