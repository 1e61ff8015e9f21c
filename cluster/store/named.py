"""The folders and files that a command's arguments name, checked before the command does anything.

A sentence about one of them names the argument, such as `--to`, and not a setting.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import pyarrow.fs

from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.store.network import FIRST_ANSWER_S, one_line


def folder_to_read(argument: str, uri: str) -> Folder:
    """The folder with this address. Raises `InputError` for a file, and for a folder that cannot be
    reached; one that does not exist is empty."""
    folder = Folder.open(uri, argument=argument)
    if _kind_of(argument, folder) == pyarrow.fs.FileType.File:
        raise InputError(f"{argument} {folder.uri} is a file and no folder; correct the path")
    if folder.is_local and Path(folder.path).exists() and not os.access(folder.path, _READABLE):
        raise InputError(f"{argument} {folder.uri} may not be read; ask for the permission to")
    return folder


_READABLE = os.R_OK | os.X_OK


def folder_to_write(argument: str, uri: str) -> Folder:
    """The same for a folder that files will be written to, which may be new. Raises `InputError`
    also when it cannot be written."""
    folder = folder_to_read(argument, uri)
    if folder.is_local:
        refuse_unwritable(argument, folder.path)
    return folder


def file_to_write(argument: str, uri: str) -> tuple[Folder, str]:
    """The folder and the name of a file that will be written. Raises `InputError`."""
    place, name = split_address(uri)
    if not name:
        raise InputError(f"{argument} {uri}: name a file")
    folder = folder_to_write(argument, place)
    if _kind_of(argument, folder.child(name)) == pyarrow.fs.FileType.Directory:
        raise InputError(f"{argument} {uri} is a folder; name a file")
    return folder, name


def refuse_within(argument: str, folder: Folder, run: Folder) -> None:
    """Raise `InputError` for a folder that is a run's, or within it, where it would be taken for
    a part of the run."""
    if f"{folder.path}/".startswith(f"{run.path}/"):
        raise InputError(f"{argument} {folder.uri} is within the run's folder; name another folder")


def split_address(uri: str) -> tuple[str, str]:
    """The folder and the last name of an address; options of a URI (`?region=x`) stay with the
    folder."""
    address, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    place, slash, name = address.rpartition("/")
    return f"{place or slash or '.'}{question}{options}", name


def refuse_unwritable(argument: str, folder: str) -> None:
    """Raise `InputError` for a folder on a disk that this process cannot write or make."""
    path = Path(folder).expanduser().absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "may not be written" if there.is_dir() else "is not a folder"
        raise InputError(f"{argument} {folder!r}: {there} {why}; name another folder")


def _kind_of(argument: str, folder: Folder) -> pyarrow.fs.FileType:
    """What is at the address. It is not waited for long: nothing is lost yet."""
    filesystem = folder.waiting(min(folder.outage_s, FIRST_ANSWER_S)).filesystem
    try:
        return filesystem.get_file_info(posixpath.normpath(folder.path)).type
    except InputError as error:
        raise InputError(f"{argument}: {error}") from error
    except OSError as error:
        raise InputError(
            f"{argument} {folder.uri} cannot be reached: {one_line(error.__cause__ or error)}; "
            "check the address and the network"
        ) from error
