"""The matrix of `matrix.py` in other training loops: transformers' Trainer and TRL's SFTTrainer.

    python -m tests.training.other_loops [--loop trainer|trl] [--cells WORD] [--examples N] [--json]

trains all cells whose name holds the word, on two CPU workers in one Ray Train session, and prints
a row for each::

    cell                            loss  weights  saved  resumed
    zero2/full/padded/float32      5e-07    2e-06  whole  0e+00

* loss: the largest difference of a logged loss from plain torch's (`train_plainly`).
* weights: the distance of the trained weights from plain torch's, of the way that those went.
* saved: whether transformers or peft loads what `save_model` wrote, with all that was trained.
* resumed: the distance between the weights of an undisturbed training and of a second one that
  began at the first one's checkpoint of step 3, of the way too.

A `!` marks values beyond the bounds of our own loop's tests, and an error's first line in
the place of what it prevented. As in our loop are the model, its adapters, AdamW, the learning
rates, the DeepSpeed config, and which examples form a step: 8 are 2 workers x 2 examples x 2
micro-batches, and the last step of an epoch has 4. Packed are here the two examples of a
micro-batch (`DataCollatorWithFlattening`, TRL's `padding_free`): whatever packs more of them into
a row changes the steps, because these loops count rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.models.model import Model
from cluster.store.folder import Folder
from tests.conftest import write_model
from tests.training.conftest import write_rows
from tests.training.matrix import (
    DTYPES,
    TOLERANCES,
    Reference,
    cells,
    distance,
    epoch_orders,
    largest_difference,
    learnt_rows,
    load_plainly,
    num_linear_layers,
    on_two_workers,
    remove_engine,
    saved_weights,
    sum_rows,
    train_plainly,
)
from training.data.batches import Example, labels_of, learning_rate, steps_per_epoch
from training.deepspeed_engine import deepspeed_config, prepare_process
from training.loop import TrainingJob
from training.saving import save_trained
from training.settings import PlacedTraining

LOOPS = ("trainer", "trl")
CHECKPOINT = 3
"""The step from which the second training of a cell begins."""


@dataclass(frozen=True)
class Told:
    """What the first worker says of a cell."""

    losses: list[float]
    errors: dict[str, str]
    """By what was tried: train, save, resume."""


@dataclass(frozen=True)
class Row:
    """What is printed of a cell; None or "" where an error prevented it."""

    cell: str
    loss: float | None = None
    weights: float | None = None
    saved: str = ""
    resumed: float | None = None
    errors: dict[str, str] | None = None


# --- on each worker ----------------------------------------------------------------------------


def train_all(loop: str, jobs: dict[str, TrainingJob]) -> dict[str, Told]:
    """One cell after the other; the first worker's errors are told and the next cell begins."""
    return {name: _train_cell(loop, job) for name, job in jobs.items()}


def _train_cell(loop: str, job: TrainingJob) -> Told:
    prepare_process(job.settings)
    errors: dict[str, str] = {}
    losses = _try(errors, "train", partial(_train, loop, job, None, errors))
    if losses:
        checkpoint = f"{job.output.path}/checkpoint-{CHECKPOINT}"
        _try(errors, "resume", partial(_train, loop, job, checkpoint, errors))
    return Told(losses or [], errors)


