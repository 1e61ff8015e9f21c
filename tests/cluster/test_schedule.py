from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cluster.inference.schedule
from cluster.inference.schedule import (
    LARGEST_CHUNK,
    DatasetQuota,
    OpenWork,
    Questions,
    chunk_folder,
    chunk_sizes,
    interleave,
    open_questions,
    plan_job,
    read_chunk,
    read_chunk_again,
    summarize,
)
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter, compact, ledger_schema
from cluster.store.step import Step
from evaluation.question import QUESTION_SCHEMA, Question, Split, question_table

SCHEMA = ledger_schema([*QUESTION_SCHEMA, pa.field("text", pa.string())])
Row = dict[str, Any]


def question(dataset: str, number: int, split: Split = "train", text: str = "") -> Question:
    id_ = f"{dataset}/{split}/{number:06d}"
    return Question(id_, dataset, split, "in_domain", text or f"{number} + 1?", "1", "number")


def questions(**sizes: int) -> list[Question]:
    """So many questions of each dataset, one dataset after the other."""
    return [question(dataset, n) for dataset, size in sizes.items() for n in range(size)]


def answer(asked: Question, attempt: int = 0, **columns: Any) -> Row:
    return asked.to_row() | {
        "question_fingerprint": asked.fingerprint,
        "attempt": attempt,
        "num_failed": 0,
        **columns,
    }


def write(folder: Folder, *rows: Row, chunk: str = chunk_folder("1", 0)) -> None:
    PartWriter(folder.child(chunk), SCHEMA).write(list(rows))


def store(folder: Folder, *all_questions: Question) -> Questions:
    """The questions as the `questions` step leaves them, in two files."""
    half = len(all_questions) // 2
    for name, rows in (("a", all_questions[:half]), ("b", all_questions[half:])):
        folder.child("questions").write_table(f"{name}.parquet", question_table(rows))
    return Questions(folder.child("questions"), ("train",))


def plan(
    folder: Folder,
    stored: Questions,
    shares: dict[str, DatasetQuota] | None = None,
    *,
    execution: str = "2",
    num_slots: int = 2,
    max_tokens: int | None = None,
    limit: int | None = None,
) -> OpenWork:
    return plan_job(
        folder,
        SCHEMA,
        stored,
        shares or {},
        execution=execution,
        num_slots=num_slots,
        smallest=2,
        max_attempts=3,
        max_tokens=max_tokens,
        limit=limit,
    )


def all_chunks(folder: Folder, made: OpenWork) -> list[list[Row]]:
    return [read_chunk(folder, made.execution, number) for number in range(made.num_chunks)]


def all_rows(folder: Folder, made: OpenWork) -> list[Row]:
    return [row for chunk in all_chunks(folder, made) for row in chunk]


def ids(rows: Sequence[Row]) -> list[str]:
    return [row["question_id"] for row in rows]


def four_states(folder: Folder) -> list[Question]:
    """Missing, failed with attempts left, failed without, done."""
    missing, again, given_up, done = asked = questions(d=4)
    write(folder, answer(again, num_failed=1), answer(done), answer(given_up, 1, num_failed=2))
    write(folder, answer(given_up, 2, num_failed=1), chunk=chunk_folder("1", 1))
    assert missing is asked[0]
    return asked


# --- open questions ----------------------------------------------------------------------------


def test_open_questions_are_those_missing_and_those_with_an_attempt_left(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    missing, again, _, _ = asked = four_states(folder)
    ledger = Ledger.read(folder)
    found = open_questions(question_table(asked), ledger, 3).to_pylist()
    assert ids(found) == [missing.question_id, again.question_id]
    assert [row["attempt"] for row in found] == [0, 1]
    assert found[0]["previous_file"] is found[0]["previous_row"] is None
    assert (found[1]["previous_file"], found[1]["previous_row"]) == (ledger.files[0], 0)


@pytest.mark.parametrize(("max_attempts", "expected"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2])])
def test_open_questions_hang_on_the_attempts_allowed(
    tmp_path: Path, max_attempts: int, expected: list[int]
) -> None:
    folder = Folder.open(str(tmp_path))
    asked = four_states(folder)
    found = open_questions(question_table(asked), Ledger.read(folder), max_attempts)
    assert ids(found.to_pylist()) == [asked[n].question_id for n in expected]


