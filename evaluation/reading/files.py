"""Question files on any file system: found by name, opened, and decompressed if gzipped.

An error in a file raises `InputError` with the file and what to do. Gzip is recognised by a file's
first bytes, so its name need not end in `.gz`.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import posixpath
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs

from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.store.network import open_filesystem
from evaluation.reading.names import nearest

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xml")
BLOCK_BYTES = 8 << 20  # each block is a separate request to an object store
GZIP = b"\x1f\x8b"
Item = TypeVar("Item")

_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it with unzstd"),
    b"PK\x03\x04": ("zip", "unpack it with unzip"),
    b"BZh": ("bzip2", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("xz", "unpack it with unxz"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
    GZIP: ("gzip within gzip", "unpack it with gunzip"),
}
"""The first bytes of a file, the format that they indicate, and what to do."""

_SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)", re.DOTALL)
_NUMBERED = re.compile(
    r"(?P<before>(?:.*[-_. ])?(?:part|shard|chunk|split|file)?[-_.]?)(?P<number>\d{1,6})"
    r"(?P<after>\.[^-\d]*)"
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def suffix_of(location: str) -> str:
    """The format: the end of the name without `.gz`, in lower case."""
    name = location.casefold().removesuffix(".gz")
    return posixpath.splitext(name)[1]


def open_file(location: str) -> Any:
    """The file opened for reading, as it is stored. Raises `InputError`, with the nearest name."""
    try:
        filesystem, inner = open_filesystem(location)
        found = filesystem.get_file_info(inner).type
        if found == pyarrow.fs.FileType.File:
            _check_suffix(location)
            return _opened(filesystem, inner)
        parent, name = posixpath.split(inner)
        there = Folder(filesystem, parent).file_names()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error
    if found == pyarrow.fs.FileType.Directory:
        raise InputError(
            f"question file {location} is a folder; name the files in it, "
            f"or all of them with a star such as {location}/*.parquet"
        )
    raise InputError(
        f"no question file {location}{nearest(name, there)}; "
        "relative paths start at questions.folder"
    )


def _opened(filesystem: pyarrow.fs.FileSystem, path: str) -> Any:
    """A file; one on a network is read in one request, and not in small pieces."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return filesystem.open_input_file(path)
    parent, name = posixpath.split(path)
    return pa.BufferReader(Folder(filesystem, parent).read_buffer(name))


def _check_suffix(location: str) -> None:
    if suffix_of(location) not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise InputError(f"question file {location}: its name must end in {known}, or that and .gz")


def matching_files(location: str) -> list[str]:
    """The files that match a name with stars in its last part, sorted; otherwise the name itself.

    Raises `InputError` if none matches.
    """
    parent, name = posixpath.split(location)
    if "*" not in name:
        return [location]
    try:
        there = Folder.open(parent).file_names()
        # As in a shell, a star stands for no hidden file.
        visible = [file for file in there if not file.startswith(".") or name.startswith(".")]
        names = fnmatch.filter(visible, name)
    except OSError as error:
        raise InputError(f"cannot list {parent}: {error}") from error
    if not names:
        raise InputError(f"no file in {parent} matches {name}; fix the name")
    _check_gaps(parent, names)
    return [f"{parent}/{name}" for name in names]


def _check_gaps(parent: str, names: Iterable[str]) -> None:
    """Raise `InputError` where files are counted from 0 or 1, and one within is missing."""
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        part = _NUMBERED.fullmatch(name)
        if part:
            found[part["before"], part["after"]].add(int(part["number"]))
    for (before, after), numbers in found.items():
        missing = sorted(set(range(min(numbers), max(numbers))) - numbers)
        if min(numbers) <= 1 and 0 < len(missing) < len(numbers):
            raise InputError(
                f"{parent} has the files {before}{min(numbers)}{after} to "
                f"{before}{max(numbers)}{after} without number "
                f"{', '.join(map(str, missing[:5]))}; copy what is missing, or list "
                "the files by their names"
            )


def check_shards(locations: Iterable[str]) -> None:
    """Raise `InputError` if one of `-00000-of-00003` to `-00002-of-00003` is missing.

    They may be numbered from 0 or from 1.
    """
    found: defaultdict[tuple[str, int, str], set[int]] = defaultdict(set)
    names: dict[tuple[str, int, str], str] = {}
    for location in locations:
        shard = _SHARD.fullmatch(location)
        if shard:
            key = (shard[1], int(shard[3]), shard[4])
            found[key].add(int(shard[2]))
            names[key] = location
    for key, numbers in found.items():
        total = key[1]
        if numbers not in (set(range(total)), set(range(1, total + 1))):
            raise InputError(
                f"{names[key]} is one of {total} files, but only {len(numbers)} of them "
                f"{'is' if len(numbers) == 1 else 'are'} given (number "
                f"{', '.join(map(str, sorted(numbers)))}); give all {total}, or rename those to "
                "be read separately"
            )


def unpacked(stream: Any) -> BinaryIO:
    """The bytes of an opened file, decompressed if it begins like gzip."""
    raw = io.BufferedReader(stream, BLOCK_BYTES)
    if raw.peek(len(GZIP)).startswith(GZIP):
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw), BLOCK_BYTES))
    return raw


def reading(location: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; an error while reading the next one becomes an `InputError`."""
    try:
        yield from items
    except EOFError as error:
        raise InputError(
            f"{location} is cut short: its gzip data end too early; copy the file again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{location} is damaged: its gzip data cannot be unpacked ({error}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read the question file {location}: {error}") from error


def read_bytes(location: str, stream: BinaryIO, wanted: str) -> bytes:
    """The complete file without a byte order mark; `wanted` is the format in error messages."""
    data = b"".join(reading(location, iter(lambda: stream.read(BLOCK_BYTES), b"")))
    refuse_other_format(location, data, wanted)
    return data.removeprefix(BYTE_ORDER_MARK)


def read_text(location: str, stream: BinaryIO, wanted: str) -> str:
    """The complete file as text."""
    data = read_bytes(location, stream, wanted)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{location}:{line} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error


def refuse_other_format(location: str, start: bytes, wanted: str) -> None:
    """Raise `InputError` for a file whose first bytes show that it is not text."""
    for magic, (name, what_to_do) in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{location} is not {wanted} but {name}; {what_to_do}")
