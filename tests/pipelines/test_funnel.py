"""The funnel, against recounts: filters applied one by one, and the rows of a run's files."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.analysis.reading import all_paths, tables_of_paths
from pipelines.selection.filters import (
    FILTERS,
    ExampleSettings,
    Filter,
    GradedQuestion,
    VerdictName,
    filter_paths,
    in_drawn_order,
    own_filters,
)
from pipelines.selection.funnel import KEPT, OTHER, PATHS, STAGES_OF, stages_left, stages_of
from pipelines.stored_run import StoredRun
from pipelines.synthesis.reasoning_path import ReasoningPath
from tests.commands.conftest import finished_run as finished_run
from tests.finished_run import FinishedRun, folder_of
from tests.pipelines.test_filters import NUMBER, path
from tests.report.invented_run import invented_run, why_dropped

MINE = """
def mine(graded, paths):
    return {path.path_id: "a reason of mine" for path in paths if path.path_id.endswith("7")}
"""


def drawn_paths(seed: int) -> list[ReasoningPath]:
    """Paths of one question that each filter finds something in."""
    draw = random.Random(seed)
    return [drawn_path(number, draw) for number in range(120)]


def drawn_path(number: int, draw: random.Random) -> ReasoningPath:
    fate = draw.choice(["stop"] * 8 + ["length", "error"])
    more: dict[str, Any] = {
        "reasoning": draw.choice([f"way {number}", "the same", "As the guideline says, so 4."]),
        "token_ids": [1] * draw.choice([2, 2, 2, 900]),
        "judged": draw.choice([None, "yes", "no"]),
    }
    if fate == "stop":
        predicted = draw.choice(["4", "4", "4", "4", "5", None])
        return path(number, predicted, hint_pass=draw.choice([0, 0, 0, 1]), **more)
    verdict, error = ("truncated", None) if fate == "length" else ("error", "refused")
    made = [{"stage": "path", "finish_reason": "length"}] if fate == "length" else []
    return path(number, None, verdict=verdict, error=error, generations=made, **more)


@pytest.mark.parametrize("verdict", list(FILTERS))
@pytest.mark.parametrize("questions", ["all", "solved"])
def test_stages_are_what_the_filters_leave_one_after_another(
    verdict: VerdictName, questions: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    own = (f"{tmp_path / 'mine.py'}:mine",)
    settings = ExampleSettings(verdict=verdict, questions=questions, filters=own)  # type: ignore[arg-type]
    graded = GradedQuestion(NUMBER, drawn_paths(3), settings)
    left = in_drawn_order(graded.paths, settings.seed)
    after: dict[Filter, int] = {}
    for each in FILTERS[verdict]:
        gone = each(graded, left)
        left = [one for one in left if one.path_id not in gone]
        after[each] = len(left)
    kept, reasons = filter_paths(graded)
    facts = {
        "num_paths": len(graded.paths),
        "num_kept_paths": len(kept),
        "dropped": dict(Counter(reasons.values()).most_common()),
    }
    found = dict(stages_left(facts, settings.model_dump(mode="json")))
    names = list(found)
    assert (names[0], names[-1]) == (PATHS, KEPT.name)
    assert (found[PATHS], found[KEPT.name]) == (len(graded.paths), len(kept))
    seen = set()
    for each, number in after.items():
        new = [stage.name for stage in STAGES_OF[each] if stage.name not in seen]
        seen.update(new)
        if shown := [name for name in names if name in new]:
            assert found[shown[-1]] == number, each
        else:  # else it would have dropped some
            assert number == after_before(after, each, len(graded.paths))
    assert (OTHER.name in found) == (own_filters in after)
    assert ("right" in found) == (verdict in ("ground_truth", "majority"))


def after_before(after: dict[Filter, int], each: Filter, num_paths: int) -> int:
    """How many there were before a filter."""
    place = list(after).index(each)
    return [num_paths, *after.values()][place]


def test_every_filter_has_a_stage() -> None:
    assert {each for used in FILTERS.values() for each in used} <= STAGES_OF.keys()


def test_reason_of_another_version_is_one_of_the_other_filters() -> None:
    facts = {"num_kept_paths": 1, "dropped": {"of_long_ago": 2, "duplicate": 3}}
    found = stages_left(facts, {})
    assert found[0] == (PATHS, 6)
    assert (OTHER.name, 4) in found
    assert found[-2:] == [("unique", 1), (KEPT.name, 1)]


def test_leaks_are_no_stage_where_none_is_looked_for() -> None:
    facts = {"num_kept_paths": 1, "dropped": {}}
    assert "not leaked" in dict(stages_left(facts, {}))
    assert "not leaked" not in dict(stages_left(facts, {"drop_leaks": []}))


def test_filters_table_adds_up_to_the_files(finished_run: FinishedRun) -> None:
    run = StoredRun.read(finished_run.folder)
    rows = tables_of_paths(run, all_paths(run))["filters"].to_pylist()
    dropped = pq.read_table(folder_of(finished_run, "round_0/examples") / "dropped").to_pylist()
    for dataset in {row["dataset"] for row in rows}:
        own = [row for row in rows if row["dataset"] == dataset]
        num_paths = sum(len(r["paths"]) for r in finished_run.rows if r["dataset"] == dataset)
        reasons = Counter(row["reason"] for row in dropped if row["dataset"] == dataset)
        assert not own[0]["is_so_far"]
        assert own[0]["number"] == num_paths
        assert own[-1]["number"] == num_paths - reasons.total()
        by_stage = {row["stage"]: row for row in own}
        for stage in stages_of("ground_truth"):
            if stage.reasons and stage.name in by_stage:
                number = sum(reasons[reason] for reason in stage.reasons)
                assert by_stage[stage.name]["dropped"] == number
        for before, row in itertools.pairwise(own):
            assert before["number"] - row["dropped"] == row["number"]
            if before["number"]:
                assert row["share"] == pytest.approx(row["number"] / before["number"])


def test_filters_table_of_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = invented_run(tmp_path, is_finished=False, own_reason="too many lists")
    rows = tables_of_paths(run, all_paths(run))["filters"].to_pylist()
    last = [row for row in rows if row["round"] == 1]
    assert {row["stage"] for row in last} == {"paths", "finished", "answer read", "right"}
    assert all(row["is_so_far"] for row in last)
    done: Counter[str] = Counter()
    for row in rows:
        if row["round"] == 0:
            assert not row["is_so_far"]
            done[row["stage"]] += row["dropped"]
    reasons: Counter[str] = Counter()
    for row in run.table("round_0/paths").to_pylist():
        reasons.update(why_dropped(row["paths"], "too many lists"))
    assert done["not leaked"] == reasons["leak_guideline"] + reasons["leak_structure"] > 0
    assert done[OTHER.name] == reasons["too many lists"] > 0
    assert done["unique"] == reasons["duplicate"] > 0
    assert done[KEPT.name] == reasons["over_max_per_question"]
    assert done.total() == reasons.total()
