from __future__ import annotations

import shutil
from pathlib import Path

from training.saving import weights_fingerprint


def test_weights_fingerprint_hangs_on_tensors_not_on_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights_fingerprint(tmp_path / "shards") == weights_fingerprint(tiny_model)


def test_weights_fingerprint_of_one_altered_number_differs(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "altered")
    file = tmp_path / "altered" / "model.safetensors"
    tensors = load_file(file)
    assert weights_fingerprint(tmp_path / "altered") == weights_fingerprint(tiny_model)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, file)
    assert weights_fingerprint(tmp_path / "altered") != weights_fingerprint(tiny_model)
