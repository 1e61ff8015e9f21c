"""Second tries: which paths of the later passes over a question may be used.

A question that no path of the first pass answered rightly is asked again with the answer shown, and
with `synthesis.unhinted_retries` also without it. These are arms of one comparison, so that the
examples use one of them. The retries without a hint count up to as many generated tokens as were
spent with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.selection.filters import ExampleSettings, Reasons
from pipelines.synthesis.handler import num_written
from pipelines.synthesis.reasoning_path import HINTED, ReasoningPath
from pipelines.synthesis.seeds import stable_seed

OTHER_RETRY, OVER_TOKENS = "other_retry", "over_hinted_tokens"
"""Why a path is not used: its kind of retry was not chosen, or there are tokens enough."""


@dataclass(frozen=True)
class Tries:
    """The paths of a question that may be used, and why the others may not."""

    used: Sequence[ReasoningPath]
    unused: Reasons
    num_hinted_tokens: int
    """Tokens generated with the answer shown."""
    num_unhinted_tokens: int
    """Tokens of the retries without it that count as equally many."""

    @classmethod
    def of(cls, paths: Sequence[ReasoningPath], settings: ExampleSettings) -> Tries:
        """Divide the paths of all passes as `examples.retries` says."""
        hinted = [path for path in paths if path.is_hinted]
        again = [path for path in paths if path.pass_number > HINTED]
        counted = up_to_tokens(again, num_written(hinted), settings.seed)
        chosen = {"hinted": hinted, "unhinted": counted, "none": []}[settings.retries]
        ids = {path.path_id for path in chosen}
        unused = {p.path_id: OTHER_RETRY for p in (*hinted, *again) if p.path_id not in ids}
        if settings.retries == "unhinted":
            unused |= {p.path_id: OVER_TOKENS for p in again if p.path_id not in ids}
        used = [path for path in paths if path.path_id not in unused]
        return cls(used, unused, num_written(hinted), num_written(counted))


def up_to_tokens(paths: Sequence[ReasoningPath], wanted: int, seed: int) -> list[ReasoningPath]:
    """The first of the paths, by pass and then in drawn order, whose generated tokens come closest
    to the wanted number; if there are enough, the difference is at most half a path."""
    ordered = sorted(paths, key=lambda p: (p.pass_number, stable_seed(seed, "retry", p.path_id)))
    totals = [0, *itertools.accumulate(path.num_written_tokens for path in ordered)]
    return ordered[: min(range(len(totals)), key=lambda number: abs(totals[number] - wanted))]
