"""The storage of a run: folders on any pyarrow file system.

Files are written as a whole, read, listed, and removed when nothing needs them. There are no
appends and no locks, so an object store can hold a run. On a disk a file gets its name once it is
complete. A step is finished when its `manifest.json` exists, which is written last. docs/STORAGE.md
says what is checked, and what a power failure can lose.

Example::

    paths = Folder.open("s3://bucket/runs").child("gsm8k/round_0/paths-3f2a...")
    paths.write_table("part-000.parquet", table)
    paths.commit({"step": "paths", "num_rows": 8})
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import xxhash

from cluster.errors import (
    DamagedFileError,
    InputError,
    StorageError,
    StoreAwayError,
    TakenOverError,
)
from cluster.secrets import refuse_key
from cluster.settings import fingerprint
from cluster.store import unfinished
from cluster.store.network import OUTAGE_S, bare, one_line, open_filesystem, store_of, waiting

MANIFEST = "manifest.json"
HOLDERS = "holders"
"""The folder in a run's folder that records its holders (`cluster.store.holder`)."""
STEP_NAME = re.compile(r"[a-z]+(-.+)?-[0-9a-f]{12}")
OPENED = "opened-"
"""A file `opened-<epoch>.json` in a step's folder records which holder began to work on the step,
and which files of earlier holders count."""


_SLIP = re.compile(
    r"([a-z][a-z0-9+]+):/(?!/)|(s3|gs|gcs|hdfs|viewfs|abfss?|file|https?)(?::(?!/)|//)"
)
"""The beginning of a URI with a wrong number of slashes, or without the colon."""


@dataclass(frozen=True)
class Claim:
    """Proof that this command holds a run: the folder of the holders, and this holder's number."""

    holders: str
    epoch: int


