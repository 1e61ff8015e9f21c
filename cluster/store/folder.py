"""Where a run keeps its things: folders on any pyarrow file system.

A file is written whole, read, listed, and removed when nothing needs it: no append and no lock, so
an object store can hold a run. On a disk a file gets its name once it is whole. A step is finished
when its `manifest.json` exists, which is written last. docs/STORAGE.md says what is checked, and
what a power cut can take.

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
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import xxhash

from cluster.errors import DamagedFileError, InputError, StorageError, TakenOverError
from cluster.secrets import refuse_key
from cluster.store.network import OUTAGE_S, bare, one_line, open_filesystem, store_of, waiting

MANIFEST = "manifest.json"
HOLDERS = "holders"
"""The folder within a run's in which its holders are written down (`cluster.store.holder`)."""
OPENED = "opened-"
"""A file `opened-<epoch>.json` in a step's folder says which holder began to work on it, and which
files of the holders before it count."""


@dataclass(frozen=True)
class Claim:
    """That this command holds a run: where the holders are listed, and the number of its own."""

    holders: str
    epoch: int


@dataclass(frozen=True)
class Folder:
    """A folder of a run. Cheap to make and to send to a worker; nothing exists until written."""

    filesystem: pyarrow.fs.FileSystem
    path: str
    claim: Claim | None = field(default=None, compare=False)

    @classmethod
    def open(cls, uri: str, outage_s: float = OUTAGE_S) -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `hdfs://`, `file://`).

        A store on a network may be away for `outage_s` seconds (`cluster.store.network`). Raises
        `InputError` when no file system answers to the URI, or when it holds a key.
        """
        refuse_key("the folder", uri)
        if slip := re.match(r"([a-z][a-z0-9+]+):/(?!/)", uri):
            wanted = f"{slip[1]}://{uri[slip.end() :]}"
            raise InputError(f"storage.root {uri!r} has one slash after the colon; write {wanted}")
        location = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        try:
            filesystem, path = open_filesystem(location, outage_s)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"storage.root {uri!r} is not a folder or URI: {one_line(error)}"
            ) from error
        return cls(filesystem, path)

    @property
    def uri(self) -> str:
        """How a person would write it: the plain path when local, else with its scheme."""
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
    def epoch(self) -> int:
        """The number of the holder that this command is; 0 for one that holds nothing."""
        return self.claim.epoch if self.claim else 0

    def check_claim(self) -> None:
        """Raises `TakenOverError` when another command has taken the run since, and `StorageError`
        when its folder was removed."""
        if self.claim is None:
            return
        latest = Folder(self.filesystem, self.claim.holders).latest_epoch("")
        if latest > self.claim.epoch:
            raise TakenOverError(f"another command has taken over the run ({self.claim.holders})")
        if latest < self.claim.epoch:
            raise StorageError(
                f"the run folder {posixpath.dirname(self.claim.holders)} was removed while this "
                "command worked on it; give the same command again to begin again"
            )

    def latest_epoch(self, prefix: str = OPENED, suffix: str = ".json") -> int:
        """The highest number in the names of its files `<prefix><number><suffix>`; 0 for none."""
        names = [name for name in self.file_names(suffix) if name.startswith(prefix)]
        numbers = (name.removeprefix(prefix).removesuffix(suffix) for name in names)
        return max((int(n) for n in numbers if n.isdigit()), default=0)

    def file_names(self, suffix: str = "") -> list[str]:
        """The names of the files directly in it, sorted; empty when it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File and info.base_name.endswith(suffix)
        )

    def walk(self, below: str = "") -> list[str]:
        """All files in it at any depth, or below one of its folders, as paths relative to it."""
        return list(self.sizes(below))

    def sizes(self, below: str = "") -> dict[str, int]:
        """The bytes of those files by their paths, sorted; by one listing."""
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
        """The names of the folders directly in it, sorted; empty when it does not exist."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.Directory
        )

    def written_at(self, names: Iterable[str]) -> float:
        """When the newest of some of its files was written, in seconds since 1970; 0 for none."""
        paths = [posixpath.join(self.path, name) for name in names]
        stamps = [info.mtime_ns or 0 for info in self.filesystem.get_file_info(paths)]
        return max(stamps, default=0) / 1e9

    def num_bytes(self, names: Iterable[str]) -> int:
        """The size of some of its files together."""
        paths = [posixpath.join(self.path, name) for name in names]
        return sum(info.size or 0 for info in self.filesystem.get_file_info(paths))

    def delete_files(self, names: Iterable[str]) -> None:
        """Remove files by their paths relative to the folder; one that is gone is no error."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(posixpath.join(self.path, name))

    def delete(self) -> None:
        """Remove the folder and all in it; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path)

    def delete_if_empty(self) -> None:
        """Remove the folder from a disk unless something is in it; a store keeps no folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self.path).rmdir()

    def is_empty(self) -> bool:
        """Whether nothing at all is there, apart from what a killed write left behind."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return all(
            info.base_name.startswith(_UNFINISHED)
            for info in self.filesystem.get_file_info(selector)
        )

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write one whole file, making the folder; a failed write leaves nothing of that name.

        Raises `StorageError` with the file and its size.
        """
        path = posixpath.join(self.path, name)
        with self._writing(name, len(data)):
            self.filesystem.create_dir(posixpath.dirname(path), recursive=True)
            if not self.is_local:
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(data)
                return
            with _written_aside(Path(path), data) as work:
                work.replace(path)

    @contextlib.contextmanager
    def _writing(self, name: str, num_bytes: int) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except OSError as error:
            fix = (
                "Free some space or restore the permission to write, then give"
                if self.is_local
                else "When the storage answers again, give"
            )
            raise StorageError(
                f"{self.uri}/{name} ({num_bytes} bytes) cannot be written: "
                f"{error.strerror or one_line(error)}; what was finished is kept. {fix} the same "
                "command again"
            ) from error

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one of that name; whether it was written.

        Of several processes that try at once exactly one succeeds: on a disk, and on an object
        store by a conditional request (`cluster.store.conditional`). Raises `StorageError`.
        """
        path = posixpath.join(self.path, name)
        with self._writing(name, len(data)):
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
        """The whole file, in one request. Raises `FileNotFoundError`."""
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as file:
            return file.read_buffer(file.size())

    def blocks(self, name: str, num_bytes: int) -> Iterator[pa.Buffer]:
        """The file in pieces of so many bytes, a request each. Raises `FileNotFoundError`."""
        with self.filesystem.open_input_file(posixpath.join(self.path, name)) as file:
            while len(block := file.read_buffer(num_bytes)):
                yield block

    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`."""
        return bytes(self.read_buffer(name).to_pybytes())

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """The value, or None when the file is missing or torn by a crash."""
        try:
            return json.loads(self.read_bytes(name))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file in one go."""
        self.write_bytes(name, parquet_bytes(table))

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """The Parquet file for streaming, whose pages are checked as they are read.

        Raises what pyarrow raises for a damaged file.
        """
        file = self.filesystem.open_input_file(posixpath.join(self.path, name))
        # A network store is asked once for neighbouring columns.
        is_far = not self.is_local
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=is_far)

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One whole file as a table. Raises `DamagedFileError` when it is missing or damaged."""
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
            raise DamagedFileError(f"{self.uri} holds no Parquet file")
        return pa.concat_tables([self._read_columns(name, columns) for name in names])

    def _read_columns(self, name: str, columns: list[str] | None) -> pa.Table:
        try:
            return self.open_parquet(name).read(columns=columns)
        except BROKEN_PARQUET:
            return self.read_parquet(
                name, columns
            )  # tells damage from a store that does not answer

    def commit(self, manifest: dict[str, Any]) -> None:
        """Say that the step is finished. Nothing of it is written after this."""
        self.check_claim()
        facts = manifest | ({"epoch": self.epoch} if self.epoch else {})
        self.write_json(MANIFEST, facts | {"xxh3": _hash_of(facts)})
        self.sync([MANIFEST])

    def manifest(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None while the step is not finished.

        Nor is it by the manifest of a holder that wrote it after another one had begun anew.
        Raises `DamagedFileError` for one that is not as it was written.
        """
        value = self.read_json(MANIFEST)
        if not isinstance(value, dict):
            return None
        if value.pop("xxh3", None) not in (None, _hash_of(value)):  # none by an earlier version
            raise DamagedFileError(
                f"{self.uri}/{MANIFEST} is damaged; put back what was there, or delete it to have "
                "the step finished again"
            )
        return value if value.get("epoch", 0) >= self.latest_epoch() else None

    def sync(self, names: Iterable[str]) -> None:
        """Have a disk keep files and the folders they are in, also when the power fails.

        An object store keeps what it has acknowledged. Raises `StorageError`.
        """
        if not self.is_local:
            return
        files = [Path(self.path) / name for name in names]
        folders = {parent for file in files for parent in (file.parent, *file.parent.parents)}
        below = [p for p in folders if p.is_relative_to(Path(self.path).parent)]
        for path in (*files, *sorted(below, reverse=True)):
            with self._writing(str(path.relative_to(Path(self.path).parent)), 0):
                _fsync(path)

    def copy_from_local(self, source: Path) -> None:
        """Copy a local folder's files in. Raises `StorageError`, and `TakenOverError`."""
        self.check_claim()
        num_bytes = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        with self._writing("", num_bytes):
            self.filesystem.create_dir(self.path, recursive=True)
            pyarrow.fs.copy_files(
                str(source),
                self.path,
                source_filesystem=pyarrow.fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )


BROKEN_PARQUET = (pa.ArrowException, OSError, MemoryError, KeyError, ValueError)
"""What pyarrow raises for one; `OSError` also where the storage cannot be read."""
_UNFINISHED = ".writing-"
"""How the name of a file begins that is being written on a disk."""


def parquet_bytes(table: pa.Table, row_groups: Sequence[int] = ()) -> pa.Buffer:
    """A table as a Parquet file whose pages carry checksums; all files are written by this.

    `row_groups` is the number of rows of each; by default all are one.
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
    """How many rows a Parquet file has. Raises `DamagedFileError` with the name."""
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
    """A file with the data next to where it is to be; it is gone after the block."""
    work = path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
    try:
        work.write_bytes(data)
        yield work
    finally:
        work.unlink(missing_ok=True)


def _create_file(path: Path, data: bytes) -> bool:
    """Give data a name on a disk, whole, unless there is such a file; whether it was done."""
    with _written_aside(path, data) as work:
        try:
            path.hardlink_to(work)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                path.open("xb").close()  # a file system without links: empty for a moment
            except FileExistsError:
                return False
            work.replace(path)
    return True


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _hash_of(facts: Any) -> str:
    """A hash of JSON values, whatever the order of the keys."""
    plain = json.loads(json.dumps(facts))
    text = json.dumps(plain, sort_keys=True)
    return str(xxhash.xxh3_128(text.encode()).hexdigest())


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
