"""The stages of the funnel: what is left of the paths after each filter, in the filters' order.

The `examples` step counts the reasons for which it dropped paths. Here these counts become stages,
whose numbers add up to what the step kept::

    stages_left({"num_paths": 90, "num_kept_paths": 40, "dropped": {"wrong": 45, "duplicate": 5}},
                {"verdict": "ground_truth"})
    [("paths", 90), ("finished", 90), ("answer read", 90), ("right", 45), ..., ("kept", 40)]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.grader import Verdict
from pipelines.selection import filters, limits, retries
from pipelines.selection.filters import FILTERS, ExampleSettings, Filter

Facts = Mapping[str, Any]
_FILTERS: Mapping[str, tuple[Filter, ...]] = {str(name): each for name, each in FILTERS.items()}


def _never(settings: Facts) -> bool:
    return False


def _always(settings: Facts) -> bool:
    return True


def _drops_leaks(settings: Facts) -> bool:
    return bool(settings.get("drop_leaks", ExampleSettings().drop_leaks))


@dataclass(frozen=True)
class FunnelStage:
    """What is left after some reasons to drop a path."""

    name: str
    reasons: tuple[str, ...]
    is_shown: Callable[[Facts], bool] = _never
    """Whether it is shown also where it dropped nothing, by the settings of the examples."""


PATHS = "paths"
"""The name of what the stages begin with."""
USABLE = FunnelStage("usable", (retries.OTHER_RETRY, retries.OVER_TOKENS))
FINISHED = FunnelStage("finished", (Verdict.ERROR, Verdict.TRUNCATED), _always)
READ = FunnelStage("answer read", (Verdict.NO_ANSWER,), _always)
UNAIDED = FunnelStage("not shown the answer", ("hinted",))
RIGHT = FunnelStage(
    "right", (Verdict.WRONG, Verdict.UNLABELLED, "minority", "no_majority"), _always
)
UNIQUE = FunnelStage("unique", ("duplicate", "same_equations", "near_duplicate"), _always)
OTHER = FunnelStage("other filters", ())
"""Has the reasons that no stage names: those of the user's own filters, and of other versions."""
KEPT = FunnelStage("kept", ("over_max_per_question", *limits.REASONS), _always)

STAGES_OF: Mapping[Filter, tuple[FunnelStage, ...]] = {
    filters.not_gold: (FunnelStage("used by this control", ("not_gold",), _always),),
    filters.not_right: (FINISHED, READ, UNAIDED, RIGHT),
    filters.not_wrong: (FINISHED, READ, FunnelStage("wrong", ("right",), _always)),
    filters.shown_the_answer: (UNAIDED,),
    filters.unfinished: (FINISHED,),
    filters.too_long: (FunnelStage("short enough", ("too_long",)),),
    filters.unsound: (FunnelStage("sound", ("judged_unsound",)),),
    filters.vetoed: (FunnelStage("not vetoed", ("vetoed",)),),
    filters.leaking: (
        FunnelStage("not leaked", ("leak_hint", "leak_structure", "leak_guideline"), _drops_leaks),
    ),
    filters.contaminated: (FunnelStage("not in the evaluation", ("contaminated",)),),
    filters.of_unused_question: (
        FunnelStage("of used questions", ("question_unsolved", "question_without_wrong")),
    ),
    filters.outside_pass_rate: (
        FunnelStage("within the pass rate", ("pass_rate_too_low", "pass_rate_too_high")),
    ),
    filters.guessed: (FunnelStage("above chance", ("guessed",)),),
    filters.own_filters: (OTHER,),
    filters.repeated: (UNIQUE,),
}
"""The stages of each filter. A filter for several reasons has a stage for each kind of them."""


def stages_of(verdict: str) -> tuple[FunnelStage, ...]:
    """The stages of a verdict, in the order in which its filters apply."""
    used = _FILTERS.get(verdict, ())
    of_filters = (stage for each in used for stage in STAGES_OF.get(each, ()))
    *found, last = dict.fromkeys((USABLE, *of_filters, KEPT))
    return (*found, last) if OTHER in found else (*found, OTHER, last)


def stages_left(facts: Facts, settings: Facts) -> list[tuple[str, int]]:
    """How many paths are left after each stage, given what a manifest says of them and the settings
    of its examples. `num_paths`, `num_kept_paths` and `dropped` are the first number, the last one
    and what lies between."""
    stages = stages_of(settings.get("verdict", "ground_truth"))
    stage_of = {reason: stage for stage in stages for reason in stage.reasons}
    dropped: Counter[FunnelStage] = Counter()
    for reason, number in facts["dropped"].items():
        dropped[stage_of.get(reason, OTHER)] += number
    kept = facts["num_kept_paths"]
    left = facts.get("num_paths", kept + dropped.total())
    found = [(PATHS, left)]
    for stage in stages:
        left = kept if stage is KEPT else left - dropped[stage]
        if dropped[stage] or stage.is_shown(settings):
            found.append((stage.name, left))
    return found
