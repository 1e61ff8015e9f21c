"""The filters: which of a question's paths are trained on, and why the others are not.

Each filter is a function of a question with all its graded paths, and of the paths that remain. It
returns the ids to remove, each with its reason; `filter_paths` applies the filters in turn::

    {"0/regenesis/d/train/1/decompose/0/0": "wrong", "0/regenesis/d/train/1/plan/0/0": "too_long"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from cluster.errors import InputError
from cluster.own_code import OwnCode
from cluster.settings import Neutral, Settings
from evaluation.grader import Verdict
from evaluation.prompt import Form
from evaluation.question import AnswerType, Question
from pipelines.selection.answer_leaks import Leak, find_leak
from pipelines.selection.contamination import ContaminationSettings
from pipelines.selection.majority_vote import Votes, count_votes
from pipelines.selection.similarity import equations, most_diverse, shingles, similarity
from pipelines.selection.vetoes import Vetoes, read_vetoes
from pipelines.synthesis.reasoning_path import ReasoningPath
from pipelines.synthesis.seeds import stable_seed

Reasons = dict[str, str]
UnitShare = Annotated[float, Field(ge=0, le=1)]
VerdictName = Literal[
    "ground_truth",
    "majority",
    "unfiltered",
    "random",
    "wrong_only",
    "gold_answers",
    "gold_solutions",
]
JUDGING: tuple[VerdictName, ...] = ("ground_truth", "majority")
"""The verdicts that distinguish right paths from wrong ones; the others are controls."""

GOLD: tuple[VerdictName, ...] = ("gold_answers", "gold_solutions")
"""The controls that train on what the questions come with and not on paths."""

DEFAULT_VOTE_SHARE = 0.2
"""Five paths out of 25: a share that one or two lucky answers cannot reach."""


FILTER_FORM = "(graded, paths) -> {path_id: reason}"


def _read_filter(given: Any) -> OwnCode:
    if not isinstance(given, str | OwnCode):
        raise ValueError("a filter is named as file.py:function")
    code = OwnCode.read(given) if isinstance(given, str) else given
    code.function(None, (), expected=FILTER_FORM)
    return code


OwnFilter = Annotated[OwnCode, PlainValidator(_read_filter), PlainSerializer(str, return_type=str)]


def _shown_vetoes(vetoes: Vetoes | None) -> str | None:
    return None if vetoes is None else str(vetoes)


class ExampleSettings(Settings):
    """Which paths become training examples."""

    verdict: VerdictName = "ground_truth"
    """What makes a path right: its answer is the ground truth, or the answer of most paths of its
    question (majority). The others are controls. `unfiltered` samples from the finished paths of
    all questions, whatever they answer; `random` does the same, but keeps as many per dataset as
    the ground truth would; `wrong_only` keeps paths with a wrong answer; `gold_answers` and
    `gold_solutions` train on what the questions come with and not on paths."""
    questions: Annotated[Literal["all", "solved", "mixed"], Neutral("all")] = "all"
    """Which questions are used: all; those with a finished path that is right without having been
    shown the answer (solved); or those with both such a path and a wrong one (mixed)."""
    min_vote_share: UnitShare = Field(
        default_factory=lambda given: (
            DEFAULT_VOTE_SHARE if given.get("verdict") == "majority" else 0.0
        )
    )
    """With `majority`: the share of all paths that the majority needs, 0.2 by default; otherwise 0.
    A tie has no majority."""
    min_votes: Annotated[int, Field(ge=1), Neutral(1)] = Field(
        default_factory=lambda given: 2 if given.get("min_vote_share") == DEFAULT_VOTE_SHARE else 1
    )
    """With `majority`: the votes that the majority needs, since a single answer agrees with no
    other; 2 by default, or 1 if `min_vote_share` is not 0.2."""
    retries: Annotated[Literal["hinted", "unhinted", "none"], Neutral("hinted")] = "hinted"
    """Which further tries are used of the questions that `synthesis.hint_stages` asks again: those
    that were shown the answer; those that were not, up to as many generated tokens (needs
    `synthesis.unhinted_retries`); or none."""
    pass_rate: tuple[UnitShare, UnitShare] = (0.0, 1.0)
    """The range of the share of right paths in which a question is used. Below it are questions
    that are answered by chance, above it those that the model can already answer."""
    min_correct_above_chance: Annotated[float, Field(ge=0)] | None = None
    """How many right paths a question needs beyond the number expected from guessing: 25 guesses
    among four options give 6.25."""
    max_target_tokens: Annotated[int, Field(gt=0)] = 800
    """Longer solutions are dropped, in the model's tokens (the paper keeps those under 800)."""
    drop_unsound: bool = True
    """Drop the paths that the model itself judged unsound; needs `synthesis.judge`."""
    drop_leaks: tuple[Leak, ...] = ("hint", "guideline")
    """Drop solutions that cite the hint or the guideline, and paths whose structure contains the
    answer."""
    contamination: ContaminationSettings = ContaminationSettings()
    distinct_by: Literal["text", "equations"] = "text"
    """Among solutions with the same text, or with the same sequence of equations, keep one."""
    max_similarity: UnitShare = 1.0
    """Among solutions of a question whose Jaccard similarity (runs of three words) is higher than
    this, keep one."""
    max_per_question: Annotated[int, Field(gt=0)] = 5
    """Limit on the paths kept per question; the paper keeps at most 5 correct ones at random."""
    draw: Literal["seed", "diversity"] = "seed"
    """Which ones to keep: a random choice, or the most diverse ones."""
    max_hinted_share: UnitShare = 1.0
    """Limit on the share of all examples from paths that were shown the answer."""
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("evaluation",)
    """The forms of an example's prompt. Each kept path is used in each of these forms; an answer
    without its reasoning is used once per question (LMSI mixes forms, arXiv 2210.11610)."""
    original_solutions: bool = False
    """Also train on the solutions that the questions come with, if there are any (RFT, arXiv
    2308.01825, adds its paths to them)."""
    thinking: Literal["strip", "keep"] = "strip"
    """What to do with a thinking model's `<think>` part: strip removes it, keep trains on it before
    the solution."""
    read_last: tuple[AnswerType, ...] = ("number",)
    """Answer types for which the last number or letter counts if no clearer answer was written.
    Letters are off by default, because they are easily guessed: in 25 tries some last letter is
    nearly always right."""
    add_boxed_answer: Annotated[bool, Neutral(value=True)] = True
    """Append "The final answer is ..." in the requested format to a solution that does not state
    its answer in it. The number of edited targets is reported."""
    filters: Annotated[tuple[OwnFilter, ...], Neutral(())] = ()
    """Your own filters, as `file.py:function`, in the order in which they run (see
    docs/EXTENDING.md). The text of their files is what counts."""
    vetoes: Annotated[
        Vetoes | None,
        PlainValidator(read_vetoes),
        PlainSerializer(_shown_vetoes, return_type=str | None),
        Neutral(None),
    ] = None
    """A file of judgements that `regenesis judge-import` wrote. The paths whose reasoning a person
    found invalid are dropped (see docs/REPORT.md)."""
    max_examples: Annotated[Annotated[int, Field(gt=0)] | None, Neutral(None)] = None
    """Limit on all examples, drawn evenly over datasets and questions, so that the arms of a
    comparison train on equally many; null keeps all."""
    seed: int = 0
    """Determines which paths are kept if there are more than the limits allow."""

    @model_validator(mode="after")
    def _fits_together(self) -> ExampleSettings:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError("pass_rate: the lower bound is above the upper one; swap them")
        if self.verdict != "majority" and (self.min_vote_share or self.min_votes > 1):
            name = "min_vote_share" if self.min_vote_share else "min_votes"
            raise ValueError(f"{name}: is only for verdict majority; remove it")
        if self.retries == "unhinted" and self.verdict not in (*JUDGING, *GOLD):
            raise ValueError(
                f"retries: unhinted ones are of the questions without a right path, and verdict "
                f"{self.verdict} ignores what is right; remove it"
            )
        if self.verdict in GOLD and self.original_solutions:
            raise ValueError(
                f"original_solutions: verdict {self.verdict} already trains on what the questions "
                "come with; remove it"
            )
        return self


