"""What the report shows, as JSON values: the runs, and tables with a column `run`.

    {"title": "quickstart", "runs": [{"name": "quickstart", ...}],
     "tables": {"funnel": {"columns": ["run", "round", ...], "rows": [["quickstart", 0, ...]]}}}

Every number is computed here and not in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.analysis.overview import overview
from pipelines.stored_run import StoredRun


def report_data(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """The content of a report of these runs. Reads them and changes nothing."""
    facts = [overview(run) for run in runs]
    return {"title": ", ".join(str(each["run"]) for each in facts), "runs": facts, "tables": {}}
