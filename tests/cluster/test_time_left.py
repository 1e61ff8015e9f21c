"""The time left, against runs whose end is known: simulated ones, and one that was recorded."""

from __future__ import annotations

import heapq
import json
import random
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import cluster.inference.progress
from cluster.inference.progress import RateMeter
from cluster.inference.time_left import Flights, TimeLeft, mean_seconds, still_expected

RECORDED = Path(__file__).parent / "timings"


def test_still_expected_counts_what_was_done_for_open_questions() -> None:
    # Of 10 questions 3 are finished: 6 + 6 generations. 4 more first stages are done.
    expected = still_expected({"p": 7}, {"p": 3}, {"p": {24: 2, 90: 2}}, {24: 10, 90: 6})
    assert expected == {24: 10, 90: 14}


def test_still_expected_of_questions_that_took_fewer_is_not_less_than_the_open_ones_need() -> None:
    assert still_expected({"p": 2}, {"p": 8}, {"p": {90: 1}}, {90: 3}) == {90: 2}


def test_flights_know_what_ended_took_and_how_old_the_others_are() -> None:
    flights = Flights()
    flights.look(10, 10, 0, 3)
    flights.look(12, 10, 0, 5)  # two more, begun at 11
    flights.look(14, 12, 4, 2)  # four ended, the oldest ones; one more began at 13
    assert flights.done_s == 3 * 4 + 1 * 3
    assert flights.ages(15) == [(4, 1), (2, 1)]


def test_mean_is_the_guess_while_nothing_ended_and_what_was_seen_once_there_is_enough() -> None:
    assert mean_seconds(7, 0, 0, []) == 7
    assert mean_seconds(7, 10_000, 30_000, []) == pytest.approx(3, rel=0.01)


def test_mean_counts_generations_in_flight_that_are_older_than_it() -> None:
    """Short texts end first: those that ended say less than those that have not."""
    plain = mean_seconds(3, 100, 300, [])
    assert mean_seconds(3, 100, 300, [(1, 100)]) == pytest.approx(plain, rel=0.1)
    assert mean_seconds(3, 100, 300, [(9, 100)]) > 1.8 * plain


def test_time_left_of_a_steady_pool_is_what_is_left_over_what_was_done() -> None:
    time_left = TimeLeft({"p": {100: 2}})
    for second in range(101):  # four at once, two seconds each
        time_left.look(second, {100: (2 * second, 4)})
    seconds = time_left.seconds(100, {"p": 100}, {"p": 100})
    assert seconds == pytest.approx(100, rel=0.1)


def test_time_left_is_not_known_before_a_generation_has_ended() -> None:
    time_left = TimeLeft({"p": {100: 2}})
    assert time_left.seconds(0, {"p": 100}, {}) is None
    time_left.look(1, {100: (0, 4)})
    time_left.look(2, {100: (0, 4)})
    assert time_left.seconds(2, {"p": 100}, {}) is None


@dataclass(frozen=True)
class Simulated:
    """A pool whose engines share one speed among the generations in flight."""

    num_questions: int
    width: int
    limits: tuple[int, ...]
    """The stages of a chain, by their token limits."""
    used: float
    """Mean share of a limit that a generation uses."""
    in_flight: int
    step_s: float = 0.02
    """Seconds of a step with an empty batch."""
    cost: float = 20
    """How many generations make a step twice as long."""
    prompt: int = 0
    """Steps that a generation takes to read its prompt."""
    spread: float = 0.4
    """Standard deviation of the logarithm of a length."""
    other_limits: tuple[int, ...] = ()
    """The stages of every second question, which is of another job."""

    def views(self, seed: int) -> Iterator[tuple[float, dict[str, Any]]]:
        """Time and counters every few seconds: each generation makes one token a step, and a step
        takes longer with more of them."""
        draw = random.Random(seed)
        waiting = [(q, 0) for q in range(self.num_questions) for _ in range(self.width)]
        waiting.reverse()
        open_chains = Counter(dict.fromkeys(range(self.num_questions), self.width))
        running: list[tuple[int, int, int, int]] = []
        done, tokens, finished = Counter[int | None](), Counter[int | None](), Counter[str]()
        step, seconds, shown = 0, 0.0, 0.0
        while waiting or running:
            while waiting and len(running) < self.in_flight:
                question, stage = waiting.pop()
                limit = self._limits(question)[stage]
                drawn = self.used * draw.lognormvariate(-(self.spread**2) / 2, self.spread)
                length = max(1, min(limit, round(limit * drawn)))
                heapq.heappush(running, (step + self.prompt + length, question, stage, length))
            step_s = self.step_s * (1 + len(running) / self.cost)
            steps = min(running[0][0] - step, max(1, int((shown - seconds) / step_s) + 1))
            step += steps
            seconds += steps * step_s
            while running and running[0][0] <= step:
                _, question, stage, length = heapq.heappop(running)
                limits = self._limits(question)
                done[limits[stage]] += 1
                tokens[limits[stage]] += length
                if stage + 1 < len(limits):
                    waiting.append((question, stage + 1))
                else:
                    open_chains[question] -= 1
                    finished[self._job(question)] += not open_chains[question]
            if seconds >= shown:
                shown = seconds + 3
                yield seconds, self._view(done, tokens, finished, running)
        yield seconds, self._view(done, tokens, finished, [])

    def _job(self, question: int) -> str:
        return "other" if self.other_limits and question % 2 else "paths"

    def _limits(self, question: int) -> tuple[int, ...]:
        return self.limits if self._job(question) == "paths" else self.other_limits

    def _view(
        self,
        done: Counter[int | None],
        tokens: Counter[int | None],
        finished: Counter[str],
        running: list[tuple[int, int, int, int]],
    ) -> dict[str, Any]:
        in_flight = Counter(self._limits(question)[stage] for _, question, stage, _ in running)
        num_questions = Counter(self._job(question) for question in range(self.num_questions))
        counts = {"num_tokens": 0, "num_paths": 0, "num_accepted": 0}
        return {
            "num_alive": 1,
            "num_started": 1,
            "num_in_flight": len(running),
            "num_tokens": sum(tokens.values()),
            "kinds": {
                k: (done[k], tokens[k], in_flight[k]) for k in {*self.limits, *self.other_limits}
            },
            "datasets": {
                (job, "a"): counts | {"num_questions": number, "num_done": finished[job]}
                for job, number in num_questions.items()
            },
            "closed": set(),
            "max_tokens": {},
        }

    @property
    def per_question(self) -> dict[str, dict[int | None, int]]:
        jobs = {"paths": self.limits, "other": self.other_limits}
        return {
            job: {limit: limits.count(limit) * self.width for limit in limits}
            for job, limits in jobs.items()
        }


