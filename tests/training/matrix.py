"""Many trainings in one Ray Train session, and the same training as one plain process.

A cell of the matrix is a `TrainingJob` under a name. The session starts its workers once; each cell
then runs the trainer's own steps: load, train, save. The trainer's logits on a fixed row are also
compared with those of the folder that it saved, loaded again.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.models.chat_template import end_turn, load_tokenizer, prompt_ids, target_ids
from cluster.models.model import Model
from cluster.store.folder import Folder
from cluster.tracking import TrackingSettings
from tests.training.preferences import (
    add_references,
    dpo_terms,
    kto_terms,
    preference_rows,
)
from training.checks import linear_layers
from training.data.batches import batch_of_step, epoch_order, learning_rate, mix_quotas
from training.deepspeed_engine import prepare_process
from training.loop import Progress, StepBoard, TrainingJob, add_gradients, load, train
from training.saving import save_trained
from training.settings import LoraSettings, PlacedTraining, TrainingSettings

PROBE = list(range(10, 30))
"""The row on which logits are compared."""

BASE = PlacedTraining(
    learning_rate=1e-3,
    num_epochs=2,
    global_batch_size=8,
    micro_batch_size=2,
    warmup_ratio=0.1,
    weight_decay=0.01,
    max_length=64,
    row_tokens=160,
    lora=LoraSettings(rank=4, alpha=8),
    tracking=TrackingSettings(tensorboard=False),
)

STAGES: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero3-offload": {"zero_stage": 3, "offload_optimizer": True, "offload_weights": True},
}
# An adapter starts at zero and has to go further.
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "learning_rate": 1e-2},
}
LAYOUTS = {"padded": False, "packed": True}
CHECKPOINTED = {"gradient_checkpointing": True}
DTYPES = ("float32", "bfloat16")

# float32: the same sums in another order. bfloat16: activations have eight bits, and Adam divides
# a gradient by its own size, so where it is near zero the sign of a whole step is chance.
TOLERANCES = {
    "float32": {"loss": 1e-5, "norm": 1e-4, "way": 1e-4, "logits": 1e-5},
    "bfloat16": {"loss": 5e-3, "norm": 2e-2, "way": 0.05, "logits": 2e-2},
}
"""Of losses absolute; of gradient norms relative; of the weights' distance as a part of the way
that they went in training; of logits relative to their maximum."""


def sum_rows(model: Path) -> list[dict[str, Any]]:
    """20 examples as the pipeline makes them: a chat prompt, an answer, the end of the turn."""
    tokenizer = load_tokenizer(str(model))
    rows = []
    for index in range(20):
        question = [{"role": "user", "content": f"{index} + {7 * index % 11}?"}]
        answer = target_ids(tokenizer, f"It is {index + 7 * index % 11}." + "!" * (index % 5))
        rows.append(
            {
                "example_id": f"sums/{index}",
                "question_id": f"sums/{index}",
                "prompt_token_ids": prompt_ids(tokenizer, question, {}),
                "target_token_ids": end_turn(answer, tokenizer.eos_token_id),
                "dataset": "few" if index < 5 else "many",
                "vote_share": (1 + index % 4) / 4,
            }
        )
    return rows


def cells(dtype: str) -> dict[str, PlacedTraining]:
    """All stages, methods and layouts in one type: `zero2/lora/packed/float32` and so on."""
    return {
        f"{stage}/{method}/{layout}/{dtype}": PlacedTraining.model_validate(
            BASE.model_dump()
            | STAGES[stage]
            | METHODS[method]
            | {"packing": LAYOUTS[layout], "dtype": dtype}
        )
        for stage in STAGES
        for method in METHODS
        for layout in LAYOUTS
    }


@dataclass(frozen=True)
class Trained:
    """What a cell left behind."""

    folder: Path
    progress: dict[str, Any]
    steps: list[dict[str, float]]
    logits_off: float
    """Largest difference between the trainer's logits and the saved folder's, of their maximum."""


def train_cells(
    settings: dict[str, PlacedTraining], model: Path, examples: Folder, output: Path
) -> dict[str, Trained]:
    """Train every cell on two CPU workers, in one session."""
    import ray

    board = ray.remote(num_cpus=0)(StepBoard).remote()
    identity = Model(identity=str(model), path=str(model), cache="unused")
    jobs = {
        name: TrainingJob(identity, examples, Folder.open(str(output / name)), one, board=board)
        for name, one in settings.items()
    }
    found = on_two_workers(partial(_train_all, jobs), output)
    taken, _ = ray.get(board.take.remote())
    steps = iter(taken)
    ray.kill(board)
    return {
        name: Trained(
            output / name,
            progress,
            [next(steps) for _ in range(progress["num_steps"])],
            logits_off,
        )
        for name, (progress, logits_off) in found.items()
    }


def gradients_of_cells(
    settings: dict[str, PlacedTraining], model: Path, examples: Folder, output: Path
) -> dict[str, dict[str, Any]]:
    """The gradient of each trained tensor in the first step of every cell."""
    identity = Model(identity=str(model), path=str(model), cache="unused")
    folder = Folder.open(str(output))
    jobs = {name: TrainingJob(identity, examples, folder, one) for name, one in settings.items()}
    found: dict[str, dict[str, Any]] = on_two_workers(partial(_gradients_of_all, jobs), output)
    return found


def on_two_workers(loop: Callable[[], Any], output: Path) -> Any:
    """What the first of two Ray Train workers returns."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="matrix",
            storage_path=str(output),
            worker_runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}},
        ),
    )
    return trainer.fit().return_value


