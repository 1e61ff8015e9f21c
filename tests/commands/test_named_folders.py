"""A folder or file that an argument names wrongly is refused before any work, by its argument."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import cluster.store.named
from cluster.errors import StoreAwayError
from cluster.store.named import split_address
from cluster.store.network import wait_out
from regenesis import main
from tests.cluster.s3_proxy import CountingProxy
from tests.finished_run import FinishedRun, lasting_files

NOWHERE = "scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1"
"""No server listens there."""
RUN = "RUN"
"""Stands for the folder of a finished run."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file and folders that have the names of files."""
    (tmp_path / "file").write_text("no run\n")
    for name in ("page.html", "sheet.json", "answers.jsonl"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(arguments: list[str], run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> str:
    given = [argument.replace(RUN, run.folder.uri) for argument in arguments]
    before = lasting_files(run)
    assert main(given) == 2
    said = capsys.readouterr().err
    assert "storage.root" not in said
    assert lasting_files(run) == before
    [sentence] = [line for line in said.splitlines() if line.startswith("regenesis: ")]
    return sentence


WRITTEN = [
    (["export", RUN, "--to"], "--to"),
    (["analyse", RUN, "--to"], "--to"),
    (["report", RUN, "-o"], "-o"),
    (["judge", RUN, "-o"], "-o"),
]
READ = [
    (["show"], "the run folder"),
    (["show", "--runs"], "--runs"),
    (["analyse"], "the run folder"),
    (["report"], "the run folder"),
    (["export", "--to", "out"], "the run folder"),
    (["judge"], "the run folder"),
    (["select"], "the run folder"),
    (["clean"], "the run folder"),
    (["watch", "--once"], "the run folder"),
]


@pytest.mark.parametrize(("command", "argument"), WRITTEN)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("file/deep/x", "file is not a folder; name another folder"),
        ("", ""),
        ("s3:/bucket/x", "is no folder and no URI; write s3://bucket"),
        ("ftp://host/x", "is not a folder or URI: Unrecognized filesystem type"),
    ],
)
def test_target_is_refused_by_its_argument(
    finished_run: FinishedRun,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    argument: str,
    given: str,
    sentence: str,
) -> None:
    ending = ".html" if argument == "-o" and given else ""
    said = refusal([*command, given + ending], finished_run, capsys)
    assert said.startswith(f"regenesis: {argument} ")
    assert sentence in said


@pytest.mark.parametrize(("command", "argument"), READ)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("file", "file is a file and no folder; correct the path"),
        ("", "has no value; give a folder or a URI"),
        ("s3:/bucket/x", "is no folder and no URI; write s3://bucket/x"),
        ("s3://", "names no bucket"),
    ],
)
def test_source_is_refused_by_its_argument(
    finished_run: FinishedRun,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    argument: str,
    given: str,
    sentence: str,
) -> None:
    said = refusal([*command, given], finished_run, capsys)
    assert said.startswith(f"regenesis: {argument} ")
    assert sentence in said


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["report", RUN, "-o", "page.html"], "-o page.html is a folder; name a file"),
        (["judge", RUN, "-o", "sheet.json"], "-o sheet.json is a folder; name a file"),
        (["export", RUN, "--to", f"{RUN}/shared"], "is within the run's folder; name another"),
        (["analyse", RUN, "--to", RUN], "is within the run's folder; name another"),
        (["grade", "answers.jsonl"], "answers.jsonl: Is a directory; give a JSONL file"),
        (["judge-import", RUN, "sheet.json"], "sheet.json cannot be read (Is a directory)"),
        (["compare", RUN, "nowhere"], "there is no file or folder nowhere; correct the path"),
        (["evaluate", "--model", "", "--tasks", "gsm8k"], "--model '' names no model; give a"),
        (
            ["evaluate", "--model", "m", "--tasks", "gsm8k", "--out", "s3:/bucket/x"],
            "--out 's3:/bucket/x' is no folder and no URI; write s3://bucket/x",
        ),
    ],
)
def test_folder_for_a_file_and_a_folder_of_the_run_are_refused(
    finished_run: FinishedRun,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    sentence: str,
) -> None:
    assert sentence in refusal(command, finished_run, capsys)


@pytest.mark.parametrize(
    ("command", "argument"),
    [(["export", RUN, "--to"], "--to s3://bucket/x"), (["show"], "the run folder s3://bucket/x")],
)
def test_store_that_does_not_answer_is_named_by_its_argument(
    finished_run: FinishedRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    argument: str,
) -> None:
    monkeypatch.setattr(cluster.store.named, "FIRST_ANSWER_S", 0.1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    said = refusal([*command, f"s3://bucket/x?{NOWHERE}"], finished_run, capsys)
    assert said.startswith(f"regenesis: {argument} cannot be reached: ")
    assert said.endswith("; check the address and the network")


def test_store_that_refuses_is_named_by_its_argument(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str], s3_proxy: CountingProxy
) -> None:
    s3_proxy.mode = "forbidden"
    said = refusal(["analyse", RUN, "--to", s3_proxy.uri("bucket/x")], finished_run, capsys)
    assert said.startswith("regenesis: --to: the storage s3://bucket refuses this request")


def test_folder_that_may_not_be_read_or_written_is_refused(
    finished_run: FinishedRun,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A test that runs as root may read and write everything, so that the system is asked here."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    said = refusal(["export", RUN, "--to", "new"], finished_run, capsys)
    assert said == f"regenesis: --to '{place}/new': {place} may not be written; name another folder"
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    said = refusal(["show", RUN], finished_run, capsys)
    assert "may not be read; ask for the permission to" in said


def test_store_that_goes_away_while_a_command_reads_ends_it_with_a_sentence() -> None:
    def fail() -> None:
        raise OSError("AWS Error NETWORK_CONNECTION")

    with pytest.raises(StoreAwayError, match=r"s3://bucket has not .* repeat the command") as away:
        wait_out(fail, "s3://bucket", 0.0)
    assert away.value.exit_code == 4
    assert not away.value.lasts


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("x.html", (".", "x.html")),
        ("/x.html", ("/", "x.html")),
        ("a/b/x.html", ("a/b", "x.html")),
        ("a/", ("a", "")),
        ("s3://bucket/a/x.html?region=x", ("s3://bucket/a?region=x", "x.html")),
        ("what?/x.html", ("what?", "x.html")),
    ],
)
def test_address_of_a_file_is_split(address: str, expected: tuple[str, str]) -> None:
    assert split_address(address) == expected


def test_report_is_written_into_a_bucket(
    finished_run: FinishedRun, s3_proxy: CountingProxy, tmp_path: Path
) -> None:
    address = s3_proxy.uri(f"bucket/{tmp_path.name}/page.html")
    assert main(["report", finished_run.folder.uri, "-o", address]) == 0
    assert s3_proxy.count("PUT", f"{tmp_path.name}/page.html") == 1
