"""The cost of the forced readings (`evaluation.readings`): questions per second with and without.

    python -m benchmarks.readings --json benchmarks/results/readings-2-cores.json

One vLLM engine with the 135M model of the quickstart answers generated sums, of which half have
four options, so that their likelihoods are asked for. Both sides answer the same questions in each
turn, each is first in every second turn, and the prefix cache is emptied before each side. The
figure of a side is the median over its turns in questions per second; the cost is the median of the
turns' own ratios. `--rows FILE` writes the rows with readings, to be looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from benchmarks.sides import engine_parser, rotated
from cluster.inference.cpu_binding import bind_cpu
from cluster.inference.engine import EngineSettings
from cluster.inference.job import Slots
from cluster.inference.vllm_engine import VLLMEngine, engine_environment
from cluster.models.model import ModelSettings, base_model
from evaluation.predictions import EvaluationSettings, PredictAnswer
from evaluation.question import LETTERS, Question

SIDES = ("without", "with")
KINDS = ("number", "choice")


def question(kind: str, turn: int, number: int) -> Question:
    """A sum that no other question of the benchmark has."""
    draw = random.Random(f"{kind} {turn} {number}")
    one, other = draw.randrange(100, 999), draw.randrange(100, 999)
    name, text = f"{kind}/test/{turn}-{number}", f"What is {one} + {other}?"
    if kind == "number":
        return Question(name, kind, "test", "in_domain", text, str(one + other), "number")
    place = draw.randrange(4)
    options = tuple(str(one + other + 10 * (at - place)) for at in range(4))
    return Question(name, kind, "test", "in_domain", text, LETTERS[place], "choice", options)


async def answer(
    engine: VLLMEngine, questions: Sequence[Question], max_tokens: int, *, readings: bool
) -> tuple[float, list[dict[str, Any]]]:
    """Questions per second, all at once with an empty prefix cache, and their rows."""
    await engine._llm.reset_prefix_cache()
    sampling = EvaluationSettings(max_tokens=max_tokens).sampling
    handler = PredictAnswer(sampling, readings=readings)
    slots = Slots(len(questions))
    began = time.perf_counter()
    asked = (handler(engine, each.to_row(), slots, None) for each in questions)
    rows = await asyncio.gather(*asked)
    return len(questions) / (time.perf_counter() - began), rows


async def measure(model: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """The rate of each side in each turn, by kind, and the rows with readings. An additional first
    turn is not counted."""
    settings = EngineSettings(
        use_gpu=False,
        max_model_len=1024,
        max_num_seqs=options.requests,
        kv_cache_gib=1,
        options={"enforce_eager": True, "block_size": 32},
    )
    os.environ.update(engine_environment(settings))
    bind_cpu(f"0-{len(os.sched_getaffinity(0)) - 1}", 1)
    engine = VLLMEngine(model, settings)
    rates: dict[str, dict[str, list[float]]] = {
        kind: {side: [] for side in SIDES} for kind in KINDS
    }
    kept: list[Any] = []
    try:
        for turn in range(options.repeats + 1):
            for kind in KINDS:
                questions = [question(kind, turn, number) for number in range(options.requests)]
                for side in rotated(SIDES, turn):
                    rate, rows = await answer(
                        engine, questions, options.tokens, readings=side == "with"
                    )
                    print(f"turn {turn}: {kind} {side} {rate:.2f}/s", file=sys.stderr, flush=True)
                    rates[kind][side] += [rate] if turn else []
                    kept += rows if side == "with" else []
    finally:
        engine.shutdown()
        await asyncio.sleep(0)
    return rates, kept


def result(rates: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """By kind the median rates and the median of the turns' ratios, with over without."""
    found = {}
    for kind, sides in rates.items():
        ratios = [a / b for a, b in zip(sides["with"], sides["without"], strict=True)]
        found[kind] = {
            "questions_per_s": {side: round(statistics.median(sides[side]), 3) for side in SIDES},
            "with_over_without": round(statistics.median(ratios), 3),
            "ratios": [round(each, 3) for each in ratios],
        }
    return found


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = engine_parser("readings", __doc__.split("\n")[0], repeats=4, requests=20, tokens=90)
    parser.add_argument("--rows", metavar="FILE", help="write the rows with readings there")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    facts = machine_facts()
    model = base_model(ModelSettings(path=arguments.model), "~/.cache/regenesis").fetch()
    rates, rows = asyncio.run(measure(model, arguments))
    measured = result(rates)
    for kind, of_kind in measured.items():
        for side, rate in of_kind["questions_per_s"].items():
            print(f"{kind:8} {side:8} {rate:8.2f} questions/s")
        print(f"{kind:8} with / without: {of_kind['with_over_without']}")
    if arguments.rows:
        Path(arguments.rows).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if arguments.json:
        workload = {name: vars(arguments)[name] for name in ("model", "requests", "tokens")}
        whole = {"result": measured, "workload": workload, "machine": facts}
        Path(arguments.json).write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
