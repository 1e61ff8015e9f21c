"""The filters: which of a question's paths are learned from, and why the others are not.

Each is a function of a question with all its graded paths, and of those that are still in. It
returns the ids that go out, each with its reason; `filter_paths` applies them in turn::

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
from pipelines.synthesis.chain import stable_seed
from pipelines.synthesis.reasoning_path import ReasoningPath

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
"""The verdicts that tell right paths from wrong ones; the others are controls."""

GOLD: tuple[VerdictName, ...] = ("gold_answers", "gold_solutions")
"""The controls that learn what the questions come with, and no path."""

DEFAULT_VOTE_SHARE = 0.2
"""Of 25 paths five: a share that one lucky answer, or two, cannot reach."""


FILTER_FORM = "(graded, paths) -> {path_id: reason}"


def _read_filter(given: Any) -> OwnCode:
    if not isinstance(given, str | OwnCode):
        raise ValueError("a filter is named as file.py:function")
    code = OwnCode.read(given) if isinstance(given, str) else given
    code.function(None, (), expected=FILTER_FORM)
    return code


OwnFilter = Annotated[OwnCode, PlainValidator(_read_filter), PlainSerializer(str, return_type=str)]


class ExampleSettings(Settings):
    """Which paths become training examples."""

    verdict: VerdictName = "ground_truth"
    """What makes a path right: its answer is the ground truth, or the answer of most paths of its
    question (majority). The others are controls. `unfiltered` draws from the finished paths of all
    questions, whatever they answer; `random` does so, too, and keeps as many of each dataset as the
    ground truth would; `wrong_only` keeps those with a wrong answer; `gold_answers` and
    `gold_solutions` learn what the questions come with, and no path."""
    questions: Annotated[Literal["all", "solved", "mixed"], Neutral("all")] = "all"
    """Which questions are used: all, those that some finished path answers rightly without having
    been shown the answer (solved), or those with both such a path and a wrong one (mixed)."""
    min_vote_share: UnitShare = Field(
        default_factory=lambda given: (
            DEFAULT_VOTE_SHARE if given.get("verdict") == "majority" else 0.0
        )
    )
    """With `majority`: the share of all paths that the majority needs, 0.2 by default; else 0. A
    tie has no majority."""
    min_votes: Annotated[int, Field(ge=1), Neutral(1)] = Field(
        default_factory=lambda given: 2 if given.get("min_vote_share") == DEFAULT_VOTE_SHARE else 1
    )
    """With `majority`: the votes that the majority needs, since one answer alone agrees with no
    other; 2 by default, or 1 where `min_vote_share` is not 0.2."""
    pass_rate: tuple[UnitShare, UnitShare] = (0.0, 1.0)
    """Between which shares of right paths a question is used. Below are the questions that are
    answered by chance, above those that the model can answer already."""
    min_correct_above_chance: Annotated[float, Field(ge=0)] | None = None
    """How many right paths a question needs beyond those that guessing would give: 25 guesses among
    four options give 6.25."""
    max_target_tokens: Annotated[int, Field(gt=0)] = 800
    """Longer solutions are dropped, in the model's own tokens (paper: under 800 tokens)."""
    drop_unsound: bool = True
    """Drop the paths that the model itself found unsound, where `synthesis.judge` asked it."""
    drop_leaks: tuple[Leak, ...] = ("hint", "guideline")
    """Drop solutions that cite the hint or the guideline, and paths whose structure holds the
    answer."""
    contamination: ContaminationSettings = ContaminationSettings()
    distinct_by: Literal["text", "equations"] = "text"
    """Of solutions with the same text, or the same equations in their order, one is kept."""
    max_similarity: UnitShare = 1.0
    """Of solutions of a question that share more of their words in a row (Jaccard, runs of three)
    one is kept."""
    max_per_question: Annotated[int, Field(gt=0)] = 5
    """The paper keeps at most 5 correct paths a question, drawn at random."""
    draw: Literal["seed", "diversity"] = "seed"
    """Which ones: by chance, or those that are least alike."""
    max_hinted_share: UnitShare = 1.0
    """The share of all examples that may come from paths that were shown the answer."""
    forms: Annotated[tuple[Form, ...], Field(min_length=1)] = ("evaluation",)
    """How the question of an example is put; each kept path is learned in each of these forms, an
    answer without its reasoning once a question (LMSI mixes forms, arXiv 2210.11610)."""
    original_solutions: bool = False
    """Also learn the solutions that the questions come with, where they do (RFT, arXiv 2308.01825,
    adds its own to them)."""
    thinking: Literal["strip", "keep"] = "strip"
    """What a thinking model wrote in `<think>`: it is not learned, or it is learned before the
    solution."""
    read_last: tuple[AnswerType, ...] = ("number",)
    """Answer types whose last number or letter counts when no clearer answer was written. Off
    where guessing is easy: with 25 tries some last letter is nearly always the right one."""
    add_boxed_answer: Annotated[bool, Neutral(value=True)] = True
    """Append "The final answer is ..." in the format that is asked for to a solution that does not
    state its answer so. How many targets were edited is reported."""
    filters: Annotated[tuple[OwnFilter, ...], Neutral(())] = ()
    """Filters of your own, as `file.py:function`, in their order (see docs/EXTENDING.md). What
    counts is the text of their files."""
    max_examples: Annotated[Annotated[int, Field(gt=0)] | None, Neutral(None)] = None
    """The most examples in all, drawn evenly over datasets and questions, so that arms of a
    comparison learn from equally many; null keeps all."""
    seed: int = 0
    """Decides which paths are kept where there are more than the limits allow."""

    @model_validator(mode="after")
    def _fits_together(self) -> ExampleSettings:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError("pass_rate: the lower bound is above the upper one; swap them")
        if self.verdict != "majority" and (self.min_vote_share or self.min_votes > 1):
            name = "min_vote_share" if self.min_vote_share else "min_votes"
            raise ValueError(f"{name}: is for verdict majority; remove it")
        if self.verdict in GOLD and self.original_solutions:
            raise ValueError(
                f"original_solutions: verdict {self.verdict} learns what the questions come with "
                "already; remove it"
            )
        return self


