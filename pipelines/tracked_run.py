"""Send the numbers of a run to the trackers that its trainings use, as one tracked run.

Runs on the driver. It listens to the events of the run (`cluster.events`) and looks at the steps
that have finished, so no step knows of it::

    rate           -> {"generation/tokens_per_s": 2410.0, "generation/paths/right_share": 0.41}
    step_finished  -> {"scores/test/in_domain/tuned": 0.62, "round": 0.0}

The step of a tracker is the number of whole seconds since the run began, so a run that continues
continues its curves. The event `tracked` names the finished steps that were sent and when they had
finished; a later command sends only what has finished since. The trackers work in a thread, because
a server that is slow must not hold up the progress of the run.
"""

from __future__ import annotations

import logging
import math
import queue
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cluster.errors import DamagedFileError, StorageError
from cluster.events import logger, read_events, record
from cluster.inference.progress import ANSWERS
from cluster.store.folder import Folder
from cluster.store.step import read_steps
from cluster.terminal import say
from cluster.tracking import Log, Tracked, TrackingSettings, tracking
from pipelines.analysis.overview import StepState, finished_state

CLOSE_S = 60.0
"""So long a command that ends waits for its trackers."""
_FOLLOWED = ("rate", "generated", "step_started", "step_finished")
_ROUND = re.compile(r"round_(\d+)/")
_SHARES = {"right_share": "accepted", "truncated_share": "truncated", "failed_share": "failed"}
_UNSCORED = "predictions"
"""The right share of these is left to the scores, which know the datasets that are not reported."""
_COUNTS: Mapping[str, tuple[str, ...]] = {
    "examples": ("num_examples", "num_kept_paths", "num_learned_tokens"),
    "model": ("num_examples", "num_tokens", "first_loss", "last_loss"),
}
"""The numbers of a manifest that are sent as they are, by the kind of the step."""

Event = Mapping[str, Any]


@contextmanager
def tracked_run(folder: Folder, settings: TrackingSettings) -> Iterator[None]:
    """Send the numbers of a run to its trackers while a `with` block runs, from its first step on.

    What goes wrong with them is said once and never ends the run.
    """
    if not settings.is_on:
        yield
        return
    listener = _Listener()
    sender = threading.Thread(
        target=_send_all, args=(folder, settings, listener.events), name="tracking", daemon=True
    )
    sender.start()
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        listener.events.put(None)
        sender.join(CLOSE_S)
        if sender.is_alive():
            say(f"note: the trackers did not take the last numbers within {CLOSE_S:.0f} s")


class _Listener(logging.Handler):
    """Hands on the events that the trackers are interested in."""

    def __init__(self) -> None:
        super().__init__()
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) in _FOLLOWED:
            facts: Event = record.__dict__["facts"]
            self.events.put({**facts, "event": record.__dict__["event"], "at": record.created})


def _send_all(
    folder: Folder, settings: TrackingSettings, events: queue.SimpleQueue[Event | None]
) -> None:
    """Runs in the thread of the trackers until None comes."""
    try:
        with ExitStack() as stack:
            sender = _Sender(folder, settings, stack)
            while (event := events.get()) is not None:
                sender.follow(event)
    except (DamagedFileError, StorageError, OSError) as error:
        say(f"note: the numbers of the run are not tracked any more: {error}")


