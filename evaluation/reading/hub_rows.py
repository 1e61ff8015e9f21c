"""Read rows from the Hugging Face hub with the `datasets` library, behind one function.

Loading over the network has not been tried here. The repositories, configurations and splits of the
tasks were taken from the hub's pages and from other projects' loaders; the tests load local folders
through the same function. A hub dataset may change, whereas a file that was downloaded once and is
named with `source.path` does not.
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
    """A name such as `openai/gsm8k`."""

    splits: Mapping[Split, tuple[str, ...]]
    """The hub's split for each of ours."""

    configs: tuple[str | None, ...] = (None,)
    """The configurations, all of which are loaded in this order."""

    is_converted: bool = False
    """Whether the repository contains a script, which `datasets` no longer runs; the hub's
    conversion to Parquet is then read instead."""

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
    """The rows of one split of a hub dataset; `repository` may also be a local folder.

    The library stores downloads below `HF_HOME`. Raises `InputError`, with the reason, when the
    dataset cannot be loaded.
    """
    from datasets import load_dataset  # takes two seconds
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
