"""A stage is one value: with one more, prompts, settings, schema and folders follow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from evaluation.question import Question
from pipelines.synthesis.reasoning_path import PATH_TYPE, Generation, ReasoningPath
from pipelines.synthesis.stages import STAGES, StageSettings
from tests.conftest import REPOSITORY

WITH_ONE_MORE = """
import asyncio, json, pathlib, sys
from types import MappingProxyType
import pipelines.synthesis.stages as stages
from cluster.inference.engine import SamplingSettings

check = stages.Stage(
    name="check", column="doubts", fields=frozenset({"question", "structure"}),
    sampling=SamplingSettings(max_tokens=7), summary="Doubts the plan.", came_later=True,
)
code = pathlib.Path(stages.__file__).read_text()
code = code.replace("(ADAPT, STRUCTURE, PATH)", "(ADAPT, STRUCTURE, CHECK, PATH)")
stages.CHECK = check
exec(compile(code, stages.__file__, "exec"), vars(stages))

from cluster.inference.job import Slots
from evaluation.question import Question
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.guidelines import PROMPTS_FILE
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
import pyarrow as pa
import yaml

prompts = yaml.safe_load(PROMPTS_FILE.read_text())
prompts["check"] = "{question}\\n\\nAdvice: doubt {structure}"
prompts["path"] += "\\nDoubts: {doubts}"
own = pathlib.Path(sys.argv[1]) / "prompts.yaml"
own.write_text(yaml.safe_dump(prompts))
tree = {"chain": ["adapt", "structure", "check", "path"], "guidelines_per_question": 1,
        "prompts": str(own), "stages": {"check": {"max_tokens": 9}}}
recipe = Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(tree)))


class Engine:
    asked = []

    async def chat(self, messages, sampling, seed, n=1):
        from cluster.inference.engine import Completion
        self.asked.append((messages[-1]["content"], sampling.max_tokens))
        return [Completion(f"text {len(self.asked)} \\\\boxed{4}", [1], "stop", 9)] * n


question = Question("d/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")
row = asyncio.run(SynthesizePaths(recipe, ())(Engine(), question.to_row(), Slots(1), None))
[stored] = pa.Table.from_pylist([row], schema=PATHS_SCHEMA).to_pylist()
[path] = stored["paths"]
print(json.dumps({
    "doubts": path["doubts"],
    "stages": [generation["stage"] for generation in path["generations"]],
    "limits": [limit for _, limit in Engine.asked],
    "last": Engine.asked[-1][0],
}))
from tests.test_identity import folders
print(json.dumps(folders("quickstart")))
"""


def test_stage_that_is_added_as_one_value_runs_and_moves_no_folder_of_others(
    tmp_path: pytest.TempPathFactory,
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITH_ONE_MORE, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told, folders = map(json.loads, result.stdout.splitlines())
    assert told["stages"] == ["adapt", "structure", "check", "path"]
    assert told["limits"] == [256, 512, 9, 2048]
    assert told["doubts"].startswith("text 3")
    assert f"Doubts: {told['doubts']}" in told["last"]
    recorded = json.loads((REPOSITORY / "tests" / "golden" / "folders.json").read_text())
    assert folders == recorded["quickstart"]


def test_every_stage_has_its_column_and_its_sampling() -> None:
    columns = {field.name for field in PATH_TYPE}
    for name, stage in STAGES.items():
        assert stage.column in columns
        assert StageSettings().of(name) == stage.sampling


def test_path_comes_back_from_its_row_as_it_was() -> None:
    path = ReasoningPath(
        path_id="0/regenesis/d/1/plan/1/2",
        guideline_id="plan",
        pass_number=1,
        sample=2,
        option_order=(1, 0),
        texts={"adapted_guideline": "look", "structure": "1. go", "reasoning": "B"},
        thinking="hm",
        token_ids=[1, 2],
        judged="yes",
        generations=(Generation("path", 7, "stop", 9, 4, 2),),
        predicted="A",
        verdict="correct",
        read_as="last",
    )
    row = path.to_row()
    assert set(row) == {field.name for field in PATH_TYPE}
    assert ReasoningPath.from_row(row) == path
    assert (row["pass"], path.shown_answer) == (1, "B")


def test_path_of_an_older_version_lacks_columns_and_is_read() -> None:
    question = Question("d/1", "d", "train", "in_domain", "2 + 2?", "4", "number")
    old = {"path_id": "p", "reasoning": "\\boxed{4}", "generations": None, "option_order": None}
    path = ReasoningPath.from_row(old)
    assert (path.is_hinted, path.judged, path.option_order) == (False, None, ())
    assert path.graded(question, ()).verdict == "correct"
