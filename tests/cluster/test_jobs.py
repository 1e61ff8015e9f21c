from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from cluster.inference.job import Slots


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


async def turns(number: int = 10) -> None:
    """Let every task go on as far as it can."""
    for _ in range(number):
        await asyncio.sleep(0)


class Chains:
    """Chains that keep their slot until they are let go, and a note of who is inside."""

    def __init__(self, num_slots: int) -> None:
        self.slots = Slots(num_slots)
        self.entered: list[str] = []
        self.inside: set[str] = set()
        self.peak = 0
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._chain(name))

    def leave(self, name: str) -> None:
        self._leave[name].set()

    async def _chain(self, name: str) -> None:
        async with self.slots:
            self.entered.append(name)
            self.inside.add(name)
            self.peak = max(self.peak, len(self.inside))
            try:
                await self._leave[name].wait()
            finally:
                self.inside.discard(name)


async def assert_all_free(slots: Slots, number: int) -> None:
    """So many slots can be had, and not one more."""
    chains = Chains(number)
    chains.slots = slots
    names = [f"last-{n}" for n in range(number + 1)]
    chains.start(*names)
    await turns()
    assert chains.entered == names[:-1]
    for name in names:
        chains.leave(name)
    await asyncio.gather(*chains.tasks.values())
    assert chains.entered == names


def test_slots_are_given_in_turn_and_never_more_than_there_are() -> None:
    async def scenario() -> None:
        chains = Chains(2)
        chains.start(*"abcde")
        await turns()
        assert chains.entered == ["a", "b"]
        chains.leave("b")
        await turns()
        chains.start("f")
        chains.leave("a")
        chains.leave("c")
        await turns()
        assert chains.entered == ["a", "b", "c", "d", "e"]
        for name in "def":
            chains.leave(name)
        await asyncio.gather(*chains.tasks.values())
        assert chains.entered == list("abcdef")
        assert chains.peak == 2
        await assert_all_free(chains.slots, 2)

    run(scenario())


def test_slots_newcomer_does_not_pass_one_who_waits() -> None:
    async def scenario() -> None:
        chains = Chains(1)
        chains.start("a", "b")
        await turns()
        chains.leave("a")
        chains.start("c")  # before b has noticed that its turn has come
        await turns()
        assert chains.entered == ["a", "b"]

    run(scenario())


def test_slots_chain_that_fails_gives_its_slot_back() -> None:
    async def scenario() -> None:
        slots = Slots(1)
        with pytest.raises(ValueError, match="no answer"):
            async with slots:
                raise ValueError("no answer")
        await assert_all_free(slots, 1)

    run(scenario())


@pytest.mark.parametrize("cancelled", ["b", "c", "d", "bc", "bd", "cd", "bcd"])
def test_slots_cancelled_waiter_is_passed_over(cancelled: str) -> None:
    async def scenario() -> None:
        chains = Chains(1)
        chains.start(*"abcd")
        await turns()
        for name in cancelled:
            chains.tasks[name].cancel()
        for name in "abcd":
            chains.leave(name)
        await turns(30)
        assert chains.entered == [name for name in "abcd" if name not in cancelled]
        await chains.slots.room()
        await assert_all_free(chains.slots, 1)

    run(scenario())


def test_slots_chain_cancelled_in_the_moment_of_its_turn_hands_the_slot_on() -> None:
    async def scenario() -> None:
        chains = Chains(1)
        await chains.slots.__aenter__()
        chains.start("a", "b")
        await turns()
        await chains.slots.__aexit__()
        chains.tasks["a"].cancel()  # it was given the slot and has not run since
        await turns()
        assert chains.entered == ["b"]
        chains.leave("b")
        await turns()
        await assert_all_free(chains.slots, 1)

    run(scenario())


def test_slots_last_waiter_cancelled_in_the_moment_of_its_turn_frees_the_slot() -> None:
    async def scenario() -> None:
        chains = Chains(1)
        await chains.slots.__aenter__()
        chains.start("a")
        await turns()
        await chains.slots.__aexit__()
        chains.tasks["a"].cancel()
        await chains.slots.room()
        await assert_all_free(chains.slots, 1)

    run(scenario())


