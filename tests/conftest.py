"""Shared pieces of the orchestration tests: a small config, a model folder, the driver itself."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow.fs
import pytest
import yaml

from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.grader import box, canonical_answer
from evaluation.question import SPLITS, Question
from tests.cluster.s3_proxy import CountingProxy

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

Driver = Callable[..., subprocess.CompletedProcess[str]]


def arithmetic(name: str, seed: int, domain: str = "in_domain", **limits: Any) -> dict[str, Any]:
    """A dataset of sums that the scripted engine can solve, generated."""
    settings = {"max_terms": 2, "max_digits": 3, "operators": ["+"], "allow_parentheses": False}
    source = {
        "kind": "reasoning_gym",
        "family": "basic_arithmetic",
        "seed": seed,
        "settings": settings,
    }
    return {name: {"source": source, "domain": domain, **limits}}


def sums(name: str, seed: int, domain: str = "in_domain", **limits: Any) -> dict[str, Any]:
    """The same from files, because importing the package that generates questions takes longer than
    many of these runs."""
    used = SPLITS[1:] if domain == "out_of_domain" else SPLITS
    files = {str(name): str(_sums(seed, name, limits.get(f"num_{name}"))) for name in used}
    source: dict[str, Any] = {"kind": "files", **files, "answer_type": "number"}
    return {name: {"source": source, "domain": domain, **limits}}


@functools.cache
def _sums(seed: int, split: str, limit: int | None) -> Path:
    """A file with so many sums and some more, for a test that raises the limit."""
    draw = random.Random(f"{seed} {split}")
    file = Path(_sums_folder().name) / f"{seed}-{split}-{limit}.jsonl"
    with file.open("w") as rows:
        for n in range(10 + 2 * (limit or 0)):
            first, second = draw.randint(1, 99_999), draw.randint(1, 99_999)
            asked = {"id": str(n), "question": f"Calculate {first} + {second}."}
            rows.write(json.dumps(asked | {"answer": str(first + second)}) + "\n")
    return file


@functools.cache
def _sums_folder() -> tempfile.TemporaryDirectory[str]:
    """It is removed at the end of this process."""
    return tempfile.TemporaryDirectory(prefix="sums-")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model(folder)
    return folder


def write_model(folder: Path) -> None:
    """A two-layer Llama with random weights, and a tokenizer of bytes with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=["<|turn|>"]
    )
    fast.chat_template = (
        "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture
def scripted_config(tmp_path: Path, model_folder: Path, ray_cluster: str) -> dict[str, Any]:
    """A run with the scripted engine, on the cluster that the tests share."""
    return scripted_on(ray_cluster, tmp_path, model_folder)


def scripted_on(address: str, folder: Path, model_folder: Path) -> dict[str, Any]:
    """`scripted_tree` on a running cluster, since starting one takes longer than most runs."""
    cluster = {"address": address, "progress_every_s": 1.0}
    return scripted_tree(folder, model_folder) | {"cluster": cluster}


def scripted_tree(folder: Path, model_folder: Path) -> dict[str, Any]:
    """The config of a whole run with the scripted engine on a Ray cluster that it starts itself:
    24 training and 16 held-out questions; `folder` gets the runs."""
    return {
        "run": "scripted",
        "model": {"path": str(model_folder)},
        "questions": {
            "datasets": sums("sums", 0, num_train=24, num_dev=4, num_test=8)
            | sums("far_sums", 10**6, "out_of_domain", num_dev=0, num_test=4)
        },
        "synthesis": {"guidelines_per_question": 3},
        "training": {
            "learning_rate": 1e-3,
            "num_epochs": 2,
            "num_workers": 1,  # one process fewer to start
            "global_batch_size": 8,
            "min_examples": 1,
            "dtype": "float32",
        },
        "engine": {**SCRIPTED_ENGINE},
        "cluster": {**LOCAL_CLUSTER},
        "storage": {"root": str(folder / "runs"), "cache": str(folder / "cache")},
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes a config tree to a file and gives its path."""

    def write(tree: dict[str, Any]) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


SCRIPTED_ENGINE: dict[str, Any] = {
    "implementation": "tests.scripted.ScriptedEngine",
    "use_gpu": False,
    "chunk_size": 4,
    "chunks_in_flight": 2,
    "max_num_seqs": 8,
    "flush_s": 0.2,
}
"""The `engine` of a config: small chunks, so that a few questions keep several in flight."""

LOCAL_CLUSTER = {"num_cpus": 2, "progress_every_s": 1.0, "object_store_gib": 0.2}
"""For a run that starts its own Ray, as on a laptop."""


def driver_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(REPOSITORY / "regenesis.py"), *map(str, arguments)]


def run_driver(*arguments: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """The driver as a user starts it, in a separate process."""
    return subprocess.run(
        driver_command(*arguments),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The driver in this process, on the Ray that the tests share.

    It prints and returns the same as `run_driver`, which takes seconds longer: it imports all
    packages again, and so does each worker of Ray, which belongs to one process.
    """
    import regenesis

    with _captured_streams() as files, contextlib.chdir(REPOSITORY):
        try:
            code = regenesis.main([*map(str, arguments)])
        except SystemExit as end:  # of the parser
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        printed = [file.read_text() for file in files]
    return subprocess.CompletedProcess(arguments, code, *printed)


@contextlib.contextmanager
def _captured_streams() -> Iterator[tuple[Path, Path]]:
    """Redirect stdout and stderr to two files within the block, and also what the driver writes to
    their file descriptors."""
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        files = folder / "stdout", folder / "stderr"
        for number, (name, file) in enumerate(zip(("stdout", "stderr"), files, strict=True), 1):
            stream, kept = getattr(sys, name), os.dup(number)
            stream.flush()
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
            undo.callback(setattr, sys, name, stream)
            os.dup2(undo.enter_context(file.open("wb")).fileno(), number)
            setattr(sys, name, _stream_of(number))
        yield files


@functools.cache
def _stream_of(number: int) -> TextIO:
    """A stream on a file descriptor, which a logger of Ray may keep for all later runs."""
    return open(number, "w", buffering=1, closefd=False)


def log_of(run: Path, command: str) -> str:
    """What the last call of a command on a run has logged."""
    last = max((run / "logs").glob(f"*-{command}*"))
    return (last / "log.txt").read_text()


def ledger_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that a reader of the ledger gets, without those it leaves aside."""
    rows = Ledger.read(Folder.open(str(folder))).rows()
    return sorted(rows, key=lambda row: str(row["question_id"]))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a local cluster with two CPUs."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")
    import ray

    context = ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        # By default Ray starts workers ahead of need for every driver that joins, a second of
        # processor time each.
        _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def gpu_node(ray_cluster: str) -> Iterator[None]:
    """Eight GPUs that only Ray counts, with two CPUs, on a node that joins the shared cluster."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # `ray start` would write down the cluster's address for every other Ray on this machine.
    arguments = RayParams(
        gcs_address=ray_cluster,
        num_cpus=2,
        num_gpus=8,
        object_store_memory=80 * 2**20,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,
    )
    node = Node(arguments, head=False, shutdown_at_exit=True, spawn_reaper=True)
    wait_for_gpus(ray.cluster_resources, 8)
    yield
    node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
    wait_for_gpus(ray.cluster_resources, 0)


def wait_for_gpus(resources: Callable[[], dict[str, float]], count: int) -> None:
    """Until the cluster knows of so many GPUs."""
    deadline = time.monotonic() + 180
    while resources().get("GPU", 0) != count:
        assert time.monotonic() < deadline, resources()
        time.sleep(0.1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server of this process."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def s3_folder(s3_server: tuple[str, int]) -> Folder:
    """A bucket on the S3 server."""
    host, port = s3_server
    store = pyarrow.fs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=f"{host}:{port}",
        allow_bucket_creation=True,
        connect_timeout=60,
        request_timeout=60,  # by default 3 s, which a busy machine may need for its first answer
    )
    store.create_dir("bucket")
    return Folder(store, "bucket")


@pytest.fixture
def s3_proxy(
    s3_server: tuple[str, int], s3_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CountingProxy]:
    """A proxy before the S3 server, and keys for it in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with CountingProxy(*s3_server) as proxy:
        yield proxy


def boxed_truth(question: Question) -> str:
    r"""The truth as the prompt asks for it, `\boxed{72}`, which the grader has to call correct."""
    answer = canonical_answer(question.answer, question.answer_type, question.choices)
    return box(answer, question.answer_type)
