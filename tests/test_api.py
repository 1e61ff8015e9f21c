"""What a notebook calls: `regenesis.run` and `regenesis.load_run`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.store.folder import Folder
from pipelines.stored_run import StoredRun
from tests.conftest import REPOSITORY

PROGRAM = """
import json, sys
import regenesis

made = regenesis.run(sys.argv[1], until="examples")
again = regenesis.load_run(made.folder.uri)
rows = {name: again.table(name).num_rows for name in ("questions", "round_0/paths")}
right = [p["verdict"] for r in again.table("round_0/paths").to_pylist() for p in r["paths"]]
examples = again.table("round_0/examples")
print(json.dumps(rows | {"right": right.count("correct"), "examples": examples.num_rows}))
"""


def test_run_from_python_returns_its_tables(
    scripted_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(write_config(scripted_config))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["questions"] == 40
    assert told["round_0/paths"] == 24
    assert 0 < told["examples"] <= told["right"]
    root = Path(scripted_config["storage"]["root"])
    [log] = (root / "scripted" / "logs").iterdir()
    events = [json.loads(line) for line in (log / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "command_started"
    assert kinds[-1] == "command_finished"
    assert {"engines_started", "rate", "generated"} <= set(kinds)
    finished = [event for event in events if event["event"] == "step_finished"]
    assert [event["step"] for event in finished] == ["questions", "paths", "examples"]
    assert all(event["seconds"] >= 0 for event in finished)
    assert kinds.count("step_started") == len(finished)
    assert " INFO paths: " in (log / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [("round_9/paths", "has the steps"), ("round_0/paths", "is not finished")],
)
def test_table_that_is_not_there_is_refused(tmp_path: Path, name: str, said: str) -> None:
    run = StoredRun(Folder.open(str(tmp_path)), {}, ("questions-1", "round_0/paths-2"))
    with pytest.raises(InputError, match=said):
        run.table(name)
