"""One command at a time holds a run: taken, refused, found dead, taken over."""

from __future__ import annotations

import calendar
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest

import cluster.store.holder
from cluster.errors import HeldError, StorageError, TakenOverError
from cluster.store.folder import HOLDERS, MANIFEST, Folder
from cluster.store.holder import has_ended, hold, last_holder, this_process
from cluster.store.ledger import (
    Ledger,
    PartWriter,
    compact,
    ledger_schema,
    new_execution,
    open_ledger,
)
from tests.cluster.s3_proxy import CountingProxy

SCHEMA = ledger_schema([pa.field("text", pa.string())])
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.store.holder, "BEAT_EVERY_S", 0.05)
    monkeypatch.setattr(cluster.store.holder, "DEAD_AFTER_S", 0.6)


@pytest.fixture(params=["disk", "python", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """The folder of a run: on a disk, on a file system of another kind, and on S3."""
    if request.param == "disk":
        return Folder.open(str(tmp_path / "run"))
    if request.param == "python":
        store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        return Folder(store, "bucket/run")
    folder: Folder = request.getfixturevalue("s3_folder")
    return folder.child(tmp_path.name)


def write_elsewhere(run: Folder, epoch: int, **changed: object) -> None:
    """A holder of another machine, as it wrote itself down."""
    process = this_process() | {"host": "elsewhere", "machine": "another boot"} | changed
    run.child(HOLDERS).write_json(f"{epoch:06d}.json", process)


def test_holder_takes_the_next_epoch_after_one_that_released_it(run: Folder) -> None:
    for epoch in (1, 2, 3):
        with hold(run) as held:
            assert held.epoch == held.child("paths").epoch == epoch
            assert last_holder(run).process["pid"] == os.getpid()
    assert last_holder(run).epoch == 3


def test_second_command_is_told_who_holds_the_run(run: Folder) -> None:
    with hold(run) as held:
        with pytest.raises(HeldError, match=rf"process {os.getpid()} on .*, since .*--take-over"):
            hold(run).__enter__()
        held.check_claim()


@pytest.mark.parametrize("in_background", [False, True])
def test_run_taken_over_ends_the_command_that_held_it(run: Folder, in_background: bool) -> None:
    before = signal.getsignal(signal.SIGINT)
    handler = signal.SIG_IGN if in_background else signal.default_int_handler
    signal.signal(signal.SIGINT, handler)
    try:
        _is_ended_when_taken_over(run)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def _is_ended_when_taken_over(run: Folder) -> None:
    def wait_for_the_end() -> None:
        with hold(run) as held:
            taker = threading.Thread(target=lambda: take_over_and_end(run))
            taker.start()
            try:
                time.sleep(30)
            finally:
                taker.join()
                with pytest.raises(TakenOverError):
                    held.check_claim()

    with pytest.raises(TakenOverError, match="was taken over by"):
        wait_for_the_end()


def take_over_and_end(run: Folder) -> None:
    with hold(run, take_over=True):
        pass


def test_holder_that_gives_no_sign_is_dead_whatever_its_clock_says(run: Folder) -> None:
    write_elsewhere(run, 1, since="2099-01-01 00:00:00 UTC")
    run.child(HOLDERS).write_bytes("000001.beat", b"17")
    with hold(run) as held:
        assert held.epoch == 2


def test_holder_on_another_machine_that_counts_on_is_alive(run: Folder) -> None:
    write_elsewhere(run, 1, since="1999-01-01 00:00:00 UTC")
    ended = threading.Event()

    def count() -> None:
        number = 0
        while not ended.wait(0.02):
            number += 1
            run.child(HOLDERS).write_bytes("000001.beat", b"%d" % number)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        with pytest.raises(HeldError, match="elsewhere"):
            hold(run).__enter__()
    finally:
        ended.set()
        counter.join()


def test_process_of_this_machine_that_is_gone_is_dead_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Folder.open(str(tmp_path))
    monkeypatch.setattr(cluster.store.holder, "DEAD_AFTER_S", 600)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.child(HOLDERS).write_json("000001.json", this_process() | {"pid": ended.pid})
    with hold(run) as held:
        assert held.epoch == 2
    # Nor is a living one that was started at another time.
    run.child(HOLDERS).write_json("000003.json", this_process() | {"started": "1"})
    with hold(run) as held:
        assert held.epoch == 4


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_holder_whose_file_is_torn_is_judged_by_its_signs(tmp_path: Path, data: bytes) -> None:
    run = Folder.open(str(tmp_path))
    run.child(HOLDERS).write_bytes("000001.json", data)
    with hold(run) as held:
        assert held.epoch == 2
    assert "an unknown command" in str(cluster.store.holder.Holder(1, {}))


def test_holder_is_created_once_also_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    folder = Folder.open(str(tmp_path))
    assert folder.create("a.json", b"first")
    assert not folder.create("a.json", b"second")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"first")]


