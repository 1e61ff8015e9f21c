from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest

import cluster.store.ledger
from cluster.store.folder import Folder
from cluster.store.ledger import SUMMED, Ledger, PartWriter, compact, ledger_schema, new_execution

SCHEMA = ledger_schema([pa.field("text", pa.string())])
Row = dict[str, Any]


def row(
    question_id: str, text: str = "", attempt: int = 0, fingerprint: str = "f", **counts: Any
) -> Row:
    return {
        "question_id": question_id,
        "question_fingerprint": fingerprint,
        "attempt": attempt,
        "dataset": question_id.partition("/")[0],
        "text": text,
        **counts,
    }


def write(folder: Folder, *rows: Row, chunk: str = "parts/1/000000") -> None:
    PartWriter(folder.child(chunk), SCHEMA).write(list(rows))


def wanted(*questions: str | tuple[str, str]) -> pa.Table:
    """Question ids, each with the fingerprint `f` where none is given."""
    pairs = [(q, "f") if isinstance(q, str) else q for q in questions]
    return pa.table(
        {
            "question_id": pa.array([id_ for id_, _ in pairs], pa.string()),
            "question_fingerprint": pa.array([print_ for _, print_ in pairs], pa.string()),
            "dataset": pa.array([id_.partition("/")[0] for id_, _ in pairs], pa.string()),
        }
    )


def texts(folder: Folder, *questions: str | tuple[str, str]) -> dict[str, str]:
    rows = Ledger.read(folder).of(wanted(*questions)).rows()
    return {row["question_id"]: row["text"] for row in rows}


def content(ledger: Ledger) -> list[Row]:
    """All valid rows, in an order that does not depend on the files."""
    return sorted(ledger.rows(), key=lambda row: (row["question_id"], row["question_fingerprint"]))


def stored(root: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def restore(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def three_questions(folder: Folder) -> None:
    """Two executions: in the second the failed one is answered, and one is written again."""
    write(folder, row("d/1", "one"), row("d/2", "failed", num_failed=1))
    write(folder, row("d/3", "three"), chunk="parts/1/000001")
    write(folder, row("d/2", "two", attempt=1), row("d/1", "one again"), chunk="parts/2/000000")


THREE = {"d/1": "one", "d/2": "two", "d/3": "three"}


# --- reading -----------------------------------------------------------------------------------


def test_ledger_row_written_twice_is_read_once_and_the_first_stands(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "first"), row("q2", "other"))
    write(folder, row("q1", "again"))
    assert texts(folder, "q1", "q2") == {"q1": "first", "q2": "other"}
    assert Ledger.read(folder).num_rows_read == 3


@pytest.mark.parametrize("text", "abcdefgh")
def test_ledger_of_equal_attempts_the_first_written_counts_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    folder = Folder.open(str(tmp_path))
    clock = iter(range(10**9, 0, -(10**8)))
    monkeypatch.setattr(time, "time_ns", lambda: 10**9 * next(clock))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    for chunk, written in ((0, "first"), (0, text), (3, "later")):
        write(folder, row("q1", written), chunk=f"parts/{new_execution(folder)}/{chunk:06d}")
        assert texts(folder, "q1") == {"q1": "first"}
    same_chunk = folder.child("same")
    for written in ("first", text, "later"):
        write(same_chunk, row("q1", written))
        assert texts(same_chunk, "q1") == {"q1": "first"}
    compact(folder, SCHEMA)
    write(folder, row("q1", "again"), chunk=f"parts/{new_execution(folder)}/000000")
    assert texts(folder, "q1") == {"q1": "first"}


def test_ledger_of_an_earlier_version_is_read_and_its_rows_go_first(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    old = pa.Table.from_pylist([row("q1", "old")], schema=SCHEMA)
    chunk = folder.child("parts/1764000000000-ab12/000000")
    chunk.write_table("part-1764000000001-0000-0123abcd.parquet", old)
    chunk.write_table("part-of-something-else.parquet", old.slice(0, 0))
    write(folder, row("q1", "new"), row("q2", "new"), chunk=f"parts/{new_execution(folder)}/000000")
    assert texts(folder, "q1", "q2") == {"q1": "old", "q2": "new"}
    assert compact(folder, SCHEMA, whole=True).num_rows_read == 2
    assert texts(folder, "q1", "q2") == {"q1": "old", "q2": "new"}


def test_ledger_latest_attempt_wins_whatever_the_order(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "retried", attempt=1), chunk="b")
    write(folder, row("q1", "failed", attempt=0), chunk="a")
    assert texts(folder, "q1") == {"q1": "retried"}


def test_ledger_torn_part_is_left_aside_and_its_rows_are_missing(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "kept"), chunk="a")
    write(folder, row("q2", "torn"), chunk="b")
    part = next(name for name in folder.walk() if name.startswith("b/"))
    data = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(data[:-7])
    ledger = Ledger.read(folder)
    assert ledger.torn_files == [part]
    assert ledger.missing(wanted("q1", "q2")).column("question_id").to_pylist() == ["q2"]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 8, 100])
