"""Every control in whole commands: one Ray, one pool of paths, the scripted engine.

All controls run one after the other in a single process, as in a notebook, because the start of a
process takes longer than a control.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

WriteConfig = Callable[[dict[str, Any]], Path]
pytestmark = pytest.mark.slow
NUM_QUESTIONS = 24
HINTS = ("synthesis.hint_stages=[structure]", "synthesis.unhinted_retries=true")

PATH_COLUMNS = ("path_id", "guideline_id", "pass", "verdict", "generations")
EXAMPLE_COLUMNS = ("example_id", "question_id", "messages", "pass")
PROGRAM = f"""
import json, sys
import regenesis
from pipelines.config import load_config

def shown(run):
    rows = run.table("round_0/paths").to_pylist()
    paths = [(row["question_id"], path) for row in rows for path in row["paths"]]
    manifests = {{name: run.folder.child(name).manifest() for name in run.steps}}
    return {{
        "paths": [
            {{name: path[name] for name in {PATH_COLUMNS}}} | {{"question_id": question_id}}
            for question_id, path in paths
        ],
        "examples": run.table("round_0/examples").select({list(EXAMPLE_COLUMNS)}).to_pylist(),
        "manifests": {{k.rpartition("-")[0]: facts for k, facts in manifests.items() if facts}},
    }}

path, until, out, *arms = sys.argv[1:]
configs = [load_config(path, json.loads(arm)) for arm in arms]
made = [shown(regenesis.run(config, until or None)) for config in configs]
open(out, "w").write(json.dumps(made))
"""


def run_arms(
    path: Path, until: str, arms: Sequence[tuple[str, ...]], folder: Path
) -> list[dict[str, Any]]:
    """What each arm's run has made, from one process."""
    out = folder / "arms.json"
    command = [sys.executable, "-c", PROGRAM, str(path), until, str(out), *map(json.dumps, arms)]
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stderr
    return list(json.loads(out.read_text()))


