from __future__ import annotations

import io
import pickle
import re
import threading
import types
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest

import cluster.inference.progress
from cluster.inference.progress import (
    ALIVE_S,
    ANSWERS,
    RECORD_EVERY_S,
    SHOWN_S,
    TABLE_EVERY_S,
    PoolEvents,
    ProgressBoard,
    ProgressPrinter,
    RateMeter,
    format_seconds,
)
from cluster.inference.schedule import DatasetQuota
from cluster.store.ledger import SUMMED


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cluster.inference.progress, "time", types.SimpleNamespace(monotonic=clock))
    return clock


def counts(num_questions: int, **changes: int) -> dict[str, int]:
    base = {"num_questions": num_questions, "num_done": 0} | dict.fromkeys(SUMMED, 0)
    return base | changes


def board(max_tokens: int | None = None, **shares: DatasetQuota) -> ProgressBoard:
    """Ten questions of `a`, of which two are done, and twenty of `b`."""
    a = counts(10, num_done=2, num_tokens=100, num_paths=8, num_accepted=4)
    totals = {"paths": {"a": a, "b": counts(20)}, "predictions": {"a": counts(5)}}
    return ProgressBoard(totals, {"paths": shares}, {"paths": max_tokens, "predictions": None})


def report(
    board: ProgressBoard,
    worker: str,
    *,
    open_questions: tuple[str, ...] = (),
    engine: dict[str, float] | None = None,
    **datasets: dict[str, int],
) -> dict[str, Any]:
    own = {("paths", name): changes for name, changes in datasets.items()}
    processes = {"node_id": "n", "pids": [len(worker)]}
    return board.report(worker, engine or {}, own, list(open_questions), processes)


# --- the board ---------------------------------------------------------------------------------


def test_board_adds_what_every_worker_made_durable_to_what_was_there() -> None:
    kept = board()
    report(kept, "w1", a={"num_done": 1, "num_tokens": 10}, engine={"num_tokens": 50})
    report(kept, "w1", a={"num_done": 3, "num_tokens": 30}, engine={"num_tokens": 90})
    report(kept, "w2", a={"num_done": 1, "num_tokens": 7}, b={"num_done": 4})
    view = kept.view()
    a, b = view["datasets"]["paths", "a"], view["datasets"]["paths", "b"]
    assert (a["num_questions"], a["num_done"], a["num_tokens"]) == (10, 6, 137)
    assert (b["num_questions"], b["num_done"], b["num_tokens"]) == (20, 4, 0)
    assert view["num_tokens"] == 90
    assert view["num_started"] == 2


def test_board_counts_sum_over_workers_and_keep_the_first_and_last_time() -> None:
    kept = board()
    report(kept, "w1", engine={"num_tokens": 5, "first_chunk_at": 20.0, "last_row_at": 40.0})
    report(kept, "w2", engine={"num_tokens": 6, "first_chunk_at": 10.0})
    report(kept, "w3", engine={"num_tokens": 7, "first_chunk_at": 30.0, "last_row_at": 90.0})
    assert kept.counts() == {
        "num_tokens": 18,
        "first_chunk_at": 10.0,
        "last_row_at": 90.0,
        "num_workers": 3,
    }
    assert board().counts() == {"num_workers": 0}


def test_board_worker_that_fell_silent_is_not_alive(clock: Clock) -> None:
    kept = board()
    report(kept, "w1", engine={"num_in_flight": 8, "num_tokens": 5})
    clock.now += ALIVE_S - 1
    report(kept, "w2", engine={"num_in_flight": 3, "num_tokens": 6})
    assert kept.view()["num_alive"] == 2
    clock.now += 2
    view = kept.view()
    assert (view["num_alive"], view["num_in_flight"], view["num_tokens"]) == (1, 3, 11)
    assert view["num_started"] == 2


