"""ZeRO 0 to 3 and offload, all weights and LoRA, packed and padded, with checkpointing and without,
against plain torch.

Six steps on a two-layer model with a tokenizer and a chat template, on two CPU workers, the last
step of each epoch with half a batch; learning rate 1e-3 for all weights and 1e-2 for adapters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.inference.engine import SamplingSettings
from cluster.inference.vllm_engine import engine_environment
from cluster.models.chat_template import load_tokenizer, prompt_ids
from cluster.settings import content_of, fingerprint
from cluster.store.folder import Folder
from tests.cluster.test_engine import SETTINGS as ENGINE
from tests.cluster.test_engine import Started, greedy_ids
from tests.training.conftest import write_rows
from tests.training.matrix import (
    CHECKPOINTED,
    DTYPES,
    LAYOUTS,
    METHODS,
    STAGES,
    TOLERANCES,
    Reference,
    Trained,
    cells,
    distance,
    gradients_of_cells,
    gradients_plainly,
    num_linear_layers,
    saved_weights,
    sum_rows,
    train_cells,
    train_plainly,
)
from training.saving import ADAPTER
from training.settings import LoraSettings, PlacedTraining

# Examples of one dataset more often than they occur, each with its own weight.
MIXED = {"dataset_temperature": 3.0, "weight_by": "vote_share"}

ALL = {name: settings for dtype in DTYPES for name, settings in cells(dtype).items()}
ALL |= {f"{name}/mixed": settings.model_copy(update=MIXED) for name, settings in ALL.items()}
# Activations made again in the backward pass: what is trained stays the same.
ALL |= {f"{name}/again": settings.model_copy(update=CHECKPOINTED) for name, settings in ALL.items()}

COVERING = (
    # Every pair of stage, method and layout is in one of these.
    "zero0/full/packed/float32",
    "zero0/lora/padded/bfloat16",
    "zero1/full/padded/float32",
    "zero1/lora/packed/bfloat16",
    "zero2/full/packed/float32/mixed",
    "zero2/lora/padded/float32",
    "zero3/full/padded/bfloat16",
    "zero3/lora/packed/float32",
    "zero3-offload/full/packed/float32",
    "zero3-offload/lora/padded/float32/mixed",
    # Every pair of ZeRO 0, 2 or 3, method and layout, with checkpointing.
    "zero0/full/padded/float32/again",
    "zero0/lora/packed/float32/again",
    "zero2/full/packed/bfloat16/again",
    "zero2/lora/padded/float32/again",
    "zero3/full/packed/float32/again",
    "zero3/lora/padded/bfloat16/again",
)

Plainly = Callable[[PlacedTraining], Reference]


@pytest.fixture(scope="module")
def sums(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder.open(str(tmp_path_factory.mktemp("sums")))
    write_rows(folder, "part-000.parquet", sum_rows(model_folder))
    return folder


@pytest.fixture(scope="module")
def plainly(model_folder: Path, sums: Folder) -> Plainly:
    """The reference of a cell; the same for all stages and layouts."""

    known: dict[str, Reference] = {}

    def train_once(settings: PlacedTraining) -> Reference:
        key = fingerprint(content_of(settings))
        if key not in known:
            known[key] = train_plainly(model_folder, sums, settings)
        return known[key]

    return train_once


def _check(name: str, cell: Trained, expected: Reference) -> None:
    """Everything that holds for a cell."""
    settings = ALL[name]
    off = TOLERANCES[settings.dtype]
    losses = [step["loss"] for step in cell.steps]
    assert losses == pytest.approx(expected.losses, abs=off["loss"]), name
    assert sum(losses[3:]) < sum(losses[:3]), f"{name} has not learnt"
    norms = [step["grad_norm"] for step in cell.steps]
    assert norms == pytest.approx(expected.norms, rel=off["norm"]), name
    weights = saved_weights(cell.folder)
    way = distance(expected.weights, expected.start)
    assert distance(weights, expected.weights) < off["way"] * way, name
    assert cell.logits_off < off["logits"], name
    assert load_tokenizer(str(cell.folder)).chat_template
    if settings.method == "lora":
        from safetensors.torch import load_file

        adapter = load_file(cell.folder / ADAPTER / "adapter_model.safetensors")
        assert len(adapter) == 2 * num_linear_layers(cell.folder), f"{name}: two factors for each"
        assert all(tensor.numel() and tensor.abs().sum() > 0 for tensor in adapter.values()), name


def test_covering_cells_equal_plain_torch_and_load_again(
    model_folder: Path, sums: Folder, plainly: Plainly, ray_cluster: str, tmp_path: Path
) -> None:
    trained = train_cells({name: ALL[name] for name in COVERING}, model_folder, sums, tmp_path)
    for name, cell in trained.items():
        _check(name, cell, plainly(ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_cells_equal_plain_torch_and_load_again(
    dtype: str,
    model_folder: Path,
    sums: Folder,
    plainly: Plainly,
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    trained = train_cells(cells(dtype), model_folder, sums, tmp_path)
    assert len(trained) == len(STAGES) * len(METHODS) * len(LAYOUTS)
    for name, cell in trained.items():
        _check(name, cell, plainly(ALL[name]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_cells_with_checkpointing_equal_plain_torch_and_those_without(
    dtype: str,
    model_folder: Path,
    sums: Folder,
    plainly: Plainly,
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    names = [
        f"{stage}/{method}/{layout}/{dtype}"
        for stage in ("zero0", "zero2", "zero3")
        for method in METHODS
        for layout in LAYOUTS
    ]
    both = [name for plain in names for name in (plain, f"{plain}/again")]
    trained = train_cells({name: ALL[name] for name in both}, model_folder, sums, tmp_path)
    for name in names:
        again = trained[f"{name}/again"]
        _check(f"{name}/again", again, plainly(ALL[name]))
        # The backward pass computes the very numbers of the forward pass, in the same order.
        assert again.steps == _without_speed(trained[name].steps, again.steps), name


def _without_speed(
    steps: list[dict[str, float]], other: list[dict[str, float]]
) -> list[dict[str, float]]:
    """Steps with the other ones' speed, which is no part of what is compared."""
    pairs = zip(steps, other, strict=True)
    return [step | {"tokens_per_s": one["tokens_per_s"]} for step, one in pairs]