@dataclass
class _Sender:
    """Turns events into the numbers of the tracked run; opens the trackers for the first ones."""

    folder: Folder
    settings: TrackingSettings
    stack: ExitStack
    log: Log | None = None
    began: float = 0.0
    """When the run began, in seconds since 1970."""
    last_at: int = 0
    """The greatest step that was sent, in seconds since the run began."""
    sent: dict[str, str] = field(default_factory=dict)
    """The finished steps that the trackers have, and when each had finished."""
    is_at_work: bool = False
    """Whether a step of this command has begun; what only plans is not tracked."""
    last_rate: Event | None = None

    def follow(self, event: Event) -> None:
        """Send what an event tells."""
        if event["event"] == "rate":
            if self.is_at_work:
                self._send(event["at"], rate_numbers(event, self.last_rate))
            self.last_rate = event
            return
        self.last_rate = None  # the next pool counts its tokens anew
        if event["event"] == "step_started" and not self.is_at_work:
            self.is_at_work = True
            self._remember(event["at"])
        if event["event"] == "step_finished":
            self._send_steps()

    def _remember(self, now: float) -> None:
        """What the events of earlier commands tell: when the run began, and what was sent."""
        # Stored times are cut to milliseconds; this command's may seem to be from before `now`.
        before = math.floor(1000 * now) / 1000
        events = [event for event in read_events(self.folder) if _seconds(event["at"]) < before]
        self.began = min([now, *(_seconds(event["at"]) for event in events[:1])])
        sent = [event for event in events if event["event"] in ("rate", "tracked")]
        for event in sent:
            # TensorBoard drops what was sent before at the first step of this command, or later.
            self.last_at = max(self.last_at, int(_seconds(event["at"]) - self.began) + 1)
            self.sent |= event.get("steps", {})

    def _send_steps(self) -> None:
        names = read_steps(self.folder) or ()
        states = [state for name in names if (state := finished_state(self.folder, name))]
        new = [state for state in states if self.sent.get(state.folder) != state.finished_at]
        for state in sorted(new, key=lambda each: each.finished_at):
            if numbers := step_numbers(state):
                self._send(_seconds(state.finished_at), numbers)
        if new:
            told = {state.folder: state.finished_at for state in new}
            self.sent |= told
            record("tracked", steps=told)

    def _send(self, at: float, numbers: Mapping[str, float]) -> None:
        """Send numbers that are of this time; steps never go back, as Weights & Biases asks."""
        at_step = max(self.last_at, int(at - self.began), 1)
        if self.log is None:
            tracked = Tracked(self.folder)
            opened = tracking(tracked, self.settings, at_step - 1, say)
            self.log = self.stack.enter_context(opened)
        self.last_at = at_step
        self.log(at_step, numbers)


def _seconds(at: str) -> float:
    """A time of an event or a manifest (UTC) in seconds since 1970; 0 if none was recorded."""
    if not at:
        return 0.0
    return datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()


def rate_numbers(event: Event, last: Event | None) -> dict[str, float]:
    """The numbers of an event `rate` and the one before it in the same pool, with shares in 0 to 1.

    `at` of both is in seconds.
    """
    numbers = {
        "generation/engines": float(event["engines"]),
        "generation/in_flight": float(event["in_flight"]),
    }
    if last is not None and event["at"] > last["at"]:
        made = max(0, event["tokens"] - last["tokens"])
        numbers["generation/tokens_per_s"] = made / (event["at"] - last["at"])
    for job, answers in event["answers"].items():
        below = f"generation/{job}"
        numbers[f"{below}/questions_done"] = float(event["questions"][job])
        counts = {counter: event[counter][job] for counter in _SHARES.values()}
        numbers |= {f"{below}/{name}": share for name, share in _shares(job, counts, answers)}
    return numbers


def _shares(kind: str, counts: Mapping[str, int], number: int) -> list[tuple[str, float]]:
    names = [name for name in _SHARES if (kind, name) != (_UNSCORED, "right_share")]
    return [(name, counts[_SHARES[name]] / number) for name in names if number]


def step_numbers(state: StepState) -> dict[str, float]:
    """The numbers of a finished step by the name of its kind, such as `paths/right_share`.

    Shares are in 0 to 1, and so are scores. Empty for a step that has none, such as the questions.
    """
    parent, _, name = state.name.rpartition("/")
    numbers = _numbers_of(state)
    if not numbers:
        return {}
    below = "base" if parent == "base" else ""
    found = {f"{below}/{name}/{key}".lstrip("/"): value for key, value in numbers.items()}
    in_round = _ROUND.match(state.name)
    return found | ({"round": float(in_round[1])} if in_round else {})


def _numbers_of(state: StepState) -> dict[str, float]:
    facts = state.facts
    if state.kind in ("paths", "predictions"):
        return _of_answers(state.kind, facts)
    if state.kind == "scores":
        return _of_scores(facts)
    if state.kind == "decision":
        return {name: float(v) for name, v in facts["measures"].items() if v is not None}
    return {name: float(facts[name]) for name in _COUNTS.get(state.kind, ()) if name in facts}


def _of_answers(kind: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """How many answers there are, which share is right and was cut off, and how fast they came."""
    number = facts["num_paths"] if kind == "paths" else facts["num_done"]
    found = {"answers": float(number), "tokens": float(facts["num_tokens"])}
    if "tokens_per_s" in facts:
        found["tokens_per_s"] = float(facts["tokens_per_s"])
    counts = {counter: facts[ANSWERS[counter]] for counter in _SHARES.values()}
    return found | dict(_shares(kind, counts, number))


def _of_scores(facts: Mapping[str, Any]) -> dict[str, float]:
    """The strict scores of base and tuned model and their difference, by split and domain."""
    columns = {"base": "base_strict", "tuned": "tuned_strict", "difference": "strict_difference"}
    return {
        f"{row['split']}/{row['domain']}/{name}": float(row[column])
        for row in facts["scores"]
        for name, column in columns.items()
        if row[column] is not None
    }
