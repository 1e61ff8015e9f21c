"""The `guidelines` step: further guidelines from the base model, if the config asks for them.

It is made before round 0, for all rounds, on one engine: each question samples from all guidelines,
so no path can begin before they exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from cluster.events import timed
from cluster.inference.engine import EngineSettings
from cluster.inference.job import GenerationJob
from cluster.inference.pool import finish_job
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.session import StopRequest
from cluster.settings import content_of, versioned
from cluster.store.step import Step
from cluster.terminal import say
from pipelines.generate import run_engines
from pipelines.run import Run
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.propose_guidelines import (
    PROPOSALS_SCHEMA,
    Expansion,
    ProposeGuideline,
    read_step_guidelines,
    select_step_guidelines,
    write_prompts,
)

VERSION = 1


def content(expansion: Expansion, engine: EngineSettings, base: Model) -> dict[str, Any]:
    """What the step's folder is named after. The paths depend on this and not on the step's result,
    so that all folders are known in advance."""
    made_from = {
        "model": base.identity,
        "engine": content_of(engine),
        "guidelines": [asdict(guideline) for guideline in expansion.guidelines],
        "prompt": expansion.prompt,
        "number": expansion.number,
        "sampling": content_of(expansion.sampling),
        "seed": expansion.seed,
    }
    return versioned(made_from, VERSION)


def make(run: Run, stop: StopRequest) -> None:
    """Generate the proposals, and keep those that are new and general."""
    step, expansion = run.guidelines_step, run.expansion
    if step is None or expansion is None:
        return
    with timed("step", step="guidelines"):
        if not step.is_done:
            _propose(run, step, expansion, stop)


def _propose(run: Run, step: Step, expansion: Expansion, stop: StopRequest) -> None:
    prompts = write_prompts(expansion, step.folder)
    handler = ProposeGuideline(expansion.sampling, expansion.seed)
    job = GenerationJob("guidelines", step.folder, PROPOSALS_SCHEMA, handler, prompts)
    execution = run_engines(run.config, run.base, [job], stop, max_workers=1)
    rows = finish_job(job)
    facts = run_task(select_step_guidelines, step.folder, prompts, expansion.guidelines)
    step.commit(rows=rows, last_execution=execution.facts(), **facts)
    say(summary(expansion, facts))


def summary(expansion: Expansion, facts: Mapping[str, Any]) -> str:
    """How many proposals were kept, and why the others were dropped."""
    reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in facts["dropped"].items())
    return (
        f"guidelines: kept {len(facts['kept'])} of {expansion.number} proposals, in addition to "
        f"the {len(expansion.guidelines)} that were given; dropped: {reasons or 'none'}"
    )


def with_proposed(recipe: Recipe, step: Step | None) -> Recipe:
    """The recipe with the proposed guidelines, once they exist."""
    if step is None or not step.is_done:
        return recipe
    return replace(recipe, guidelines=read_step_guidelines(step.folder))