@pytest.mark.parametrize("seed", range(60))
def test_slots_none_is_lost_whatever_is_cancelled_when(seed: int) -> None:
    draw = random.Random(seed)
    num_slots = draw.randint(1, 4)
    inside = 0

    async def chain(slots: Slots, num_turns: int, fails: bool) -> None:
        nonlocal inside
        async with slots:
            inside += 1
            try:
                assert inside <= num_slots
                await turns(num_turns)
                if fails:
                    raise ValueError
            finally:
                inside -= 1

    async def scenario() -> None:
        slots = Slots(num_slots)
        tasks: list[asyncio.Task[None]] = []
        for _ in range(300):
            if draw.random() < 0.5:
                begun = chain(slots, draw.randrange(6), draw.random() < 0.1)
                tasks.append(asyncio.create_task(begun))
            if tasks and draw.random() < 0.4:
                draw.choice(tasks[-10:]).cancel()
            await turns(draw.randrange(3))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {
            type(None),
            ValueError,
            asyncio.CancelledError,
        }
        await slots.room()
        await assert_all_free(slots, num_slots)

    run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_slots_of_several_are_given_in_turn_and_none_is_lost(seed: int) -> None:
    draw = random.Random(seed)
    num_slots = draw.randint(1, 6)
    inside = 0
    begun: list[int] = []

    async def request(slots: Slots, number: int, count: int) -> None:
        nonlocal inside
        async with slots.take(count):
            begun.append(number)
            inside += min(count, num_slots)
            try:
                assert inside <= num_slots
                await turns(draw.randrange(5))
            finally:
                inside -= min(count, num_slots)

    async def scenario() -> None:
        slots = Slots(num_slots)
        tasks = []
        for number in range(200):
            tasks.append(asyncio.create_task(request(slots, number, draw.randint(1, 9))))
            if draw.random() < 0.2:
                draw.choice(tasks[-10:]).cancel()
            await turns(draw.randrange(3))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert begun == sorted(begun)
        await slots.room()
        await assert_all_free(slots, num_slots)

    run(scenario())


def test_room_is_there_while_a_slot_is_free_or_nobody_waits() -> None:
    async def scenario() -> None:
        chains = Chains(2)
        await chains.slots.room()
        chains.start("a", "b")
        await turns()
        await chains.slots.room()
        chains.start("c")
        await turns()
        room = asyncio.create_task(chains.slots.room())
        await turns()
        assert not room.done()
        chains.leave("a")
        await turns()
        assert room.done()

    run(scenario())


def test_room_is_there_again_when_all_who_waited_were_cancelled() -> None:
    async def scenario() -> None:
        chains = Chains(1)
        chains.start(*"abcd")
        await turns()
        room = asyncio.create_task(chains.slots.room())
        await turns()
        for name in "cbd":
            assert not room.done()
            chains.tasks[name].cancel()
            await turns()
        assert room.done()

    run(scenario())


def test_room_caller_that_is_cancelled_does_not_hold_up_the_next() -> None:
    async def scenario() -> None:
        chains = Chains(1)
        chains.start("a", "b")
        await turns()
        first, second = (asyncio.create_task(chains.slots.room()) for _ in range(2))
        await turns()
        first.cancel()
        chains.leave("a")
        await second

    run(scenario())


@pytest.mark.parametrize("num_chunks", [1, 4])
@pytest.mark.parametrize("width", [1, 3, 25])
def test_room_lets_begin_no_more_questions_than_fill_the_slots(num_chunks: int, width: int) -> None:
    # As a worker does: several chunks at once, each begins its questions one after the other.
    num_slots = 10
    num_open, most_open, finished, busiest = 0, 0, 0, 0

    async def question(slots: Slots) -> None:
        nonlocal num_open, most_open, finished, busiest
        num_open += 1
        most_open = max(most_open, num_open)
        inside = 0

        async def chain() -> None:
            nonlocal inside, busiest
            async with slots:
                inside += 1
                busiest = max(busiest, inside)
                await turns(5)
                inside -= 1

        await asyncio.gather(*(chain() for _ in range(width)))
        num_open -= 1
        finished += 1

    async def chunk(slots: Slots) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                await slots.room()
                group.create_task(question(slots))

    async def scenario() -> None:
        slots = Slots(num_slots)
        await asyncio.gather(*(chunk(slots) for _ in range(num_chunks)))
        await assert_all_free(slots, num_slots)

    run(scenario())
    assert finished == 40 * num_chunks
    assert busiest == min(width, num_slots)
    # Those whose chains hold the slots, one that waits, and those that are about to end.
    assert most_open <= num_slots // min(width, num_slots) + 3
