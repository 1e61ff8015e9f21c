"""A cluster that cannot be joined is reported in one sentence, within seconds."""

from __future__ import annotations

import platform
import socket

import pytest
import ray

from cluster.errors import InputError
from cluster.reach import check_cluster, refuse_other_version


@pytest.fixture(autouse=True)
def _no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_port_on_which_nobody_listens_is_refused() -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(InputError, match=f"cluster.address {address}: Ray cannot be reached"):
        check_cluster(address, connect_s=0)


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "127.0.0.1:port", "127.0.0.1"])
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"cluster\.address"):
        check_cluster(address, connect_s=0)


def test_ray_client_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="ray job submit"):
        check_cluster("ray://head:10001")


def test_cluster_of_these_tests_is_joined(ray_cluster: str) -> None:
    check_cluster(ray_cluster)


def test_other_version_is_refused_with_both() -> None:
    same = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    refuse_other_version("head:6379", same)
    for other in ({"ray_version": "2.9.0"}, {"python_version": "3.9.1"}):
        with pytest.raises(InputError, match="install the same") as refusal:
            refuse_other_version("head:6379", same | other)
        assert next(iter(other.values())) in str(refusal.value)


def test_cluster_that_refuses_to_describe_itself_is_said_with_what_to_correct(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_client: object) -> None:
        raise ray.exceptions.AuthenticationError("the token is missing. See the manual.")

    monkeypatch.setattr("ray._common.usage.usage_lib.get_cluster_metadata", refuse)
    with pytest.raises(InputError, match=r"not answer as Ray does \(.*\); correct .* the token"):
        check_cluster(ray_cluster)


def test_cluster_that_tells_no_version_is_joined(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray keeps it only where usage statistics could be stored."""
    monkeypatch.setattr("ray._common.usage.usage_lib.get_cluster_metadata", lambda _: None)
    check_cluster(ray_cluster)
