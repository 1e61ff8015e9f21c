"""The questions of a run: read or made, cut into train, dev and test, and told apart by text.

What `load_questions` gives back for one dataset, in short::

    questions = [Question("gsm8k/train/00042", "gsm8k", "train", ...), ...]
    counts = [{"dataset": "gsm8k", "split": "train", "domain": "in_domain", "num_read": 7473,
               "num_dropped_duplicate": 1, "num_dropped_overlap": 2, "num_kept": 800,
               "commonest_answer_share": 0.02}, ...]

No question stands in two splits of a run, whichever datasets they belong to: test keeps it before
dev, dev before train. Two questions are the same when their normalized texts are, or differ only
in the order of their options (21 of OpenBookQA's held-out questions stand in its train that way).
That is settled on whole files, before any limit, so raising a limit can neither leak a test
question nor change what was chosen before: limits take a prefix of a fixed order.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, TypedDict

import pydantic

from cluster.errors import InputError
from cluster.settings import EXTENT, OPERATIONAL, Settings
from evaluation.question import SPLITS, Domain, Question, Split
from pipelines.sources.files import FileSource, read_questions
from pipelines.sources.reasoning_gym import ReasoningGymSource, draw_questions

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Limit = Annotated[pydantic.NonNegativeInt | None, EXTENT]

GENERATED_SHARE = 0.2
"""The share of a generated stream that is dev, and the share that is test."""


class DatasetSettings(Settings):
    """One dataset: where it comes from, what it is for, and how much of it is used."""

    source: FileSource | ReasoningGymSource = pydantic.Field(discriminator="kind")
    """Files, or a family of procedural questions."""

    domain: Domain = "in_domain"
    """`out_of_domain` is only ever evaluated on: it has no train."""

    num_train: Limit = None
    """At most so many of a file's training questions, null for all; exactly so many generated."""

    num_dev: Limit = None
    """The same for dev."""

    num_test: Limit = None
    """The same for test."""

    dev_share: Share = 0.1
    """Files only: the share of train that becomes dev where there is no dev file."""

    test_share: Share = 0.0
    """Files only: the share of train that becomes test where there is no test file."""

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> DatasetSettings:
        if self.domain == "out_of_domain" and self.num_train:
            raise ValueError("out_of_domain has no train; remove num_train")
        if isinstance(self.source, FileSource):
            self._check_files(self.source)
        else:
            self._check_generated()
        return self

    def _check_files(self, source: FileSource) -> None:
        if self.domain == "in_domain" and not source.train:
            raise ValueError("in_domain needs source.train; or set domain to out_of_domain")
        if self.domain == "out_of_domain" and source.train:
            raise ValueError("out_of_domain has no train; remove source.train")
        if not any(source.paths(split) for split in SPLITS):
            raise ValueError("no files; set source.test or source.dev")
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on")

    def _check_generated(self) -> None:
        used = SPLITS if self.domain == "in_domain" else SPLITS[1:]
        for split in used:
            if self.limit(split) is None:
                raise ValueError(f"num_{split} is missing; a generated source has no end")
        defaults = type(self).model_fields
        for name in ("dev_share", "test_share"):
            if getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} is for files; generated splits are set by num_*")

    def limit(self, split: Split) -> int | None:
        """How many questions of a split are used at most; None is all."""
        limits = {"train": self.num_train, "dev": self.num_dev, "test": self.num_test}
        return limits[split]


