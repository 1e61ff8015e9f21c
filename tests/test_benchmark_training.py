"""The parts of the training benchmark that need no workers, and all of it but TRL in small."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.training import (
    LONGEST_TARGET,
    RATIOS,
    Measured,
    Work,
    check_same_work,
    draw_lengths,
    example_table,
    format_table,
    in_order_of_steps,
    read_options,
    real_lengths,
    summarize,
    tokens_of_steps,
    training_settings,
    trl_row,
)
from cluster.store.folder import Folder
from tests.conftest import REPOSITORY
from training.steps import StepData

OURS = ["--ratios", "packed_over_padded"]


def measured(side: str, *seconds: float, ratio: str = "over_trl") -> Measured:
    """A repeat of a side whose steps have 1,000 tokens each."""
    share = None if side == "trl" else 0.01
    return Measured(ratio, side, 0, list(seconds), [1000] * len(seconds), 2.5, share)


def test_summary_has_the_ratios_that_ran_and_the_rates_of_their_sides() -> None:
    repeats = [measured("trl", 10.0, 40.0), measured("trl", 50.0)]
    repeats += [measured("padded", 10.0, 10.0), measured("padded", 20.0)]
    summary = summarize(repeats)
    padded, trl = (summary["rates"]["over_trl"][side] for side in ("padded", "trl"))
    assert trl["tokens_per_s"] == 30.0
    assert trl["tokens_per_s_of_each_step"] == [100.0, 25.0, 20.0]
    # All steps together take 100 s and 40 s; of the single steps' 1, 4 and 2.5 it is the middle.
    assert (summary["over_trl"], summary["over_trl_median_of_steps"]) == (2.5, 2.5)
    assert "packed_over_padded" not in summary
    assert (trl["data_share"], padded["data_share"]) == (None, 0.01)
    table = format_table(summary)
    assert "over_trl: 2.5 over all steps, 2.5 in the median" in table
    assert "1.0% for data" in table


def test_long_steps_count_more_than_short_ones_but_not_in_the_median() -> None:
    summary = summarize([measured("trl", 1.0, 1.0, 97.0), measured("padded", 1.0, 1.0, 31.0)])
    assert (summary["over_trl"], summary["over_trl_median_of_steps"]) == (3.0, 1.0)


def test_side_is_compared_with_the_one_that_worked_beside_it() -> None:
    ratio = "packed_over_padded"
    repeats = [measured("trl", 8.0), measured("padded", 4.0)]
    repeats += [measured("padded", 2.0, ratio=ratio), measured("packed", 1.0, ratio=ratio)]
    summary = summarize(repeats)
    assert (summary["over_trl"], summary["packed_over_padded"]) == (2.0, 2.0)


def test_same_work_passes_and_another_first_loss_is_found() -> None:
    good = measured("trl", 1.0)
    check_same_work([good, replace(good, side="padded", first_loss=2.501)])
    with pytest.raises(AssertionError, match="side packed, repeat 1: the first loss is"):
        check_same_work([good, replace(good, side="packed", first_loss=2.6)])


def test_drawn_lengths_are_those_that_were_measured() -> None:
    lengths = draw_lengths(4000)
    assert lengths == draw_lengths(4000)
    targets = [target for _, target in lengths]
    assert 1 <= min(targets) <= max(targets) <= LONGEST_TARGET
    # The median of all is 153 tokens; that of those below 512 is the quantile at 0.43 of all.
    assert 120 <= statistics.median(targets) <= 135
    assert 130 <= statistics.median(prompt for prompt, _ in lengths) <= 150


def test_real_lengths_are_those_of_the_examples(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    known = [(3, 5), (4, 6), (2, 9)]
    folder.write_table("train-00000.parquet", example_table(known, vocab_size=50))
    assert sorted(real_lengths(folder, 3)) == sorted(known)
    assert set(real_lengths(folder, 7)) == set(known)


def _work(tmp_path: Path) -> Work:
    options = read_options([*OURS, "--steps", "2"])
    lengths = draw_lengths(48)
    table = example_table(lengths, vocab_size=50)
    Folder.open(str(tmp_path)).write_table("train-00000.parquet", table)
    training = training_settings(options, max(map(sum, lengths)), batch=16)
    return Work(model="none", examples=str(tmp_path), training=training)


def test_every_side_is_given_the_same_examples_in_each_step(tmp_path: Path) -> None:
    work = _work(tmp_path)
    table = in_order_of_steps(work)
    rows = table.to_pylist()
    of_trl = [sum(len(trl_row(row)["input_ids"]) for row in rows[n : n + 16]) for n in (0, 16, 32)]
    assert tokens_of_steps(work) == of_trl
    for packing in (False, True):
        settings = work.training.model_copy(update={"packing": packing})
        shares = [StepData(table, settings, rank, 2).share(1) for rank in range(2)]
        assert shares[0].num_tokens == of_trl[1]
    for rank in range(2):
        [micro] = StepData(table, work.training, rank, 2).share(0).micro_batches
        assert micro.input_ids.shape[0] == 8


def test_row_for_trl_learns_the_answer_only() -> None:
    row = trl_row({"prompt_token_ids": [5, 6], "target_token_ids": [7]})
    assert row == {"input_ids": [5, 6, 7], "completion_mask": [0, 0, 1]}


def test_options_without_trl_say_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        read_options([])
    assert "EXTRAS=bench" in capsys.readouterr().err
    assert read_options(OURS).ratios == ("packed_over_padded",)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ["packed_over_padded", "bfloat16_over_float32"])
def test_benchmark_of_our_sides_ends_with_its_report(model_folder: Path, ratio: str) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.training", "--json", "--repeats", "2"),
            *("--steps", "2", "--model", str(model_folder), "--ratios", ratio),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    report = json.loads(result.stdout.splitlines()[-1])
    sides = report["rates"][ratio]
    assert list(sides) == list(RATIOS[ratio])
    assert report[ratio] > 0
    assert report["machine"]["num_cores"] > 0
    for side in sides.values():
        assert len(side["tokens_per_s_of_each_step"]) == 4  # of two repeats
        assert side["data_share"] < 1
