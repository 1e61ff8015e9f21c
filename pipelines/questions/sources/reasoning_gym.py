"""Questions made by `reasoning_gym`: procedural families, no download, any number of them.

A family is one stream. Item i is drawn from `Random(seed + i)`, so two seeds are one stream moved
by their difference: different families should get seeds further apart than their streams are
long, or they ask for the same numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, Literal

import pydantic

from cluster.errors import InputError
from cluster.settings import Settings
from evaluation.extraction.reasoning_gym import (
    FAMILY_GRADER,
    KINDS_OF_FAMILIES,
    family_data,
    right_answer,
)
from evaluation.grader import canonical_answer
from evaluation.question import SPLITS, Domain, Question, Split
from pipelines.questions.sources.source import (
    DEV_SHARE,
    TEST_SHARE,
    Asked,
    Ordered,
    split_of,
    stable_hash,
)

GENERATED_SHARE = 0.2
"""The share of a stream that is dev, and the share that is test."""

Value = bool | int | float | str | tuple[bool | int | float | str, ...]


class ReasoningGymSource(Settings):
    """Questions of one `reasoning_gym` family."""

    kind: Literal["reasoning_gym"]

    family: str
    """The family's name, such as `chain_sum`."""

    settings: dict[str, Value] = pydantic.Field(default_factory=dict)
    """The family's own settings; what is not given keeps the family's default."""

    seed: pydantic.NonNegativeInt = 0
    """Where the family's stream starts."""

    answer_type: Literal["number", "boolean", "text"] | None = None
    """How the answers are read and compared. Null: as fits the family, which is numbers and truth
    values as such and most others by the family's own scorer."""

    @pydantic.field_validator("settings", mode="before")
    @classmethod
    def _are_plain(cls, settings: Any) -> Any:
        # Said here in one sentence; pydantic would complain once for each member of the union.
        if not isinstance(settings, dict):
            return settings
        lists = {name: value for name, value in settings.items() if isinstance(value, list)}
        plain = settings | {name: tuple(value) for name, value in lists.items()}
        for name, value in plain.items():
            items = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(item, bool | int | float | str) for item in items):
                raise ValueError(f"{name} must be a number, text, true, false or a list of these")
        return plain

    @property
    def domain(self) -> Domain:
        return "in_domain"

    @property
    def is_labelled(self) -> bool:
        return True

    @property
    def is_generated(self) -> bool:
        return True

    def given_splits(self, domain: Domain) -> tuple[Split, ...]:
        return SPLITS

    def check(self, asked: Asked) -> None:
        for split in SPLITS if asked.domain == "in_domain" else SPLITS[1:]:
            if asked.limits[split] is None:
                raise ValueError(f"num_{split} is missing; a generated source has no end")
        shares = {"dev_share": (asked.dev_share, DEV_SHARE)}
        shares["test_share"] = (asked.test_share, TEST_SHARE)
        for name, (share, default) in shares.items():
            if share != default:
                raise ValueError(f"{name} is for files; generated splits are set by num_*")

    def read(self, folder: str, asked: Asked) -> Iterator[Ordered]:
        wanted = {split: asked.limits[split] or 0 for split in SPLITS}
        return enumerate(draw_questions(self, asked.dataset, asked.domain, wanted, _split_by_text))

    def digest(self, folder: str) -> str | None:
        return metadata.version("reasoning-gym")


def _split_by_text(text: str) -> Split:
    # By text and not by index: a text falls on the same side in every family, seed and dataset.
    return split_of(stable_hash(text), GENERATED_SHARE, GENERATED_SHARE)


def draw_questions(
    source: ReasoningGymSource,
    dataset: str,
    domain: Domain,
    wanted: Mapping[Split, int],
    split_of: Callable[[str], Split],
) -> Iterator[Question]:
    """Draw from the stream until each split holds `wanted` different questions.

    `split_of` assigns a normalized text to a split, so a text never stands in two. Questions are
    in the order of the stream, repeats included, so asking for more only appends to each split.
    Raises `InputError` for an unknown family, settings it refuses, answers of another type, or
    when the stream does not hold enough different questions.
    """
    num_draws = 1_000 + 20 * sum(wanted.values())
    family = _open_family(source, dataset, num_draws)
    texts: dict[Split, set[bytes]] = {split: set() for split in SPLITS}
    for index in range(num_draws):
        if all(len(texts[split]) >= wanted[split] for split in SPLITS):
            break
        question = _to_question(source, dataset, domain, index, family[index], split_of)
        if question is None:
            continue
        if len(texts[question.split]) < wanted[question.split]:
            texts[question.split].add(_digest(question.normalized_text))
            yield question
    for split in SPLITS:
        if len(texts[split]) < wanted[split]:
            raise InputError(
                f"questions.datasets.{dataset}: {source.family} gave {len(texts[split])} different "
                f"{split} questions in {num_draws} draws, {wanted[split]} are wanted; lower "
                f"num_{split} or make source.settings wider"
            )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _open_family(source: ReasoningGymSource, dataset: str, num_draws: int) -> Any:
    """The family's dataset, after one item was drawn to try its settings."""
    from reasoning_gym.factory import DATASETS, create_dataset  # two seconds; only where used

    field = f"questions.datasets.{dataset}.source"
    if source.family not in DATASETS:
        nearest = difflib.get_close_matches(source.family, DATASETS, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(DATASETS)}"
        raise InputError(f"{field}.family: no reasoning_gym family {source.family!r}; {hint}")
    known = {setting.name for setting in dataclasses.fields(DATASETS[source.family][1])}
    for name in source.settings:
        if name in ("seed", "size"):
            raise InputError(f"{field}.settings.{name}: give source.seed and num_* instead")
        if name not in known:
            raise InputError(
                f"{field}.settings.{name}: {source.family} has no such setting; it has "
                f"{', '.join(sorted(known - {'seed', 'size'}))}"
            )
    try:
        family = create_dataset(source.family, **source.settings, seed=source.seed, size=num_draws)
        family[0]
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{field}.settings: {source.family} refuses them: {error}") from error
    return family


def _to_question(
    source: ReasoningGymSource,
    dataset: str,
    domain: Domain,
    index: int,
    item: Mapping[str, Any],
    split_of: Callable[[str], Split],
) -> Question | None:
    """Item `index` of the stream, in the split that its text belongs to.

    None for one whose right answer is to say nothing, as some of `ab` are.
    """
    kind = source.answer_type or KINDS_OF_FAMILIES.get(source.family)
    try:
        answer = right_answer(source.family, item)
        if not answer.strip():
            return None
        answer = canonical_answer(answer, kind or "text")
        data = "" if kind else family_data(source.family, source.settings, item)
    except ValueError as error:
        field = "answer_type" if kind else "family"
        raise InputError(
            f"questions.datasets.{dataset}.source.{field}: item {index} of {source.family} "
            f"does not fit: {error}"
        ) from error
    question = Question(
        question_id="",
        dataset=dataset,
        split="train",
        domain=domain,
        question=item["question"],
        answer=answer,
        answer_type=kind or "text",
        grader="" if kind else FAMILY_GRADER,
        grader_data=data,
        kind=source.family,
    )
    split = split_of(question.normalized_text)
    return dataclasses.replace(question, question_id=f"{dataset}/{split}/{index:06d}", split=split)
