"""The hardware that a run will need, looked for before anything is generated.

What a step needs is known from the config; a cluster without it would be noticed only after all
the work of the steps before. Whether it is free is a matter of the moment, and each step waits.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.gpus import Need, wait_for_room
from cluster.inference.pool import engines_need
from cluster.session import StopRequest
from cluster.store.step import Step
from pipelines.plan import lay_out_rounds
from pipelines.run import Run
from training.hardware import training_need

GENERATE = ("guidelines", "paths", "predictions")


def wait_for_hardware(run: Run, stop: StopRequest, until: str | None = None) -> None:
    """Wait until the cluster has what the steps up to `until` will need, in use or not.

    Raises `InputError` when it has not and does not get it in time.
    """
    for need in _needs(run, until):
        wait_for_room(need, run.config.cluster, stop)


def _needs(run: Run, until: str | None) -> Iterator[Need]:
    """What the unfinished steps up to `until` need, each kind of them at the same moment.

    What a training takes is known once the nodes are there that the engines waited for.
    """
    open_steps = {name for name, step in _steps(run, until) if not step.is_done}
    if run.config.engine.use_gpu and open_steps & set(GENERATE):
        # Where there are few CPUs `cluster.inference.engine_sizing` takes fewer for each engine.
        yield engines_need(run.config.engine).gpus_alone()
    if "model" in open_steps:
        yield training_need(run.config.training)


def _steps(run: Run, until: str | None) -> Iterator[tuple[str, Step]]:
    """The steps that follow the questions, up to `until`, each with the name of its kind."""
    if until == "questions":
        return
    if run.guidelines_step is not None:
        yield "guidelines", run.guidelines_step
    if until == "guidelines":
        return
    for round_ in lay_out_rounds(run):
        steps = {
            "paths": [round_.paths],
            "examples": [round_.examples],
            "model": [branch.model for branch in round_.branches],
            "predictions": [run.base_predictions, *(b.predictions for b in round_.branches)],
            "scores": [branch.scores for branch in round_.branches],
        }
        for name, of_name in steps.items():
            yield from ((name, step) for step in of_name)
            if until in (f"{round_.number}/{name}", name):
                return