class QuestionSettings(Settings):
    """The questions of a run."""

    folder: Annotated[str, OPERATIONAL] = "."
    """Where relative paths of question files start: a folder or a URI."""

    datasets: Annotated[dict[str, DatasetSettings], EXTENT]
    """Name to dataset; the name is part of every question's id."""

    @pydantic.field_validator("datasets")
    @classmethod
    def _are_named(cls, datasets: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
        if not datasets:
            raise ValueError("no dataset; name at least one")
        for name in datasets:
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise ValueError(f"the name {name!r} may only hold a-z, 0-9 and _; rename it")
        return datasets


class SplitCounts(TypedDict):
    """What became of the questions of one split of one dataset."""

    dataset: str
    split: Split
    domain: Domain
    num_read: int
    num_dropped_duplicate: int
    num_dropped_overlap: int
    num_kept: int
    commonest_answer_share: float


@dataclass(frozen=True)
class QuestionSet:
    """The questions by dataset, split and order of choice, and where the others went."""

    questions: list[Question]
    counts: list[SplitCounts]


@dataclass(frozen=True)
class _Loaded:
    """One split of one dataset: distinct questions, in the order a limit takes them."""

    dataset: str
    split: Split
    limit: int | None
    num_read: int
    questions: list[Question]


def load_questions(settings: QuestionSettings) -> QuestionSet:
    """Read, make, split and choose the questions of a run; the same settings give the same list.

    Cheap enough to run before any model is loaded, which is where bad input should be found.
    Raises `InputError`.
    """
    loaded = [
        part
        for name, dataset in settings.datasets.items()
        for part in _load_dataset(name, dataset, settings.folder)
    ]
    test = _identities(part for part in loaded if part.split == "test")
    held_out = test | _identities(part for part in loaded if part.split == "dev")
    taken: dict[Split, set[str]] = {"train": held_out, "dev": test, "test": set()}
    questions: list[Question] = []
    counts: list[SplitCounts] = []
    for part in loaded:
        free = [q for q in part.questions if _identity(q) not in taken[part.split]]
        kept = free[: part.limit]
        if part.split == "train" and not free and part.limit != 0:
            raise InputError(
                f"questions.datasets.{part.dataset}: all of its {len(part.questions)} training "
                "questions also stand in a dev or test split; give train other questions"
            )
        questions += kept
        counts.append(_count(part, settings.datasets[part.dataset].domain, len(free), kept))
    return QuestionSet(questions, counts)


def _load_dataset(name: str, settings: DatasetSettings, folder: str) -> list[_Loaded]:
    """The splits of one dataset that have questions, train first."""
    source = settings.source
    if isinstance(source, FileSource):
        splits = _carve(read_questions(source, folder, name, settings.domain), settings)
    else:
        wanted = {split: settings.limit(split) or 0 for split in SPLITS}
        splits = draw_questions(source, name, settings.domain, wanted, _generated_split)
    return [
        _Loaded(name, split, settings.limit(split), len(splits[split]), _distinct(splits[split]))
        for split in SPLITS
        if splits.get(split)
    ]


def _carve(
    read: dict[Split, list[Question]], settings: DatasetSettings
) -> dict[Split, list[Question]]:
    """Give splits without a file their share of train; each split in the order of its ids' hashes.

    Hash order makes the choice independent of the file's order and of how many are asked for.
    """
    dev_share = 0.0 if "dev" in read else settings.dev_share
    test_share = 0.0 if "test" in read else settings.test_share
    splits: dict[Split, list[Question]] = {split: [] for split in SPLITS}
    for question in (question for split in SPLITS for question in read.get(split, ())):
        split = question.split
        if split == "train":
            split = _split_of(question.question_id, dev_share, test_share)
        splits[split].append(replace(question, split=split))
    return {split: sorted(splits[split], key=_hash_order) for split in SPLITS}


def _hash_order(question: Question) -> str:
    return _hash(question.question_id)


def _generated_split(text: str) -> Split:
    # By text and not by index: a text falls on the same side in every family, seed and dataset.
    return _split_of(text, GENERATED_SHARE, GENERATED_SHARE)


def _split_of(key: str, dev_share: float, test_share: float) -> Split:
    """A split by the key's hash alone, so that it never changes as questions are added."""
    position = int(_hash(key)[:12], 16) / 16**12
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _distinct(questions: Iterable[Question]) -> list[Question]:
    """The first of each set of questions that are the same one."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(_identity(question), question)
    return list(first.values())


def _identities(parts: Iterable[_Loaded]) -> set[str]:
    return {_identity(question) for part in parts for question in part.questions}


def _identity(question: Question) -> str:
    """The normalized text with the options in a fixed order."""
    return replace(question, choices=tuple(sorted(question.choices))).normalized_text


def _count(part: _Loaded, domain: Domain, num_free: int, kept: list[Question]) -> SplitCounts:
    answers = Counter(question.answer for question in kept)
    return {
        "dataset": part.dataset,
        "split": part.split,
        "domain": domain,
        "num_read": part.num_read,
        "num_dropped_duplicate": part.num_read - len(part.questions),
        "num_dropped_overlap": len(part.questions) - num_free,
        "num_kept": len(kept),
        "commonest_answer_share": max(answers.values(), default=0) / max(len(kept), 1),
    }