def test_open_questions_changed_text_begins_at_the_first_attempt(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write(folder, answer(question("d", 0), attempt=2, num_failed=1))
    changed = question_table([question("d", 0, text="9 + 9?")])
    [found] = open_questions(changed, Ledger.read(folder), 3).to_pylist()
    assert (found["attempt"], found["previous_file"]) == (0, None)


def test_open_questions_of_nothing_are_none(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = four_states(folder)
    empty = Ledger.read(folder.child("nowhere"))
    assert open_questions(question_table([]), Ledger.read(folder), 3).num_rows == 0
    assert open_questions(question_table(asked), empty, 3).num_rows == 4


# --- order -------------------------------------------------------------------------------------


def order(asked: Sequence[Question], **shares: DatasetQuota) -> list[str]:
    """The datasets in the order in which their questions are begun."""
    datasets: list[str] = interleave(question_table(asked), shares).column("dataset").to_pylist()
    return datasets


def test_interleave_advances_by_weight_in_every_prefix() -> None:
    begun = order(questions(a=100, b=300), b=DatasetQuota(weight=3))
    for size in range(1, 401):
        counts = Counter(begun[:size])
        assert abs(counts["a"] - size / 4) <= 1
        assert abs(counts["b"] - size * 3 / 4) <= 1


def test_interleave_short_dataset_ends_early_and_the_rest_go_on() -> None:
    begun = order(questions(short=5, long=50))
    assert set(begun[:10]) == {"short", "long"}
    assert Counter(begun[:10]) == {"short": 5, "long": 5}
    assert set(begun[10:]) == {"long"}


def test_interleave_lets_no_dataset_starve() -> None:
    begun = order(questions(large=100_000, small=10))
    assert begun[:20].count("small") == 10


def test_interleave_many_datasets_of_random_weights_stay_in_proportion() -> None:
    draw = random.Random(0)
    weights = {f"d{n}": draw.choice([0.1, 0.5, 1.0, 2.0, 7.3]) for n in range(9)}
    asked = questions(**{name: round(200 * weight) for name, weight in weights.items()})
    begun = order(asked, **{name: DatasetQuota(weight=weight) for name, weight in weights.items()})
    for size in range(1, len(begun) + 1, 17):
        counts = Counter(begun[:size])
        for name, weight in weights.items():
            assert abs(counts[name] - size * weight / sum(weights.values())) <= 1.5


def test_interleave_keeps_the_order_within_a_dataset() -> None:
    asked = questions(a=40, b=90, c=7)
    ordered = interleave(question_table(asked), {"b": DatasetQuota(weight=2.5)}).to_pylist()
    for dataset in "abc":
        own = [row for row in ordered if row["dataset"] == dataset]
        assert ids(own) == [q.question_id for q in asked if q.dataset == dataset]


def test_interleave_does_not_hang_on_where_a_dataset_stands() -> None:
    # Except for questions that are due at the same time, which keep their order.
    shares = {
        "a": DatasetQuota(weight=1.0),
        "b": DatasetQuota(weight=2.1),
        "c": DatasetQuota(weight=0.37),
    }
    one_after_the_other = [questions(**{name: 30}) for name in shares]
    orders = [
        ids(interleave(question_table([*itertools.chain(*blocks)]), shares).to_pylist())
        for blocks in itertools.permutations(one_after_the_other)
    ]
    assert all(begun == orders[0] for begun in orders)


# --- chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_slots", [1, 2, 3, 7, 32, 400])
@pytest.mark.parametrize("smallest", [1, 2, 8, 50, 1000])
def test_chunk_sizes_share_out_every_number_of_questions(num_slots: int, smallest: int) -> None:
    for num in [*range(150), *range(150, 100_000, 7919), 10**6]:
        sizes = chunk_sizes(num, num_slots, smallest)
        assert sum(sizes) == num
        assert all(1 <= size <= LARGEST_CHUNK for size in sizes)
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) >= min(num, num_slots)
        # The last may be what is left over.
        assert all(size >= min(smallest, num // num_slots, LARGEST_CHUNK) for size in sizes[:-1])


@pytest.mark.parametrize(
    ("num_questions", "expected"),
    [(0, []), (3, [1, 1, 1]), (5, [2, 1, 1, 1]), (11, [3, 3, 3, 2]), (40, [8, 8, 8, 8, 8])],
)
def test_chunk_sizes_few_questions_are_spread_evenly(
    num_questions: int, expected: list[int]
) -> None:
    assert chunk_sizes(num_questions, 4, 8) == expected


def test_chunk_sizes_begin_large_and_end_small() -> None:
    sizes = chunk_sizes(100_000, 64, 8)
    assert sizes[0] == LARGEST_CHUNK
    assert set(sizes[-64:-1]) == {8}
    assert len(sizes) < 1200


def test_plan_puts_every_open_question_in_one_chunk(tmp_path: Path) -> None:
    draw = random.Random(0)
    for num_slots in (1, 3, 20):
        folder = Folder.open(str(tmp_path / str(num_slots)))
        asked = questions(a=draw.randrange(90), b=draw.randrange(9), c=400)
        done = set(draw.sample(asked, 100))
        write(folder, *(answer(q) for q in done))
        made = plan(folder, store(folder, *asked), num_slots=num_slots)
        chunks = all_chunks(folder, made)
        rows = all_rows(folder, made)
        assert sorted(ids(rows)) == sorted(q.question_id for q in {*asked} - done)
        assert made.num_open == len(rows) == len(asked) - 100
        assert [len(chunk) for chunk in chunks] == chunk_sizes(len(rows), num_slots, 2)
        by_id = {q.question_id: q for q in asked}
        assert all(Question.from_row(row) == by_id[row["question_id"]] for row in rows)
        assert all((row["attempt"], row["previous"]) == (0, None) for row in rows)


def test_plan_gives_a_retry_the_whole_row_of_the_attempt_before(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=5)
    write(folder, answer(asked[0]), answer(asked[3], text="half of it", num_failed=1))
    [rows] = all_chunks(folder, plan(folder, store(folder, *asked), num_slots=1, limit=2))
    assert ids(rows) == [asked[1].question_id, asked[2].question_id]
    rows = all_rows(folder, plan(folder, store(folder, *asked), execution="3"))
    retried = {row["question_id"]: row for row in rows if row["attempt"]}
    assert list(retried) == [asked[3].question_id]
    [row] = retried.values()
    assert row["attempt"] == 1
    assert row["previous"]["text"] == "half of it"
    assert row["previous"]["attempt"] == 0
    assert set(row) == {*question_table([]).column_names, "attempt", "previous"}


def test_plan_takes_only_questions_of_its_splits(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    stored = store(folder, question("d", 0, "dev"), question("d", 1), question("d", 2, "test"))
    made = plan(folder, stored)
    assert ids(all_rows(folder, made)) == ["d/train/000001"]
    assert made.totals["d"]["num_questions"] == 1
    both = Questions(stored.folder, ("dev", "test"))
    assert both.keys().column("question_id").to_pylist() == ["d/dev/000000", "d/test/000002"]


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (1, 1), (7, 7), (100, 30), (None, 30)])
def test_plan_limit_takes_the_first_of_every_dataset(
    tmp_path: Path, limit: int | None, expected: int
) -> None:
    folder = Folder.open(str(tmp_path))
    made = plan(folder, store(folder, *questions(a=10, b=20)), limit=limit)
    rows = all_rows(folder, made)
    assert len(rows) == made.num_open == expected
    counts = Counter(row["dataset"] for row in rows)
    if expected == 7:
        assert sorted(counts.values()) == [3, 4]


def test_plan_without_open_questions_writes_nothing(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=2)
    write(folder, *(answer(q, num_tokens=7) for q in asked))
    stored = store(folder, *asked)
    before = folder.walk()
    made = plan(folder, stored)
    assert (made.num_chunks, made.num_open) == (0, 0)
    assert made.totals["d"]["num_tokens"] == 14
    assert folder.walk() == before


@pytest.mark.parametrize(
    ("share", "is_left_out"),
    [
        (DatasetQuota(max_tokens=60), True),
        (DatasetQuota(max_tokens=61), False),
        (DatasetQuota(max_accepted=6), True),
        (DatasetQuota(max_accepted=7), False),
        (DatasetQuota(max_tokens=1000, max_accepted=6), True),
        (DatasetQuota(max_tokens=0), True),
        (DatasetQuota(), False),
    ],
)
def test_plan_leaves_out_a_dataset_that_has_enough(
    tmp_path: Path, share: DatasetQuota, is_left_out: bool
) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(a=4, b=4)
    done = [q for q in asked if q.dataset == "a"][:2]
    write(folder, *(answer(q, num_tokens=30, num_accepted=3, num_failed=1) for q in done))
    # What an old text used up is no longer counted.
    write(folder, answer(question("a", 3, text="old"), num_tokens=10**6), chunk="parts/1/000007")
    made = plan(folder, store(folder, *asked), {"a": share})
    rows = all_rows(folder, made)
    assert {row["dataset"] for row in rows} == ({"b"} if is_left_out else {"a", "b"})
    assert len(rows) == (4 if is_left_out else 8)


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 6), (101, 6), (100, 0), (0, 0)])
def test_plan_of_a_job_that_has_its_tokens_opens_no_question(
    tmp_path: Path, max_tokens: int | None, expected: int
) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(a=4, b=4)
    # Not even those whose failed paths could be tried again.
    write(folder, answer(asked[0], num_tokens=60, num_failed=1), answer(asked[4], num_tokens=40))
    write(folder, answer(question("a", 3, text="old"), num_tokens=10**6), chunk="parts/1/000007")
    made = plan(folder, store(folder, *asked), max_tokens=max_tokens)
    assert made.num_open == len(all_rows(folder, made)) == (expected and expected + 1)