def test_board_worker_that_died_is_not_alive_from_when_its_chunk_is_begun_again() -> None:
    kept = board()
    kept.begin_chunk("w1", "paths/0")
    report(kept, "w1", engine={"num_in_flight": 8})
    kept.begin_chunk("w2", "paths/0")
    report(kept, "w2", engine={"num_in_flight": 3})
    view = kept.view()
    assert (view["num_alive"], view["num_in_flight"]) == (1, 3)


def test_board_metrics_are_those_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util.metrics

    values: dict[tuple[str, ...], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
            self._name = name

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            values[self._name, *(tags or {}).values()] = value

    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    kept = board()
    kept.begin_chunk("w1", "paths/0")
    report(kept, "w1", engine={"num_in_flight": 8})
    kept.begin_chunk("w2", "paths/0")
    report(kept, "w2", engine={"num_in_flight": 3}, b={"num_done": 5})
    kept.view()
    assert values["regenesis_num_engines",] == 1
    assert values["regenesis_num_generations_in_flight",] == 3
    assert values["regenesis_num_done", "paths", "b"] == 5
    assert values["regenesis_num_questions", "paths", "a"] == 10


@pytest.mark.parametrize(
    ("share", "tokens", "accepted", "is_closed"),
    [
        (DatasetQuota(max_tokens=150), 49, 50, False),
        (DatasetQuota(max_tokens=150), 50, 0, True),
        (DatasetQuota(max_accepted=7), 900, 2, False),
        (DatasetQuota(max_accepted=7), 0, 3, True),
        (DatasetQuota(weight=5), 10**9, 10**9, False),
    ],
)
def test_board_closes_a_dataset_that_has_enough_of_all_workers_together(
    share: DatasetQuota, tokens: int, accepted: int, is_closed: bool
) -> None:
    kept = board(a=share, b=DatasetQuota(max_tokens=10**12))
    report(kept, "w1", a={"num_tokens": tokens})
    reply = report(kept, "w2", a={"num_accepted": accepted})
    assert reply == {"stop": False, "closed": {("paths", "a")} if is_closed else set()}
    assert kept.view()["closed"] == reply["closed"]


@pytest.mark.parametrize(
    ("tokens", "is_closed"), [((0, 0), False), ((20, 29), False), ((20, 30), True), ((50, 0), True)]
)
def test_board_closes_all_datasets_of_a_job_that_has_its_tokens(
    tokens: tuple[int, int], is_closed: bool
) -> None:
    kept = board(150, b=DatasetQuota(max_accepted=7))
    report(kept, "w1", a={"num_tokens": tokens[0]})
    reply = report(kept, "w2", b={"num_tokens": tokens[1]})
    # The predictions that run at the same time have no limit.
    assert reply["closed"] == ({("paths", "a"), ("paths", "b")} if is_closed else set())
    # A retry that takes tokens back opens nothing again.
    assert report(kept, "w1", a={"num_tokens": -100})["closed"] == reply["closed"]


def test_board_share_of_a_dataset_that_the_job_has_no_question_of_is_no_error() -> None:
    kept = board(a=DatasetQuota(max_tokens=100), far=DatasetQuota(max_tokens=0))
    assert report(kept, "w1")["closed"] == {("paths", "a")}


def test_board_stop_reaches_every_worker_at_its_next_report() -> None:
    kept = board()
    assert not report(kept, "w1")["stop"]
    kept.stop()
    assert report(kept, "w1")["stop"]
    assert report(kept, "w2")["stop"]


def test_board_new_chunk_knows_of_no_deaths() -> None:
    kept = board()
    report(kept, "w1", open_questions=("q1",))
    assert kept.begin_chunk("w1", "paths/0") is None
    assert kept.begin_chunk("w2", "paths/1") is None
    kept.end_chunk("paths/0")
    # Done and begun anew, as by a Ray that lost a receipt.
    assert kept.begin_chunk("w2", "paths/0") is None


def test_board_counts_the_deaths_of_the_questions_that_were_being_answered() -> None:
    kept = board()
    kept.begin_chunk("w1", "paths/0")
    report(kept, "w1", open_questions=("q1", "q2"))
    report(kept, "w1", open_questions=("q2", "q3"))
    assert kept.begin_chunk("w2", "paths/0") == {"q2": 1, "q3": 1}
    # The questions that another worker has in hand lived on.
    report(kept, "w2", open_questions=("q3",))
    report(kept, "w9", open_questions=("q2", "q7"))
    assert kept.begin_chunk("w3", "paths/0") == {"q2": 1, "q3": 2}


def test_board_counts_a_death_once_though_several_chunks_died() -> None:
    kept = board()
    for chunk in ("paths/0", "paths/1", "paths/2"):
        kept.begin_chunk("w1", chunk)
    report(kept, "w1", open_questions=("q1",))
    assert [kept.begin_chunk("w2", f"paths/{n}") for n in range(3)] == [{"q1": 1}] * 3


def test_board_question_begun_after_the_last_report_is_among_those_that_may_have_killed() -> None:
    kept = board()
    kept.begin_chunk("w1", "paths/0")
    report(kept, "w1")
    assert kept.begin_chunk("w2", "paths/0") == {}
    report(kept, "w2", open_questions=("q1",))
    kept.begin_question("w2", "q5")
    assert kept.begin_chunk("w3", "paths/0") == {"q1": 1, "q5": 1}
    kept.begin_question("w3", "q5")
    assert kept.begin_chunk("w4", "paths/0") == {"q1": 1, "q5": 2}


def test_board_chunk_handed_to_the_same_worker_again_is_no_death() -> None:
    kept = board()
    kept.begin_chunk("w1", "paths/0")
    report(kept, "w1", open_questions=("q1",))
    assert kept.begin_chunk("w1", "paths/0") == {}
    assert kept.begin_chunk("w2", "paths/0") == {"q1": 1}


def test_board_keeps_the_last_error_and_all_processes() -> None:
    kept = board()
    assert kept.last_error() is None
    kept.note_error("out of memory")
    kept.note_error("an illegal memory access")
    report(kept, "w1")
    report(kept, "w22")
    report(kept, "w1")
    assert kept.last_error() == "an illegal memory access"
    assert [process["pids"] for process in kept.processes()] == [[2], [3]]


def test_board_workers_of_a_node_are_numbered_and_keep_their_number() -> None:
    kept = board()
    asked = [("n1", "x"), ("n1", "y"), ("n2", "z"), ("n1", "x"), ("n1", "w")]
    assert [kept.enter_node(*place) for place in asked] == [0, 1, 0, 0, 2]


def test_board_can_be_sent_to_its_actor() -> None:
    kept = pickle.loads(pickle.dumps(board(a=DatasetQuota(max_tokens=1))))
    assert report(kept, "w1")["closed"] == {("paths", "a")}


# --- the lines ---------------------------------------------------------------------------------


def view(
    datasets: dict[str, dict[str, int]],
    tokens: int = 0,
    closed: tuple[str, ...] = (),
    max_tokens: int | None = None,
    num_generations: int = 0,
    num_in_flight: int = 12,
) -> dict[str, Any]:
    return {
        "num_alive": 2,
        "num_started": 2,
        "num_in_flight": num_in_flight,
        "num_tokens": tokens,
        "kinds": {100: (num_generations, tokens, num_in_flight)},
        "datasets": {("paths", name): value for name, value in datasets.items()},
        "closed": {("paths", name) for name in closed},
        "max_tokens": {} if max_tokens is None else {"paths": max_tokens},
    }


def test_lines_before_the_first_report_say_that_engines_start() -> None:
    nothing = view({"a": counts(10)}) | {"num_started": 0}
    assert RateMeter("paths").lines(nothing) == ["paths: starting the engines"]


def test_lines_tell_what_is_done_how_fast_and_how_long_it_takes(clock: Clock) -> None:
    meter = RateMeter("paths", complete=[("paths", "b")], per_question={"paths": {100: 2}})
    a, b = counts(60, num_done=10), counts(40, num_done=40)
    assert meter.lines(view({"a": a, "b": b})) == [
        "paths: 50/100 questions | 12 generating | 2 engines"
    ]
    clock.now += 10
    a |= {"num_done": 20, "num_paths": 40, "num_accepted": 30}
    # 40 generations are done, 20 of them for open questions; of the other 60, 12 are in flight.
    assert meter.lines(view({"a": a, "b": b}, tokens=2000, num_generations=40)) == [
        "paths: 60/100 questions | 200 tok/s | 12 generating | 2 engines | "
        "75.0 % of 40 accepted | 12 s left"
    ]


def test_lines_of_a_job_with_a_bound_tell_its_tokens_and_when_the_first_end_comes(
    clock: Clock,
) -> None:
    meter = RateMeter("paths", per_question={"paths": {100: 2}})

    def line(tokens: int, num_done: int) -> str:
        a = counts(50, num_done=num_done, num_tokens=tokens)
        now = view({"a": a}, tokens, (), 1000, num_generations=tokens // 50, num_in_flight=0)
        return meter.lines(now)[0]

    meter.lines(view({"a": counts(50)}, max_tokens=1000))
    clock.now += 10
    # 500 tokens in 10 s: the bound comes 10 s from now, 45 questions of 100 tokens much later.
    assert line(500, 5).endswith("| 500 of 1000 tokens | 10 s left")
    # One question is left, which ends sooner than the bound.
    assert line(500, 49).endswith("| 500 of 1000 tokens | 2 s left")
    assert line(1000, 10).endswith("| 1000 of 1000 tokens")


def test_lines_rate_is_that_of_the_last_minute(clock: Clock) -> None:
    meter = RateMeter("paths")
    busy = view({"a": counts(10)}, num_generations=1)
    meter.lines(busy)
    clock.now += SHOWN_S
    meter.lines(view({"a": counts(10)}, 50_000, num_generations=1, num_in_flight=0))
    clock.now += SHOWN_S
    [line] = meter.lines(view({"a": counts(10)}, 50_600, num_generations=1, num_in_flight=0))
    assert "| 10 tok/s |" in line


def test_lines_name_each_completed_dataset_once() -> None:
    meter = RateMeter("paths", complete=[("paths", "a")])
    done = counts(5, num_done=5)

    def lines(**datasets: dict[str, int]) -> list[str]:
        return meter.lines(view(datasets))[1:]

    # What was complete before this execution is no news.
    assert lines(a=done, b=counts(3), c=counts(4)) == []
    assert lines(a=done, b=counts(3, num_done=2), c=counts(4)) == []
    b = counts(3, num_done=3, num_tokens=70, num_paths=8, num_accepted=2, num_failed=1)
    assert lines(a=done, b=b, c=counts(4)) == [
        "  paths b: 3/3 questions, 70 tokens, 25.0 % of 8 accepted, 1 failed, complete"
    ]
    assert lines(a=done, b=b, c=counts(4)) == []


def test_lines_dataset_that_has_enough_is_complete() -> None:
    meter = RateMeter("paths")
    meter.lines(view({"a": counts(5), "b": counts(5)}))
    lines = meter.lines(view({"a": counts(5, num_tokens=9), "b": counts(5)}, closed=("a",)))
    assert lines[1:] == ["  paths a: 0/5 questions, 9 tokens, has enough, complete"]


def test_lines_once_a_minute_say_where_the_unfinished_datasets_stand(clock: Clock) -> None:
    meter = RateMeter("paths", complete=[("paths", "a")])
    datasets = {"a": counts(5, num_done=5), "c": counts(4), "b": counts(9, num_done=1)}
    assert meter.lines(view(datasets))[1:] == []
    clock.now += TABLE_EVERY_S
    table = ["  paths b: 1/9 questions, 0 tokens", "  paths c: 0/4 questions, 0 tokens"]
    assert meter.lines(view(datasets))[1:] == table
    clock.now += 1
    assert meter.lines(view(datasets))[1:] == []
    clock.now += TABLE_EVERY_S
    assert meter.lines(view(datasets))[1:] == table
    clock.now += TABLE_EVERY_S
    assert meter.lines(view({"c": counts(4)}))[1:] == []  # the line of now says it all


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_seconds_are_written_for_people(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


# --- the printer -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """All that was ever shown, without what moves the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.getvalue()).split("\n")


def print_all(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    *described: list[str],
    every_s: float = 0,
    bars: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> None:
    """Print what is described one after the other; the last again when the block ends."""
    monkeypatch.setattr(cluster.inference.progress, "DESCRIBE_EVERY_S", 0.001)
    all_described = threading.Event()

    def describe() -> Iterator[list[str]]:
        yield from described
        all_described.set()
        while True:
            yield described[-1][:1]

    lines = describe()
    with ProgressPrinter(
        lambda: next(lines), every_s=every_s, stream=stream, bars=lambda: dict(bars)
    ):
        all_described.wait()


def test_printer_on_a_plain_stream_prints_every_line_that_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    print_all(monkeypatch, stream, ["1/3"], ["1/3"], ["2/3", "a: complete"], ["3/3"])
    assert stream.getvalue() == "1/3\na: complete\n2/3\n3/3\n"


def test_printer_on_a_plain_stream_prints_no_more_often_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    described = [["1/9"], ["2/9"], ["3/9", "a: complete"], ["4/9"], ["5/9"]]
    print_all(monkeypatch, stream, *described, every_s=3600)
    # News is not kept back, and the end is always told.
    assert stream.getvalue() == "a: complete\n3/9\n5/9\n"


def test_printer_on_a_terminal_shows_a_bar_for_each_dataset_and_leaves_the_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Terminal()
    bars = {"paths [b]a[/b]": (1, 3), "predictions c": (4, 8)}
    print_all(
        monkeypatch, stream, ["1/3"], ["2/3", "a: complete"], ["3/3"], every_s=3600, bars=bars
    )
    shown = stream.lines()
    assert any("paths [b]a[/b]" in line and "1/3" in line for line in shown)
    assert any("predictions c" in line and "4/8" in line for line in shown)
    assert "a: complete" in "".join(shown)
    assert [line for line in shown if line][-1].endswith("3/3")


def test_pool_events_record_engines_that_come_and_go_and_a_rate_each_minute(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        cluster.inference.progress, "record", lambda name, **f: recorded.append((name, f))
    )
    done = counts(5, num_done=2, num_paths=4, num_accepted=3, num_truncated=1)
    events, now = PoolEvents(), view({"a": done}, tokens=70)
    for num_alive in (2, 2, 1):
        events(now | {"num_alive": num_alive})
    assert [name for name, _ in recorded] == ["engines_started", "rate", "engines_lost"]
    assert recorded[1][1]["questions_left"] == {"paths": 3}
    answers = {name: recorded[1][1][name] for name in ANSWERS}
    expected = {"answers": 4, "accepted": 3, "truncated": 1, "failed": 0}
    assert answers == {name: {"paths": number} for name, number in expected.items()}
    assert recorded[2][1] == {"number": 1, "alive": 1}
    clock.now += RECORD_EVERY_S
    events(now | {"num_alive": 1})
    assert recorded[-1][0] == "rate"


def test_printer_prints_at_least_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with ProgressPrinter(lambda: ["done"], every_s=3600, stream=stream):
        pass
    assert stream.getvalue() == "done\n"


def test_bars_are_the_finished_and_all_questions_of_each_dataset_of_a_job() -> None:
    seen = view({"a": counts(10, num_done=4), "b": counts(3)})
    assert RateMeter.bars(seen) == {"paths a": (4, 10), "paths b": (0, 3)}


def test_board_weights_are_those_that_the_first_worker_noted() -> None:
    made = board()
    assert made.weights() == {}
    made.note_weights({"dtype": "float32"})
    made.note_weights({"dtype": "bfloat16"})
    assert made.weights() == {"dtype": "float32"}