def _gradients_of_all(jobs: dict[str, TrainingJob]) -> dict[str, dict[str, Any]]:
    """On each worker: one cell after the other."""
    return {name: _gradients(job) for name, job in jobs.items()}


def _gradients(job: TrainingJob) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_grad

    prepare_process(job.settings)
    engine, data = load(job)
    add_gradients(engine, data.share(0), job.settings)
    gradients = {
        name: safe_get_full_grad(parameter).float().numpy()
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }
    remove_engine(engine)
    return gradients


def remove_engine(engine: Any) -> None:
    """Where one engine follows the other in one process, its hooks and buffers have to go."""
    engine.destroy()
    gc.collect()


def _train_all(jobs: dict[str, TrainingJob]) -> dict[str, tuple[dict[str, Any], float]]:
    """On each worker: one cell after the other."""
    return {name: _train_one(job) for name, job in jobs.items()}


def _train_one(job: TrainingJob) -> tuple[dict[str, Any], float]:
    import torch

    prepare_process(job.settings)
    engine, data = load(job)
    progress = train(engine, data, Progress(), job)
    logits = _logits(engine)
    save_trained(engine, job.model.path, job.output, job.settings)
    remove_engine(engine)
    off = 0.0
    if torch.distributed.get_rank() == 0:
        from transformers import AutoModelForCausalLM

        saved = AutoModelForCausalLM.from_pretrained(job.output.path).eval()
        again = _logits(saved)
        off = float((again - logits).abs().max() / logits.abs().max())
    return asdict(progress), off


def _logits(model: Any) -> Any:
    import torch

    row = torch.tensor([PROBE])
    boundaries = torch.tensor([0, len(PROBE)], dtype=torch.int32)
    model.eval()
    with torch.no_grad():
        # The boundaries are what packed attention needs; the others take no notice.
        output = model(
            input_ids=row,
            position_ids=torch.arange(len(PROBE))[None],
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=boundaries,
            max_length_q=len(PROBE),
            max_length_k=len(PROBE),
            use_cache=False,
        )
    return output.logits.float()


@dataclass(frozen=True)
class Reference:
    """A training as one plain process: no padding, no accumulation, no sharding, no DeepSpeed."""

    losses: list[float]
    norms: list[float]
    start: dict[str, Any]
    weights: dict[str, Any]
    """As they are saved: adapters merged, in the training's type."""