def test_plan_share_of_a_dataset_without_questions_is_no_error(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    shares = {"elsewhere": DatasetQuota(max_tokens=1), "d": DatasetQuota(max_tokens=1)}
    assert plan(folder, store(folder, *questions(d=3)), shares).num_open == 3


def test_plan_compacts_the_parts_of_earlier_executions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.inference.schedule, "COMPACT_AT", 3)
    folder = Folder.open(str(tmp_path))
    asked = questions(d=4)
    for number in range(3):
        row = answer(asked[number], text=f"{number}", num_failed=int(number == 1))
        write(folder, row, chunk=chunk_folder("1", number))
    made = plan(folder, store(folder, *asked), num_slots=1)
    rows = all_rows(folder, made)
    assert not [name for name in folder.walk("parts") if "part-" in name]
    # The location of the previous attempt's row refers to the compacted file.
    assert [row["previous"] and row["previous"]["text"] for row in rows] == ["1", None]


# --- a chunk that is done again ----------------------------------------------------------------


def planned(folder: Folder, *asked: Question) -> list[Row]:
    made = plan(folder, store(folder, *asked), num_slots=1)
    assert made.num_chunks
    return read_chunk(folder, made.execution, 0)


def test_chunk_of_a_dead_worker_leaves_out_what_is_durable(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=8)
    chunk = planned(folder, *asked)
    by_id = {q.question_id: q for q in asked}
    durable = ids(chunk)[:1]
    write(folder, *(answer(by_id[id_]) for id_ in durable), chunk=chunk_folder("2", 0))
    # A row of another chunk, or of another execution, is none of this chunk's.
    write(folder, answer(by_id[ids(chunk)[1]]), chunk=chunk_folder("2", 1))
    again = read_chunk_again(folder, "2", 0, 3)
    assert again == chunk[1:]
    assert len(chunk) > 1


