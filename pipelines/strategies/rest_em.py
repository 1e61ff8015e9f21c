"""ReST-EM: plain chains of thought with top-k; right ones, at most ten per question."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="arXiv 2312.06585",
    summary="32 plain chains of thought at 0.7, top-k 40; right ones, at most 10 a question",
    settings={
        "synthesis": {
            "chain": ["path"],
            "samples": 32,
            "stages": {"path": {"temperature": 0.7, "top_k": 40}},
        },
        "examples": {"max_per_question": 10},
        "training": {"start_from": "base"},
    },
)
