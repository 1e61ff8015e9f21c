"""How often a gate adopts and an alarm is raised, over many simulated rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluation.predictions import Prediction
from evaluation.question import Question
from evaluation.readings import Reading
from evaluation.statistics import paired_difference, questions_for_margin
from pipelines.rounds.decide import decision_of
from pipelines.rounds.gate import gate_results, is_held, pairs_of, rights
from pipelines.rounds.measures import alarms, measure_paths
from pipelines.rounds.settings import AfterRoundSettings, AlarmSettings, GateSettings

GATE = GateSettings(tasks=("g",))
NEEDED = questions_for_margin(GATE.margin, GATE.discordant, power=GATE.power)
MEASURES: Mapping[str, float | None] = {"generated_tokens": 10.0, "solved": 0.5}


def answers(right: Any, task: str = "g", domain: Any = "out_of_domain") -> dict[str, Prediction]:
    found = {}
    for number, is_right in enumerate(right):
        name = f"{task}/dev/{number:05d}"
        question = Question(name, task, "dev", domain, f"q{number}", "1", "number")
        verdict = "correct" if is_right else "wrong"
        found[name] = Prediction(question, "1", verdict=verdict, read_as="boxed")
    return found


def drawn(rng: np.random.Generator, num: int, change: float, discordant: float) -> Any:
    """Base and tuned: half of the base is right; `discordant` of the answers differ, and the share
    right changes by `change` on average."""
    base = np.arange(num) < num // 2
    lost = 2 * (discordant - change) / 2  # of the right ones
    gained = 2 * (discordant + change) / 2
    flips = rng.random(num) < np.where(base, lost, gained)
    return base, base ^ flips


def share_adopted(change: float, discordant: float = 0.15, rounds: int = 2_000) -> float:
    """By the rule itself: `gate_results` on objects gives the same, see below."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(rounds):
        base, tuned = drawn(rng, NEEDED, change, discordant)
        held += paired_difference(base, tuned).low > -GATE.margin
    return held / rounds


def test_gate_adopts_what_it_should() -> None:
    found = {change: share_adopted(change) for change in (-0.15, -0.1, -0.05, 0.0, 0.05)}
    for change, share in found.items():
        print(f"| {100 * change:+.0f} | {100 * share:.1f} % |")
    assert found[-0.15] == 0.0
    assert found[-0.1] < 0.01
    assert found[-0.05] < 0.035, "at the margin itself the level is 2.5 %"
    assert 0.77 < found[0.0] < 0.86, "the power that the number of questions was chosen for"
    assert found[0.05] > 0.99


@pytest.mark.parametrize("change", [-0.12, -0.03, 0.0, 0.1])
def test_gate_is_that_rule(change: float) -> None:
    base, tuned = drawn(np.random.default_rng(1), NEEDED, change, 0.15)
    [result] = gate_results(GATE, answers(tuned), {"base": answers(base)}, "strict")
    low = paired_difference(base, tuned).low
    assert result.holds == (low > -GATE.margin)
    assert is_held([result]) == result.holds
    assert result.num_questions == NEEDED == 471


def test_gate_on_a_forced_reading_sees_no_gain_in_format() -> None:
    """The tuned model only learned to write its answers; behind the cue both know the same."""

    def read(right: Any, known: Any) -> dict[str, Prediction]:
        forced = [Reading("Answer:", "1", verdict="correct" if k else "wrong") for k in known]
        forced[0] = Reading("Answer:", error="the engine refused it")
        found = answers(right).items()
        return {
            name: replace(answer, readings={"forced": reading})
            for (name, answer), reading in zip(found, forced, strict=True)
        }

    known = [True, True] + [False] * 6
    base, tuned = read([False] * 8, known), read([True] * 8, known)
    pairs = pairs_of(tuned, base, ["g"])
    assert rights(pairs, "strict") == ([False] * 8, [True] * 8)
    assert rights(pairs, "forced") == ([False, True] + [False] * 6,) * 2


