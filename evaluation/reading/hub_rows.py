"""Rows of the Hugging Face hub, read with the `datasets` library behind one function.

Not tried here: loading over the network. The repositories, configurations and splits that the
tasks name were written down from the hub's own pages and other projects' loaders; the tests load
local folders through the same function. What a hub dataset holds may change: a file that was
downloaded once and is named with `source.path` does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.models.hub import hub_errors
from evaluation.question import Split
from evaluation.reading.rows import SourceRow
from evaluation.reading.table_rows import PARQUET_ROWS, arrow_rows


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the hub has a task."""

    repository: str
    """Such as `openai/gsm8k`."""

    splits: Mapping[Split, tuple[str, ...]]
    """Our split to the hub's."""

    configs: tuple[str | None, ...] = (None,)
    """Each is loaded, in this order."""

    is_converted: bool = False
    """Whether the repository holds a script, which `datasets` no longer runs; then the hub's own
    conversion to Parquet is read."""

    def rows(self, split: Split) -> Iterator[SourceRow]:
        """The rows of one of our splits. Raises `InputError`."""
        for config in self.configs:
            for name in self.splits[split]:
                yield from load_hub_split(
                    self.repository, config, name, is_converted=self.is_converted
                )


def load_hub_split(
    repository: str,
    config: str | None,
    split: str,
    *,
    revision: str | None = None,
    is_converted: bool = False,
) -> Iterator[SourceRow]:
    """The rows of one split of a hub dataset; `repository` may be a local folder, too.

    The library keeps what it downloads below `HF_HOME`. Raises `InputError` when it cannot
    be had, with the reason.
    """
    from datasets import load_dataset  # two seconds; only where used
    from datasets.exceptions import DatasetsError

    name = "/".join(part for part in (repository, config, split) if part)
    instead = "download it elsewhere and name its folder"
    with hub_errors("the dataset", name, instead, also=(DatasetsError,)):
        if is_converted:
            files = {split: f"{config or 'default'}/{split}/*.parquet"}
            rows = load_dataset(
                repository, data_files=files, revision="refs/convert/parquet", split=split
            )
        else:
            rows = load_dataset(repository, config, split=split, revision=revision)
    tables = rows.with_format("arrow").iter(PARQUET_ROWS)
    values = itertools.chain.from_iterable(map(arrow_rows, tables))
    for number, row in enumerate(values):
        yield SourceRow(f"{name} row {number + 1}", name, number, row)
