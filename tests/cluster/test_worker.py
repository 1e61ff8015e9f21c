"""One worker and its engine, without Ray: what it does when a question, or its engine, fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.inference import worker
from cluster.inference.engine import Engine, EngineDiedError, EngineSettings, SamplingSettings
from cluster.inference.job import GenerationJob, Slots
from cluster.inference.progress import ProgressBoard
from cluster.inference.schedule import Questions, plan_job
from cluster.inference.worker import EngineWorker
from cluster.models.model import Model
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, PartWriter, ledger_schema
from evaluation.question import Question, question_table

SCHEMA = ledger_schema([pa.field("text", pa.string()), pa.field("num_failed", pa.int64())])
Row = dict[str, Any]
Answer = Callable[[str], Awaitable[str]]


class LocalBoard:
    """A board in this process, which is called as an actor of Ray is."""

    def __init__(self) -> None:
        self.board = ProgressBoard({"job": {"d": {}}}, {"job": {}})

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self.board, name))


class _Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> asyncio.Future[Any] | None:
        result = self._method(*args, **kwargs)
        try:
            reply = asyncio.get_running_loop().create_future()
        except RuntimeError:
            return None  # nobody waits for it: the worker is being made
        reply.set_result(result)
        return reply


class Handler:
    """Gives each question the text that `answer` returns for its number."""

    width, generations = 1, dict[int | None, int]()

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __call__(
        self, engine: Engine, question: Row, slots: Slots, previous: Row | None
    ) -> Row:
        return self._row(question, await self._answer(question["question"]), 0)

    def mark_failed(self, question: Row, reason: str) -> Row:
        return self._row(question, reason, 1)

    @staticmethod
    def _row(question: Row, text: str, num_failed: int) -> Row:
        known = ("question_id", "question_fingerprint", "dataset")
        return {name: question[name] for name in known} | {"text": text, "num_failed": num_failed}


def planned(folder: Folder, answer: Answer, sizes: list[int]) -> tuple[GenerationJob, list[Row]]:
    """A job of questions 0, 1, ... in chunks of equal size, and what a worker gets for each."""
    asked = [
        Question(f"d/{n}", "d", "train", "in_domain", str(n), "1", "number")
        for n in range(sum(sizes))
    ]
    folder.child("questions").write_table("questions.parquet", question_table(asked))
    questions = Questions(folder.child("questions"), ("train",))
    job = GenerationJob("job", folder, SCHEMA, Handler(answer), questions)
    work = plan_job(
        folder, SCHEMA, questions, {}, execution="1", num_slots=len(sizes), smallest=sizes[0],
        max_attempts=1,
    )  # fmt: skip
    assert work.num_chunks == len(sizes)
    return job, [{"job": "job", "execution": "1", "chunk": n} for n in range(len(sizes))]


def make_worker(
    job: GenerationJob, board: LocalBoard, name: str = "ScriptedEngine", **changes: Any
) -> EngineWorker:
    settings = EngineSettings(
        implementation=f"tests.scripted.{name}", **{"max_attempts": 1} | changes
    )
    model = Model(identity="scripted", path="scripted/model", cache="unused")
    return EngineWorker(model, {"job": job}, settings=settings, board=board)


def texts(job: GenerationJob) -> dict[str, str]:
    return {row["question_id"]: row["text"] for row in Ledger.read(job.folder).rows()}


async def do_chunk(worker: EngineWorker, chunk: Row) -> pa.Table:
    return await worker(pa.Table.from_pylist([chunk]))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of the processes needs the id of Ray's node."""
    monkeypatch.setattr(worker, "LIST_PROCESSES_EVERY_S", float("inf"))