@pytest.mark.slow
def test_gradients_of_every_stage_equal_plain_torch_tensor_by_tensor(
    model_folder: Path, sums: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    layout_of = {"full": "packed", "lora": "padded"}
    settings = {
        name: ALL[name]
        for stage in STAGES
        for method, layout in layout_of.items()
        for cell in [f"{stage}/{method}/{layout}/float32/mixed"]
        for name in (cell, f"{cell}/again")
    }
    found = gradients_of_cells(settings, model_folder, sums, tmp_path)
    for name, gradients in found.items():
        expected = gradients_plainly(model_folder, sums, settings[name])
        assert set(gradients) == set(expected), name
        for tensor, gradient in expected.items():
            off = abs(gradients[tensor] - gradient).max()
            assert off <= 1e-5 * abs(gradient).max(), f"{name}: {tensor} is off by {off}"


OF_OTHER_FAMILIES = (
    "zero2/full/packed/float32",
    "zero2/lora/padded/float32/again",
    "zero3/full/padded/float32/again",
    "zero3/lora/packed/float32",
)


def _gpt2() -> Any:
    """Learnt positions, tied embeddings, and layers that are no `torch.nn.Linear`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=320, n_positions=128, n_embd=64, n_layer=2, n_head=4)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    config.bos_token_id = config.eos_token_id = 256
    return GPT2LMHeadModel(config)


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
    )
    return Qwen3ForCausalLM(config)


# So many experts that in each micro-batch some get no token, on each worker others.
EXPERTS = {"num_experts": 64, "num_experts_per_tok": 2}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def _qwen3_moe() -> Any:
    """A mixture of experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=320,
        hidden_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        **EXPERTS,
    )
    return Qwen3MoeForCausalLM(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (_gpt2, "all-linear"),
        (_qwen3, "all-linear"),
        (_qwen3_moe, ATTENTION),
    ],
)
def test_cells_of_other_families_without_a_template_equal_plain_torch_and_load_again(
    make: Callable[[], Any],
    targets: Any,
    model_folder: Path,
    sums: Folder,
    ray_cluster: str,
    tmp_path: Path,
) -> None:
    import torch

    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model_folder / name, tmp_path / "model" / name)
    lora = LoraSettings(rank=4, alpha=8, target_modules=targets)
    settings = {n: ALL[n].model_copy(update={"lora": lora}) for n in OF_OTHER_FAMILIES}
    trained = train_cells(settings, tmp_path / "model", sums, tmp_path / "output")
    for name, cell in trained.items():
        _check(name, cell, train_plainly(tmp_path / "model", sums, settings[name]))


@pytest.mark.slow
def test_vllm_serves_what_was_saved_whole_merged_and_as_an_adapter(
    model_folder: Path, sums: Folder, ray_cluster: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    names = {"whole": "zero3/full/padded/float32", "merged": "zero3/lora/padded/float32"}
    trained = train_cells({n: ALL[n] for n in names.values()}, model_folder, sums, tmp_path)
    folders = {form: trained[name].folder for form, name in names.items()}
    chat = [{"role": "user", "content": "3 + 10?"}]
    ids = prompt_ids(load_tokenizer(str(model_folder)), chat, {})
    base, whole, merged = (
        greedy_ids(AutoModelForCausalLM.from_pretrained(folder), ids, 16)
        for folder in (model_folder, folders["whole"], folders["merged"])
    )
    assert base not in (whole, merged), "the training must show"
    for folder, adapter, expected in (
        (folders["whole"], None, whole),
        (folders["merged"], None, merged),
        (model_folder, str(folders["merged"] / ADAPTER), merged),
    ):
        engine = ENGINE.model_copy(update={"dtype": "float32", "adapter": adapter})
        os.environ.update(engine_environment(engine))
        started = Started(folder, engine)
        try:
            sampling = SamplingSettings(temperature=0.0, max_tokens=16)
            [completion] = started.chat(chat, sampling)
        finally:
            started.close()
        assert completion.token_ids == expected
