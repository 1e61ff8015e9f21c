from __future__ import annotations

import os

import pytest

from cluster.errors import StorageError
from cluster.store.backlog import Backlog


@pytest.mark.parametrize("memory_bytes", [1, 10_000_000])
def test_backlog_gives_back_in_order_what_came_from_memory_or_disk(memory_bytes: int) -> None:
    backlog = Backlog(memory_bytes)
    taken = []
    for number in range(30):
        backlog.add({"question_id": number, "paths": ["x" * number]})
        if number % 7 == 6:
            taken += backlog.take(4)
    assert len(backlog) == 30 - len(taken)
    while more := backlog.take(4):
        taken += more
    assert [row["question_id"] for row in taken] == list(range(30))
    assert taken[29]["paths"] == ["x" * 29]


def test_backlog_goes_to_the_disk_beyond_its_bound_and_back_when_it_is_empty() -> None:
    backlog = Backlog(1000)
    backlog.add("x" * 10)
    assert not backlog.is_on_disk
    backlog.add("x" * 1000)
    assert backlog.is_on_disk
    backlog.take(2)
    assert not backlog.is_on_disk


def test_backlog_a_full_disk_is_one_sentence() -> None:
    backlog = Backlog(1)
    backlog.add("x")
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, backlog._file.fileno())
    os.close(full)
    with pytest.raises(StorageError, match=r"do not fit on the disk .*No space left.*TMPDIR"):
        backlog.add("x" * 1_000_000)
    backlog._file._file.detach()  # type: ignore[attr-defined]
