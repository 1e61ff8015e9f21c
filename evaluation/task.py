"""Tasks: the benchmarks that the system knows, one file each in `evaluation/tasks/`.

A file there defines its benchmark as `TASK` and is found without further registration::

    TASK = Task(name="gsm8k", reasoning="mathematics", ..., read_row=read_row)

    def read_row(row: SourceRow) -> ParsedRow:
        return ParsedRow(row.text("question"), answer, "number")

`read_task` reads one of three sources into `Question`s: the hub, upstream's files, or our own JSONL
files (`id, dataset, split, question, answer, answer_type, choices`, one line per question).
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import pyarrow as pa
import pyarrow.fs

from cluster.errors import InputError
from cluster.package_files import found_in
from cluster.store.folder import Folder
from cluster.store.network import open_filesystem
from evaluation.grader import canonical_answer
from evaluation.question import ANSWER_TYPES, SPLITS, AnswerType, Domain, Question, Split
from evaluation.reading.files import check_shards
from evaluation.reading.hub_rows import Hub
from evaluation.reading.names import nearest
from evaluation.reading.rows import SourceRow, read_rows

Reasoning = Literal["mathematics", "logic", "commonsense", "inference"]

_PLAIN_NUMBER = re.compile(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]+)?(?<=[0-9])")


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """An upstream row as a question, before it gets an id, a split and a canonical answer."""

    question: str
    answer: str
    answer_type: AnswerType
    choices: tuple[str, ...] = ()

    aliases: tuple[str, ...] = ()
    """Other answers that are equally right."""

    key: str | None = None
    """Its name upstream; with None, the rows of a group are numbered in order."""

    group: str = ""
    """A part of the task that is named in the id, such as `r1` or `word_sorting`."""

    solution: str = ""
    """A worked solution, without the line that only names the answer."""

    kind: str = ""
    """The part of the task that the question belongs to; by default its group."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: what it is, where upstream provides it, and how its rows are read."""

    name: str
    """Also the name of its rows in our JSONL files."""

    reasoning: Reasoning
    answer_types: tuple[AnswerType, ...]
    domain: Domain
    """What it is used for unless the config sets it."""

    licence: str
    upstream: str
    """The publisher."""

    files: Mapping[Split, tuple[str, ...]]
    """The splits, and the files of each in upstream's repository."""

    read_row: Callable[[SourceRow], ParsedRow]
    aliases_of: Callable[[ParsedRow], tuple[str, ...]] = lambda draft: ()
    """Other ways to write the answer that are equally right, whichever source the row is from."""

    hub: Hub | None = None
    mirror: str | None = None
    """A URI (`hf://datasets/...`) of a folder with upstream's files, which is used if there is no
    `hub`."""

    counts: Mapping[Split, int] = field(default_factory=dict)
    """The published numbers of rows, if known."""

    no_training: str | None = None
    """Why it may not be used for training; None if it may."""

    no_publishing: str | None = None
    """Why its questions may not be published again; None: they may, unless `no_training` is set."""

    id_lists: str | None = None
    """Upstream's files (a pattern) that list the ids of the rows in the task; None means all."""

    note: str = ""
    """What a reader of its scores has to know."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that upstream provides with answers."""
        return tuple(split for split in SPLITS if split in self.files)


@functools.cache
def tasks() -> Mapping[str, Task]:
    """Every task by name, in the order of the names: one for each file in `evaluation/tasks/`."""
    import evaluation.tasks as package

    found, _ = found_in(package, "TASK")
    return MappingProxyType({task.name: task for task in found.values() if isinstance(task, Task)})


def find_task(name: str) -> Task:
    """The task with this name. Raises `InputError` with the nearest names."""
    if name not in tasks():
        raise InputError(
            f"no task {name!r}{nearest(name, tasks())}; there are {', '.join(tasks())}"
        )
    return tasks()[name]


def plain_number(text: str) -> str | None:
    """The number without dollar sign and commas if the text is a plain decimal; otherwise None."""
    text = text.strip()
    return re.sub("[$,]", "", text) if _PLAIN_NUMBER.fullmatch(text) else None


def spoken_list(parts: Sequence[str]) -> tuple[str, ...]:
    """Other forms of a list: `a and b`; for three items `a, b and c` and `a, b, and c`."""
    if len(parts) < 2:
        return ()
    start, comma = ", ".join(parts[:-1]), "," if len(parts) > 2 else ""
    return tuple(dict.fromkeys(f"{start}{sign} and {parts[-1]}" for sign in ("", comma)))