def test_chunk_of_a_dead_worker_tries_what_failed_again(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=5)
    chunk = planned(folder, *asked)
    assert ids(chunk) == [asked[0].question_id, asked[1].question_id]
    write(folder, answer(asked[0], text="half", num_failed=1), chunk=chunk_folder("2", 0))
    first, second = read_chunk_again(folder, "2", 0, 3)
    assert first == chunk[1]
    assert second["question_id"] == asked[0].question_id
    assert second["attempt"] == 1
    assert second["previous"]["text"] == "half"
    assert set(second) == set(first)
    assert ids(read_chunk_again(folder, "2", 0, 1)) == [asked[1].question_id]


def test_chunk_of_a_dead_worker_goes_on_from_the_latest_attempt(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=4)
    write(folder, *(answer(q, text="first try", num_failed=1) for q in asked))
    chunk = planned(folder, *asked)
    assert [row["attempt"] for row in chunk] == [1, 1]
    write(folder, answer(asked[0], 1, text="second try", num_failed=1), chunk=chunk_folder("2", 0))
    untouched, tried = read_chunk_again(folder, "2", 0, 3)
    assert untouched == chunk[1]
    assert untouched["previous"]["text"] == "first try"
    assert (tried["attempt"], tried["previous"]["text"]) == (2, "second try")
    write(folder, answer(asked[0], 2, num_failed=1), chunk=chunk_folder("2", 0))
    assert ids(read_chunk_again(folder, "2", 0, 3)) == [asked[1].question_id]


