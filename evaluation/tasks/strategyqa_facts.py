"""StrategyQA with its gold facts before the question: an easier task than `strategyqa`, and the
one that the released code of ReGenesis trains on. `strategyqa.py` describes the format of a row.
"""

from __future__ import annotations

from dataclasses import replace

from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow
from evaluation.tasks import strategyqa


def read_row(row: SourceRow) -> ParsedRow:
    """The facts, from upstream's list or the hub's single text, then the question."""
    draft = strategyqa.read_row(row)
    is_list = isinstance(row.value("facts"), list | tuple)
    facts = " ".join(row.texts("facts")) if is_list else row.text("facts")
    return replace(draft, question=f"{facts}\n\n{draft.question}")


TASK = replace(
    strategyqa.TASK,
    name="strategyqa_facts",
    note="With gold facts: an easier task than strategyqa; report which of the two was used.",
    read_row=read_row,
)
