from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.storage import Folder
from tests.training.conftest import make_rows, write_rows
from training.examples import read_examples, survey


def _folder(tmp_path: Path, rows: list[dict[str, Any]]) -> Folder:
    folder = Folder.open(str(tmp_path))
    write_rows(folder, "part-000.parquet", rows)
    return folder


def _row(example_id: str, prompt: list[int], target: list[int]) -> dict[str, Any]:
    return {
        "example_id": example_id,
        "question_id": "q",
        "prompt_token_ids": prompt,
        "target_token_ids": target,
    }


def test_survey_counts_too_long_examples_and_read_leaves_them_out(tmp_path: Path) -> None:
    rows = [_row("fits", [1, 2], [3, 4]), _row("long", [1, 2, 3], [4, 5])]
    folder = _folder(tmp_path, rows)
    found = survey(folder, max_length=4)
    assert (found.num_examples, found.num_dropped_too_long) == (2, 1)
    assert read_examples(folder, max_length=4).column("example_id").to_pylist() == ["fits"]


def test_survey_digest_does_not_hang_on_files(tmp_path: Path) -> None:
    rows = make_rows(6)
    one = _folder(tmp_path / "one", rows)
    two = _folder(tmp_path / "two", rows[4:])
    write_rows(two, "part-001.parquet", rows[:4])
    assert survey(one, 100).digest == survey(two, 100).digest
    assert survey(one, 100).digest != survey(_folder(tmp_path / "less", rows[1:]), 100).digest


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "no training examples"),
        ([_row("a", [1] * 9, [2])], "longest has 10 tokens"),
        ([_row("a", [1], [2]), _row("a", [1], [2])], "'a' stands twice"),
        ([_row("a", [], [2])], "'a' in .* has no prompt_token_ids"),
        ([_row("a", [1], [])], "'a' in .* has no target_token_ids"),
    ],
)
def test_survey_of_useless_examples_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        survey(_folder(tmp_path, rows), max_length=8)


def test_import_of_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, training.fine_tune, training.loop, training.engine, training.saving;"
        "heavy = {'torch', 'deepspeed', 'transformers', 'peft', 'ray'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