@dataclass(frozen=True)
class Folder:
    """A folder of a run. It is cheap to create and to send; nothing exists until it is written."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    claim: Claim | None = field(default=None, compare=False)

    @classmethod
    def open(cls, uri: str, outage_s: float = OUTAGE_S, argument: str = "storage.root") -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `hdfs://`, `file://`).

        A store on a network may be away for `outage_s` seconds (`cluster.store.network`). Raises
        `InputError`, which names the setting or argument that gave the URI, when no file system is
        known for it, or when it holds a key.
        """
        refuse_key(argument, uri)
        if not uri.strip():
            raise InputError(
                f"{argument} has no value; give a folder or a URI such as s3://bucket/runs"
            )
        if slip := _SLIP.match(uri):
            scheme, rest = slip[1] or slip[2], uri[slip.end() :]
            wanted = f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"
            raise InputError(f"{argument} {uri!r} is no folder and no URI; write {wanted}")
        location = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        try:
            filesystem, path = open_filesystem(location, outage_s)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{argument} {uri!r} is not a folder or URI: {one_line(error)}"
            ) from error
        if not path.strip("/") and not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
            raise InputError(f"{argument} {uri!r} names no bucket; write s3://bucket/folder")
        return cls(filesystem, path)

    @property
    def uri(self) -> str:
        """The plain path if local, otherwise with its scheme."""
        return self.path if self.is_local else f"{bare(self.filesystem).type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    @property
    def outage_s(self) -> float:
        """How long its store is waited for; 0 for a disk."""
        store = store_of(self.filesystem)
        return store.outage_s if store else 0.0

    def waiting(self, outage_s: float) -> Folder:
        """The same folder, whose store is waited for so many seconds."""
        if store_of(self.filesystem) is None:
            return self
        return replace(self, filesystem=waiting(self.filesystem, outage_s))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def child(self, name: str) -> Folder:
        return replace(self, path=posixpath.join(self.path, name))

    @property
    def parent(self) -> Folder:
        return replace(self, path=posixpath.dirname(self.path))

    @property
    def epoch(self) -> int:
        """The number of the holder that this command is; 0 if it holds nothing."""
        return self.claim.epoch if self.claim else 0

    def check_claim(self) -> None:
        """Raise `TakenOverError` when another command has taken the run since, and `StorageError`
        when its folder was removed."""
        if self.claim is None:
            return
        latest = Folder(self.filesystem, self.claim.holders).latest_epoch("")
        if latest > self.claim.epoch:
            raise TakenOverError(f"another command has taken over the run ({self.claim.holders})")
        if latest < self.claim.epoch:
            raise StorageError(
                f"the run folder {posixpath.dirname(self.claim.holders)} was removed while this "
                "command worked on it; repeat the command to begin again"
            )

    def latest_epoch(self, prefix: str = OPENED, suffix: str = ".json") -> int:
        """The highest number in file names `<prefix><number><suffix>`; 0 if there are none."""
        names = [name for name in self.file_names(suffix) if name.startswith(prefix)]
        numbers = (name.removeprefix(prefix).removesuffix(suffix) for name in names)
        return max((int(n) for n in numbers if n.isdigit()), default=0)

    def file_names(self, suffix: str = "") -> list[str]:
        """The sorted names of the files directly in it; empty if it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File and info.base_name.endswith(suffix)
        )

    def walk(self, below: str = "") -> list[str]:
        """All files in it at any depth, or below one of its subfolders, as relative paths."""
        return list(self.sizes(below))

    def sizes(self, below: str = "") -> dict[str, int]:
        """The size of each of those files by sorted path, from one listing."""
        start = posixpath.join(self.path, below).rstrip("/")
        selector = pyarrow.fs.FileSelector(start, allow_not_found=True, recursive=True)
        prefix = self.path.rstrip("/") + "/"
        files = {
            info.path.removeprefix(prefix): info.size or 0
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File
        }
        return dict(sorted(files.items()))

    def folder_names(self) -> list[str]:
        """The sorted names of the folders directly in it; empty if it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.Directory
        )

    def written_at(self, names: Iterable[str]) -> float:
        """When the newest of the files was written, in seconds since 1970; 0 without files."""
        paths = [posixpath.join(self.path, name) for name in names]
        stamps = [info.mtime_ns or 0 for info in self.filesystem.get_file_info(paths)]
        return max(stamps, default=0) / 1e9

    def num_bytes(self, names: Iterable[str]) -> int:
        """The total size of some of its files."""
        paths = [posixpath.join(self.path, name) for name in names]
        return sum(info.size or 0 for info in self.filesystem.get_file_info(paths))

    def delete_files(self, names: Iterable[str]) -> None:
        """Remove files by their relative paths; a file that is gone is not an error.

        Raises `StorageError` with the file.
        """
        for name in names:
            with self._storing(name, "cannot be removed"), contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(posixpath.join(self.path, name))

    def delete(self) -> None:
        """Remove the folder and everything in it; a missing folder is not an error.

        Raises `StorageError`.
        """
        with self._storing("", "cannot be removed"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def delete_if_empty(self) -> None:
        """Remove the folder from a disk if it is empty; an object store has no folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self.path).rmdir()

    def is_empty(self) -> bool:
        """Whether it contains nothing, apart from what a killed write left behind."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return all(
            info.base_name.startswith(unfinished.PREFIX)
            for info in self.filesystem.get_file_info(selector)
        )

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write one complete file, creating the folder; a failed write leaves no file of that name.

        Raises `StorageError` with the file and its size.
        """
        path = posixpath.join(self.path, name)
        with self.writing(name, len(data)):
            self.filesystem.create_dir(posixpath.dirname(path), recursive=True)
            if not self.is_local:
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(data)
                return
            with _written_aside(Path(path), data) as work:
                work.replace(path)

    @contextlib.contextmanager
    def writing(self, name: str, num_bytes: int) -> Iterator[None]:
        """Within the block a file of it is written. Raises `StorageError` for an `OSError`."""
        with self._storing(name, f"({num_bytes} bytes) cannot be written"):
            yield

    @contextlib.contextmanager
    def _storing(self, name: str, failure: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except StoreAwayError as error:
            raise StorageError(f"{self._named(name)} {failure}: {error}") from error
        except OSError as error:
            fix = (
                "Free some space or restore the permission to write, then"
                if self.is_local
                else "When the storage answers again,"
            )
            raise StorageError(
                f"{self._named(name)} {failure}: "
                f"{error.strerror or one_line(error)}; finished work is kept. {fix} repeat the "
                "command"
            ) from error

    def _named(self, name: str) -> str:
        """The address of one of its files, or its own."""
        return posixpath.join(self.uri, name) if name else self.uri

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless its name exists; returns whether it was written.

        Of several processes that try at once exactly one succeeds: on a disk, and on an object
        store by a conditional request (`cluster.store.conditional`). Raises `StorageError`.
        """
        path = posixpath.join(self.path, name)
        with self.writing(name, len(data)):
            if not self.is_local:
                return self._create_object(name, data)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return _create_file(Path(path), data)

    def _create_object(self, name: str, data: bytes) -> bool:
        from cluster.store.conditional import create_object

        path, failures = posixpath.join(self.path, name), 0

        def create() -> bool:
            nonlocal failures
            try:
                return create_object(bare(self.filesystem), path, data)
            except OSError:
                failures += 1
                raise

        store = store_of(self.filesystem)
        is_created = store.wait_out(create, path) if store else create()
        # The store may have done what it did not confirm.
        return is_created or bool(failures and self.read_bytes(name) == data)

    def read_buffer(self, name: str) -> pa.Buffer:
        """The complete file, in one request. Raises `FileNotFoundError`."""
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as file:
            return file.read_buffer(file.size())

    def blocks(self, name: str, num_bytes: int) -> Iterator[pa.Buffer]:
        """The file in pieces of so many bytes, a request each. Raises `FileNotFoundError`."""
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as file:
            while len(block := file.read_buffer(num_bytes)):
                yield block

    def read_bytes(self, name: str) -> bytes:
        """The complete file. Raises `FileNotFoundError`."""
        return bytes(self.read_buffer(name).to_pybytes())

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """The value, or None if the file is missing or was cut off by a crash."""
        try:
            return json.loads(self.read_bytes(name))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as one Parquet file."""
        self.write_bytes(name, parquet_bytes(table))

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """Open the Parquet file for streaming; its pages are checked as they are read.

        Raises what pyarrow raises for a damaged file.
        """
        file = self.filesystem.open_input_file(posixpath.join(self.path, name))
        # A network store is asked once for neighbouring columns.
        is_far = not self.is_local
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=is_far)

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One complete file as a table. Raises `DamagedFileError` if it is missing or damaged."""
        try:
            data = self.read_buffer(name)
        except FileNotFoundError:
            raise DamagedFileError(f"{self.uri}/{name} is missing") from None
        return table_of(data, f"{self.uri}/{name}", columns)

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """All Parquet files of a committed step as one table, in the order of their names.

        Raises `DamagedFileError`.
        """
        names = self.file_names(".parquet")
        if not names:
            raise DamagedFileError(f"{self.uri} contains no Parquet file")
        return pa.concat_tables([self._read_columns(name, columns) for name in names])

    def _read_columns(self, name: str, columns: list[str] | None) -> pa.Table:
        try:
            return self.open_parquet(name).read(columns=columns)
        except BROKEN_PARQUET:
            return self.read_parquet(
                name, columns
            )  # distinguishes damage from a store that does not answer

    def commit(self, manifest: dict[str, Any]) -> None:
        """Record that the step is finished. None of its files are written after this."""
        self.check_claim()
        facts = manifest | ({"epoch": self.epoch} if self.epoch else {})
        self.write_json(MANIFEST, facts | {"xxh3": _hash_of(facts)})
        self.sync([MANIFEST])

    def manifest(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None while the step is not finished.

        A manifest that a holder wrote after another one had started again does not count. Raises
        `DamagedFileError` if the manifest differs from what was written, or is another step's.
        """
        value = self.read_json(MANIFEST)
        if not isinstance(value, dict) or not value:
            return None
        if value.pop("xxh3", None) not in (None, _hash_of(value)):  # earlier versions wrote no hash
            raise DamagedFileError(
                f"{self.uri}/{MANIFEST} is damaged; restore the original, or delete it to "
                "finish the step again"
            )
        if STEP_NAME.fullmatch(self.name) and not _is_of(self.name, value):
            raise DamagedFileError(
                f"{self.uri}/{MANIFEST} belongs to another step; restore the original, or delete "
                "it to finish the step again"
            )
        return value if value.get("epoch", 0) >= self.latest_epoch() else None

    def sync(self, names: Iterable[str]) -> None:
        """Make a disk keep files and their folders even after a power failure.

        An object store keeps what it has acknowledged. Raises `StorageError`.
        """
        if not self.is_local:
            return
        files = [Path(self.path) / name for name in names]
        folders = {parent for file in files for parent in (file.parent, *file.parent.parents)}
        below = [p for p in folders if p.is_relative_to(Path(self.path).parent)]
        for path in (*files, *sorted(below, reverse=True)):
            with self.writing(str(path.relative_to(Path(self.path).parent)), 0):
                _fsync(path)

    def copy_from_local(self, source: Path) -> None:
        """Copy a local folder's files in. Raises `StorageError`, and `TakenOverError`."""
        self.check_claim()
        num_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        with self.writing("", num_bytes):
            self.filesystem.create_dir(self.path, recursive=True)
            pyarrow.fs.copy_files(
                str(source),
                self.path,
                source_filesystem=pyarrow.fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )


BROKEN_PARQUET = (pa.ArrowException, OSError, MemoryError, KeyError, ValueError)
"""What pyarrow raises for a broken file; `OSError` also when the storage cannot be read."""


def parquet_bytes(table: pa.Table, row_groups: Sequence[int] = ()) -> pa.Buffer:
    """A table as a Parquet file whose pages have checksums; all Parquet files are written this way.

    `row_groups` has the number of rows of each group; by default there is one group.
    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        start = 0
        for size in row_groups or [table.num_rows]:
            writer.write_table(table.slice(start, size), row_group_size=size or None)
            start += size
    return sink.getvalue()


def table_of(data: pa.Buffer, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file. Raises `DamagedFileError` with the name."""
    with _parsing(name):
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=columns, use_threads=False)


