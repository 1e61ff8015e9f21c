"""Majority vote: the most common answer among a question's paths (self-consistency, no labels).

Each path that was generated without a hint has one vote, its `predicted` answer; `1/2` and `0.5`
are the same vote. For example, of ten paths, four answer 72, 72.0, 70 and 72, and six nothing::

    Votes(groups={"72": 3, "70": 1}, num_voters=10).majority(min_share=0.2)  ->  "72"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.grader import same_answer
from evaluation.question import Question
from pipelines.synthesis.reasoning_path import ReasoningPath


@dataclass(frozen=True, slots=True)
class Votes:
    """The votes on one question; equal answers are grouped under one of their spellings."""

    spelling: Mapping[str, str]
    """The spelling of each predicted answer's group."""
    groups: Mapping[str, int]
    """Number of votes by that spelling, most votes first."""
    num_voters: int
    """Paths that could have voted, including those whose answer could not be read."""

    def share(self, predicted: str | None) -> float:
        """The share of the voters with this answer, in [0, 1]."""
        if predicted is None or not self.num_voters:
            return 0.0
        return self.groups.get(self.spelling.get(predicted, ""), 0) / self.num_voters

    def majority(self, min_share: float, min_votes: int = 1) -> str | None:
        """The answer with the most votes; None for a tie, or below the required share of all voters
        or number of votes."""
        if not self.groups:
            return None
        (top, most), *others = self.groups.items()
        is_tie = bool(others) and others[0][1] == most
        is_few = most < min_votes or most < min_share * self.num_voters
        return None if is_tie or is_few else top

    def is_of(self, predicted: str | None, answer: str | None) -> bool:
        """Whether a predicted answer is a vote for this answer."""
        return answer is not None and self.spelling.get(predicted or "") == answer


def count_votes(question: Question, paths: Sequence[ReasoningPath]) -> Votes:
    """The votes of a question's graded paths; their order does not matter.

    A path that failed in the engine or was shown the answer has no vote.
    """
    voters = [path for path in paths if not path.error and not path.is_hinted]
    counts = Counter(path.predicted for path in voters if path.predicted is not None)
    spelling: dict[str, str] = {}
    groups: Counter[str] = Counter()
    for predicted, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        known = (other for other in groups if same_answer(predicted, other, question))
        spelling[predicted] = next(known, predicted)
        groups[spelling[predicted]] += number
    ordered = dict(sorted(groups.items(), key=lambda item: (-item[1], item[0])))
    return Votes(spelling, ordered, len(voters))
