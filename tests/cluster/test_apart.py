"""Functions in a subprocess: the result, an error, and a killed process."""

from __future__ import annotations

import os
import signal

import pytest

from cluster.errors import InputError, StorageError
from cluster.subprocesses import run_apart


def process_and_sum(*numbers: int, factor: int) -> tuple[int, int]:
    return os.getpid(), factor * sum(numbers)


def refuse(name: str) -> None:
    raise InputError(f"{name}, line 3: no question; write one")


def fill_the_disk(name: str) -> None:
    raise StorageError(f"{name} (7 bytes) cannot be written")


def fail() -> None:
    raise KeyError("a bug")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_result_comes_from_another_process() -> None:
    process, total = run_apart(process_and_sum, 1, 2, 3, factor=10)
    assert total == 60
    assert process != os.getpid()


def test_input_error_is_raised_as_it_was() -> None:
    with pytest.raises(InputError, match=r"^a\.jsonl, line 3: no question; write one$"):
        run_apart(refuse, "a.jsonl")


def test_storage_error_is_raised_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match=r"^runs/a \(7 bytes\) cannot be written$"):
        run_apart(fill_the_disk, "runs/a")
    assert capfd.readouterr().err == ""


def test_other_error_leaves_its_trace_where_it_happened(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="the process of fail failed"):
        run_apart(fail)
    assert "KeyError: 'a bug'" in capfd.readouterr().err


def test_process_that_is_killed_is_said_to_be() -> None:
    with pytest.raises(
        RuntimeError, match="be_killed was ended by SIGKILL, as happens when memory runs out"
    ):
        run_apart(be_killed)
