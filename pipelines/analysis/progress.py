"""How far the command that works on a run is, by the files of the run alone.

The events say which step is at work, and once a minute how fast; the ledgers say how many questions
have their row. On an object store the events are up to a minute old.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.inference.progress import format_seconds
from cluster.inference.time_left import WINDOW_S
from pipelines.analysis.overview import StepState, working_events


@dataclass(frozen=True)
class Progress:
    """What the events tell of the last command on a run."""

    command: str
    outcome: str
    """`finished` or `failed`; empty while the command works, or when it was killed."""
    step: str
    """The step at work, such as `round 0: model`; empty between two steps."""
    step_began: datetime | None
    tokens_per_s: float | None
    questions_per_s: float | None
    num_left: int | None
    """Questions that were left when the rate was recorded last; None where no pool works."""
    num_engines: int | None


def progress_of(events: Sequence[Mapping[str, Any]]) -> Progress | None:
    """The progress of the last command, from the events of a run; None before there is one."""
    events = working_events(events)
    starts = [n for n, event in enumerate(events) if event["event"] == "command_started"]
    if not starts:
        return None
    own = events[starts[-1] :]
    ends = [e["event"] for e in own if e["event"] in ("command_finished", "command_failed")]
    step = _step_at_work(own)
    rates = _rates(own) if not ends else []
    return Progress(
        command=str(own[0].get("command", "")),
        outcome=ends[-1].removeprefix("command_") if ends else "",
        step=f"round {step['round']}: {step['step']}" if step else "",
        step_began=_time(step) if step else None,
        tokens_per_s=_speed(rates, lambda event: event["tokens"]),
        questions_per_s=_speed(rates, lambda event: sum(event["questions"].values())),
        num_left=sum(rates[-1]["questions_left"].values()) if rates else None,
        num_engines=rates[-1]["engines"] if rates else None,
    )


def _step_at_work(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    steps = [event for event in events if event["event"].startswith("step_")]
    return steps[-1] if steps and steps[-1]["event"] == "step_started" else None


def _rates(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rates of the pool that works now, of the last half hour; none when no pool works."""
    begun = [n for n, e in enumerate(events) if e["event"] in ("generated", "step_started")]
    rates = [e for e in events[begun[-1] if begun else 0 :] if e["event"] == "rate"]
    return [e for e in rates if (_time(rates[-1]) - _time(e)).total_seconds() <= WINDOW_S]


def _speed(rates: Sequence[Mapping[str, Any]], count: Any) -> float | None:
    """How much is counted in a second; None before two rates were recorded."""
    seconds = (_time(rates[-1]) - _time(rates[0])).total_seconds() if rates else 0.0
    return (count(rates[-1]) - count(rates[0])) / seconds if seconds > 0 else None


def _time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(event["at"]))


def format_progress(progress: Progress | None, states: Sequence[StepState], now: datetime) -> str:
    """One line: the step at work, questions, rate, and the time that is left of its generation."""
    if progress is None:
        return "no command has recorded an event so far"
    if progress.outcome:
        return f"`{progress.command}` has {progress.outcome}; {_finished(states)}"
    parts = [_step(progress, now), *map(_questions, _at_work(states))]
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.num_engines is not None:
        parts.append(f"{progress.num_engines} engines")
    if progress.questions_per_s and progress.num_left is not None:
        left = progress.num_left / progress.questions_per_s
        parts.append(f"about {format_seconds(left)} of generation left")
    return " | ".join(parts)


def _step(progress: Progress, now: datetime) -> str:
    if progress.step_began is None:
        return f"`{progress.command}` is between two steps"
    since = max(0.0, (now - progress.step_began).total_seconds())
    return f"{progress.step} for {format_seconds(since)}"


def _at_work(states: Sequence[StepState]) -> list[StepState]:
    return [s for s in states if s.state == "unfinished" and s.num_done is not None]


def _questions(state: StepState) -> str:
    asked = f" of {state.num_questions:,}" if state.num_questions is not None else ""
    made = state.facts.get("num_paths", 0)
    right = f", {100 * state.facts['num_accepted'] / made:.1f} % right" if made else ""
    return f"{state.name}: {state.num_done:,}{asked} questions{right}"


def _finished(states: Sequence[StepState]) -> str:
    done = sum(state.state == "finished" for state in states)
    return f"{done} of {len(states)} steps are finished"
