"""ASDiv-A: the arithmetic part of ASDiv, with numbers only. `asdiv.py` describes a row.

Upstream lists its ids in `dataset/nfolds/asdiv-a/fold0.txt` to `fold4.txt`, so it is read from a
copy of the repository.
"""

from __future__ import annotations

from dataclasses import replace

from evaluation.tasks import asdiv

TASK = replace(
    asdiv.TASK,
    name="asdiv_a",
    answer_types=("number",),
    hub=None,
    counts={"test": 1218},
    id_lists="dataset/nfolds/asdiv-a/fold*.txt",
    note="A part of asdiv: evaluate on one of the two.",
)