@dataclass(frozen=True)
class GradedQuestion:
    """A question with all its paths as the current grader judges them."""

    question: Question
    paths: Sequence[ReasoningPath]
    settings: ExampleSettings
    is_contaminated: bool = False

    @cached_property
    def votes(self) -> Votes:
        return count_votes(self.question, self.paths)

    @cached_property
    def winner(self) -> str | None:
        """The majority answer; None if there is none."""
        return self.votes.majority(self.settings.min_vote_share, self.settings.min_votes)

    @cached_property
    def right(self) -> frozenset[str]:
        """The ids of the paths whose answer counts as right."""
        if self.settings.verdict == "majority":
            of_winner = (p for p in self.paths if self.votes.is_of(p.predicted, self.winner))
            return frozenset(path.path_id for path in of_winner if not path.is_hinted)
        return frozenset(p.path_id for p in self.paths if p.verdict == Verdict.CORRECT)

    @property
    def num_tries(self) -> int:
        """Paths that could have been right without being shown the answer."""
        return self.votes.num_voters

    @property
    def num_answers(self) -> int:
        """The number of these that gave an answer."""
        return sum(self.votes.groups.values())

    @property
    def num_right(self) -> int:
        return sum(path.path_id in self.right and not path.is_hinted for path in self.paths)

    @property
    def num_guessed(self) -> float:
        """The number of right guesses implied by the wrong answers; it may exceed the right ones.

        This is the correction for guessing: if an answer is either known or guessed among k
        options, w wrong answers imply w / (k - 1) right guesses.
        """
        chance = chance_of(self.question)
        num_wrong = self.num_answers - self.num_right
        return float(self.num_right) if chance == 1 else num_wrong * chance / (1 - chance)

    @property
    def guessed_share(self) -> float | None:
        """The expected share of right paths that guessed; None if the truth is not used."""
        if self.settings.verdict != "ground_truth":
            return None
        if not self.num_right:
            return 1.0 if chance_of(self.question) else 0.0
        return min(1.0, self.num_guessed / self.num_right)


