"""A finished run that the tests of this folder share, and copies of it that they may change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.store.folder import Folder
from tests.finished_run import FinishedRun, write_finished_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> FinishedRun:
    return write_finished_run(tmp_path_factory.mktemp("runs"), model_folder)


@pytest.fixture
def copied_run(finished_run: FinishedRun, tmp_path: Path) -> Callable[[], FinishedRun]:
    """Copies the run; its steps are named as in the original."""

    def copy() -> FinishedRun:
        target = tmp_path / "runs" / "finished"
        shutil.copytree(finished_run.folder.path, target)
        return replace(finished_run, folder=Folder.open(str(target)))

    return copy