def num_rows(data: pa.Buffer, name: str) -> int:
    """The number of rows of a Parquet file. Raises `DamagedFileError` with the name."""
    with _parsing(name):
        return int(pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows)


@contextlib.contextmanager
def _parsing(name: str) -> Iterator[None]:
    try:
        yield
    except BROKEN_PARQUET as error:
        why = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{name} is damaged ({why})") from error


@contextlib.contextmanager
def _written_aside(path: Path, data: bytes | pa.Buffer) -> Iterator[Path]:
    """A temporary file with the data, in the target's folder; it is removed after the block."""
    work = path.with_name(unfinished.new_name())
    try:
        work.write_bytes(data)
        yield work
    finally:
        work.unlink(missing_ok=True)


def _create_file(path: Path, data: bytes) -> bool:
    """Create a complete file on a disk unless its name exists; returns whether it was created."""
    with _written_aside(path, data) as work:
        try:
            path.hardlink_to(work)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                path.open("xb").close()  # without hard links the file is empty for a moment
            except FileExistsError:
                return False
            work.replace(path)
    return True


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _hash_of(facts: Any) -> str:
    """A hash of JSON values, independent of the order of keys."""
    plain = json.loads(json.dumps(facts))
    text = json.dumps(plain, sort_keys=True)
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def _is_of(name: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is that of the step with this name; one without content may be any's."""
    content = manifest.get("content")
    return content is None or name == f"{manifest.get('step')}-{fingerprint(content)}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """The SHA-256 of a local file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
