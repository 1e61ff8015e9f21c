"""The parts of the synthesis benchmark that need no engine."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from benchmarks.synthesis import (
    SIDES,
    BarrierEngine,
    Busy,
    Generation,
    Measured,
    Window,
    check_same_work,
    drawn_length,
    format_table,
    measure,
    plan_units,
    read_options,
    summarize,
)
from cluster.inference.engine import Completion, SamplingSettings
from pipelines.synthesis.stages import STAGE_NAMES as STAGES
from tests.conftest import REPOSITORY

LIMITS = (2, 3, 5)


def measured(side: str, seconds: float, cached: int | None = 25) -> Measured:
    """Two chains of ten tokens each."""
    made = [
        Generation(stage, seed, f"chat {seed}", 100, cached, limit)
        for stage, limit in zip(STAGES, LIMITS, strict=True)
        for seed in (1, 2)
    ]
    return measure(side, 0, Window(1000.0, 1000.0 + seconds), made, Busy(None, 1.5, 0.25))


def test_rates_count_tokens_and_chains_over_the_window() -> None:
    one = measured("a", 4.0)
    assert one.num_tokens == {"adapt": 4, "structure": 6, "path": 10}
    assert one.tokens_per_s == 5.0
    assert one.chains_per_min == 30.0


def test_summary_has_medians_and_the_ratios_of_the_sides_that_ran() -> None:
    repeats = [measured("a", s) for s in (10.0, 40.0, 20.0)]
    repeats += [measured("d", s) for s in (5.0, 4.0, 1.0)]
    repeats += [measured("c", 8.0, cached=None)]
    summary = summarize(repeats)
    assert summary["sides"]["a"]["tokens_per_s"] == 1.0
    assert summary["sides"]["a"]["tokens_per_s_of_each_repeat"] == [2.0, 0.5, 1.0]
    assert summary["over_released_order"] == 5.0
    assert summary["over_ray_data_llm"] == 2.0
    assert "over_engine_limit" not in summary
    assert summary["sides"]["a"]["prefix_cache_hit_rate"] == dict.fromkeys(STAGES, 0.25)
    assert summary["sides"]["c"]["prefix_cache_hit_rate"] is None
    assert summary["sides"]["d"]["busy"] == {
        "gpu_percent": None,
        "engine_cores": 1.5,
        "other_cores": 0.25,
    }
    table = format_table(summary)
    assert "over_released_order: 5.0" in table
    assert "1.5, 0.25" in table


def test_same_work_passes_and_each_difference_is_found() -> None:
    good = measured("a", 1.0)
    num_tokens = {"adapt": 4, "structure": 6, "path": 10}
    check_same_work([good, measured("c", 2.0, cached=None)], 2, num_tokens)
    for other, said in (
        (replace(good, num_generations=good.num_generations | {"path": 1}), "expected 2 of each"),
        (replace(good, num_tokens=good.num_tokens | {"path": 9}), "'path': 10"),
        (replace(good, first_prompts="other"), "other first prompts"),
        (replace(good, num_prompt_tokens={"adapt": 202}), "tokenized differently"),
    ):
        with pytest.raises(AssertionError, match=said):
            check_same_work([good, other], 2, num_tokens)


def test_lengths_hang_on_the_seed_and_spread_around_a_quarter_of_the_limit() -> None:
    drawn = [drawn_length(seed, 128, 0.8) for seed in range(2000)]
    assert drawn == [drawn_length(seed, 128, 0.8) for seed in range(2000)]
    assert 30 <= statistics.median(drawn) <= 34
    assert min(drawn) >= 1
    assert 0.02 < sum(length == 128 for length in drawn) / len(drawn) < 0.08
    assert {drawn_length(seed, 128, 0.0) for seed in range(100)} == {128}


def test_units_share_an_engine_only_where_no_ray_is_and_turn_with_the_repeat() -> None:
    assert plan_units(tuple(SIDES), 0) == [("a", "b", "e"), ("c",), ("d",), ("e_no_prefix_cache",)]
    assert plan_units(tuple(SIDES), 1) == [("c",), ("d",), ("e_no_prefix_cache",), ("b", "e", "a")]
    assert plan_units(("d",), 1) == [("d",)]


def test_options_default_to_every_side_and_all_guidelines() -> None:
    options = read_options([])
    assert options.sides == tuple(SIDES)
    assert options.num_guidelines == 25
    assert read_options(["--gpu"]).max_tokens == (512, 1024, 2048)
    assert read_options(["--sides", "e,a"]).sides == ("a", "e")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sides", "a,x"], "no side 'x'"),
        (["--guidelines", "26"], "there are 25"),
        (["--repeats", "0"], "not a number above 0"),
        (["--max-tokens", "16,24"], "give three numbers"),
        (["--questions-file", "none.jsonl"], "no such file"),
    ],
)
def test_bad_options_are_refused(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        read_options(argv)
    assert said in capsys.readouterr().err


class CountingEngine:
    """Finishes in another order than it was asked, and keeps how many it had answered then."""

    def __init__(self) -> None:
        self.num_answers = 0
        self.answered_before: list[int] = []

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        self.answered_before.append(self.num_answers)
        for _ in range(10 - seed):
            await asyncio.sleep(0)
        if seed < 0:
            raise RuntimeError("broken")
        self.num_answers += 1
        return [Completion("", [], "length", 1)]

    def shutdown(self) -> None:
        """Nothing to end."""


async def _three_stages(engine: BarrierEngine, seed: int) -> None:
    for _ in STAGES:
        await engine.chat([], SamplingSettings(), seed)


def test_barrier_lets_no_chain_go_on_before_all_have_finished_the_stage() -> None:
    counting = CountingEngine()

    async def run() -> None:
        engine = BarrierEngine(counting, 4)
        await asyncio.gather(*(_three_stages(engine, seed) for seed in range(4)))

    asyncio.run(run())
    assert counting.answered_before == [0] * 4 + [4] * 4 + [8] * 4


def test_barrier_does_not_wait_for_a_chain_that_failed() -> None:
    async def run() -> None:
        engine = BarrierEngine(CountingEngine(), 2)
        await asyncio.gather(*(_three_stages(engine, seed) for seed in (1, -1)))

    with pytest.raises((RuntimeError, asyncio.BrokenBarrierError)):
        asyncio.run(run())


def test_help_names_every_side() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.synthesis", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = " ".join(result.stdout.split())
    assert all(f"{side}: {what}" in said for side, what in SIDES.items())
