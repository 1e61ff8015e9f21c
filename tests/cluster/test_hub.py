"""The hub's refusals, from a hub on the loopback interface that refuses by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ANSWERS = {
    "gated": (403, "GatedRepo"),
    "missing": (404, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "empty": (404, "EntryNotFound"),
    "broken": (500, ""),
    "fine": (200, ""),
}


class RefusingHub(BaseHTTPRequestHandler):
    """Answers for `owner/NAME` as `ANSWERS` says, whatever is asked."""

    def do_HEAD(self) -> None:
        name = next(name for name in ANSWERS if f"owner/{name}" in self.path)
        status, code = ANSWERS[name]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "the hub says no")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", "an-etag")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *_: object) -> None:
        pass


ASK = """
import json, sys
from cluster.errors import InputError
from cluster.models.hub import check_hub_model, hub_file
from cluster.models.model import read_template
from evaluation.reading.hub_rows import load_hub_split

def ask_dataset(name):
    list(load_hub_split(name, None, "train"))

def ask_file(name):
    if file := hub_file(name, "chat_template.jinja"):
        raise InputError(file.read_text())

def ask_template(name):
    if (template := read_template(name)) is not None:
        raise InputError(template)

said = {}
for key, ask, name in json.loads(sys.argv[1]):
    try:
        asks = {"model": check_hub_model, "dataset": ask_dataset, "file": ask_file}
        (asks | {"template": ask_template})[ask](name)
        said[key] = None
    except InputError as error:
        said[key] = str(error)
print(json.dumps(said))
"""


def ask(endpoint: str, questions: list[tuple[str, str, str]], home: Path) -> dict[str, str]:
    """What each question to a hub is refused with; in a process, which reads the endpoint once."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
    }
    ran = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not ran.returncode, ran.stderr
    said: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    questions = [(name, "model", f"owner/{name}") for name in ANSWERS]
    questions += [("no name", "model", "owner/-- ")]
    questions += [(f"dataset {n}", "dataset", f"owner/{n}") for n in ("gated", "missing")]
    questions += [(f"file of {n}", "file", f"owner/{n}") for n in ("fine", "empty", "gated")]
    questions += [(f"template of {n}", "template", f"owner/{n}") for n in ("fine", "empty")]
    with ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = tmp_path_factory.mktemp("hub")
        yield ask(f"http://127.0.0.1:{server.server_port}", questions, home)
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gated", "access to it is restricted"),
        ("missing", "nothing of this name"),
        ("revision", "no such revision"),
        ("empty", "a required file is missing"),
        ("broken", "cannot be downloaded"),
        ("no name", "not a valid name on the Hugging Face hub"),
    ],
)
def test_refusal_of_a_model_is_one_sentence_that_says_what_to_do(
    said: dict[str, str], name: str, reason: str
) -> None:
    assert said[name].startswith("model.path 'owner/")
    assert reason in said[name]
    assert said[name].endswith("download it elsewhere and name its folder with model.path")
    assert "\n" not in said[name]


def test_model_that_the_hub_has_is_taken(said: dict[str, str]) -> None:
    assert said["fine"] is None


def test_small_file_is_there_or_not_and_only_a_refusal_is_an_error(said: dict[str, str]) -> None:
    assert said["file of fine"] == ""  # the hub's file is empty
    assert said["file of empty"] is None
    assert "access to it is restricted" in said["file of gated"]


def test_template_of_a_hub_model_is_asked_of_the_hub(said: dict[str, str]) -> None:
    assert said["template of fine"] == ""  # the hub's file is empty
    assert said["template of empty"] is None


@pytest.mark.parametrize("name", ["gated", "missing"])
def test_refusal_of_a_dataset_is_one_sentence(said: dict[str, str], name: str) -> None:
    assert f"owner/{name}" in said[f"dataset {name}"]
    assert "Hugging Face hub" in said[f"dataset {name}"]
    assert "\n" not in said[f"dataset {name}"]


def test_model_without_a_network_is_refused_at_once(tmp_path: Path) -> None:
    asked = [("model", "model", "owner/name"), ("file", "file", "owner/name")]
    said = ask("http://127.0.0.1:9", asked, tmp_path)
    assert said["file"] is None  # without a hub it is as if the model had none
    assert "the Hugging Face hub cannot be reached" in said["model"]


def test_model_that_was_downloaded_before_needs_no_hub(tmp_path: Path) -> None:
    revision = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
    revision.mkdir(parents=True)
    (revision / "config.json").write_text("{}")
    refs = revision.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert ask("http://127.0.0.1:9", [("model", "model", "owner/name")], tmp_path) == {
        "model": None
    }


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["run", "configs/paper_mistral.yaml"], "model.path"),
        (["evaluate", "--tasks", "svamp", "--model", "mistralai/Mistral-7B-Instruct-v0.3"],
         "--model"),
    ],
)  # fmt: skip
def test_command_on_a_hub_model_without_a_hub_ends_with_one_sentence(
    tmp_path: Path, command: list[str], named: str
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "regenesis.py", *command, "--set", f"storage.root={tmp_path}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2
    (sentence,) = ran.stderr.splitlines()
    assert "mistralai/Mistral-7B-Instruct-v0.3" in sentence
    assert named in sentence
