"""What the estimate reads from a run's first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.schedule import Questions, chunk_folder
from cluster.session import StopRequest
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter
from evaluation.question import Question, question_table
from pipelines.plan import lay_out_rounds
from pipelines.planning.estimate import PlannedTraining
from pipelines.planning.probe import (
    PROBE_FILE,
    _probe_speed,
    planned_training,
    read_probed_paths,
)
from pipelines.selection.filters import ExampleSettings
from pipelines.synthesis.handler import PATHS_SCHEMA, count_paths
from pipelines.synthesis.reasoning_path import ReasoningPath
from tests.conftest import SCRIPTED_ENGINE, scripted_tree, sums
from tests.test_rounds import begin
from training.settings import TrainingSettings

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")


def row_of(question: Question, answers: Sequence[str]) -> dict[str, Any]:
    """The ledger row of a question whose paths gave these answers."""
    generation = {"stage": "path", "finish_reason": "stop", "num_tokens": 7, "num_prompt_tokens": 9}
    paths = [
        {
            "path_id": f"0/direct/{question.question_id}/{number}",
            "pass": 0,
            "option_order": [],
            "reasoning": f"Way {number} gives \\boxed{{{answer}}}",
            "token_ids": [5, 6, 7],
            "verdict": "correct" if answer == question.answer else "wrong",
            "generations": [generation],
            "error": None,
        }
        for number, answer in enumerate(answers)
    ]
    tie = {"question_fingerprint": question.fingerprint, "attempt": 0, "paths": paths}
    return question.to_row() | tie | count_paths([ReasoningPath.from_row(path) for path in paths])


def probed(tmp_path: Path, answers: Sequence[str], question: Question, **settings: Any) -> Any:
    root = Folder.open(str(tmp_path))
    root.child("questions").write_table("questions.parquet", question_table([question]))
    writer = PartWriter(root.child("paths").child(chunk_folder("1", 0)), PATHS_SCHEMA)
    writer.write([row_of(question, answers)])
    questions = Questions(root.child("questions"), ("train",))
    (one,) = read_probed_paths(root.child("paths"), questions, ExampleSettings(**settings), 3)
    return one


def test_kept_is_what_the_filters_of_the_config_leave(tmp_path: Path) -> None:
    answers = ["4", "4", "4", "5"]
    one = probed(tmp_path, answers, QUESTION, max_per_question=2)
    assert (one.num_paths, one.num_accepted, one.num_kept) == (4, 3, 2)
    assert (one.num_generations, one.num_tokens, one.num_prompt_tokens) == (12, 28, 36)
    assert one.num_learned_tokens == 2 * 3


def test_too_easy_questions_are_accepted_and_not_kept(tmp_path: Path) -> None:
    one = probed(tmp_path, ["4", "4", "5"], QUESTION, pass_rate=(0.0, 0.5))
    assert (one.num_accepted, one.num_kept) == (2, 0)


def test_gold_answers_are_learned_without_paths(tmp_path: Path) -> None:
    one = probed(tmp_path, ["4", "5"], QUESTION, verdict="gold_answers")
    assert (one.num_kept, one.num_learned_tokens) == (1, 0)


def test_training_is_planned_where_its_steps_follow_from_the_examples() -> None:
    settings = TrainingSettings(num_epochs=2, epochs_growth=1.5, max_steps=9)
    assert planned_training(settings, 3) == PlannedTraining((2, 3, 4), 16, 9, None)
    assert planned_training(TrainingSettings(mix="per_dataset"), 1) is None
    assert planned_training(TrainingSettings(objective="dpo"), 1) is None


def test_majority_is_accepted_where_no_truth_is_known(tmp_path: Path) -> None:
    unlabelled = replace(QUESTION, answer="")
    one = probed(tmp_path, ["5", "5", "4", "5"], unlabelled, verdict="majority")
    assert (one.num_accepted, one.num_kept) == (3, 3)


def test_paths_of_another_engine_are_probed_beside_the_predictions_and_nothing_left_is_told(
    ray_cluster: str, tmp_path: Path, model_folder: Path
) -> None:
    tree = scripted_tree(tmp_path, model_folder)
    tree["questions"] = {"datasets": sums("sums", 0, num_train=2, num_dev=0, num_test=1)}
    tree["synthesis"] = {"guidelines_per_question": 1, "engine": {**SCRIPTED_ENGINE}}
    run = begin(tree)
    round_ = next(lay_out_rounds(run))
    speed = _probe_speed(run, round_, StopRequest())
    assert speed.tokens_per_s > 0
    steps = (round_.paths, run.base_predictions)
    assert [Ledger.read(step.folder).index.num_rows for step in steps] == [2, 1]
    round_.paths.folder.delete_files([PROBE_FILE])
    with pytest.raises(InputError, match="nothing is left to generate in round 0"):
        _probe_speed(run, round_, StopRequest())