def _try(errors: dict[str, str], what: str, call: Callable[[], Any]) -> Any:
    """What the call returns; None where it raises, and then the error's first line is noted."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001, which cells fail is what is asked
        errors[what] = f"{type(error).__name__}: {error}".splitlines()[0]
        return None


def _train(
    loop: str, job: TrainingJob, checkpoint: str | None, errors: dict[str, str]
) -> list[float]:
    """Train and save; returns the logged losses.

    Saved twice: with our own `save_trained`, which checks what it writes, and with `save_model`.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    trainer = build_trainer(loop, job)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.deepspeed.zero_optimization_stage() == job.settings.zero_stage
        if checkpoint is None:
            _try(errors, "save", partial(trainer.save_model, f"{job.output.path}/saved"))
        # Else the first worker would split over all of them what it reads alone to check it.
        unset_hf_deepspeed_config()
        place = job.output.child("resumed" if checkpoint else "trained")
        save_trained(trainer.deepspeed, job.model.path, place, job.settings)
    finally:
        if trainer.deepspeed is not None:
            remove_engine(trainer.deepspeed)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def build_trainer(loop: str, job: TrainingJob) -> Any:
    """The other loop with a cell's model and examples, ready to train."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    settings, model = job.settings, Path(job.model.path)
    rows = learnt_rows(job.examples, settings)
    trainer_class, arguments_class = _classes(loop)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    # Before the model: while they live, transformers splits its weights as ZeRO-3 wants.
    arguments = arguments_class(**_arguments(loop, settings, job.output.path))
    return _as_ours(trainer_class, settings, epoch_orders(rows, settings))(
        model=load_plainly(model, settings),
        args=arguments,
        data_collator=_collator(loop, settings, tokenizer),
        train_dataset=Dataset.from_list([_ids_and_labels(row) for row in rows]),
        processing_class=tokenizer,
    )


def _classes(loop: str) -> tuple[Any, Any]:
    if loop == "trl":
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer, SFTConfig
    from transformers import Trainer, TrainingArguments

    return Trainer, TrainingArguments


def _as_ours(trainer_class: Any, settings: PlacedTraining, epochs: list[list[int]]) -> Any:
    """The class with our examples' order, optimizer and learning rates.

    With DeepSpeed it forgets an optimizer and a scheduler that are given to it.
    """
    import torch

    per_epoch = steps_per_epoch(len(epochs[0]), settings.global_batch_size)

    class AsOurs(trainer_class):  # type: ignore[misc]
        optimizer: Any

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                self.optimizer = torch.optim.AdamW(
                    [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                )
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def part_of_peak(step: int) -> float:
                return learning_rate(step, num_training_steps, 1.0, settings.warmup_ratio)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, part_of_peak)
            return self.lr_scheduler

        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(
                self.train_dataset,
                batch_size=settings.micro_batch_size,
                sampler=_Order(epochs, lambda: self.state.global_step // per_epoch),
                collate_fn=self.data_collator,
            )
            return self.accelerator.prepare(loader)

    return AsOurs


class _Order:
    """A sampler: the examples in the order of the epoch that begins."""

    def __init__(self, epochs: list[list[int]], epoch: Callable[[], int]) -> None:
        self._epochs, self._epoch = epochs, epoch

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __iter__(self) -> Iterator[int]:
        return iter(self._epochs[self._epoch()])


def _arguments(loop: str, settings: PlacedTraining, folder: str) -> dict[str, Any]:
    """The steps are those of padded examples, also where two of them share a row."""
    config = deepspeed_config(settings.model_copy(update={"packing": False}), settings.num_workers)
    if settings.zero_stage == 3:
        # Without it, `save_model` writes no weights.
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "output_dir": folder,
        "deepspeed": config,
        "per_device_train_batch_size": config["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": config["gradient_accumulation_steps"],
        "num_train_epochs": settings.num_epochs,
        "learning_rate": settings.learning_rate,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": CHECKPOINT,
        "report_to": "none",
        "disable_tqdm": True,
        **({"max_length": None, "padding_free": settings.packing} if loop == "trl" else {}),
    }


def _collator(loop: str, settings: PlacedTraining, tokenizer: Any) -> Any:
    """TRL makes its own."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

    if loop == "trl":
        return None
    return DataCollatorWithFlattening() if settings.packing else DataCollatorForSeq2Seq(tokenizer)


def _ids_and_labels(row: dict[str, Any]) -> dict[str, list[int]]:
    example = Example(row["example_id"], row["prompt_token_ids"], row["target_token_ids"])
    return {
        "input_ids": [*example.prompt, *example.target],
        "labels": labels_of(example),
    }


# --- on the driver -----------------------------------------------------------------------------


