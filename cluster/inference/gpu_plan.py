"""Plan the size of an engine and the number of engines on the GPUs, by arithmetic alone.

It reads a model's `config.json` and the size of the nodes, and returns values for `engine.*` before
anything is loaded or paid for. Sizes are in bytes; a GiB is 2**30 bytes. The name of a card does
not give its memory: CUDA sees about 79.1 GiB of an "80 GB" H100 or A100, 44.4 of "48 GB" (L40S,
A40), 39.4 of "40 GB" (A100) and 22.0 of "24 GB" (L4, A10G). `gpu_memory_gib` is that number, as in
`torch.cuda.get_device_properties(0).total_memory / 2**30`.

Example::

    model = ModelShape.from_config(json.loads(Path("config.json").read_text()), name="Llama-3-8B")
    plan = plan_pool(model, GpuNodes(num_nodes=1, gpus_per_node=8, gpu_memory_gib=79.1))
    print(plan.describe())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InputError

GIB = 2**30

# What a GPU holds besides weights and cache: activations of a batch of 2048 tokens, the sampler's
# float32 logits, CUDA graphs and NCCL's buffers. The first part hardly depends on the model. The
# second allows for wider layers, copied key-value heads and uneven stages. Both are allowances, not
# measurements.
OVERHEAD_GIB = 1.5
OVERHEAD_OF_WEIGHTS = 0.05

SEQUENCE_TOKENS = 2048
"""Cache that a running sequence takes on average. Our prompts and answers end below 4096 tokens,
and the sequences of a batch are at all stages of their growth: on average they are half grown."""

# A roofline model for comparing layouts of one model, accurate to 50 %. The card is an A100 with
# 80 GB, and steps reach 0.8 of its bandwidth (2.0 TB/s) and 0.6 of its arithmetic (312 TFLOP/s).
# The fastest layout hardly depends on the card.
CARD_BYTES_PER_S = 0.8 * 2.0e12
CARD_FLOPS_PER_S = 0.6 * 312e12
STEP_S = 2.5e-3
"""Further seconds of each step: the scheduler, kernel launches, the sampler."""
ALL_REDUCE_S = 50e-6
"""Seconds that the ranks of an engine wait for each other in each layer, besides the transfer."""
PIPELINE_FILLED = 0.9
"""Share of the time in which a stage of a pipeline has work; this is an allowance."""
LINK_BYTES_PER_S = 250e9
"""Bandwidth between the GPUs of a node with NVLink."""
SLOW_LINK_BYTES_PER_S = 25e9
"""Bandwidth over PCIe. Cards with less than `LINKED_GIB` (L4, A10G, L40S) have no other link; for
an A100 with 40 GB this is too pessimistic."""
LINKED_GIB = 60
RUNNING_TOKENS = 450
"""Cached tokens of a running sequence that a step reads, of prompts and answers such as ours."""
PROMPT_SHARE = 1.1
"""Prompt tokens computed for each generated token, without those in the prefix cache."""
CLEARLY_FASTER = 1.1
"""How much faster a larger engine must be predicted to be than several smaller ones."""

MOST_NODES = 16
"""The number of nodes, with eight GPUs each, up to which a refusal looks for enough hardware."""

BLOCK_TOKENS = 16
"""vLLM allocates its cache in blocks of this many tokens."""

# vLLM keeps weights with 32 bits on disk as 16 bits in memory: that is its dtype `auto`, and ours.
DTYPE_BYTES = {"float32": 2.0, "bfloat16": 2.0, "float16": 2.0}

# The `quantization_config` that corresponds to `engine.options.quantization` for weights that are
# not quantised yet. Scales are negligible, except for bitsandbytes.
_8_BITS: dict[str, Any] = {"quant_method": "online", "bits": 8}
ONLINE_QUANTIZATION: dict[str, dict[str, Any]] = {
    "fp8": _8_BITS,
    "fp8_per_tensor": _8_BITS,
    "fp8_per_block": _8_BITS,
    "fp8_per_channel": _8_BITS,
    "int8_per_channel_weight_only": _8_BITS,
    "mxfp8": {"quant_method": "online", "bits": 8, "group_size": 32},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}

COUNTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, slots=True)
class Experts:
    """The sparse part of a mixture-of-experts model."""

    count: int
    """Routed experts in one layer, without the shared ones."""
    per_token: int
    """Experts that one token goes through."""
    size: int
    """Intermediate size of one expert."""
    shared_size: int
    """Intermediate size of the experts that every token uses; 0 if there are none."""
    num_layers: int
    """Layers that have experts; the others are dense."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """DeepSeek's attention, which caches one compressed vector per token for all heads."""

    query_rank: int
    """0 means that the query is not compressed."""
    kv_rank: int
    plain_dim: int
    """Dimension of a head's query and key without the rotary part."""
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts that determine a model's memory: its shapes and the bytes of its numbers.

    The matrices of a text model with gated feed-forward layers are counted (Llama, Mistral, Qwen,
    Gemma, Mixtral, DeepSeek and similar ones). Biases and the norms inside attention (below 0.1 %),
    vision towers, and layers that predict several tokens are left out.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Intermediate size of the dense layers; 0 if there are none."""
    vocab_size: int
    max_context: int
    """Context in tokens that the model was made for, without scaling of its positions."""
    tied_embeddings: bool = False
    experts: Experts | None = None
    latent: LatentAttention | None = None
    layer_parameter_bytes: float = 2.0
    """Bytes per parameter of the layers, including the scales of a quantisation."""
    table_parameter_bytes: float = 2.0
    """Bytes per parameter of the embeddings and the output layer, which are not quantised."""
    cache_value_bytes: float = 2.0
    """Bytes per number in the key-value cache; 1 with `engine.options.kv_cache_dtype: fp8`."""

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        name: str = "the model",
        bytes_per_parameter: float | None = None,
    ) -> ModelShape:
        """Read the shape from a Hugging Face `config.json`.

        `bytes_per_parameter` is for weights that differ from the file, such as 1 for
        `engine.options.quantization: fp8`. Raises `InputError` that names a field which is missing,
        invalid or not supported.
        """
        fields = _Fields(name, _text_config(config))
        heads = fields.integer("num_attention_heads")
        hidden = fields.integer("hidden_size")
        dtype_bytes = _dtype_bytes(fields)
        layer_bytes = bytes_per_parameter or _layer_bytes(fields, dtype_bytes)
        num_layers = fields.integer("num_hidden_layers")
        _check_layer_types(fields)
        experts = _experts(fields, num_layers)
        is_sparse = experts is not None and experts.num_layers == num_layers
        return cls(
            name=name,
            num_layers=num_layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", default=heads),
            head_dim=fields.integer("head_dim", default=hidden // heads),
            intermediate_size=0 if is_sparse else fields.integer("intermediate_size"),
            vocab_size=fields.integer("vocab_size"),
            max_context=fields.integer("max_position_embeddings"),
            tied_embeddings=fields.flag("tie_word_embeddings", default=fields.is_gemma),
            experts=experts,
            latent=_latent_attention(fields),
            layer_parameter_bytes=layer_bytes,
            table_parameter_bytes=max(dtype_bytes, bytes_per_parameter or 0.0),
            cache_value_bytes=fields.values.get("kv_cache_value_bytes", dtype_bytes),
        )

    @property
    def num_parameters(self) -> int:
        return self._layer_parameters(self.experts.count if self.experts else 0) + self._tables

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token uses; the embeddings count, as they do in model cards."""
        return self._layer_parameters(self.experts.per_token if self.experts else 0) + self._tables

    @property
    def weight_bytes(self) -> float:
        return self.layer_bytes + self._tables * self.table_parameter_bytes

    @property
    def layer_bytes(self) -> float:
        """Bytes of all layers, without the embeddings and the output layer."""
        count = self.experts.count if self.experts else 0
        return self._layer_parameters(count) * self.layer_parameter_bytes

    def layer_bytes_read(self, batch: float) -> float:
        """Bytes of all layers that a step with this many sequences reads: only the experts that
        any of the sequences uses are counted."""
        if self.experts is None:
            return self.layer_bytes
        experts = self.experts
        met: float = experts.count * (1 - (1 - experts.per_token / experts.count) ** batch)
        without = self._layer_parameters(0)
        of_one = (self._layer_parameters(experts.count) - without) / experts.count
        return (without + met * of_one) * self.layer_parameter_bytes

    @property
    def kv_cache_bytes_per_token(self) -> float:
        """Bytes of cache that a token takes in all layers together, on one GPU.

        Every layer is assumed to keep the whole context; layers with sliding windows need less.
        """
        return self.num_layers * self.kv_cache_bytes_per_layer(1)

    def kv_cache_bytes_per_layer(self, tensor_parallel_size: int) -> float:
        """Bytes that a token takes in one layer on each GPU.

        A GPU holds at least one key-value head, so with more GPUs than heads there are copies. The
        compressed vector of latent attention belongs to all heads: every GPU holds all of it.
        """
        if self.latent is not None:
            return (self.latent.kv_rank + self.latent.rope_dim) * self.cache_value_bytes
        heads = max(1, self.num_kv_heads // tensor_parallel_size)
        return 2 * heads * self.head_dim * self.cache_value_bytes

    def table_bytes(self, num_stages: int) -> float:
        """Bytes of embeddings and output layer on the fullest of the pipeline's stages.

        The first stage needs the embeddings and the last the output layer, whether or not they are
        tied.
        """
        num_tables = 1 if self.tied_embeddings or num_stages > 1 else 2
        return num_tables * self.vocab_size * self.hidden_size * self.table_parameter_bytes

    def splits_over(self, tensor_parallel_size: int) -> bool:
        """Whether vLLM can split every layer over this many GPUs: heads and matrices evenly,
        key-value heads evenly or in complete copies. Expert counts need not be divisible, and
        vocabularies are padded.
        """
        evenly = [self.num_heads, self.intermediate_size]
        if self.experts is not None:
            evenly.append(self.experts.shared_size)
        larger = max(self.num_kv_heads, tensor_parallel_size)
        smaller = min(self.num_kv_heads, tensor_parallel_size)
        return larger % smaller == 0 and all(size % tensor_parallel_size == 0 for size in evenly)

    @property
    def _tables(self) -> int:
        return (1 if self.tied_embeddings else 2) * self.vocab_size * self.hidden_size

    def _layer_parameters(self, num_experts: int) -> int:
        """Parameters of all layers if this many experts of a sparse layer are counted."""
        num_dense = self.num_layers - (self.experts.num_layers if self.experts else 0)
        total = self.num_layers * (self._attention_parameters + 2 * self.hidden_size)
        total += num_dense * 3 * self.hidden_size * self.intermediate_size
        if self.experts is not None:
            sizes = num_experts * self.experts.size + self.experts.shared_size
            router = self.hidden_size * self.experts.count
            total += self.experts.num_layers * (3 * self.hidden_size * sizes + router)
        return total + self.hidden_size

    @property
    def _attention_parameters(self) -> int:
        """Parameters of the attention of one layer."""
        if (latent := self.latent) is None:
            return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        query_size = self.num_heads * (latent.plain_dim + latent.rope_dim)
        if latent.query_rank:
            query = latent.query_rank * (self.hidden_size + query_size)
        else:
            query = self.hidden_size * query_size
        down = self.hidden_size * (latent.kv_rank + latent.rope_dim)
        up = latent.kv_rank * self.num_heads * (latent.plain_dim + latent.value_dim)
        return query + down + up + self.num_heads * latent.value_dim * self.hidden_size


@dataclass(frozen=True, slots=True)
class GpuNodes:
    """Equal nodes with equal GPUs, all of which are free for engines."""

    num_nodes: int
    gpus_per_node: int
    gpu_memory_gib: float
    """Memory of one GPU as CUDA reports it; see the module docstring."""

    def __post_init__(self) -> None:
        for field in ("num_nodes", "gpus_per_node", "gpu_memory_gib"):
            if not getattr(self, field) > 0:
                raise InputError(f"{field} must be greater than 0, not {getattr(self, field)}")

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The values for `engine.*`, and the numbers behind them."""

    model: ModelShape
    nodes: GpuNodes
    tensor_parallel_size: int
    pipeline_parallel_size: int
    replicas: int
    """Engines that run at once on all nodes: `engine.max_workers`."""
    max_num_seqs: int
    max_model_len: int
    needs_placement_group: bool
    """Whether an engine spans nodes: `engine.placement_group`."""
    weights_gib_per_gpu: float
    """Weights on the fullest GPU of an engine."""
    overhead_gib_per_gpu: float
    kv_cache_gib: float
    """Key-value cache of one engine, on all its GPUs together."""
    kv_cache_tokens: int
    """Tokens that fit into the cache of one engine."""
    nominal_tokens_per_s: float
    """Speed of all engines on the nominal card. It compares plans and does not forecast a run."""

    @property
    def gpus_per_engine(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def expert_parallel(self) -> bool:
        """Whether each GPU holds complete experts (`engine.options.enable_expert_parallel`).

        Small experts that are split give slow matrix products and may not fit a quantisation's
        blocks.
        """
        return self.model.experts is not None and self.tensor_parallel_size > 1

    def describe(self) -> str:
        """Describe the plan and its numbers in one paragraph."""
        return (
            f"{_describe_model(self.model)} {_describe_engines(self)} "
            f"Each GPU holds {self.weights_gib_per_gpu:.1f} GiB of weights and "
            f"{self.overhead_gib_per_gpu:.1f} GiB of overhead; the key-value cache of an engine "
            f"is {self.kv_cache_gib:.1f} GiB or {self.kv_cache_tokens} tokens, for at most "
            f"{self.max_num_seqs} sequences at once, the longest of {self.max_model_len} tokens "
            f"(the model's own limit is {self.model.max_context})."
        )


def plan_pool(
    model: ModelShape,
    nodes: GpuNodes,
    *,
    context: int | None = None,
    min_context: int = 2048,
    gpu_memory_utilization: float = 0.9,
    max_num_seqs: int = 256,
) -> PoolPlan:
    """Plan the engines for a model on these nodes.

    * An engine fits if the fullest of its GPUs can hold, within `gpu_memory_utilization`, its share
      of the weights, the overhead, and a cache for one sequence of `context` tokens. Without a
      `context` the cache must hold `min_context` tokens, and the context is what the cache can
      hold, at most the model's own limit: questions are short, so a longer context is not worth a
      GPU.
    * Of the engines that fit, the plan takes those that together generate the most tokens per
      second (`_Layout.tokens_per_s`). Separate engines do not wait for each other, while the GPUs
      of one engine wait for each other twice in every layer. But each engine reads all its weights
      in every step, and the memory that the weights leave decides how many sequences share that
      cost. Of the layouts within `CLEARLY_FASTER` of the fastest, the plan takes the one with the
      most engines, then the faster one, then the shorter pipeline and the fewer GPUs.
    * Tensor parallelism is a power of two within a node, where the links are fast, and splits all
      heads evenly. A pipeline extends it over nodes (they exchange little), or over the GPUs of a
      node when the number of heads or GPUs is odd. An engine over several nodes gets them
      completely.
    * `max_num_seqs` is how many sequences of `SEQUENCE_TOKENS` fit into the cache, rounded down to
      a size for which vLLM has a CUDA graph. When a batch grows longer than that, vLLM makes one
      sequence wait and computes it again, which costs little, while a batch that is too small costs
      time in every step. It is at most `max_num_seqs`: beyond 256 the sampler's logits exceed the
      overhead that is allowed for.

    More memory, more nodes or twice the GPUs per node never give a lower predicted speed, apart
    from the tolerance of `CLEARLY_FASTER`. Raises `InputError` with the numbers when no engine
    fits, or when the requested `context` does not fit.
    """
    _check_limits(model, context, min_context, gpu_memory_utilization, max_num_seqs)
    usable = nodes.gpu_memory_gib * GIB * gpu_memory_utilization
    layouts = [_Layout(model, nodes, tp, pp, usable) for tp, pp in _sizes(model, nodes)]
    needed = context or min(min_context, model.max_context)
    fitting = [layout for layout in layouts if layout.cache_tokens >= needed]
    if not fitting:
        raise _nothing_fits(model, nodes, layouts, context, needed, usable)
    sequence = min(context or model.max_context, SEQUENCE_TOKENS)
    best = _best(fitting, sequence, max_num_seqs)
    return _plan(best, context, best.batch(sequence, max_num_seqs))


@dataclass(frozen=True, slots=True)
class _Layout:
    """One way to place an engine on GPUs, whether or not it fits."""

    model: ModelShape
    nodes: GpuNodes
    num_ranks: int
    """Tensor-parallel size."""
    num_stages: int
    """Pipeline-parallel size."""
    usable: float
    """Bytes of one GPU that vLLM may use."""

    @property
    def num_gpus(self) -> int:
        return self.num_ranks * self.num_stages

    @property
    def num_nodes(self) -> int:
        """Nodes that one engine spans; each has room for some complete stages."""
        return -(-self.num_stages // (self.nodes.gpus_per_node // self.num_ranks))

    @property
    def replicas(self) -> int:
        if self.num_nodes > 1:
            return self.nodes.num_nodes // self.num_nodes
        return self.nodes.gpus_per_node // self.num_gpus * self.nodes.num_nodes

    @property
    def stage_layers(self) -> int:
        """Number of layers in the longest stage."""
        return -(-self.model.num_layers // self.num_stages)

    @property
    def weights(self) -> float:
        """Bytes of weights on the fullest GPU."""
        layers = self.model.layer_bytes * self.stage_layers / self.model.num_layers
        return (layers + self.model.table_bytes(self.num_stages)) / self.num_ranks

    @property
    def overhead(self) -> float:
        return OVERHEAD_GIB * GIB + OVERHEAD_OF_WEIGHTS * self.weights

    @property
    def cache(self) -> float:
        """Bytes left for the cache on the fullest GPU; vLLM takes no more on the others."""
        return max(0.0, self.usable - self.weights - self.overhead)

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit into the cache, in complete blocks."""
        token = self.stage_layers * self.model.kv_cache_bytes_per_layer(self.num_ranks)
        return int(self.cache / token) // BLOCK_TOKENS * BLOCK_TOKENS

    def tokens_per_s(self, batch: int) -> float:
        """Tokens that all engines generate per second, each with a batch of this many sequences.

        The stages of a pipeline work on different parts of the batch at the same time.
        """
        part = batch / self.num_stages
        share = self.stage_layers / self.model.num_layers
        tables = self.model.table_bytes(self.num_stages)
        read = (self.model.layer_bytes_read(part) * share + tables) / self.num_ranks
        cache = self.stage_layers * self.model.kv_cache_bytes_per_layer(self.num_ranks)
        read += part * RUNNING_TOKENS * cache
        per_token = 2 * self.model.num_active_parameters * (1 + PROMPT_SHARE)
        compute_s = part * per_token * share / self.num_ranks / CARD_FLOPS_PER_S
        step_s = STEP_S + read / CARD_BYTES_PER_S + compute_s + self._exchange_s(part)
        filled = PIPELINE_FILLED if self.num_stages > 1 else 1.0
        return self.replicas * part / step_s * filled

    def _exchange_s(self, part: float) -> float:
        """Seconds per step that the ranks of a stage wait for each other: two sums in each layer,
        with 16 bits per token and dimension, of which each rank sends and receives nearly twice."""
        if self.num_ranks == 1:
            return 0.0
        is_linked = self.nodes.gpu_memory_gib >= LINKED_GIB
        link = LINK_BYTES_PER_S if is_linked else SLOW_LINK_BYTES_PER_S
        tokens = part * (1 + PROMPT_SHARE)
        sent = 2 * (self.num_ranks - 1) / self.num_ranks * 2 * tokens * self.model.hidden_size
        return self.stage_layers * (ALL_REDUCE_S + 2 * sent / link)

    def batch(self, sequence: int, limit: int) -> int:
        """Sequences of this length in one batch: at least 1, at most `limit`, with a CUDA graph."""
        return _graph_size(max(1, min(limit, self.cache_tokens // sequence)))


def _best(fitting: list[_Layout], sequence: int, max_num_seqs: int) -> _Layout:
    """Choose the layout, as `plan_pool` describes; the keys are in order of importance."""
    speeds = [one.tokens_per_s(one.batch(sequence, max_num_seqs)) for one in fitting]

    def merit(pair: tuple[_Layout, float]) -> tuple[float, ...]:
        one, speed = pair
        return one.replicas, speed, -one.num_stages, -one.num_gpus

    pairs = zip(fitting, speeds, strict=True)
    return max((p for p in pairs if p[1] * CLEARLY_FASTER >= max(speeds)), key=merit)[0]


def _graph_size(size: int) -> int:
    """The largest batch up to `size` that vLLM captures by default: 1, 2, 4 and multiples of 8."""
    return size // 8 * 8 if size >= 8 else 1 << (size.bit_length() - 1)


def _sizes(model: ModelShape, nodes: GpuNodes) -> Iterator[tuple[int, int]]:
    """The tensor- and pipeline-parallel sizes that vLLM accepts for the model on the nodes."""
    num_ranks = 1
    while num_ranks <= nodes.gpus_per_node:
        stages_per_node = nodes.gpus_per_node // num_ranks
        # With GPUs left over in each node, Ray would split a stage over two nodes.
        is_aligned = nodes.gpus_per_node % num_ranks == 0
        num_stages = stages_per_node * (nodes.num_nodes if is_aligned else 1)
        if model.splits_over(num_ranks):
            yield from ((num_ranks, pp) for pp in range(1, min(num_stages, model.num_layers) + 1))
        num_ranks *= 2


def _plan(layout: _Layout, context: int | None, max_num_seqs: int) -> PoolPlan:
    return PoolPlan(
        model=layout.model,
        nodes=layout.nodes,
        tensor_parallel_size=layout.num_ranks,
        pipeline_parallel_size=layout.num_stages,
        replicas=layout.replicas,
        max_num_seqs=max_num_seqs,
        max_model_len=context or min(layout.model.max_context, layout.cache_tokens),
        needs_placement_group=layout.num_nodes > 1,
        weights_gib_per_gpu=layout.weights / GIB,
        overhead_gib_per_gpu=layout.overhead / GIB,
        kv_cache_gib=layout.cache * layout.num_gpus / GIB,
        kv_cache_tokens=layout.cache_tokens,
        nominal_tokens_per_s=layout.tokens_per_s(max_num_seqs),
    )


def _check_limits(
    model: ModelShape,
    context: int | None,
    min_context: int,
    gpu_memory_utilization: float,
    max_num_seqs: int,
) -> None:
    if context is not None and not 0 < context <= model.max_context:
        raise InputError(
            f"a context of {context} tokens was requested, but {model.name} was made for "
            f"1 to {model.max_context}"
        )
    if min_context < 1:
        raise InputError(f"min_context must be at least 1, not {min_context}")
    if not 0 < gpu_memory_utilization <= 1:
        raise InputError(f"gpu_memory_utilization must be in (0, 1], not {gpu_memory_utilization}")
    if not 1 <= max_num_seqs <= 1024:
        raise InputError(f"max_num_seqs must be 1 to 1024, not {max_num_seqs}")


def _nothing_fits(
    model: ModelShape,
    nodes: GpuNodes,
    layouts: list[_Layout],
    context: int | None,
    needed: int,
    usable: float,
) -> InputError:
    """Why no engine fits, for the roomiest layout: the context is too long or the model too
    large."""
    best = max(layouts, key=lambda layout: (layout.cache_tokens, -layout.weights))
    where = f"{nodes.num_nodes} x {nodes.gpus_per_node} GPUs of {nodes.gpu_memory_gib:g} GiB"
    if context is not None and best.cache_tokens > 0:
        gib = context * model.kv_cache_bytes_per_token / GIB
        return InputError(
            f"a context of {context} tokens ({gib:.1f} GiB of key-value cache) does not fit next "
            f"to {model.name} on {where}: the most is {best.cache_tokens} tokens; ask for less, "
            f"quantise the model, or use {_enough(model, nodes, needed, usable)}"
        )
    weights, overhead = best.weights / GIB, best.overhead / GIB
    return InputError(
        f"{model.name} does not fit on {where}: its weights are {model.weight_bytes / GIB:.1f} GiB "
        f"of {nodes.num_gpus * nodes.gpu_memory_gib:.1f} GiB in all; split over {best.num_gpus} "
        f"GPU(s), each needs {weights:.1f} GiB for weights, {overhead:.1f} for overhead and a "
        f"cache for {needed} tokens, of the {usable / GIB:.1f} GiB that vLLM may take; "
        f"quantise the model, or use {_enough(model, nodes, needed, usable)}"
    )


def _enough(model: ModelShape, nodes: GpuNodes, needed: int, usable: float) -> str:
    """Describe the fewest GPUs of this size that hold an engine, in one node or in nodes of
    eight."""
    counts = [(1, 2), (1, 4), (1, 8), *((num_nodes, 8) for num_nodes in range(2, MOST_NODES + 1))]
    for num_nodes, gpus_per_node in counts:
        larger = GpuNodes(num_nodes, gpus_per_node, nodes.gpu_memory_gib)
        layouts = (_Layout(model, larger, tp, pp, usable) for tp, pp in _sizes(model, larger))
        if any(layout.cache_tokens >= needed for layout in layouts):
            nodes_of = f"{num_nodes} nodes of " if num_nodes > 1 else ""
            return f"{nodes_of}{gpus_per_node} or more GPUs of this size, or larger ones"
    return "larger GPUs"


def _describe_model(model: ModelShape) -> str:
    active = f" ({model.num_active_parameters / 1e9:.1f} active)" if model.experts else ""
    return (
        f"{model.name}: {model.num_parameters / 1e9:.1f} billion parameters{active}, "
        f"{model.weight_bytes / GIB:.1f} GiB of weights, "
        f"{model.kv_cache_bytes_per_token / 2**10:.0f} KiB of cache a token."
    )


def _describe_engines(plan: PoolPlan) -> str:
    experts = ", expert parallel" if plan.expert_parallel else ""
    spans = ", each over several nodes" if plan.needs_placement_group else ""
    return (
        f"On {plan.nodes.num_nodes} x {plan.nodes.gpus_per_node} GPUs of "
        f"{plan.nodes.gpu_memory_gib:g} GiB: engines at once {plan.replicas}{spans}, "
        f"GPUs an engine {plan.gpus_per_engine} (tensor parallel {plan.tensor_parallel_size}, "
        f"pipeline parallel {plan.pipeline_parallel_size}{experts})."
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """A config whose fields are read by name; older models use other names for them."""

    model: str
    values: Mapping[str, Any]

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of the fields that is present, else the default; 0 counts as missing.

        Raises `InputError` if there is neither.
        """
        found = next((name for name in names if self.values.get(name)), None)
        if found is None and default is not None:
            return default
        if found is None:
            raise InputError(
                f"the config of {self.model} has no {names[0]}; a config that relies on its "
                "class's defaults is written out by transformers' AutoConfig"
            )
        value = self.values[found]
        if not isinstance(value, int) or value < 0:
            raise InputError(f"the config of {self.model}: {found} is not a size: {value!r}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        return default if value is None else bool(value)

    @property
    def is_gemma(self) -> bool:
        """Gemma's class ties its embeddings, so its files do not state it."""
        return str(self.values.get("model_type", "")).startswith("gemma")


def with_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model as an engine serves it with `engine.options`: with the `quantization`
    of weights whose files are not quantised, and with a `kv_cache_dtype` of one byte per number.

    An unknown method changes nothing, so that the plan overestimates the memory.
    """
    served = dict(config)
    method = ONLINE_QUANTIZATION.get(str(options.get("quantization")))
    if method and not _text_config(config).get("quantization_config"):
        served["quantization_config"] = method
    if str(options.get("kv_cache_dtype", "")).startswith(("fp8", "int8")):
        served["kv_cache_value_bytes"] = 1.0
    return served


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the text model, which a multimodal model nests inside its config."""
    inner = config.get("text_config") or {}
    return dict(config) | {key: value for key, value in inner.items() if value is not None}


def _dtype_bytes(fields: _Fields) -> float:
    """Bytes of a number that is not quantised; a config without a dtype is assumed to use 16
    bits."""
    value = fields.values.get("dtype") or fields.values.get("torch_dtype") or "bfloat16"
    name = str(value).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise InputError(
            f"the config of {fields.model}: torch_dtype {name!r} is not one of "
            f"{sorted(DTYPE_BYTES)}"
        )
    return DTYPE_BYTES[name]


def _layer_bytes(fields: _Fields, dtype_bytes: float) -> float:
    """Bytes per parameter of the layers, from `quantization_config` if there is one.

    A group of weights shares a scale of 16 bits and a zero point that is as wide as a weight.
    """
    quantization = fields.values.get("quantization_config")
    if not quantization:
        return dtype_bytes
    bits, group = _bits_and_group(quantization)
    if not isinstance(bits, int) or not 0 < bits <= 16:
        raise InputError(
            f"the config of {fields.model}: the bits of its quantization_config "
            f"({quantization.get('quant_method')!r}) are not understood; give bytes_per_parameter"
        )
    is_grouped = isinstance(group, int) and group > 0
    return (bits + ((16 + bits) / group if is_grouped else 0)) / 8


def _bits_and_group(quantization: Mapping[str, Any]) -> tuple[Any, Any]:
    """Bits per weight, and how many weights share a scale (None: so many that it is negligible)."""
    method = quantization.get("quant_method")
    if method in {"fp8", "fbgemm_fp8"}:
        return 8, None
    if method == "mxfp4":
        return 4, 32
    if method == "bitsandbytes":
        return (4, 64) if quantization.get("load_in_4bit") else (8, None)
    if method == "compressed-tensors":
        groups = quantization.get("config_groups") or {}
        weights = next((group.get("weights") or {} for group in groups.values()), {})
        return weights.get("num_bits"), weights.get("group_size")
    return quantization.get("bits"), quantization.get("group_size")


def _experts(fields: _Fields, num_layers: int) -> Experts | None:
    """The experts, under any of the names in use; None for a dense model."""
    count = fields.integer("num_experts", "num_local_experts", "n_routed_experts", default=0)
    if count == 0:
        return None
    size = fields.integer("moe_intermediate_size", "intermediate_size")
    num_shared = fields.integer("n_shared_experts", "num_shared_experts", default=0)
    return Experts(
        count=count,
        per_token=fields.integer("num_experts_per_tok", "experts_per_token"),
        size=size,
        shared_size=fields.integer("shared_expert_intermediate_size", default=num_shared * size),
        num_layers=_num_sparse_layers(fields, num_layers),
    )


def _num_sparse_layers(fields: _Fields, num_layers: int) -> int:
    """Number of layers with experts: every `decoder_sparse_step`-th, without excluded ones."""
    step = fields.integer("decoder_sparse_step", default=1)
    first = fields.integer("first_k_dense_replace", default=0)
    dense = set(fields.values.get("mlp_only_layers") or [])
    return sum(
        (layer + 1) % step == 0 and layer >= first and layer not in dense
        for layer in range(num_layers)
    )


def _latent_attention(fields: _Fields) -> LatentAttention | None:
    if fields.values.get("kv_lora_rank") is None:
        return None
    return LatentAttention(
        query_rank=fields.integer("q_lora_rank", default=0),
        kv_rank=fields.integer("kv_lora_rank"),
        plain_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
    )


def _check_layer_types(fields: _Fields) -> None:
    """Refuse a model with other kinds of layers, whose numbers would be wrong."""
    unknown = set(fields.values.get("layer_types") or []) - COUNTED_LAYERS
    if unknown:
        raise InputError(
            f"the config of {fields.model}: layer_types has {sorted(unknown)}; only attention "
            "layers can be planned for"
        )
