"""Time, tokens and money of a run, and its trainings, from its events and step states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipelines.analysis.overview import StepState

Event = Mapping[str, Any]
_NO_CURVES = ("at", "event", "model", "step", "num_steps", "seconds_left")
MOST_POINTS = 400
"""A curve is thinned to this number of points."""


def step_rows(states: Sequence[StepState], events: Sequence[Event]) -> list[dict[str, Any]]:
    """Each step with its state, its questions and tokens, and the seconds that it took so far."""
    seconds = _seconds(events)
    return [
        {
            "step": each.name,
            "state": each.state,
            "num_done": each.num_done,
            "num_questions": each.num_questions,
            "num_tokens": each.facts.get("num_tokens"),
            "tokens_per_s": each.facts.get("tokens_per_s"),
            "num_failed": each.facts.get("num_failed"),
            "seconds": seconds.get(_key_of(each.name)),
            "finished_at": each.finished_at,
        }
        for each in states
    ]


def _key_of(name: str) -> str:
    """`0/paths` for `round_0/paths`; the steps of single datasets share one time."""
    parent, _, step = name.rpartition("/")
    return f"{parent.removeprefix('round_')}/{step.partition('-')[0]}".lstrip("/")


def _seconds(events: Sequence[Event]) -> dict[str, float]:
    """The time of each step in all commands that worked on it, by `_key_of`."""
    found: dict[str, float] = {}
    for event in events:
        if event["event"] in ("step_finished", "step_failed"):
            round_ = event.get("round")
            parent = "" if round_ is None else f"{round_}/"
            key = f"{parent}{event.get('step')}"
            found[key] = found.get(key, 0.0) + float(event.get("seconds") or 0)
    return found


def cost_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """What was generated and trained, in the order of time: tokens, GPU-hours and money."""
    return [
        {
            "at": event["at"],
            "what": "training" if event["event"] == "trained" else "generation",
            "of": str(event.get("model") or ", ".join(map(str, event.get("jobs") or ()))),
            "num_tokens": event.get("tokens", event.get("num_tokens")),
            "seconds": event.get("seconds", event.get("wall_s")),
            "gpu_hours": event.get("gpu_hours"),
            "money": event.get("money"),
            "currency": event.get("currency"),
        }
        for event in events
        if event["event"] in ("generated", "trained")
    ]


def rate_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Tokens a second between each two records of one pool, with the engines that it had."""
    rows: list[dict[str, Any]] = []
    last: Event | None = None
    for event in events:
        if event["event"] in ("generated", "step_started", "command_started"):
            last = None
        elif event["event"] == "rate":
            if last is not None and (passed := _passed(last, event)) > 0:
                made = float(event.get("tokens") or 0) - float(last.get("tokens") or 0)
                rows.append(
                    {
                        "at": event["at"],
                        "tokens_per_s": max(0.0, made / passed),
                        "engines": event.get("engines"),
                        "in_flight": event.get("in_flight"),
                    }
                )
            last = event
    return thinned(rows)


def _passed(before: Event, after: Event) -> float:
    times = [datetime.fromisoformat(str(each["at"])) for each in (before, after)]
    return (times[1] - times[0]).total_seconds()


def training_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The curves of each training in long form: (model, step, metric, value).

    A step that was repeated after a stop counts once, as it was recorded last.
    """
    found: dict[tuple[str, float], Event] = {}
    for event in events:
        if event["event"] == "training_rate":
            found[str(event.get("model")), float(event.get("step") or 0)] = event
    by_model: dict[str, list[dict[str, Any]]] = {}
    for (model, step), event in sorted(found.items()):
        values = {k: v for k, v in event.items() if k not in _NO_CURVES and _is_number(v)}
        by_model.setdefault(model, []).append({"step": step, "values": values})
    return [
        {"model": model, "step": point["step"], "metric": metric, "value": float(value)}
        for model, points in by_model.items()
        for point in thinned(points)
        for metric, value in point["values"].items()
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `MOST_POINTS` rows, evenly taken, with the first and the last one."""
    if len(rows) <= MOST_POINTS:
        return rows
    step = (len(rows) - 1) / (MOST_POINTS - 1)
    return [rows[round(number * step)] for number in range(MOST_POINTS)]
