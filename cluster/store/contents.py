"""The files of a finished step, recorded when it is finished and compared before they are used.

The manifest lists each file of the step::

    "files": {"train-00000.parquet": {"bytes": 81920, "rows": 512, "xxh3": "9f1c..."},
              "model.safetensors": {"bytes": 269060552}}

Names and sizes are compared by every command, which needs one listing of a folder. Contents are
compared once per command, on the nodes of the cluster: with the hash in the manifest or, for a
ledger, with the one in the file's name. Weights have a separate list
(`cluster.models.weight_digests`), which the engine compares as it loads them, so that no weight is
read twice. The hash guards against accidents, not against attacks."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import xxhash

from cluster.store.folder import MANIFEST, OPENED, Folder, num_rows
from cluster.store.ledger import READ_THREADS, epoch_of, is_ledger_file, seal_holds

SCRATCH = ("parts", "checkpoints", "reference", "tensorboard", "wandb")
"""Folders within a step's folder that no later step reads; they may change or disappear."""

FileFacts = Mapping[str, Any]


def list_contents(folder: Folder, made: Collection[str] | None) -> dict[str, FileFacts]:
    """List the files of a finished step for its manifest: those that it reports, or all files.

    All are read except the weights. Raises `DamagedFileError` for a broken Parquet file."""
    sizes = {n: size for n, size in own_files(folder).items() if made is None or n in made}
    with ThreadPoolExecutor(READ_THREADS) as threads:
        facts = threads.map(lambda name: _facts(folder, name, sizes[name]), sizes)
        return dict(zip(sizes, facts, strict=True))


def bytes_to_read(files: Mapping[str, int]) -> int:
    """The number of bytes of some files that have to be read to list or compare them."""
    return sum(size for name, size in files.items() if not name.endswith(".safetensors"))


def own_files(folder: Folder) -> dict[str, int]:
    """The current sizes in bytes, by name, of the files that belong to a step."""
    return {name: size for name, size in folder.sizes().items() if not _is_beside(name)}


def _is_beside(name: str) -> bool:
    """Whether a file may be in the folder although the step did not create it."""
    first, base = name.partition("/")[0], posixpath.basename(name)
    return first in SCRATCH or name == MANIFEST or base.startswith((".", OPENED))


def _facts(folder: Folder, name: str, size: int) -> FileFacts:
    facts: dict[str, Any] = {"bytes": size}
    if name.endswith(".safetensors"):
        return facts
    data = folder.read_buffer(name)
    if name.endswith(".parquet"):
        facts["rows"] = num_rows(data, f"{folder.uri}/{name}")
    if seal_holds(folder, name, data) is None:
        facts["xxh3"] = _hash(data)
    return facts


def _hash(data: pa.Buffer) -> str:
    return str(xxhash.xxh3_128(data).hexdigest())


# --- comparing ---------------------------------------------------------------------------------


def wrong_files(folder: Folder, manifest: Mapping[str, Any]) -> list[str]:
    """Errors that a listing of the folder shows: missing, foreign, or of another size."""
    listed: Mapping[str, FileFacts] = manifest["files"]
    there = own_files(folder)
    wrong = [f"{name} is missing" for name in listed if name not in there]
    for name in listed.keys() & there.keys():
        if there[name] != listed[name]["bytes"]:
            expected = listed[name]["bytes"]
            wrong.append(f"{name} is damaged: it has {there[name]} bytes, not {expected}")
    epoch = manifest.get("epoch", 0)
    for name in there.keys() - listed.keys():
        # A superseded holder may have written rows later; no reader accepts them.
        if not (is_ledger_file(name) and epoch_of(name) < epoch):
            wrong.append(f"{name} does not belong to the step")
    return sorted(wrong)


def damaged_files(folder: Folder, listed: Mapping[str, FileFacts]) -> list[str]:
    """Errors that the contents show: files whose bytes differ from what the step wrote."""
    with ThreadPoolExecutor(READ_THREADS) as threads:
        whole = threads.map(lambda name: _is_whole(folder, name, listed[name]), listed)
        wrong = [name for name, is_whole in zip(listed, whole, strict=True) if not is_whole]
    return [f"{name} is damaged" for name in wrong]


def _is_whole(folder: Folder, name: str, facts: FileFacts) -> bool:
    if name.endswith(".safetensors"):
        return True
    try:
        data = folder.read_buffer(name)
    except FileNotFoundError:
        return False
    sealed = seal_holds(folder, name, data)
    return facts.get("xxh3") == _hash(data) if sealed is None else sealed