def test_task_that_the_other_model_cannot_do_decides_nothing() -> None:
    weak = answers([n < 10 for n in range(100)])
    [result] = gate_results(GATE, answers([True] * 100), {"base": weak}, "tolerant")
    assert result.holds is None
    assert not is_held([result])
    assert "base answers only 10.0 %" in str(result)
    good = answers([True] * 100)
    held = gate_results(GATE, good, {"round 3": good, "base": weak}, "tolerant")
    assert [each.holds for each in held] == [True, None]
    assert is_held(held)


def test_small_losses_against_the_base_do_not_add_up() -> None:
    """Every round loses 3 of 100 points, which each one may."""
    settings = AfterRoundSettings(adopt="gate", gate=GATE.model_copy(update={"margin": 0.08}))
    models = [answers(np.arange(1000) < 600 - 30 * number) for number in range(4)]
    facts = [
        decision_of(
            settings, MEASURES, models[n], {f"round {n - 2}": models[n - 1], "base": models[0]}
        )
        for n in (1, 2, 3)
    ]
    assert [each["adopted"] for each in facts] == [True, True, False]
    failed = [result for result in facts[-1]["gate"] if not result["holds"]]
    assert [result["against"] for result in failed] == ["base"]


def test_rounds_without_gain_are_counted_from_the_last_gain() -> None:
    settings = AfterRoundSettings.model_validate({"stop": {"no_gain": 2}})
    worse, better = (answers(np.arange(200) < n, "t", "in_domain") for n in (80, 120))
    before: dict[str, Any] | None = None
    counts = []
    for old, new in ((worse, better), (better, better), (worse, better), (better, worse)):
        before = decision_of(settings, MEASURES, new, {"base": old}, before)
        counts.append((before["rounds_without_gain"], before["stop"] is not None))
    assert counts == [(0, False), (1, False), (0, False), (1, False)]
    before = decision_of(settings, MEASURES, better, {"base": better}, before)
    assert before["rounds_without_gain"] == 2
    assert "+0.0" in before["stop"]
    assert before["all_generated_tokens"] == 50


def paths(rng: np.random.Generator, *, same: bool = False) -> list[list[dict[str, Any]]]:
    """100 questions with 8 paths each."""

    def path() -> dict[str, Any]:
        words = ["so"] * 30 if same else [f"w{n}" for n in rng.integers(50, size=30)]
        said = "7" if same or rng.random() < 0.4 else str(rng.integers(9))
        made = {"stage": "path", "num_tokens": 5 if same else int(rng.integers(50, 100))}
        own = {"reasoning": " ".join(words), "predicted": said, "generations": [made]}
        return own | {"error": None, "pass": 0}

    return [[path() for _ in range(8)] for _ in range(100)]


LIMITS = AlarmSettings(max_vote_share=0.7, min_diversity=0.6, max_length_factor=1.5)


def test_alarms_are_raised_by_a_collapse_and_by_nothing_else() -> None:
    rng = np.random.default_rng(0)
    first = measure_paths(paths(rng))
    false = sum(len(alarms(LIMITS, measure_paths(paths(rng)), first)) for _ in range(20))
    assert false == 0
    raised = alarms(LIMITS, measure_paths(paths(rng, same=True)), first)
    assert [line.partition(":")[0] for line in raised] == [
        "votes for the most common answer of a question",
        "diversity of the paths of a question",
        "mean tokens of a path",
    ]


def test_measures_leave_out_paths_that_failed_or_saw_the_answer() -> None:
    rng = np.random.default_rng(0)
    plain = paths(rng)[:3]
    other = [{**plain[0][0], "pass": 1, "predicted": "9"}, {**plain[0][1], "error": "no"}]
    assert measure_paths([[*each, *other] for each in plain]) == measure_paths(plain)
    nothing = {"vote_share": None, "diversity": None, "path_tokens": None}
    assert measure_paths([[]]) == nothing
    assert alarms(LIMITS, nothing, {}) == []
