"""What a notebook calls: `regenesis.run` and `regenesis.load_run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import regenesis
from cluster.errors import InputError
from cluster.store.folder import Folder
from pipelines.stored_run import StoredRun


def test_run_from_python_returns_its_tables(
    scripted_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    import ray

    # A notebook that is connected to Ray need not name it.
    connected = ray.get_runtime_context().gcs_address
    config = write_config(scripted_config | {"cluster": {}})
    made = regenesis.run(str(config), until="examples")
    assert ray.get_runtime_context().gcs_address == connected
    again = regenesis.load_run(made.folder.uri)
    assert again.table("questions").num_rows == 40
    paths = again.table("round_0/paths").to_pylist()
    assert len(paths) == 24
    right = [path["verdict"] for row in paths for path in row["paths"]].count("correct")
    assert 0 < again.table("round_0/examples").num_rows <= right
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


def test_run_on_another_ray_than_that_of_the_process_is_refused(
    scripted_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    elsewhere = write_config(scripted_config | {"cluster": {"address": "127.0.0.1:1"}})
    with pytest.raises(InputError, match="this process is connected to the Ray at "):
        regenesis.run(str(elsewhere), until="paths")


@pytest.mark.parametrize(
    ("name", "said"),
    [("round_9/paths", "has the steps"), ("round_0/paths", "is not finished")],
)
def test_table_that_is_not_there_is_refused(tmp_path: Path, name: str, said: str) -> None:
    run = StoredRun(Folder.open(str(tmp_path)), {}, ("questions-1", "round_0/paths-2"))
    with pytest.raises(InputError, match=said):
        run.table(name)
