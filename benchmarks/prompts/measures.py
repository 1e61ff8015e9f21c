"""What makes the texts of a stage good, as numbers: plain functions on paths."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from evaluation.grader import Verdict
from evaluation.question import Question
from evaluation.statistics import wilson_interval
from pipelines.selection.answer_leaks import find_leak
from pipelines.stored_run import StoredRun
from pipelines.synthesis.guidelines import GUIDELINES_FILE, load_guidelines
from pipelines.synthesis.reasoning_path import ReasoningPath
from pipelines.synthesis.stages import ADAPT, STRUCTURE

Words = Counter[str]


@dataclass(frozen=True)
class Side:
    """The paths of one run, each with its question, and the texts of the guidelines by id."""

    answered: list[tuple[Question, ReasoningPath]]
    guidelines: Mapping[str, str]


class Measures(NamedTuple):
    """The measures of one side; shares are between 0 and 1."""

    num_paths: int
    question_told: float
    question_chance: float
    guideline_told: float
    guideline_chance: float
    adaptation_leaks: float
    plan_leaks: float
    cut: dict[str, float]
    num_right: int
    num_tokens: int

    @classmethod
    def titles(cls) -> list[str]:
        """The titles of `cells`."""
        return [
            *("paths", "question told", "guideline told", "adaptation leaks", "plan leaks"),
            *("cut", "right", "right per 10,000 tokens"),
        ]

    def cells(self) -> list[str]:
        """The measures as text, shares in percent."""
        low, high = wilson_interval(self.num_right, self.num_paths)
        return [
            f"{self.num_paths}",
            f"{_percent(self.question_told)} / {_percent(self.question_chance)}",
            f"{_percent(self.guideline_told)} / {_percent(self.guideline_chance)}",
            _percent(self.adaptation_leaks),
            _percent(self.plan_leaks),
            ", ".join(f"{stage} {_percent(share)}" for stage, share in self.cut.items()),
            f"{self.num_right} ({_percent(low)} to {_percent(high)} %)",
            f"{1e4 * self.num_right / max(1, self.num_tokens):.2f}",
        ]


def read_side(location: str) -> Side:
    """The first round of a run. Raises `InputError` if it has no finished paths."""
    run = StoredRun.read(location)
    answered = [
        (Question.from_row(row), ReasoningPath.from_row(path))
        for row in run.table("round_0/paths").to_pylist()
        for path in row["paths"]
    ]
    file = run.config["synthesis"]["guidelines"] or GUIDELINES_FILE
    return Side(answered, {g.guideline_id: g.text for g in load_guidelines(Path(file))})


def measure(side: Side) -> Measures:
    """All measures of a side that has at least one path."""
    paths = [path for _, path in side.answered]
    adapted = [(question, path) for question, path in side.answered if path.texts.get(ADAPT.column)]
    told, chance = _question_told(adapted)
    by_guideline = [(path.texts[ADAPT.column], path.guideline_id or "") for _, path in adapted]
    followed = {id_: side.guidelines[id_] for _, id_ in by_guideline}
    return Measures(
        num_paths=len(paths),
        question_told=told,
        question_chance=chance,
        guideline_told=share_told(by_guideline, followed),
        guideline_chance=1 / max(1, len(followed)),
        adaptation_leaks=share_leaking(adapted, ADAPT.column),
        plan_leaks=share_leaking(side.answered, STRUCTURE.column),
        cut=shares_cut(paths),
        num_right=sum(path.verdict == Verdict.CORRECT and path.is_finished for path in paths),
        num_tokens=sum(g.num_prompt_tokens + g.num_tokens for p in paths for g in p.generations),
    )


def _question_told(adapted: Sequence[tuple[Question, ReasoningPath]]) -> tuple[float, float]:
    """The share of adaptations that tell their question from the others of its dataset, and the
    share that guessing would give; both are means over all adaptations."""
    told = chance = 0.0
    for dataset in {question.dataset for question, _ in adapted}:
        own = [(q, path) for q, path in adapted if q.dataset == dataset]
        texts = {question.question_id: question.text for question, _ in own}
        written = [(path.texts[ADAPT.column], question.question_id) for question, path in own]
        told += share_told(written, texts) * len(own)
        chance += len(own) / len(texts)
    return told / max(1, len(adapted)), chance / max(1, len(adapted))


def share_told(written: Sequence[tuple[str, str]], texts: Mapping[str, str]) -> float:
    """The share of texts that best match the entry of `texts` for which they were written.

    `written` has each text with the id of that entry. A match is the cosine of word counts, where a
    word counts more the rarer it is among `texts`. If m entries match equally well, the right one
    counts as 1/m, so guessing gives 1 / the number of entries.
    """
    counts = {id_: words_of(text) for id_, text in texts.items()}
    found_in = Counter(word for words in counts.values() for word in words)
    rarity = {word: math.log((1 + len(texts)) / num) for word, num in found_in.items()}
    right = 0.0
    for text, own in written:
        scores = {id_: _cosine(words_of(text), words, rarity) for id_, words in counts.items()}
        best = [id_ for id_, score in scores.items() if score >= max(scores.values()) - 1e-12]
        right += (own in best) / len(best)
    return right / max(1, len(written))


def words_of(text: str) -> Words:
    """Words and numbers, without case and without plural endings."""
    return Counter(
        word if len(word) < 4 else word.removesuffix("s")
        for word in re.findall(r"[a-z]+|\d+", text.casefold())
    )


def _cosine(one: Words, other: Words, rarity: Mapping[str, float]) -> float:
    def weight(words: Words, word: str) -> float:
        return words[word] * rarity.get(word, 0.0)

    def norm(words: Words) -> float:
        return math.sqrt(sum(weight(words, word) ** 2 for word in words)) or 1.0

    shared = sum(weight(one, word) * weight(other, word) for word in one.keys() & other.keys())
    return shared / (norm(one) * norm(other))


def share_leaking(answered: Sequence[tuple[Question, ReasoningPath]], column: str) -> float:
    """How many texts of a stage state the right answer, by the rule of the filter for plans."""
    texts = [(question, path, path.texts.get(column, "")) for question, path in answered]
    leaks = sum(
        find_leak(question, replace(path, texts={STRUCTURE.column: text}), ("structure",))
        is not None
        for question, path, text in texts
        if text
    )
    return leaks / max(1, len(texts))


def shares_cut(paths: Sequence[ReasoningPath]) -> dict[str, float]:
    """By stage, how many of its texts were cut off by the token limit."""
    made = Counter(g.stage for path in paths for g in path.generations)
    cut = Counter(g.stage for p in paths for g in p.generations if g.finish_reason != "stop")
    return {stage: cut[stage] / made[stage] for stage in made}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