@dataclass(frozen=True)
class GradedQuestion:
    """A question with all its paths as the grader of today judges them."""

    question: Question
    paths: Sequence[ReasoningPath]
    settings: ExampleSettings
    is_contaminated: bool = False

    @cached_property
    def votes(self) -> Votes:
        return count_votes(self.question, self.paths)

    @cached_property
    def winner(self) -> str | None:
        """The majority answer; None where there is none."""
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
        """Paths that had a chance to be right without being told the answer."""
        return self.votes.num_voters

    @property
    def num_answers(self) -> int:
        """Those of them that gave an answer."""
        return sum(self.votes.groups.values())

    @property
    def num_right(self) -> int:
        return sum(path.path_id in self.right and not path.is_hinted for path in self.paths)

    @property
    def num_guessed(self) -> float:
        """How many right guesses the wrong ones tell of; it may be more than were right.

        Correction for guessing: where an answer is either known or guessed among k options, w
        wrong answers tell of w / (k - 1) that were guessed right.
        """
        chance = chance_of(self.question)
        num_wrong = self.num_answers - self.num_right
        return float(self.num_right) if chance == 1 else num_wrong * chance / (1 - chance)

    @property
    def guessed_share(self) -> float | None:
        """The expected share of the right paths that guessed; None where the truth is not asked."""
        if self.settings.verdict != "ground_truth":
            return None
        if not self.num_right:
            return 1.0 if chance_of(self.question) else 0.0
        return min(1.0, self.num_guessed / self.num_right)


Filter = Callable[[GradedQuestion, Sequence[ReasoningPath]], Reasons]


def chance_of(question: Question) -> float:
    """How often a guess is right: one over the number of options; 0 where there are none."""
    if question.answer_type == "boolean":
        return 0.5
    return 1 / len(question.choices) if question.choices else 0.0


def num_guessed_kept(graded: GradedQuestion, kept: Sequence[ReasoningPath]) -> float:
    """How many of a question's kept paths are expected to have guessed, to be summed up.

    The sum over the questions of a dataset is right on average, one question's is not: guessers
    have more luck here and less there. So a question without a right path counts, too, unless it is
    one that nothing is kept of. Of r right paths m are kept at most; where r of n guesses are right
    with chance c, E[(n - r) f(r)] c / (1 - c) = E[r f(r - 1)], which is what is kept for
    f(r) = min(r + 1, m) / (r + 1).
    """
    settings, num_right = graded.settings, graded.num_right
    num_kept = sum(not path.is_hinted for path in kept)
    asks_for_more = settings.pass_rate[0] > 0 or settings.min_correct_above_chance is not None
    if not num_kept and (num_right or asks_for_more):
        return 0.0
    return graded.num_guessed * min(num_kept + 1, settings.max_per_question) / (num_right + 1)


def filter_paths(graded: GradedQuestion) -> tuple[list[ReasoningPath], Reasons]:
    """The paths that are kept, in the order they were drawn, and the reason of each other one."""
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
    """How many examples of a question to expect, of which so many paths were kept."""
    verdict = graded.settings.verdict
    if verdict == "random":
        return num_kept_by_truth(graded)
    if verdict not in GOLD or why_question_unused(graded):
        return num_kept
    return int(verdict == "gold_answers" or bool(graded.question.solution))


