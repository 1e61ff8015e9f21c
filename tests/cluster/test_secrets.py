from __future__ import annotations

import pytest

from cluster.errors import InputError
from cluster.secrets import hide, host_only, refuse_keys
from cluster.store.folder import Folder

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIA123:{SECRET}@bucket/runs",
        f"s3://AKIA123:{SECRET}/K7M%2F@bucket/runs",
        f"http://user:{SECRET}@proxy:3128",
        f"s3://bucket/runs?scheme=http&secret_key={SECRET}&region=x",
        f"https://host/hook?access_token={SECRET}",
        f"https://host/o?X-Amz-Signature={SECRET}&X-Amz-Date=1",
        f"cannot open s3://AKIA123:{SECRET}@bucket/a, nor http://u:{SECRET}@b/c: denied",
        f"--set storage.root=s3://AKIA123:{SECRET}@bucket",
    ],
)
def test_secrets_are_hidden_and_refused(text: str) -> None:
    hidden = hide(text)
    assert SECRET not in hidden
    assert "..." in hidden
    with pytest.raises(InputError) as refused:
        refuse_keys("a", {"b": [text]})
    assert SECRET not in str(refused.value)
    assert str(refused.value).startswith("a.b ")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9000&region=us-east-1",
        "hdfs://user@namenode:8020/runs",
        "https://host:8000/v1",
        "ratio 3:4, mail a@b.c, see http://host/x",
        "/data/a:b@c",
    ],
)
def test_secrets_other_addresses_are_left_alone(text: str) -> None:
    assert hide(text) == text
    refuse_keys("a", text)


def test_secrets_a_key_in_the_root_is_refused_with_the_way_to_give_it() -> None:
    with pytest.raises(InputError, match=r"storage\.root 's3://\.\.\.@bucket.*AWS_ACCESS_KEY_ID"):
        Folder.open(f"s3://AKIA:{SECRET}@bucket/runs")


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (f"https://hooks.slack.com/services/T0/B0/{SECRET}", "https://hooks.slack.com/..."),
        (f"curl -H 'Authorization: {SECRET}' -d @- https://host/x", "curl ..."),
        ("/usr/local/bin/tell", "/usr/local/bin/tell"),
    ],
)
def test_secrets_of_a_notification_only_the_host_or_program_is_shown(
    target: str, shown: str
) -> None:
    assert host_only(target) == shown