def errors(
    views: Sequence[tuple[float, dict[str, Any]]],
    per_question: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> list[float]:
    """How far each time left was off, as a share of the true one, from a tenth of the run on.

    The end is left out: how long the last text becomes cannot be known.
    """
    end = views[-1][0]
    meter = RateMeter("paths", (), per_question)
    at = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: at)
    monkeypatch.setattr(cluster.inference.progress, "time", clock)
    off = []
    for at, view in views:
        seconds = meter.seconds_left(view)
        if end * 0.1 <= at <= end * 0.85 and seconds is not None:
            off.append((seconds - (end - at)) / (end - at))
    return off


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(Simulated(50, 4, (24, 32, 90), 0.8, 80, 0.5, prompt=10), id="quickstart"),
        pytest.param(Simulated(100, 25, (256, 512, 2048), 0.2, 320), id="paths"),
        pytest.param(Simulated(400, 1, (2048,), 0.15, 64), id="predictions"),
        pytest.param(Simulated(500, 1, (512,), 0.95, 64), id="nearly_equal_lengths"),
        pytest.param(Simulated(3000, 1, (2048,), 0.1, 64, spread=0.8), id="long_tail"),
        pytest.param(Simulated(300, 4, (64, 65, 4096), 0.3, 128, cost=50), id="late_slow_stage"),
        pytest.param(Simulated(60, 25, (256, 512, 4096), 0.4, 256), id="few_questions"),
        pytest.param(
            Simulated(300, 4, (24, 32, 90), 0.8, 80, 0.1, other_limits=(1024,)), id="two_jobs"
        ),
        pytest.param(Simulated(2000, 1, (8192,), 0.2, 256, cost=200), id="one_long_stage"),
        pytest.param(Simulated(500, 25, (256, 512, 2048), 0.2, 256, cost=500), id="gpu"),
    ],
)
def test_time_left_of_a_simulated_run_is_within_30_percent_from_a_tenth_on(
    pool: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        off = errors(list(pool.views(seed)), pool.per_question, monkeypatch)
        assert off
        assert max(map(abs, off)) <= 0.3, (seed, min(off), max(off))


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
def test_time_left_of_a_recorded_run_is_within_30_percent_from_a_tenth_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    views = [(row["at"], _restored(row["view"])) for row in recorded["views"]]
    per_question = {
        job: {_kind(kind): n for kind, n in kinds.items()}
        for job, kinds in recorded["per_question"].items()
    }
    off = errors(views, per_question, monkeypatch)
    assert off
    assert max(map(abs, off)) <= 0.3


def _restored(view: dict[str, Any]) -> dict[str, Any]:
    datasets = {tuple(key.split("|")): counts for key, counts in view["datasets"].items()}
    kinds = {_kind(kind): tuple(numbers) for kind, numbers in view["kinds"].items()}
    return view | {"datasets": datasets, "kinds": kinds, "closed": set(), "num_started": 1}


def _kind(text: str) -> int | None:
    return None if text == "None" else int(text)
