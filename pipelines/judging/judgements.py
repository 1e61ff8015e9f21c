"""What people found: read back from a sheet, checked against the run, stored and summed up.

The file that a sheet saves::

    {"format": "regenesis judgements", "version": 1, "sheet": "3f2a...", "judge": "",
     "judgements": [{"id": "9c...", "fingerprint": "5a...", "valid": "no", "note": "step 2"}]}

They are stored in `judgements/` of the run's folder, a file for each sheet and judge, whose
manifest lists them with size and hash. No step reads this folder, and `clean` leaves it alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import DamagedFileError, InputError
from cluster.settings import fingerprint
from cluster.store.contents import damaged_files, list_contents, wrong_files
from cluster.store.folder import Folder
from cluster.terminal import format_table
from evaluation.statistics import wilson_interval
from pipelines.judging.sheet import judged_paths, path_ids_of
from pipelines.selection.vetoes import JUDGEMENTS_SCHEMA, VALID
from pipelines.stored_run import StoredRun

FORMAT = "regenesis judgements"
VERSION = 1
FOLDER = "judgements"
MOST_BYTES = 20_000_000
MOST_NOTE = 10_000
_FIELDS = ("id", "fingerprint", "valid")


def read_judgements(path: str) -> dict[str, Any]:
    """A file as a sheet saves it, checked. Raises `InputError` for any other file."""
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} is too large for a file of judgements; give another file")
        read = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); save the sheet again") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise InputError(f"{path} is no file of judgements; give one that a sheet saved")
    if read.get("version") != VERSION:
        raise InputError(
            f"{path} has version {read.get('version')!r} of the format, and this program reads "
            f"version {VERSION}; make a new sheet"
        )
    _check_texts(path, read)
    return read


def _check_texts(path: str, read: Mapping[str, Any]) -> None:
    if not all(isinstance(read.get(name), str) for name in ("sheet", "judge")):
        raise InputError(f"{path} does not name its sheet and judge; save the sheet again")
    judgements = read.get("judgements")
    if not isinstance(judgements, list) or not judgements:
        raise InputError(f"{path} has no judgement; judge at least one path and save it again")
    seen: set[str] = set()
    for number, each in enumerate(judgements, 1):
        if problem := _problem_of(each, seen):
            raise InputError(f"{path}, judgement {number}: {problem}; save the sheet again")
        seen.add(each["id"])


def _problem_of(judgement: Any, seen: set[str]) -> str | None:
    """What is wrong with one judgement."""
    if not isinstance(judgement, dict):
        return "it is not an object"
    for name in _FIELDS:
        if not isinstance(judgement.get(name), str):
            return f"its {name} is not a text"
    if judgement["valid"] not in VALID:
        return f"valid is {judgement['valid'][:20]!r} and not one of {', '.join(VALID)}"
    note = judgement.get("note", "")
    if not isinstance(note, str) or len(note) > MOST_NOTE:
        return f"its note is not a text of at most {MOST_NOTE} characters"
    return f"{judgement['id'][:20]!r} is judged twice" if judgement["id"] in seen else None


def matched(run: StoredRun, read: Mapping[str, Any], path: str) -> pa.Table:
    """The judgements as rows of `JUDGEMENTS_SCHEMA`, with the paths that they are of.

    Raises `InputError` where the run has no such path, or the path has another text.
    """
    given = {each["id"]: each for each in read["judgements"]}
    path_ids = path_ids_of(run, set(given))
    if unknown := [each for each in given if each not in path_ids]:
        raise InputError(
            f"{path}: {len(unknown)} of {len(given)} judgements are of paths that the run "
            f"{run.folder.uri} does not have (the first is {unknown[0][:20]!r}); give the run "
            "that the sheet was made from"
        )
    rows = []
    for judged in judged_paths(run, sorted(path_ids.values())):
        judgement = given[judged.blind_id]
        if judgement["fingerprint"] != judged.fingerprint:
            raise InputError(
                f"{path}: the path {judged.path.path_id} has another text than the one that was "
                "judged; make a new sheet"
            )
        rows.append(
            {
                "path_id": judged.path.path_id,
                "text_fingerprint": judged.fingerprint,
                "question_id": judged.question.question_id,
                "dataset": judged.question.dataset,
                "verdict": judged.path.verdict,
                "valid": judgement["valid"],
                "note": _storable(judgement.get("note", "")),
                "judge": _storable(read["judge"]),
                "sheet": _storable(read["sheet"]),
            }
        )
    return pa.Table.from_pylist(rows, schema=JUDGEMENTS_SCHEMA).sort_by("path_id")


def _storable(text: str) -> str:
    """The text without half surrogate pairs, which Parquet cannot hold."""
    return text.encode("utf-8", "replace").decode()


# --- storing -----------------------------------------------------------------------------------


def store(run: StoredRun, judgements: pa.Table, read: Mapping[str, Any]) -> str:
    """Write the judgements into the run's folder; returns the file. The same sheet of the same
    judge is replaced. Raises `DamagedFileError` for damage there, and `StorageError`."""
    folder = run.folder.child(FOLDER)
    check(folder)
    name = f"sheet-{fingerprint(read['sheet'], read['judge'])}.parquet"
    folder.write_table(name, judgements)
    folder.commit({"step": FOLDER, "files": list_contents(folder, None)})
    return f"{folder.uri}/{name}"


def check(folder: Folder) -> None:
    """Raise `DamagedFileError` if a stored file of judgements is missing or has changed."""
    manifest = folder.manifest()
    if manifest is None:
        return
    wrong = wrong_files(folder, manifest) or damaged_files(folder, manifest["files"])
    if wrong:
        raise DamagedFileError(
            f"the judgements {folder.uri} have changed: {wrong[0]}; restore the original file, or "
            "delete the folder and import the sheets again"
        )


# --- what they say -----------------------------------------------------------------------------


def rates(judgements: pa.Table) -> list[dict[str, Any]]:
    """For each verdict and for all: how many paths were judged, and the share of valid ones among
    those that are valid or not, with its 95 % interval (Wilson); None without any."""
    rows = judgements.select(["verdict", "valid"]).to_pylist()
    verdicts = sorted({row["verdict"] or "" for row in rows})
    return [_rate(verdict, rows) for verdict in (*verdicts, None)]


def _rate(verdict: str | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [row["valid"] for row in rows if verdict in (None, row["verdict"] or "")]
    yes, no = mine.count("yes"), mine.count("no")
    low, high = wilson_interval(yes, yes + no)
    return {
        "verdict": "all" if verdict is None else verdict,
        "judged": len(mine),
        **{answer: mine.count(answer) for answer in VALID},
        "valid_share": yes / (yes + no) if yes + no else None,
        "low": low,
        "high": high,
    }


def format_rates(found: Sequence[Mapping[str, Any]]) -> str:
    """The rates as a table, in percent."""
    return format_table([["verdict", "judged", *VALID, "valid reasoning"], *_lines(found)])


def _lines(found: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for each in found:
        share, low, high = each["valid_share"], each["low"], each["high"]
        shown = "" if share is None else f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        yield [each["verdict"], *(str(each[name]) for name in ("judged", *VALID)), shown]