class Exits:
    """Takes the place of the end of the process, and lets a test wait for it."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.came = asyncio.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.came.set()


async def do_until_exit(
    worker: EngineWorker, chunks: list[Row], monkeypatch: pytest.MonkeyPatch
) -> list[Row]:
    """Give a worker some chunks, and return those that it reports as done; a worker whose engine
    dies reports none of the others, even after its end."""
    exits = Exits()
    monkeypatch.setattr(os, "_exit", exits)
    tasks = [asyncio.create_task(do_chunk(worker, chunk)) for chunk in chunks]
    all_done = asyncio.create_task(asyncio.wait(tasks))
    ended = asyncio.create_task(exits.came.wait())
    await asyncio.wait([ended, all_done], return_when="FIRST_COMPLETED")
    await asyncio.sleep(0.05)
    assert exits.codes == ([1] if exits.codes else [])
    done = [chunk for chunk, task in zip(chunks, tasks, strict=True) if task.done()]
    for task in (ended, all_done, *tasks):
        task.cancel()
    return done


def test_worker_whose_engine_dies_saves_its_rows_and_the_question_to_blame_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    being_answered: set[str] = set()
    beside_another: set[str] = set()
    is_asked = asyncio.Event()

    async def answer(number: str) -> str:
        asked.append(number)
        if being_answered:
            beside_another.update(being_answered, number)
        being_answered.add(number)
        try:
            await asyncio.sleep(0.01)
            if number == "1":
                await is_asked.wait()
                raise EngineDiedError("out of memory")
            if number == "3" and not is_asked.is_set():
                is_asked.set()
                await asyncio.sleep(600)
        finally:
            being_answered.discard(number)
        return f"answer {number}"

    job, chunks = planned(Folder.open(str(tmp_path)), answer, [2, 2])
    board = LocalBoard()

    async def scenario() -> None:
        first = make_worker(job, board)
        assert await do_until_exit(first, chunks, monkeypatch) == []
        assert texts(job) == {"d/0": "answer 0", "d/2": "answer 2"}
        assert board.board.last_error() == "EngineDiedError: out of memory"
        assert beside_another >= {"1", "3"}

        # Both were open, so each of them is now tried alone. Which one goes first is open: the
        # two chunks are read at the same time.
        asked.clear()
        beside_another.clear()
        await do_until_exit(make_worker(job, board), chunks, monkeypatch)
        assert asked in (["1"], ["3", "1"])
        assert not beside_another

        done = await do_until_exit(make_worker(job, board), chunks, monkeypatch)
        assert done == chunks
        assert texts(job)["d/1"] == "its engine died 2 times while answering it"
        assert texts(job)["d/3"] == "answer 3"

    asyncio.run(scenario())


def test_worker_whose_engine_died_does_not_blame_a_question_that_waited_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    both = asyncio.Event()

    async def answer(number: str) -> str:
        """The first engine dies of one of two questions, the second of the one that it tries."""
        asked.append(number)
        if len(asked) > 3:
            return f"answer {number}"
        if len(asked) == 2:
            both.set()
            await asyncio.sleep(600)
        await both.wait()
        await asyncio.sleep(0.3)  # so that the other one waits for its turn
        raise EngineDiedError("out of memory")

    job, chunks = planned(Folder.open(str(tmp_path)), answer, [1, 1])
    board = LocalBoard()

    async def scenario() -> None:
        for number in (2, 3):
            await do_until_exit(make_worker(job, board), chunks, monkeypatch)
            assert len(asked) == number, "the other one was waiting when the engine died"
        done = await do_until_exit(make_worker(job, board), chunks, monkeypatch)
        assert done == chunks
        bad, good = asked[2:]
        assert texts(job) == {
            f"d/{bad}": "its engine died 2 times while answering it",
            f"d/{good}": f"answer {good}",
        }

    asyncio.run(scenario())


def test_worker_marks_a_question_whose_handler_fails_and_does_the_others(tmp_path: Path) -> None:
    async def answer(number: str) -> str:
        if number == "1":
            raise KeyError("no such\nfield")
        return f"answer {number}"

    job, [chunk] = planned(Folder.open(str(tmp_path)), answer, [3])
    asyncio.run(do_chunk(make_worker(job, LocalBoard()), chunk))
    assert texts(job) == {
        "d/0": "answer 0",
        "d/1": r"KeyError: 'no such\nfield'",
        "d/2": "answer 2",
    }


@pytest.mark.parametrize("every", [2, 3])
def test_worker_ends_when_questions_fail_in_a_row_but_not_when_some_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(worker, "MAX_FAILURES_IN_A_ROW", 2)

    async def answer(number: str) -> str:
        if int(number) % every:
            raise ValueError(f"no answer to {number}")
        return "answer"

    job, [chunk] = planned(Folder.open(str(tmp_path)), answer, [6])
    board = LocalBoard()
    called = do_chunk(make_worker(job, board, max_num_seqs=1), chunk)
    if every == 2:
        asyncio.run(called)
        assert len(texts(job)) == 6
        return
    with pytest.raises(ExceptionGroup):
        asyncio.run(called)
    assert "no answer to 2" in str(board.board.last_error())
    assert texts(job)["d/0"] == "answer"


def test_worker_asked_to_stop_begins_no_further_question(tmp_path: Path) -> None:
    begun: list[str] = []

    async def answer(number: str) -> str:
        begun.append(number)
        if number == "1":
            made._state.stop()
            await asyncio.sleep(60)
        return "answer"

    job, [chunk] = planned(Folder.open(str(tmp_path)), answer, [4])
    board = LocalBoard()
    made = make_worker(job, board)
    asyncio.run(do_chunk(made, chunk))
    assert texts(job) == dict.fromkeys([f"d/{n}" for n in begun if n != "1"], "answer")
    assert board.board.begin_chunk("next", "job/parts/1/000000") is not None, "it is not done"


def test_worker_that_serves_other_weights_than_the_first_is_refused(tmp_path: Path) -> None:
    async def answer(number: str) -> str:
        raise AssertionError("nothing is generated")

    job, [chunk] = planned(Folder.open(str(tmp_path)), answer, [1])
    board = LocalBoard()
    board.board.note_weights({"dtype": "float32"})
    made = make_worker(job, board)
    with pytest.raises(ExceptionGroup) as refused:
        asyncio.run(do_chunk(made, chunk))
    [error] = refused.value.exceptions
    assert isinstance(error, InputError)
    assert "the engines serve different models" in str(error)
    assert texts(job) == {}


def test_worker_whose_engine_does_not_start_tells_the_board_why(tmp_path: Path) -> None:
    async def answer(number: str) -> str:
        return "answer"

    job, _ = planned(Folder.open(str(tmp_path)), answer, [1])
    board = LocalBoard()
    with pytest.raises(InputError):
        make_worker(job, board, name="NoSuchEngine")
    assert "the engine did not start: InputError: engine.impl" in str(board.board.last_error())


class TimingOut:
    """An engine with a time limit that ends before that of the worker."""

    async def chat(self, *_: object) -> list[Any]:
        raise TimeoutError("the engine's own limit")

    def shutdown(self) -> None:
        pass


def test_worker_time_limit_is_told_from_one_of_the_engine() -> None:
    counts: dict[str, float] = {}
    metered = worker._MeteredEngine(TimingOut(), worker._Meter(60.0, counts))
    with pytest.raises(TimeoutError, match="the engine's own limit") as raised:
        asyncio.run(metered.chat([], SamplingSettings(max_tokens=4), 0))
    assert type(raised.value) is TimeoutError
    assert counts["num_in_flight"] == 0


def test_worker_goes_on_with_a_chunk_though_the_board_forgot_that_it_was_begun(
    tmp_path: Path,
) -> None:
    """The board was killed with the worker that had begun it; the rows on the disk tell."""
    asked: list[str] = []

    async def answer(number: str) -> str:
        asked.append(number)
        return f"answer {number}"

    job, [chunk] = planned(Folder.open(str(tmp_path)), answer, [3])
    row = {"question_id": "d/0", "question_fingerprint": fingerprint_of(job, "d/0"), "attempt": 0}
    before = row | {"dataset": "d", "text": "answer of before", "num_failed": 0}
    PartWriter(job.folder.child("parts/1/000000"), SCHEMA).write([before])
    asyncio.run(do_chunk(make_worker(job, LocalBoard()), chunk))
    assert sorted(asked) == ["1", "2"]
    assert texts(job) == {"d/0": "answer of before", "d/1": "answer 1", "d/2": "answer 2"}


def test_worker_whose_engine_fails_several_questions_at_once_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = asyncio.Event()

    async def answer(number: str) -> str:
        if number == "1":
            together.set()
        await together.wait()
        raise EngineDiedError(f"died of {number}")

    job, chunks = planned(Folder.open(str(tmp_path)), answer, [1, 1])

    async def scenario() -> None:
        made = make_worker(job, LocalBoard())
        assert await do_until_exit(made, chunks, monkeypatch) == []

    asyncio.run(scenario())
    assert texts(job) == {}


def fingerprint_of(job: GenerationJob, question_id: str) -> str:
    rows = job.questions.keys().to_pylist()
    return next(str(r["question_fingerprint"]) for r in rows if r["question_id"] == question_id)
