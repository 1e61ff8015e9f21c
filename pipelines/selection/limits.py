"""Limits over the examples of all questions: their number, and the share from hinted paths.

A limit applies to complete paths: a path is removed with the examples of all its forms.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.selection.filters import ExampleSettings
from pipelines.synthesis.reasoning_path import HINTED
from pipelines.synthesis.seeds import stable_seed


@dataclass(frozen=True)
class Kept:
    """The examples that one path, or one question's given solution, produced."""

    source_id: str
    """The id of the path, or that of the single example."""
    is_path: bool
    dataset: str
    question_id: str
    is_hinted: bool
    example_ids: tuple[str, ...]


Limit = Callable[[Sequence[Kept], Mapping[str, int], ExampleSettings], Sequence[Kept]]
"""A function of what is kept, how many the ground truth would keep, and the settings, that returns
what may remain."""


def kept_of(tables: Sequence[pa.Table]) -> list[Kept]:
    """The examples in tables of `EXAMPLES_SCHEMA`, grouped by path."""
    rows_of: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["example_id", "form", "dataset", "question_id", "pass"]
    for table in tables:
        for row in table.select(columns).to_pylist():
            rows_of[_source_of(row)].append(row)
    return [
        Kept(
            source_id,
            is_path=_is_of_path(rows[0]),
            dataset=rows[0]["dataset"],
            question_id=rows[0]["question_id"],
            is_hinted=rows[0]["pass"] == HINTED,
            example_ids=tuple(row["example_id"] for row in rows),
        )
        for source_id, rows in rows_of.items()
    ]


def _is_of_path(row: Mapping[str, Any]) -> bool:
    """Whether a path produced it; the id of any other example begins with its form."""
    return not row["example_id"].startswith(f"{row['form']}/")


def _source_of(row: Mapping[str, Any]) -> str:
    name: str = row["example_id"]
    return name.removesuffix(f"/{row['form']}") if _is_of_path(row) else name


def has_limits(settings: ExampleSettings) -> bool:
    """Whether any limit is set that could remove something."""
    is_capped = settings.max_examples is not None
    return is_capped or settings.verdict == "random" or settings.max_hinted_share < 1


def over_limits(
    kept: Sequence[Kept], wanted: Mapping[str, int], settings: ExampleSettings
) -> list[tuple[Kept, str]]:
    """The ids to remove, each with its reason.

    `wanted` is how many paths of each dataset the ground truth would keep, for verdict random.
    """
    out: list[tuple[Kept, str]] = []
    left = list(kept)
    for reason, limit in _LIMITS.items():
        names = {each.source_id for each in limit(left, wanted, settings)}
        out += [(each, reason) for each in left if each.source_id not in names]
        left = [each for each in left if each.source_id in names]
    return out


def _within_hinted_share(
    kept: Sequence[Kept], _: Mapping[str, int], settings: ExampleSettings
) -> Sequence[Kept]:
    hinted = [each for each in kept if each.is_hinted]
    plain = [each for each in kept if not each.is_hinted]
    share = settings.max_hinted_share
    if share == 1 or not hinted:
        return kept
    most = math.floor(_num_examples(plain) * share / (1 - share))
    drawn = sorted(hinted, key=lambda each: stable_seed(settings.seed, each.source_id))
    ends = itertools.accumulate(len(each.example_ids) for each in drawn)
    return plain + [each for each, end in zip(drawn, ends, strict=True) if end <= most]


def _as_many(
    kept: Sequence[Kept], wanted: Mapping[str, int], settings: ExampleSettings
) -> Sequence[Kept]:
    if settings.verdict != "random":
        return kept
    of_dataset: defaultdict[str, list[Kept]] = defaultdict(list)
    for each in kept:
        of_dataset[each.dataset].append(each)
    drawn = (
        evenly_drawn(each, wanted.get(name, 0), settings.seed) for name, each in of_dataset.items()
    )
    return list(itertools.chain.from_iterable(drawn))


def _within_max_examples(
    kept: Sequence[Kept], _: Mapping[str, int], settings: ExampleSettings
) -> Sequence[Kept]:
    most = settings.max_examples
    if most is None or _num_examples(kept) <= most:
        return kept
    number = most * len(kept) // _num_examples(kept)
    tries = (evenly_drawn(kept, n, settings.seed) for n in range(number, -1, -1))
    return next(drawn for drawn in tries if _num_examples(drawn) <= most)


_LIMITS: Mapping[str, Limit] = {
    "over_max_hinted_share": _within_hinted_share,
    "over_number_of_right": _as_many,
    "over_max_examples": _within_max_examples,
}
"""The limits in order, by the reason that each gives."""
REASONS = tuple(_LIMITS)


def _num_examples(kept: Sequence[Kept]) -> int:
    return sum(len(each.example_ids) for each in kept)


def evenly_drawn(kept: Sequence[Kept], number: int, seed: int) -> list[Kept]:
    """As many of them as `number`, at equal steps through the datasets, their questions and paths.

    This is a systematic sample: each has the same chance, so every expected share is unchanged, and
    each dataset and question contributes its part to within one. The seed determines the order of
    the questions and paths, and where the steps begin.
    """

    def place(each: Kept) -> tuple[str, int, int]:
        by_question = stable_seed(seed, each.question_id)
        return each.dataset, by_question, stable_seed(seed, "draw", each.source_id)

    in_order = sorted(kept, key=place)
    total = len(in_order)
    if number >= total:
        return in_order
    start = stable_seed(seed, "start", total, number) % max(total, 1)
    steps = [(place * number + start) // total for place in range(total + 1)]
    return [each for each, (a, b) in zip(in_order, itertools.pairwise(steps), strict=True) if b > a]


def wanted_of(counts: pa.Table) -> Mapping[str, int]:
    """How many paths the ground truth would keep, by dataset."""
    wanted: Counter[str] = Counter()
    for row in counts.select(["dataset", "num_kept_by_truth"]).to_pylist():
        wanted[row["dataset"]] += row["num_kept_by_truth"]
    return wanted


def without(table: pa.Table, column: str, gone: pa.Array) -> pa.Table:
    """The rows whose id was not removed."""
    return table.filter(pc.invert(pc.is_in(table.column(column), gone)))