def read_task(
    task: Task,
    splits: Sequence[Split],
    path: str | None = None,
    *,
    dataset: str | None = None,
    domain: Domain | None = None,
    wrong: list[str] | None = None,
    max_wrong: int = 0,
) -> Iterator[Question]:
    """The questions of some splits, split by split, in upstream's order.

    `path` is an absolute path or URI of a folder or file; None means the hub. The ids begin with
    `dataset` (`gsm8k/train/00042`), by default the task's name. Raises `InputError` for a missing
    file, a duplicate id, and an invalid row, with file and line. Up to `max_wrong` invalid rows are
    skipped instead, and the errors about them are appended to `wrong`.
    """
    dataset, domain = dataset or task.name, domain or task.domain
    wrong = [] if wrong is None else wrong
    places: dict[str, str] = {}
    for split in splits:
        numbers: Counter[str] = Counter()
        listed = _listed_ids(task, path)
        for row in _rows(task, split, path, alone=len(splits) == 1):
            try:
                draft = _draft(task, split, row, listed)
                answer, *aliases = _canonical(task, row, draft) if draft else [""]
            except InputError as error:
                if len(wrong) >= max_wrong:
                    raise
                wrong.append(str(error))
                continue
            if draft is None:
                continue
            question_id = _question_id(draft, dataset, split, numbers)
            if question_id in places:
                raise InputError(
                    f"{row.place}: the id {question_id!r} is already used at "
                    f"{places[question_id]}; every row needs its own id"
                )
            places[question_id] = row.place
            yield Question(
                question_id=question_id,
                dataset=dataset,
                split=split,
                domain=domain,
                question=draft.question,
                answer=answer,
                answer_type=draft.answer_type,
                choices=draft.choices,
                aliases=tuple(aliases),
                solution=draft.solution,
                kind=draft.kind or draft.group,
            )


# ---------------------------------------------------------------------------- rows to questions


def _draft(task: Task, split: Split, row: SourceRow, listed: frozenset[str]) -> ParsedRow | None:
    """The parsed row; None if it is not in the list of the task's rows."""
    if _is_ours(row):
        return _own_draft(task, split, row)
    draft = task.read_row(row)
    if task.id_lists is None or draft.key in listed:
        return draft
    if listed:
        return None
    raise InputError(
        f"{row.place}: {task.id_lists} lists the rows of task {task.name}; "
        "name the folder that contains both with source.path"
    )


def _question_id(draft: ParsedRow, dataset: str, split: Split, numbers: Counter[str]) -> str:
    """`dataset/split/group/key`; a row without a key is numbered in its group."""
    key = draft.key or f"{numbers[draft.group]:05d}"
    numbers[draft.group] += 1
    own = f"{draft.group}/{key}".removeprefix("/")
    return own if own.startswith(f"{dataset}/") else f"{dataset}/{split}/{own}"


def _canonical(task: Task, row: SourceRow, draft: ParsedRow) -> list[str]:
    """The answer followed by its aliases, without duplicates."""
    answers = [draft.answer, *draft.aliases, *task.aliases_of(draft)]
    try:
        written = [canonical_answer(a, draft.answer_type, draft.choices) for a in answers]
        return list(dict.fromkeys(written))
    except ValueError as error:
        raise InputError(f"{row.place}: {error}") from error


def _is_ours(row: SourceRow) -> bool:
    """Whether the row has all fields of a question, as no upstream row does."""
    return {"id", "split", "question", "answer", "answer_type"} <= row.values.keys()


def _own_draft(task: Task, split: Split, row: SourceRow) -> ParsedRow:
    """A row of our JSONL files. A row of another task or split is refused, since it might be
    test."""
    for column, wanted in (("dataset", task.name), ("split", split)):
        if row.values.get(column, wanted) != wanted:
            raise row.wrong(
                column, f"says {row.values[column]!r}, not {wanted!r}; name another file or split"
            )
    answer_type = row.value("answer_type")
    if answer_type not in ANSWER_TYPES:
        known = ", ".join(ANSWER_TYPES)
        raise row.wrong("answer_type", f"says {answer_type!r}; known are {known}")
    if answer_type not in task.answer_types and "math" in task.answer_types:
        answer_type = "math"  # a file without this type labels LaTeX as text
    choices = row.options("choices") if row.values.get("choices") else ()
    aliases = row.texts("aliases") if row.values.get("aliases") else ()
    answer = row.written("answer", row.value("answer"))
    return ParsedRow(
        row.text("question"),
        answer,
        answer_type,
        choices,
        aliases,
        key=row.text("id"),
        solution=row.text("solution") if row.values.get("solution") else "",
        kind=row.text("kind") if row.values.get("kind") else _kind_in_id(row, task.name),
    )