def test_ledger_part_torn_anywhere_is_no_error(tmp_path: Path, size: int) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1"))
    part = tmp_path / folder.walk()[0]
    part.write_bytes(part.read_bytes()[:size])
    assert Ledger.read(folder).index.num_rows == 0
    assert compact(folder, SCHEMA).torn_files == []
    assert stored(tmp_path) == {}


def test_ledger_changed_question_is_missing_again(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "answer to the old question", fingerprint="old"))
    assert Ledger.read(folder).missing(wanted(("q1", "new"))).num_rows == 1
    assert texts(folder, ("q1", "new")) == {}


def test_ledger_later_attempt_of_an_old_text_does_not_hide_the_new_text(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "answer to the old question", attempt=2, fingerprint="old"))
    write(folder, row("q1", "answer to the new question", attempt=0, fingerprint="new"))
    assert texts(folder, ("q1", "new")) == {"q1": "answer to the new question"}
    compact(folder, SCHEMA)
    assert texts(folder, ("q1", "new")) == {"q1": "answer to the new question"}
    assert texts(folder, ("q1", "old")) == {"q1": "answer to the old question"}


def test_ledger_of_nothing_is_empty(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "nowhere"))
    for ledger in (Ledger.read(folder), compact(folder, SCHEMA)):
        assert list(ledger.rows()) == []
        assert ledger.split() == []
        assert ledger.missing(wanted("q1", "q2")).num_rows == 2
        assert ledger.of(wanted()).totals(wanted()) == {}


