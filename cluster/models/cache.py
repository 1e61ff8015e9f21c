"""The models that a node keeps: one copy of each, made once, the least recently used ones removed.

Below `storage.cache`/models::

    3f2a.../model-91c2...          a copy of a model that is on a network store
    3f2a.../model-91c2....lock     held by the process that makes the copy
    3f2a.../model-91c2....use      shared by all processes that use it; its time is the last use
    3f2a.../.making-model-91c2...  a copy that is being made

The system releases a lock when its process ends, even when it is killed. Before a process makes a
copy, it removes what killed processes left. Then it removes copies that no process uses, the least
recently used first, until the new one fits into the limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import StorageError
from cluster.store.folder import MANIFEST, Folder

Part = Literal["all", "small", "config"]
"""Of a model's files: all, all but the weights (for its tokenizer), or `config.json` alone."""

COPY_THREADS = 8
BLOCK_BYTES = 16 * 2**20
"""A request reads so much; each thread holds one block in memory."""
GIB = 2**30

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_MAKING = ".making-"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_CONFIG = "config.json"
_used: dict[Path, int] = {}
"""The `.use` files that this process holds until it ends."""


@dataclass(frozen=True)
class ModelCache:
    """The folder `models` in `storage.cache`, and how many bytes it may hold; None is no limit."""

    folder: Path
    limit: int | None = None

    @classmethod
    def at(cls, cache: str, limit_gib: float | None = None) -> ModelCache:
        """The cache of the settings `storage.cache` and `storage.cache_limit_gib`."""
        limit = None if limit_gib is None else int(limit_gib * GIB)
        return cls(Path(cache).expanduser() / "models", limit)

    def has(self, name: str) -> bool:
        """Whether there is a whole copy of that name."""
        return (self.folder / name).is_dir()

    def get(
        self,
        name: str,
        make: Callable[[Path], None],
        num_bytes: int,
        is_whole: Callable[[Path], bool] = Path.is_dir,
    ) -> Path:
        """The folder of that name, which `make` fills if it is not there; in use from now on.

        Of several processes one makes it, and the others wait. Raises what `make` raises, and
        `StorageError` when the disk has no room for so many bytes.
        """
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not is_whole(target):
                self._make(target, make, num_bytes)
            _use(target)
        return target

    def _make(self, target: Path, make: Callable[[Path], None], num_bytes: int) -> None:
        self._make_room(num_bytes, target)
        work = _work_of(target)
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir()
            make(work)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            raise StorageError(
                f"{target}, a copy of a model ({num_bytes} bytes), cannot be written: "
                f"{error.strerror or error}; free some space, or name another folder with "
                "storage.cache"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _make_room(self, num_bytes: int, wanted: Path) -> None:
        """Remove what killed processes left, and unused copies until `num_bytes` fit."""
        for work in (*self.folder.glob(f"{_MAKING}*"), *self.folder.glob(f"*/{_MAKING}*")):
            target = work.with_name(work.name.removeprefix(_MAKING))
            if target != wanted:
                _remove_unless_locked(target, work)
        if self.limit is None:
            return
        sizes = {each: _size(each) for each in self._copies() if each != wanted}
        room = self.limit - num_bytes - sum(sizes.values())
        for each in sorted(sizes, key=_used_at):
            if room >= 0:
                return
            if _remove_unless_locked(each, each):
                room += sizes[each]
        if room < 0:
            print(
                f"{self.folder} will hold {-room / GIB:.1f} GiB more than storage.cache_limit_gib: "
                "the other models in it are in use",
                file=sys.stderr,
                flush=True,
            )

    def _copies(self) -> list[Path]:
        configs = (*self.folder.glob(f"*/{_CONFIG}"), *self.folder.glob(f"*/*/{_CONFIG}"))
        return [each.parent for each in configs if not each.parent.name.startswith(_MAKING)]


def copied(folder: Folder, cache: ModelCache, part: Part = "all") -> Path:
    """A step's model as a local folder: itself on a disk, else the copy of this node.

    A model that was made again is another one: its manifest is. Raises `FileNotFoundError` for a
    model that is not there.
    """
    if folder.is_local:
        return Path(folder.path)
    made = hashlib.sha256(folder.path.encode() + b"\0" + _manifest(folder))
    whole = f"{made.hexdigest()[:16]}/{folder.name}"
    if part == "all" or cache.has(whole):
        name, part = whole, "all"
    else:
        name = f"{whole}-{part}"
    files = {} if cache.has(name) else _files(folder, part)

    def copy(work: Path) -> None:
        if not files:
            raise FileNotFoundError(f"{folder.uri} holds no model")
        with ThreadPoolExecutor(COPY_THREADS) as threads:
            list(threads.map(lambda file: _copy(folder, file, work), files))

    return cache.get(name, copy, sum(files.values()))


def _manifest(folder: Folder) -> bytes:
    try:
        return folder.read_bytes(MANIFEST)
    except FileNotFoundError:
        return b""


def _files(folder: Folder, part: Part) -> dict[str, int]:
    """The bytes of the files of a part, by name."""
    if part == "config":
        return {_CONFIG: 0}
    left_out = () if part == "all" else _WEIGHTS
    sizes = folder.sizes().items()
    return {n: size for n, size in sizes if "/" not in n and not n.endswith(left_out)}


def _copy(folder: Folder, name: str, work: Path) -> None:
    with (work / name).open("wb") as copy:
        for block in folder.blocks(name, BLOCK_BYTES):
            copy.write(block)


# --- locks -------------------------------------------------------------------------------------


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f"{target.name}.{suffix}")


def _work_of(target: Path) -> Path:
    return target.with_name(f"{_MAKING}{target.name}")


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Nobody else makes or removes the target within the block."""
    with _beside(target, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _use(target: Path) -> None:
    """Note that this process uses the target until it ends. Only while it is locked."""
    path = _beside(target, "use")
    if target not in _used:
        _used[target] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(_used[target], fcntl.LOCK_SH)
    os.utime(path)


def release(target: Path) -> None:
    """Say that this process does not use a copy any more."""
    if target in _used:
        os.close(_used.pop(target))


def _remove_unless_locked(target: Path, what: Path) -> bool:
    """Remove a copy, or what is left of one, unless a process makes or uses it; whether it went."""
    with contextlib.ExitStack() as locks:
        for suffix in ("lock", "use"):
            file = locks.enter_context(_beside(target, suffix).open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        shutil.rmtree(what, ignore_errors=True)
    return True


def _used_at(target: Path) -> float:
    """When a copy was used last; 0 for one of an earlier version."""
    with contextlib.suppress(FileNotFoundError):
        return _beside(target, "use").stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
