"""STaR: one greedy chain of thought and, if it is wrong, another with the answer as a hint."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="arXiv 2203.14465",
    summary="one greedy chain of thought, a wrong one again with the answer shown; right ones",
    settings={
        "synthesis": {
            "chain": ["path"],
            "samples": 1,
            "hint_stages": ["path"],
            "stages": {"path": {"temperature": 0.0}},
        },
        "examples": {"max_per_question": 1},
        "training": {"start_from": "base", "epochs_growth": 1.2},
    },
)
