"""The settings reference: it is current, and says for each setting what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import regenesis
from cluster.settings import EXTENT, OPERATIONAL, ChangeEffect, Settings
from commands.settings import section, sections_of
from pipelines.config import Config

REFERENCE = Path(__file__).resolve().parent.parent.parent / "docs" / "SETTINGS.md"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert regenesis.main(["settings", *arguments]) == 0
    return capsys.readouterr().out


def test_reference_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys)
    assert printed == REFERENCE.read_text(), "python regenesis.py settings > docs/SETTINGS.md"


def test_every_setting_says_what_it_is() -> None:
    for _, text in sections_of(Config, "", ChangeEffect.CONTENT):
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert not [row for row in rows if row.endswith("|  |")]


def test_what_a_run_runs_on_names_no_folder() -> None:
    sections = dict(sections_of(Config, "", ChangeEffect.CONTENT))
    for name in ("cluster", "storage", "budget"):
        assert "| content |" not in sections[name], name


def test_one_branch_is_shown_with_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    titles = [line for line in shown(capsys, "training").splitlines() if line.startswith("#")]
    assert titles[0] == "## training"
    assert "## training.lora" in titles
    assert not [title for title in titles if "training" not in title]


def test_branch_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenesis.main(["settings", "trainin"]) == 2
    assert "training.lora" in capsys.readouterr().err


def test_default_of_a_branch_is_what_its_parent_gives_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The judge is greedy, and a path is not, though both are drawn by the same settings."""
    judge = shown(capsys, "synthesis.stages.judge")
    path = shown(capsys, "synthesis.stages.path")
    assert "| `temperature` | content | number, at least 0 | `0.0` |" in judge
    assert "| `temperature` | content | number, at least 0 | `0.85` |" in path


class Below(Settings):
    """A branch.

    More about it.
    """

    number: int = 1
    """The number | of it."""


def test_section_shows_kind_values_and_default() -> None:
    text = section(Below, "a.b", EXTENT, None)
    assert text.splitlines()[:3] == ["## a.b", "", "A branch."]
    assert "| `number` | extent | whole number | `1` | The number \\| of it. |" in text
    assert "| `number` | operational | whole number | `2` |" in section(
        Below, "a.b", OPERATIONAL, Below(number=2)
    )
