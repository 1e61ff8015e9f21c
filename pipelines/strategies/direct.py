"""Plain chains of thought: what the guidelines are worth is the difference to these."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="the control of ReGenesis",
    summary="as many plain chains of thought; right ones, at most 5 a question",
    settings={"synthesis": {"chain": ["path"], "samples": 25}},
)
