"""The `guidelines` step in a run of the driver, with the scripted engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.synthesis.guidelines import load_guidelines
from tests.conftest import ledger_rows, log_of, run_here

WriteConfig = Callable[[dict[str, Any]], Path]


def test_run_proposed_guidelines_are_followed_beside_the_others_and_made_once(
    scripted_config: dict[str, Any], write_config: WriteConfig
) -> None:
    scripted_config["synthesis"] = {"expand_guidelines": 6}
    scripted_config["questions"]["datasets"]["sums"] |= {"num_train": 4}
    path = write_config(scripted_config)
    result = run_here("run", path, "--until", "paths")
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"guidelines: kept [12] of 6 proposals, in addition to the 25 that were given; dropped: ",
        result.stdout,
    )
    folder = Path(scripted_config["storage"]["root"]) / scripted_config["run"]
    [step] = folder.glob("base/guidelines-*")
    manifest = json.loads((step / "manifest.json").read_text())
    followed = [each.guideline_id for each in load_guidelines(step / "guidelines.yaml")]
    assert followed[25:] == manifest["kept"]
    dropped = [id_ for ids in manifest["dropped"].values() for id_ in ids]
    assert sorted([*manifest["kept"], *dropped]) == [f"proposed-0{n}" for n in range(6)]
    assert len(ledger_rows(step)) == manifest["rows"]["num_done"] == 6

    assert "INFO step_finished step=guidelines, seconds=" in log_of(folder, "run")
    [paths] = folder.glob("round_0/paths-*")
    rows = ledger_rows(paths)
    assert len(rows) == 4
    assert all([p["guideline_id"] for p in row["paths"]] == followed for row in rows)
    assert f"/{manifest['kept'][0]}/0/0" in rows[0]["paths"][25]["path_id"]

    again = run_here("run", path, "--until", "paths", "--dry-run")
    assert re.search(r"base/guidelines-\w+: skip, finished\n", again.stdout)
    assert re.search(r"round_0/paths-\w+: skip, finished\n", again.stdout)
    clean = run_here("clean", folder, "--superseded", "--yes")
    assert clean.returncode == 0, clean.stderr
    assert (step / "guidelines.yaml").exists()
