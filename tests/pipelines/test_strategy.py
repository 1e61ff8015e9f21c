from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pipelines.strategies as package
from cluster.errors import InputError
from cluster.settings import laid_over
from pipelines.strategy import strategies, with_strategy


def test_strategies_are_those_of_the_folder() -> None:
    assert set(strategies()) >= {"direct", "lmsi", "regenesis", "rest_em", "rft", "star"}
    assert all(strategy.source and strategy.summary for strategy in strategies().values())


def test_config_goes_before_its_strategy_and_that_before_the_defaults() -> None:
    tree: dict[str, Any] = {
        "synthesis": {"strategy": "rest_em", "samples": 4, "stages": {"path": {"max_tokens": 90}}}
    }
    synthesis = with_strategy(tree)["synthesis"]
    assert synthesis["samples"] == 4
    assert synthesis["chain"] == ["path"]
    assert synthesis["stages"]["path"] == {"temperature": 0.7, "top_k": 40, "max_tokens": 90}


def test_config_without_a_strategy_is_left_as_it_is() -> None:
    for tree in ({}, {"synthesis": {"samples": 2}}, {"synthesis": None}):
        assert with_strategy(tree) == tree


def test_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no 'stair'; there are direct, lmsi"):
        with_strategy({"synthesis": {"strategy": "stair"}})


def test_trees_are_laid_over_branch_by_branch() -> None:
    below = {"a": {"x": 1, "y": 2}, "b": 3, "c": {"z": 1}}
    above = {"a": {"y": 5}, "b": {"new": 1}, "c": 7}
    assert laid_over(below, above) == {"a": {"x": 1, "y": 5}, "b": {"new": 1}, "c": 7}
    assert below == {"a": {"x": 1, "y": 2}, "b": 3, "c": {"z": 1}}


def test_stray_file_among_the_strategies_breaks_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.py").write_text("import nothing_of_the_kind")
    (tmp_path / "torn.py").write_text("STRATEGY = (")
    (tmp_path / "copy of star.py").write_text("STRATEGY = 5")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    strategies.cache_clear()
    try:
        assert "regenesis" in strategies()
        assert not {"notes", "torn", "copy of star"} & set(strategies())
        with pytest.raises(InputError, match=r"file of 'notes' has no strategy .*nothing_of_the"):
            with_strategy({"synthesis": {"strategy": "notes"}})
    finally:
        strategies.cache_clear()
