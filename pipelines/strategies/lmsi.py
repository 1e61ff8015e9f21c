"""LMSI: plain chains of thought, of which those with the majority's answer are kept; no labels."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="arXiv 2210.11610",
    summary="32 plain chains of thought at 0.7; all that reach the majority's answer, no labels",
    settings={
        "synthesis": {
            "chain": ["path"],
            "samples": 32,
            "stages": {"path": {"temperature": 0.7}},
        },
        "examples": {
            "verdict": "majority",
            "max_per_question": 32,
            "forms": ["evaluation", "plain", "answer_only"],
        },
        "training": {"start_from": "base", "weight_by": "vote_share"},
    },
)
