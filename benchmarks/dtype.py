"""bfloat16 against float32 for generation on this processor; `engine.dtype: auto` takes the faster.

    python -m benchmarks.dtype --json benchmarks/results/dtype-2-cores.json

Both engines are vLLM with the 135M model of the quickstart, and run at the same time. They take
turns with the same prompts, and each is first in every second turn, so that changes in the speed of
the machine affect both. All answers have the same number of tokens. The figure of a side is the
median over its turns in generated tokens per second; the ratio is the median of the ratios of the
turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts
from benchmarks.sides import engine_parser, rotated
from cluster.cpu_dtype import explain_fast_dtype, fast_dtype, this_processor_flags
from cluster.inference.cpu_binding import bind_cpu
from cluster.inference.engine import Engine, EngineSettings, SamplingSettings, make_engine
from cluster.inference.vllm_engine import engine_environment
from cluster.models.model import ModelSettings, base_model

SIDES = ("bfloat16", "float32")
QUESTION = "A shop sold {0} lamps on Monday and {1} on Tuesday. How many lamps did it sell?"


def engine_settings(dtype: str, num_requests: int) -> EngineSettings:
    """The quickstart's engine with one number type."""
    return EngineSettings(
        use_gpu=False,
        dtype=dtype,
        max_model_len=1024,
        max_num_seqs=num_requests,
        kv_cache_gib=1,
        options={"enforce_eager": True, "block_size": 32},
    )


async def tokens_per_s(engine: Engine, turn: int, num_requests: int, num_tokens: int) -> float:
    """Generated tokens per second in one turn: all requests at once, none of them seen before."""
    sampling = SamplingSettings(
        temperature=0.7, max_tokens=num_tokens, options={"ignore_eos": True}
    )
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(
            engine.chat(
                [{"role": "user", "content": QUESTION.format(turn, n)}], sampling, seed=turn + n
            )
            for n in range(num_requests)
        )
    )
    num_generated = sum(answer.num_tokens for (answer,) in answers)
    return num_generated / (time.perf_counter() - began)


async def measure(model: str, repeats: int, num_requests: int, num_tokens: int) -> dict[str, Any]:
    """The speed of each side in each turn; an additional first turn is not counted."""
    engines = {}
    for side in SIDES:
        settings = engine_settings(side, num_requests)
        os.environ.update(engine_environment(settings))
        bind_cpu(f"0-{len(os.sched_getaffinity(0)) - 1}", 1)
        engines[side] = make_engine(model, settings)
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    try:
        for turn in range(repeats + 1):
            for side in rotated(SIDES, turn):
                speed = await tokens_per_s(engines[side], turn, num_requests, num_tokens)
                print(f"turn {turn}: {side} {speed:.1f} tok/s", file=sys.stderr, flush=True)
                speeds[side] += [speed] if turn else []
    finally:
        for engine in engines.values():
            engine.shutdown()
        await asyncio.sleep(0)
    return speeds


def result(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """The medians, their ratio, what `auto` takes, and whether that is the faster side."""
    flags = this_processor_flags()
    ratios = [a / b for a, b in zip(speeds["bfloat16"], speeds["float32"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "tokens_per_s": {side: round(statistics.median(speeds[side]), 1) for side in SIDES},
        "bfloat16_over_float32": round(ratio, 3),
        "ratios": [round(each, 3) for each in ratios],
        "auto": fast_dtype(flags),
        "why": explain_fast_dtype(flags),
        "auto_is_faster": (ratio > 1) == (fast_dtype(flags) == "bfloat16"),
    }


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = engine_parser("dtype", __doc__.split("\n")[0], repeats=5, requests=16, tokens=48)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(argv)
    facts = machine_facts()
    model = base_model(ModelSettings(path=arguments.model), "~/.cache/regenesis").fetch()
    speeds = asyncio.run(measure(model, arguments.repeats, arguments.requests, arguments.tokens))
    measured = result(speeds)
    for side, speed in measured["tokens_per_s"].items():
        print(f"{side:8} {speed:8.1f} tok/s")
    print(f"bfloat16 / float32: {measured['bfloat16_over_float32']}")
    print(f"engine.dtype auto takes {measured['why']}")
    if arguments.json:
        workload = {name: vars(arguments)[name] for name in ("model", "requests", "tokens")}
        whole = {"result": measured, "workload": workload, "machine": facts}
        Path(arguments.json).write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
