"""A store on a network that is away for a while is waited for.

Every access to a store that is no local disk passes a `NetworkStore`, a file system around the one
of pyarrow. A request that fails is made again, with growing pauses, until the store has been away
for `outage_s` seconds. What the store refuses for good (a wrong key, no such bucket) is not tried
again. A file is written to a buffer first and then uploaded as a whole, so that an upload can be
repeated; a read that fails in the middle continues where it was.

After `SAY_AFTER_S` seconds each process says once that the store does not answer, and later that it
answers again.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from cluster.errors import InputError, StoreAwayError, StoreRefusedError
from cluster.secrets import hide, refuse_key

R = TypeVar("R")

_logger = logging.getLogger("regenesis")  # that of `cluster.events`, which needs this module
_logger.addHandler(logging.NullHandler())

OUTAGE_S = 300.0
"""How long a store is waited for, where no setting says so."""
FIRST_ANSWER_S = 15.0
"""How long it is waited for when a command begins."""
SAY_AFTER_S = 20.0
LONGEST_PAUSE_S = 5.0
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 20.0
UPLOAD_MEMORY = 64 * 2**20
"""A larger file waits for its upload on the disk of the node."""
COPY_BYTES = 16 * 2**20

_REFUSALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|NO_SUCH_BUCKET"
    r"|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|ExpiredToken"
    r"|EXPIRED_TOKEN|OPT_IN_REQUIRED|INVALID_BUCKET_NAME|HTTP status (?:301|400|401|403|405)"
    r"|Permission denied|does not exist|curlCode: 60"  # 60 is a certificate that is not trusted
)
_AT_ONCE = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, InputError)
"""Answers of a store, and no failures."""


def open_filesystem(location: str, outage_s: float = OUTAGE_S) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a local path or URI, and the path in it.

    Raises `InputError` for a URI that holds a key, and what pyarrow raises for one that it does not
    know.
    """
    refuse_key("the address", location)
    filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return filesystem, path
    return waiting(_tuned(filesystem), outage_s), path


def waiting(filesystem: pyarrow.fs.FileSystem, outage_s: float) -> pyarrow.fs.FileSystem:
    """A file system on a network as one that waits so many seconds for its store."""
    return pyarrow.fs.PyFileSystem(NetworkStore(bare(filesystem), outage_s))


def bare(filesystem: pyarrow.fs.FileSystem) -> pyarrow.fs.FileSystem:
    """The file system itself, which waits for nothing."""
    store = store_of(filesystem)
    return filesystem if store is None else store.filesystem


def store_of(filesystem: pyarrow.fs.FileSystem) -> NetworkStore | None:
    """The store that is waited for; None for a disk, and for a file system of a test."""
    handler = getattr(filesystem, "handler", None)
    return handler if isinstance(handler, NetworkStore) else None


def _tuned(filesystem: pyarrow.fs.FileSystem) -> pyarrow.fs.FileSystem:
    """S3 with a request less for each file, and with time limits.

    Writes in the background could wait forever for a thread that waits for them (Arrow's issue
    32372).
    """
    if not isinstance(filesystem, pyarrow.fs.S3FileSystem):
        return filesystem
    options = {
        **filesystem.__reduce__()[1][0],
        "background_writes": False,
        "allow_delayed_open": True,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
    }
    return pyarrow.fs.S3FileSystem(**options)


# --- waiting -----------------------------------------------------------------------------------


def wait_out(call: Callable[[], R], store: str, outage_s: float) -> R:
    """Call until the store answers; the call has to be one that may be repeated.

    Raises what the call raises where that is an answer, `StoreRefusedError` for a refusal, and
    `StoreAwayError` when the store has been away for `outage_s` seconds.
    """
    began: float | None = None
    pauses = _pauses()
    while True:
        pause = next(pauses)
        try:
            result = call()
        except _AT_ONCE:
            _answered(store)
            raise
        except OSError as error:
            if _is_refusal(error):
                raise _refused(store, error) from error
            now = time.monotonic()
            began = now if began is None else began
            _failed(store, error, outage_s)
            if now + pause > began + outage_s:
                raise StoreAwayError(
                    f"the storage {store} has not answered for {outage_s:.0f} s "
                    f"({one_line(error)}); finished work is kept; repeat the command when it "
                    "answers again"
                ) from error
            time.sleep(pause)
        else:
            _answered(store)
            return result


def _pauses() -> Iterator[float]:
    """Growing pauses, different in each process, so that not all come back at once."""
    pause = 0.25
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _is_refusal(error: OSError) -> bool:
    return isinstance(error, PermissionError) or bool(_REFUSALS.search(str(error)))


def _refused(store: str, error: OSError) -> StoreRefusedError:
    return StoreRefusedError(
        f"the storage {store} refuses this request ({one_line(error)}); check that the bucket "
        "exists and that the keys of the environment, or the machine's role, may read and write it"
    )


def one_line(error: BaseException) -> str:
    """What a library says, in one line and without keys."""
    text = str(error).partition("Debug source:")[0]  # obstore repeats itself in Rust's words
    return hide(" ".join(text.split()))[:500]


