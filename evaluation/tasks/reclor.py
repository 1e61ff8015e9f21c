"""ReClor: logical reading comprehension from admission tests (arXiv 2002.04326).

    [{"context": "...", "question": "Which ...?", "answers": ["...", "...", "...", "..."],
      "label": 2, "id_string": "train_0"}, ...]

Its authors provide it only through a form, so it is read from a path. The labels of its test are
hidden: its `val.json` is our test, and our dev is carved from train.
"""

from __future__ import annotations

import string

from evaluation.reading.rows import SourceRow
from evaluation.task import ParsedRow, Task


def read_row(row: SourceRow) -> ParsedRow:
    """The passage and the question; `label` is the position of the right option, from 0."""
    label, options = row.value("label"), row.options("answers")
    if not isinstance(label, int) or isinstance(label, bool) or label not in range(len(options)):
        raise row.wrong("label", f"is {label!r}, not a position from 0 to {len(options) - 1}")
    text = f"{row.text('context')}\n{row.text('question')}"
    letter = string.ascii_uppercase[label]
    return ParsedRow(text, letter, "choice", options, key=row.text("id_string"))


TASK = Task(
    name="reclor",
    reasoning="logic",
    answer_types=("choice",),
    domain="in_domain",
    licence="research only",
    upstream="whyu.me/reclor, by form",
    files={"train": ("train.json",), "test": ("val.json",)},
    counts={"train": 4638, "test": 500},
    note="Its val.json is used as test, because the labels of its test are hidden.",
    no_publishing="its authors give it out by form only",
    read_row=read_row,
)