def test_holder_that_cannot_be_created_is_not_taken_for_a_disk_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(StorageError, match="the disk is broken"):
        Folder.open(str(tmp_path)).create("a.json", b"first")
    assert not [*tmp_path.iterdir()]


def test_of_many_that_find_the_holder_dead_one_takes_its_place(run: Folder) -> None:
    if run.filesystem.type_name == "subtree":
        return  # it has no conditional create, which the documentation says
    write_elsewhere(run, 1)
    outcomes: list[int] = []
    go_on = threading.Event()

    def take() -> None:
        try:
            with hold(run) as held:
                outcomes.append(held.epoch)
                go_on.wait(20)
        except HeldError:
            outcomes.append(0)

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    deadline = time.monotonic() + 20
    while len(outcomes) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    for taker in takers:
        taker.join()
    assert sorted(outcomes) == [0, 0, 0, 2]


HOLDING = """
import sys, time
real, shift = time.time, float(sys.argv[2])
time.time = lambda: real() + shift
time.gmtime = lambda *seconds, old=time.gmtime: old(*seconds or [time.time()])
import cluster.store.holder
cluster.store.holder.BEAT_EVERY_S, cluster.store.holder.DEAD_AFTER_S = 0.05, 0.6
from cluster.errors import TakenOverError
from cluster.store.folder import Folder
try:
    with cluster.store.holder.hold(Folder.open(sys.argv[1])) as held:
        print("held", flush=True)
        try:
            time.sleep(60)
        finally:
            held.child("paths-0123456789ab").commit({"num": 1})
except TakenOverError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.fixture(params=["disk", "s3"])
def shared_run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A run's folder that another process can open by its address."""
    if request.param == "disk":
        return Folder.open(str(tmp_path))
    proxy: CountingProxy = request.getfixturevalue("s3_proxy")
    return Folder.open(proxy.uri(f"bucket/{tmp_path.name}"))


