from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import StorageError
from cluster.inference.engine import EngineSettings
from cluster.inference.worker import _RowKeeper, _State
from cluster.store.backlog import Backlog
from cluster.store.folder import Folder
from cluster.store.ledger import LEDGER_FIELDS, Ledger, PartWriter, ledger_schema
from tests.cluster.s3_proxy import CountingProxy


@pytest.mark.parametrize("memory_bytes", [1, 10_000_000])
def test_backlog_gives_back_in_order_what_came_from_memory_or_disk(memory_bytes: int) -> None:
    rows = Backlog(memory_bytes)
    taken = []
    for number in range(30):
        rows.add({"question_id": number, "paths": ["x" * number]})
        if number % 7 == 6:
            taken += rows.take(4)
    assert len(rows) == 30 - len(taken)
    while more := rows.take(4):
        taken += more
    assert [row["question_id"] for row in taken] == list(range(30))
    assert taken[29]["paths"] == ["x" * 29]


def test_backlog_goes_to_the_disk_beyond_its_bound_and_back_when_it_is_empty() -> None:
    rows = Backlog(1000)
    rows.add("x" * 10)
    assert not rows.is_on_disk
    rows.add("x" * 1000)
    assert rows.is_on_disk
    rows.take(2)
    assert not rows.is_on_disk


def test_backlog_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cluster.store.backlog.pickle.dump", full)
    with pytest.raises(StorageError, match=r"do not fit on the disk .*No space left.*TMPDIR"):
        Backlog().add("x")


def row(number: int) -> dict[str, Any]:
    facts = dict.fromkeys((field.name for field in LEDGER_FIELDS), None)
    return facts | {
        "question_id": f"q{number}",
        "question_fingerprint": "f",
        "attempt": 0,
        "dataset": "sums",
        "num_paths": 3,
    }


def test_rows_that_are_finished_during_an_outage_are_written_after_it(
    s3_proxy: CountingProxy,
) -> None:
    folder = Folder.open(s3_proxy.uri(f"bucket/{uuid.uuid4().hex}"), outage_s=30)
    writer = PartWriter(folder.child("parts/000001-000001-aa/chunk-0"), ledger_schema([]))
    settings = EngineSettings(flush_s=0.02, flush_rows=4)
    state = _State()

    async def work() -> int:
        s3_proxy.mode = "away"
        job: Any = SimpleNamespace(name="paths")
        async with _RowKeeper(job, writer, settings, state) as keeper:
            for number in range(30):
                keeper.keep(row(number), None)
                await asyncio.sleep(0.005)
            num_refused = len(s3_proxy.refused)
            s3_proxy.mode = "on"
        return num_refused

    assert asyncio.run(work()) > 0
    rows = Ledger.read(folder).rows()
    assert sorted(each["question_id"] for each in rows) == sorted(f"q{n}" for n in range(30))
    assert state.datasets["paths", "sums"]["num_done"] == 30
    assert state.datasets["paths", "sums"]["num_paths"] == 90
    assert not state.stopping.is_set()


def test_rows_of_an_outage_that_does_not_end_end_the_worker(s3_proxy: CountingProxy) -> None:
    folder = Folder.open(s3_proxy.uri(f"bucket/{uuid.uuid4().hex}"), outage_s=0)
    writer = PartWriter(folder.child("parts/000001-000001-aa/chunk-0"), ledger_schema([]))
    state = _State()

    async def work() -> None:
        s3_proxy.mode = "away"
        job: Any = SimpleNamespace(name="paths")
        async with _RowKeeper(job, writer, EngineSettings(), state) as keeper:
            keeper.keep(row(1), None)

    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        asyncio.run(work())
    assert state.stopping.is_set()
