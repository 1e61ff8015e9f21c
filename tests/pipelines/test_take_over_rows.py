"""More or fewer paths per question: existing paths are not generated again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import DamagedFileError
from cluster.inference.job import Slots
from cluster.inference.schedule import Questions, plan_job, read_chunk
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter, adopt_rows, compact, ledger_schema
from cluster.store.step import Step
from evaluation.question import QUESTION_SCHEMA
from pipelines.steps import paths
from pipelines.steps.paths import _has_same_paths
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from pipelines.synthesis.reasoning_path import PATH_TYPE
from tests.conftest import ledger_rows, run_here
from tests.pipelines.test_chain import QUESTION, Stages, recipe

SCHEMA = ledger_schema([])


def rows(*ids: str, attempt: int = 0) -> list[dict[str, Any]]:
    known = {"question_fingerprint": "f", "attempt": attempt, "dataset": "d", "num_failed": 0}
    return [known | {"question_id": name, "num_tokens": 5} for name in ids]


def test_adopted_rows_are_open_and_a_question_with_a_row_keeps_it(tmp_path: Path) -> None:
    ours, theirs = (Folder.open(str(tmp_path)).child(f"paths-0123456789a{n}") for n in "bc")
    PartWriter(theirs.child("parts/1/0"), SCHEMA).write(rows("a", "b"))
    PartWriter(theirs.child("parts/1/1"), SCHEMA).write(rows("b", "c", attempt=2))
    PartWriter(ours.child("parts/1/0"), SCHEMA).write(rows("c"))
    assert adopt_rows(ours, theirs, SCHEMA) == 2
    assert adopt_rows(ours, theirs, SCHEMA) == 0
    found = {row["question_id"]: row for row in Ledger.read(ours, whole=True).rows()}
    assert {name: row["attempt"] for name, row in found.items()} == {"a": -1, "b": -1, "c": 0}
    assert [found[name]["num_failed"] for name in "abc"] == [1, 1, 0]
    assert {row["num_tokens"] for row in found.values()} == {5}


def test_adopted_rows_are_planned_with_what_they_hold_and_done_once(tmp_path: Path) -> None:
    ours, theirs = (Folder.open(str(tmp_path)).child(f"paths-0123456789a{n}") for n in "bc")
    asked = [QUESTION, replace(QUESTION, question_id="d/train/2")]
    store = Folder.open(str(tmp_path)).child("questions")
    fingerprints = [{"question_fingerprint": each.fingerprint} for each in asked]
    table = [q.to_row() | f for q, f in zip(asked, fingerprints, strict=True)]
    schema = pa.schema([*QUESTION_SCHEMA, pa.field("question_fingerprint", pa.string())])
    store.write_table("questions.parquet", pa.Table.from_pylist(table, schema))
    few, more = (SynthesizePaths(recipe(samples=n), ()) for n in (1, 3))
    engine = Stages()
    made = [asyncio.run(few(engine, row, Slots(9), None)) | {"attempt": 0} for row in table]
    PartWriter(theirs, PATHS_SCHEMA).write(made)
    assert adopt_rows(ours, theirs, PATHS_SCHEMA) == 2

    questions = Questions(store, ("train",))
    options: dict[str, Any] = {"num_slots": 1, "smallest": 9, "max_attempts": 1}
    work = plan_job(ours, PATHS_SCHEMA, questions, {}, execution="9", **options)
    chunk = read_chunk(ours, work.execution, 0)
    assert [row["attempt"] for row in chunk] == [0, 0]
    engine = Stages()
    for row in chunk:
        previous = row.pop("previous")
        grown = asyncio.run(more(engine, row, Slots(9), previous)) | {"attempt": 0}
        PartWriter(ours.child(f"parts/9/{row['question_id'][-1]}"), PATHS_SCHEMA).write([grown])
    assert len(engine.asked) == 2 * 25 * 2 * 3, "two more samples of each guideline"
    found = {row["question_id"]: row for row in compact(ours, PATHS_SCHEMA).rows()}
    for before in made:
        kept = [path for path in found[before["question_id"]]["paths"] if path["sample"] == 0]
        assert pa.array(kept, PATH_TYPE) == pa.array(before["paths"], PATH_TYPE)
        assert found[before["question_id"]]["num_paths"] == 75
    assert plan_job(ours, PATHS_SCHEMA, questions, {}, execution="10", **options).num_open == 0


CONTENT: dict[str, Any] = {
    "round": 0,
    "synthesis": {"samples": 1, "guidelines_per_question": 3, "seed": 0},
    "guidelines": [{"guideline_id": "a", "text": "Draw."}, {"guideline_id": "b", "text": "Count."}],
}


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"synthesis": {"samples": 2, "guidelines_per_question": None, "seed": 0}}, True),
        ({"guidelines": CONTENT["guidelines"][:1]}, True),
        ({"guidelines": [{"guideline_id": "a", "text": "Draw it."}]}, False),
        ({"synthesis": {"samples": 1, "guidelines_per_question": 3, "seed": 1}}, False),
        ({"round": 1}, False),
        ({"expansion": "3f2ac81d09be"}, False),
    ],
)
def test_paths_are_the_same_ones_only_where_nothing_but_their_number_differs(
    changed: dict[str, Any], same: bool
) -> None:
    assert _has_same_paths(CONTENT, CONTENT | changed) is same
    assert not _has_same_paths({}, CONTENT)


def test_rows_are_taken_from_the_sibling_with_the_most_paths_and_damaged_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Folder.open(str(tmp_path))
    sizes = {1: 8, 2: 24, 3: 16, 4: 99}
    others = {n: Step.below(root, "paths", more_samples(n)) for n in (*sizes, 5)}
    for number, num_paths in sizes.items():
        others[number].commit(rows={"num_paths": num_paths})
    others[4].folder.write_json("manifest.json", {"xxh3": "damaged"})
    other_seed = {"synthesis": CONTENT["synthesis"] | {"seed": 1}}
    Step.below(root, "paths", CONTENT | other_seed).commit(rows={"num_paths": 50})
    asked: list[Folder] = []

    def adopt(_: Any, __: Folder, source: Folder, ___: pa.Schema) -> int:
        asked.append(source)
        if source.name == others[3].folder.name:
            raise DamagedFileError("a part is damaged")
        return int(source.name == others[2].folder.name)

    monkeypatch.setattr(paths, "run_task", adopt)
    paths.take_over_rows(Step.below(root, "paths", CONTENT))
    assert [folder.name for folder in asked] == [others[n].folder.name for n in (2, 3, 1)]
    assert capsys.readouterr().out.splitlines() == [
        f"paths: 1 questions reuse their paths from {others[2].folder.name}",
        "note: a part is damaged; its paths are generated again",
    ]


def more_samples(number: int) -> dict[str, Any]:
    """The content with another number of samples."""
    return CONTENT | {"synthesis": CONTENT["synthesis"] | {"samples": 10 + number}}


@pytest.mark.slow
def test_run_with_more_samples_generates_only_the_further_ones(
    scripted_config: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    log = tmp_path / "generations.log"
    scripted_config["engine"]["options"] = {"log_file": str(log)}

    def paths_of(**synthesis: Any) -> tuple[dict[str, Any], int]:
        log.write_text("")
        tree = scripted_config | {"synthesis": scripted_config["synthesis"] | synthesis}
        result = run_here("run", write_config(tree), "--until", "paths")
        assert result.returncode == 0, result.stderr
        folders = (tmp_path / "runs" / "scripted").glob("round_0/paths-*")
        newest = max(folders, key=lambda folder: (folder / "manifest.json").stat().st_mtime_ns)
        made = [path for row in ledger_rows(newest) for path in row["paths"]]
        num_generated = sum(
            line.endswith((" path", " structure", " adapt"))
            for line in log.read_text().splitlines()
        )
        return {path["path_id"]: path for path in made}, num_generated

    one, _ = paths_of()
    assert len(one) == 24 * 3
    two, num_generated = paths_of(samples=2)
    assert len(two) == 24 * 6
    assert num_generated == 24 * 3 * 3
    assert {name: two[name] for name in one} == one
    fewer, num_generated = paths_of(guidelines_per_question=2)
    assert num_generated == 0
    assert len(fewer) == 24 * 2
    assert fewer.items() <= one.items()
