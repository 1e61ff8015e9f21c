"""Progress of long work: what the workers count, and the lines that a person reads.

`ProgressPrinter` is a thread on the driver that reads the board and prints. The board is a Ray
actor without CPUs. It holds the counters of each worker by dataset, which it also exports as Ray
metrics for Prometheus, the questions that were being answered when an engine died, and the datasets
that have enough. Small dictionaries are sent to it once a second; its reply tells a worker whether
to stop.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, TextIO

from cluster.events import record
from cluster.inference.schedule import DatasetQuota, num_tokens, used_up
from cluster.inference.time_left import WINDOW_S, TimeLeft, TokenLimit
from cluster.terminal import ProgressBars, ProgressLine

DESCRIBE_EVERY_S = 1.0
TABLE_EVERY_S = 60.0
RECORD_EVERY_S = 60.0
SHOWN_S = 60.0
"""The rate that is shown is the rate over this many seconds."""
ALIVE_S = 10.0
"""A worker that has not reported for this many seconds counts as dead."""

Key = tuple[str, str]
"""The name of a job and that of a dataset."""

METRICS = {
    "num_questions": "Questions of the dataset",
    "num_done": "Questions that have their row",
    "num_paths": "Reasoning paths generated",
    "num_accepted": "Paths whose answer is right",
    "num_failed": "Paths that failed",
    "num_truncated": "Paths cut off by a limit",
    "num_tokens": "Tokens generated",
}


ANSWERS = {
    "answers": "num_paths",
    "accepted": "num_accepted",
    "truncated": "num_truncated",
    "failed": "num_failed",
}
"""What the event `rate` says of the answers of a job, and the counter it comes from."""


class ProgressBoard:
    """Collects the counters of all workers; a plain class that `cluster.inference.pool` turns into
    a Ray actor."""

    def __init__(
        self,
        totals: Mapping[str, Mapping[str, Mapping[str, int]]],
        shares: Mapping[str, Mapping[str, DatasetQuota]],
        max_tokens: Mapping[str, int | None] = MappingProxyType({}),
    ) -> None:
        """All by job: the earlier totals and quotas by dataset, and the token limit of the job."""
        self._base: dict[Key, Counter[str]] = {
            (job, dataset): Counter(counts)
            for job, datasets in totals.items()
            for dataset, counts in datasets.items()
        }
        self._shares = shares
        self._max_tokens = {job: most for job, most in max_tokens.items() if most is not None}
        self._counts: dict[str, dict[str, float]] = {}
        self._datasets: dict[str, dict[Key, dict[str, int]]] = {}
        self._reported_at: dict[str, float] = {}
        self._processes: dict[str, dict[str, Any]] = {}
        self._open: dict[str, set[str]] = {}
        self._chunks: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._last_error: str | None = None
        self._weights: dict[str, str] = {}
        self._stopping = False
        self._stopped: set[str] = set()
        self._closed: set[Key] = set()
        self._places: dict[str, list[str]] = {}
        self._gauges: dict[str, Any] | None = None

    # What workers call.

    def enter_node(self, node_id: str, actor_id: str) -> int:
        """Which worker of its node this is, from 0; the number stays the same after a restart."""
        places = self._places.setdefault(node_id, [])
        if actor_id not in places:
            places.append(actor_id)
        return places.index(actor_id)

    def report(
        self,
        worker_id: str,
        counts: dict[str, float],
        datasets: dict[Key, dict[str, int]],
        open_questions: list[str],
        processes: dict[str, Any],
        has_stopped: bool = False,
    ) -> dict[str, Any]:
        """Replace a worker's counters; returns whether it has to flush and stop, and which datasets
        have enough. A worker that `has_stopped` has saved its rows."""
        self._counts[worker_id] = counts
        self._datasets[worker_id] = datasets
        self._open[worker_id] = set(open_questions)
        self._processes[worker_id] = processes
        self._reported_at[worker_id] = time.monotonic()
        if has_stopped:
            self._stopped.add(worker_id)
        return {"stop": self._stopping, "closed": self._used_up()}

    def begin_chunk(self, worker_id: str, chunk: str) -> dict[str, int] | None:
        """Returns None for a new chunk. If another worker had begun the chunk, and must therefore
        have died, returns how often each question was being answered when a worker died."""
        before = self._chunks.get(chunk)
        self._chunks[chunk] = worker_id
        if before is None:
            return None
        if before != worker_id:
            self._deaths.update(self._open.pop(before, ()))
            self._reported_at.pop(before, None)
        return dict(self._deaths)

    def end_chunk(self, chunk: str) -> None:
        """Note that the chunk is done."""
        self._chunks.pop(chunk, None)

    def begin_question(self, worker_id: str, question_id: str) -> None:
        """Note a question before it is generated, because it may be the one that kills the
        engine."""
        self._open.setdefault(worker_id, set()).add(question_id)

    def note_weights(self, fingerprints: dict[str, str]) -> dict[str, str]:
        """Note which weights a worker serves; returns the weights that were noted first."""
        self._weights = self._weights or fingerprints
        return self._weights

    def note_error(self, error: str) -> None:
        """Keep the last error message of a worker or an engine."""
        self._last_error = error

    # What the driver calls.

    def stop(self) -> bool:
        """Tell every worker, at its next report, to flush and stop; returns whether all have."""
        self._stopping = True
        return self._stopped.issuperset(self._alive())

    def last_error(self) -> str | None:
        return self._last_error

    def weights(self) -> dict[str, str]:
        """The fingerprints of the weights that the workers serve."""
        return self._weights

    def processes(self) -> list[dict[str, Any]]:
        """The node and the process ids of every worker that ever reported."""
        return list(self._processes.values())

    def counts(self) -> dict[str, float]:
        """Sums over all workers that ever reported; of times, the first and the last."""
        total: Counter[str] = Counter()
        for counts in self._counts.values():
            total.update({name: n for name, n in counts.items() if not name.endswith("_at")})
        combine = {"first_chunk_at": min, "last_row_at": max}
        for name, which in combine.items():
            times = [counts[name] for counts in self._counts.values() if name in counts]
            if times:
                total[name] = which(times)  # type: ignore[assignment]
        return {**total, "num_workers": len(self._counts)}

    def view(self) -> dict[str, Any]:
        """All facts that a progress line shows."""
        alive = self._alive()
        datasets = self._totals()
        in_flight = sum(self._counts[worker].get("num_in_flight", 0) for worker in alive)
        self._export(datasets, len(alive), in_flight)
        return {
            "num_alive": len(alive),
            "num_started": len(self._counts),
            "num_in_flight": in_flight,
            "num_tokens": sum(c.get("num_tokens", 0) for c in self._counts.values()),
            "kinds": self._kinds(),
            "datasets": {key: dict(counts) for key, counts in datasets.items()},
            "closed": self._used_up(),
            "max_tokens": dict(self._max_tokens),
        }

    def _alive(self) -> list[str]:
        return [w for w, at in self._reported_at.items() if time.monotonic() - at < ALIVE_S]

    def _kinds(self) -> dict[TokenLimit, tuple[int, int, int]]:
        """Generations, their tokens, and generations in flight, by the token limit that the engines
        received."""
        total: Counter[str] = Counter()
        alive = set(self._alive())
        for worker, counts in self._counts.items():
            # What an engine had in flight when it was lost is in flight no more.
            gone = () if worker in alive else ("in_flight/",)
            names = [name for name in counts if "/" in name and not name.startswith(gone)]
            total.update({name: counts[name] for name in names})
        limits = {name.partition("/")[2] for name in total}
        return {
            int(limit) if limit.isdigit() else None: (
                total[f"generations/{limit}"],
                total[f"tokens/{limit}"],
                total[f"in_flight/{limit}"],
            )
            for limit in limits
        }

    def _totals(self) -> dict[Key, Counter[str]]:
        totals = {key: Counter(counts) for key, counts in self._base.items()}
        for datasets in self._datasets.values():
            for key, counts in datasets.items():
                totals.setdefault(key, Counter()).update(counts)
        return totals

    def _used_up(self) -> set[Key]:
        if not self._max_tokens and not any(
            share.is_limited for shares in self._shares.values() for share in shares.values()
        ):
            return set()
        by_job: dict[str, dict[str, Counter[str]]] = {}
        for (job, dataset), counts in self._totals().items():
            by_job.setdefault(job, {})[dataset] = counts
        # A retry may lower the token count; a dataset that was closed stays closed.
        self._closed |= {
            (job, dataset)
            for job, totals in by_job.items()
            for dataset in used_up(totals, self._shares.get(job, {}), self._max_tokens.get(job))
        }
        return set(self._closed)

    def _export(
        self, datasets: Mapping[Key, Mapping[str, int]], num_alive: int, num_in_flight: float
    ) -> None:
        """Export the same numbers as Ray metrics, which every node offers to Prometheus."""
        from ray.util.metrics import Gauge

        if self._gauges is None:
            tags = ("job", "dataset")
            self._gauges = {
                name: Gauge(f"regenesis_{name}", text, tag_keys=tags)
                for name, text in METRICS.items()
            }
            self._gauges["num_alive"] = Gauge("regenesis_num_engines", "Engines alive")
            self._gauges["num_in_flight"] = Gauge(
                "regenesis_num_generations_in_flight", "Generations that the engines work on"
            )
        for (job, dataset), counts in datasets.items():
            for name in METRICS:
                self._gauges[name].set(counts.get(name, 0), {"job": job, "dataset": dataset})
        self._gauges["num_alive"].set(num_alive)
        self._gauges["num_in_flight"].set(num_in_flight)


class ProgressPrinter:
    """Shows the progress every few seconds while a `with` block runs.

    `describe` returns the current line, followed by lines to be printed once. A terminal also shows
    a bar for each entry of `bars`, which returns the amount that is done and the total.
    """

    def __init__(
        self,
        describe: Callable[[], list[str]],
        *,
        every_s: float,
        stream: TextIO | None = None,
        bars: Callable[[], Mapping[str, tuple[int, int]]] = dict,
    ) -> None:
        stream = stream or sys.stderr
        self._describe, self._bars = describe, bars
        self._line: ProgressLine | ProgressBars = (
            ProgressBars(stream) if stream.isatty() else ProgressLine(every_s, stream)
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressPrinter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._show(last=True)

    def _run(self) -> None:
        # Described more often than printed, so that a finished dataset is reported at once.
        while not self._done.wait(DESCRIBE_EVERY_S):
            self._show()

    def _show(self, *, last: bool = False) -> None:
        line, *lasting = self._describe()
        if isinstance(self._line, ProgressBars):
            self._line.set(self._bars())
        (self._line.end if last else self._line.show)(line, lasting=lasting)


class PoolEvents:
    """Records engines that start and end, and once a minute the progress."""

    def __init__(self) -> None:
        self._num_alive = 0
        self._recorded_at = -math.inf

    def __call__(self, view: Mapping[str, Any]) -> None:
        """Record what changed in one view of the board."""
        change, self._num_alive = view["num_alive"] - self._num_alive, view["num_alive"]
        if change:
            name = "engines_started" if change > 0 else "engines_lost"
            record(name, number=abs(change), alive=self._num_alive)
        if time.monotonic() - self._recorded_at < RECORD_EVERY_S:
            return
        self._recorded_at = time.monotonic()
        finished, still_open = _questions_by_job(view)
        record(
            "rate",
            tokens=view["num_tokens"],
            in_flight=view["num_in_flight"],
            engines=self._num_alive,
            questions=dict(finished),
            questions_left=dict(still_open),
            **_answers_by_job(view),
        )


class RateMeter:
    """Turns views of the board into lines with the amount done, the rate and the time left."""

    def __init__(
        self,
        step: str,
        complete: Collection[Key] = (),
        per_question: Mapping[str, Mapping[TokenLimit, int]] = MappingProxyType({}),
    ) -> None:
        """`complete` lists datasets that are not reported because nothing is left to do;
        `per_question` has the generations of one question by job and token limit."""
        self._step = step
        self._time_left = TimeLeft(per_question)
        self._history: list[tuple[float, int]] = []
        self._shown: list[tuple[float, int]] = []
        self._done_before: dict[str, int] | None = None
        self._complete = set(complete)
        self._table_at = time.monotonic()

    def lines(self, view: Mapping[str, Any]) -> list[str]:
        """The current line, then each dataset that was just completed and, once a minute, the
        progress of the others."""
        if not view["num_started"]:
            return [f"{self._step}: starting the engines"]
        return [self._line(view), *self._completed(view), *self._table(view)]

    @staticmethod
    def bars(view: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Finished and total questions of each job and dataset, for a terminal."""
        return {
            f"{job} {dataset}": (counts["num_done"], counts["num_questions"])
            for (job, dataset), counts in view["datasets"].items()
        }

    def _line(self, view: Mapping[str, Any]) -> str:
        wanted = sum(c["num_questions"] for c in view["datasets"].values())
        done = sum(c["num_done"] for c in view["datasets"].values())
        bounds = [(_tokens_of(job, view), most) for job, most in view["max_tokens"].items()]
        now = time.monotonic()
        left_s, rate = self.seconds_left(view), self._rate_shown(now, view["num_tokens"])
        parts = [f"{self._step}: {done}/{wanted} questions"]
        if rate is not None:
            parts.append(f"{rate:.0f} tok/s")
        parts.append(f"{view['num_in_flight']:.0f} generating")
        parts.append(f"{view['num_alive']} engines")
        parts.append(_accepted(view["datasets"].values()))
        parts += [f"{made} of {most} tokens" for made, most in bounds]
        if left_s:
            parts.append(f"{format_seconds(left_s)} left")
        return " | ".join(filter(None, parts))

    def seconds_left(self, view: Mapping[str, Any]) -> float | None:
        """Until the last question has its row, or a job its last token; None before it is known."""
        now = time.monotonic()
        finished, still_open = _questions_by_job(view)
        self._done_before = self._done_before or finished
        new = {job: n - self._done_before.get(job, 0) for job, n in finished.items()}
        kinds = {kind: (done, in_flight) for kind, (done, _, in_flight) in view["kinds"].items()}
        self._time_left.look(now, kinds)
        seconds = self._time_left.seconds(now, still_open, new)
        rate = self._rate(now, view["num_tokens"])
        if seconds is None or not rate:
            return seconds
        bounds: Mapping[str, int] = view["max_tokens"]
        of_bounds = [(most - _tokens_of(job, view)) / rate for job, most in bounds.items()]
        return max(0.0, min([seconds, *of_bounds]))

    def _rate_shown(self, now: float, tokens: int) -> float | None:
        """Tokens per second over the last minute; None at first."""
        recent = [each for each in self._shown if now - each[0] <= SHOWN_S]
        self._shown = [*recent, (now, tokens)]
        first_at, first_tokens = self._shown[0]
        return (tokens - first_tokens) / (now - first_at) if now > first_at else None

    def _rate(self, now: float, tokens: int) -> float | None:
        """Tokens a second since the engines began, but at most over `WINDOW_S`; None at first."""
        recent = [each for each in self._history if now - each[0] <= WINDOW_S]
        self._history = [*recent, (now, tokens)]
        first_at, first_tokens = self._history[0]
        return (tokens - first_tokens) / (now - first_at) if now > first_at else None

    def _completed(self, view: Mapping[str, Any]) -> list[str]:
        complete = {
            key
            for key, counts in view["datasets"].items()
            if counts["num_done"] >= counts["num_questions"] or key in view["closed"]
        }
        new, self._complete = complete - self._complete, self._complete | complete
        return [f"  {_describe(key, view)}, complete" for key in sorted(new)]

    def _table(self, view: Mapping[str, Any]) -> list[str]:
        now = time.monotonic()
        if len(view["datasets"]) < 2 or now - self._table_at < TABLE_EVERY_S:
            return []
        self._table_at = now
        unfinished = sorted(set(view["datasets"]) - self._complete)
        return [f"  {_describe(key, view)}" for key in unfinished]