def wrong_paths(graded: GradedQuestion, reasons: Reasons) -> list[ReasoningPath]:
    """Wrong solutions to be preferred less, in the order they were drawn; `reasons` says why each
    path was dropped. None of a question whose right ones are left out, none twice, and none where
    the verdict does not tell right from wrong."""
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
    """By a draw for each id, so that neither the order of the paths nor of the files counts."""
    return sorted(paths, key=lambda path: stable_seed(seed, path.path_id))


def draw(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> list[ReasoningPath]:
    """The paths with those first that are to be kept."""
    if graded.settings.draw == "seed":
        return list(paths)
    taken = most_diverse([path.reasoning for path in paths], graded.settings.max_per_question)
    return [paths[n] for n in [*taken, *sorted({*range(len(paths))} - {*taken})]]


# --- the filters -------------------------------------------------------------------------------


def unfinished(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Failed in the engine, or cut off by the token limit."""
    return {
        path.path_id: str(Verdict.ERROR if path.error else Verdict.TRUNCATED)
        for path in paths
        if path.error or not path.is_finished
    }


def not_right(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Another answer than the ground truth or the majority, or none that could be read."""
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
    """Right, or without an answer that could be read."""
    return {
        path.path_id: "right" if path.verdict == Verdict.CORRECT else str(path.verdict)
        for path in paths
        if path.verdict != Verdict.WRONG
    }


def not_gold(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """A path, where none is learned."""
    return {path.path_id: "not_gold" for path in paths}


def shown_the_answer(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Made with the ground truth, which a control is meant to do without."""
    return {path.path_id: "hinted" for path in paths if path.is_hinted}


def of_unused_question(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """The question has no right path, or none that is wrong, as `examples.questions` asks."""
    reason = why_question_unused(graded)
    return {path.path_id: reason for path in paths} if reason else {}


def why_question_unused(graded: GradedQuestion) -> str | None:
    """Why `examples.questions` leaves a question out; None where it does not.

    It is decided by the paths that finish and are short enough, so by the same ones in every arm.
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
    """The model, asked as a judge, found a fault in it."""
    wanted = graded.settings.drop_unsound
    return {p.path_id: "judged_unsound" for p in paths if wanted and p.judged == "no"}


def leaking(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """Leans on a hint, a structure or a guideline that the model will not be shown.

    Whether a structure holds the answer is not asked by a control, which does not know the truth.
    """
    controlled = graded.settings.verdict not in JUDGING
    wanted = tuple(
        leak for leak in graded.settings.drop_leaks if leak != "structure" or not controlled
    )
    leaks = ((path.path_id, find_leak(graded.question, path, wanted)) for path in paths)
    return {path_id: f"leak_{leak}" for path_id, leak in leaks if leak}


def contaminated(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """The question overlaps with one of evaluation."""
    drop = graded.settings.contamination.drop and graded.is_contaminated
    return {path.path_id: "contaminated" for path in paths} if drop else {}


def outside_pass_rate(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """The question is too hard or too easy."""
    low, high = graded.settings.pass_rate
    rate = graded.num_right / graded.num_tries if graded.num_tries else 0.0
    reason = "pass_rate_too_low" if rate < low else "pass_rate_too_high" if rate > high else None
    return {path.path_id: reason for path in paths} if reason else {}


def guessed(graded: GradedQuestion, paths: Sequence[ReasoningPath]) -> Reasons:
    """The question was answered rightly hardly more often than by guessing."""
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
    """Of equal or nearly equal solutions all but the first drawn one."""
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
    leaking,
    contaminated,
    of_unused_question,
    own_filters,
    repeated,
)
"""What is left where no verdict counts: neither the truth's nor the judge's, who may have been
asked about right paths alone, nor how many of a question's paths are right."""

FILTERS: Mapping[VerdictName, tuple[Filter, ...]] = {
    "ground_truth": _JUDGED,
    "majority": _JUDGED,
    "unfiltered": _UNJUDGED,
    "random": _UNJUDGED,
    "wrong_only": (not_wrong, *_UNJUDGED),
    "gold_answers": (not_gold,),
    "gold_solutions": (not_gold,),
}
"""The filters of each verdict, in their order. Those of finish, length, citations and repetition
are the same for all that keep paths."""

WRONG_FILTERS: tuple[Filter, ...] = (
    unfinished,
    too_long,
    contaminated,
    outside_pass_rate,
    guessed,
    own_filters,
    repeated,
)
