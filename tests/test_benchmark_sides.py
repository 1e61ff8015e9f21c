"""The turns of the sides of a benchmark, and their command line."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from benchmarks.sides import Turns, chosen_of, positive_int, rotated


def test_rotated_begins_elsewhere_and_keeps_the_order() -> None:
    assert [rotated("abc", by) for by in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert rotated([], 3) == []


def test_sides_are_chosen_in_their_own_order_and_an_unknown_one_is_named() -> None:
    choose = chosen_of({"one": 1, "two": 2, "three": 3})
    assert choose("three,one") == ("one", "three")
    with pytest.raises(argparse.ArgumentTypeError, match=r"'four'; known: one, two, three"):
        choose("one,four")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "few", ""])
def test_number_that_is_not_above_0_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a number above 0"):
        positive_int(text)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_no_side_begins_a_step_before_all_workers_of_the_one_before_are_done(
    num_workers: int,
) -> None:
    seen: list[tuple[str, str, int]] = []

    async def work(turns: Turns, side: str) -> None:
        for step in range(3):
            await turns.wait_for(side, step)
            seen.append(("begin", side, step))
            await asyncio.sleep(0)
            seen.append(("end", side, step))
            await turns.done()

    async def everybody() -> None:
        turns = Turns("ab", num_steps=3, num_workers=num_workers)
        workers = [work(turns, side) for side in "ba" for _ in range(num_workers)]
        await asyncio.wait_for(asyncio.gather(*workers), timeout=10)

    asyncio.run(everybody())
    order = [(side, step) for side, step in dict.fromkeys((s, n) for _, s, n in seen)]
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    of_turns = [seen[i : i + 2 * num_workers] for i in range(0, len(seen), 2 * num_workers)]
    assert all(len({(side, step) for _, side, step in turn}) == 1 for turn in of_turns)
