from __future__ import annotations

from typing import Any

import pytest

from cluster.settings import content_of
from training.deepspeed_engine import deepspeed_config
from training.objectives.dpo import DpoSettings
from training.settings import LoraSettings, PlacedTraining, TrainingSettings


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"global_batch_size": 10, "micro_batch_size": 4}, "set it to 12"),
        ({"global_batch_size": 10, "num_workers": 2}, "= 2 x 4 = 8; set it to 16"),
        ({"packing": True, "num_workers": 128}, "nothing to 112 of 128 workers .* to 16 or less"),
        ({"num_workers": 0}, "should be auto or a whole number of at least 1, not 0"),
        ({"gpus_per_worker": "all"}, "should be auto, 0 or 1, not 'all'"),
        ({"cpus_per_worker": True}, "should be auto or a whole number of at least 1, not True"),
        ({"offload_optimizer": True, "zero_stage": 0}, "zero_stage 1, 2 or 3"),
        ({"offload_weights": True, "zero_stage": 2}, "needs zero_stage 3"),
        ({"offload_folder": "/nvme", "zero_stage": 3}, "offload_optimizer or offload_weights"),
        ({"offload_folder": "/nvme", "offload_optimizer": True}, "needs zero_stage 3"),
        ({"packing": True, "row_tokens": 512}, "less than max_length 2048"),
        ({"dataset_weights": {"a": 1.0}, "dataset_temperature": 2.0}, "not both"),
        ({"mix": "per_dataset", "dataset_temperature": 2.0}, "mixes nothing"),
        ({"objective": "dpo", "packing": True, "row_tokens": 3000}, "less than twice max_length"),
        ({"objective": "kto", "weight_by": "vote_share"}, "leave it out for objective kto"),
        (
            {"objective": "dpo", "dpo": DpoSettings(preference_weight=0, nll_weight=0)},
            "nothing is learned",
        ),
        ({"method": "lora", "lora": LoraSettings(target_modules=())}, "all-linear"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_to_do(
    fields: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        TrainingSettings(**fields)


def test_where_it_runs_does_not_change_what_is_made() -> None:
    laptop = TrainingSettings()
    node = TrainingSettings(num_workers=8, gpus_per_worker=1, zero_stage=3, micro_batch_size=2)
    assert content_of(laptop) == content_of(node)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_deepspeed_config_batch_is_micro_batch_times_steps_times_workers(
    stage: int, dtype: str
) -> None:
    settings = PlacedTraining.model_validate(
        {"zero_stage": stage, "dtype": dtype, "global_batch_size": 16, "micro_batch_size": 2}
    )
    config = deepspeed_config(settings, world_size=2)
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"]["enabled"] == (dtype == "bfloat16")


def test_deepspeed_config_of_packed_rows_leaves_room_for_any_number_of_them() -> None:
    # 6 is no multiple of 2 workers x 4 examples: rows are cut by tokens, not by examples.
    settings = PlacedTraining(packing=True, global_batch_size=6)
    config = deepspeed_config(settings, world_size=2)
    assert config["gradient_accumulation_steps"] > 1
    assert config["train_batch_size"] == (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2
    )


def test_deepspeed_config_offloads_to_the_folder_where_one_is_named() -> None:
    fields = {"offload_optimizer": True, "zero_stage": 3, "offload_weights": True}
    settings = PlacedTraining.model_validate(fields | {"offload_folder": "/nvme/offload"})
    zero = deepspeed_config(settings, 2)["zero_optimization"]
    for part in ("offload_optimizer", "offload_param"):
        assert (zero[part]["device"], zero[part]["nvme_path"]) == ("nvme", "/nvme/offload")


def test_deepspeed_config_offload_pins_memory_beside_a_gpu_only() -> None:
    on_cpu = PlacedTraining(offload_optimizer=True, zero_stage=3, offload_weights=True)
    on_gpu = on_cpu.model_copy(update={"gpus_per_worker": 1})
    for settings, pinned in ((on_cpu, False), (on_gpu, True)):
        zero = deepspeed_config(settings, 2)["zero_optimization"]
        assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": pinned}
        assert zero["offload_param"] == {"device": "cpu", "pin_memory": pinned}


def test_epochs_grow_from_round_to_round() -> None:
    settings = TrainingSettings(num_epochs=3, epochs_growth=1.2)
    assert [settings.of_round(number).num_epochs for number in range(5)] == [3, 4, 4, 5, 6]
    assert TrainingSettings(num_epochs=3).of_round(4) == TrainingSettings(num_epochs=3)
    # A round is what it trains, however it came to its number of epochs.
    assert settings.of_round(1) == TrainingSettings(num_epochs=4)
