"""`regenesis analyse`: the tables of a stored run, as text, JSON and Parquet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from regenesis import main
from tests.finished_run import FinishedRun


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