@pytest.fixture(params=[-3600, 3600])
def other(
    request: pytest.FixtureRequest, shared_run: Folder, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run, whose clock is an hour behind or ahead."""
    address = str(tmp_path)
    if not shared_run.is_local:
        address = request.getfixturevalue("s3_proxy").uri(shared_run.path)
    command = [sys.executable, "-c", HOLDING, address, str(request.param)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_interruption_that_comes_while_the_command_ends_does_not_hide_why(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_late(beat: Any) -> None:
        beat._ended.wait()
        beat.lost = StorageError("the folder was removed")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    monkeypatch.setattr(cluster.store.holder._Beat, "run", interrupt_late)
    with pytest.raises(StorageError, match="was removed"), hold(run):
        raise OSError("a file of the folder is missing")
    with pytest.raises(StorageError, match="was removed"), hold(run):
        pass


def test_ctrl_c_that_comes_while_the_command_ends_is_passed_on(
    run: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_late(beat: Any) -> None:
        beat._ended.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.1)

    monkeypatch.setattr(cluster.store.holder._Beat, "run", interrupt_late)
    with pytest.raises(KeyboardInterrupt), hold(run):
        pass


def test_killed_holder_is_followed_at_once(
    shared_run: Folder, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shared_run
    with pytest.raises(HeldError, match=f"process {other.pid} on"):
        hold(run).__enter__()
    other.kill()
    other.wait()
    monkeypatch.setattr(cluster.store.holder, "DEAD_AFTER_S", 600)
    with hold(run) as held:
        assert held.epoch == 2


def test_paused_holder_is_dead_and_ends_when_it_wakes_up(
    shared_run: Folder, other: subprocess.Popen[str]
) -> None:
    run = shared_run
    step = run.child("paths-0123456789ab")
    since = last_holder(run).process["since"]
    hours = abs(time.time() - calendar.timegm(time.strptime(since, "%Y-%m-%d %H:%M:%S UTC"))) / 3600
    assert round(hours) == 1
    other.send_signal(signal.SIGSTOP)
    with hold(run) as held:
        assert held.epoch == 2
        other.send_signal(signal.SIGCONT)
        assert other.wait(20) == 2
        assert other.stdout
        assert step.manifest() is None, "it may not commit what it was about to"
        assert f"taken over by `{Path(sys.argv[0]).name}" in other.stdout.read()
        held.check_claim()


# --- what a superseded holder writes -------------------------------------------------------------


def row(question_id: str, text: str, attempt: int = 0) -> dict[str, object]:
    known = {"question_id": question_id, "question_fingerprint": "f", "attempt": attempt}
    return known | {"dataset": "d", "text": text}


def write(step: Folder, question_id: str, text: str, execution: str) -> None:
    PartWriter(step.child(f"parts/{execution}/000000"), SCHEMA).write([row(question_id, text)])


def texts(step: Folder) -> dict[str, str]:
    return {row["question_id"]: row["text"] for row in Ledger.read(step).rows()}


@pytest.fixture
def two_holders(run: Folder) -> Iterator[tuple[Folder, Folder]]:
    """One step, as the superseded holder and as its successor see it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.store.holder._Beat, "run", lambda self: None)
        with hold(run) as old, hold(run, take_over=True) as new:
            yield old.child("paths-0123456789ab"), new.child("paths-0123456789ab")


def test_rows_of_a_superseded_holder_count_when_they_were_there_before(
    two_holders: tuple[Folder, Folder],
) -> None:
    old, new = two_holders
    execution = new_execution(old)
    write(old, "q1", "before", execution)
    open_ledger(new, SCHEMA)
    write(old, "q1", "late", execution)
    write(old, "q2", "late", execution)
    assert texts(new) == {"q1": "before"}
    write(new, "q2", "new", new_execution(new))
    assert texts(new) == texts(compact_and_read(new)) == {"q1": "before", "q2": "new"}


def test_run_whose_holders_were_deleted_goes_on(run: Folder) -> None:
    for _ in range(3):
        with hold(run) as held:
            step = held.child("round_0/paths-0123456789ab")
            open_ledger(step, SCHEMA)
            write(step, f"q{held.epoch}", "kept", new_execution(step))
    run.child(HOLDERS).delete()
    with hold(run) as held:
        assert held.epoch == 4
        step = held.child("round_0/paths-0123456789ab")
        open_ledger(step, SCHEMA)
        assert texts(step) == {f"q{number}": "kept" for number in (1, 2, 3)}
        step.commit({"num": 3})
        assert step.manifest() is not None


def compact_and_read(step: Folder) -> Folder:
    compact(step, SCHEMA)
    return step


