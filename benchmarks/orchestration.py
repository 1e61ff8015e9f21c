"""The cost of the orchestration: synthesis with an engine that answers at once or after a delay.

    python -m benchmarks.orchestration --paths 1000 10000 100000 1000000
    python -m benchmarks.orchestration --paths 40000 --workers 64 --in-flight 8 --latency 1.0

Everything is the product's code (Ray Data, chains, grading, part files, ledger, compaction); only
the engine is a table. For each number of paths, on a separate local Ray, it measures:

* `paths_per_s`: from the first chunk to the last saved row; `paths_per_s_total` also includes
  planning, the start of the workers and the compaction
* `driver_peak_gib`: the largest resident memory of the driver so far
* `resume_s`: the time to find, before the step is compacted, that nothing is left to do (256 or
  more part files are compacted first, which then takes most of the time); `compacted_resume_s`
  after it
* `generations_in_flight`: the largest number at once, to be compared with `configured`
* `efficiency`: with a latency, the rate over the middle 80 % of the rows relative to the ideal
  rate, workers x in-flight / (3 x latency)
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from benchmarks.machine import machine_facts
from cluster.inference.engine import Completion, EngineSettings, SamplingSettings
from cluster.inference.job import GenerationJob
from cluster.inference.pool import finish_job, run_jobs
from cluster.inference.schedule import Questions
from cluster.models.model import Model
from cluster.session import ClusterSettings, StopRequest, ray_session
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.question import QUESTION_TABLE_SCHEMA, Question, question_table
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths

GUIDELINES = 25
QUESTIONS_PER_WRITE = 10_000
ANSWERS = (
    "Work out how many were sold on Tuesday from the number that was sold on Monday.",
    "1. Find Monday's number. 2. Halve it. 3. Add both. 4. Check the sum.",
    "On Monday it sold 48 lamps. On Tuesday it sold half of that, 24. Together that is "
    "48 + 24 = 72 lamps.\n\nThe final answer is \\boxed{72}.",
)


class TableEngine:
    """Answers each stage with a fixed text after `engine.options.latency_s` seconds."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._latency_s = float(settings.options.get("latency_s", 0.0))
        ids = [list(range(len(text) // 4)) for text in ANSWERS]
        self._completions = [
            Completion(text, tokens, "stop", num_prompt_tokens=200)
            for text, tokens in zip(ANSWERS, ids, strict=True)
        ]

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        await asyncio.sleep(self._latency_s)
        prompt = messages[-1]["content"]
        stage = 0 if "\nGuideline: " in prompt else 1 if "\nAdvice: " in prompt else 2
        return [self._completions[stage]] * n

    def shutdown(self) -> None:
        """Do nothing, since there is nothing to end."""


def write_questions(folder: Folder, num_questions: int) -> Questions:
    """Write questions of GSM8K's length, without holding all of them in memory."""
    numbers = iter(range(num_questions))
    for file in itertools.count():
        batch = list(itertools.islice(numbers, QUESTIONS_PER_WRITE))
        if not batch:
            return Questions(folder, ("train",))
        rows = [numbered_question(number) for number in batch]
        table: pa.Table = question_table(rows).cast(QUESTION_TABLE_SCHEMA)
        folder.write_table(f"questions-{file:05d}.parquet", table)
    raise AssertionError("unreachable")


def numbered_question(number: int) -> Question:
    """A question of the length of one of GSM8K, which only its number distinguishes."""
    text = (
        f"A shop sold 48 lamps on Monday ({number}), and half as many on Tuesday, when a delivery "
        "came late. How many lamps did the shop sell on Monday and Tuesday together?"
    )
    question_id = f"bench/train/{number:08d}"
    return Question(question_id, "bench", "train", "in_domain", text, "72", "number")


def measure(num_paths: int, options: argparse.Namespace, root: Folder) -> dict[str, Any]:
    """Measure one synthesis of this many paths in a new folder; see the module's docstring."""
    recipe = Recipe.load(0, SynthesisSettings(guidelines_per_question=GUIDELINES))
    handler = SynthesizePaths(recipe, ("number",))
    questions = write_questions(root.child("questions"), -(-num_paths // GUIDELINES))
    job = GenerationJob("paths", root.child("paths"), PATHS_SCHEMA, handler, questions)
    settings = engine_settings(options)
    model = Model(identity="table", path="table/model", cache="unused")

    def execute() -> tuple[float, Any]:
        started = time.monotonic()
        summary = run_jobs(model, [job], settings, stop=StopRequest(), progress_every_s=30)
        return time.monotonic() - started, summary

    total_s, summary = execute()
    steady = steady_rate(job.folder) * GUIDELINES
    num_parts = len(Ledger.read(job.folder).files)
    resume_s, _ = execute()
    started = time.monotonic()
    rows = finish_job(job)
    compact_s = time.monotonic() - started
    compacted_resume_s, _ = execute()
    assert rows["num_done"] == rows["num_questions"]
    assert rows["num_paths"] == rows["num_accepted"] == rows["num_done"] * GUIDELINES
    ideal = options.workers * in_flight(settings) / (3 * options.latency) if options.latency else 0
    return {
        "paths": rows["num_paths"],
        "paths_per_s": rows["num_paths"] / summary.generating_s,
        "paths_per_s_total": rows["num_paths"] / (total_s + compact_s),
        "steady_paths_per_s": steady,
        "efficiency": steady / ideal if ideal else None,
        "driver_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "generations_in_flight": summary.counts["peak_in_flight"],
        "configured": options.workers * in_flight(settings),
        "part_files": num_parts,
        "files": len(Ledger.read(job.folder).files),
        "resume_s": resume_s,
        "compact_s": compact_s,
        "compacted_resume_s": compacted_resume_s,
    }


def engine_settings(options: argparse.Namespace) -> EngineSettings:
    """Engines that are so small that any number of them fits on the machine."""
    return EngineSettings(
        implementation="benchmarks.orchestration.TableEngine",
        use_gpu=False,
        cpus_per_worker=1 / 64,
        min_workers=options.workers,
        max_workers=options.workers,
        max_num_seqs=options.in_flight,
        options={"latency_s": options.latency},
    )


def in_flight(settings: EngineSettings) -> int:
    return settings.generations_in_flight


def steady_rate(folder: Folder) -> float:
    """Rows per second between the first and the last tenth, from the names of the part files."""
    parts = sorted(
        (
            int(name.rpartition("part-")[2].split("-")[0]),
            folder.open_parquet(name).metadata.num_rows,
        )
        for name in folder.walk()
        if "/part-" in name
    )
    done = list(itertools.accumulate(num_rows for _, num_rows in parts))
    middle = [
        (stamp / 1000, count)
        for (stamp, _), count in zip(parts, done, strict=True)
        if 0.1 * done[-1] <= count <= 0.9 * done[-1]
    ]
    if len(middle) < 2:
        return 0.0
    (start, first), (end, last) = middle[0], middle[-1]
    return (last - first) / (end - start) if end > start else 0.0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--paths", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2, help="engines")
    parser.add_argument("--in-flight", type=int, default=256, help="sequences per engine")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per generation")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    machine = machine_facts()
    results = []
    for num_paths in options.paths:
        scratch = tempfile.mkdtemp(prefix="orchestration-")
        try:
            with ray_session(ClusterSettings(num_cpus=2, object_store_gib=0.5)):
                results.append(measure(num_paths, options, Folder.open(scratch)))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print("  ".join(f"{name} {_short(value)}" for name, value in results[-1].items()))
    if options.json:
        largest = results[-1]
        print(json.dumps({**largest, "all": results, "options": vars(options), "machine": machine}))


def _short(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
