"""More or fewer paths per question: existing paths are not generated again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter, adopt_rows, ledger_schema
from pipelines.steps.paths import _has_same_paths
from tests.conftest import ledger_rows, run_driver

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
        result = run_driver("run", write_config(tree), "--until", "paths")
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