def run(loop: str, wanted: dict[str, PlacedTraining], num_examples: int, folder: Path) -> list[Row]:
    """Train the wanted cells in the other loop and compare each with plain torch."""
    model, examples = folder / "model", Folder.open(str(folder / "examples"))
    write_model(model)
    write_rows(examples, "part-000.parquet", sum_rows(model)[:num_examples])
    identity = Model(identity=str(model), path=str(model), cache="unused")
    jobs = {
        name: TrainingJob(identity, examples, Folder.open(str(folder / name)), settings)
        for name, settings in wanted.items()
    }
    told: dict[str, Told] = on_two_workers(partial(train_all, loop, jobs), folder)
    references: dict[tuple[str, str], Reference] = {}
    rows = []
    for name, settings in wanted.items():
        key = (settings.method, settings.dtype)
        if key not in references:
            references[key] = train_plainly(model, examples, settings)
        rows.append(_row(name, settings, told[name], folder, references[key]))
    return rows


def _row(name: str, settings: PlacedTraining, told: Told, folder: Path, expected: Reference) -> Row:
    errors = dict(told.errors)
    if "train" in errors:
        return Row(name, errors=errors)
    way = distance(expected.weights, expected.start)
    trained = saved_weights(folder / name / "trained")
    saved, resumed = "", None
    if "save" not in errors:
        check = partial(_saved, folder / name / "saved", folder / "model", settings, trained)
        saved = _try(errors, "save", check) or ""
    if "resume" not in errors:
        resumed = distance(saved_weights(folder / name / "resumed"), trained) / way
    pairs = zip(told.losses, expected.losses, strict=True)
    return Row(
        name,
        loss=max(abs(one - other) for one, other in pairs),
        weights=distance(trained, expected.weights) / way,
        saved=saved,
        resumed=resumed,
        errors=errors,
    )


def _saved(folder: Path, model: Path, settings: PlacedTraining, trained: dict[str, Any]) -> str:
    """ "whole", or how far from what was trained; raises where it cannot be loaded."""
    off = largest_difference(_load_saved(folder, model, settings), trained)
    return "whole" if off == 0 else f"off by {off:.0e}"


def _load_saved(folder: Path, model: Path, settings: PlacedTraining) -> dict[str, Any]:
    if settings.method == "full":
        return saved_weights(folder)
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    adapter = load_file(folder / "adapter_model.safetensors")
    assert len(adapter) == 2 * num_linear_layers(model), f"the adapter has {len(adapter)} tensors"
    assert all(tensor.numel() for tensor in adapter.values()), "the adapter has empty tensors"
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, settings.dtype))
    merged = peft.PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
    return dict(merged.merge_and_unload(safe_merge=True).state_dict())


def print_rows(rows: Sequence[Row]) -> None:
    print(f"{'cell':36}{'loss':>8}{'weights':>9}  {'saved':7}resumed")
    for row in rows:
        off = TOLERANCES[row.cell.split("/")[-1]]
        errors = row.errors or {}
        if "train" in errors:
            print(f"{row.cell:36}{errors['train']}")
            continue
        loss, weights, resumed = (
            _number(value, bound)
            for value, bound in (
                (row.loss, off["loss"]),
                (row.weights, off["way"]),
                (row.resumed, off["way"]),
            )
        )
        saved = row.saved or errors["save"]
        print(f"{row.cell:36}{loss:>8}{weights:>9}  {saved:7}{resumed or errors['resume']}")


def _number(value: float | None, bound: float) -> str:
    return "" if value is None else f"{value:.0e}" + ("!" if value > bound else " ")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.training.other_loops",
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
    )
    parser.add_argument("--loop", choices=LOOPS, default=LOOPS[0])
    parser.add_argument("--cells", default="", help="only those whose name holds this")
    parser.add_argument("--examples", type=int, default=20, help="fewer of the 20")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    if options.loop == "trl" and importlib.util.find_spec("trl") is None:
        parser.error("the loop trl needs the package: make setup EXTRAS=bench")
    wanted = {
        name: settings
        for dtype in DTYPES
        for name, settings in cells(dtype).items()
        if options.cells in name
    }
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # TRL tells its makers what it trains
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(options.loop, wanted, options.examples, Path(folder))
    ray.shutdown()
    print_rows(rows)
    if options.json:
        print(json.dumps({"loop": options.loop, "cells": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
