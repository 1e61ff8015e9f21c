"""Whether a local model's weight files are whole, told from their headers and samples of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import InputError

INDEX = "model.safetensors.index.json"
MOST_HEADER = 100_000_000
"""Bytes; safetensors itself reads no longer one."""
SAMPLED_BYTES = 4 * 2**20
"""So much of a file is looked at, spread over its tensors; all of a small one."""
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def check_weight_files(folder: Path) -> None:
    """Refuse a missing shard, a file that is cut or damaged, and NaN or infinity in the samples.

    An engine that loads the weights looks at all of them. Raises `InputError`.
    """
    files = sorted(folder.glob("*.safetensors"))
    for name in sorted(_expected_shards(folder, files) - {file.name for file in files}):
        raise InputError(f"{folder / name} is missing; copy the model's folder again, whole")
    for file in files:
        try:
            header = read_header(file)
            _refuse_cut(file, header)
            broken = next(_not_finite(file, header), None)
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{file} cannot be read ({reason}); copy it again") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(_not_valid(file)) from error
        if broken:
            raise InputError(not_finite(str(file), broken))


def _not_valid(file: Path) -> str:
    return f"{file} is not a valid safetensors file; use another copy of it"


def not_finite(place: str, tensor: str) -> str:
    """The sentence for a tensor of a base model that holds no number somewhere."""
    return (
        f"{place}: {tensor} contains values that are not finite, so nothing can be learned; use "
        "another copy of the model"
    )


def read_header(file: Path) -> dict[str, Mapping[str, Any]]:
    """What a safetensors file says of each tensor: `dtype`, `shape` and `data_offsets` from the end
    of the header on. Raises `InputError`."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, MOST_HEADER)))
        return {name: facts for name, facts in header.items() if "shape" in facts}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(_not_valid(file)) from error


def _expected_shards(folder: Path, files: list[Path]) -> set[str]:
    """The files that the index names, and those that the names of the others promise."""
    names: set[str] = set()
    for found in filter(None, (_SHARD.fullmatch(file.name) for file in files)):
        stem, number, last = found.groups()
        names |= {f"{stem}-{n:0{len(number)}d}-of-{last}" for n in range(1, int(last) + 1)}
    names = {f"{name}.safetensors" for name in names}
    if (folder / INDEX).is_file():
        try:
            names |= set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / INDEX} is damaged; take another copy of it") from error
    return names


def _data_start(file: Path) -> int:
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _refuse_cut(file: Path, header: Mapping[str, Mapping[str, Any]]) -> None:
    expected = _data_start(file) + max((f["data_offsets"][1] for f in header.values()), default=0)
    if (size := file.stat().st_size) < expected:
        raise InputError(
            f"{file} is cut: it has {size} bytes, and its header says {expected}; take another "
            "copy of it"
        )


def _not_finite(file: Path, header: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The tensors with NaN in their first bytes, and the weights with infinity there.

    A mask that a model keeps among its tensors may be infinite.
    """
    start, share = _data_start(file), max(4096, SAMPLED_BYTES // max(1, len(header)))
    with file.open("rb") as stream:
        for name, facts in header.items():
            begin, end = facts["data_offsets"]
            stream.seek(start + begin)
            has_nan, has_inf = _looked_at(stream.read(min(share, end - begin)), facts["dtype"])
            if has_nan or (has_inf and name.endswith("weight")):
                yield name


def _looked_at(data: bytes, dtype: str) -> tuple[bool, bool]:
    """Whether NaN is among some numbers, and infinity; of other types neither."""
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2", len(data) // 2) & 0x7FFF
        return bool((bits > 0x7F80).any()), bool((bits == 0x7F80).any())
    if dtype not in _FLOATS:
        return False, False
    kind = np.dtype(_FLOATS[dtype])
    numbers = np.frombuffer(data, kind, len(data) // kind.itemsize)
    return bool(np.isnan(numbers).any()), bool(np.isinf(numbers).any())
