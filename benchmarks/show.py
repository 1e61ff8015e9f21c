"""How long `show` and `analyse` take on a run with many paths.

    python -m benchmarks.show --questions 40000 [--json]

Writes a run with 25 paths of 1 kB for each question straight to Parquet, as its steps would: once
finished, with a fifth of the paths kept as examples, and once unfinished, as part files of 64
questions. Then it times each command in a process of its own, with its start.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from benchmarks.machine import machine_facts
from cluster.store.folder import Folder
from cluster.store.ledger import ROWS_PER_FILE, PartWriter, _write_sealed
from cluster.store.step import RUN_FILE, STEPS_FILE, Step
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.select_examples import DROPPED_SCHEMA
from pipelines.synthesis.handler import PATHS_SCHEMA

PATHS = 25
TEXT_BYTES = 500
ROWS_PER_PART = 64
EXAMPLES_PER_FILE = 10_000
DRIVER = Path(__file__).resolve().parent.parent / "regenesis.py"


def path_row(number: int, place: int, pool: str) -> dict[str, Any]:
    """One path; every fifth is right."""
    start = (number * PATHS + place) * 7919 % (len(pool) - 2 * TEXT_BYTES)
    generation = {"stage": "path", "seed": 1, "finish_reason": "stop", "num_tokens": 200}
    return {
        "path_id": f"0/regenesis/{question_id(number)}/g{place:02d}/0/0",
        "guideline_id": f"g{place:02d}",
        "pass": 0,
        "structure": pool[start : start + TEXT_BYTES],
        "reasoning": pool[start + TEXT_BYTES : start + 2 * TEXT_BYTES],
        "generations": [generation],
        "predicted": "72",
        "verdict": "wrong" if place % 5 else "correct",
        "read_as": "boxed",
    }


def question_id(number: int) -> str:
    """The id of a question."""
    return f"bench/train/{number:07d}"


def ledger_rows(first: int, last: int, pool: str) -> list[dict[str, Any]]:
    """The rows of some questions."""
    return [
        {
            "question_id": question_id(number),
            "question_fingerprint": f"{number:016x}",
            "attempt": 0,
            "dataset": "bench",
            "split": "train",
            "domain": "in_domain",
            "question": f"What is {number} + 1?",
            "answer": str(number + 1),
            "answer_type": "number",
            "round": 0,
            "num_paths": PATHS,
            "num_accepted": PATHS // 5,
            "num_failed": 0,
            "num_truncated": 0,
            "num_tokens": 200 * PATHS,
            "paths": [path_row(number, place, pool) for place in range(PATHS)],
        }
        for number in range(first, last)
    ]


def write_runs(root: Folder, num_questions: int) -> None:
    """The finished run `finished` and the unfinished one `unfinished`."""
    generator = random.Random(0)
    pool = "".join(generator.choices("etaoin shrdlu 0123456789\n", k=2_000_000))
    runs = {name: root.child(name) for name in ("finished", "unfinished")}
    steps = {name: run_steps(folder, num_questions) for name, folder in runs.items()}
    totals: dict[str, Any] = {"num_done": num_questions, "num_paths": num_questions * PATHS}
    totals |= {
        "num_accepted": num_questions * (PATHS // 5),
        "num_tokens": 200 * totals["num_paths"],
    }
    done, begun = steps["finished"]["paths"], steps["unfinished"]["paths"]
    for number, first in enumerate(range(0, num_questions, ROWS_PER_FILE)):
        rows = ledger_rows(first, min(first + ROWS_PER_FILE, num_questions), pool)
        table = pa.Table.from_pylist(rows, schema=PATHS_SCHEMA)
        _write_sealed(done.folder, f"rows-000001-{number:06d}", table)
        chunk = begun.folder.child(f"parts/000001-000001-aaaa/{number:06d}")
        writer = PartWriter(chunk, PATHS_SCHEMA)
        for start in range(0, len(rows), ROWS_PER_PART):
            writer.write(rows[start : start + ROWS_PER_PART])
    done.commit(rows=totals, last_execution={})
    write_examples(steps["finished"]["examples"], num_questions)


def run_steps(run: Folder, num_questions: int) -> dict[str, Step]:
    """Begin a run whose questions are there; returns its other steps."""
    questions = Step.below(run, "questions", {})
    counts = [{"dataset": "bench", "split": "train", "num_kept": num_questions}]
    questions.commit(num_questions=num_questions, counts=counts)
    round_ = run.child("round_0")
    steps = {name: Step.below(round_, name, {}) for name in ("paths", "examples")}
    run.write_json(RUN_FILE, {"run": run.name})
    names = [questions.folder.name, *(f"round_0/{step.folder.name}" for step in steps.values())]
    run.write_json(STEPS_FILE, names)
    config = {"run": run.name, "rounds": 1, "model": {"path": "/none"}, "questions": {}}
    run.write_bytes("config.yaml", yaml.safe_dump(config).encode())
    return steps


def write_examples(step: Step, num_questions: int) -> None:
    """A fifth of the paths as examples of 200 tokens, and the others as dropped."""
    ids = [
        [f"0/regenesis/{question_id(n)}/g{place:02d}/0/0" for n in range(num_questions)]
        for place in range(PATHS)
    ]
    kept = sorted(i for place in range(0, PATHS, 5) for i in ids[place])
    dropped = sorted(i for place in range(PATHS) if place % 5 for i in ids[place])
    tokens = np.random.default_rng(0).integers(0, 50_000, (EXAMPLES_PER_FILE, 200)).tolist()
    for number, start in enumerate(range(0, len(kept), EXAMPLES_PER_FILE)):
        rows = [
            {"example_id": i, "dataset": "bench", "prompt_token_ids": t[:50], "target_token_ids": t}
            for i, t in zip(kept[start : start + EXAMPLES_PER_FILE], tokens, strict=False)
        ]
        table = pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA)
        step.folder.write_table(f"train-{number:05d}.parquet", table)
    for number, start in enumerate(range(0, len(dropped), EXAMPLES_PER_FILE)):
        rows = [
            {"path_id": i, "dataset": "bench", "reason": "wrong"}
            for i in dropped[start : start + EXAMPLES_PER_FILE]
        ]
        table = pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA)
        step.folder.child("dropped").write_table(f"dropped-{number:05d}.parquet", table)
    of_dataset = {"dropped": {"wrong": len(dropped)}, "num_kept_paths": len(kept)}
    of_dataset["num_examples"] = len(kept)
    of_all = {"num_paths": len(kept) + len(dropped), **of_dataset}
    step.commit(**of_all, datasets={"bench": of_dataset})


def measure(root: Folder, num_questions: int) -> dict[str, Any]:
    """Seconds of each command, its start included."""
    write_runs(root, num_questions)
    done, begun = root.child("finished").uri, root.child("unfinished").uri
    last = question_id(num_questions - 1)
    calls = {
        "show": ["show", done],
        "show_unfinished": ["show", begun],
        "show_path": ["show", done, f"0/regenesis/{last}/g05/0/0"],
        "show_path_unfinished": ["show", begun, f"0/regenesis/{last}/g05/0/0"],
        "show_question": ["show", done, "--question", last],
        "show_runs": ["show", "--runs", root.uri],
        "start_alone": ["show", "--help"],
        "analyse": ["analyse", done],
    }
    seconds = {f"{name}_s": round(_seconds(call), 2) for name, call in calls.items()}
    mib = {
        name: sum(root.child(name).sizes().values()) >> 20 for name in ("finished", "unfinished")
    }
    return {"questions": num_questions, "paths": num_questions * PATHS, "mib": mib, **seconds}


def _seconds(arguments: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, str(DRIVER), *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    """Print what was measured, as lines or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=40_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = {"machine": machine_facts(), **measure(Folder.open(folder), arguments.questions)}
    lines = [f"{name}: {value}" for name, value in facts.items()]
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(lines))


if __name__ == "__main__":
    main()
