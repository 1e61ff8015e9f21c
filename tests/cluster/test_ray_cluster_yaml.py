"""`ray_cluster.yaml` as `ray up` reads it, up to the point where an account is needed."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND

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
    (command,) = cluster[f"{kind}_setup_commands"]
    program, script, lock, file_system = shlex.split(command)
    assert program == "bash"
    assert cluster["file_mounts"][script] == "cluster/nodes/setup_node.sh"
    assert cluster["file_mounts"][lock] == "requirements/gpu.lock"
    assert file_system.endswith(f".efs.{cluster['provider']['region']}.amazonaws.com")
    # A cluster only accepts jobs from a client with the same Ray version.
    assert f"\nray=={ray.__version__}" in (REPOSITORY / "requirements" / "gpu.lock").read_text()


def test_files_that_the_nodes_get_are_there(cluster: dict[str, Any]) -> None:
    for here in cluster["file_mounts"].values():
        assert here == TOKEN or (REPOSITORY / here).is_file()


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


def test_idle_gpus_are_kept_for_longer_than_a_step_without_them(cluster: dict[str, Any]) -> None:
    assert cluster["idle_timeout_minutes"] >= 30


def test_each_worker_watches_for_the_spot_notice(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["gpu_worker"]["node_config"]
    assert worker["InstanceMarketOptions"] == {"MarketType": "spot"}
    words = shlex.split(cluster["worker_start_ray_commands"][-1])
    script = next(word for word in words if word.endswith(".py"))
    assert cluster["file_mounts"][script] == "cluster/nodes/drain_on_notice.py"
    assert words[words.index("--address") + 1] == "$RAY_HEAD_IP:6379"
    # The command must let go of the SSH session that started it.
    assert words[-3:] == ["<", "/dev/null", "&"]


class Account:
    """A pretended AWS account with what docs/CLUSTER.md says to make."""

    def __init__(self, region: str) -> None:
        zone = f"{region}a"
        self.ec2 = boto3.client("ec2", region)
        vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        public, private = (
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"]
            for block in ("10.0.0.0/24", "10.0.1.0/24")
        )
        group = self.ec2.create_security_group(GroupName="n", Description="n", VpcId=vpc)
        image = self.ec2.describe_images()["Images"][0]
        # As in an account that has had a Ray cluster: Ray would make it, and wait half a minute.
        iam, name = boto3.client("iam", region), "ray-autoscaler-v1"
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        self.filled_in = {
            "subnet-00000000000000000": public["SubnetId"],
            "subnet-11111111111111111": private["SubnetId"],
            "sg-00000000000000000": group["GroupId"],
            "ami-00000000000000000": image["ImageId"],
        }


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        # Ray writes the private key that it makes below the home folder.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield Account(yaml.safe_load(FILE.read_text())["provider"]["region"])


@pytest.fixture(scope="module")
def bootstrapped(account: Account) -> dict[str, Any]:
    """The file as Ray launches it in that account."""
    text = FILE.read_text()
    for placeholder, identifier in account.filled_in.items():
        assert placeholder in text
        text = text.replace(placeholder, identifier)
    made: dict[str, Any] = bootstrap_aws(prepare_config(yaml.safe_load(text)))
    return made


@pytest.mark.slow
def test_no_security_group_lets_ssh_in_from_everywhere(
    bootstrapped: dict[str, Any], account: Account
) -> None:
    groups = account.ec2.describe_security_groups()["SecurityGroups"]
    assert "ray-autoscaler-regenesis" not in {group["GroupName"] for group in groups}
    open_to_all = [
        rule
        for group in groups
        for rule in group["IpPermissions"]
        if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
    ]
    assert not open_to_all
    group = account.filled_in["sg-00000000000000000"]
    for node in bootstrapped["available_node_types"].values():
        assert set(node["node_config"]["SecurityGroupIds"]) == {group}


def launch(cluster: dict[str, Any], account: Account, kind: str) -> dict[str, Any]:
    """What EC2 says of a node that Ray launched."""
    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    node_config = cluster["available_node_types"][kind]["node_config"]
    (name,) = provider.create_node(node_config, {TAG_RAY_NODE_KIND: kind}, 1)
    (reservation,) = account.ec2.describe_instances(InstanceIds=[name])["Reservations"]
    (instance,) = reservation["Instances"]
    assert provider.internal_ip(name) == instance["PrivateIpAddress"]
    return dict(instance)


@pytest.mark.slow
def test_a_worker_is_launched_with_one_efa_a_card_in_the_placement_group(
    bootstrapped: dict[str, Any], account: Account
) -> None:
    worker = launch(bootstrapped, account, "gpu_worker")
    assert worker["SubnetId"] == account.filled_in["subnet-11111111111111111"]
    config = bootstrapped["available_node_types"]["gpu_worker"]["node_config"]
    # The pretended EC2 takes the group, and does not tell it again.
    assert config["Placement"] == {"GroupName": "regenesis"}
    cards = config["NetworkInterfaces"]
    assert [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards] == [
        *((0, 0), (1, 1), (2, 1), (3, 1))
    ]
    assert {card["InterfaceType"] for card in cards} == {"efa"}


@pytest.mark.slow
def test_the_head_is_launched_in_the_public_subnet(
    bootstrapped: dict[str, Any], account: Account
) -> None:
    head = launch(bootstrapped, account, "head")
    assert head["SubnetId"] == account.filled_in["subnet-00000000000000000"]
    assert bootstrapped["provider"]["use_internal_ips"]


def test_every_interface_names_its_security_group(cluster: dict[str, Any]) -> None:
    # For a node without one, Ray makes a group that lets SSH in from everywhere.
    types = cluster["available_node_types"]
    assert types["head"]["node_config"]["SecurityGroupIds"]
    for card in types["gpu_worker"]["node_config"]["NetworkInterfaces"]:
        assert card["Groups"]
        assert card["SubnetId"]


@pytest.mark.parametrize("kind", ["head", "gpu_worker"])
def test_nodes_answer_metadata_requests_with_a_token_only(
    cluster: dict[str, Any], kind: str
) -> None:
    node = cluster["available_node_types"][kind]["node_config"]
    assert node["MetadataOptions"] == {"HttpTokens": "required"}
    assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_workers_put_temporary_files_on_the_local_disk(cluster: dict[str, Any]) -> None:
    assert "TMPDIR=/mnt/local/tmp" in start_command(cluster, "worker")


@pytest.mark.slow
def test_token_made_as_the_guide_says_is_for_its_owner_only(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "CLUSTER.md").read_text()
    (command,) = re.findall(r"`(\(umask 077[^`]*)`", guide)
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", command], check=True, timeout=60, env=environment)
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
