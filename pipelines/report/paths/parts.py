"""The paths of a report: all in its file or, where they are too many, a sample there and all of
them in a folder of parts beside it.

    report.html  report-parts/index.html  report-parts/paths-000.html  report-parts/paths-001.html

Each part is a page of the same kind that needs no other; it links to the report and to its
neighbours. The index names the questions of each part, so that it finds the one with a path.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster.store.folder import Folder
from pipelines.analysis.lineage import guideline_texts, steps_of
from pipelines.report.paths.chunks import Chunk, Gathered, Limits, index_of, pack, split
from pipelines.report.paths.reading import answer_records, path_records
from pipelines.report.paths.records import Record
from pipelines.stored_run import StoredRun

PATH_LIMITS = Limits(num_records=20_000, num_bytes=16_000_000)
ANSWER_LIMITS = Limits(num_records=5_000, num_bytes=5_000_000)
"""Of one page. With the scripts and charts a page stays below 25 MB."""
INDEX_PAGE = "index.html"

_PAGE = re.compile(rf"(paths|answers)-\d{{3,}}\.html|{re.escape(INDEX_PAGE)}")
Assemble = Callable[[Mapping[str, Any], Mapping[str, Iterable[bytes]]], bytes]
"""Makes a page of JSON values and compressed chunks, both by name."""


@dataclass(frozen=True, slots=True)
class BrowserData:
    """What the page of a report has of the paths."""

    index: Mapping[str, Any]
    """For the scripts: `pipelines.report.paths.chunks`, and what the sample is."""
    chunks: Sequence[bytes]


def browser_data(
    runs: Sequence[StoredRun],
    assemble: Assemble,
    parts: Folder,
    report: str,
    path_limits: Limits = PATH_LIMITS,
    answer_limits: Limits = ANSWER_LIMITS,
) -> BrowserData | None:
    """The paths and held-out answers of some runs; None where there are none.

    Where they are too many, all of them are written to `parts`, where pages of an earlier report
    are removed; otherwise nothing is written. `report` is the name of the file beside `parts`.
    Raises `DamagedFileError` and `StorageError`.
    """
    named = distinct_names(runs)
    guidelines = {name: _guidelines_of(run) for name, run in named.items()}
    writer = _PartWriter(parts, assemble, guidelines, f"../{quote(report)}")
    sources: Iterable[tuple[str, Limits, Iterable[Record]]] = (
        (
            "paths",
            path_limits,
            itertools.chain.from_iterable(path_records(r, n) for n, r in named.items()),
        ),
        (
            "answers",
            answer_limits,
            itertools.chain.from_iterable(answer_records(r, n) for n, r in named.items()),
        ),
    )
    gathered = {
        kind: split(pack(records), limits, writer.of(kind)) for kind, limits, records in sources
    }
    chunks = [chunk for each in gathered.values() for chunk in each.chunks]
    writer.finish()
    if not chunks:
        return None
    index = index_of(chunks) | {
        "guidelines": guidelines,
        "sample": _sample(gathered, f"{parts.name}/{INDEX_PAGE}"),
    }
    return BrowserData(index, [chunk.data for chunk in chunks])


def _guidelines_of(run: StoredRun) -> dict[str, str]:
    """The texts of the guidelines of all rounds."""
    found: dict[str, str] = {}
    for step in steps_of(run, "paths"):
        found |= guideline_texts(run, step)
    return found


def distinct_names(runs: Sequence[StoredRun]) -> dict[str, StoredRun]:
    """The runs by name; runs of the same name get their folder, too."""
    names = [str(run.config.get("run") or run.folder.name) for run in runs]
    return {
        name if names.count(name) == 1 else f"{name} ({run.folder.uri})": run
        for name, run in zip(names, runs, strict=True)
    }


def _sample(gathered: Mapping[str, Gathered], index_page: str) -> dict[str, Any] | None:
    """What of the paths and answers is in the page; None if all are."""
    if all(each.every == 1 for each in gathered.values()):
        return None
    counts = {
        kind: {
            "shown": sum(len(chunk.lines) for chunk in each.chunks),
            "total": each.num_records,
            "every": each.every,
        }
        for kind, each in gathered.items()
    }
    return {"parts": index_page, **counts}


@dataclass
class _PartWriter:
    """Writes the pages of parts, and their index at the end."""

    folder: Folder
    assemble: Assemble
    guidelines: Mapping[str, Mapping[str, str]]
    report: str
    """The address of the report, as seen from a part."""

    def __post_init__(self) -> None:
        self._parts: list[dict[str, Any]] = []

    def of(self, kind: str) -> Callable[[int, Sequence[Chunk], bool], None]:
        """Writes the parts of a kind."""

        def name_of(number: int) -> str:
            return f"{kind}-{number:03d}.html"

        def write(number: int, chunks: Sequence[Chunk], is_last: bool) -> None:
            name = name_of(number)
            links = {
                "report": self.report,
                "parts": INDEX_PAGE,
                "previous": name_of(number - 1) if number else None,
                "next": None if is_last else name_of(number + 1),
            }
            index = index_of(chunks) | {"guidelines": self.guidelines, "sample": links}
            page = self.assemble({"paths": index}, {"paths": [chunk.data for chunk in chunks]})
            self.folder.write_bytes(name, page)
            self._parts.append(
                {
                    "page": name,
                    "kind": kind,
                    "number": len(index["ids"]),
                    "questions": index["questions"],
                }
            )

        return write

    def finish(self) -> None:
        """Write the index, if there is any part, and remove the pages of an earlier report."""
        written = {part["page"] for part in self._parts}
        if written:
            page = self.assemble({"parts": {"report": self.report, "pages": self._parts}}, {})
            self.folder.write_bytes(INDEX_PAGE, page)
            written.add(INDEX_PAGE)
        found = [name for name in self.folder.file_names() if _PAGE.fullmatch(name)]
        self.folder.delete_files(name for name in found if name not in written)
        self.folder.delete_if_empty()
