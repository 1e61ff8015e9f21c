from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.events import kept_log, record
from cluster.secrets import hide, hide_arguments, host_only, refuse_keys
from cluster.store.folder import Folder
from pipelines.config import load_config
from pipelines.stored_run import resolved_config
from regenesis import main

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


def test_secrets_a_key_in_an_address_is_refused_with_the_way_to_give_it() -> None:
    with pytest.raises(InputError, match=r"storage.root 's3://\.\.\.@bucket.*AWS_ACCESS_KEY_ID"):
        Folder.open(f"s3://AKIA:{SECRET}@bucket/runs")
    with pytest.raises(InputError, match=r"gs://\.\.\.@bucket.*GOOGLE_APPLICATION_CREDENTIALS"):
        Folder.open(f"gs://me:{SECRET}@bucket/runs")


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


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        (f"storage.root=s3://AKIA:{SECRET}@bucket/runs", "storage.root"),
        (f"questions.folder=s3://AKIA:{SECRET}@bucket/questions", "questions.folder"),
        (f"training.tracking.mlflow_uri=https://me:{SECRET}@host", "training.tracking.mlflow_uri"),
        (f"engine.options={{hf_token: {SECRET}}}", "engine.options.hf_token"),
        (f"engine.options={{additional_config: {{openai_api_key: {SECRET}}}}}", "engine.options."),
        (f"engine.options={{additional_config: {{AWS_SECRET_ACCESS_KEY: {SECRET}}}}}", "engine."),
        (f"engine.options={{additional_config: {{Authorization: {SECRET}}}}}", "engine.options."),
        (f"engine.endpoint.url=http://me:{SECRET}@host/v1", "engine.endpoint.url"),
    ],
)
def test_secrets_in_a_config_are_refused_before_anything_is_printed(
    setting: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "quickstart", "--dry-run", "--set", setting]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"regenesis: {field}")
    assert SECRET not in shown.out + shown.err


def test_secrets_of_a_notification_are_neither_printed_nor_stored() -> None:
    notify = f"cluster.notify=https://hooks.slack.com/services/{SECRET}"
    config = load_config("quickstart", [notify])
    assert config.cluster.notify is not None
    assert SECRET in config.cluster.notify
    assert SECRET not in resolved_config(config)
    assert hide_arguments(["run", "--set", notify]) == "run --set cluster.notify=..."
    assert hide_arguments([f"--set={notify}"]) == "--set=cluster.notify=..."
    tree = f"cluster={{notify: 'curl -H {SECRET}'}}"
    assert SECRET not in hide_arguments(["--set", tree, f"--set={tree}"])
    assert hide_arguments(["--set", "cluster.num_cpus=2"]) == "--set cluster.num_cpus=2"


def log_and_fail(folder: Path) -> None:
    with kept_log("run", Folder.open(str(folder))):
        record("opened", uri=f"s3://AKIA:{SECRET}@bucket")
        raise OSError(f"cannot open s3://AKIA:{SECRET}@bucket")


def test_secrets_in_an_error_message_reach_no_log(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=SECRET):
        log_and_fail(tmp_path)
    (logs,) = (tmp_path / "logs").iterdir()
    texts = [file.read_text() for file in logs.iterdir()]
    assert len(texts) == 2
    assert not any(SECRET in text for text in texts)
    assert all("s3://...@bucket" in text for text in texts)
