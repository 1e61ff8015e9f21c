"""What the `examples` step did with each of many paths, looked up a batch at a time.

The tables of the step are sorted by their ids, file after file. So a batch of neighbouring paths
needs one or two files, which are kept open for the next batch; no table is read whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DamagedFileError
from cluster.store.folder import BROKEN_PARQUET, Folder
from pipelines.analysis.lineage import example_facts
from pipelines.report.paths.records import Selected
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.select_examples import DROPPED_SCHEMA

_KEPT_OPEN = 2
KEPT = "kept"


class SortedTable:
    """The Parquet files of a folder, each sorted by its first column: rows by their ids."""

    def __init__(self, folder: Folder, columns: Sequence[str]) -> None:
        self._folder = folder
        self._columns = list(columns)
        self._ranges = [(name, *_range_of(folder, name)) for name in folder.file_names(".parquet")]
        self._open: OrderedDict[str, pa.Table] = OrderedDict()

    def rows(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows whose id is one of these. Raises `DamagedFileError`."""
        if not ids:
            return
        wanted, least, most = pa.array(ids, pa.string()), min(ids), max(ids)
        for name, first, last in self._ranges:
            if first <= most and least <= last:
                table = self._table(name)
                found = table.filter(pc.is_in(table.column(self._columns[0]), wanted))
                yield from found.to_pylist()

    def _table(self, name: str) -> pa.Table:
        if name not in self._open:
            self._open[name] = self._folder.read_parquet(name, self._columns)
        self._open.move_to_end(name)
        while len(self._open) > _KEPT_OPEN:
            self._open.popitem(last=False)
        return self._open[name]


def _range_of(folder: Folder, name: str) -> tuple[str, str]:
    """The least and the greatest id of a file, by its statistics where it has them: long ids have
    none. Statistics may be cut, so the greatest is extended."""
    try:
        file = folder.open_parquet(name)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        found = [group.column(0).statistics for group in groups]
    except BROKEN_PARQUET as error:
        raise DamagedFileError(f"{folder.uri}/{name} is damaged ({error})") from error
    if not found or any(each is None or not each.has_min_max for each in found):
        return "", "\U0010ffff"
    return min(each.min for each in found), f"{max(each.max for each in found)}\U0010ffff"


class Selection:
    """The examples and the dropped paths of a step. Empty for a step that is not finished."""

    def __init__(self, examples: Folder | None, tokenizer: Any | None) -> None:
        is_done = examples is not None and examples.manifest() is not None
        self._tokenizer = tokenizer
        self._examples = self._dropped = None
        self._forms: Sequence[str] = ()
        if examples is not None and is_done:
            self._examples = SortedTable(examples, EXAMPLES_SCHEMA.names)
            self._dropped = SortedTable(examples.child("dropped"), DROPPED_SCHEMA.names)
            self._forms = _forms_of(examples)

    def of(self, path_ids: Sequence[str]) -> dict[str, Selected]:
        """What became of each path; a path that the examples were not selected from is missing."""
        if self._examples is None or self._dropped is None:
            return {}
        found = {
            row["path_id"]: Selected(str(row["reason"])) for row in self._dropped.rows(path_ids)
        }
        owners = {example_id: path_id for path_id in path_ids for example_id in self._ids(path_id)}
        made: dict[str, list[dict[str, Any]]] = {}
        for row in self._examples.rows(list(owners)):
            made.setdefault(owners[row["example_id"]], []).append(self._facts(row))
        return found | {path_id: Selected(KEPT, examples) for path_id, examples in made.items()}

    def _ids(self, path_id: str) -> list[str]:
        """The ids of the examples that a path may have given: `PATH`, and `PATH/FORM`."""
        return [path_id, *(f"{path_id}/{form}" for form in self._forms)]

    def _facts(self, row: Mapping[str, Any]) -> dict[str, Any]:
        facts = example_facts(self._tokenizer, row)
        if self._tokenizer is None:  # numbers would tell a reader nothing
            *prompt, target = row["messages"]
            facts["not_learned"] = "\n".join(each["content"] or "" for each in prompt)
            facts["learned"] = target["content"] or ""
        return facts


def _forms_of(examples: Folder) -> list[str]:
    """The forms that the examples of a step have."""
    forms: set[str] = set()
    for name in examples.file_names(".parquet"):
        column = examples.read_parquet(name, ["form"]).column("form")
        forms |= {form for form in pc.unique(column).to_pylist() if form}
    return sorted(forms)
