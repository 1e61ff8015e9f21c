"""Tables of clusters: how many workers, on what, in which type, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.gpu_plan import GIB, ModelShape
from cluster.settings import content_of
from pipelines.config import load_config
from training.placement import (
    Dtype,
    Node,
    Nodes,
    check_training_fits,
    memory_of_worker,
    place,
    size_of_shape,
)
from training.settings import TrainingSettings


def _settings(**fields: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {"global_batch_size": 16, "micro_batch_size": 2} | fields
    )


def _gpus(*per_node: int, gib: float = 79.1, dtype: Dtype = "bfloat16") -> Nodes:
    """Nodes with so many GPUs each, of 32 cores and 1 TiB."""
    return Nodes(
        [
            Node(f"10.0.0.{i}", 32, count, 1024 * GIB, "float32", gib * GIB, dtype)
            for i, count in enumerate(per_node)
        ]
    )


def _cpus(*per_node: int, dtypes: str = "") -> Nodes:
    """Nodes with so many cores each; dtypes names a `b` for each that has bfloat16."""
    kinds: dict[str, Dtype] = {"b": "bfloat16", "f": "float32"}
    return Nodes(
        [
            Node(f"10.0.0.{i}", count, 0, 64 * GIB, kinds[dtypes[i] if dtypes else "f"])
            for i, count in enumerate(per_node)
        ]
    )


@pytest.mark.parametrize(
    ("nodes", "fields", "workers", "why"),
    [
        (_gpus(8), {}, 8, "8 workers on all 8 GPUs; in bfloat16"),
        (_gpus(1), {}, 1, "1 worker on all 1 GPU;"),
        (_gpus(4, 4), {}, 8, "8 workers on all 8 GPUs;"),
        (
            _gpus(6),
            {},
            4,
            "4 workers on 4 of 6 GPUs, since a batch of 16 in micro-batches of 2 splits over 4;",
        ),
        (_gpus(8), {"micro_batch_size": 4}, 4, "(training.micro_batch_size: 2 would use 8)"),
        (_gpus(6), {"packing": True}, 6, "6 workers on all 6 GPUs;"),
        (
            *(_gpus(*[8] * 16), {"packing": True}, 16),
            "16 of 128 GPUs, since a batch of 16 has no example for more;",
        ),
        (_gpus(8), {"num_workers": 2}, 2, "2 workers on 2 of 8 GPUs, as configured;"),
        (_gpus(8), {"gpus_per_worker": 0, "cpus_per_worker": 4}, 8, "8 workers on all 32 CPUs;"),
        (_cpus(2), {}, 2, "2 workers on all 2 CPUs;"),
        (_cpus(1), {"packing": True}, 1, "1 worker on all 1 CPU;"),
    ],
)
def test_place_takes_what_a_batch_splits_over_and_says_why(
    nodes: Nodes, fields: dict[str, Any], workers: int, why: str
) -> None:
    placement = place(_settings(**fields), nodes)
    assert placement.settings.num_workers == workers
    assert why in placement.sentence


@pytest.mark.parametrize(
    ("nodes", "fields", "gpus", "cpus"),
    [
        # Four workers share eight cores; over two nodes two share four.
        (_cpus(8), {"micro_batch_size": 4}, 0, 2),
        (_cpus(4, 4), {"micro_batch_size": 4}, 0, 2),
        (_cpus(8), {"cpus_per_worker": 3, "global_batch_size": 4}, 0, 3),
        # Beside a GPU one core feeds it; with the optimizer's state offloaded all of them work.
        (_gpus(8), {}, 1, 1),
        (_gpus(8), {"zero_stage": 2, "offload_optimizer": True}, 1, 4),
    ],
)
def test_place_shares_out_the_cores_of_a_node(
    nodes: Nodes, fields: dict[str, Any], gpus: int, cpus: int
) -> None:
    placed = place(_settings(**fields), nodes).settings
    assert (placed.gpus_per_worker, placed.cpus_per_worker) == (gpus, cpus)


@pytest.mark.parametrize(
    ("nodes", "dtype", "why"),
    [
        (_cpus(2, dtypes="b"), "bfloat16", "for which the processors have instructions"),
        (_cpus(2, dtypes="f"), "float32", "since the processors of 10.0.0.0 have no instructions"),
        (_cpus(2, 2, dtypes="bf"), "float32", "since the processors of 10.0.0.1 have no"),
        # Neither the processor of a GPU node nor a node without workers counts.
        (_gpus(2), "bfloat16", "for which the GPUs have instructions"),
        (_gpus(2, dtype="float32"), "float32", "since the GPUs of 10.0.0.0 have no instructions"),
        (_cpus(4, 0, dtypes="bf"), "bfloat16", "for which the processors"),
    ],
)
def test_place_takes_one_dtype_that_all_workers_compute_fast(
    nodes: Nodes, dtype: str, why: str
) -> None:
    placement = place(_settings(dtype="auto"), nodes)
    assert placement.settings.dtype == dtype
    assert why in placement.sentence
    for named in ("float32", "bfloat16"):
        assert place(_settings(dtype=named), nodes).settings.dtype == named


def test_place_goes_on_with_the_workers_and_the_type_of_the_checkpoint() -> None:
    began = {"num_workers": 4, "dtype": "bfloat16"}
    placement = place(_settings(dtype="auto"), _cpus(8), began=began)
    assert (placement.settings.num_workers, placement.settings.dtype) == (4, "bfloat16")
    assert "as the checkpoint was made by 4" in placement.sentence
    assert "bfloat16, as the training began" in placement.sentence
    with pytest.raises(InputError, match=r"num_workers 4 workers .* do not fit: .* room for 2"):
        place(_settings(), _cpus(2), began=began)


def test_place_more_workers_than_the_cluster_holds_is_refused_unless_it_may_grow() -> None:
    eight = _settings(num_workers=8)
    with pytest.raises(InputError, match=r"8 workers of 1 GPUs .* has 4 GPUs and 32 CPUs, room"):
        place(eight, _gpus(4))
    assert place(eight, _gpus(4), may_wait=True).settings.num_workers == 8
    growing = Nodes(_gpus(4).there, {"GPU": 8, "CPU": 64})
    assert place(eight, growing).settings.num_workers == 8
    with pytest.raises(InputError, match="0 GPUs"):
        place(_settings(gpus_per_worker=1), _cpus(8))
    # No GPU is up, and the autoscaler starts them when they are asked for.
    head = Nodes(_cpus(8).there, {"GPU": 8, "CPU": 64})
    placed = place(_settings(), head).settings
    assert (placed.num_workers, placed.gpus_per_worker) == (8, 1)
    # As Ray tells of a scaler that is given no limit.
    endless = Nodes(_cpus(8).there, {"GPU": sys.maxsize, "CPU": sys.maxsize})
    assert place(_settings(packing=True), endless).settings.num_workers == 16


def test_place_on_gpus_of_which_ray_only_keeps_count_is_refused_or_left_alone() -> None:
    counted = Nodes([replace(_cpus(2).there[0], num_gpus=8, has_cards=False)])
    placement = place(_settings(), counted)
    assert placement.settings.gpus_per_worker == 0
    assert "2 workers on all 2 CPUs (Ray counts 8 GPUs that torch cannot use)" in placement.sentence
    for may_wait in (False, True):
        with pytest.raises(
            InputError, match=r"counts 8 GPUs, but torch can use none .* set it to 0"
        ):
            place(_settings(gpus_per_worker=1), counted, may_wait=may_wait)


def test_place_changes_nothing_that_a_folder_is_named_after() -> None:
    settings = _settings()
    assert content_of(place(settings, _gpus(8)).settings) == content_of(settings)


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("num_cards", [1, 4, 8])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_place_runs_every_shipped_config_on_its_cards(config: Path, num_cards: int) -> None:
    settings = load_config(config).training
    placed = place(settings, _gpus(num_cards)).settings
    assert placed.gpus_per_worker == 1
    assert placed.num_workers in {n for n in (1, 2, 4, 8) if n <= num_cards}
    assert settings.splits_over(placed.num_workers)


LLAMA_8B = ModelShape.from_config(
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    name="Llama-3-8B",
)
LLAMA_70B = ModelShape.from_config(
    {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    name="Llama-3-70B",
)


def test_size_of_shape_counts_as_the_model_card_does() -> None:
    size = size_of_shape(LLAMA_8B, _settings())
    assert size.num_parameters == size.num_trained == 8_030_261_248
    lora = size_of_shape(LLAMA_8B, _settings(method="lora"))
    # By hand: rank 16 of 32 layers, inputs and outputs of q k v o, gate, up and down.
    sides = 2 * 8192 + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert lora.num_trained == 16 * 32 * sides


@pytest.mark.parametrize(
    ("shape", "nodes", "fields"),
    [
        (LLAMA_8B, _gpus(8), {"zero_stage": 2}),
        (LLAMA_8B, _gpus(4, gib=44.4), {"zero_stage": 3, "offload_optimizer": True}),
        (LLAMA_70B, _gpus(8), {"zero_stage": 3, "method": "lora"}),
        (LLAMA_70B, _gpus(*[8] * 4), {"zero_stage": 3, "global_batch_size": 64}),
        (LLAMA_70B, _gpus(1), {"check_memory": False}),
        # A card that cannot be asked is left to the workers.
        (LLAMA_70B, Nodes([Node("a", 32, 8, 1024 * GIB, "float32")]), {}),
    ],
)
def test_check_training_fits_lets_pass(
    shape: ModelShape, nodes: Nodes, fields: dict[str, Any]
) -> None:
    check_training_fits(_settings(**fields), shape, nodes)


@pytest.mark.parametrize(
    ("shape", "nodes", "fields", "remedies"),
    [
        # 136 of 139.8 GiB fit only without any reserve.
        (LLAMA_8B, _gpus(1, gib=139.8), {"zero_stage": 0}, ["on 2 such GPUs with ", "lora (47.8"]),
        (LLAMA_8B, _gpus(1), {}, ["with training.offload_optimizer: true (51", "on 4 such GPUs"]),
        (LLAMA_70B, _gpus(8), {"zero_stage": 2}, ["training.zero_stage: 3, training.method: lora"]),
        (
            *(LLAMA_70B, _gpus(8), {"zero_stage": 3}),
            ["on 32 such GPUs with ", "num_workers: 32, training.global_batch_size: 32 (49.9"],
        ),
        (LLAMA_70B, _gpus(1, gib=22.0), {"zero_stage": 3}, ["on 256 such GPUs with "]),
        (LLAMA_8B, _cpus(8), {"zero_stage": 3, "dtype": "float32"}, ["; use larger workers; "]),
    ],
)
def test_check_training_fits_names_the_smallest_hardware_and_other_ways(
    shape: ModelShape, nodes: Nodes, fields: dict[str, Any], remedies: list[str]
) -> None:
    with pytest.raises(InputError) as refusal:
        check_training_fits(_settings(**fields), shape, nodes)
    sentence = str(refusal.value)
    assert sentence.startswith(f"{shape.name}: training takes about ")
    for remedy in remedies:
        assert remedy in sentence


def test_memory_of_worker_is_its_part_of_the_fullest_node() -> None:
    placed = place(_settings(), _gpus(8)).settings
    assert memory_of_worker(placed, _gpus(8)) == (79.1 * GIB, 128 * GIB)
    on_cpu = place(_settings(micro_batch_size=8), _cpus(2)).settings
    assert memory_of_worker(on_cpu, _cpus(2)) == (32 * GIB, 32 * GIB)
