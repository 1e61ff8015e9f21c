"""A whole run on an object store that is away three times, its requests counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from tests.cluster.s3_proxy import CountingProxy
from tests.conftest import run_driver, scripted_tree

AWAY_S = 25.0


class Outages:
    """The store is away for a while from the first request on that writes one of these paths."""

    def __init__(self, proxy: CountingProxy, *begins: str) -> None:
        self._proxy, self.left = proxy, list(begins)
        self._lock = threading.Lock()
        proxy.before = self._look

    def _look(self, method: str, path: str) -> None:
        with self._lock:
            found = [text for text in self.left if method in ("PUT", "POST") and text in path]
            if found and self._proxy.mode == "on":
                self.left.remove(found[0])
                self._proxy.mode = "away"
                threading.Timer(AWAY_S, self._end).start()

    def _end(self) -> None:
        self._proxy.mode = "on"


@pytest.fixture
def network_config(s3_proxy: CountingProxy, model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A run on the store. It starts its own Ray, whose workers have the keys of the store."""
    tree = scripted_tree(tmp_path, model_folder)
    tree["run"] = tmp_path.name
    tree["training"] |= {"num_epochs": 1, "checkpoint_every_n_steps": 2}
    tree["engine"]["options"] = {"latency_s": 0.05}
    tree["storage"]["root"] = s3_proxy.uri("bucket/runs")
    return tree


@pytest.mark.slow
def test_run_on_a_store_that_is_away_three_times_ends_as_on_a_disk(
    network_config: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    s3_proxy: CountingProxy,
    tmp_path: Path,
) -> None:
    outages = Outages(s3_proxy, "/steps.json", "/parts/", "/checkpoints/step-")
    run = run_driver("run", write_config(network_config))
    assert run.returncode == 0, run.stderr
    assert not outages.left
    assert "| in_domain/sums " in run.stdout
    # The driver met the first outage, an engine's worker and the training workers the others.
    assert "has not answered for" in run.stderr
    assert "answers again after" in run.stderr
    folder = Folder.open(s3_proxy.uri(f"bucket/runs/{network_config['run']}"))
    (paths,) = (name for name in folder.child("round_0").folder_names() if name.startswith("paths"))
    assert len(list(Ledger.read(folder.child(f"round_0/{paths}")).rows())) == 24
    counts = Counter(method for method, _ in s3_proxy.requests)
    weights = [path for _, path in s3_proxy.requests if "/model.safetensors" in path]
    # Measured: 376, 213 and 125. What is made again after an outage varies.
    assert counts["GET"] < 600, counts
    assert counts["HEAD"] < 350, counts
    assert counts["PUT"] < 200, counts
    assert len(weights) <= 6, weights
