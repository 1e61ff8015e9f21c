"""Waiting for GPUs: the arithmetic and the messages, then Ray's groups of logical GPUs."""

from __future__ import annotations

import re
import threading
import time

import pytest

from cluster.errors import InputError, InterruptedRunError
from cluster.gpus import (
    Need,
    Patience,
    free_nodes,
    has_room,
    refusal,
    reserved,
    total,
    wait_for_room,
    wait_until_free,
    waiting_line,
)
from cluster.session import StopRequest

ENGINES = Need("2 engines", ({"GPU": 4, "CPU": 1},) * 2, "lower X", "set Y")
EIGHT = {"GPU": 8.0, "CPU": 16.0}
SIX = {"GPU": 6.0, "CPU": 16.0}


@pytest.mark.parametrize(
    ("bundles", "nodes", "expected"),
    [
        (ENGINES.bundles, [EIGHT], True),
        (ENGINES.bundles, [SIX, SIX], True),
        (ENGINES.bundles, [SIX], False),
        (ENGINES.bundles, [{"GPU": 8.0, "CPU": 1.0}], False),
        (({"GPU": 1}, {"GPU": 4}), [{"GPU": 4.0}, {"GPU": 1.0}], True),
        (({"GPU": 8},), [{"GPU": 4.0}, {"GPU": 4.0}], False),
        (({"CPU": 0.1},) * 10, [{"CPU": 1.0}], True),
        ((), [], True),
    ],
)
def test_has_room_places_each_bundle_on_one_node(
    bundles: tuple[dict[str, float], ...], nodes: list[dict[str, float]], expected: bool
) -> None:
    assert has_room(bundles, nodes) is expected


@pytest.mark.parametrize(
    ("free", "limit", "expected"),
    [
        (
            [{"GPU": 4.0}, {"CPU": 9.0}],
            None,
            "waiting for 8 GPUs: 4 of 16 free (2 min 10 s), to start 2 engines",
        ),
        # Ray is about to grant them.
        (
            [{"GPU": 8.0, "CPU": 2.0}],
            None,
            "waiting for 8 GPUs: 8 of 16 free (2 min 10 s), to start 2 engines",
        ),
        (
            [{"GPU": 8.0, "CPU": 1.0}],
            None,
            "waiting for 8 GPUs: 8 of 16 free, 1 of 2 CPUs for them (2 min 10 s), "
            "to start 2 engines",
        ),
        (
            [{"GPU": 2.0, "CPU": 8.0}] * 4,
            900,
            "waiting for 8 GPUs: 8 of 16 free, not together on one node "
            "(2 min 10 s of at most 15 min 00 s), to start 2 engines",
        ),
    ],
)
def test_waiting_line_says_what_is_short(
    free: list[dict[str, float]], limit: float | None, expected: str
) -> None:
    assert waiting_line(ENGINES, [EIGHT, EIGHT], free, 130, limit) == expected


@pytest.mark.parametrize(
    ("nodes", "waited", "expected"),
    [
        (
            [{"CPU": 2.0}],
            30,
            "2 engines need 8 GPUs (4 together on one node), but the cluster has no GPU after a "
            "wait of 30 s; set Y, or run on at least 8 GPUs (4 together on one node)",
        ),
        (
            [{"GPU": 2.0, "CPU": 9.0}] * 2,
            0,
            "2 engines need 8 GPUs (4 together on one node) at once, but the cluster has 4 GPUs "
            "(2 + 2 on its nodes); lower X, or run on at least 8 GPUs (4 together on one node)",
        ),
        (
            [{"GPU": 8.0, "CPU": 1.0}],
            0,
            "2 engines need 2 CPUs at once, but the cluster has 1 CPU; lower X, or run on at least "
            "2 CPUs",
        ),
    ],
)
def test_refusal_names_the_setting_and_the_smallest_hardware(
    nodes: list[dict[str, float]], waited: float, expected: str
) -> None:
    assert refusal(ENGINES, nodes, waited) == expected


def one_gpu_each(count: int) -> Need:
    return Need(f"{count} engines", ({"GPU": 1},) * count, "lower X", "set Y")


def free_gpus() -> float:
    return total(free_nodes(), "GPU")


def wait_for_free_gpus(count: float) -> None:
    deadline = time.monotonic() + 20
    while free_gpus() != count:
        assert time.monotonic() < deadline, f"{free_gpus()} GPUs are free, not {count}"
        time.sleep(0.05)


def test_two_that_want_more_than_half_take_turns_and_the_second_says_what_it_waits_for(
    gpu_node: None, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[float] = []

    def second() -> None:
        with reserved(one_gpu_each(6), Patience(1.0), StopRequest()):
            held.append(time.monotonic())

    with reserved(one_gpu_each(6), Patience(), StopRequest()):
        waiter = threading.Thread(target=second)
        waiter.start()
        wait_for_free_gpus(2)
        time.sleep(2.5)
        assert not held
        assert free_gpus() == 2, "the one that waits holds nothing"
        given_back = time.monotonic()
    waiter.join(20)
    assert held
    assert held[0] > given_back
    said = capsys.readouterr().err
    assert re.search(r"waiting for 6 GPUs: 2 of 8 free \(\d s\), to start 6 engines", said), said
    assert "6 GPUs to start 6 engines: available after" in said
    wait_for_free_gpus(8)


def test_wait_ends_with_the_request_to_stop_and_holds_nothing(gpu_node: None) -> None:
    stop = StopRequest()
    with reserved(one_gpu_each(8), Patience(), StopRequest()):
        threading.Timer(0.5, stop.set).start()
        with pytest.raises(InterruptedRunError, match="while waiting for 1 GPU"):
            wait_until_free(one_gpu_each(1), Patience(), stop)
    wait_for_free_gpus(8)


def test_more_than_the_cluster_has_is_refused_at_once_on_a_ray_of_our_own_else_after_the_wait(
    gpu_node: None,
) -> None:
    wait_for_room(one_gpu_each(8), Patience(), StopRequest())
    with pytest.raises(InputError, match="9 GPUs at once, but the cluster has 8 GPUs; lower X"):
        wait_for_room(one_gpu_each(9), Patience(), StopRequest())
    with pytest.raises(InputError, match="has 8 GPUs after a wait of 1 s; lower X"):
        wait_for_room(one_gpu_each(9), Patience(gpu_wait_s=1.0), StopRequest())
    with (
        reserved(one_gpu_each(8), Patience(), StopRequest()),
        pytest.raises(InputError, match="9 GPUs"),
        reserved(one_gpu_each(9), Patience(), StopRequest()),
    ):
        raise AssertionError("held more than there is")
