"""Finds the answers that people name: of a run, of an evaluation, or in files of other tools.

runs/quickstart                   each model of a run: base, round_0, ...
runs/quickstart/round_0           one of them
runs/evaluations                  each model of an evaluation
logs/my-model                     a folder with samples_*.jsonl of lm-evaluation-harness
logs/samples_gsm8k.jsonl          one such file
predictions.jsonl                 predictions of any tool
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.fs

from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.store.named import folder_to_read
from cluster.store.step import read_steps
from evaluation.answers import Answer, AnswerSet
from evaluation.predictions import Prediction
from evaluation.reading.files import unpacked
from evaluation.reading.json_rows import Placed, read_json_lines
from evaluation.reading.lm_eval import FILE_NAME, is_lm_eval, read_lm_eval, task_of
from evaluation.reading.prediction_rows import read_predictions
from evaluation.reading.rows import resolve

_STEP = re.compile(r"predictions(?P<suffix>-.+)?-[0-9a-f]{12}")
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)=(?P<what>.+)")


def find_answers(given: str) -> list[AnswerSet]:
    """The answers at a place, `NAME=PLACE` or the place alone: a set for each model.

    Raises `InputError` where there are none, and `DamagedFileError` for a damaged file.
    """
    named = _NAMED.fullmatch(given)
    place = named["what"] if named else given
    sets = _found(place)
    if named is None:
        return sets
    if len(sets) == 1:
        return [replace(sets[0], name=named["name"])]
    return [replace(each, name=f"{named['name']}/{each.name}") for each in sets]


def distinct_names(sets: Sequence[AnswerSet], given: Sequence[str]) -> list[AnswerSet]:
    """The sets, where those that would have one name get the place that each was found at."""
    names = [each.name for each in sets]
    found = [
        replace(each, name=f"{place.rstrip('/')}:{each.name}")
        if names.count(each.name) > 1
        else each
        for each, place in zip(sets, given, strict=True)
    ]
    repeated = [each.name for each in found]
    if len(set(repeated)) < len(repeated):
        raise InputError(
            f"{max(repeated, key=repeated.count)} is given twice; name each of them once, or write "
            "NAME=PLACE"
        )
    return found


def _found(place: str) -> list[AnswerSet]:
    if _is_file(place):
        return [_of_file(place)]
    folder = folder_to_read("the folder", place)
    for find in (_of_steps, _of_part, _of_logs):
        if sets := find(folder):
            return sets
    raise InputError(
        f"{place} holds no predictions; give the folder of a run or of an evaluation, a part of it "
        "such as RUN/round_0, a folder with samples_*.jsonl, or a JSONL file"
    )


def _is_file(place: str) -> bool:
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(resolve(place, "."))
        found = filesystem.get_file_info(path).type
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {place}: {error}") from error
    if found == pyarrow.fs.FileType.NotFound:
        raise InputError(f"there is no file or folder {place}; correct the path")
    return bool(found == pyarrow.fs.FileType.File)


# --- folders of ours ---------------------------------------------------------------------------


def _of_steps(folder: Folder) -> list[AnswerSet]:
    """Each model of a run or an evaluation."""
    return [_of_step(folder.child(step)) for step in _with_predictions(folder)]


def _of_part(folder: Folder) -> list[AnswerSet]:
    """The models of one part of a run, such as `round_0`, or of one evaluated model."""
    parts = folder.path.rstrip("/").split("/")
    for depth in (1, 2):  # `RUN/round_0`, and `RUN/models/NAME` or one step
        above = replace(folder, path="/".join(parts[:-depth]))
        part = "/".join(parts[-depth:])
        if below := [
            step for step in _with_predictions(above) if f"{step}/".startswith(f"{part}/")
        ]:
            return [_of_step(above.child(step)) for step in below]
    return []


def _with_predictions(run: Folder) -> list[str]:
    """The steps with predictions of a run or an evaluation; none if the folder is neither."""
    return [s for s in read_steps(run) or () if _STEP.fullmatch(posixpath.basename(s))]


def _of_step(folder: Folder) -> AnswerSet:
    if folder.manifest() is None:
        raise InputError(
            f"the predictions {folder.uri} are not finished; give the command that makes them again"
        )
    found = _STEP.fullmatch(folder.name)
    parent = posixpath.basename(posixpath.dirname(folder.path))
    name = f"{parent}{found['suffix'] or ''}" if found else parent
    rows = Ledger.read(folder).rows()
    answers = [
        Answer.from_prediction(Prediction.from_row(row), f"{name}/{row['question_id']}")
        for row in rows
    ]
    return AnswerSet(name, answers)


# --- files of other tools ----------------------------------------------------------------------


def _of_logs(folder: Folder) -> list[AnswerSet]:
    """The logs of one model, a file a task."""
    names = [name for name in folder.file_names(".jsonl") if FILE_NAME.fullmatch(name)]
    tasks = [task_of(name) for name in names]
    if repeated := next((task for task in tasks if tasks.count(task) > 1), None):
        raise InputError(
            f"{folder.uri} has several logs of {repeated}; give one of the files, or move the "
            "others away"
        )
    answers = [answer for name in names for answer in _of_file(f"{folder.uri}/{name}").answers]
    return [AnswerSet(folder.name, answers)] if names else []


def _of_file(place: str) -> AnswerSet:
    name = posixpath.basename(place)
    rows = list(_read_lines(place))
    if not rows:
        raise InputError(f"{place} holds no predictions; give another file")
    task = task_of(name)
    read = read_lm_eval if is_lm_eval(rows[0][1]) else read_predictions
    return AnswerSet(name.partition(".jsonl")[0], list(read(rows, task)))


def _read_lines(place: str) -> Iterator[Placed]:
    filesystem, path = pyarrow.fs.FileSystem.from_uri(resolve(place, "."))
    with filesystem.open_input_file(path) as stream:
        yield from read_json_lines(place, unpacked(stream))
