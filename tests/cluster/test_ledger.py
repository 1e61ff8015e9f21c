from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.ledger import LEDGER_FIELDS, Ledger, PartWriter, part_names
from cluster.storage import Folder

SCHEMA = pa.schema([*LEDGER_FIELDS, ("text", pa.string())])


def write(folder: Folder, *rows: tuple[str, str, int, str]) -> None:
    writer = PartWriter(folder, SCHEMA)
    for row in rows:
        writer.add(dict(zip(SCHEMA.names, row, strict=True)))
    writer.flush()


def texts(folder: Folder, wanted: dict[str, str]) -> dict[str, Any]:
    return {row["question_id"]: row["text"] for row in Ledger.read(folder).rows(wanted)}


def test_ledger_row_written_twice_is_read_once_and_the_first_stands(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder.child("chunk-0"), ("q1", "f", 0, "first"), ("q2", "f", 0, "other"))
    write(folder.child("chunk-0"), ("q1", "f", 0, "again"))
    assert texts(folder, {"q1": "f", "q2": "f"}) == {"q1": "first", "q2": "other"}


def test_ledger_latest_attempt_wins_whatever_the_order(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder.child("b"), ("q1", "f", 1, "retried"))
    write(folder.child("a"), ("q1", "f", 0, "failed"))
    assert texts(folder, {"q1": "f"}) == {"q1": "retried"}


def test_ledger_torn_part_is_left_aside_and_its_rows_are_missing(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder.child("a"), ("q1", "f", 0, "kept"))
    write(folder.child("b"), ("q2", "f", 0, "torn"))
    part = next(name for name in part_names(folder) if name.startswith("b/"))
    data = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(data[:-7])
    ledger = Ledger.read(folder)
    assert ledger.torn_parts == [part]
    assert ledger.missing({"q1": "f", "q2": "f"}) == ["q2"]


def test_ledger_changed_question_is_missing_again(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder.child("a"), ("q1", "old", 0, "answer to the old question"))
    assert Ledger.read(folder).missing({"q1": "new"}) == ["q1"]
    assert texts(folder, {"q1": "new"}) == {}


def test_writer_flush_leaves_earlier_parts_untouched(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, ("q1", "f", 0, "a"))
    before = {name: (tmp_path / name).read_bytes() for name in part_names(folder)}
    write(folder, ("q2", "f", 0, "b"))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert len(part_names(folder)) == 2