def train_plainly(model: Path, examples: Folder, settings: TrainingSettings) -> Reference:
    """Train with torch alone, in float32 or with a float32 copy of bfloat16 weights."""
    import torch

    rows = learnt_rows(examples, settings)
    epochs = epoch_orders(rows, settings)
    module = load_plainly(model, settings)
    if settings.objective != "sft":
        add_references(module, rows)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    masters = [parameter.detach().clone().float() for parameter in trained]
    start = saved_weights(model)
    optimizer = torch.optim.AdamW(masters, weight_decay=settings.weight_decay)
    per_epoch = -(-len(rows) // settings.global_batch_size)
    num_steps = per_epoch * settings.num_epochs
    losses, norms = [], []
    for step in range(num_steps):
        order = epochs[step // per_epoch]
        batch = [rows[i] for i in batch_of_step(order, step, settings.global_batch_size)]
        total = _add_gradients(trained, masters, _terms(module, batch, settings))
        norm = torch.nn.utils.clip_grad_norm_(masters, settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(
            step, num_steps, settings.learning_rate, settings.warmup_ratio
        )
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(trained, masters, strict=True):
                parameter.copy_(master)
        losses.append(total)
        norms.append(float(norm))
    if settings.method == "lora":
        module = module.merge_and_unload(safe_merge=True)
    return Reference(losses, norms, start, dict(module.state_dict()))


def gradients_plainly(model: Path, examples: Folder, settings: TrainingSettings) -> dict[str, Any]:
    """The gradient of each trained tensor in the first step, with torch alone in float32."""
    rows = learnt_rows(examples, settings)
    module = load_plainly(model, settings)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    masters = [parameter.detach().clone() for parameter in trained.values()]
    batch = batch_of_step(epoch_orders(rows, settings)[0], 0, settings.global_batch_size)
    terms = _terms(module, [rows[i] for i in batch], settings)
    _add_gradients(list(trained.values()), masters, terms)
    return {name: m.grad.numpy() for name, m in zip(trained, masters, strict=True)}


def learnt_rows(examples: Folder, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The examples that are learnt, each with its weight."""
    if settings.objective != "sft":
        return preference_rows(examples, settings)
    rows = [r for r in examples.read_table().to_pylist() if length(r) <= settings.max_length]
    for row in rows:
        row["weight"] = row[settings.weight_by] if settings.weight_by else 1.0
    return rows


def load_plainly(model: Path, settings: TrainingSettings) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(settings.seed)
    module = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings.dtype))
    return _with_adapters(module, settings) if settings.method == "lora" else module


def epoch_orders(rows: list[dict[str, Any]], settings: TrainingSettings) -> list[list[int]]:
    """The order of the rows in each epoch."""
    names = [row["dataset"] for row in rows]
    quotas = (
        mix_quotas(Counter(names), settings.dataset_weights, settings.dataset_temperature)
        if settings.is_mixed
        else None
    )
    ids = [row["example_id"] for row in rows]
    return [
        epoch_order(ids, settings.seed, epoch, quotas, names)
        for epoch in range(settings.num_epochs)
    ]


def _with_adapters(module: Any, settings: TrainingSettings) -> Any:
    import peft

    targets = settings.lora.target_modules
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    return peft.get_peft_model(module, config, autocast_adapter_dtype=False)


def _add_gradients(trained: list[Any], masters: list[Any], terms: Iterable[Any]) -> float:
    """Set the masters' gradients to those of the sum of a loss's terms; returns that loss."""
    import torch

    for master in masters:
        master.grad = torch.zeros_like(master)
    total = 0.0
    for term in terms:
        grads = torch.autograd.grad(term, trained)
        for master, grad in zip(masters, grads, strict=True):
            master.grad += grad.float()
        total += float(term.detach())
    return total


def _terms(module: Any, batch: list[dict[str, Any]], settings: TrainingSettings) -> Iterator[Any]:
    """The loss of a batch as a sum."""
    if settings.objective == "dpo":
        return dpo_terms(module, batch, settings.dpo)
    if settings.objective == "kto":
        return kto_terms(module, batch, settings.kto)
    return _sft_terms(module, batch)


def _sft_terms(module: Any, batch: list[dict[str, Any]]) -> Iterator[Any]:
    """An example at a time."""
    total_weight = sum(row["weight"] * len(row["target_token_ids"]) for row in batch)
    for row in batch:
        yield row["weight"] * token_losses(module, row).sum() / total_weight


def length(row: dict[str, Any]) -> int:
    return len(row["prompt_token_ids"]) + len(row["target_token_ids"])


def token_losses(model: Any, row: dict[str, Any]) -> Any:
    """The cross entropy of each target token of one example."""
    import torch

    tokens = torch.tensor(row["prompt_token_ids"] + row["target_token_ids"])
    logits = model(input_ids=tokens[None]).logits[0]
    first = len(row["prompt_token_ids"])
    return torch.nn.functional.cross_entropy(
        logits[first - 1 : -1].float(), tokens[first:], reduction="none"
    )


def saved_weights(folder: Path) -> dict[str, Any]:
    """The weights as transformers loads them; nothing may be missing or unknown."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of two weights at the same place."""
    assert set(one) == set(other)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in other)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between two sets of weights, as the root of the sum of all squares."""
    assert set(one) == set(other)
    squares = (float((one[name].double() - other[name].double()).square().sum()) for name in other)
    return math.sqrt(sum(squares))


def num_linear_layers(folder: Path) -> int:
    """Of a saved model, without its output head."""
    from transformers import AutoModelForCausalLM

    return len(linear_layers(AutoModelForCausalLM.from_pretrained(folder)))
