"""What changes from round to round, and what the run decided after each of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.rounds.decide import describe_decision
from pipelines.stored_run import StoredRun

Row = Mapping[str, Any]
_DECISION = re.compile(r"round_(\d+)/decision-[^/]+")
_MEASURES = {
    "diversity": "diversity of the paths of a question",
    "vote_share": "share of votes for the most common answer",
    "weights_changed": "share of weights that the training changed",
}
"""Measures of a decision that no other table has, and their names on the page."""


def round_rows(run: str, tables: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Long form, a row for each round and metric of a run: (run, round, metric, value).

    `tables` are the rows of all tables of the report. Shares are between 0 and 1.
    """
    own = {name: [row for row in rows if row.get("run") == run] for name, rows in tables.items()}
    rows = [*_of_funnel(own.get("funnel", ())), *_of_lengths(own.get("lengths", ()))]
    rows += [*_of_scores(own.get("measures", ())), *_of_diversity(own.get("diversity", ()))]
    rows += _of_decisions(own.get("decisions", ()))
    return [
        {"run": run, "round": round_, "metric": metric, "value": value}
        for round_, metric, value in rows
    ]


def _of_funnel(rows: Iterable[Row]) -> list[tuple[int, str, float]]:
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if not row["reason"]:
            counts[row["round"]][row["stage"]] += row["number"]
    found: list[tuple[int, str, float]] = []
    for round_, stages in sorted(counts.items()):
        if stages["with paths"]:
            solved = stages["solved"] / stages["with paths"]
            found.append((round_, "share of questions solved", solved))
        if stages["paths"]:
            found.append((round_, "share of right paths", stages["right"] / stages["paths"]))
        if "examples" in stages:
            found.append((round_, "examples", stages["examples"]))
    return found


def _of_lengths(rows: Iterable[Row]) -> list[tuple[int, str, float]]:
    counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in rows:
        sums = counts[row["round"]]
        sums[0] += row["num_paths"]
        sums[1] += row["num_truncated"]
        sums[2] += row["num_paths"] * row["mean_tokens"]
    return [
        found
        for round_, (paths, cut, tokens) in sorted(counts.items())
        if paths
        for found in (
            (round_, "share of paths cut off", cut / paths),
            (round_, "mean tokens of a path", tokens / paths),
        )
    ]


def _of_scores(rows: Iterable[Row]) -> list[tuple[int, str, float]]:
    """The mean over the tasks of a group, or its only task; the base is round -1."""
    found: dict[tuple[int, str], float] = {}
    for row in rows:
        is_round = row["round"] is not None or row["model"] == "base"
        if row["metric"] != "accuracy" or not is_round or row["split"] != "test":
            continue
        key = (-1 if row["round"] is None else row["round"], f"{row['group']}, {row['reading']}")
        if key not in found or row["task"] == "mean":
            found[key] = row["value"]
    return [(round_, metric, value) for (round_, metric), value in sorted(found.items())]


def _of_diversity(rows: Iterable[Row]) -> list[tuple[int, str, float]]:
    """The chance that two answers to a question differ, over the questions of all datasets."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        if row["num_questions"]:
            sums[row["round"]][0] += row["num_questions"] * row["answers_differ"]
            sums[row["round"]][1] += row["num_questions"]
    return [
        (round_, "share of answers to a question that differ", differ / number)
        for round_, (differ, number) in sorted(sums.items())
    ]


def _of_decisions(rows: Iterable[Row]) -> list[tuple[int, str, float]]:
    return [
        (row["round"], metric, row["measures"][name])
        for row in rows
        for name, metric in _MEASURES.items()
        if row["measures"].get(name) is not None
    ]


def decisions(run: str, stored: StoredRun) -> list[dict[str, Any]]:
    """What was decided after each round of a run, in words; empty if it decides nothing."""
    found = ((_DECISION.fullmatch(step), step) for step in stored.steps)
    made = {int(match[1]): stored.folder.child(step).manifest() for match, step in found if match}
    return [
        {
            "run": run,
            "round": round_,
            "alarms": facts["alarms"],
            "lines": describe_decision(
                f"round {round_}", facts["began_with"], {**facts, "alarms": []}
            ),
            "measures": facts["measures"],
        }
        for round_, facts in sorted(made.items())
        if facts
    ]
