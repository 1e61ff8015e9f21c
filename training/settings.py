"""The `training` branch of the config: what is trained, and on which hardware.

Example, the paper's set-up on eight GPUs::

    training:
      method: full
      zero_stage: 3
      learning_rate: 1e-6
      global_batch_size: 16
      micro_batch_size: 2
      num_workers: 8
      gpus_per_worker: 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from cluster.settings import OPERATIONAL, Neutral, Settings
from cluster.tracking import TrackingSettings
from training.objectives import OBJECTIVES
from training.objectives.dpo import DpoSettings
from training.objectives.kto import KtoSettings

Auto = Literal["auto"]
"""A value that `training.placement` decides when the training starts."""


def _auto_or(allowed: Callable[[int], bool], words: str) -> pydantic.BeforeValidator:
    """Refuse, in one sentence, a value that is neither `auto` nor an allowed number."""

    def check(value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value != "auto" and not (is_number and allowed(value)):
            raise ValueError(f"should be {words}, not {value!r}")
        return value

    return pydantic.BeforeValidator(check)


_AT_LEAST_1 = _auto_or(lambda number: number >= 1, "auto or a whole number of at least 1")
_0_OR_1 = _auto_or(lambda number: number in (0, 1), "auto, 0 or 1")


class LoraSettings(Settings):
    """Low-rank adapters (arXiv 2106.09685); used only with `method: lora`."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Columns of the two low-rank factors."""

    alpha: Annotated[int, Field(ge=1)] = 32
    """The update is scaled by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is dropped while training."""

    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, or all-linear for every one except the output
    head; for a mixture of experts they have to be named."""


class TrainingSettings(Settings):
    """How the model is fine-tuned on the selected reasoning paths."""

    method: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters that are merged into the weights afterwards."""

    lora: LoraSettings = LoraSettings()
    """The shape of the adapters; no effect on full fine-tuning."""

    objective: Literal["sft", "dpo", "kto"] = "sft"
    """What is learned: the kept paths (sft); a preference for them over wrong ones of the same
    questions, in pairs (dpo); which paths are right and which are wrong (kto)."""

    dpo: DpoSettings = DpoSettings()
    """The terms of `objective: dpo`; no effect on the others."""

    kto: KtoSettings = KtoSettings()
    """The terms of `objective: kto`; no effect on the others."""

    start_from: Literal["base", "previous"] = "base"
    """Tune the base model in each round (as in the paper), or the previous round's model."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Peak of the schedule, which is a linear warm-up and then a cosine to zero."""

    num_epochs: Annotated[int, Field(ge=1)] = 3
    """Passes over the examples, each in a different order."""

    max_steps: Annotated[Annotated[int, Field(ge=1)] | None, Neutral(None)] = None
    """Stop after this many steps, anywhere in an epoch; the schedule of the learning rate ends
    there too. With enough num_epochs to reach it, all arms of a comparison train equally long.
    null trains for num_epochs."""

    max_learned_tokens: Annotated[Annotated[int, Field(ge=1)] | None, Neutral(None)] = None
    """Stop after the step in which the targets of all steps together reach this many tokens; the
    schedule ends there too. So arms whose targets differ in length learn from equally many; null
    sets no limit."""

    epochs_growth: Annotated[float, Field(ge=1)] = 1.0
    """Each round makes this many times the passes of the previous one, rounded to whole passes
    (STaR, arXiv 2203.14465, increases the steps by a fifth in each round)."""

    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples per step, over all workers and accumulated micro-batches; for dpo, pairs."""

    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the steps during which the learning rate rises."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, on every trained weight."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm above which gradients are scaled down; 0 turns this off."""

    max_length: Annotated[int, Field(ge=2)] = 2048
    """Limit on the tokens of prompt and target together."""

    too_long: Literal["drop", "truncate"] = "drop"
    """What happens to a longer example: drop leaves it out; truncate cuts its target, so that the
    end of the turn is not learned from it. Both are counted. An example whose prompt alone is too
    long is left out."""

    min_examples: Annotated[int | None, Field(ge=1), OPERATIONAL] = None
    """Refuse to train on fewer examples; null is `global_batch_size`, which fills one batch."""

    mix: Literal["joint", "per_dataset"] = "joint"
    """One model on the examples of all datasets, or one model per dataset (as in the paper)."""

    dataset_weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Relative weight of each dataset among the trained examples; null keeps the proportions."""

    dataset_temperature: Annotated[float, Field(gt=0)] = 1.0
    """A dataset of n examples gets a share proportional to n^(1/temperature): 1 keeps the
    proportions, and a high value makes all shares equal (arXiv 1910.10683)."""

    weight_by: str | None = None
    """Column of the examples with the weight of an example's tokens, such as vote_share; null
    weights all equally."""

    seed: int = 0
    """Determines the order of the examples, the adapters' initial weights and the dropout."""

    dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Type of the forward pass and of the saved weights; the optimizer keeps float32 copies. auto
    is bfloat16 if all workers' processors or GPUs compute it fast, otherwise float32."""

    zero_stage: Annotated[int, Field(ge=0, le=3), OPERATIONAL] = 2
    """DeepSpeed ZeRO: what is split over the workers. 0: nothing, 1: the optimizer's state, 2: also
    the gradients, 3: also the weights. Stage 0 in bfloat16 also accumulates gradients in it."""

    micro_batch_size: Annotated[int, Field(ge=1), OPERATIONAL] = 4
    """Examples that go through the model at once on one worker; lower it if memory is short."""

    packing: Annotated[bool, OPERATIONAL] = False
    """Put examples one after another into rows of `row_tokens` instead of padding them; each
    attends to itself only, and the loss is the same. `micro_batch_size` has no effect then."""

    row_tokens: Annotated[int | None, Field(ge=2), OPERATIONAL] = None
    """Token limit of a packed row, which goes through the model at once; null is `max_length`, or
    twice that for dpo, because both answers of a pair share a row."""

    gradient_checkpointing: Annotated[bool, OPERATIONAL] = False
    """Recompute activations in the backward pass: less memory, but about a third more time."""

    offload_optimizer: Annotated[bool, OPERATIONAL] = False
    """Keep the optimizer's state in host memory and update the weights there. Without a GPU, it is
    there anyway."""

    offload_weights: Annotated[bool, OPERATIONAL] = False
    """Keep the split weights in host memory as well; zero_stage 3 only."""

    offload_folder: Annotated[str | None, OPERATIONAL] = None
    """A folder on a fast local disk of every node, for offloaded state instead of host memory.
    zero_stage 3 only; DeepSpeed needs libaio for it."""

    checkpoint_every_n_steps: Annotated[int, Field(ge=0), OPERATIONAL] = 0
    """Steps between two checkpoints, from which a killed run continues; 0 writes none."""

    checkpoint_every_s: Annotated[float | None, Field(gt=0), OPERATIONAL] = None
    """Seconds between two checkpoints, each written after the current step; null writes none by
    time. A checkpoint has 14 bytes per trained parameter in bfloat16 (112 GB for 8 billion), and
    the training waits for minutes until it is on storage, so hours are a sensible interval."""

    keep_checkpoints: Annotated[int, Field(ge=1), OPERATIONAL] = 1
    """How many of the latest checkpoints are kept on storage."""

    num_workers: Annotated[int | Auto, _AT_LEAST_1, OPERATIONAL] = "auto"
    """Processes that share one training, one per GPU. auto uses all GPUs of the cluster that the
    batch can be split over; on CPUs, as many workers as the batch and the cores allow."""

    cpus_per_worker: Annotated[int | Auto, _AT_LEAST_1, OPERATIONAL] = "auto"
    """CPU cores of a worker, which is also its number of threads. auto divides the cores among the
    workers of a node if the CPU trains or updates offloaded weights; otherwise a worker with a GPU
    gets 1."""

    gpus_per_worker: Annotated[int | Auto, _0_OR_1, OPERATIONAL] = "auto"
    """GPUs of a worker: 0 trains on the CPU over gloo, 1 on a GPU over NCCL. auto is 1 if the
    cluster has GPUs."""

    check_memory: Annotated[bool, OPERATIONAL] = True
    """Refuse a training that is estimated to need more memory than a worker has."""

    tracking: Annotated[TrackingSettings, OPERATIONAL] = TrackingSettings()
    """TensorBoard, Weights & Biases, MLflow."""

    max_failures: Annotated[int, Field(ge=0), OPERATIONAL] = 1
    """How often a failed worker group is restarted before the run stops."""

    def of_round(self, number: int) -> TrainingSettings:
        """The settings of one round, counted from 0."""
        num_epochs = round(self.num_epochs * self.epochs_growth**number)
        return self.model_copy(update={"num_epochs": num_epochs, "epochs_growth": 1.0})

    @property
    def makes_checkpoints(self) -> bool:
        """Whether checkpoints are written even if the training is not asked to end."""
        return self.checkpoint_every_n_steps > 0 or self.checkpoint_every_s is not None

    @property
    def is_mixed(self) -> bool:
        """Whether an epoch uses some examples more often than others."""
        return self.dataset_weights is not None or self.dataset_temperature != 1

    @property
    def sequences_per_example(self) -> int:
        """Rows of an unpacked micro-batch that an example needs."""
        return OBJECTIVES[self.objective].sequences_per_example

    @property
    def tokens_per_row(self) -> int:
        """Token limit of a packed row."""
        return self.row_tokens or self.longest_example

    @property
    def longest_example(self) -> int:
        """Token limit of the sequences that must share one packed row."""
        return self.max_length * self.sequences_per_example

    @pydantic.model_validator(mode="after")
    def _rows_hold_the_longest(self) -> TrainingSettings:
        if self.tokens_per_row < self.longest_example:
            twice = "twice " if self.sequences_per_example == 2 else ""
            raise ValueError(
                f"row_tokens {self.row_tokens} is less than {twice}max_length {self.max_length}: "
                "an example of that length fits into no row; raise one or lower the other"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _preferences_teach_something(self) -> TrainingSettings:
        if not any(OBJECTIVES[self.objective].weights(self)):
            raise ValueError(f"{self.objective}: both weights are 0, so nothing is learned")
        return self

    @pydantic.model_validator(mode="after")
    def _only_examples_are_weighted(self) -> TrainingSettings:
        if self.weight_by is not None and OBJECTIVES[self.objective].needs_wrong_paths:
            raise ValueError(
                f"weight_by is for objective sft, whose examples have weights; leave it out for "
                f"objective {self.objective}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _mix_is_one_of_three(self) -> TrainingSettings:
        if self.dataset_weights is not None and self.dataset_temperature != 1:
            raise ValueError("give dataset_weights or dataset_temperature, not both")
        if self.mix == "per_dataset" and self.is_mixed:
            raise ValueError("mix: per_dataset mixes nothing; leave out the weights or temperature")
        return self

    def splits_over(self, num_workers: int) -> bool:
        """Whether each of this many workers gets examples of a step, in whole micro-batches."""
        if self.packing:
            return num_workers <= self.global_batch_size
        return self.global_batch_size % (num_workers * self.micro_batch_size) == 0

    @pydantic.model_validator(mode="after")
    def _batch_fills_the_workers(self) -> TrainingSettings:
        workers = 1 if self.num_workers == "auto" else self.num_workers
        if self.splits_over(workers):
            return self
        if self.packing:
            raise ValueError(
                f"a step of {self.global_batch_size} examples (global_batch_size) gives nothing to "
                f"{workers - self.global_batch_size} of {workers} workers (num_workers); set "
                f"num_workers to {self.global_batch_size} or less, or raise global_batch_size"
            )
        unit = workers * self.micro_batch_size
        names = "num_workers x micro_batch_size" if workers > 1 else "micro_batch_size"
        product = f"{workers} x {self.micro_batch_size} = {unit}" if workers > 1 else str(unit)
        raise ValueError(
            f"global_batch_size {self.global_batch_size} is not a multiple of {names} = {product}; "
            f"set it to {-(-self.global_batch_size // unit) * unit} or change one of the others"
        )

    @pydantic.model_validator(mode="after")
    def _offload_has_something_to_move(self) -> TrainingSettings:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3; set one or turn it off")
        if self.offload_weights and self.zero_stage < 3:
            raise ValueError("offload_weights needs zero_stage 3; set it or turn it off")
        if self.offload_folder is not None and (
            self.zero_stage < 3 or not (self.offload_optimizer or self.offload_weights)
        ):
            raise ValueError(
                "offload_folder needs zero_stage 3, and offload_optimizer or offload_weights, to "
                "have something to put there; set them or leave it out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _lora_has_targets(self) -> TrainingSettings:
        if self.method == "lora" and not self.lora.target_modules:
            raise ValueError("lora.target_modules is empty; name layers or write all-linear")
        return self


class PlacedTraining(TrainingSettings):
    """The settings of a training with nothing left to decide."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    num_workers: Annotated[int, Field(ge=1), OPERATIONAL] = 2
    cpus_per_worker: Annotated[int, Field(ge=1), OPERATIONAL] = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1), OPERATIONAL] = 0
