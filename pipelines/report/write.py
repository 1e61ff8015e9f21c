"""Writes a report: the file of one or several runs, and that in the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import EARLY_ENDS
from cluster.store.folder import Folder
from cluster.subprocesses import run_apart
from cluster.terminal import say
from pipelines.report.content import report_data
from pipelines.report.page import assemble
from pipelines.report.paths.parts import browser_data
from pipelines.stored_run import StoredRun

FILE = "report.html"


def write_report(runs: Sequence[StoredRun], folder: Folder, name: str) -> None:
    """Write the file, and beside it a folder of parts where the paths are too many for one file.

    The runs are only read. Raises `InputError`, `DamagedFileError` and `StorageError`.
    """
    data = {"report": report_data(runs)}
    parts = folder.child(f"{name.removesuffix('.html')}-parts")
    paths = browser_data(runs, assemble, parts, name)
    if paths is not None:
        data["paths"] = dict(paths.index)
    folder.write_bytes(name, assemble(data, {"paths": paths.chunks} if paths else {}))


def write_own_report(folder: Folder) -> None:
    """Write the report of a finished run into its folder, if that is on this machine.

    It needs no claim on the run and is no part of it. What goes wrong is said and changes nothing
    else, since the results are stored already.
    """
    if not folder.is_local:
        return
    try:
        run_apart(_write_own, folder.uri)
    except (*EARLY_ENDS, RuntimeError) as error:
        say(f"note: the report could not be written ({error}); the results are complete")
        return
    say(f"open {folder.path}/{FILE}")


def _write_own(uri: str) -> None:
    run = StoredRun.read(uri)
    write_report([run], run.folder, FILE)
