"""The arithmetic of the number-type benchmark, and all of it on a model of two layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.dtype import result
from cluster.cpu_dtype import this_processor_dtype
from tests.conftest import REPOSITORY


def test_result_is_the_median_of_the_turns_own_ratios() -> None:
    # The second turn was slow for both, as on a machine that others use.
    measured = result({"bfloat16": [200.0, 20.0, 210.0], "float32": [100.0, 10.0, 100.0]})
    assert measured["tokens_per_s"] == {"bfloat16": 200.0, "float32": 100.0}
    assert measured["bfloat16_over_float32"] == 2.0
    assert measured["auto"] == this_processor_dtype()
    assert measured["auto_is_faster"] == (this_processor_dtype() == "bfloat16")


@pytest.mark.slow
def test_benchmark_measures_both_types_and_writes_its_result_with_the_machine(
    model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "dtype.json"
    arguments = ["--model", str(model_folder), "--repeats", "1", "--requests", "2"]
    arguments += ["--tokens", "8", "--json", str(file)]
    command = [sys.executable, "-m", "benchmarks.dtype", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bfloat16 / float32: " in done.stdout
    whole = json.loads(file.read_text())
    assert set(whole["result"]["tokens_per_s"]) == {"bfloat16", "float32"}
    assert whole["machine"]["num_cores"]