_lock = threading.Lock()
_away: dict[str, float] = {}
"""Since when a store does not answer, on the monotonic clock."""
_said: set[str] = set()


def _failed(store: str, error: OSError, outage_s: float) -> None:
    now = time.monotonic()
    with _lock:
        past = now - _away.setdefault(store, now)
        if past < SAY_AFTER_S or store in _said:
            return
        _said.add(store)
    _say(
        f"the storage {store} has not answered for {past:.0f} s ({one_line(error)}); "
        f"waiting up to {outage_s:.0f} s for it"
    )


def _answered(store: str) -> None:
    if store not in _away:
        return
    with _lock:
        since = _away.pop(store, None)
        was_said = store in _said
        _said.discard(store)
    if since is not None and was_said:
        _say(f"the storage {store} answers again after {time.monotonic() - since:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    _logger.warning("%s", text)


# --- the file system ---------------------------------------------------------------------------


class NetworkStore(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]
    """A file system on a network, each of whose requests waits for the store."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, outage_s: float) -> None:
        self.filesystem, self.outage_s = filesystem, outage_s

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkStore) and self.filesystem == other.filesystem

    def __hash__(self) -> int:
        return hash(self.get_type_name())

    @property
    def keeps_folders(self) -> bool:
        """Whether a folder has to be made before a file in it; an object store has none."""
        return self.filesystem.type_name not in ("s3", "gcs", "abfs")

    def wait_out(self, call: Callable[[], R], path: str) -> R:
        """See `wait_out`; the store is named by the bucket of the path."""
        bucket = path.strip("/").partition("/")[0]
        return wait_out(call, f"{self.filesystem.type_name}://{bucket}", self.outage_s)

    def get_type_name(self) -> str:
        return str(self.filesystem.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        first = paths[0] if paths else ""
        return self.wait_out(lambda: self.filesystem.get_file_info(paths), first)

    def get_file_info_selector(self, selector: Any) -> Any:
        found = self.wait_out(lambda: self.filesystem.get_file_info(selector), selector.base_dir)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        if self.keeps_folders or "/" not in path.strip("/"):
            self.wait_out(lambda: self.filesystem.create_dir(path, recursive=recursive), path)

    def delete_dir(self, path: str) -> None:
        self.wait_out(lambda: self.filesystem.delete_dir(path), path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        delete = self.filesystem.delete_dir_contents
        self.wait_out(lambda: delete(path, missing_dir_ok=missing_dir_ok), path)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("nothing here empties a whole store")

    def delete_file(self, path: str) -> None:
        self.wait_out(lambda: self.filesystem.delete_file(path), path)

    def move(self, src: str, dest: str) -> None:
        self.wait_out(lambda: self.filesystem.move(src, dest), src)

    def copy_file(self, src: str, dest: str) -> None:
        self.wait_out(lambda: self.filesystem.copy_file(src, dest), src)

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(_Reader(self, path), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Upload(self, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError("an object store cannot append to a file")


class _Reader:
    """A file that is opened again, and read on, after its store was away."""

    def __init__(self, store: NetworkStore, path: str) -> None:
        self._store, self._path = store, path
        self._file: Any = store.wait_out(self._open, path)
        self._size = int(self._file.size())
        self._at = 0
        self.closed = False

    def _open(self) -> Any:
        return self._store.filesystem.open_input_file(self._path)

    def read(self, num_bytes: int = -1) -> Any:
        rest = max(0, self._size - self._at)
        wanted = rest if num_bytes < 0 else min(num_bytes, rest)
        data = self._store.wait_out(lambda: self._read(wanted), self._path) if wanted else b""
        self._at += len(data)
        return data

    def _read(self, num_bytes: int) -> Any:
        if self._file is None:
            self._file = self._open()
        try:
            self._file.seek(self._at)
            return self._file.read_buffer(num_bytes)
        except OSError:
            self._file = None
            raise

    def seek(self, position: int, whence: int = 0) -> int:
        self._at = position + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self.closed, self._file = True, None


class _Upload:
    """A file that is uploaded as a whole when it is closed, as often as it takes."""

    def __init__(self, store: NetworkStore, path: str, metadata: Any) -> None:
        self._store, self._path, self._metadata = store, path, metadata
        self._data = tempfile.SpooledTemporaryFile(UPLOAD_MEMORY)  # noqa: SIM115, closed below
        self.closed = False

    def write(self, data: Any) -> int:
        return self._data.write(data)

    def close(self) -> None:
        self.closed = True
        try:
            self._store.wait_out(self._upload, self._path)
        except FileNotFoundError as error:
            raise _refused(self._path.partition("/")[0], error) from error
        finally:
            self._data.close()

    def _upload(self) -> None:
        self._data.seek(0)
        filesystem = self._store.filesystem
        with filesystem.open_output_stream(self._path, metadata=self._metadata) as stream:
            shutil.copyfileobj(self._data, stream, COPY_BYTES)
