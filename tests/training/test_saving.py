"""What is written, copied and read back, in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.store.folder import Folder
from training import saving
from training.saving import (
    IncompleteSaveError,
    check_saved,
    copy_companions,
    rehearse_save,
    save_trained,
)
from training.settings import PlacedTraining

FLOAT32 = PlacedTraining(dtype="float32", num_workers=1)
BFLOAT16 = PlacedTraining(dtype="bfloat16", num_workers=1)

WITH_TEMPERATURE = json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2})
"""As Llama-2-chat has it: transformers reads it, and refuses to write it without `do_sample`."""


@pytest.fixture
def base(model_folder: Path, tmp_path: Path) -> Path:
    """A model with a tokenizer, in a folder that a test may change."""
    return Path(shutil.copytree(model_folder, tmp_path / "base"))


def _load(folder: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def _save(module: Any, base: Path, output: Path, settings: PlacedTraining) -> dict[str, Any]:
    engine = SimpleNamespace(module=module)
    return save_trained(engine, str(base), Folder.open(str(output)), settings)


@pytest.mark.usefixtures("one_process")
def test_save_trained_keeps_the_bases_own_generation_config(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").write_text(WITH_TEMPERATURE)
    module = _load(base, "float32")
    rehearse_save(module, str(base))
    _save(module, base, tmp_path / "output", FLOAT32)
    assert (tmp_path / "output" / "generation_config.json").read_text() == WITH_TEMPERATURE


@pytest.mark.usefixtures("one_process")
def test_save_trained_of_adapters_keeps_the_bases_own_generation_config(
    base: Path, tmp_path: Path
) -> None:
    import peft

    (base / "generation_config.json").write_text(WITH_TEMPERATURE)
    adapters = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    module = peft.get_peft_model(_load(base, "float32"), adapters)
    rehearse_save(module.get_base_model(), str(base))
    lora = FLOAT32.model_copy(update={"method": "lora"})
    facts = _save(module, base, tmp_path / "output", lora)
    assert facts["weights_changed"] == 0, "adapters begin at zero"
    assert (tmp_path / "output" / "generation_config.json").read_text() == WITH_TEMPERATURE
    assert (tmp_path / "output" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("one_process")
def test_save_trained_tells_the_share_of_the_weights_that_changed(
    base: Path, tmp_path: Path
) -> None:
    import torch

    module = _load(base, "float32")
    layer = module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        layer[:64] += 1
    facts = _save(module, base, tmp_path / "output", FLOAT32)
    num_weights = sum(parameter.numel() for parameter in module.parameters())
    assert facts["weights_changed"] == pytest.approx(64 * layer.shape[1] / num_weights)


@pytest.mark.usefixtures("one_process")
def test_save_trained_of_a_model_with_float32_parts_is_what_was_trained(tmp_path: Path) -> None:
    import torch
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    config = Glm4MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
    )
    torch.manual_seed(0)
    Glm4MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    module = _load(tmp_path / "base", "bfloat16")
    kept = module.model.layers[1].mlp.gate.e_score_correction_bias
    kept.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))  # none of them a bfloat16
    _save(module, tmp_path / "base", tmp_path / "output", BFLOAT16)
    saved = _load(tmp_path / "output", "bfloat16")
    again = saved.model.layers[1].mlp.gate.e_score_correction_bias
    assert again.dtype == torch.float32
    assert bool((again == kept).all())


def test_check_saved_another_type_or_value_is_refused(base: Path, tmp_path: Path) -> None:
    import torch

    module = _load(base, "float32")
    name, tensor = next(iter(module.state_dict().items()))
    state = dict(module.state_dict())
    check_saved(base, state)
    with pytest.raises(IncompleteSaveError, match=r"is torch\.float32, not torch\.bfloat16"):
        check_saved(base, state | {name: tensor.to(torch.bfloat16)})
    with pytest.raises(IncompleteSaveError, match="differs from what was trained"):
        check_saved(base, state | {name: tensor + 1})


def test_check_saved_of_what_is_missing_unknown_or_broken_is_refused(
    base: Path, tmp_path: Path
) -> None:
    import torch

    module = _load(base, "float32")
    state = dict(module.state_dict())
    name = "model.norm.weight"
    with pytest.raises(IncompleteSaveError, match=r"saved and trained differ: \['other'\]"):
        check_saved(base, state | {"other": state[name]})
    with torch.no_grad():
        module.model.norm.weight[3] = torch.nan
    module.save_pretrained(tmp_path / "broken")
    with pytest.raises(IncompleteSaveError, match=rf"{name} contains values that are not finite"):
        check_saved(tmp_path / "broken", dict(module.state_dict()))
    less = {key: tensor for key, tensor in state.items() if key != name}
    module.save_pretrained(tmp_path / "less", state_dict=less)
    with pytest.raises(IncompleteSaveError, match=rf"missing_keys .*{name}"):
        check_saved(tmp_path / "less", state)
    with pytest.raises(IncompleteSaveError, match="w is empty"):
        saving._compare("w", torch.empty(0), torch.empty(0))


def test_adapter_with_fewer_tensors_than_were_trained_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensor = torch.ones(2)
    save_file({"a.weight": tensor}, tmp_path / "adapter_model.safetensors")
    trained = {"a.default.weight": tensor}
    saving._check_adapter(tmp_path, trained)
    with pytest.raises(IncompleteSaveError, match="the adapter has 1 tensors, not 2"):
        saving._check_adapter(tmp_path, trained | {"b.default.weight": tensor})


def test_rehearse_save_writes_the_generation_config_of_a_base_without_one(base: Path) -> None:
    module = _load(base, "float32")
    (base / "generation_config.json").unlink(missing_ok=True)
    rehearse_save(module, str(base))
    module.generation_config.temperature = 0.6  # transformers refuses to write this alone
    with pytest.raises(InputError, match="could not be saved after the training"):
        rehearse_save(module, str(base))


def test_small_files_of_a_hub_model_are_taken_from_the_hub(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def download(name: str, ignore_patterns: Any) -> str:
        asked.append((name, ignore_patterns))
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "output").mkdir()
    copy_companions("owner/name", tmp_path / "output")
    assert (tmp_path / "output" / "tokenizer.json").is_file()
    [(name, ignored)] = asked
    assert name == "owner/name"
    assert "*.safetensors" in ignored


def test_copy_companions_copies_all_that_is_no_weight(tmp_path: Path) -> None:
    companions = {
        "tekken.json",
        "tokenizer.model",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "generation_config.json",
        "LICENSE",
        "README.md",
    }
    others = {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "params.json",
        "original/params.json",
        "original/tokenizer.model",
        "onnx/config.json",
        "modeling_own.py",
        ".cache/huggingface/download/x.lock",
        ".gitattributes",
        # A base that an earlier round made.
        "adapter/adapter_config.json",
        "checkpoints/plan.json",
        "tensorboard/events.0",
        "reference/log_probs-1.parquet",
        "weights.txt",
        "manifest.json",
    }
    for name in companions | others:
        file = tmp_path / "base" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "output").mkdir()
    copy_companions(str(tmp_path / "base"), tmp_path / "output")
    copied = {
        str(file.relative_to(tmp_path / "output")): file.read_text()
        for file in (tmp_path / "output").rglob("*")
        if file.is_file()
    }
    assert copied == {name: name for name in companions}


def test_rehearse_save_of_files_that_are_not_read_back_is_refused(base: Path) -> None:
    module = _load(base, "float32")
    rehearse_save(module, str(base))
    (base / "generation_config.json").write_text("{not json")
    with pytest.raises(InputError, match=r"could not be saved after the training, .*\(.*\); fix"):
        rehearse_save(module, str(base))


def test_tokenizer_that_writes_other_ids_after_it_was_copied_is_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _load(base, "float32")
    copied = saving.copy_companions

    def copy_and_damage(source: str, folder: Path) -> None:
        """As for a base whose tokenizer needs a file that is not copied."""
        copied(source, folder)
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        letters = tokenizer["model"]["vocab"]
        letters["W"], letters["V"] = letters["V"], letters["W"]
        file.write_text(json.dumps(tokenizer))

    monkeypatch.setattr(saving, "copy_companions", copy_and_damage)
    with pytest.raises(InputError, match="tokenizer or its chat template differs"):
        rehearse_save(module, str(base))


def test_rehearse_save_without_any_tokenizer_passes(base: Path) -> None:
    module = _load(base, "float32")
    for file in base.glob("*token*"):
        file.unlink()
    rehearse_save(module, str(base))
