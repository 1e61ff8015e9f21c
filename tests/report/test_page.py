"""The assembled file: its policy, its inert data, and that it opens without a sound."""

from __future__ import annotations

from pathlib import Path

from regenesis import main
from tests.finished_run import FinishedRun
from tests.report.browser import Browser


def test_a_finished_run_is_drawn_without_a_sound(
    finished_run: FinishedRun, tmp_path: Path, chromium: Browser
) -> None:
    file = tmp_path / "report.html"
    assert main(["report", finished_run.folder.uri, "-o", str(file)]) == 0
    chromium.open(file)
    assert "finished" in chromium.text("#verdict")
