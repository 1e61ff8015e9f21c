"""The `model` step: a model fine-tuned on the examples, with Ray Train and DeepSpeed ZeRO."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from cluster.events import record
from cluster.gpus import wait_until_free
from cluster.inference.progress import RECORD_EVERY_S, format_seconds
from cluster.models.model import Model
from cluster.models.weight_digests import check_saved
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import content_of, versioned
from cluster.store.step import Step
from cluster.terminal import ProgressLine, say
from pipelines.run import Branch, Round, Run
from training.data.examples import survey
from training.fine_tune import fine_tune
from training.hardware import training_need
from training.settings import TrainingSettings

VERSION = 1


def content(
    training: TrainingSettings, examples: Step, start: Model, dataset: str | None
) -> dict[str, Any]:
    """The examples (all, or those of one dataset), the model to tune, and the settings."""
    made_from = {
        "examples": examples.identity,
        "start": start.identity,
        "training": content_of(training),
        "dataset": dataset,
    }
    return versioned(made_from, VERSION)


def make(run: Run, round_: Round, stop: StopRequest) -> None:
    """Tune one model, or one for each dataset."""
    missing = [branch for branch in round_.branches if not branch.model.is_done]
    for branch in missing[1:]:  # refuse now, not after the earlier trainings
        run_task(survey, round_.examples.folder, round_.training, branch.dataset)
    if missing and round_.start.folder:
        run_task(check_saved, round_.start)
    for branch in missing:
        _tune(run, round_, branch, stop)


def _tune(run: Run, round_: Round, branch: Branch, stop: StopRequest) -> None:
    """Tune the model of one branch; a signal interrupts it, since a training has checkpoints."""
    name = branch.model.name
    progress = TrainingProgress(name, run.config.cluster.progress_every_s)
    need = training_need(round_.training)
    if need.total("GPU"):
        # Ray Train also takes them in one step, but would wait for them silently.
        wait_until_free(need, run.config.cluster, stop)
    with stop.at_once():
        facts = fine_tune(
            round_.start,
            round_.examples.folder,
            branch.model.folder,
            round_.training,
            dataset=branch.dataset,
            on_step=progress,
        )
    cost = run.config.cost.of(need.total("GPU"), facts["seconds"])
    record("trained", model=name, tokens=facts["num_tokens"], seconds=facts["seconds"], **cost)
    branch.model.commit(**facts)
    say(summary(name, facts))
    for warning in unreached_limits(name, facts, round_.training):
        say(f"warning: {warning}")


def summary(name: str, facts: Mapping[str, Any]) -> str:
    """What was learned from, and how the loss fell."""
    return (
        f"{name}: {facts['num_examples']} examples in {facts['num_steps']} steps; the loss went "
        f"from {facts['first_loss']:.4f} to {facts['last_loss']:.4f}"
    )


def unreached_limits(name: str, facts: Mapping[str, Any], training: TrainingSettings) -> list[str]:
    """A sentence for each limit that was meant to make trainings equal and was not reached."""
    reached = {"max_steps": "num_steps", "max_learned_tokens": "num_trained_tokens"}
    limits = {limit: getattr(training, limit) for limit in reached}
    done = {limit: facts[fact] for limit, fact in reached.items()}
    if any(limits[limit] and done[limit] >= limits[limit] for limit in limits):
        return []
    return [
        f"{name}: the training ended at {done[limit]} of training.{limit} {most}; raise "
        "training.num_epochs to reach it"
        for limit, most in limits.items()
        if most is not None
    ]


class TrainingProgress:
    """Shows how far a training is, at most once per interval, and at its first and last step."""

    def __init__(self, name: str, every_s: float) -> None:
        self._name = name
        self._line = ProgressLine(every_s, sys.stdout)
        self._recorded_at = -math.inf

    def __call__(self, facts: Mapping[str, float]) -> None:
        """Show one step; `fine_tune` documents `facts`."""
        line = f"{self._name}: {training_line(facts)}"
        is_last = facts["step"] == facts["num_steps"]
        if is_last or time.monotonic() - self._recorded_at >= RECORD_EVERY_S:
            self._recorded_at = time.monotonic()
            record("training_rate", model=self._name, **facts)
        if is_last:
            self._line.end(line)
        else:
            self._line.show(line, due=facts["step"] == 1)


def training_line(facts: Mapping[str, float]) -> str:
    """One step of a training in numbers, and the time that the remaining steps will take."""
    steps_left = facts["num_steps"] - facts["step"]
    parts = [
        f"step {facts['step']:.0f}/{facts['num_steps']:.0f}",
        f"loss {facts['loss']:.4f}",
        f"margin {facts['reward_margin']:.3f}" if "reward_margin" in facts else "",
        f"lr {facts['learning_rate']:.2e}",
        f"grad norm {facts['grad_norm']:.2f}",
        f"{facts['tokens_per_s']:.0f} tok/s",
        f"MFU {facts['mfu']:.0%}" if "mfu" in facts else "",
        f"{format_seconds(steps_left * facts['tokens'] / facts['tokens_per_s'])} left",
    ]
    return " | ".join(filter(None, parts))