def test_ledger_missing_questions_come_in_the_order_asked(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q5"), row("q3"))
    missing = Ledger.read(folder).missing(wanted("q9", "q3", "q1", "q5", "q7"))
    assert missing.column("question_id").to_pylist() == ["q9", "q1", "q7"]


def test_ledger_reads_only_what_stands_below_a_folder(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    below = Ledger.read(folder, "parts/1/000001")
    assert [row["text"] for row in below.rows()] == ["three"]
    # Relative to the ledger's folder, so that other readers of it understand the names.
    assert below.files[0].startswith("parts/1/000001/part-")
    assert Ledger.read(folder, "parts/1/0000").files == []


def test_ledger_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    folder.write_table("questions.parquet", wanted("q1"))
    folder.write_bytes("parts/1/plan.parquet", b"no part")
    assert texts(folder, *THREE) == THREE
    compact(folder, SCHEMA)
    assert "questions.parquet" in folder.walk()


def test_ledger_totals_sum_valid_rows_by_dataset(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("a/1", num_paths=5, num_tokens=2**31, num_failed=2), row("a/2", num_paths=1))
    write(folder, row("a/1", attempt=1, num_paths=5, num_tokens=2**32, num_accepted=3))
    write(folder, row("b/1", fingerprint="of an old text", num_paths=9), row("c/1", num_paths=7))
    totals = Ledger.read(folder).totals(wanted("a/1", "a/2", "a/3", "b/1"))
    nothing = dict.fromkeys(SUMMED, 0)
    counts = {"num_paths": 6, "num_tokens": 2**32, "num_accepted": 3}
    assert totals == {
        "a": nothing | {"num_questions": 3, "num_done": 2} | counts,
        "b": nothing | {"num_questions": 1, "num_done": 0},
    }


def test_ledger_split_gives_each_file_with_a_valid_row_by_itself(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    for chunk in range(7):
        rows = [row(f"q{chunk}-{n}", f"{chunk}.{n}") for n in range(3)]
        write(folder, *rows, chunk=f"parts/1/{chunk:06d}")
    asked = [f"q{chunk}-{n}" for chunk in range(6) for n in range(2)]
    ledger = Ledger.read(folder).of(wanted(*asked))
    by_file = [list(one.rows()) for one in ledger.split()]
    assert [len(rows) for rows in by_file] == [2] * 6
    read = [row for rows in by_file for row in rows]
    assert sorted(row["question_id"] for row in read) == asked
    assert sorted(read, key=str) == sorted(ledger.rows(), key=str)


def test_writer_leaves_earlier_parts_untouched(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    writer = PartWriter(folder, SCHEMA)
    writer.write([row("q1", "a")])
    before = stored(tmp_path)
    writer.write([row("q2", "b")])
    assert len(stored(tmp_path)) == 2
    assert stored(tmp_path).items() >= before.items()


# --- compaction --------------------------------------------------------------------------------


def test_compaction_keeps_each_valid_row_once_in_fewer_files(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    before = content(Ledger.read(folder))
    ledger = compact(folder, SCHEMA)
    assert content(ledger) == content(Ledger.read(folder)) == before
    assert texts(folder, *THREE) == THREE
    assert ledger.num_rows_read == 3
    assert not (tmp_path / "parts").exists()
    assert ledger.files == folder.walk()
    assert len(ledger.files) == 1


def test_compaction_to_a_schema_with_another_column_keeps_the_older_rows(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    ledger = compact(folder, SCHEMA.append(pa.field("note", pa.string())))
    assert texts(folder, *THREE) == THREE
    assert [row["note"] for row in ledger.rows()] == [None] * 3


def test_compaction_of_what_is_compact_changes_no_file(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    compact(folder, SCHEMA)
    before = stored(tmp_path)
    compact(folder, SCHEMA)
    assert stored(tmp_path) == before


def test_compaction_of_new_parts_leaves_compact_files_alone(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    compact(folder, SCHEMA)
    before = stored(tmp_path)
    write(folder, row("d/4", "four"), chunk="parts/3/000000")
    compact(folder, SCHEMA)
    assert stored(tmp_path).items() >= before.items()
    assert texts(folder, *THREE, "d/4") == THREE | {"d/4": "four"}
    assert len(folder.walk()) == 2


def test_compaction_files_hold_about_so_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.store.ledger, "ROWS_PER_FILE", 10)
    folder = Folder.open(str(tmp_path))
    for chunk in range(8):
        rows = [row(f"q{chunk}-{n}") for n in range(4)]
        write(folder, *rows, chunk=f"parts/1/{chunk:06d}")
    ledger = compact(folder, SCHEMA)
    assert [folder.open_parquet(name).metadata.num_rows for name in ledger.files] == [12, 12, 8]
    assert len(content(ledger)) == 32


def test_compaction_files_of_long_rows_hold_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.store.ledger, "BYTES_PER_FILE", 10_000)
    folder = Folder.open(str(tmp_path))
    for chunk in range(6):
        write(folder, row(f"q{chunk}", "thought " * 700), chunk=f"parts/1/{chunk:06d}")
    ledger = compact(folder, SCHEMA)
    assert [folder.open_parquet(name).metadata.num_rows for name in ledger.files] == [2, 2, 2]
    assert len(content(ledger)) == 6


def test_compaction_killed_before_it_deleted_gives_the_same_rows(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    before, parts = content(Ledger.read(folder)), stored(tmp_path)
    compact(folder, SCHEMA)
    compacted = stored(tmp_path)
    restore(tmp_path, parts)
    ledger = Ledger.read(folder)
    assert (content(ledger), ledger.num_rows_read) == (before, 8)
    compact(folder, SCHEMA)
    assert stored(tmp_path) == compacted


def test_compaction_killed_while_it_rewrote_a_compact_file_gives_the_same_rows(
    tmp_path: Path,
) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    compact(folder, SCHEMA)
    write(folder, row("d/3", "three, at last", attempt=1), chunk="parts/3/000000")
    before, files = content(Ledger.read(folder)), stored(tmp_path)
    compact(folder, SCHEMA)
    restore(tmp_path, files)
    ledger = compact(folder, SCHEMA)
    assert content(ledger) == before
    assert ledger.num_rows_read == 3


def test_compaction_later_attempt_takes_the_place_of_a_compacted_row(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "failed"), row("q2", "other"))
    compact(folder, SCHEMA)
    write(folder, row("q1", "retried", attempt=1), chunk="parts/2/000000")
    assert texts(folder, "q1", "q2") == {"q1": "retried", "q2": "other"}
    ledger = compact(folder, SCHEMA)
    assert texts(folder, "q1", "q2") == {"q1": "retried", "q2": "other"}
    assert ledger.num_rows_read == 2


def test_compaction_compacted_row_stands_against_a_later_one_of_its_attempt(
    tmp_path: Path,
) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, row("q1", "first"))
    compact(folder, SCHEMA)
    write(folder, row("q1", "again"), chunk="parts/2/000000")
    assert texts(folder, "q1") == {"q1": "first"}
    assert compact(folder, SCHEMA).num_rows_read == 1
    assert texts(folder, "q1") == {"q1": "first"}


def test_compaction_that_lost_a_row_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.open(str(tmp_path))
    three_questions(folder)
    before = stored(tmp_path)
    whole = cluster.store.ledger._write_rows

    def lose_the_last(folder: Folder, number: int, tables: Iterable[Any], schema: Any) -> None:
        whole(folder, number, [table.slice(0, table.num_rows - 1) for table in tables], schema)

    monkeypatch.setattr(cluster.store.ledger, "_write_rows", lose_the_last)
    with pytest.raises(RuntimeError, match="compacted rows are not those of the parts"):
        compact(folder, SCHEMA)
    assert stored(tmp_path).items() >= before.items()


def test_compaction_works_on_an_object_store_like_file_system(tmp_path: Path) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    folder = Folder(store, "bucket/run/paths")
    three_questions(folder)
    compact(folder, SCHEMA)
    compact(folder, SCHEMA)
    assert texts(folder, *THREE) == THREE
    assert [name.partition("-")[0] for name in folder.walk()] == ["rows"]


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, change: int, torn: int) -> None:
    """End at the n-th file that is written or removed; a write leaves its first bytes behind."""
    write_bytes, delete_files = Folder.write_bytes, Folder.delete_files
    left = [change]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            raise KilledError

    def write(folder: Folder, name: str, data: bytes) -> None:
        try:
            count()
        except KilledError:
            write_bytes(folder, name, data[:torn])
            raise
        write_bytes(folder, name, data)

    def delete(folder: Folder, names: Iterable[str]) -> None:
        for name in names:
            count()
            delete_files(folder, [name])

    monkeypatch.setattr(Folder, "write_bytes", write)
    monkeypatch.setattr(Folder, "delete_files", delete)


@pytest.mark.parametrize("seed", range(12))
def test_ledger_agrees_with_a_plain_dictionary_over_random_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(cluster.store.ledger, "ROWS_PER_FILE", 5)
    folder = Folder.open(str(tmp_path))
    valid: dict[tuple[str, str], Row] = {}
    texts = map(str, range(10**6))
    for turn in range(12):
        if draw.random() < 0.4:
            with monkeypatch.context() as patch:
                if draw.random() < 0.7:
                    kill_at(patch, draw.randint(1, 8), draw.choice([0, 5, 400]))
                with contextlib.suppress(KilledError):
                    assert compact(folder, SCHEMA).num_rows_read == len(valid)
        else:
            rows = [
                row(f"q{draw.randrange(12)}", next(texts), draw.randrange(3), draw.choice("fg"))
                for _ in range(draw.randint(1, 6))
            ]
            write(folder, *rows, chunk=f"parts/{turn}/{draw.randrange(3):06d}")
            for new in rows:
                key = new["question_id"], new["question_fingerprint"]
                if key not in valid or valid[key]["attempt"] < new["attempt"]:
                    valid[key] = new
        read = {key: row["text"] for key, row in by_key(Ledger.read(folder)).items()}
        assert read == {key: row["text"] for key, row in valid.items()}
    final = compact(folder, SCHEMA)
    assert final.num_rows_read == final.index.num_rows == len(valid)


def by_key(ledger: Ledger) -> dict[tuple[str, str], Row]:
    return {(row["question_id"], row["question_fingerprint"]): row for row in ledger.rows()}
