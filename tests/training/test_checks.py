"""The workers' refusals, without workers."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.tracking import TrackingSettings
from training.checks import (
    check_training,
    largest_batch,
    longest_example,
    model_size,
    refuse_broken_weights,
    refuse_foreign_tokens,
    refuse_offload_folder,
)
from training.data.examples import read_examples
from training.memory import BatchSize
from training.settings import LoraSettings, PlacedTraining

BASE = PlacedTraining(global_batch_size=8, max_length=100)


def _check(model: Path, examples: Folder, **changes: Any) -> None:
    settings = BASE.model_copy(update=changes)
    check_training(str(model), read_examples(examples, settings), settings, workers_on_node=1)


def test_check_training_that_fits_passes(tiny_model: Path, examples: Folder) -> None:
    _check(tiny_model, examples)
    _check(tiny_model, examples, method="lora")
    targets = LoraSettings(target_modules=("q_proj", "layers.0.mlp.up_proj"))
    _check(tiny_model, examples, method="lora", lora=targets)


@pytest.mark.parametrize("target", ["q_projection", "proj", "lm_head", "embed_tokens"])
def test_check_training_lora_target_that_matches_nothing_is_refused(
    tiny_model: Path, examples: Folder, target: str
) -> None:
    targets = LoraSettings(target_modules=("q_proj", target))
    with pytest.raises(
        InputError, match=f"{target!r} matches no layer .* are down_proj, gate_proj"
    ):
        _check(tiny_model, examples, method="lora", lora=targets)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "gate_proj", "up_proj")])
def test_check_training_lora_of_experts_is_refused(
    examples: Folder, tmp_path: Path, targets: Any
) -> None:
    from transformers import Qwen2MoeConfig

    # Its shared expert is made of linear layers, of the same names as the others.
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2MoeConfig(vocab_size=256, hidden_size=16, num_experts=4, **sizes)
    config.architectures = ["Qwen2MoeForCausalLM"]
    config.save_pretrained(tmp_path)
    lora = LoraSettings(target_modules=targets)
    with pytest.raises(InputError, match=r"to the experts of .*: k_proj, o_proj, q_proj, "):
        _check(tmp_path, examples, method="lora", lora=lora)
    attention = LoraSettings(target_modules=("q_proj", "v_proj"))
    _check(tmp_path, examples, method="lora", lora=attention)


def test_check_training_lora_of_a_dense_model_with_images_is_no_matter_of_experts(
    examples: Folder, tmp_path: Path
) -> None:
    from transformers import Gemma3Config

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 256, "num_hidden_layers": 1, "head_dim": 8}
    image = sizes | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4)
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    _check(tmp_path, examples, method="lora", lora=LoraSettings(target_modules="all-linear"))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_check_training_of_positions_that_a_long_example_shifts_is_refused(
    tiny_model: Path, examples: Folder, tmp_path: Path, kind: str
) -> None:
    table = read_examples(examples, BASE)
    longest = longest_example(table)
    kinds: dict[str, dict[str, Any]] = {
        "longrope": {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "rope_type": "longrope"},
        "dynamic": {"factor": 2.0, "rope_type": "dynamic"},
    }
    config = json.loads((tiny_model / "config.json").read_text())
    for bound in (longest, longest - 1):
        rope = kinds[kind] | {"original_max_position_embeddings": bound, "rope_theta": 10000.0}
        folder = tmp_path / str(bound)
        folder.mkdir()
        changed = config | {"rope_parameters": rope, "max_position_embeddings": 2 * bound}
        (folder / "config.json").write_text(json.dumps(changed))
    _check(tmp_path / str(longest), examples)
    with pytest.raises(InputError, match=rf"{longest} tokens, .*max_length: {longest - 1}"):
        _check(tmp_path / str(longest - 1), examples)


def test_check_training_of_rows_that_no_memory_holds_is_refused(
    tiny_model: Path, examples: Folder
) -> None:
    with pytest.raises(InputError, match=r"would fit with .*training\.packing: false"):
        _check(tiny_model, examples, packing=True, row_tokens=10**10)
    _check(tiny_model, examples, packing=True, row_tokens=10**10, check_memory=False)


def test_check_training_with_an_offload_folder_that_cannot_be_written_is_refused(
    tiny_model: Path, examples: Folder, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for folder, why in (("file", "Not a directory"), ("nothing", "No such file")):
        place = str(tmp_path / folder)
        with pytest.raises(InputError, match=rf"offload_folder '{place}' cannot be .* \({why}"):
            _check(tiny_model, examples, zero_stage=3, offload_weights=True, offload_folder=place)


def test_an_offload_folder_needs_the_library_of_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    for is_there in (True, False):
        monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: is_there)  # noqa: B023
        if is_there:
            refuse_offload_folder(str(tmp_path))
    with pytest.raises(InputError, match=r"DeepSpeed needs libaio"):
        refuse_offload_folder(str(tmp_path))


def test_tokens_of_another_model_are_refused() -> None:
    table = pa.table({"prompt_token_ids": [[1, 2]], "target_token_ids": [[255, 256]]})
    refuse_foreign_tokens(table, "tiny", 257)
    with pytest.raises(InputError, match=r"target_token_ids contains token 256, but tiny has"):
        refuse_foreign_tokens(table, "tiny", 256)


@pytest.mark.parametrize(
    ("tracking", "package"),
    [
        (TrackingSettings(wandb_project="p"), "wandb"),
        (TrackingSettings(mlflow_experiment="e"), "mlflow"),
    ],
)
def test_check_training_without_the_trackers_package_is_refused(
    tiny_model: Path,
    examples: Folder,
    tracking: TrackingSettings,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"names {package}, .*make setup EXTRAS=trackers"):
        _check(tiny_model, examples, tracking=tracking)


def test_model_size_equals_the_loaded_model(tiny_model: Path) -> None:
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    size = model_size(model, config, BASE)
    assert size is not None
    assert size.num_parameters == size.num_trained == model.num_parameters()
    assert (size.num_layers, size.hidden_size, size.vocab_size) == (2, 64, 256)
    lora = BASE.model_copy(update={"method": "lora", "lora": LoraSettings(rank=4)})
    adapted = model_size(model, config, lora)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    )
    assert adapted is not None
    assert adapted.num_trained == wrapped.get_nb_trainable_parameters()[0]


def test_model_size_of_a_mixture_of_experts_counts_all_of_them_and_gathers_a_layers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    # Qwen3 30B A3B.
    config = Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
    )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    size = model_size(skeleton, config, BASE)
    assert size is not None
    assert size.num_parameters == 30_532_122_624
    assert size.largest_module == 128 * 3 * 2048 * 768
    assert (size.intermediate_size, size.experts_per_token) == (8 * 768, 8)


def test_largest_batch_counts_padding_of_the_longest_examples(examples: Folder) -> None:
    table = read_examples(examples, BASE)
    rows = table.to_pylist()
    longest = max(len(r["prompt_token_ids"]) + len(r["target_token_ids"]) for r in rows)
    longest_target = max(len(row["target_token_ids"]) for row in rows)
    assert largest_batch(table, BASE) == BatchSize(4 * longest, 4 * longest_target)
    packed = BASE.model_copy(update={"packing": True, "row_tokens": 512})
    assert largest_batch(table, packed) == BatchSize(512, 512)


def _gpt2(folder: Path, **fields: Any) -> Path:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=256, **fields)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    return folder


def test_check_training_longer_than_the_learnt_positions_is_refused(
    tiny_model: Path, examples: Folder, tmp_path: Path
) -> None:
    rows = read_examples(examples, BASE).to_pylist()
    longest = max(len(r["prompt_token_ids"]) + len(r["target_token_ids"]) for r in rows)
    with pytest.raises(InputError, match=rf"{longest} tokens, .*max_length: {longest - 1}"):
        _check(_gpt2(tmp_path / "short", n_positions=longest - 1), examples)
    _check(_gpt2(tmp_path / "enough", n_positions=longest), examples)
    # Rotated positions have no table that ends.
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "rotated").mkdir()
    (tmp_path / "rotated" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": longest - 1})
    )
    _check(tmp_path / "rotated", examples)


def test_refuse_broken_weights_names_the_tensor(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    refuse_broken_weights(model, "tiny")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(InputError, match=r"tiny: model\.norm\.weight contains values that are not"):
        refuse_broken_weights(model, "tiny")


def test_check_training_with_checkpoints_that_the_disk_does_not_hold_is_refused(
    tiny_model: Path, examples: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(tiny_model, examples, checkpoint_every_s=60.0)
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2**40, 2**40 - 1, 1))
    _check(tiny_model, examples)
    for asked in ({"checkpoint_every_s": 60.0}, {"checkpoint_every_n_steps": 5}):
        with pytest.raises(InputError, match=r"a checkpoint takes .* has 0\.0 GiB free; point TMP"):
            _check(tiny_model, examples, **asked)
