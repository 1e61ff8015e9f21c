"""The numbers behind the page: verdicts, seeds, what is detectable, decisions, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest

from cluster.store.folder import Folder
from cluster.store.step import STEPS_FILE
from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.statistics import (
    Interval,
    detectable_difference,
    exact_mcnemar,
    paired_difference,
    split_half_reliability,
)
from pipelines.report.answers import ModelAnswers
from pipelines.report.arms import OverSeeds, arm_of, arms_of, claims_over_seeds, partners_of
from pipelines.report.comparisons import declared_comparisons, detectable, p_of_interval
from pipelines.report.content import as_columns, report_data
from pipelines.report.execution import MOST_POINTS, rate_rows, thinned, training_rows
from pipelines.report.verdict import Claim, judge, verdict_of
from pipelines.report.write import write_own_report
from pipelines.stored_run import StoredRun
from tests.report.invented_run import DECISION, Invented, invented_run, with_decision


@pytest.mark.parametrize(
    ("interval", "adjusted", "expected"),
    [
        (Interval(0.1, 0.05, 0.15), 0.001, "shown"),
        (Interval(0.1, 0.05, 0.15), 0.051, "not shown"),  # after the correction
        (Interval(0.1, -0.01, 0.2), 0.04, "not shown"),
        (Interval(-0.1, -0.15, -0.05), 0.001, "worse"),
        (Interval(0.0, 0.0, 0.0), 1.0, "not shown"),
    ],
)
def test_verdict_needs_the_corrected_p_value_and_the_interval(
    interval: Interval, adjusted: float, expected: str
) -> None:
    assert verdict_of(interval, adjusted) == expected


def test_claims_over_seeds_are_not_corrected_for_those_of_single_checkpoints() -> None:
    gain = Interval(0.1, 0.02, 0.18)
    over_seeds, *others = [
        Claim("a", "in_domain", "strict", 1, 100, seeds, gain, p_value=0.02, others={})
        for seeds in (3, 1, 1, 1)
    ]
    judged = judge([over_seeds, *others])
    assert [each["adjusted"] for each in judged] == pytest.approx([0.02, 0.06, 0.06, 0.06])
    assert [each["verdict"] for each in judged] == ["shown"] + 3 * ["not shown"]


def test_detectable_is_close_to_the_exact_power_of_mcnemar() -> None:
    base = np.repeat([1, 1, 0, 0], [300, 60, 60, 580])
    tuned = np.repeat([1, 0, 1, 0], [300, 60, 60, 580])
    exact = detectable_difference(1000, 0.12)
    assert detectable(paired_difference(base, tuned)) == pytest.approx(exact, rel=0.1)


def test_p_value_of_an_interval_is_close_to_the_exact_one() -> None:
    base = np.repeat([1, 1, 0, 0], [300, 40, 70, 590])
    tuned = np.repeat([1, 0, 1, 0], [300, 40, 70, 590])
    found = p_of_interval(paired_difference(base, tuned))
    assert found == pytest.approx(exact_mcnemar(base, tuned), rel=0.35)
    assert p_of_interval(Interval(0.0, -0.1, 0.1)) == 1.0


@pytest.mark.parametrize(("gain", "expected"), [(0.0, 1.0), (0.25, 0.0)])
def test_p_value_of_what_never_varies_is_that_of_its_value(gain: float, expected: float) -> None:
    assert p_of_interval(Interval(gain, gain, gain)) == expected
    same = OverSeeds("a", "a", "gain", "in_domain", "strict", 100, {"one": gain, "two": gain})
    [claim] = claims_over_seeds([same])
    assert (claim.difference, claim.p_value) == (Interval(gain, gain, gain), expected)


def test_reliability_is_high_for_groups_that_differ_and_low_for_chance() -> None:
    random = np.random.default_rng(0)
    tries = np.full((400, 12), 2)
    skills = random.binomial(2, np.tile(np.linspace(0.2, 0.8, 12), (400, 1)))
    chance = random.binomial(2, 0.5, (400, 12))
    high, low = (split_half_reliability(right, tries) for right in (skills, chance))
    assert high is not None
    assert low is not None
    assert high > 0.95
    assert 0 <= low < 0.6
    assert split_half_reliability(np.zeros((10, 12)), np.ones((10, 12))) is None
    assert split_half_reliability(skills[:, :2], tries[:, :2]) is None


def test_numbers_of_the_page_are_those_of_the_files(tmp_path: Path) -> None:
    run = invented_run(tmp_path, rounds=1)
    data = report_data([run])
    rows = run.table("round_0/paths").to_pylist()
    paths = [path for row in rows for path in row["paths"]]
    sums: dict[str, int] = {}
    for row in _records(data, "funnel"):
        sums[row["stage"]] = sums.get(row["stage"], 0) + row["number"]
    assert sums["paths"] == len(paths)
    assert sums["right"] == sum(path["verdict"] == "correct" for path in paths)
    scores = {row["task"]: row for row in run.table("round_0/scores").to_pylist()}
    found = [
        row
        for row in _records(data, "comparisons")
        if row["reading"] == "strict" and row["task"] not in ("all", "mean")
    ]
    assert len(found) == 4
    for row in found:
        stored = scores[row["task"]]
        assert row["num_pairs"] == stored["num_questions"]
        assert row["difference"] == pytest.approx(stored["strict_difference"], abs=1e-6)
        assert row["low"] == pytest.approx(stored["strict_difference_low"], abs=1e-6)
    [claim] = [each for each in data["verdict"] if each["group"] == "in_domain"]
    assert (claim["num_tasks"], claim["num_seeds"]) == (2, 1)
    tasks = [scores[name]["strict_difference"] for name in ("arithmetic", "word_problems")]
    assert claim["value"] == pytest.approx(sum(tasks) / 2, abs=1e-6)


def _records(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    table = data["tables"][name]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_runs_that_differ_in_seeds_are_one_arm(tmp_path: Path) -> None:
    runs = [
        invented_run(tmp_path, name=f"run_{seed}", seed=seed, rounds=1, num_train=4, num_test=20)
        for seed in (0, 1)
    ]
    other = invented_run(tmp_path, name="other", rounds=1, num_test=4, guidelines_per_question=3)
    arms = [arm_of(run.config) for run in (*runs, other)]
    assert arms[0] == arms[1] != arms[2]
    data = report_data(runs)
    assert data["verdict"][0]["num_seeds"] == 2
    assert "run_1 (round 0) \N{MINUS SIGN} run_0 (round 0)" not in [
        c["name"] for c in data["verdict"]
    ]


def _arm_runs(root: Path, arms: dict[str, list[int]]) -> list[StoredRun]:
    """Runs of arms that differ in their number of guidelines, with these seeds."""
    return [
        invented_run(
            root,
            name=f"{arm}_s{seed}",
            seed=seed,
            rounds=1,
            num_train=2,
            num_test=30,
            guidelines_per_question=2 + number,
        )
        for number, (arm, seeds) in enumerate(arms.items())
        for seed in seeds
    ]


def test_difference_of_arms_is_the_t_interval_over_the_seeds_they_share(tmp_path: Path) -> None:
    runs = _arm_runs(tmp_path, {"plain": [0, 1, 2, 5], "guided": [2, 0, 1]})
    data = report_data(runs)
    shares = {
        (row["run"], row["group"]): row["value"]
        for row in _records(data, "measures")
        if row["metric"] == "accuracy"
        and (row["model"], row["reading"], row["split"]) == ("round 0", "strict", "test")
        and row["task"] == {"in_domain": "mean"}.get(row["group"], row["task"])
    }
    rows = [row for row in _records(data, "arms") if row["reading"] == "strict"]
    for group in ("in_domain", "out_of_domain"):
        expected = [shares[f"guided_s{s}", group] - shares[f"plain_s{s}", group] for s in range(3)]
        own = [r for r in rows if (r["quantity"], r["group"]) == ("difference", group)]
        [mean] = [row for row in own if row["run"] == ""]
        of_seeds = {row["run"]: row["value"] for row in own if row["run"]}
        named = {f"guided_s{s}": pytest.approx(e, abs=1e-5) for s, e in enumerate(expected)}
        assert of_seeds == named
        half = 4.302653 * np.std(expected, ddof=1) / 3**0.5  # of t with 2 degrees of freedom
        assert mean["value"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert mean["high"] - mean["low"] == pytest.approx(2 * half, abs=1e-5)
        [claim] = [
            each
            for each in data["verdict"]
            if each["name"] == "guided \N{MINUS SIGN} plain" and each["group"] == group
        ]
        assert claim["num_seeds"] == 3
    scores = [row for row in rows if row["quantity"] == "score" and row["run"] == "plain_s5"]
    assert {row["group"]: row["value"] for row in scores} == {
        group: pytest.approx(shares["plain_s5", group], abs=1e-5)
        for group in ("in_domain", "out_of_domain")
    }


def test_arms_without_two_common_seeds_have_no_interval_of_their_difference(tmp_path: Path) -> None:
    data = report_data(_arm_runs(tmp_path, {"plain": [0, 1], "guided": [1, 2]}))
    assert {row["quantity"] for row in _records(data, "arms")} == {"gain", "score"}
    of_runs = {row["comparison"] for row in _records(data, "comparisons") if row["kind"] == "runs"}
    assert of_runs == {
        "guided_s1 (round 0) \N{MINUS SIGN} plain_s1 (round 0)",
        "guided_s2 (round 0) \N{MINUS SIGN} plain_s0 (round 0)",
    }


def test_run_with_the_same_settings_and_seeds_is_compared_and_is_no_further_seed() -> None:
    config = {"run": "a", "synthesis": {"seed": 1}}
    configs = {"a": config, "b": config | {"run": "b"}}
    assert partners_of(configs) == {"b": "a"}
    [arm] = arms_of(configs)
    assert list(arm.runs.values()) == ["a"]
    assert partners_of({}) == {}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["regenesis_s0", "regenesis_s1"], "regenesis"),
        (["direct-seed-1", "direct-seed-12"], "direct"),
        (["one", "two"], "one, two"),
        (["class0", "class1"], "class0, class1"),  # nothing says where its name ends
        (["alone_1"], "alone_1"),
    ],
)
def test_arm_is_named_after_what_its_runs_have_in_common(runs: list[str], expected: str) -> None:
    configs = {name: {"synthesis": {"seed": n}} for n, name in enumerate(runs)}
    assert [arm.name for arm in arms_of(configs)] == [expected]


def test_rounds_have_the_alarms_and_decisions_that_the_run_recorded(tmp_path: Path) -> None:
    run = invented_run(tmp_path, rounds=2, num_train=4, num_test=4)
    assert report_data([run])["decisions"] == []
    data = report_data([with_decision(run)])
    [decided] = data["decisions"]
    assert (decided["round"], decided["alarms"]) == (1, DECISION["alarms"])
    assert [line.partition(":")[0] for line in decided["lines"]] == ["round 1", "round 1"]
    assert "is not adopted" in decided["lines"][1]
    shown = {(row["metric"], row["round"]): row["value"] for row in _records(data, "rounds")}
    assert shown["diversity of the paths of a question", 1] == 0.12
    assert not any("votes" in metric for metric, _ in shown)


def test_rate_is_not_taken_over_two_pools() -> None:
    def rate(minute: int, tokens: int) -> dict[str, Any]:
        return {"at": f"2026-11-29T08:{minute:02}:00Z", "event": "rate", "tokens": tokens}

    ended = {"at": "2026-11-29T08:02:30Z", "event": "generated"}
    rows = rate_rows([rate(1, 0), rate(2, 600), ended, rate(3, 0), rate(4, 1200)])
    assert [row["tokens_per_s"] for row in rows] == [10.0, 20.0]


def test_step_that_was_trained_twice_counts_as_it_was_recorded_last() -> None:
    events = [
        {"at": "", "event": "training_rate", "model": "m", "step": step, "loss": loss}
        for step, loss in ((1, 2.0), (2, 1.5), (2, 1.4))
    ]
    assert [(row["step"], row["value"]) for row in training_rows(events)] == [(1, 2.0), (2, 1.4)]


def test_long_curve_keeps_its_ends() -> None:
    rows = [{"step": number} for number in range(10_001)]
    found = thinned(rows)
    assert len(found) == MOST_POINTS
    assert (found[0], found[-1]) == (rows[0], rows[-1])


def test_what_json_cannot_hold_becomes_null_and_long_texts_are_cut() -> None:
    rows: list[dict[str, Any]] = [{"a": float("inf"), "b": "x" * 5000}, {"a": float("nan"), "c": 1}]
    table = as_columns(rows)
    assert table["columns"] == ["a", "b", "c"]
    assert [row[0] for row in table["rows"]] == [None, None]
    assert len(table["rows"][0][1]) == 1001
    json.dumps(table, allow_nan=False)


def test_settings_and_places_are_redacted(tmp_path: Path) -> None:
    run = invented_run(tmp_path, rounds=1, num_train=1, num_test=1)
    text = json.dumps(report_data([run]))
    assert str(tmp_path) not in text
    assert "/models/" not in text
    assert Invented().name in text


def test_models_that_were_asked_nothing_in_common_are_not_compared() -> None:
    def model(run: str, *numbers: int) -> ModelAnswers:
        asked = [
            Question(f"t/test/{n}", "t", "test", "in_domain", f"{n}?", "1", "number")
            for n in numbers
        ]
        predictions = [Prediction(each, "1", finish_reason="stop").graded() for each in asked]
        return ModelAnswers(run, "round 0", "round_0/predictions", 0, None, predictions)

    one, two, three = model("one", 1, 2), model("two", 2, 3), model("three", 3)
    runs = {"one": [one], "two": [two], "three": [three]}
    declared = declared_comparisons(runs, {"two": "one", "three": "one"})
    assert [each.name for each in declared] == ["two (round 0) \N{MINUS SIGN} one (round 0)"]


def test_report_of_ones_own_is_written_beside_the_results_and_its_failure_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = invented_run(tmp_path, rounds=1, num_train=2, num_test=2)
    file = Path(run.folder.path) / "report.html"
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    write_own_report(Folder(store, "invented"))
    assert capsys.readouterr().out == ""  # a browser could not open it in a store
    assert not file.exists()
    write_own_report(run.folder)
    assert capsys.readouterr().out == f"open {file}\n"
    assert "data-report" in file.read_text()
    file.unlink()
    run.folder.delete_files([STEPS_FILE])
    write_own_report(run.folder)
    said = capsys.readouterr().out
    assert said.startswith("note: the report could not be written (")
    assert said.endswith("); the results are complete\n")
    assert not file.exists()
