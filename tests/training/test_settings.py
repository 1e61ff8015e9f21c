from __future__ import annotations

from typing import Any

import pytest

from cluster.settings import content_of
from training.engine import deepspeed_config
from training.settings import LoraSettings, TrainingSettings


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"global_batch_size": 10, "micro_batch_size": 4}, "set it to 16"),
        ({"offload_optimizer": True, "zero_stage": 0}, "zero_stage 1, 2 or 3"),
        ({"method": "lora", "lora": LoraSettings(target_modules=())}, "all-linear"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_mend(
    fields: dict[str, Any], mend: str
) -> None:
    with pytest.raises(ValueError, match=mend):
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
    settings = TrainingSettings.model_validate(
        {"zero_stage": stage, "dtype": dtype, "global_batch_size": 16, "micro_batch_size": 2}
    )
    config = deepspeed_config(settings, world_size=2)
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"]["enabled"] == (dtype == "bfloat16")


def test_deepspeed_config_offload_happens_beside_a_gpu_only() -> None:
    on_cpu = TrainingSettings(offload_optimizer=True)
    on_gpu = TrainingSettings(offload_optimizer=True, gpus_per_worker=1)
    assert "offload_optimizer" not in deepspeed_config(on_cpu, 2)["zero_optimization"]
    assert "offload_optimizer" in deepspeed_config(on_gpu, 2)["zero_optimization"]
