"""Which number type the engines of a run take on CPUs, and that it stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import cpu_dtype
from cluster.errors import DamagedFileError
from cluster.inference.cpu_binding import served_dtype
from cluster.inference.engine import EngineSettings
from cluster.inference.engine_dtype import DTYPE_FILE, pin_dtype
from cluster.inference.vllm_engine import engine_arguments
from cluster.store.folder import Folder

WITH_BFLOAT16 = "flags\t: fpu avx2 avx512_bf16\n"
WITHOUT = "flags\t: fpu avx2\n"


@pytest.fixture
def cpu_info(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that this process takes for /proc/cpuinfo."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu_dtype, "CPU_INFO", file)
    return file


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        (WITH_BFLOAT16, {}, "bfloat16"),
        (WITHOUT, {}, "float32"),
        (WITHOUT, {"dtype": "bfloat16"}, "bfloat16"),
        (WITH_BFLOAT16, {"dtype": "float32"}, "float32"),
        (WITHOUT, {"use_gpu": True}, "auto"),
    ],
)
def test_auto_is_the_faster_type_on_a_cpu_and_vllms_choice_on_a_gpu(
    cpu_info: Path, text: str, changes: dict[str, Any], expected: str
) -> None:
    cpu_info.write_text(text)
    settings = EngineSettings.model_validate({"use_gpu": False} | changes)
    assert served_dtype(settings) == expected
    assert engine_arguments("model", settings)["dtype"] == expected


def test_type_is_decided_once_for_a_run_whatever_the_machine_that_goes_on_with_it(
    cpu_info: Path, ray_cluster: str, tmp_path: Path
) -> None:
    folder = Folder.open(str(tmp_path / "run"))
    auto = EngineSettings(use_gpu=False)
    cpu_info.write_text(WITH_BFLOAT16)
    engine, told = pin_dtype(auto, folder)
    assert engine == auto.model_copy(update={"dtype": "bfloat16"})
    assert told == (
        "engine.dtype auto is bfloat16: the processor has instructions for it (avx512_bf16)"
    )
    assert pin_dtype(auto, folder) == (engine, "")  # it was said
    whole = folder.read_bytes(DTYPE_FILE)
    for data in (b"", b"{}", b'{"dtype": "bfloat17"}'):
        folder.write_bytes(DTYPE_FILE, data)
        with pytest.raises(DamagedFileError, match="restore it"):
            pin_dtype(auto, folder)
    folder.write_bytes(DTYPE_FILE, whole)
    cpu_info.write_text(WITHOUT)
    engine, told = pin_dtype(auto, folder)
    assert (engine.dtype, told) == (
        "bfloat16",
        "engine.dtype auto is bfloat16, as at the start of this run",
    )
    assert pin_dtype(auto, Folder.open(str(tmp_path / "other")))[0].dtype == "float32"


def test_type_that_needs_no_decision_writes_nothing(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "run"))
    endpoint = {"implementation": "endpoint", "endpoint": {"url": "http://a/v1", "model": "m"}}
    for tree in ({"use_gpu": True}, {"use_gpu": False, "dtype": "float32"}, endpoint):
        settings = EngineSettings.model_validate(tree)
        assert pin_dtype(settings, folder) == (settings, "")
    assert folder.is_empty()
