"""The menu of prompts, and solved questions from a run's own paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.engine import EngineSettings
from cluster.models.model import Model
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.store.step import STEPS_FILE, Step
from evaluation.model_scores import Measure
from evaluation.prompt import answer_messages, asked_messages
from evaluation.question import Question
from evaluation.shots import Shot
from pipelines.examination.models import ExaminedModel
from pipelines.examination.prompts import (
    choose_prompts,
    final_prompts,
    read_menu,
    shots_of_run,
    variants_of,
)
from pipelines.examination.settings import ExaminationSettings
from pipelines.synthesis.handler import PATHS_SCHEMA
from pipelines.synthesis.reasoning_path import ReasoningPath

QUESTION = Question("d/test/1", "d", "test", "in_domain", "What is 2 + 2?", "4", "number")
SHOT = Shot(question="1 + 1?", response="\\boxed{2}")
BASE = ExaminedModel("base", Model("m", "m", ""), EngineSettings(use_gpu=False))
MENU = ("standard", "bare")


def test_prompts_differ_in_what_they_ask_for() -> None:
    standard, answer_only, bare = (
        asked_messages(QUESTION, prompt) for prompt in ("standard", "answer_only", "bare")
    )
    assert standard == answer_messages(QUESTION)
    assert "step by step" not in answer_only[0]["content"]
    assert answer_only[0]["content"].endswith("number in \\boxed{}.")
    assert bare == [{"role": "user", "content": QUESTION.text}]


def test_each_model_is_asked_with_each_prompt_and_only_few_shot_has_the_examples() -> None:
    evaluation = ExaminationSettings(shots=(SHOT,), readings=True)
    menu = read_menu("few_shot, bare,bare", evaluation)
    few_shot, bare = variants_of([BASE], evaluation, {"base": menu})
    assert [few_shot.model.name, bare.model.name] == ["base.few_shot", "base.bare"]
    assert (few_shot.evaluation.prompt, few_shot.evaluation.shots) == ("standard", (SHOT,))
    assert (bare.evaluation.prompt, bare.evaluation.shots) == ("bare", ())
    assert bare.evaluation.readings
    assert bare.evaluation.messages(QUESTION) == asked_messages(QUESTION, "bare")
    assert len(few_shot.evaluation.messages(QUESTION)) == 3


@pytest.mark.parametrize(
    ("text", "shots", "complaint"),
    [
        ("standard,terse", (), "--prompts terse: there is no such prompt"),
        ("standard", (), "give at least two"),
        ("standard,few_shot", (), "belong together"),
        ("standard,bare", (SHOT,), "belong together"),
    ],
)
def test_menu_that_cannot_be_is_refused(text: str, shots: tuple[Shot, ...], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_menu(text, ExaminationSettings(shots=shots))


def accuracies(reading: str, group: str, **by_model: float) -> list[Measure]:
    return [
        Measure(name.replace("_", "."), "dev", group, "t", reading, "accuracy", share, 0.0, 1.0, 10)
        for name, share in by_model.items()
    ]


def test_best_prompt_is_that_of_the_tasks_in_domain_and_the_first_of_equals() -> None:
    variants = variants_of([BASE], ExaminationSettings(), {"base": MENU})
    out = accuracies("tolerant", "out_of_domain", base_standard=0.9, base_bare=0.1)
    strict = accuracies("strict", "in_domain", base_standard=0.9, base_bare=0.0)
    inside = accuracies("tolerant", "in_domain", base_standard=0.2, base_bare=0.3)
    chosen = choose_prompts(variants, [*out, *strict, *inside])
    assert (chosen["base"].prompt, chosen["base"].share) == ("bare", 0.3)
    assert chosen["base"].says.startswith("base: the best prompt on dev is bare (tolerant,")
    assert final_prompts(MENU, chosen) == {"base": ["standard", "bare"]}
    forced = accuracies("forced", "in_domain", base_standard=0.5, base_bare=0.5)
    again = choose_prompts(variants, [*inside, *forced])
    assert final_prompts(MENU, again) == {"base": ["standard"]}
    assert choose_prompts(variants, out)["base"].prompt == "standard"


def path(name: str, reasoning: str, *, read_as: str = "boxed", **changes: Any) -> ReasoningPath:
    given: dict[str, Any] = {"pass_number": 0, "verdict": "correct"} | changes
    return ReasoningPath(
        path_id=name, guideline_id="g", texts={"reasoning": reasoning}, read_as=read_as, **given
    )


def write_run(folder: Path, paths: dict[tuple[str, int], list[ReasoningPath]]) -> None:
    run = Folder.open(str(folder))
    step = Step.below(run.child("round_0"), "paths", {})
    rows = [
        Question(f"{name}/{n}", name, "train", "in_domain", f"{name} {n}?", "4", "number").to_row()
        | {"question_fingerprint": "x", "attempt": 0, "num_failed": 0}
        | {"round": 0, "strategy": "s", "grader_version": "1", "error": None}
        | {"paths": [each.to_row() for each in own]}
        for (name, n), own in paths.items()
    ]
    PartWriter(step.folder.child("parts/000000-000001-aaaa/0"), PATHS_SCHEMA).write(rows)
    compact(step.folder, PATHS_SCHEMA)
    step.commit()
    run.write_bytes("config.yaml", b"rounds: 1\n")
    run.write_json(STEPS_FILE, [f"round_0/{step.folder.name}"])


def test_examples_are_the_shortest_right_boxed_paths_and_datasets_take_turns(
    tmp_path: Path,
) -> None:
    write_run(
        tmp_path,
        {
            ("a", 1): [path("1", "a long \\boxed{4}"), path("2", "\\boxed{4}")],
            ("a", 2): [path("3", "so \\boxed{4}")],
            ("a", 3): [path("4", "4", read_as="last"), path("5", "\\boxed{4}", pass_number=1)],
            ("b", 1): [path("6", "it is \\boxed{4}"), path("7", "\\boxed{5}", verdict="wrong")],
        },
    )
    shots = shots_of_run(str(tmp_path), 3)
    assert [(shot.question, shot.response) for shot in shots] == [
        ("a 1?", "\\boxed{4}"),
        ("b 1?", "it is \\boxed{4}"),
        ("a 2?", "so \\boxed{4}"),
    ]


def test_run_without_a_right_path_has_no_example(tmp_path: Path) -> None:
    write_run(tmp_path, {("a", 1): [path("1", "\\boxed{5}", verdict="wrong")]})
    with pytest.raises(InputError, match="none of its paths is right and boxed"):
        shots_of_run(str(tmp_path))
