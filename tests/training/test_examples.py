from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.store.folder import Folder
from tests.training.conftest import make_rows, write_rows
from training.data.examples import read_examples, survey
from training.settings import TrainingSettings

SMALL = TrainingSettings(global_batch_size=1, micro_batch_size=1, num_workers=1, max_length=8)


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
    settings = SMALL.model_copy(update={"max_length": 4})
    found = survey(folder, settings)
    assert (found.num_examples, found.num_dropped_too_long, found.num_kept) == (2, 1, 1)
    assert found.num_truncated == 0
    assert read_examples(folder, settings).column("example_id").to_pylist() == ["fits"]


def test_truncated_examples_are_counted_and_keep_what_fits_of_their_target(tmp_path: Path) -> None:
    rows = [
        _row("fits", [1, 2], [3, 4]),
        _row("long", [1, 2], [5, 6, 7]),
        _row("too long a prompt", [1, 2, 3, 4], [5]),
        _row("one token", [1, 2, 3], [8, 9]),
    ]
    folder = _folder(tmp_path, rows)
    settings = SMALL.model_copy(update={"max_length": 4, "too_long": "truncate"})
    found = survey(folder, settings)
    assert (found.num_examples, found.num_dropped_too_long, found.num_truncated) == (4, 1, 2)
    table = read_examples(folder, settings)
    assert table.column("example_id").to_pylist() == ["fits", "long", "one token"]
    assert table.column("prompt_token_ids").to_pylist() == [[1, 2], [1, 2], [1, 2, 3]]
    assert table.column("target_token_ids").to_pylist() == [[3, 4], [5, 6], [8]]


def test_survey_digest_does_not_hang_on_files(tmp_path: Path) -> None:
    rows = make_rows(6)
    one = _folder(tmp_path / "one", rows)
    two = _folder(tmp_path / "two", rows[4:])
    write_rows(two, "part-001.parquet", rows[:4])
    less = _folder(tmp_path / "less", rows[1:])
    settings = SMALL.model_copy(update={"max_length": 100})
    assert survey(one, settings).digest == survey(two, settings).digest
    assert survey(one, settings).digest != survey(less, settings).digest


def test_survey_of_one_dataset_takes_its_examples_only(tmp_path: Path) -> None:
    rows = [_row(f"{name}/{i}", [1], [2]) | {"dataset": name} for i in range(2) for name in "ab"]
    folder = _folder(tmp_path, rows)
    found = survey(folder, SMALL, dataset="b")
    assert (found.num_kept, found.counts) == (2, {"b": 2})
    assert read_examples(folder, SMALL, "b").column("example_id").to_pylist() == ["b/0", "b/1"]
    assert found.digest != survey(folder, SMALL).digest
    with pytest.raises(InputError, match=r"no training examples in .* of the dataset c"):
        survey(folder, SMALL, dataset="c")


def test_survey_counts_the_datasets_of_a_mix_and_wants_a_weight_for_each(tmp_path: Path) -> None:
    rows = [_row(name, [1], [2]) | {"dataset": name[0]} for name in ("a1", "a2", "b1")]
    folder = _folder(tmp_path, rows)
    equal = SMALL.model_copy(update={"dataset_temperature": 5.0})
    assert survey(folder, equal).counts == {"a": 2, "b": 1}
    weighted = SMALL.model_copy(update={"dataset_weights": {"a": 1.0, "set_aside": 1.0}})
    with pytest.raises(InputError, match="also examples of b: give each a weight"):
        survey(folder, weighted)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), None])
def test_survey_of_a_weight_that_is_none_is_refused(tmp_path: Path, weight: float | None) -> None:
    folder = _folder(tmp_path, [_row("a", [1], [2]) | {"vote_share": weight}])
    with pytest.raises(InputError, match=r"'a' in .* has the vote_share"):
        survey(folder, SMALL.model_copy(update={"weight_by": "vote_share"}))
    survey(folder, SMALL)


def test_survey_of_positive_weights_passes(tmp_path: Path) -> None:
    rows = [_row(name, [1], [2]) | {"vote_share": share} for name, share in (("a", 1), ("b", 0.1))]
    weighted = SMALL.model_copy(update={"weight_by": "vote_share"})
    assert survey(_folder(tmp_path, rows), weighted).num_kept == 2


def test_survey_of_fewer_examples_than_a_batch_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, make_rows(3))
    settings = SMALL.model_copy(update={"max_length": 100, "global_batch_size": 4})
    with pytest.raises(InputError, match=r"3 examples in .*global_batch_size 4; lower it"):
        survey(folder, settings)
    assert survey(folder, settings.model_copy(update={"min_examples": 3})).num_kept == 3
    with pytest.raises(InputError, match=r"3 examples in .* fewer than training\.min_examples 5"):
        survey(folder, settings.model_copy(update={"min_examples": 5}))


def test_survey_without_the_column_of_the_weights_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, [_row("a", [1], [2])])
    with pytest.raises(InputError, match="has no column confidence"):
        survey(folder, SMALL.model_copy(update={"weight_by": "confidence"}))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "no training examples"),
        ([_row("a", [1] * 9, [2])], "longest has 10 tokens"),
        ([_row("a", [1], [2]), _row("a", [1], [2])], "'a' appears twice"),
        ([_row("a", [], [2])], "'a' in .* has no prompt_token_ids"),
        ([_row("a", [1], [])], "'a' in .* has no target_token_ids"),
    ],
)
def test_survey_of_useless_examples_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        survey(_folder(tmp_path, rows), SMALL)


def test_import_of_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, training.fine_tune, training.loop, training.deepspeed_engine, training.saving;"
        "import cluster.tracking;"
        "heavy = {'torch', 'deepspeed', 'transformers', 'peft', 'ray', 'tensorboardX'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