def test_chunk_of_a_dead_worker_that_was_done_is_empty(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(d=2)
    [row] = planned(folder, *asked[:1])
    write(folder, answer(asked[0]), chunk=chunk_folder("2", 0))
    assert row["attempt"] == 0
    assert read_chunk_again(folder, "2", 0, 3) == []


def test_summary_counts_the_wanted_rows_by_dataset_and_attempt(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    asked = questions(a=3, b=1)
    rows = [answer(q, num_tokens=10, num_accepted=1) for q in asked[:3]]
    write(folder, *rows, answer(question("z", 0), num_tokens=999))
    write(folder, answer(asked[0], 1, num_tokens=30), chunk=chunk_folder("1", 1))
    keys = store(folder, *asked).keys()
    summary = summarize(compact(folder, SCHEMA), keys)
    assert summary["attempts"] == {"1": 2, "2": 1}
    assert (summary["num_questions"], summary["num_done"]) == (4, 3)
    assert (summary["num_tokens"], summary["num_accepted"]) == (50, 2)
    assert summary["datasets"]["a"]["num_tokens"] == 50
    assert summary["datasets"]["b"]["num_done"] == 0


def test_plan_of_a_finished_step_without_open_questions_leaves_it_as_it_is(tmp_path: Path) -> None:
    folder, asked = Folder.open(str(tmp_path)), question("a", 1)
    write(folder, answer(asked))
    stored = store(folder, asked)
    compact(folder, SCHEMA)
    Step("paths", folder, {}).commit()
    before = folder.walk()
    made = plan_job(
        folder, SCHEMA, stored, {}, execution="2", num_slots=1, smallest=1, max_attempts=1
    )
    assert (made.num_open, made.num_chunks) == (0, 0)
    assert folder.walk() == before
