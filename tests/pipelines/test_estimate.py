"""The estimate from a probe: by hand, by formula, and by how often its intervals are right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.errors import InputError
from cluster.inference.schedule import DatasetQuota
from cluster.settings import content_of
from pipelines.planning.estimate import (
    Budget,
    CostSettings,
    Estimate,
    PlannedTraining,
    ProbedPredictions,
    ProbedQuestion,
    Range,
    Speed,
    Workload,
    check_budget,
    estimate_run,
    format_estimate,
    student_t_95,
)
from pipelines.planning.probe import tell_budget

FEW = ProbedPredictions((10, 10))
NO_ANSWERS = ProbedPredictions(())
ONE_GPU = Speed(
    tokens_per_s=1.0, num_workers_probed=1, num_workers=2, gpus_per_worker=0.5, start_s=30.0
)
THREE_DOLLARS = CostSettings(gpu_hour=3.0)


def question(
    num_tokens: int = 100,
    num_accepted: int = 1,
    dataset: str = "a",
    num_paths: int = 5,
    most_kept: int = 2,
) -> ProbedQuestion:
    return ProbedQuestion(
        dataset=dataset,
        num_paths=num_paths,
        num_generations=3 * num_paths,
        num_tokens=num_tokens,
        num_prompt_tokens=2 * num_tokens,
        num_accepted=num_accepted,
        num_kept=min(num_accepted, most_kept),
        num_learned_tokens=40 * min(num_accepted, most_kept),
        num_bytes=2**20,
        num_truncated=0,
    )


def workload(num_predictions: int = 2, **more: Any) -> Workload:
    plan: dict[str, Any] = {"num_questions": {"a": 4}, "paths_per_question": 5}
    return Workload(**plan | {"max_per_question": 2, "num_predictions": num_predictions, **more})


def estimate(
    *questions: ProbedQuestion,
    predictions: ProbedPredictions = FEW,
    speed: Speed = ONE_GPU,
    cost: CostSettings = THREE_DOLLARS,
    seed: int = 0,
    **more: Any,
) -> Estimate:
    return estimate_run(questions, predictions, workload(**more), speed, cost, seed)


def ends(range_: Range | None) -> tuple[float, float, float]:
    """All three numbers, which have to be known."""
    assert range_ is not None
    assert range_.value is not None
    assert range_.low is not None
    assert range_.high is not None
    return range_.value, range_.low, range_.high


def test_central_values_match_values_by_hand() -> None:
    got = estimate(question(100, 1), question(300, 3))

    # 100 + 300 tokens are there, two more questions at 200; 2 answers of each of 2 models at 10.
    assert got.tokens.value == pytest.approx(400 + 400 + 40)
    assert got.prompt_tokens.value == pytest.approx(1600)
    assert got.paths == 20
    assert got.generations.value == pytest.approx(60 + 4)
    assert got.accepted.value == pytest.approx(4 + 4)
    assert got.kept.value == pytest.approx((1 + 2) + 2 * 1.5)
    assert got.disk_gib.value == pytest.approx(4 / 1024)
    # Two workers, so 420 s, and 30 s for the engines of the base and of the tuned model.
    assert got.hours.value == pytest.approx(480 / 3600)
    assert ends(got.gpu_hours)[0] == pytest.approx(480 / 3600)
    assert ends(got.money)[0] == pytest.approx(0.4)
    assert got.cost_unit == "USD"
    assert got.cost_per_accepted.value == pytest.approx(0.05)
    (dataset,) = got.datasets
    assert (dataset.num_questions, dataset.num_probed) == (4, 2)
    assert dataset.tokens_per_path.value == pytest.approx(800 / 20)
    assert dataset.accepted_share.value == pytest.approx(8 / 20)


def training_of(*, rounds: int = 1, max_examples: int | None = None, **limits: Any) -> Estimate:
    """Of 40 questions each of which keeps two paths of 40 tokens, in batches of 8."""
    planned = PlannedTraining(tuple([3, 4][:rounds]), 8, **limits)
    return estimate(
        *[question(100, 2)] * 8,
        num_questions={"a": 40},
        rounds=rounds,
        max_examples=max_examples,
        training=planned,
    )


@pytest.mark.parametrize(
    ("limits", "kept", "steps"),
    [
        ({}, 80, 30),
        ({"max_examples": 16}, 16, 6),
        ({"max_steps": 12}, 80, 12),
        ({"max_steps": 99}, 80, 30),
        ({"max_learned_tokens": 3000}, 80, 10),  # 320 tokens in a step: 9.4
        ({"max_learned_tokens": 3000, "max_steps": 9}, 80, 9),
        ({"max_examples": 16, "rounds": 2}, 32, 6 + 8),
        ({"max_steps": 35, "rounds": 2}, 160, 30 + 35),
    ],
)
def test_training_is_as_long_as_its_examples_and_limits_allow(
    limits: dict[str, Any], kept: int, steps: int
) -> None:
    got = training_of(**limits)
    assert ends(got.kept)[0] == kept
    assert ends(got.steps)[0] == pytest.approx(steps)
    assert ends(got.learned_tokens)[0] == pytest.approx(steps * 320)
    is_unreached = steps < limits.get("max_steps", 0) * limits.get("rounds", 1)
    is_unreached = is_unreached and "max_learned_tokens" not in limits
    assert ("raise training.num_epochs" in " ".join(got.assumptions)) == is_unreached


def test_training_of_nothing_or_of_preferences_has_no_steps() -> None:
    assert estimate(question(100, 2), question(100, 1)).steps is None
    nothing = estimate(question(100, 0), question(100, 0), training=PlannedTraining((3,), 8))
    assert nothing.steps is not None
    assert nothing.steps.value == 0
    assert nothing.learned_tokens is not None
    assert nothing.learned_tokens.value is None


def test_rounds_cost_what_the_first_does() -> None:
    probed = [question(100, 1), question(300, 3), question(300, 2)]
    one = estimate(*probed, predictions=NO_ANSWERS, num_predictions=0)
    two = estimate(
        *probed, predictions=NO_ANSWERS, num_predictions=0, rounds=2, num_models_predicted=3
    )
    assert ends(two.tokens) == pytest.approx([2 * end for end in ends(one.tokens)])
    assert ends(two.kept) == pytest.approx([2 * end for end in ends(one.kept)])
    # The paths of two rounds and two tuned models, 30 s each.
    assert two.hours.value == pytest.approx((ends(two.tokens)[0] / 2 + 4 * 30) / 3600)


def test_what_was_probed_is_certain() -> None:
    got = estimate(question(100, 0), question(300, 5), num_questions={"a": 2}, num_predictions=1)
    for range_ in (got.tokens, got.accepted, got.kept, got.hours, got.money):
        value, low, high = ends(range_)
        assert low == value == high
    assert got.tokens.value == 420
    # And what is there already is the least there can be.
    assert estimate(question(100), question(300)).tokens.low == 420


def test_interval_is_that_of_a_sample_without_replacement() -> None:
    tokens = np.random.default_rng(5).normal(1000, 200, 40).round()
    got = estimate(
        *(question(int(num)) for num in tokens),
        predictions=NO_ANSWERS,
        num_questions={"a": 100},
        num_predictions=0,
    )
    value, low, high = ends(got.tokens)
    # Cochran (1977): sqrt(N (N - n) / n) s, and Student's t with 39 degrees of freedom.
    half = 1.685 * math.sqrt(100 * 60 / 40) * tokens.std(ddof=1)
    assert value - low == pytest.approx(half, rel=0.1)
    assert high - value == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize(
    ("freedom", "quantile", "error"),
    [(1, 6.314, 0.06), (2, 2.920, 0.004), (5, 2.015, 1e-3), (19, 1.729, 1e-3), (1e9, 1.645, 1e-3)],
)
def test_student_quantile_matches_the_tables(freedom: float, quantile: float, error: float) -> None:
    assert student_t_95(freedom) == pytest.approx(quantile, rel=error)


def test_intervals_are_the_same_for_the_same_seed() -> None:
    probed = [question(100 * number, number % 4) for number in range(1, 9)]
    first, again, other = (
        estimate(*probed, num_questions={"a": 500}, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert ends(other.tokens) == pytest.approx(ends(first.tokens), rel=0.1)


@pytest.mark.parametrize("num_probed", [1, 10, 20])
def test_no_accepted_path_gives_the_rule_of_three_over_questions(num_probed: int) -> None:
    got = estimate(*[question(100, 0)] * num_probed, num_questions={"a": 1000})
    value, low, high = ends(got.accepted)
    assert value == low == 0
    # At most 1 - 0.05^(1/n) of the other questions are of a kind with right paths, all 5 of them.
    share = 1 - 0.05 ** (1 / num_probed)
    assert high == pytest.approx(share * (1000 - num_probed) * 5, rel=0.01)
    assert ends(got.kept)[2] == pytest.approx(share * (1000 - num_probed) * 2, rel=0.01)


def test_no_accepted_path_costs_at_least_so_much() -> None:
    got = estimate(*[question(100, 0)] * 10, num_questions={"a": 1000})
    cost = got.cost_per_accepted
    assert cost.value is None
    assert cost.high is None
    assert cost.low == pytest.approx(ends(got.money)[0] / ends(got.accepted)[2], rel=0.01)
    assert f"unknown [{cost.low:.3g}, unknown]" in format_estimate(got)


def test_all_paths_accepted_has_a_lower_limit_below_it() -> None:
    got = estimate(*[question(100, 5)] * 10, num_questions={"a": 1000})
    value, low, high = ends(got.accepted)
    assert value == high == 5000
    assert low == pytest.approx(5000 - (1 - 0.05 ** (1 / 10)) * 990 * 5, rel=0.01)


def test_dataset_without_probed_questions_is_taken_to_be_like_all() -> None:
    probed = [question(tokens, 1, "a") for tokens in (90, 100, 110)]
    probed += [question(tokens, 4, "b") for tokens in (290, 300, 310)]
    got = estimate(*probed, num_questions={"a": 100, "b": 100, "c": 100})
    known = estimate(*probed, num_questions={"a": 100, "b": 200})
    by_name = {dataset.dataset: dataset for dataset in got.datasets}
    value, low, high = ends(by_name["c"].tokens_per_path)
    assert value == pytest.approx(200 / 5)
    # It may be like either of the two, and they differ far more than their own questions do.
    assert low < 110 / 5
    assert high > 290 / 5
    assert ends(got.tokens)[2] - ends(got.tokens)[1] > 2 * (
        ends(known.tokens)[2] - ends(known.tokens)[1]
    )
    assert by_name["c"].num_probed == 0
    assert any("probed in c:" in sentence for sentence in got.assumptions)


def test_datasets_with_one_probed_question_each_are_pooled() -> None:
    names = [f"task{number}" for number in range(10)]
    probed = [question(100 + 10 * number, 2, name) for number, name in enumerate(names)]
    value, low, high = ends(estimate(*probed, num_questions=dict.fromkeys(names, 50)).tokens)
    assert value == pytest.approx(sum(range(100, 200, 10)) + 10 * 49 * 145 + 40)
    assert 0.7 * value < low < 0.95 * value
    assert 1.05 * value < high < 1.3 * value


def test_one_question_leaves_the_interval_of_tokens_unknown() -> None:
    got = estimate(question(100, 2), num_questions={"a": 100})
    assert got.tokens == Range(100 * 100 + 40, None, None)
    assert got.hours.high is None
    value, low, high = ends(got.accepted)
    assert 2 <= low < value < high <= 2 + 99 * 5
    assert "10,000 [unknown, unknown]" in format_estimate(got)


def test_nothing_probed_is_unknown() -> None:
    got = estimate(predictions=NO_ANSWERS)
    nothing = Range(None, None, None)
    assert got.tokens == got.hours == got.money == got.disk_gib == nothing
    assert got.accepted.value is None
    assert "| generated tokens           | unknown" in format_estimate(got)
    (warning,) = check_budget(got, Budget(max_hours=1.0))
    assert "cannot tell" in warning


@pytest.mark.parametrize(
    ("share", "num_begun"),
    [
        (DatasetQuota(), 1000),
        (DatasetQuota(max_tokens=1050), 11),
        (DatasetQuota(max_accepted=40), 20),
        (DatasetQuota(max_tokens=5000, max_accepted=40), 20),
        (DatasetQuota(max_tokens=10), 2),
    ],
)
def test_dataset_with_limits_is_taken_to_end_there(share: DatasetQuota, num_begun: int) -> None:
    probed = [question(num_tokens=100, num_accepted=n) for n in (1, 3)]
    made = estimate(*probed, num_questions={"a": 1000}, shares={"a": share})
    assert made.paths == 5 * num_begun
    assert made.datasets[0].num_questions == num_begun
    assert any("stop at the limits" in said for said in made.assumptions) == (num_begun < 1000)


def two_datasets() -> list[ProbedQuestion]:
    """Questions of 100 tokens, and of 300."""
    return [
        question(tokens, accepted, name)
        for name, tokens in (("a", 100), ("b", 300))
        for accepted in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("max_tokens", "shares", "begun"),
    [
        (None, {}, (500, 500)),
        (10**9, {}, (500, 500)),
        (40_000, {}, (100, 100)),
        # Three of `a`, with 300 tokens, for each one of `b`, which has as many.
        (60_000, {"a": DatasetQuota(weight=3)}, (300, 100)),
        # A dataset that ends at its own limit leaves the rest to the other.
        (40_000, {"b": DatasetQuota(max_tokens=3_000)}, (370, 10)),
        # One that has no more questions does, too.
        (160_000, {"a": DatasetQuota(weight=3)}, (500, 367)),
        # What was probed is there.
        (100, {}, (3, 3)),
    ],
)
def test_bound_over_all_datasets_ends_them_in_their_turns(
    max_tokens: int | None, shares: dict[str, DatasetQuota], begun: tuple[int, int]
) -> None:
    sizes = {"a": 500, "b": 500}
    got = estimate(*two_datasets(), num_questions=sizes, shares=shares, max_tokens=max_tokens)
    assert tuple(dataset.num_questions for dataset in got.datasets) == begun
    assert got.paths == 5 * sum(begun)
    said = any("stop at budget.generated_tokens or" in one for one in got.assumptions)
    assert said == (max_tokens is not None and begun != (500, 500))


def test_bound_is_what_the_tokens_of_all_rounds_end_at() -> None:
    probed = [question(tokens, 2) for tokens in (95, 100, 105)]
    more: dict[str, Any] = {"predictions": NO_ANSWERS, "num_predictions": 0, "rounds": 3}
    free = estimate(*probed, num_questions={"a": 1000}, **more)
    low, high = ends(free.tokens)[1:]
    assert 150_000 < low < 300_000 < 303_000 < high
    bound = estimate(*probed, num_questions={"a": 1000}, max_tokens=50_000, **more)
    assert ends(bound.tokens) == (150_000, 150_000, 150_000)
    # Either all questions end below the bound, or it is reached.
    near = estimate(*probed, num_questions={"a": 1000}, max_tokens=101_000, **more)
    assert ends(near.tokens) == pytest.approx((300_000, low, 303_000))
    assert ends(bound.hours)[1] < ends(free.hours)[1]


def test_bound_with_nothing_probed_is_unknown() -> None:
    assert estimate(predictions=NO_ANSWERS, max_tokens=100).tokens == Range(None, None, None)


def test_more_probed_than_there_is_gets_refused() -> None:
    with pytest.raises(ValueError, match="5 questions were probed out of 4"):
        estimate(*[question()] * 5)


# --- how often the intervals are right ---------------------------------------------------------

PROBES = 200


def population(rng: np.random.Generator, dataset: str, num: int) -> list[ProbedQuestion]:
    """Questions with different difficulties (U-shaped), each shared by its 25 paths."""
    easiness = rng.beta(0.5, 1.0, num)
    accepted = rng.binomial(25, easiness)
    tokens = rng.lognormal(math.log(8000), 0.4, num) * (1.5 - easiness)
    return [
        question(int(length), int(right), dataset, num_paths=25, most_kept=5)
        for length, right in zip(tokens, accepted, strict=True)
    ]


@pytest.mark.parametrize("per_dataset", [{"a": 20}, {"a": 7, "b": 7, "c": 6}])
def test_intervals_of_90_percent_hold_the_truth_about_as_often(
    per_dataset: dict[str, int],
) -> None:
    rng = np.random.default_rng(3)
    everything = {name: population(rng, name, 700) for name in per_dataset}
    asked = [q for of_dataset in everything.values() for q in of_dataset]
    truths = {
        "tokens": sum(q.num_tokens for q in asked),
        "accepted": sum(q.num_accepted for q in asked),
        "kept": sum(q.num_kept for q in asked),
    }
    held = dict.fromkeys(truths, 0)
    for _ in range(PROBES):
        probed = [
            everything[name][number]
            for name, num in per_dataset.items()
            for number in rng.choice(700, num, replace=False)
        ]
        got = estimate(
            *probed,
            predictions=NO_ANSWERS,
            num_questions=dict.fromkeys(per_dataset, 700),
            paths_per_question=25,
            max_per_question=5,
            num_predictions=0,
        )
        for name, truth in truths.items():
            _, low, high = ends(getattr(got, name))
            held[name] += low <= truth <= high
    assert all(0.8 <= num / PROBES <= 0.97 for num in held.values()), held


# --- money and what a person sees --------------------------------------------------------------


def test_without_a_price_cost_is_in_gpu_hours_and_without_gpus_in_seconds() -> None:
    probed = [question(100, 1), question(300, 3)]
    free = estimate(*probed, cost=CostSettings())
    assert free.money is None
    assert free.cost_unit == "GPU-hours"
    assert free.cost_per_accepted.value == pytest.approx(480 / 3600 / 8)
    assert "USD" not in format_estimate(free)
    laptop = estimate(*probed, speed=replace(ONE_GPU, gpus_per_worker=0.0))
    assert laptop.gpu_hours is None
    assert laptop.money is None
    assert laptop.cost_unit == "seconds"
    assert laptop.cost_per_accepted.value == pytest.approx(60.0)


def test_budget_is_checked_against_the_central_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    got = estimate(*[question(num, 1) for num in (80, 90, 100, 110, 120)], num_questions={"a": 900})
    value, _, high = ends(got.hours)
    assert check_budget(got, Budget()) == []
    assert check_budget(got, Budget(max_hours=high + 0.1)) == []
    (warning,) = check_budget(got, Budget(max_hours=value))
    assert "may not be enough" in warning
    tell_budget(got, Budget(max_hours=value))
    assert capsys.readouterr().out == f"budget: {warning}\n"
    with pytest.raises(InputError, match=r"estimated to take 12\.5 \[.*\] hours, but") as error:
        check_budget(got, Budget(max_hours=value - 0.1))
    assert "budget.max_hours is 12.4" in str(error.value)
    assert "synthesis.guidelines_per_question" in str(error.value)


@pytest.mark.parametrize(
    ("budget", "named"),
    [(Budget(max_gpu_hours=0.1), "GPU-hours"), (Budget(max_money=0.3), "USD")],
)
def test_gpu_hours_and_money_have_budgets_too(budget: Budget, named: str) -> None:
    with pytest.raises(InputError, match=rf"{named}, but budget\.max_"):
        check_budget(estimate(question(100), question(300)), budget)


def test_budget_of_money_needs_a_price() -> None:
    got = estimate(question(100), question(300), cost=CostSettings())
    with pytest.raises(InputError, match=r"set cost\.gpu_hour"):
        check_budget(got, Budget(max_money=1e6))


def test_budget_with_an_unknown_upper_end_warns() -> None:
    (warning,) = check_budget(estimate(question(100)), Budget(max_hours=1.0))
    assert "cannot tell whether" in warning


def test_budget_of_tokens_refuses_nothing() -> None:
    assert not Budget(generated_tokens=1).can_refuse
    assert Budget(max_hours=1.0).can_refuse
    assert check_budget(estimate(question(100), question(300)), Budget(generated_tokens=1)) == []


def test_settings_change_nothing_that_was_made() -> None:
    assert content_of(Budget(generated_tokens=5)) == {}
    assert Budget.model_validate_json('{"max_hours": 8}').max_hours == 8
    assert content_of(Budget(max_hours=1.0)) == content_of(CostSettings(gpu_hour=1.0)) == {}


def test_format_holds_the_numbers_and_what_was_assumed() -> None:
    probed = [question(100 * num, num % 5, "gsm8k") for num in range(1, 11)]
    got = estimate(*probed, num_questions={"gsm8k": 7000})
    text = format_estimate(got)
    assert text.startswith("estimated from 10 of 7,000 questions, 90 % intervals")
    for title, range_ in (("generated tokens", got.tokens), ("accepted paths", got.accepted)):
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {title} "))
        for end in ends(range_):
            assert f"{float(f'{end:.3g}'):,.0f}" in line
    assert "| paths                      | 35,000 " in text
    assert "| gsm8k   | 7,000     | 10     | 110 [" in text
    assert all(sentence in " ".join(text.split()) for sentence in got.assumptions)
    assert "2 workers are assumed to be 2 times as fast as the 1 of the probe" in " ".join(
        text.split()
    )
    assert "not estimated" in text
    assert max(map(len, text.splitlines())) <= 120


def test_workers_of_the_probe_and_a_single_model_leave_nothing_to_assume_of_others() -> None:
    alike = replace(ONE_GPU, num_workers_probed=2)
    alone = estimate(question(), question(), speed=alike, num_models_predicted=1)
    said = " ".join(alone.assumptions)
    assert "linear scaling" not in said
    assert "Later rounds and tuned models" not in said
    assert "linear scaling" in " ".join(estimate(question(), question()).assumptions)


def test_price_of_what_was_done_is_an_event_only_where_it_is_known() -> None:
    assert CostSettings().of(2, 1800) == {"gpu_hours": 1.0}
    euros = CostSettings(gpu_hour=3.0, currency="EUR")
    assert euros.of(2, 1800) == {"gpu_hours": 1.0, "money": 3.0, "currency": "EUR"}
