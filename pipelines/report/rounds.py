"""What changes from round to round, and the alarms: signs that a model learns to do worse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Alarm:
    """A metric that has fallen (or risen) by more than a threshold since the round before."""

    metric: str
    threshold: float
    """The change that raises the alarm, with its sign; shares are between 0 and 1."""
    meaning: str


ALARMS = (
    Alarm("share of questions solved", -0.02, "the paths solve fewer questions"),
    Alarm("share of right paths", -0.05, "the paths are right less often"),
    Alarm("share of paths cut off", 0.05, "more paths are cut off by the token limit"),
    Alarm("out_of_domain, strict", -0.02, "the model answers worse out of domain"),
)


def round_rows(run: str, tables: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Long form, a row for each round and metric of a run: (run, round, metric, value).

    `tables` are the rows of all tables of the report. Shares are between 0 and 1.
    """
    own = {name: [row for row in rows if row.get("run") == run] for name, rows in tables.items()}
    rows = [*_of_funnel(own.get("funnel", ())), *_of_lengths(own.get("lengths", ()))]
    rows += _of_scores(own.get("measures", ()))
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


def alarms(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The alarms of all runs, from the rows of `round_rows`."""
    values = {(row["run"], row["metric"], row["round"]): row["value"] for row in rows}
    return [
        {
            "run": run,
            "round": round_,
            "metric": metric,
            "before": values[run, metric, round_ - 1],
            "after": after,
            "meaning": alarm.meaning,
        }
        for (run, metric, round_), after in values.items()
        for alarm in ALARMS
        if metric == alarm.metric and (run, metric, round_ - 1) in values
        if _is_raised(alarm, after - values[run, metric, round_ - 1])
    ]


def _is_raised(alarm: Alarm, change: float) -> bool:
    return change <= alarm.threshold if alarm.threshold < 0 else change >= alarm.threshold
