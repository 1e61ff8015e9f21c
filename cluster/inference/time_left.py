"""How long a pool of engines will still take, computed from its counters.

Whole questions are a poor measure at the beginning: none is finished before the first one has
passed all stages, and by then much of the work of many others is done. So what is left is counted
in generations, by kind, and each kind has its own mean time from the slot to the last token::

    time_left = TimeLeft({"paths": {24: 4, 90: 4}})
    time_left.look(now, {24: (64, 5), 90: (3, 75)})   # once a second: done and in flight, by kind
    seconds = time_left.seconds(now, still_open={"paths": 180}, finished={"paths": 0})

A kind of generation is known by its token limit, which is what the engines are told. Three things
would mislead a plain mean. Short texts end first, so the generations in flight count with the time
that they already took. A kind of which few have ended is judged by its limit as well. And reading
the prompts is work, too, which dominates the first minutes on a CPU: times contain it, while
counts of tokens would not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TokenLimit = int | None
"""The token limit of a generation; None is what the context leaves."""

WINDOW_S = 1800.0
"""What is older does not count. Chains that begin together finish their stages together, so that
over minutes the speed goes up and down; over hours the length of the texts may change."""
SNAPSHOT_EVERY_S = 30.0
ENOUGH = 30
"""The weight of the guess by the limit, in generations."""
PROMPT_TOKENS = 20
"""Reading a prompt takes about as long as so many tokens; it counts in the guess by the limit."""
LAST_ONES = 0.2
"""What the end takes longer than a full engine would, as a share of the time of the generations in
flight: at the end they thin out. On a CPU this costs little, on a GPU more."""


def still_expected(
    open_questions: Mapping[str, int],
    finished: Mapping[str, int],
    per_question: Mapping[str, Mapping[TokenLimit, int]],
    done: Mapping[TokenLimit, int],
) -> dict[TokenLimit, float]:
    """How many generations of each kind are still to be finished, those in flight included.

    The arguments are by job: the questions that still need a row, those that got one in this
    execution, and how many generations of each kind one question takes. Generations beyond those of
    the finished questions belong to open ones.
    """
    in_all: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    of_finished: dict[TokenLimit, float] = dict.fromkeys(done, 0.0)
    for job, kinds in per_question.items():
        for kind, count in kinds.items():
            in_all[kind] = in_all.get(kind, 0.0) + count * open_questions.get(job, 0)
            of_finished[kind] = of_finished.get(kind, 0.0) + count * finished.get(job, 0)
    return {
        # A chain that failed early, or a question that was skipped, took fewer than planned.
        kind: max(0.0, count - max(0.0, done.get(kind, 0) - of_finished[kind]))
        for kind, count in in_all.items()
    }


@dataclass
class Flights:
    """The generations of one kind: those that ended, and since when the others are in flight.

    Which of them ended is not known; the oldest ones are taken.
    """

    num_done: int = 0
    done_s: float = 0.0
    """Seconds of all that ended together."""
    _begun: deque[tuple[float, float]] = field(default_factory=deque)

    def look(self, now: float, before: float, num_done: int, in_flight: int) -> None:
        """Take the counters of now; what is new began half-way since the look before."""
        ended = num_done - self.num_done
        self.num_done = num_done
        new = ended + in_flight - self.in_flight
        if new > 0:
            self._begun.append(((now + before) / 2, new))
        while self._begun and (gone := self.in_flight - in_flight) > 0:
            at, count = self._begun.popleft()
            self.done_s += min(gone, count) * (now - at)
            if count > gone:
                self._begun.appendleft((at, count - gone))

    @property
    def in_flight(self) -> float:
        return sum(count for _, count in self._begun)

    def ages(self, now: float) -> list[tuple[float, float]]:
        """(seconds in flight, how many) of those that have not ended."""
        return [(now - at, count) for at, count in self._begun]


@dataclass(frozen=True)
class Snapshot:
    """Totals at one moment."""

    at: float
    worked_s: float = 0.0
    """Seconds of all generations, ended or not; by this and the time between two snapshots follows
    how many were in flight."""
    done: Mapping[TokenLimit, tuple[int, float]] = field(default_factory=dict)
    """By kind: how many have ended, and the seconds that they took together."""


def mean_seconds(
    guess: float, num_done: int, done_s: float, ages: list[tuple[float, float]]
) -> float:
    """Seconds that a generation takes, from those that ended and the ages of those in flight.

    `guess` counts as much as `ENOUGH` generations that ended.
    """
    mean = guess
    for _ in range(10):
        seconds, number = ENOUGH * guess + done_s, ENOUGH + num_done
        in_flight = [(whole_seconds(mean, age), count) for age, count in ages]
        seconds += sum(whole * count for whole, count in in_flight)
        mean = seconds / (number + sum(count for _, count in in_flight))
    return mean


def whole_seconds(mean: float, age: float) -> float:
    """What a generation is expected to take in all that is in flight for `age` seconds: the mean
    for a new one, and ever less beyond its age for an old one."""
    return math.hypot(mean, age)


class TimeLeft:
    """Follows the counters of a pool, and says how long the pool will still take."""

    def __init__(self, per_question: Mapping[str, Mapping[TokenLimit, int]]) -> None:
        """`per_question` has the generations of one question by job and token limit."""
        self._per_question = per_question
        self._kinds: dict[TokenLimit, Flights] = {}
        self._looked_at: float | None = None
        self._snapshots: deque[Snapshot] = deque()

    def look(self, now: float, kinds: Mapping[TokenLimit, tuple[int, int]]) -> None:
        """Take the counters of now: by kind, how many have ended and how many are in flight."""
        if not any(map(any, kinds.values())):
            return  # nothing was asked of the engines yet
        before = now if self._looked_at is None else self._looked_at
        for kind, (num_done, in_flight) in kinds.items():
            self._kinds.setdefault(kind, Flights()).look(now, before, num_done, in_flight)
        self._looked_at = now
        if not self._snapshots or now - self._snapshots[-1].at >= SNAPSHOT_EVERY_S:
            self._snapshots.append(self._snapshot(now))
        while self._snapshots[0].at < now - WINDOW_S and len(self._snapshots) > 1:
            self._snapshots.popleft()

    def seconds(
        self, now: float, still_open: Mapping[str, int], finished: Mapping[str, int]
    ) -> float | None:
        """Until the open questions have their rows; None before anything is known of their
        generations. By job: the questions that still need a row, and those that got one since the
        pool began."""
        since, until = (
            (self._snapshots[0] if self._snapshots else Snapshot(now)),
            self._snapshot(now),
        )
        worked = until.worked_s - since.worked_s
        if now <= since.at or worked <= 0:
            return None
        means = dict(self._means(now, since, until))
        num_done = {kind: flights.num_done for kind, flights in self._kinds.items()}
        left = still_expected(still_open, finished, self._per_question, num_done)
        if not means:
            return None
        work = sum(self._work(now, kind, count, means) for kind, count in left.items())
        return work * (now - since.at) / worked

    def _work(
        self, now: float, kind: TokenLimit, number: float, means: Mapping[TokenLimit, float]
    ) -> float:
        """The seconds of the generations of one kind that are not finished, each as if alone."""
        mean = means[kind]
        flights = self._kinds.get(kind, Flights())
        in_flight = min(number, flights.in_flight)
        begun = sum((whole_seconds(mean, age) - age) * n for age, n in flights.ages(now))
        return (number - in_flight) * mean + begun + LAST_ONES * in_flight * mean

    def _means(
        self, now: float, since: Snapshot, until: Snapshot
    ) -> Iterator[tuple[TokenLimit, float]]:
        """Seconds of a generation by kind; of none while no generation has ended."""
        ended: dict[TokenLimit, tuple[int, float]] = {}
        for kind, (number, seconds) in until.done.items():
            number_before, seconds_before = since.done.get(kind, (0, 0.0))
            ended[kind] = (number - number_before, seconds - seconds_before)
        num_ended = sum(number for number, _ in ended.values())
        if not num_ended:
            return
        mean = sum(seconds for _, seconds in ended.values()) / num_ended
        limited = [kind for kind in ended if kind is not None]
        most = sum(ended[kind][0] * (kind + PROMPT_TOKENS) for kind in limited)
        per_token = sum(ended[kind][1] for kind in limited) / most if most else 0.0
        wanted = {kind for kinds in self._per_question.values() for kind in kinds}
        for kind in wanted | self._kinds.keys():
            guess = (kind + PROMPT_TOKENS) * per_token if kind and per_token else mean
            ages = self._kinds.get(kind, Flights()).ages(now)
            yield kind, mean_seconds(guess, *ended.get(kind, (0, 0.0)), ages)

    def _snapshot(self, now: float) -> Snapshot:
        done = {kind: (each.num_done, each.done_s) for kind, each in self._kinds.items()}
        in_flight = sum(a * n for each in self._kinds.values() for a, n in each.ages(now))
        return Snapshot(now, in_flight + sum(seconds for _, seconds in done.values()), done)