def with_solutions(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config on questions that come with their solutions, of which half of the paths are
    wrong."""
    for split, number in (("train", NUM_QUESTIONS), ("test", 4)):
        rows = [
            {
                "id": f"{split}{n}",
                "question": f"What is {n + 2} + {7 * n + (3 if split == 'train' else 500)}?",
                "answer": str(8 * n + (5 if split == "train" else 502)),
                "solution": "We add both numbers.",
            }
            for n in range(number)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"question_id": "id", "question": "question", "answer": "answer"}
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    source = {
        "kind": "files",
        "answer_type": "number",
        **files,
        "columns": columns | {"solution": "solution"},
    }
    engine = tree["engine"] | {"options": {"wrong_share": 65}}
    return tree | {
        "questions": {"datasets": {"sums": {"source": source, "dev_share": 0.0}}},
        "engine": engine,
        "synthesis": {"guidelines_per_question": 3},
    }


def test_every_control_of_the_selection_makes_its_examples_from_one_pool(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    path = write_config(with_solutions(scripted_config, tmp_path))
    verdicts = ("ground_truth", "unfiltered", "random", "wrong_only")
    arms: dict[Any, tuple[str, ...]] = {
        **{(name, "all"): (f"examples.verdict={name}",) for name in verdicts},
        **{
            (name, kind): (f"examples.verdict={name}", f"examples.questions={kind}")
            for name in ("unfiltered", "wrong_only")
            for kind in ("solved", "mixed")
        },
        "majority": ("examples.verdict=majority",),
        "gold_answers": ("examples.verdict=gold_answers",),
        "gold_solutions": ("examples.verdict=gold_solutions",),
        "unboxed": ("examples.verdict=gold_solutions", "examples.add_boxed_answer=false"),
        "few": ("examples.verdict=unfiltered", "examples.max_examples=9"),
    }
    made = dict(zip(arms, run_arms(path, "examples", list(arms.values()), tmp_path), strict=True))
    pool = made["ground_truth", "all"]["paths"]
    assert all(one["paths"] == pool for one in made.values()), "one pool, made once"
    verdict_of = {one["path_id"]: one["verdict"] for one in pool}
    question_of = {one["path_id"]: one["question_id"] for one in pool}
    solved = {question_of[name] for name in verdict_of if verdict_of[name] == "correct"}
    failed = {question_of[name] for name in verdict_of if verdict_of[name] == "wrong"}
    assert 3 < len(solved & failed) < len(solved) < NUM_QUESTIONS

    def questions(arm: Any) -> set[str]:
        return {row["question_id"] for row in made[arm]["examples"]}

    def kinds(arm: Any) -> Counter[str]:
        return Counter(verdict_of[row["example_id"]] for row in made[arm]["examples"])

    assert set(kinds(("ground_truth", "all"))) == {"correct"}
    assert questions(("ground_truth", "all")) == solved
    assert set(kinds(("unfiltered", "all"))) == {"correct", "wrong"}
    assert len(questions(("unfiltered", "all"))) == NUM_QUESTIONS
    assert questions(("unfiltered", "solved")) == solved
    assert questions(("unfiltered", "mixed")) == solved & failed
    assert set(kinds(("wrong_only", "all"))) == {"wrong"}
    assert questions(("wrong_only", "all")) == failed
    assert questions(("wrong_only", "solved")) == questions(("wrong_only", "mixed"))
    assert questions(("wrong_only", "mixed")) == solved & failed
    assert kinds(("random", "all")).total() == kinds(("ground_truth", "all")).total()
    assert questions("majority") <= {row["question_id"] for row in pool}
    for arm, last in (
        ("gold_answers", "\\boxed{"),
        ("gold_solutions", "We add both numbers.\n\nThe final answer is \\boxed{"),
    ):
        assert len(questions(arm)) == NUM_QUESTIONS == len(made[arm]["examples"])
        assert all(row["messages"][-1]["content"].startswith(last) for row in made[arm]["examples"])
    texts = {row["messages"][-1]["content"] for row in made["unboxed"]["examples"]}
    assert texts == {"We add both numbers."}
    assert kinds("few").total() == 9
    assert len(questions("few")) > 5, "spread over the questions"


def test_every_control_of_the_synthesis_makes_its_paths(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    path = write_config(with_solutions(scripted_config, tmp_path))
    subset = ("synthesis.guideline_subset={size: 2, seed: 1}",)
    arms: dict[str, tuple[str, ...]] = {
        "plain": (),
        "placebo": ("synthesis.guidelines=placebo",),
        "questions": ("synthesis.swap_adaptations=questions",),
        "guidelines": ("synthesis.swap_adaptations=guidelines",),
        "unadapted": ("synthesis.chain=[structure, path]",),
        "subset": (*subset, "synthesis.guidelines_per_question=null"),
        "hinted": HINTS,
        "unhinted": (*HINTS, "examples.retries=unhinted"),
        "once": (*HINTS, "examples.retries=none"),
    }
    made = dict(zip(arms, run_arms(path, "examples", list(arms.values()), tmp_path), strict=True))
    assert all(one["examples"] for one in made.values())
    plain = {one["path_id"]: one for one in made["plain"]["paths"]}
    assert all(one["guideline_id"].startswith("placebo_") for one in made["placebo"]["paths"])
    assert len(made["placebo"]["paths"]) == len(plain) == 3 * NUM_QUESTIONS

    def adapted_with(paths: Any) -> Counter[int]:
        return Counter(one["generations"][0]["seed"] for one in paths)

    for swap in ("questions", "guidelines"):
        swapped = {one["path_id"]: one for one in made[swap]["paths"]}
        assert swapped.keys() == plain.keys()
        for name, one in swapped.items():
            seeds = [[g["seed"] for g in each["generations"]] for each in (one, plain[name])]
            assert seeds[0][0] != seeds[1][0]
            assert seeds[0][1:] == seeds[1][1:]
    assert adapted_with(made["guidelines"]["paths"]) == adapted_with(plain.values())
    assert {len(one["generations"]) for one in made["unadapted"]["paths"]} == {2}
    assert len({one["guideline_id"] for one in made["subset"]["paths"]}) == 2
    assert len(made["subset"]["paths"]) == 2 * NUM_QUESTIONS

    assert made["hinted"]["paths"] == made["unhinted"]["paths"] == made["once"]["paths"]
    again = [one for one in made["hinted"]["paths"] if one["pass"]]
    solved = {one["question_id"] for one in plain.values() if one["verdict"] == "correct"}
    assert {one["question_id"] for one in again} == {
        q["question_id"] for q in plain.values()
    } - solved
    assert {one["pass"] for one in again} >= {1, 2}
    passes = {arm: {row["pass"] for row in made[arm]["examples"]} for arm in arms}
    assert passes["once"] == {0}
    assert passes["hinted"] == {0, 1}
    assert 1 not in passes["unhinted"]
    assert max(passes["unhinted"]) > 1
    tokens = made["unhinted"]["manifests"]["round_0/examples"]["retry_tokens"]
    assert tokens["unhinted"] == pytest.approx(tokens["hinted"], rel=0.1)


@pytest.mark.slow
def test_equal_training_reaches_the_same_steps_or_tokens_for_both_arms(
    scripted_config: dict[str, Any], write_config: WriteConfig, tmp_path: Path
) -> None:
    path = write_config(with_solutions(scripted_config, tmp_path))
    limits = ("training.max_steps=4", "training.max_learned_tokens=900")
    verdicts = ("examples.verdict=ground_truth", "examples.verdict=gold_answers")
    arms = [(limit, verdict, "training.num_epochs=40") for limit in limits for verdict in verdicts]
    made = run_arms(path, "", arms, tmp_path)
    models = [one["manifests"]["round_0/model"] for one in made]
    assert [model["num_steps"] for model in models[:2]] == [4, 4]
    for model in models[2:]:
        assert 900 <= model["num_trained_tokens"] < 900 + 8 * 60
    assert models[2]["num_steps"] < models[3]["num_steps"], "short targets take more steps"
    assert all("round_0/scores" in one["manifests"] for one in made)