def _kind_in_id(row: SourceRow, name: str) -> str:
    """The part between the split and the last part of an id, as in `bbh/test/navigate/0007`."""
    prefix = f"{name}/{row.values['split']}/"
    own = row.text("id")
    return own.removeprefix(prefix).rpartition("/")[0] if own.startswith(prefix) else ""


# ---------------------------------------------------------------------------- sources of rows


def _rows(task: Task, split: Split, path: str | None, *, alone: bool) -> Iterator[SourceRow]:
    """The rows of one split, file by file."""
    if path is None and task.hub is not None:
        yield from task.hub.rows(split)
        return
    if path is None and task.mirror is None:
        raise InputError(
            f"task {task.name}: the Hugging Face hub does not have it; get it from "
            f"{task.upstream} and name its folder with source.path"
        )
    for file in _files(task, split, path or task.mirror or "", alone=alone):
        yield from read_rows(file)


def _files(task: Task, split: Split, path: str, *, alone: bool) -> list[str]:
    """The files of a split: `path` itself if it is a file, otherwise those found in the folder."""
    if _file_type(path) == pyarrow.fs.FileType.File:
        name = posixpath.basename(path).removesuffix(".gz")
        others = [other for other in task.splits if other != split and _is_named(name, task, other)]
        if others or not (alone or _is_named(name, task, split)):
            raise InputError(
                f"{path} is one file, and its name is not that of the {split} file of {task.name}; "
                "give the folder, or name the split that it contains with source.splits"
            )
        return [path]
    for layout in _layouts(task, split):
        found = {pattern: _find(path, pattern) for pattern in layout}
        if all(found.values()):
            files = list(dict.fromkeys(file for files in found.values() for file in files))
            check_shards(files)
            return files
        if any(found.values()):
            missing = [pattern for pattern, files in found.items() if not files]
            raise InputError(f"{path} lacks {', '.join(missing)} of task {task.name}")
    wanted = " or ".join(layout[0] for layout in _layouts(task, split))
    raise InputError(
        f"no {split} file of task {task.name} in {path}; looked for {wanted}; "
        "fix source.path, or name the existing splits with source.splits"
    )


def _file_type(path: str) -> pyarrow.fs.FileType:
    try:
        filesystem, inner = open_filesystem(path)
        found = filesystem.get_file_info(inner).type
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot list source.path {path}: {error}") from error
    if found == pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"source.path {path} does not exist; relative paths start at questions.folder"
        )
    return found


def _layouts(task: Task, split: Split) -> list[tuple[str, ...]]:
    """The files that a folder may have for a split: our JSONL, upstream's files, the hub's."""
    layouts = [(f"{task.name}.{split}.jsonl",), task.files[split]]
    if task.hub is not None:
        configs = [config or "data" for config in task.hub.configs]
        names = task.hub.splits[split]
        layouts.append(tuple(f"{config}/{name}-*.parquet" for config in configs for name in names))
    return layouts


def _is_named(name: str, task: Task, split: Split) -> bool:
    """Whether a file has the name of one of the split's files."""
    patterns = itertools.chain.from_iterable(_layouts(task, split))
    return any(fnmatch.fnmatchcase(name, posixpath.basename(pattern)) for pattern in patterns)


def _find(path: str, pattern: str) -> list[str]:
    """The files that match in the folder, which may be the repository's root or a folder inside it.

    Only the last part of the pattern may contain a star. Files may be gzipped and end in `.gz`.
    """
    parts = pattern.split("/")
    for start in range(len(parts)):
        below, last = "/".join(parts[start:-1]), parts[-1]
        folder = f"{path.rstrip('/')}/{below}".rstrip("/")
        there = Folder.open(folder).file_names()
        names = fnmatch.filter(there, last) or fnmatch.filter(there, f"{last}.gz")
        if names:
            return [f"{folder}/{name}" for name in names]
    return []


def _listed_ids(task: Task, path: str | None) -> frozenset[str]:
    """The ids in upstream's lists of the task's rows; empty if there are no lists."""
    if task.id_lists is None or path is None or _file_type(path) == pyarrow.fs.FileType.File:
        return frozenset()
    files = [posixpath.split(file) for file in _find(path, task.id_lists)]
    texts = [Folder.open(folder).read_bytes(name).decode("utf-8") for folder, name in files]
    return frozenset("\n".join(texts).split())
