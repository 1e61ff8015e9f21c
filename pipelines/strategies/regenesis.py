"""ReGenesis: general guidelines, adapted and structured, lead to diverse paths."""

from __future__ import annotations

from pipelines.strategy import Strategy

STRATEGY = Strategy(
    source="arXiv 2410.02108",
    summary="25 guidelines, each adapted, structured, followed; right paths, at most 5 a question",
    settings={},  # the defaults of the config are this strategy's
)
