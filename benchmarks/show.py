"""How long `show` and `analyse` take on a run with many paths.

    python -m benchmarks.show --questions 40000 [--json]

Writes a run with 25 paths of 1 kB for each question straight to Parquet, as its steps would: once
finished, with a fifth of the paths kept as examples, and once unfinished, as part files of 64
questions. Then it times each command in its own process, with its start.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from benchmarks.machine import machine_facts
from cluster.store.folder import Folder
from cluster.store.ledger import ROWS_PER_FILE, _write_sealed
from cluster.store.step import RUN_FILE, STEPS_FILE, Step
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.select_examples import DROPPED_SCHEMA
from pipelines.synthesis.handler import PATHS_SCHEMA

PATHS = 25
TEXT_BYTES = 500
ROWS_PER_PART = 64
BLOCK = 512
"""The number of questions in one write. All blocks repeat the same texts under different ids."""
BLOCKS_PER_FILE = ROWS_PER_FILE // BLOCK
DRIVER = Path(__file__).resolve().parent.parent / "regenesis.py"


def path_row(number: int, place: int, pool: str) -> dict[str, Any]:
    """One path of a question of the first block; every fifth is right."""
    start = (number * PATHS + place) * 7919 % (len(pool) - 2 * TEXT_BYTES)
    generation = {"stage": "path", "seed": 1, "finish_reason": "stop", "num_tokens": 200}
    return {
        "path_id": path_id(0, number, place),
        "guideline_id": f"g{place:02d}",
        "pass": 0,
        "structure": pool[start : start + TEXT_BYTES],
        "reasoning": pool[start + TEXT_BYTES : start + 2 * TEXT_BYTES],
        "generations": [generation],
        "predicted": "72",
        "verdict": "wrong" if place % 5 else "correct",
        "read_as": "boxed",
    }


def question_id(block: int, number: int) -> str:
    """The id of a question."""
    return f"{_name(block)}{number:04d}"


def path_id(block: int, number: int, place: int) -> str:
    """The id of a path."""
    return f"0/regenesis/{question_id(block, number)}/g{place:02d}/0/0"


def _name(block: int) -> str:
    return f"bench/train/{block:05d}/"


def first_block(pool: str) -> pa.Table:
    """The ledger rows of the first block of questions."""
    rows = [
        {
            "question_id": question_id(0, number),
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
        for number in range(BLOCK)
    ]
    return pa.Table.from_pylist(rows, schema=PATHS_SCHEMA).combine_chunks()


def block_of(first: pa.Table, block: int) -> pa.Table:
    """The same rows for the questions of another block."""
    paths = first.column("paths").combine_chunks()
    values, kind = paths.values, paths.values.type
    fields = [values.field(number) for number in range(kind.num_fields)]
    place = kind.get_field_index("path_id")
    fields[place] = _renamed(fields[place], block)
    struct = pa.StructArray.from_arrays(fields, fields=list(kind))
    lists = pa.ListArray.from_arrays(paths.offsets, struct, type=paths.type)
    ids = _renamed(first.column("question_id"), block)
    table = first.set_column(0, first.field(0), ids)
    return table.set_column(table.column_names.index("paths"), "paths", lists).cast(PATHS_SCHEMA)


def _renamed(ids: Any, block: int) -> Any:
    return pc.replace_substring(ids, _name(0), _name(block))


def write_runs(root: Folder, num_blocks: int) -> None:
    """The finished run `finished` and the unfinished one `unfinished`."""
    generator = random.Random(0)
    pool = "".join(generator.choices("etaoin shrdlu 0123456789\n", k=2_000_000))
    num_questions, first = num_blocks * BLOCK, first_block(pool)
    runs = {name: root.child(name) for name in ("finished", "unfinished")}
    steps = {name: run_steps(folder, num_questions) for name, folder in runs.items()}
    totals: dict[str, Any] = {"num_done": num_questions, "num_paths": num_questions * PATHS}
    totals |= {"num_accepted": totals["num_paths"] // 5, "num_tokens": 200 * totals["num_paths"]}
    done, begun = steps["finished"]["paths"], steps["unfinished"]["paths"]
    for start in range(0, num_blocks, BLOCKS_PER_FILE):
        blocks = range(start, min(start + BLOCKS_PER_FILE, num_blocks))
        tables = [block_of(first, block) for block in blocks]
        _write_sealed(done.folder, f"rows-000001-{start:06d}", pa.concat_tables(tables))
        for block, table in zip(blocks, tables, strict=True):
            chunk = begun.folder.child(f"parts/000001-000001-aaaa/{block:06d}")
            for number in range(0, BLOCK, ROWS_PER_PART):
                part = table.slice(number, ROWS_PER_PART)
                _write_sealed(chunk, f"part-{number:06d}", part)
    done.commit(rows=totals, last_execution={})
    write_examples(steps["finished"]["examples"], num_blocks)


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


def write_examples(step: Step, num_blocks: int) -> None:
    """A fifth of the paths as examples of 250 tokens, and the others as dropped."""
    numbers, places = range(BLOCK), range(PATHS)
    kept = [path_id(0, n, place) for n in numbers for place in places if place % 5 == 0]
    dropped = [path_id(0, n, place) for n in numbers for place in places if place % 5]
    tokens = np.random.default_rng(0).integers(0, 50_000, len(kept) * 200, np.int32)
    targets = pa.FixedSizeListArray.from_arrays(tokens, 200).cast(pa.list_(pa.int32()))
    prompts = pa.FixedSizeListArray.from_arrays(tokens[: len(kept) * 50], 50)
    examples = {
        "example_id": pa.array(kept),
        "prompt_token_ids": prompts.cast(pa.list_(pa.int32())),
        "target_token_ids": targets,
    }
    for block in range(num_blocks):
        named = examples | {"example_id": _renamed(examples["example_id"], block)}
        step.folder.write_table(f"train-{block:05d}.parquet", _filled(named, EXAMPLES_SCHEMA))
        gone = {"path_id": _renamed(pa.array(dropped), block)}
        gone["reason"] = pa.array(["wrong"] * len(dropped))
        table = _filled(gone, DROPPED_SCHEMA)
        step.folder.child("dropped").write_table(f"dropped-{block:05d}.parquet", table)
    counts: dict[str, Any] = {"num_kept_paths": len(kept) * num_blocks}
    counts |= {"num_examples": counts["num_kept_paths"]}
    counts |= {"dropped": {"wrong": len(dropped) * num_blocks}}
    step.commit(num_paths=num_blocks * BLOCK * PATHS, **counts, datasets={"bench": counts})


def _filled(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """A table with these columns, and nulls for the others."""
    size = len(next(iter(columns.values())))
    arrays = [columns.get(field.name, pa.nulls(size, field.type)) for field in schema]
    return pa.table(arrays, schema=schema)


def measure(root: Folder, num_questions: int) -> dict[str, Any]:
    """Seconds of each command, its start included."""
    num_blocks = -(-num_questions // BLOCK)
    write_runs(root, num_blocks)
    done, begun = root.child("finished").uri, root.child("unfinished").uri
    last = question_id(num_blocks - 1, BLOCK - 1)
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
    taken = {name: _taken(call) for name, call in calls.items()}
    mib = {
        name: sum(root.child(name).sizes().values()) >> 20 for name in ("finished", "unfinished")
    }
    num_paths = num_blocks * BLOCK * PATHS
    return {"questions": num_blocks * BLOCK, "paths": num_paths, "mib": mib, **taken}


def _taken(arguments: list[str]) -> dict[str, float]:
    """Seconds until the command ended, and of the processor, which others cannot lengthen."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(DRIVER), *arguments], check=True, stdout=subprocess.DEVNULL)
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)}


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
