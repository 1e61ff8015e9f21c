"""Plans by the numbers: shapes of published models, GPUs of published sizes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.inference.gpu_plan import (
    CLEARLY_FASTER,
    GIB,
    GpuNodes,
    ModelShape,
    PoolPlan,
    plan_pool,
    with_options,
)

# What CUDA reports of cards with these names: L4, A100, L40S, H100.
GB_24, GB_40, GB_48, GB_80 = 22.0, 39.4, 44.4, 79.1


def _config(
    sizes: tuple[int, int, int, int, int], vocab_size: int, context: int, **more: Any
) -> dict[str, Any]:
    """The sizes are layers, hidden size, heads, key-value heads, intermediate size."""
    layers, hidden, heads, kv_heads, intermediate = sizes
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
    } | more


LLAMA_8B = _config((32, 4096, 32, 8, 14336), 128256, 8192)
LLAMA_8B_LONG = _config((32, 4096, 32, 8, 14336), 128256, 131072)
LLAMA_70B = _config((80, 8192, 64, 8, 28672), 128256, 8192)
MISTRAL_7B = _config((32, 4096, 32, 8, 14336), 32768, 32768)
SMOLLM_135M = _config((30, 576, 9, 3, 1536), 49152, 2048, tie_word_embeddings=True)
QWEN2_7B = _config((28, 3584, 28, 4, 18944), 152064, 32768)
QWEN2_HALF_B = _config((24, 896, 14, 2, 4864), 151936, 32768, tie_word_embeddings=True)
GEMMA2_9B = _config(
    (42, 3584, 16, 8, 14336), 256000, 8192, head_dim=256, model_type="gemma2", torch_dtype="float32"
)
GEMMA3_4B = {
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152},
    "text_config": _config(
        (34, 2560, 8, 4, 10240), 262208, 131072, head_dim=256, model_type="gemma3_text"
    )
    | {"torch_dtype": None},
}
MIXTRAL_8X7B = _config(
    (32, 4096, 32, 8, 14336), 32000, 32768, num_local_experts=8, num_experts_per_tok=2
)
QWEN3_30B_A3B = _config(
    (48, 2048, 32, 4, 6144),
    151936,
    40960,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    decoder_sparse_step=1,
    mlp_only_layers=[],
)
QWEN2_57B_A14B = _config(
    (28, 3584, 28, 4, 18944),
    151936,
    32768,
    num_experts=64,
    num_experts_per_tok=8,
    moe_intermediate_size=2560,
    shared_expert_intermediate_size=20480,
)
DEEPSEEK_V2_LITE = _config(
    (27, 2048, 16, 16, 10944),
    102400,
    163840,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    moe_intermediate_size=1408,
    first_k_dense_replace=1,
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
DEEPSEEK_V3 = _config(
    (61, 7168, 128, 128, 18432),
    129280,
    163840,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=2048,
    first_k_dense_replace=3,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
)
AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
FP8 = {"quantization_config": {"quant_method": "fp8"}}


def _plan(config: dict[str, Any], nodes: int, gpus: int, memory: float, **options: Any) -> PoolPlan:
    shape = ModelShape.from_config(config, name="m")
    return plan_pool(shape, GpuNodes(nodes, gpus, memory), **options)


def _sizes(plan: PoolPlan) -> tuple[int, int, int]:
    return plan.tensor_parallel_size, plan.pipeline_parallel_size, plan.replicas


@pytest.mark.parametrize(
    ("config", "billions", "billions_active"),
    [
        (LLAMA_8B, 8.03, 8.03),
        (LLAMA_70B, 70.6, 70.6),
        (MISTRAL_7B, 7.25, 7.25),
        (SMOLLM_135M, 0.1345, 0.1345),
        (QWEN2_7B, 7.62, 7.62),
        (QWEN2_HALF_B, 0.494, 0.494),
        (GEMMA2_9B, 9.24, 9.24),
        (GEMMA3_4B, 3.88, 3.88),
        (MIXTRAL_8X7B, 46.7, 12.9),
        (QWEN3_30B_A3B, 30.5, 3.3),
        (QWEN2_57B_A14B, 57.4, 14.2),
        (DEEPSEEK_V2_LITE, 15.7, 2.66),
        (DEEPSEEK_V3, 671, 37),
    ],
)
def test_shape_counts_the_published_number_of_parameters(
    config: dict[str, Any], billions: float, billions_active: float
) -> None:
    shape = ModelShape.from_config(config)
    assert shape.num_parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert shape.num_active_parameters / 1e9 == pytest.approx(billions_active, rel=0.02)


@pytest.mark.parametrize(
    ("config", "kib"),
    [
        (LLAMA_8B, 128),
        (LLAMA_70B, 320),
        (QWEN3_30B_A3B, 96),
        (GEMMA2_9B, 336),
        (DEEPSEEK_V3, 61 * 1.125),
    ],
)
def test_shape_cache_of_a_token(config: dict[str, Any], kib: float) -> None:
    assert ModelShape.from_config(config).kv_cache_bytes_per_token == kib * 1024


def test_shape_cache_on_more_gpus_than_heads_is_copied() -> None:
    grouped = ModelShape.from_config(QWEN3_30B_A3B)
    assert grouped.kv_cache_bytes_per_layer(4) == grouped.kv_cache_bytes_per_layer(1) / 4
    assert grouped.kv_cache_bytes_per_layer(8) == grouped.kv_cache_bytes_per_layer(4)
    latent = ModelShape.from_config(DEEPSEEK_V3)
    assert latent.kv_cache_bytes_per_layer(8) == latent.kv_cache_bytes_per_layer(1)


@pytest.mark.parametrize(
    ("quantization", "gigabytes"),
    [
        (None, 141.1),
        ({"quant_method": "fp8"}, 72.7),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 39.8),  # the size of its files
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 72.7),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 41.1),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 72.7),
        ({"quant_method": "mxfp4"}, 43.8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            39.8,
        ),
    ],
)
def test_shape_quantised_weights(quantization: dict[str, Any] | None, gigabytes: float) -> None:
    shape = ModelShape.from_config(LLAMA_70B | {"quantization_config": quantization})
    assert shape.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert shape.cache_value_bytes == 2


def test_shape_bytes_may_be_given() -> None:
    shape = ModelShape.from_config(LLAMA_70B, bytes_per_parameter=1)
    assert shape.weight_bytes / 1e9 == pytest.approx(72.7, rel=0.01)
    unknown = LLAMA_70B | {"quantization_config": {"quant_method": "new"}}
    assert ModelShape.from_config(unknown, bytes_per_parameter=1) == shape
    whole = ModelShape.from_config(SMOLLM_135M, bytes_per_parameter=4)
    assert whole.weight_bytes == 4 * whole.num_parameters


@pytest.mark.parametrize(
    ("options", "gigabytes", "cache_bytes"),
    [
        ({}, 141.1, 2),
        ({"quantization": "fp8"}, 72.7, 2),
        ({"quantization": "int8_per_channel_weight_only", "kv_cache_dtype": "fp8_e4m3"}, 72.7, 1),
        ({"quantization": "bitsandbytes"}, 41.1, 2),
        ({"quantization": "unheard_of", "kv_cache_dtype": "auto"}, 141.1, 2),
    ],
)
def test_shape_is_quantised_by_the_engines_options(
    options: dict[str, Any], gigabytes: float, cache_bytes: float
) -> None:
    shape = ModelShape.from_config(with_options(LLAMA_70B, options))
    assert shape.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert shape.cache_value_bytes == cache_bytes
    packed = LLAMA_70B | AWQ
    assert ModelShape.from_config(with_options(packed, options)).weight_bytes == pytest.approx(
        39.8e9, rel=0.01
    )


def test_plan_70b_in_8_bits_fits_one_h200() -> None:
    config = with_options(LLAMA_70B, {"quantization": "fp8", "kv_cache_dtype": "fp8"})
    assert _sizes(_plan(config, 1, 1, 139.8)) == (1, 1, 1)


def test_shape_float32_files_are_served_in_16_bits() -> None:
    shape = ModelShape.from_config(LLAMA_8B | {"torch_dtype": None, "dtype": "float32"})
    assert shape == ModelShape.from_config(LLAMA_8B)


def test_shape_sparse_layers_are_counted() -> None:
    named = {"decoder_sparse_step": 2, "mlp_only_layers": [1, 3]}
    shape = ModelShape.from_config(QWEN3_30B_A3B | named)
    assert shape.experts is not None
    assert shape.experts.num_layers == 22
    assert ModelShape.from_config(LLAMA_8B | {"num_experts": 0}).experts is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LLAMA_8B, "num_hidden_layers"),
        (LLAMA_8B, "hidden_size"),
        (LLAMA_8B, "num_attention_heads"),
        (LLAMA_8B, "vocab_size"),
        (LLAMA_8B, "intermediate_size"),
        (LLAMA_8B, "max_position_embeddings"),
        (QWEN3_30B_A3B, "num_experts_per_tok"),
        (DEEPSEEK_V3, "qk_rope_head_dim"),
    ],
)
def test_shape_missing_field_is_named(config: dict[str, Any], field: str) -> None:
    rest = {key: value for key, value in config.items() if key != field}
    with pytest.raises(InputError, match=f"the config of some-model has no {field}"):
        ModelShape.from_config(rest, name="some-model")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_size": "4096"}, "hidden_size is not a size: '4096'"),
        ({"num_key_value_heads": -8}, "num_key_value_heads is not a size: -8"),
        ({"torch_dtype": "int3"}, "torch_dtype 'int3' is not one of"),
        ({"quantization_config": {"quant_method": "new"}}, "'new'.*give bytes_per_parameter"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_shape_senseless_field_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        ModelShape.from_config(LLAMA_8B | values)


@pytest.mark.parametrize(
    ("config", "nodes", "expected"),
    [
        # Weights 15.0, overhead 2.2, cache 2.6 of 19.8 GiB: the one GPU is better than none.
        (LLAMA_8B, GpuNodes(1, 1, GB_24), (1, 1, 1)),
        (LLAMA_8B, GpuNodes(1, 8, GB_24), (2, 1, 4)),
        (LLAMA_8B, GpuNodes(1, 8, GB_80), (1, 1, 8)),
        (LLAMA_8B, GpuNodes(4, 8, GB_80), (1, 1, 32)),
        (MISTRAL_7B, GpuNodes(1, 8, GB_80), (1, 1, 8)),
        (SMOLLM_135M, GpuNodes(2, 4, GB_24), (1, 1, 8)),
        # Two GPUs would hold it, but next to no cache.
        (LLAMA_70B, GpuNodes(1, 4, GB_80), (4, 1, 1)),
        (LLAMA_70B, GpuNodes(1, 8, GB_80), (4, 1, 2)),
        (LLAMA_70B, GpuNodes(1, 2, GB_80), (2, 1, 1)),
        # A power of two leaves a third of these idle, a pipeline does not.
        (LLAMA_70B, GpuNodes(1, 3, GB_80), (1, 3, 1)),
        (LLAMA_70B, GpuNodes(1, 6, GB_80), (2, 3, 1)),
        (LLAMA_70B, GpuNodes(2, 8, GB_40), (4, 2, 2)),
        (LLAMA_70B, GpuNodes(2, 2, GB_48), (2, 2, 1)),
        (LLAMA_70B, GpuNodes(3, 2, GB_40), (2, 3, 1)),
        (LLAMA_70B, GpuNodes(7, 2, GB_40), (2, 3, 2)),
        (LLAMA_70B | FP8, GpuNodes(1, 2, GB_48), (2, 1, 1)),
        (LLAMA_70B | AWQ, GpuNodes(1, 2, GB_48), (2, 1, 1)),
        # Two engines would hold 48 sequences each, one over both holds 160.
        (LLAMA_70B | AWQ, GpuNodes(1, 2, GB_80), (2, 1, 1)),
        (QWEN3_30B_A3B, GpuNodes(1, 1, GB_80), (1, 1, 1)),
        (QWEN3_30B_A3B, GpuNodes(1, 2, GB_40), (2, 1, 1)),
        # On one card 48 sequences are left, which meet nearly all experts in each step.
        (QWEN3_30B_A3B, GpuNodes(1, 8, GB_80), (2, 1, 4)),
        (QWEN3_30B_A3B, GpuNodes(2, 8, GB_80), (2, 1, 8)),
        (LLAMA_8B, GpuNodes(1, 4, GB_48), (1, 1, 4)),
        (DEEPSEEK_V3, GpuNodes(1, 8, 139.8), (8, 1, 1)),
        (DEEPSEEK_V3, GpuNodes(2, 8, GB_80), (8, 2, 1)),
    ],
)
def test_plan_sizes(config: dict[str, Any], nodes: GpuNodes, expected: tuple[int, ...]) -> None:
    plan = plan_pool(ModelShape.from_config(config), nodes)
    assert _sizes(plan) == expected
    assert plan.needs_placement_group == (plan.gpus_per_engine > nodes.gpus_per_node)
    in_use = plan.weights_gib_per_gpu + plan.overhead_gib_per_gpu
    in_use += plan.kv_cache_gib / plan.gpus_per_engine
    assert in_use == pytest.approx(0.9 * nodes.gpu_memory_gib)
    assert plan.replicas * plan.gpus_per_engine <= nodes.num_gpus


def test_plan_numbers_of_one_engine() -> None:
    plan = _plan(MISTRAL_7B, 1, 8, GB_80)
    assert plan.weights_gib_per_gpu == pytest.approx(14.496e9 / GIB, rel=0.001)
    assert plan.kv_cache_gib == pytest.approx(55.5, abs=0.1)
    assert plan.kv_cache_tokens == pytest.approx(plan.kv_cache_gib * 8192, abs=16)
    assert plan.max_num_seqs == plan.kv_cache_tokens // 2048 // 8 * 8 == 216
    assert plan.max_model_len == 32768


def test_plan_says_its_numbers() -> None:
    text = _plan(QWEN3_30B_A3B, 1, 2, GB_40).describe()
    for part in (
        "m: 30.5 billion parameters (3.4 active), 56.9 GiB of weights, 96 KiB of cache a token.",
        "On 1 x 2 GPUs of 39.4 GiB: engines at once 1, GPUs an engine 2",
        "(tensor parallel 2, pipeline parallel 1, expert parallel)",
        "28.4 GiB of weights and 2.9 GiB of overhead",
        "8.2 GiB or 89616 tokens, for at most 40 sequences at once, the longest of 40960 tokens",
    ):
        assert part in text
    assert "each over several nodes" in _plan(LLAMA_70B, 2, 2, GB_48).describe()


def test_plan_experts_are_parallel_only_where_there_are_some_and_gpus_to_share() -> None:
    assert _plan(QWEN3_30B_A3B, 1, 2, GB_40).expert_parallel
    assert not _plan(QWEN3_30B_A3B, 1, 1, GB_80).expert_parallel
    assert not _plan(LLAMA_70B, 1, 4, GB_80).expert_parallel


def test_plan_heads_that_do_not_split_make_a_pipeline() -> None:
    """Nine heads split over no power of two, 28 heads over 4 at most."""
    assert _sizes(_plan(SMOLLM_135M, 1, 8, 1.8)) == (1, 6, 1)
    tensor, pipeline, _ = _sizes(_plan(QWEN2_7B, 1, 8, 5.0))
    assert (tensor, pipeline) == (4, 2)


@pytest.mark.parametrize(
    ("sizes", "ranks", "expected"),
    [
        ({"num_attention_heads": 28}, 8, False),
        ({"num_attention_heads": 40, "num_key_value_heads": 10}, 2, True),
        ({"num_attention_heads": 40, "num_key_value_heads": 10}, 4, False),
        ({"num_key_value_heads": 2}, 8, True),
        ({"intermediate_size": 14338}, 4, False),
    ],
)
def test_shape_splits_as_vllm_splits(sizes: dict[str, Any], ranks: int, expected: bool) -> None:
    assert ModelShape.from_config(LLAMA_8B | sizes).splits_over(ranks) is expected


def test_plan_shrinks_the_context_to_the_cache() -> None:
    plan = _plan(LLAMA_8B_LONG, 1, 1, GB_24)
    assert plan.max_model_len == plan.kv_cache_tokens == 21248
    assert _plan(LLAMA_8B_LONG, 1, 1, GB_80).max_model_len == 131072
    assert _plan(LLAMA_8B_LONG, 1, 1, GB_24, min_context=21248).max_model_len == 21248
    with pytest.raises(InputError, match="a cache for 21249 tokens"):
        _plan(LLAMA_8B_LONG, 1, 1, GB_24, min_context=21249)


def test_plan_context_asked_for_is_kept_or_refused() -> None:
    assert _plan(LLAMA_8B_LONG, 1, 1, GB_24, context=16384).max_model_len == 16384
    with pytest.raises(InputError, match=r"32768 tokens \(4.0 GiB .* the most is 21248 tokens"):
        _plan(LLAMA_8B_LONG, 1, 1, GB_24, context=32768)
    with pytest.raises(InputError, match="8193 tokens was requested, but m was made for 1 to 8192"):
        _plan(LLAMA_8B, 1, 8, GB_80, context=8193)


def test_plan_long_context_asked_for_takes_more_gpus() -> None:
    assert _sizes(_plan(LLAMA_8B_LONG, 1, 2, 36.0)) == (1, 1, 2)
    assert _plan(LLAMA_8B_LONG, 1, 2, 36.0, context=131072).gpus_per_engine == 2


def test_plan_short_context_makes_room_for_more_sequences() -> None:
    assert _plan(LLAMA_8B, 1, 1, GB_24).max_num_seqs == 8
    assert _plan(LLAMA_8B, 1, 1, GB_24, context=512).max_num_seqs == 40


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 2), (7, 4), (100, 96), (256, 256)])
def test_plan_batch_has_a_cuda_graph(limit: int, expected: int) -> None:
    assert _plan(SMOLLM_135M, 1, 1, GB_24, max_num_seqs=limit).max_num_seqs == expected


def test_plan_smaller_cache_values_hold_more() -> None:
    shape = ModelShape.from_config(LLAMA_8B)
    smaller = dataclasses.replace(shape, cache_value_bytes=1)
    tokens = [plan_pool(s, GpuNodes(1, 1, GB_24)).kv_cache_tokens for s in (shape, smaller)]
    assert tokens[1] == pytest.approx(2 * tokens[0], abs=16)


@pytest.mark.parametrize(
    ("config", "nodes", "numbers", "enough"),
    [
        (
            *(LLAMA_70B, GpuNodes(1, 1, GB_80)),
            *(("131.4 GiB of 79.1 GiB", "1 GPU(s)", "71.2 GiB"), "2 or more GPUs"),
        ),
        # Each GPU would hold its weights, but without room for overhead and cache.
        (
            *(LLAMA_70B, GpuNodes(2, 2, GB_40)),
            *(("of 157.6 GiB", "32.9 GiB for", "35.5 GiB"), "8 or more GPUs"),
        ),
        (
            *(LLAMA_70B | AWQ, GpuNodes(1, 1, GB_48)),
            *(("37.0 GiB of 44.4 GiB", "3.4 for overhead"), "2 or more GPUs"),
        ),
        (
            *(DEEPSEEK_V3, GpuNodes(1, 8, GB_80)),
            *(("626.7 GiB of 632.8 GiB in all", "8 GPU(s)"), "2 nodes of 8 or more GPUs"),
        ),
        (DEEPSEEK_V3, GpuNodes(1, 8, 4.0), ("626.7 GiB of 32.0 GiB in all",), "larger GPUs"),
    ],
)
def test_plan_that_fits_nowhere_says_the_numbers_and_what_would_do(
    config: dict[str, Any], nodes: GpuNodes, numbers: tuple[str, ...], enough: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_pool(ModelShape.from_config(config, name="big"), nodes)
    message = str(caught.value)
    assert message.startswith("big does not fit on")
    assert f"quantise the model, or use {enough}" in message
    assert all(number in message for number in numbers), message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"context": 0}, "a context of 0"),
        ({"min_context": 0}, "min_context"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization"),
        ({"max_num_seqs": 2000}, "max_num_seqs"),
    ],
)
def test_plan_senseless_limit_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        _plan(LLAMA_8B, 1, 1, GB_24, **options)


@pytest.mark.parametrize("values", [(0, 8, 80.0), (1, 0, 80.0), (1, 8, 0.0), (1, 8, float("nan"))])
def test_nodes_without_anything_are_refused(values: tuple[int, int, float]) -> None:
    with pytest.raises(InputError, match="must be greater than 0"):
        GpuNodes(*values)


MODELS = [LLAMA_8B, LLAMA_70B, LLAMA_70B | AWQ, QWEN2_7B, QWEN3_30B_A3B, SMOLLM_135M]
MEMORIES = [1.8, 2.5, 6.0, 11.0, 16.0, GB_24, GB_40, GB_48, GB_80, 139.8]


def _try_speed(config: dict[str, Any], nodes: int, gpus: int, memory: float) -> float:
    """Predicted tokens a second; none at all when nothing fits."""
    try:
        return _plan(config, nodes, gpus, memory).nominal_tokens_per_s
    except InputError:
        return 0.0


def _never_falls(speeds: list[float]) -> bool:
    """But for the tenth by which a larger engine has to be faster."""
    return all(after * CLEARLY_FASTER >= before for before, after in itertools.pairwise(speeds))


@pytest.mark.parametrize("config", MODELS)
def test_plan_more_memory_is_never_slower(config: dict[str, Any]) -> None:
    for nodes in (1, 3):
        for gpus in (1, 2, 3, 6, 8):
            assert _never_falls([_try_speed(config, nodes, gpus, memory) for memory in MEMORIES])


@pytest.mark.parametrize("config", MODELS)
def test_plan_more_gpus_are_never_slower(config: dict[str, Any]) -> None:
    for memory in MEMORIES:
        assert _never_falls([_try_speed(config, 1, gpus, memory) for gpus in range(1, 9)])
        for nodes in (1, 2, 3):
            assert _never_falls([_try_speed(config, nodes, gpus, memory) for gpus in (1, 2, 4, 8)])
        for gpus in (1, 3, 8):
            assert _never_falls([_try_speed(config, nodes, gpus, memory) for nodes in range(1, 6)])


def test_plan_of_small_dense_models_is_an_engine_a_gpu() -> None:
    """What is gained by a larger batch of theirs is lost between the GPUs."""
    for config in (SMOLLM_135M, QWEN2_7B, MISTRAL_7B):
        for memory in (GB_40, GB_48, GB_80, 139.8):
            assert _sizes(_plan(config, 1, 8, memory)) == (1, 1, 8)