Filter = Callable[[GradedQuestion, Sequence[ReasoningPath]], Reasons]


def chance_of(question: Question) -> float:
    """The probability that a guess is right: one over the number of options; 0 without options."""
    if question.answer_type == "boolean":
        return 0.5
    return 1 / len(question.choices) if question.choices else 0.0


def num_guessed_kept(graded: GradedQuestion, kept: Sequence[ReasoningPath]) -> float:
    """The expected number of a question's kept paths that guessed, to be summed over questions.

    The sum over a dataset's questions is unbiased, but the value of one question is not meaningful
    by itself. So a question without a right path counts too, unless nothing of it can be kept. Of r
    right paths at most m are kept. If r of n guesses are right with probability c, then
    E[(n - r) f(r)] c / (1 - c) = E[r f(r - 1)], which is the number kept for
    f(r) = min(r + 1, m) / (r + 1).
    """
    settings, num_right = graded.settings, graded.num_right
    num_kept = sum(not path.is_hinted for path in kept)
    asks_for_more = settings.pass_rate[0] > 0 or settings.min_correct_above_chance is not None
    if not num_kept and (num_right or asks_for_more):
        return 0.0
    return graded.num_guessed * min(num_kept + 1, settings.max_per_question) / (num_right + 1)


def filter_paths(graded: GradedQuestion) -> tuple[list[ReasoningPath], Reasons]:
    """The kept paths in the order in which they were drawn, and the reason for each other one."""
    kept, reasons = _apply(FILTERS[graded.settings.verdict], graded, graded.paths)
    drawn = draw(graded, kept)
    number = graded.settings.max_per_question
    over = {path.path_id: "over_max_per_question" for path in drawn[number:]}
    return drawn[:number], reasons | over


def num_kept_by_truth(graded: GradedQuestion) -> int:
    """How many of a question's paths would be kept by the ground truth."""
    truth = graded.settings.model_copy(update={"verdict": "ground_truth"})
    kept, _ = filter_paths(
        GradedQuestion(graded.question, graded.paths, truth, graded.is_contaminated)
    )
    return len(kept)


def num_learned(graded: GradedQuestion, num_kept: int) -> int:
    """The expected number of examples of a question of which this many paths were kept."""
    verdict = graded.settings.verdict
    if verdict == "random":
        return num_kept_by_truth(graded)
    if verdict not in GOLD or why_question_unused(graded):
        return num_kept
    return int(verdict == "gold_answers" or bool(graded.question.solution))


def wrong_paths(graded: GradedQuestion, reasons: Reasons) -> list[ReasoningPath]:
    """Wrong solutions for preferences, in the order in which they were drawn; `reasons` has why
    each path was dropped. There are none of a question that is not used, no duplicates, and none if
    the verdict does not distinguish right from wrong."""
    if graded.settings.verdict not in JUDGING:
        return []
    wrong = [p for p in graded.paths if reasons.get(p.path_id) in ("wrong", "minority")]
    left, _ = _apply(WRONG_FILTERS, graded, wrong)
    return left


