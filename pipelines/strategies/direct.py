"""Plain chains of thought, as the control that shows what the guidelines contribute."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="the control of ReGenesis",
    summary="as many plain chains of thought; right ones, at most 5 a question",
    settings={"synthesis": {"chain": ["path"], "samples": 25}},
)
