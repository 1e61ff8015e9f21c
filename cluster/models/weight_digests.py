"""Which weights an engine serves: a digest of each tensor, as it was saved and as it was loaded.

The folder of a `model` step contains `weights.txt`, whose SHA-256 is in the step's manifest. A line
has a tensor's name, type, shape and the SHA-256 of its bytes::

    model.layers.0.mlp.up_proj.weight torch.bfloat16 [1536, 576] 91c2...
    model.norm.weight torch.bfloat16 [576] 3fa9...

Neither the number of files nor the order of their tensors matters. The parameters of a running
engine would prove nothing: vLLM fuses, repacks and quantizes what it reads, and keeps an adapter
separate. So each process of an engine digests the tensors as its loader reads them
(`cluster.inference.vllm_loader`), and they are compared with the list before generation starts.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.models.model import Model
from cluster.models.weight_files import not_finite
from cluster.store.folder import Folder

WEIGHTS = "weights.txt"
ADAPTER_FACT = "adapter_sha256"
MAX_THREADS = 8
"""A core at 2.5 GHz without SHA instructions digests 0.34 GB/s: 16 GB take one core 47 s and eight
cores 6 s."""

NAN = " nan"
"""Ends the digest of a tensor with NaN in it, which nothing can be learned from."""

Digests = Mapping[str, str]
"""The rest of a tensor's line, by its name."""


@dataclass(frozen=True)
class Saved:
    """The tensors that a run saved, and where."""

    uri: str
    digests: Digests


def tensor_digest(tensor: Any) -> str:
    """What the list records about a tensor: `torch.bfloat16 [576] 3fa9...`."""
    import torch

    # Some loaders put tensors on the GPU immediately.
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"
    is_float = tensor.dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return digest + NAN if is_float and bool(tensor.isnan().any()) else digest


def with_digests(
    tensors: Iterable[tuple[str, Any]],
    digests: MutableMapping[str, str],
    num_threads: int | None = None,
) -> Iterator[tuple[str, Any]]:
    """Pass the tensors on in order, each after its digest is recorded; threads work ahead.

    `num_threads` is how many tensors are read at once; None is one for each core, at most eight.
    The receiver may change a tensor, so each is digested before it is passed on.
    """
    num_threads = num_threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
    tensors = iter(tensors)
    ahead: deque[tuple[str, Any, Any]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        while True:
            for name, tensor in itertools.islice(tensors, num_threads - len(ahead)):
                ahead.append((name, tensor, threads.submit(tensor_digest, tensor)))
            if not ahead:
                return
            name, tensor, digest = ahead.popleft()
            digests[name] = digest.result()
            yield name, tensor


def digest_folder(folder: Path) -> dict[str, str]:
    """The digests of all tensors in a local folder's safetensors files."""
    digests: dict[str, str] = {}
    for _ in with_digests(_tensors(folder), digests):
        pass
    return digests


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                yield name, tensors.get_tensor(name)


def write_list(folder: Path) -> str:
    """Write the list of a local folder's tensors into it. Returns the list's SHA-256."""
    data = _list(digest_folder(folder).items())
    (folder / WEIGHTS).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _list(digests: Iterable[tuple[str, str]]) -> bytes:
    return "\n".join(sorted({f"{name} {digest}" for name, digest in digests})).encode()


def saved_model(model: Model) -> Saved | None:
    """The tensors that a model was saved with; None for a model that no run saved.

    Raises `InputError` when its folder contains another step's model or another list.
    """
    folder = model.folder or Folder.open(model.path)
    manifest = folder.manifest() or {}
    return _read_list(folder, manifest.get("weights_sha256"))


def check_saved(model: Model) -> None:
    """Read a saved model and compare each tensor, for callers that load it without an engine.

    Raises `InputError` with the first tensor that differs. Runs as a task, since it reads all
    weights.
    """
    if saved := saved_model(model):
        with model.fetched() as folder:
            _refuse_others(list(digest_folder(Path(folder)).items()), saved, folder)


def saved_adapter(adapter: str) -> Saved | None:
    """The tensors that an adapter inside a model's folder was saved with; None for others."""
    manifest = Folder.open(str(Path(adapter).parent)).manifest() or {}
    return _read_list(Folder.open(adapter), manifest.get("adapter_sha256"))


def _read_list(folder: Folder, expected: str | None) -> Saved | None:
    if expected is None:
        return None
    try:
        data = folder.read_bytes(WEIGHTS)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != expected:
        raise InputError(
            f"{folder.uri}/{WEIGHTS} does not match its manifest; restore "
            "the original file, or delete the model's folder to train it again"
        )
    return Saved(folder.uri, dict(line.split(" ", 1) for line in data.decode().splitlines()))


def check_loaded(
    loaded: Sequence[Mapping[str, Digests]], model: Model, folder: str, adapters: Iterable[str] = ()
) -> dict[str, str]:
    """Compare what each process of an engine read (`model`, and the folder of each adapter) with
    what was saved.

    `folder` is where the model was read from. Returns `weights_sha256`, and for each adapter that
    is served a fact with the name `adapter_fact`: the SHA-256 of the list of what was read. Raises
    `InputError` with the first tensor that differs and both places, or that contains NaN.
    """
    digests = [report["model"] for report in loaded]
    facts = {"weights_sha256": _check(digests, saved_model(model), folder)}
    for adapter in adapters:
        digests = [report.get(adapter, {}) for report in loaded]
        facts[adapter_fact(adapter)] = _check(digests, saved_adapter(adapter), adapter)
    return {name: value for name, value in facts.items() if value}


def adapter_fact(adapter: str) -> str:
    """What the fact is called that has the fingerprint of an adapter among those of its engine."""
    return f"{ADAPTER_FACT} {adapter}"


def facts_of(facts: Mapping[str, str], adapter: str | None) -> dict[str, str]:
    """The facts of `check_loaded` that are about the answers of one adapter, or of none."""
    own = {name: value for name, value in facts.items() if not name.startswith(f"{ADAPTER_FACT} ")}
    read = facts.get(adapter_fact(adapter)) if adapter is not None else None
    return own if read is None else own | {ADAPTER_FACT: read}


def _check(loaded: Sequence[Digests], saved: Saved | None, read_from: str) -> str:
    read = [item for report in loaded for item in report.items()]
    if broken := min((name for name, digest in read if digest.endswith(NAN)), default=None):
        raise InputError(not_finite(read_from, broken))
    if saved:
        _refuse_others(read, saved, read_from)
    return hashlib.sha256(_list(read)).hexdigest() if read else ""


def _refuse_others(read: Sequence[tuple[str, str]], saved: Saved, read_from: str) -> None:
    if not read:
        raise InputError(
            f"the engine does not report which tensors it read from {read_from}, so they cannot be "
            f"compared with those saved in {saved.uri}; leave load_format and "
            "worker_extension_cls out of engine.options"
        )
    differ = {name for name, digest in read if saved.digests.get(name) != digest}
    differ |= saved.digests.keys() - dict(read).keys()
    if differ:
        raise InputError(
            f"the weights that were read from {read_from} are not those saved in "
            f"{saved.uri}: {min(differ)} differs, {len(differ)} of {len(saved.digests)} tensors "
            "in all. Restore the saved files, or delete the folder to train the model again"
        )