def _apply(
    filters: Sequence[Filter], graded: GradedQuestion, paths: Sequence[ReasoningPath]
) -> tuple[list[ReasoningPath], Reasons]:
    left = in_drawn_order(paths, graded.settings.seed)
    reasons: Reasons = {}
    for each in filters:
        reasons |= each(graded, left)
        left = [path for path in left if path.path_id not in reasons]
    return left, reasons


def in_drawn_order(paths: Sequence[ReasoningPath], seed: int) -> list[ReasoningPath]:
    """Sort by a draw for each id, so that the order of the paths and files does not matter."""
    return sorted(paths, key=lambda path: stable_seed(seed, path.path_id))


def draw(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> list[ReasoningPath]:
    """The paths, with those to keep first."""
    if graded.settings.draw == "seed":
        return list(paths)
    taken = most_diverse([path.reasoning for path in paths], graded.settings.max_per_question)
    return [paths[n] for n in [*taken, *sorted({*range(len(paths))} - {*taken})]]


# --- the filters -------------------------------------------------------------------------------


def unfinished(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that failed in the engine or were cut off by the token limit."""
    return {
        path.path_id: str(Verdict.ERROR if path.error else Verdict.TRUNCATED)
        for path in paths
        if path.error or not path.is_finished
    }


def not_right(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths with an answer other than the ground truth or the majority, or without a readable
    one."""
    return {
        path.path_id: _why_not_right(graded, path)
        for path in paths
        if path.path_id not in graded.right
    }


def _why_not_right(graded: GradedQuestion, path: ReasoningPath) -> str:
    if graded.settings.verdict != "majority" or path.predicted is None or path.error:
        return str(path.verdict)
    if path.is_hinted:
        return "hinted"
    return "no_majority" if graded.winner is None else "minority"


def not_wrong(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that are right, or without a readable answer."""
    return {
        path.path_id: "right" if path.verdict == Verdict.CORRECT else str(path.verdict)
        for path in paths
        if path.verdict != Verdict.WRONG
    }


def not_gold(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """All paths, for controls that use none."""
    return {path.path_id: "not_gold" for path in paths}


def shown_the_answer(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that were generated with the ground truth, which a control has to do without."""
    return {path.path_id: "hinted" for path in paths if path.is_hinted}


def of_unused_question(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths of a question without right paths, or without wrong ones, as `examples.questions`
    says."""
    reason = why_question_unused(graded)
    return {path.path_id: reason for path in paths} if reason else {}


def why_question_unused(graded: GradedQuestion) -> str | None:
    """Why `examples.questions` excludes a question; None if it does not.

    This depends on the paths that finish and are short enough, so it is the same in every arm.
    """
    wanted = graded.settings.questions
    if wanted == "all":
        return None
    usable = [p for p in graded.paths if not p.is_hinted and p.is_finished and not p.error]
    usable = [p for p in usable if p.num_target_tokens <= graded.settings.max_target_tokens]
    if not any(path.path_id in graded.right for path in usable):
        return "question_unsolved"
    has_wrong = any(
        path.predicted is not None and path.path_id not in graded.right for path in usable
    )
    return None if wanted == "solved" or has_wrong else "question_without_wrong"


def too_long(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    most = graded.settings.max_target_tokens
    return {path.path_id: "too_long" for path in paths if path.num_target_tokens > most}


def unsound(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that the model, asked as a judge, found to be faulty."""
    wanted = graded.settings.drop_unsound
    return {p.path_id: "judged_unsound" for p in paths if wanted and p.judged == "no"}


def vetoed(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that a person found to be badly reasoned."""
    vetoes = graded.settings.vetoes
    if vetoes is None:
        return {}
    return {p.path_id: "vetoed" for p in paths if vetoes.rejects(graded.question, p)}


def leaking(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths that rely on a hint, a structure or a guideline that the model will not see.

    A control ignores whether a structure contains the answer, because it does not know the truth.
    """
    controlled = graded.settings.verdict not in JUDGING
    wanted = tuple(
        leak for leak in graded.settings.drop_leaks if leak != "structure" or not controlled
    )
    leaks = ((path.path_id, find_leak(graded.question, path, wanted)) for path in paths)
    return {path_id: f"leak_{leak}" for path_id, leak in leaks if leak}


def contaminated(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths of a question that overlaps with an evaluation question."""
    drop = graded.settings.contamination.drop and graded.is_contaminated
    return {path.path_id: "contaminated" for path in paths} if drop else {}


def outside_pass_rate(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths of a question that is too hard or too easy."""
    low, high = graded.settings.pass_rate
    rate = graded.num_right / graded.num_tries if graded.num_tries else 0.0
    reason = "pass_rate_too_low" if rate < low else "pass_rate_too_high" if rate > high else None
    return {path.path_id: reason for path in paths} if reason else {}


def guessed(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Paths of a question that was answered right hardly more often than by guessing."""
    least = graded.settings.min_correct_above_chance
    above = graded.num_right - graded.num_answers * chance_of(graded.question)
    return {p.path_id: "guessed" for p in paths} if least is not None and above < least else {}


def own_filters(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """What the user's own filters drop, each of them given what those before it left."""
    reasons: Reasons = {}
    for code in graded.settings.filters:
        left = [path for path in paths if path.path_id not in reasons]
        reasons |= _by_own_filter(code, graded, left)
    return reasons


def _by_own_filter(
    code: OwnCode, graded: GradedQuestion, paths: Sequence[ReasoningPath]
) -> Reasons:
    """The reasons that one filter gives. Raises `InputError` for a filter that fails."""
    at = f"examples.filters: {code}, given the question {graded.question.question_id!r},"
    try:
        reasons = code.load()(graded, paths)
    except Exception as error:
        raise InputError(f"{at} raised {type(error).__name__}: {error}; correct it") from error
    ids = {path.path_id for path in paths}
    if not isinstance(reasons, dict) or not all(
        path_id in ids and isinstance(reason, str) and reason for path_id, reason in reasons.items()
    ):
        raise InputError(
            f"{at} returned {str(reasons)[:100]!r}; return a dict of the ids of paths that it was "
            "given, each with its reason as text"
        )
    return reasons


def repeated(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """All paths with equal or nearly equal solutions except the first one drawn."""
    return dict(_repeated(paths, graded.settings))


def _repeated(
    paths: Sequence[ReasoningPath], settings: ExampleSettings
) -> Iterator[tuple[str, str]]:
    texts: set[str] = set()
    worked_out: set[tuple[str, ...]] = set()
    kept: list[frozenset[str]] = []
    for path in paths:
        text = path.reasoning
        own = equations(text) if settings.distinct_by == "equations" else ()
        words = shingles(text) if settings.max_similarity < 1 else frozenset()
        if text in texts:
            yield path.path_id, "duplicate"
        elif own and own in worked_out:
            yield path.path_id, "same_equations"
        elif words and any(similarity(words, other) > settings.max_similarity for other in kept):
            yield path.path_id, "near_duplicate"
        else:
            texts.add(text)
            worked_out.add(own)
            kept.append(words)


_JUDGED: tuple[Filter, ...] = (
    not_right,
    unfinished,
    too_long,
    unsound,
    vetoed,
    leaking,
    contaminated,
    of_unused_question,
    outside_pass_rate,
    guessed,
    own_filters,
    repeated,
)
_UNJUDGED: tuple[Filter, ...] = (
    shown_the_answer,
    unfinished,
    too_long,
    vetoed,
    leaking,
    contaminated,
    of_unused_question,
    own_filters,
    repeated,
)
"""The filters that remain when no verdict counts: neither that of the truth, nor that of the judge,
who may have seen only right paths, nor the number of right paths of a question."""

FILTERS: Mapping[VerdictName, tuple[Filter, ...]] = {
    "ground_truth": _JUDGED,
    "majority": _JUDGED,
    "unfiltered": _UNJUDGED,
    "random": _UNJUDGED,
    "wrong_only": (not_wrong, *_UNJUDGED),
    "gold_answers": (not_gold,),
    "gold_solutions": (not_gold,),
}
"""The filters of each verdict, in order. The filters for unfinished, long, citing and repeated
paths are the same for all verdicts that keep paths."""

WRONG_FILTERS: tuple[Filter, ...] = (
    unfinished,
    too_long,
    contaminated,
    outside_pass_rate,
    guessed,
    own_filters,
    repeated,
)
