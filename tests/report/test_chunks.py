"""Chunks and their limits, and that a run with too many paths is split into pages of parts."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.report import write_run
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter
from evaluation.predictions import PREDICTIONS_SCHEMA
from pipelines.report.page import assemble
from pipelines.report.paths.chunks import Chunk, Gathered, Limits, index_of, pack, split
from pipelines.report.paths.parts import browser_data
from pipelines.report.paths.reading import answer_records, path_records
from pipelines.report.paths.records import Line, utf16_length
from pipelines.report.paths.selection import SortedTable
from pipelines.stored_run import StoredRun
from regenesis import main
from tests.commands.conftest import copied_run as copied_run
from tests.finished_run import FinishedRun, folder_of
from tests.report.browser import Browser
from tests.report.pages import hostile_record
from tests.report.test_paths import opened, pane_of, shown_number, wait_for


def chunk(number: int) -> Chunk:
    line = Line._make([*[f"{number}"] * 12, 1])
    return Chunk([line] * 10, b"", 100)


def numbers(chunks: Sequence[Chunk]) -> list[int]:
    return [int(each.lines[0].id) for each in chunks]


@pytest.mark.parametrize("total", [1, 4, 5, 9, 64, 100])
def test_gathered_chunks_are_evenly_spaced_and_within_the_limits(total: int) -> None:
    gathered = Gathered(Limits(num_records=40, num_bytes=10**9))
    for number in range(total):
        gathered.add(chunk(number))
    found = numbers(gathered.chunks)
    assert found == list(range(0, total, gathered.every))
    assert len(found) <= 4
    assert gathered.num_records == 10 * total
    assert (gathered.every == 1) == (total <= 4)


@pytest.mark.parametrize(("total", "parts"), [(4, []), (5, [4, 1]), (9, [4, 4, 1])])
def test_parts_have_every_chunk_once_and_only_where_there_are_too_many(
    total: int, parts: list[int]
) -> None:
    written: dict[int, list[int]] = {}
    limits = Limits(num_records=10**9, num_bytes=400)

    last: list[int] = []

    def write(number: int, chunks: Sequence[Chunk], is_last: bool) -> None:
        written[number] = numbers(chunks)
        last.extend([number] if is_last else [])

    split(map(chunk, range(total)), limits, write)
    assert [len(each) for each in written.values()] == parts
    assert sorted(written) == list(range(len(parts)))
    assert last == sorted(written)[-1:]
    assert [n for each in written.values() for n in each] == (list(range(total)) if parts else [])


def test_packed_records_are_read_back_with_their_questions() -> None:
    records = [hostile_record(n // 3, f"text {n} \ud800") for n in range(600)]
    chunks = list(pack(records))
    assert [len(each.lines) for each in chunks] == [250, 250, 100]
    index = index_of(chunks)
    assert index["starts"] == [0, 250, 500, 600]
    read = [json.loads(gzip.decompress(each.data)) for each in chunks]
    contents = [
        (each["questions"][question]["question_id"], content["stages"][0]["text"])
        for each in read
        for question, content in each["records"]
    ]
    assert contents == [
        (record.question["question_id"], record.content["stages"][0]["text"]) for record in records
    ]
    for field in index["fields"]:
        assert [field["values"][code] for code in field["codes"]] == [
            getattr(record.line, field["name"]) for record in records
        ]


def test_long_records_close_their_chunk_early() -> None:
    chunks = list(pack(hostile_record(n, "x" * 300_000) for n in range(4)))
    assert [len(each.lines) for each in chunks] == [1, 1, 1, 1]


def test_places_are_counted_as_javascript_does() -> None:
    assert utf16_length("a\U0001d400b") == 4


def test_records_have_each_path_of_the_run_once(finished_run: FinishedRun) -> None:
    records = list(path_records(StoredRun.read(finished_run.folder), "finished"))
    paths = {path["path_id"]: path for row in finished_run.rows for path in row["paths"]}
    assert sorted(each.line.id for each in records) == sorted(paths)
    for record in records:
        path = paths[record.line.id]
        assert record.line.verdict == path["verdict"]
        if (place := record.content["place"]) is not None:
            start, end = place
            assert (path["predicted"] or "") in path["reasoning"][start:end]
        else:
            assert path["read_as"] in ("nothing", None)


def test_examples_of_the_benchmarks_run_are_found_in_its_sorted_files(tmp_path: Path) -> None:
    write_run(Folder.open(str(tmp_path / "bench")), num_paths=1000, num_bytes=90)
    records = list(path_records(StoredRun.read(str(tmp_path / "bench")), "bench"))
    assert Counter(each.line.outcome for each in records) == {
        "kept": 200,
        "wrong": 400,
        "no_answer": 200,
        "truncated": 200,
    }
    assert list(answer_records(StoredRun.read(str(tmp_path / "bench")), "bench")) == []
    for record in records:
        examples = record.content["examples"]
        assert len(examples) == (record.line.outcome == "kept")
        for example in examples:  # without a tokenizer the texts of the messages are shown
            assert example["learned"] == record.content["stages"][-1]["text"]
            assert example["num_learned_tokens"] == 300


@pytest.mark.parametrize("length", [1, 5000])
def test_rows_are_found_by_their_ids_however_long_these_are(tmp_path: Path, length: int) -> None:
    folder = Folder.open(str(tmp_path))
    ids = [f"{n}" * length for n in range(6)]
    for number, own in enumerate((ids[:3], ids[3:])):
        table = pa.table({"example_id": own, "form": [f"form {each[0]}" for each in own]})
        folder.write_table(f"train-{number:05d}.parquet", table)
    table = SortedTable(folder, ["example_id", "form"])
    assert [row["form"] for row in table.rows([ids[4], ids[1], "9"])] == ["form 1", "form 4"]
    assert list(table.rows([])) == []  # of questions whose paths all failed


def test_questions_that_only_the_tuned_model_has_answered_so_far_have_records(
    copied_run: Callable[[], FinishedRun],
) -> None:
    run = copied_run()
    folder = folder_of(run, "base/predictions")
    rows = [row for row in Ledger.read(Folder.open(str(folder))).rows() if row["split"] == "test"]
    for file in folder.iterdir():
        file.unlink()
    PartWriter(
        Folder.open(str(folder)).child("parts/000000-000001-aaaa/0"), PREDICTIONS_SCHEMA
    ).write(rows[:3])
    records = list(answer_records(StoredRun.read(run.folder), "finished"))
    asked = run.steps["round_0/predictions"].folder
    answered = [str(row["question_id"]) for row in Ledger.read(asked).rows()]
    assert sorted(each.question["question_id"] for each in records) == sorted(answered)
    steps = [[each["step"] for each in record.content["answers"]] for record in records]
    assert steps[:3] == [["base/predictions", "round_0/predictions"]] * 3
    assert set(map(tuple, steps[3:])) == {("round_0/predictions",)}


def test_run_that_has_just_begun_has_a_report_without_paths(
    copied_run: Callable[[], FinishedRun], tmp_path: Path
) -> None:
    run = copied_run()
    for name in ("round_0", "base"):
        shutil.rmtree(Path(run.folder.path) / name)
    file = tmp_path / "report.html"
    assert main(["report", run.folder.uri, "-o", str(file)]) == 0
    assert 'id="data-report"' in file.read_text()
    assert 'id="data-paths"' not in file.read_text()


def test_sample_is_stated_and_the_parts_have_all_paths(
    finished_run: FinishedRun, tmp_path: Path, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.report.paths.chunks.RECORDS_PER_CHUNK", 10)
    run, parts = StoredRun.read(finished_run.folder), Folder.open(str(tmp_path / "report-parts"))
    data = browser_data(
        [run], assemble, parts, "a report.html", Limits(40, 10**9), Limits(10**6, 10**9)
    )
    assert data is not None
    page = tmp_path / "a report.html"
    page.write_bytes(assemble({"paths": data.index}, {"paths": data.chunks}))
    opened(chromium, page)
    total = sum(len(row["paths"]) for row in finished_run.rows)
    assert f"of {total} paths" in chromium.text("#paths .sample")
    shown = chromium.run("return document.querySelector('#paths .sample a').getAttribute('href')")
    assert shown == "report-parts/index.html"
    ids = {path["path_id"] for row in finished_run.rows for path in row["paths"]}
    missing = sorted(ids - set(data.index["ids"]))[0]
    index = tmp_path / shown
    chromium.open(index, f"#path={missing}")
    link = wait_for(
        lambda: chromium.run("return document.querySelector('#paths p[role=status] a')?.href")
    )
    address, _, fragment = str(link).partition("#")
    opened(chromium, index.parent / address.rpartition("/")[2], f"#{fragment}")
    pane_of(chromium, missing)
    chromium.open(index)
    assert chromium.run("return document.querySelector('#paths p a').href") == page.as_uri()
    found = 0
    files = sorted(index.parent.glob("paths-*.html"))
    for place, file in enumerate(files):
        opened(chromium, file)
        found += shown_number(chromium)
        links = chromium.run(
            "return [...document.querySelectorAll('#paths .parts a')].map((each) => each.href)"
        )
        neighbours = [*files[max(0, place - 1) : place], *files[place + 1 : place + 2]]
        assert links == [each.as_uri() for each in (page, index, *neighbours)]
    assert found == total
    assert not list(index.parent.glob("answers-*.html"))


def test_a_run_whose_paths_fit_has_no_parts(finished_run: FinishedRun, tmp_path: Path) -> None:
    run, parts = StoredRun.read(finished_run.folder), Folder.open(str(tmp_path / "parts"))
    data = browser_data([run], assemble, parts, "report.html")
    assert data is not None
    assert data.index["sample"] is None
    assert not (tmp_path / "parts").exists()


def test_parts_of_an_earlier_report_are_removed_and_nothing_else(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    for name in ("index.html", "paths-007.html", "answers-000.html", "notes.html"):
        Folder.open(str(tmp_path / "parts")).write_bytes(name, b"old")
    run, parts = StoredRun.read(finished_run.folder), Folder.open(str(tmp_path / "parts"))
    browser_data([run], assemble, parts, "report.html")
    assert parts.file_names() == ["notes.html"]
