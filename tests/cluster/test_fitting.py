"""Fitting the engines to the available GPUs; Ray counts eight that do not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.engine import EngineSettings
from cluster.inference.engine_sizing import (
    KNOWN_GIB,
    PRETENDED_MEMORY,
    cpus_per_engine,
    engines_on,
    fit_engines,
)
from cluster.models.model import Model

EIGHT = {"GPU": 8.0, "CPU": 16.0}
SIX = {"GPU": 6.0, "CPU": 3.0}


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(**{"implementation": "tests.scripted.ScriptedEngine", **changes})


@pytest.mark.parametrize(
    ("changes", "nodes", "engines", "cpus"),
    [
        ({"tensor_parallel_size": 1}, [EIGHT], 8, 1),
        ({"tensor_parallel_size": 4}, [EIGHT, SIX], 3, 1),
        ({"tensor_parallel_size": 2}, [EIGHT, SIX], 7, 1),
        ({"tensor_parallel_size": 1}, [EIGHT, SIX], 14, 0.5),
        ({"tensor_parallel_size": 1, "cpus_per_worker": 4}, [EIGHT], 8, 2),
        ({"tensor_parallel_size": 1}, [{"GPU": 3.0}], 3, 0),
        ({"tensor_parallel_size": 8}, [SIX], 0, 1),
        (
            {"tensor_parallel_size": 4, "pipeline_parallel_size": 3, "placement_group": True},
            [EIGHT, EIGHT, EIGHT],
            2,
            1,
        ),
    ],
)
def test_engines_of_a_given_size_fill_the_gpus_and_share_the_cpus(
    changes: dict[str, Any], nodes: list[dict[str, float]], engines: int, cpus: float
) -> None:
    assert engines_on(nodes, settings(**changes)) == engines
    assert cpus_per_engine(nodes, settings(**changes)) == cpus


@pytest.fixture
def model(model_folder: Path) -> Model:
    return Model(identity="tiny", path=str(model_folder), cache="unused")


def test_fit_with_a_size_given_starts_as_many_engines_as_the_gpus_hold(
    gpu_node: None, model: Model
) -> None:
    fitted, said = fit_engines(settings(tensor_parallel_size=2), model)
    assert (fitted.max_workers, fitted.cpus_per_worker) == (4, 0.5)
    assert said == (
        "A node has fewer CPUs than its engines would use: engine.cpus_per_worker is 0.5 "
        "instead of 1."
    )
    given = settings(tensor_parallel_size=2, max_workers=1, cpus_per_worker=0.1)
    assert fit_engines(given, model) == (given, "")
    on_cpus = settings(use_gpu=False)
    assert fit_engines(on_cpus, model) == (on_cpus, "")


def test_fit_plans_with_the_memory_that_a_node_tells_while_its_gpus_are_in_use(
    gpu_node: None, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    KNOWN_GIB.clear()
    monkeypatch.setenv(PRETENDED_MEMORY, "tests.scripted:gpu_memory_gib")
    group = ray.util.placement_group([{"GPU": 8}])
    ray.get(group.ready())
    try:
        fitted, said = fit_engines(settings(), model)
    finally:
        ray.util.remove_placement_group(group)
        KNOWN_GIB.clear()
    assert (fitted.tensor_parallel_size, fitted.max_workers) == (1, 8)
    assert "On 1 x 8 GPUs of 79.1 GiB: engines at once 8" in said


def test_fit_without_the_memory_is_refused_for_vllm_and_one_engine_a_gpu_for_others(
    gpu_node: None, model: Model
) -> None:
    KNOWN_GIB.clear()
    fitted, said = fit_engines(settings(), model)
    assert (fitted.tensor_parallel_size, fitted.max_workers) == (1, 8)
    assert said.startswith("One engine for each GPU, since nothing can be planned: Ray counts GPUs")
    with pytest.raises(InputError, match="so that nothing is planned"):
        fit_engines(EngineSettings(), model)
