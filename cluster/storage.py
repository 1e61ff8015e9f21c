"""Where a run keeps its things: folders on any pyarrow file system.

A file is written whole under a new name, read, listed, and removed when nothing needs it: no
rename, no append, no lock, so an object store can hold a run. A step is finished when its
`manifest.json` stands, which is written last; a manifest that a crash tore does not parse and
counts as not written.

Example::

    paths = Folder.open("s3://bucket/runs").child("gsm8k/round_0/paths-3f2a...")
    paths.write_table("part-000.parquet", table)
    paths.commit({"step": "paths", "num_rows": 8})
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from cluster.errors import InputError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Folder:
    """A folder of a run. Cheap to make and to send to a worker; nothing exists until written."""

    filesystem: pyarrow.fs.FileSystem
    path: str

    @classmethod
    def open(cls, uri: str) -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `hdfs://`, `file://`).

        Raises `InputError` when no file system answers to the URI.
        """
        location = uri if "://" in uri else str(Path(uri).expanduser().absolute())
        try:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"storage.root {uri!r} is not a folder or URI: {error}") from error
        return cls(filesystem, path)

    @property
    def uri(self) -> str:
        """How a person would write it: the plain path when local, else with its scheme."""
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def child(self, name: str) -> Folder:
        return Folder(self.filesystem, posixpath.join(self.path, name))

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
        start = posixpath.join(self.path, below).rstrip("/")
        selector = pyarrow.fs.FileSelector(start, allow_not_found=True, recursive=True)
        prefix = self.path.rstrip("/") + "/"
        return sorted(
            info.path.removeprefix(prefix)
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File
        )

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

    def is_empty(self) -> bool:
        """Whether nothing at all stands there."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return not self.filesystem.get_file_info(selector)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one whole file, making the folder. Raises `OSError` as the file system does."""
        path = posixpath.join(self.path, name)
        self.filesystem.create_dir(posixpath.dirname(path), recursive=True)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`."""
        with self.filesystem.open_input_stream(posixpath.join(self.path, name)) as stream:
            return bytes(stream.read())

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """The value, or None when the file is missing or torn by a crash."""
        try:
            return json.loads(self.read_bytes(name))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file in one go, so that a crash leaves all of it or a torn tail."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """The Parquet file for streaming. Raises `pa.ArrowInvalid` when it was torn by a crash."""
        return pq.ParquetFile(self.filesystem.open_input_file(posixpath.join(self.path, name)))

    def read_table(self, columns: list[str] | None = None) -> pa.Table:
        """All Parquet files of a committed step as one table, in the order of their names."""
        names = self.file_names(".parquet")
        return pa.concat_tables([self.open_parquet(name).read(columns=columns) for name in names])

    def commit(self, manifest: dict[str, Any]) -> None:
        """Say that the step is finished. Nothing of it is written after this."""
        self.write_json(MANIFEST, manifest)

    def manifest(self) -> dict[str, Any] | None:
        """What `commit` wrote, or None while the step is not finished."""
        value = self.read_json(MANIFEST)
        return value if isinstance(value, dict) else None

    def copy_from_local(self, source: Path) -> None:
        """Copy a local folder's files in."""
        self.filesystem.create_dir(self.path, recursive=True)
        pyarrow.fs.copy_files(
            str(source),
            self.path,
            source_filesystem=pyarrow.fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def local_copy(self, cache: Path) -> Path:
        """The folder as a local path: itself when it is local, else copied once into `cache`.

        Processes of one node may ask at once: each copies, and the first to finish puts its copy
        in place.
        """
        if self.is_local:
            return Path(self.path)
        target = cache / hashlib.sha256(self.path.encode()).hexdigest()[:16] / self.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix="copying-", dir=target.parent))
            for name in self.file_names():
                (work / name).write_bytes(self.read_bytes(name))
            put_in_place(work, target)
        return target


def put_in_place(work: Path, target: Path) -> None:
    """Give a finished local folder its name, unless another process was faster."""
    try:
        work.rename(target)
    except OSError:
        shutil.rmtree(work)
        if not target.is_dir():
            raise


def hash_file(path: Path) -> str:
    """The SHA-256 of a local file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
