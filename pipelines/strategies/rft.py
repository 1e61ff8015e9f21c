"""RFT: many plain chains of thought; right ones that differ in their equations."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="arXiv 2308.01825",
    summary="100 plain chains of thought at 0.7; right ones that differ in their equations",
    settings={
        "synthesis": {
            "chain": ["path"],
            "samples": 100,
            "stages": {"path": {"temperature": 0.7}},
        },
        "examples": {
            "distinct_by": "equations",
            "max_per_question": 100,
            "original_solutions": True,
        },
        "training": {"start_from": "base"},
    },
)