def _questions_by_job(view: Mapping[str, Any]) -> tuple[Counter[str], Counter[str]]:
    """The questions of each job that have their row, and those that still get one."""
    finished: Counter[str] = Counter()
    still_open: Counter[str] = Counter()
    for (job, dataset), counts in view["datasets"].items():
        finished[job] += counts["num_done"]
        if (job, dataset) not in view["closed"]:
            still_open[job] += counts["num_questions"] - counts["num_done"]
    return finished, still_open


def _answers_by_job(view: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The answers of each job, and how many of them are right, were cut off, or failed."""
    found: dict[str, Counter[str]] = {name: Counter() for name in ANSWERS}
    for (job, _), counts in view["datasets"].items():
        for name, counter in ANSWERS.items():
            found[name][job] += counts.get(counter, 0)
    return {name: dict(by_job) for name, by_job in found.items()}


def _tokens_of(job: str, view: Mapping[str, Any]) -> int:
    return num_tokens({key[1]: counts for key, counts in view["datasets"].items() if key[0] == job})


def _describe(key: Key, view: Mapping[str, Any]) -> str:
    counts = view["datasets"][key]
    parts = [
        f"{key[0]} {key[1]}: {counts['num_done']}/{counts['num_questions']} questions",
        f"{counts['num_tokens']} tokens",
        _accepted([counts]),
    ]
    if counts["num_failed"]:
        parts.append(f"{counts['num_failed']} failed")
    if key in view["closed"]:
        parts.append("has enough")
    return ", ".join(filter(None, parts))


def _accepted(all_counts: Any) -> str:
    answers = sum(counts["num_paths"] for counts in all_counts)
    accepted = sum(counts["num_accepted"] for counts in all_counts)
    return f"{100 * accepted / answers:.1f} % of {answers} accepted" if answers else ""


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
