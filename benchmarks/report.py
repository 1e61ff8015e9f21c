"""How large the report of a run is, and how fast it is written, opened, filtered and searched.

    python -m benchmarks.report --paths 20000 [--bytes 1300] [--repeats 5] [--json]

Writes a run whose paths have so many bytes of text (plan and solution, words by Zipf's law),
reports it, and opens the file in a headless Chromium. Times are medians in milliseconds: until the
list is drawn, of a filter, and of a search through all texts (the first one opens every chunk).
Each is given as it passed (`_ms`) and as time of the processor, summed over all processes of
Chromium (`_cpu_ms`), which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import yaml

from benchmarks.machine import machine_facts
from benchmarks.show import run_steps
from cluster.store.folder import Folder
from cluster.store.ledger import _write_sealed
from cluster.store.step import Step
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.select_examples import DROPPED_SCHEMA
from pipelines.synthesis.handler import PATHS_SCHEMA
from regenesis import main as regenesis

PATHS = 25
ROWS_PER_FILE = 400
VOCABULARY = 5000
GUIDELINES = [{"guideline_id": f"guideline_{n:02d}", "text": f"Think {n}."} for n in range(PATHS)]
VERDICTS = ("correct", "wrong", "wrong", "no_answer", "truncated")


class Words:
    """Texts of a number of bytes."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        letters = "etaoinshrdlu"
        lengths = [self._random.randint(2, 9) for _ in range(VOCABULARY)]
        self._words = ["".join(self._random.choices(letters, k=length)) for length in lengths]
        self._weights = [1 / (rank + 3) for rank in range(VOCABULARY)]

    def text(self, num_bytes: int) -> str:
        """Words until the text has so many bytes."""
        words = self._random.choices(self._words, self._weights, k=num_bytes // 3)
        return " ".join(words)[:num_bytes]


def write_run(folder: Folder, num_paths: int, num_bytes: int) -> None:
    """A finished run with so many paths, of which a fifth is kept."""
    num_questions, words = -(-num_paths // PATHS), Words()
    run_steps(folder, num_questions)
    config = {"run": folder.name, "rounds": 1, "model": {"path": "/none"}, "questions": {}}
    folder.write_bytes("config.yaml", yaml.safe_dump(config).encode())
    round_ = folder.child("round_0")
    paths, examples = (
        Step.below(round_, name, content)
        for name, content in (("paths", {"guidelines": GUIDELINES}), ("examples", {}))
    )
    names = [name for name in folder.folder_names() if name.startswith("questions-")]
    names += [f"round_0/{step.folder.name}" for step in (paths, examples)]
    folder.write_json("steps.json", names)
    for first in range(0, num_questions, ROWS_PER_FILE):
        numbers = range(first, min(first + ROWS_PER_FILE, num_questions))
        rows = [_row(number, words, num_bytes) for number in numbers]
        table = pa.Table.from_pylist(rows, schema=PATHS_SCHEMA)
        _write_sealed(paths.folder, f"rows-000001-{first:06d}", table)
        _write_examples(examples, first, rows)
    paths.commit(rows={"num_done": num_questions, "num_paths": num_questions * PATHS})
    examples.commit(num_paths=num_questions * PATHS, datasets={}, dropped={})


def _row(number: int, words: Words, num_bytes: int) -> dict[str, Any]:
    question_id = f"bench/train/{number:07d}"
    return {
        "question_id": question_id,
        "question_fingerprint": f"{number:016x}",
        "attempt": 0,
        "dataset": f"bench_{number % 3}",
        "split": "train",
        "domain": "in_domain",
        "question": words.text(200),
        "answer": str(number),
        "answer_type": "number",
        "round": 0,
        "paths": [_path(question_id, place, words, num_bytes) for place in range(PATHS)],
    }


def _path(question_id: str, place: int, words: Words, num_bytes: int) -> dict[str, Any]:
    verdict = VERDICTS[place % len(VERDICTS)]
    ended = "length" if verdict == "truncated" else "stop"
    guideline = GUIDELINES[place]["guideline_id"]
    read = verdict in ("correct", "wrong")
    return {
        "path_id": f"0/regenesis/{question_id}/{guideline}/0/0",
        "guideline_id": guideline,
        "pass": 0,
        "structure": words.text(num_bytes // 3),
        "reasoning": words.text(2 * num_bytes // 3) + (" \\boxed{72}" if read else ""),
        "generations": [{"stage": "path", "seed": 1, "finish_reason": ended, "num_tokens": 300}],
        "predicted": "72" if read else None,
        "verdict": verdict,
        "read_as": "boxed" if read else "nothing",
    }


def _write_examples(step: Step, first: int, rows: Sequence[dict[str, Any]]) -> None:
    kept, dropped = [], []
    for row in rows:
        for path in row["paths"]:
            if path["verdict"] == "correct":
                kept.append(_example(row, path))
            else:
                dropped.append({"path_id": path["path_id"], "reason": path["verdict"]})
    for folder, name, found, schema in (
        (step.folder, "train", kept, EXAMPLES_SCHEMA),
        (step.folder.child("dropped"), "dropped", dropped, DROPPED_SCHEMA),
    ):
        table = pa.Table.from_pylist(found, schema=schema).sort_by(schema.names[0])
        folder.write_table(f"{name}-{first:06d}.parquet", table)


def _example(row: dict[str, Any], path: dict[str, Any]) -> dict[str, Any]:
    turns = (("user", row["question"]), ("assistant", path["reasoning"]))
    return {
        "example_id": path["path_id"],
        "form": "evaluation",
        "answer_added": False,
        "messages": [{"role": role, "content": text} for role, text in turns],
        "prompt_token_ids": [1] * 60,
        "target_token_ids": [1] * 300,
    }


# --- in the browser ----------------------------------------------------------------------------

_DRAWN = """
const done = arguments[0];
const look = () => document.querySelector(".paths .line") === null
  ? setTimeout(look, 1) : requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0));
look();
"""
_CHANGED = """
const [change, done] = [arguments[0], arguments[1]];
const before = document.querySelector(".paths .status").textContent;
const began = performance.now();
const look = () => {
  const status = document.querySelector(".paths .status").textContent;
  if (status === before || status.startsWith("Searching")) setTimeout(look, 5);
  else requestAnimationFrame(() => setTimeout(() => done(performance.now() - began), 0));
};
const field = document.querySelector(change[0]);
field.value = change[1];
field.dispatchEvent(new Event(change[2]));
look();
"""
"""Milliseconds from a change of a field until the list and all menus are drawn."""
SEARCH = ".paths input[type=search]"
VERDICT = ".paths select[data-field=verdict]"


def measure_page(file: Path, word: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Medians in milliseconds; each repeat loads the page anew."""
    from tests.report.browser import started_browser

    found: dict[str, list[float]] = {}
    with started_browser(folder) as browser:
        browser.driver.set_script_timeout(300)
        service = psutil.Process(browser.driver.service.process.pid)

        def timed(name: str, act: Callable[[], float]) -> None:
            before = _processor_ms(service)
            found.setdefault(f"{name}_ms", []).append(act())
            found.setdefault(f"{name}_cpu_ms", []).append(_processor_ms(service) - before)

        def opened() -> float:
            browser.open(file)
            return float(browser.driver.execute_async_script(_DRAWN))

        def changed(*change: str) -> float:
            return float(browser.driver.execute_async_script(_CHANGED, change))

        for _ in range(repeats):
            timed("open", opened)
            timed("filter", lambda: changed(VERDICT, "1", "change"))
            timed("filter_removed", lambda: changed(VERDICT, "", "change"))
            timed("first_search", lambda: changed(SEARCH, word, "input"))
            timed("next_search", lambda: changed(SEARCH, word[:-1], "input"))
    return {name: round(statistics.median(times)) for name, times in found.items()}


def _processor_ms(parent: psutil.Process) -> float:
    """What a process and all below it have taken of the processor."""
    total = 0.0
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += 1000 * (times.user + times.system)
    return total


def _timed_report(run: Folder, file: Path) -> dict[str, Any]:
    began, before = time.monotonic(), time.process_time()
    if regenesis(["report", run.uri, "-o", str(file)]):
        raise SystemExit("the report failed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "write_s": round(time.monotonic() - began, 1),
        "write_cpu_s": round(time.process_time() - before, 1),
        "peak_mib": peak >> 10,
    }


def _facts(folder: Path, num_paths: int, num_bytes: int, repeats: int) -> Iterator[tuple[str, Any]]:
    run = Folder.open(str(folder / "bench"))
    write_run(run, num_paths, num_bytes)
    file = folder / "report.html"
    yield from _timed_report(run, file).items()
    yield "file_mb", round(file.stat().st_size / 1e6, 1)
    parts = sorted((folder / "report-parts").glob("*.html"))
    yield "parts", len(parts)
    yield "largest_part_mb", round(max((p.stat().st_size for p in parts), default=0) / 1e6, 1)
    # A word that only the last question has: all chunks are searched, and one is found.
    word = f"{-(-num_paths // PATHS) - 1:07d}" if not parts else "0000001"
    yield from measure_page(file, word, repeats, folder).items()


def main() -> None:
    """Print what was measured, as lines or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--paths", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=1300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = {"machine": machine_facts(), "paths": arguments.paths, "bytes": arguments.bytes}
        measured = _facts(Path(folder), arguments.paths, arguments.bytes, arguments.repeats)
        facts |= dict(measured)
    lines = [f"{name}: {value}" for name, value in facts.items()]
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    main()
