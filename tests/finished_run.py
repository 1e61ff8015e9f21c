"""A finished run that is written within a second, for the tests of commands that read runs.

No Ray and no training: the golden engine answers, and the steps' own functions write the folders.
The tuned model is a copy of the base; another name makes the engine answer better.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.inference.schedule import Questions, summarize
from cluster.models.model import Model
from cluster.settings import settings_of
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.store.step import Step, claim_run_folder, write_steps
from evaluation.predictions import PREDICTIONS_SCHEMA, PredictAnswer
from evaluation.question import Question, question_table
from evaluation.scores import score_predictions, scores_table
from pipelines.config import Config
from pipelines.selection.select_examples import select_step_examples
from pipelines.stored_run import record_config
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from tests.conftest import SCRIPTED_ENGINE, sums
from tests.test_golden import answered, questions

DATASETS = ("sums", "options", "claims")
EXECUTION = {"wall_s": 12.5, "tokens_per_s": 80.0, "num_workers": 1, "num_tokens": 1000}


@dataclass(frozen=True)
class FinishedRun:
    """The folder, its config, and the rows of its paths as they were written."""

    folder: Folder
    config: Config
    rows: list[dict[str, Any]]
    steps: dict[str, Step]


def config_tree(root: Path, model: Path) -> dict[str, Any]:
    """The config of the run; its datasets are named as those of the golden questions."""
    sources = {k: v for n, name in enumerate(DATASETS) for k, v in _source(name, n).items()}
    return {
        "run": "finished",
        "model": {"path": str(model)},
        "questions": {"datasets": sources},
        "synthesis": {"guidelines_per_question": 4},
        "engine": {**SCRIPTED_ENGINE},
        "storage": {"root": str(root), "cache": str(root / "cache")},
    }


def _source(name: str, seed: int) -> dict[str, Any]:
    return sums(name, seed, num_train=8, num_dev=8, num_test=8)


def write_finished_run(root: Path, model: Path) -> FinishedRun:
    """Write all steps of one round below `root`."""
    config = settings_of(Config, config_tree(root, model), "test")
    folder = Folder.open(str(root / "finished"))
    claim_run_folder(folder, "finished")
    base = Model("base", str(model), config.storage.cache)
    asked = questions("train") + questions("dev") + questions("test")
    steps = {"questions": Step.below(folder, "questions", {})}
    below, round_ = folder.child("base"), folder.child("round_0")
    steps["base/predictions"] = Step.below(below, "predictions", {})
    for name in ("paths", "examples", "model", "predictions", "scores"):
        steps[f"round_0/{name}"] = Step.below(round_, name, {})
    write_questions(steps["questions"], asked)
    train = Questions(steps["questions"].folder, ("train",))
    held_out = Questions(steps["questions"].folder, ("dev", "test"))
    recipe = Recipe.load(0, config.synthesis)
    handler = SynthesizePaths(recipe, config.examples.read_last)
    rows = answered(handler, questions("train"), "base", PATHS_SCHEMA)
    guidelines = [asdict(guideline) for guideline in recipe.guidelines]
    steps["round_0/paths"] = _renamed(steps["round_0/paths"], {"guidelines": guidelines})
    _write_ledger(steps["round_0/paths"], rows, PATHS_SCHEMA, train)
    for name, engine in (("base", "base"), ("round_0", "model-tuned")):
        predicted = answered(
            PredictAnswer(config.evaluation.sampling),
            questions("dev") + questions("test"),
            engine,
            PREDICTIONS_SCHEMA,
        )
        _write_ledger(steps[f"{name}/predictions"], predicted, PREDICTIONS_SCHEMA, held_out)
    facts = select_step_examples(
        steps["round_0/paths"].folder,
        train,
        held_out,
        config.examples,
        base,
        {},
        steps["round_0/examples"].folder,
    )
    steps["round_0/examples"].commit(**facts)
    shutil.copytree(model, steps["round_0/model"].folder.path)
    steps["round_0/model"].commit(
        num_examples=facts["num_examples"],
        num_steps=4,
        first_loss=2.0,
        last_loss=1.0,
        seconds=60.0,
        num_tokens=5000,
    )
    scores = score_predictions(
        held_out, steps["base/predictions"].folder, steps["round_0/predictions"].folder
    )
    steps["round_0/scores"].folder.write_table("scores.parquet", scores_table(scores))
    steps["round_0/scores"].commit()
    record_config(config, folder)
    names = [step.folder.path.removeprefix(f"{folder.path}/") for step in steps.values()]
    write_steps(folder, names)
    return FinishedRun(folder, config, rows, steps)


def _renamed(step: Step, content: dict[str, Any]) -> Step:
    parent = Folder(step.folder.filesystem, step.folder.path.rpartition("/")[0])
    return Step.below(parent, step.name, content)


def write_questions(step: Step, asked: Sequence[Question]) -> None:
    """Finish the step with these questions and their counts."""
    step.folder.write_table("questions.parquet", question_table(asked))
    groups = {(each.dataset, each.split, each.domain) for each in asked}
    counts = [
        {
            "dataset": dataset,
            "split": split,
            "domain": domain,
            "num_kept": sum((q.dataset, q.split) == (dataset, split) for q in asked),
        }
        for dataset, split, domain in sorted(groups)
    ]
    step.commit(num_questions=len(asked), counts=counts)


def _write_ledger(
    step: Step, rows: list[dict[str, Any]], schema: pa.Schema, asked: Questions
) -> None:
    PartWriter(step.folder.child("parts/000000-000001-aaaa/0"), schema).write(rows)
    totals = summarize(compact(step.folder, schema), asked.keys())
    step.commit(rows=totals, last_execution=EXECUTION)


def folder_of(run: FinishedRun, name: str) -> Path:
    """The folder of a step in a copy of the run."""
    return Path(run.folder.path) / run.steps[name].folder.path.split("/finished/", 1)[1]


def lasting_files(run: FinishedRun) -> set[str]:
    """The files of a copy of the run, without the counter that its holder writes all the time."""
    return {
        name
        for name in run.folder.walk()
        if not (name.endswith(".beat") or name.rpartition("/")[2].startswith(".writing-"))
    }
