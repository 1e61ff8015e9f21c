"""`ray_cluster.yaml` as `ray up` reads it, up to the point where an account is needed."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FILE = REPOSITORY / "ray_cluster.yaml"
TOKEN = "~/.ray/auth_token"


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The file with Ray's defaults for its provider laid under it, as every command sees it."""
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(yaml.safe_load(FILE.read_text())))
    return prepared


def start_command(cluster: dict[str, Any], kind: str) -> list[str]:
    """The words of the one command that starts Ray on a head or a worker."""
    (command,) = (c for c in cluster[f"{kind}_start_ray_commands"] if "ray start" in c)
    return shlex.split(command)


def test_ray_cluster_yaml_with_rays_defaults_passes_rays_validation(
    cluster: dict[str, Any],
) -> None:
    validate_config(cluster)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_start_in_token_mode(cluster: dict[str, Any], kind: str) -> None:
    words = start_command(cluster, kind)
    assert words.index("RAY_AUTH_MODE=token") == words.index("ray") - 1


def test_token_reaches_the_nodes_as_a_file(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"][TOKEN] == TOKEN


def test_ray_cluster_yaml_holds_no_secret() -> None:
    text = FILE.read_text()
    long_words = re.findall(r"[0-9A-Za-z+_]{32,}", text)
    assert not long_words
    assert not re.search(r"AKIA|hf_|RAY_AUTH_TOKEN|SECRET|PRIVATE KEY|password", text)


def test_dashboard_listens_on_loopback_only(cluster: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in start_command(cluster, "head")
    assert "0.0.0.0" not in yaml.safe_dump(cluster)


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_nodes_install_the_gpu_lock(cluster: dict[str, Any], kind: str) -> None:
    installs = [
        shlex.split(command)
        for command in cluster[f"{kind}_setup_commands"]
        if "pip install" in command and "--no-deps" in command
    ]
    (install,) = installs
    lock = REPOSITORY / cluster["file_mounts"][install[install.index("-r") + 1]]
    assert lock == REPOSITORY / "requirements" / "gpu.lock"
    # A cluster takes jobs from a client of its own Ray version only.
    assert f"\nray=={ray.__version__}\n" in lock.read_text()


def test_gpu_workers_scale_between_two_bounds(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    workers = [node for name, node in types.items() if name != cluster["head_node_type"]]
    assert workers
    for worker in workers:
        assert 0 <= worker["min_workers"] < worker["max_workers"] <= cluster["max_workers"]
        assert worker["resources"]["GPU"] > 0


def test_head_is_one_node_that_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["max_workers"] == 0
    assert head["resources"] == {"CPU": 0}


@pytest.mark.parametrize(
    "stage", ["head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
)
def test_node_commands_are_valid_bash(cluster: dict[str, Any], stage: str) -> None:
    for command in cluster[f"{stage}_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)
