"""`regenesis analyse`: the tables of a stored run, as text, JSON and Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.errors import DamagedFileError
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter
from pipelines.analysis import tables
from pipelines.analysis.reading import _read_short, format_analysis
from pipelines.synthesis.handler import PATHS_SCHEMA
from regenesis import main
from tests.finished_run import FinishedRun, folder_of


def test_tables_are_printed_and_written(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished_run.folder.sizes()
    assert main(["analyse", finished_run.folder.uri, "--to", str(tmp_path / "tables")]) == 0
    text = capsys.readouterr().out
    assert main(["analyse", finished_run.folder.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    files = {file.stem: pq.read_table(file) for file in (tmp_path / "tables").glob("*.parquet")}
    assert {name: table.to_pylist() for name, table in files.items()} == told
    assert (tmp_path / "tables" / "analysis.md").read_text() == text
    assert finished_run.folder.sizes() == before


def test_funnel_adds_up(finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", finished_run.folder.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    totals: Counter[str] = Counter()
    for row in told["funnel"]:
        totals[row["stage"]] += row["number"]
    num_paths = sum(len(row["paths"]) for row in finished_run.rows)
    assert totals["paths"] == num_paths == totals["dropped"] + totals["kept"]
    assert totals["questions"] == totals["with paths"] == len(finished_run.rows)
    solved = {r["question_id"] for r in finished_run.rows if r["num_accepted"]}
    assert totals["solved"] == len(solved)
    assert {row["question_id"] for row in told["unsolved_questions"]} == {
        row["question_id"] for row in finished_run.rows
    } - solved


def test_tables_within_the_run_are_refused(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = finished_run.folder.uri
    assert main(["analyse", uri, "--to", f"{uri}/tables"]) == 2
    assert "is within the run's folder" in capsys.readouterr().err


def test_paths_that_an_earlier_grader_judged_are_noted_and_no_path_is_refused(
    copied_run: Callable[[], FinishedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied_run()
    folder = folder_of(run, "round_0/paths")
    for file in (folder / "manifest.json", *folder.glob("rows-*.parquet")):
        file.unlink()
    assert main(["analyse", run.folder.uri]) == 2
    assert "has no reasoning path so far; run it first" in capsys.readouterr().err
    [row, *_] = run.rows
    part = Folder.open(str(folder / "parts/000000-000002-aaaa/0"))
    PartWriter(part, PATHS_SCHEMA).write([row | {"grader_version": "of old"}])
    assert main(["analyse", run.folder.uri]) == 0
    said = capsys.readouterr()
    note = "note: round_0/paths was judged by version of old of the grader and not by "
    assert note in said.out + said.err


def test_table_without_rows_is_none() -> None:
    coverage = tables.coverage(tables.PATHS_TABLE.empty_table())
    assert format_analysis({"coverage": coverage}).endswith("\n\nnone")


def test_short_columns_of_a_damaged_file_name_it(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DamagedFileError, match=r"rows\.parquet is damaged \("):
        _read_short(Folder.open(str(tmp_path)), "rows.parquet")
