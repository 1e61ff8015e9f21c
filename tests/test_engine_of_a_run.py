"""The engine of a complete run: what is refused at the start, and paths from a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cluster.errors import InputError
from cluster.models.chat_template import end_turn, load_tokenizer, target_ids
from pipelines.config import Config, load_config, warnings_of
from pipelines.plan import all_steps, check_run, plan_run, serves_tuned_model
from tests.conftest import REPOSITORY, run_driver
from tests.scripted_server import KEY, MODEL, ScriptedServer
from tests.test_identity import facts_of

ENDPOINT = {"implementation": "endpoint", "endpoint": {"url": "http://a/v1", "model": MODEL}}


def load(
    tmp_path: Path,
    name: str,
    *,
    engine: dict[str, Any] | None = None,
    engine_tree: dict[str, Any] | None = None,
    paths_engine: dict[str, Any] | None = None,
) -> Config:
    """A shipped config on a model that nobody loads: with further settings of its engine, with
    another engine, or with another one for the paths."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    tree = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    tree["model"] = {"path": str(model)}
    tree["storage"] = {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    tree["engine"] = engine_tree or tree["engine"] | (engine or {})
    if paths_engine is not None:
        tree["synthesis"]["engine"] = paths_engine
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_config(path)


@pytest.mark.parametrize("name", [path.stem for path in (REPOSITORY / "configs").glob("*.yaml")])
def test_engine_of_every_shipped_config_can_serve_what_the_run_trains(
    tmp_path: Path, name: str
) -> None:
    check_run(load(tmp_path, name))


def test_engine_that_could_not_prove_the_tuned_weights_is_refused_before_the_first_question(
    tmp_path: Path,
) -> None:
    config = load(tmp_path, "mistral_7b", engine={"options": {"load_format": "dummy"}})
    for until in (None, "predictions", "scores", "0/predictions", "1/paths"):
        with pytest.raises(InputError, match=r"load_format dummy .*--until examples"):
            check_run(config, until)
    for until in ("questions", "guidelines", "paths", "0/examples", "model"):
        check_run(config, until)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("until", ["0/paths", "paths", "examples", "model", "0/model"])
def test_run_that_ends_before_the_predictions_serves_no_tuned_model(until: str) -> None:
    assert not serves_tuned_model(until)


def test_engine_of_the_paths_is_checked_for_what_it_is_asked_to_do(tmp_path: Path) -> None:
    def overlaid(**synthesis_engine: Any) -> Config:
        return load(tmp_path, "llama3_8b", paths_engine=synthesis_engine)

    check_run(overlaid(**ENDPOINT))
    check_run(overlaid(options={"load_format": "dummy"}))
    with pytest.raises(InputError, match="has no enforce_eagr"):
        check_run(overlaid(options={"enforce_eagr": True}))
    two_rounds = overlaid(options={"load_format": "dummy"}).model_copy(update={"rounds": 2})
    with pytest.raises(InputError, match="load_format dummy"):
        check_run(two_rounds)
    check_run(overlaid(**ENDPOINT).model_copy(update={"rounds": 2}))
    with pytest.raises(InputError, match=r"set the endpoint as synthesis\.engine"):
        check_run(load(tmp_path, "llama3_8b", engine_tree=ENDPOINT))


def test_engine_of_the_paths_decides_their_folder_and_not_that_of_the_predictions(
    tmp_path: Path,
) -> None:
    def names(**changes: Any) -> dict[str, str]:
        config = load(tmp_path, "quickstart", **changes)
        folder, base = check_run(config)
        steps = all_steps(plan_run(config, folder, base, facts_of(config)))
        return {step.name: step.folder.name for step in steps[:3]}

    plain, other = names(), names(paths_engine=ENDPOINT)
    assert plain["paths"] != other["paths"]
    assert plain["predictions"] == other["predictions"]
    elsewhere = ENDPOINT | {"endpoint": {"url": "http://b/v1", "model": MODEL}}
    assert names(paths_engine=elsewhere) == other
    larger = ENDPOINT | {"endpoint": {"url": "http://a/v1", "model": "larger"}}
    assert names(paths_engine=larger)["paths"] != other["paths"]


def test_warning_says_that_an_endpoint_proves_nothing(tmp_path: Path) -> None:
    assert warnings_of(load(tmp_path, "llama3_8b")) == []
    (warning,) = warnings_of(load(tmp_path, "llama3_8b", paths_engine=ENDPOINT))
    assert "cannot be verified" in warning


def test_run_learns_the_paths_of_a_server_as_text_of_its_own_model(
    scripted_config: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    model_folder: Path,
) -> None:
    with ScriptedServer("503", "429:0.05") as server:
        endpoint = {"url": server.url, "model": MODEL, "first_wait_s": 0.01}
        scripted_config["synthesis"]["engine"] = {
            "implementation": "endpoint",
            "max_num_seqs": 4,
            "endpoint": endpoint,
        }
        path = write_config(scripted_config)
        done = run_driver("run", path, "--until", "examples")
        server.models = ["another"]
        other = run_driver("run", path, "--until", "paths", "--set", "synthesis.seed=1")
    assert other.returncode == 2, other.stderr
    assert "'teacher'" in other.stderr
    assert "it has another" in other.stderr
    assert "Traceback" not in other.stderr
    # What the server made is there, so the run goes on without it.
    again = run_driver("run", path, "--until", "examples")
    assert again.returncode == 0, again.stderr
    assert done.returncode == 0, done.stderr
    assert "cannot be verified" in done.stdout
    assert KEY not in done.stdout
    folder = Path(scripted_config["storage"]["root"]) / scripted_config["run"]
    assert not list(folder.glob("base/predictions-*/manifest.json"))
    (manifest,) = folder.glob("round_0/paths-*/manifest.json")
    assert json.loads(manifest.read_text())["last_execution"]["weights"] == "not compared"
    (examples,) = folder.glob("round_0/examples-*/train-*.parquet")
    rows = pq.read_table(examples).to_pylist()
    assert rows
    tokenizer = load_tokenizer(str(model_folder))
    for row in rows:
        ids = target_ids(tokenizer, row["messages"][-1]["content"])
        assert row["target_token_ids"] == end_turn(ids, tokenizer.eos_token_id)