def test_compaction_of_a_superseded_holder_loses_no_row(
    two_holders: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_holders
    write(old, "q1", "one", new_execution(old))
    real = cluster.store.ledger._rewrite

    def wake_up_late(ledger: Ledger, *arguments: object) -> None:
        real(ledger, *arguments)  # type: ignore[arg-type]
        # Meanwhile the successor begins, and one of its workers writes.
        monkeypatch.setattr(cluster.store.ledger, "_rewrite", real)
        open_ledger(new, SCHEMA)
        write(new, "q2", "two", new_execution(new))

    monkeypatch.setattr(cluster.store.ledger, "_rewrite", wake_up_late)
    monkeypatch.setattr(Folder, "check_claim", lambda self: None)  # as if it slept just after
    with pytest.raises((TakenOverError, RuntimeError)):
        compact(old, SCHEMA)
    assert texts(new) == {"q1": "one", "q2": "two"}
    assert texts(compact_and_read(new)) == {"q1": "one", "q2": "two"}


def test_last_act_of_a_superseded_compaction_removes_nothing_that_counts(
    two_holders: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_holders
    write(old, "q1", "one", new_execution(old))
    gone = [name for name in old.walk() if "part-" in name]
    open_ledger(new, SCHEMA)
    write(new, "q2", "two", new_execution(new))
    old.delete_files(gone)
    cluster.store.ledger._delete_executions(old)
    assert texts(new) == {"q1": "one", "q2": "two"}


def test_superseded_holder_can_neither_compact_nor_commit(
    two_holders: tuple[Folder, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_holders
    write(old, "q1", "one", new_execution(old))
    acts: list[Callable[[], object]] = [
        lambda: old.commit({}),
        lambda: compact(old, SCHEMA),
        lambda: open_ledger(old, SCHEMA),
    ]
    for act in acts:
        with pytest.raises(TakenOverError):
            act()
    open_ledger(new, SCHEMA)
    with pytest.raises(TakenOverError, match="has begun to work on"):
        Ledger.read(old)
    # It had checked its claim, fell asleep, and woke up after the other had begun.
    old.write_json(MANIFEST, {"epoch": old.epoch})
    assert new.manifest() is None
    new.commit({"num": 1})
    assert new.manifest() == {"num": 1, "epoch": new.epoch}


# --- what only some machines and stores do -------------------------------------------------------


def test_process_of_a_machine_without_proc_is_judged_by_its_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has none: no two processes there can be told to be on the same machine."""

    def refuse(path: Path) -> Path:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", refuse)
    run = Folder.open(str(tmp_path))
    assert this_process()["machine"] == ""
    run.child(HOLDERS).write_json("000001.json", this_process() | {"pid": 2**22 + 1})
    assert not has_ended(run, last_holder(run))
    with hold(run) as held:
        assert held.epoch == 2


def test_holder_that_releases_the_run_while_it_is_watched_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Folder.open(str(tmp_path))
    write_elsewhere(run, 1)
    monkeypatch.setattr(cluster.store.holder, "DEAD_AFTER_S", 600)

    def release(_: float) -> None:
        run.child(HOLDERS).write_bytes(last_holder(run).released_name, b"")

    monkeypatch.setattr("cluster.store.holder.time.sleep", release)
    with hold(run) as held:
        assert held.epoch == 2


def test_holder_whose_folder_was_removed_ends_its_command_at_the_next_count(
    tmp_path: Path,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def wait_for_the_end() -> None:
        with hold(Folder.open(str(tmp_path / "run"))):
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            time.sleep(30)

    try:
        with pytest.raises(StorageError, match="was removed while"):
            wait_for_the_end()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["reading", "writing"])
def test_holder_whose_store_is_away_for_a_moment_goes_on_counting(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Folder.open(str(tmp_path))
    counted, failures = threading.Event(), [OSError("SLOW_DOWN"), OSError("SLOW_DOWN")]

    def check(_: Folder) -> None:
        if failures and where == "reading":
            raise failures.pop()
        if failures:
            raise StorageError("a file cannot be written") from failures.pop()
        counted.set()

    with hold(run) as held:
        monkeypatch.setattr(Folder, "check_claim", check)
        assert counted.wait(30)
        assert held.epoch == 1
    assert last_holder(run).epoch == 1
