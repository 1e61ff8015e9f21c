"""The `guidelines` step: further general guidelines that the model itself proposes.

Before the first round the base model is asked `synthesis.expand_guidelines` times for one more
general strategy, and each time shown some of the existing ones. Its answer, for example::

    "Strategy: Work backwards from what a right answer would have to look like."

becomes, unless `why_dropped` names a reason, one more entry of the step's `guidelines.yaml`::

    - id: proposed-03
      text: Work backwards from what a right answer would have to look like.

All rounds share the proposals of the base model, so that rounds differ only by their model, and a
guideline's yield can be compared over the rounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import yaml

from cluster.errors import DamagedFileError
from cluster.inference.engine import Completion, SamplingSettings
from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger, ledger_schema
from cluster.thinking import read_turn
from evaluation.prompt import Message
from evaluation.question import QUESTION_SCHEMA, Question, question_table
from evaluation.responses import PromptHandler, Response
from pipelines.selection.similarity import shingles, similarity
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.guidelines import Guideline, check_guidelines
from pipelines.synthesis.seeds import stable_seed

PROPOSALS_SCHEMA = ledger_schema(
    [
        *QUESTION_SCHEMA,
        pa.field("response", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("seed", pa.int64()),
    ]
)
FILE = "guidelines.yaml"
ASKED = "asked"
"""The folder of the prompts, in the step's folder."""
DATASET = "guidelines"
"""The name of the prompts among the datasets of a ledger."""

NUM_SHOWN = 10
"""Number of guidelines in one prompt: few enough for a short context, and drawn again for each
proposal, so that the proposals differ."""
MIN_WORDS, MAX_WORDS = 4, 60
SIMILAR = 0.3
"""Share of common runs of three words from which two guidelines count as the same. A sentence of
twenty words with three of them replaced has 0.33."""

_NUMBER = re.compile(r"proposed-(\d+)")
_LABEL = re.compile(
    r"^[^.:]{0,60}\b(?:strategy|guideline)(?: of this kind)?[ *\d]*:\s*", re.IGNORECASE
)
_MARKS = " \t\"'“”*_`#>-•"
_LIST_NUMBER = re.compile(r"^\d{1,2}[.)]\s+")
_OF_A_CASE = re.compile(r"\d|[=$€£%\\]|\b(?:for example|for instance|e\.g\.)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Expansion:
    """Everything that determines the proposals, with texts resolved."""

    guidelines: tuple[Guideline, ...]
    """The existing guidelines."""
    prompt: str
    number: int
    sampling: SamplingSettings
    seed: int

    @classmethod
    def of(cls, recipe: Recipe) -> Expansion | None:
        """The expansion in the recipe's settings; None if no further guideline is requested."""
        settings = recipe.settings
        if not settings.expand_guidelines:
            return None
        return cls(
            recipe.guidelines,
            recipe.prompts["expand"],
            settings.expand_guidelines,
            settings.stages.expand,
            settings.seed,
        )

    def ids(self) -> list[str]:
        """The id of each proposal, by number; they continue after those of an earlier expansion
        that are in the file."""
        numbers = (_NUMBER.fullmatch(known.guideline_id) for known in self.guidelines)
        first = max((int(number[1]) + 1 for number in numbers if number), default=0)
        return [f"proposed-{number:02d}" for number in range(first, first + self.number)]

    def prompts(self) -> list[Question]:
        """The prompts as the pool expects them: one question for each proposal."""
        return [
            Question(id_, DATASET, "train", "in_domain", self._prompt(id_), "", "text")
            for id_ in self.ids()
        ]

    def _prompt(self, proposal_id: str) -> str:
        def key(guideline: Guideline) -> int:
            return stable_seed(self.seed, "shown", proposal_id, guideline.guideline_id)

        shown = sorted(self.guidelines, key=key)[:NUM_SHOWN]
        return self.prompt.format(guidelines="\n".join(f"- {known.text}" for known in shown))


def with_room(recipe: Recipe) -> Recipe:
    """The recipe with the largest possible number of guidelines after the proposals, to count."""
    expansion = Expansion.of(recipe)
    room = [Guideline(id_, "") for id_ in expansion.ids()] if expansion else []
    return replace(recipe, guidelines=(*recipe.guidelines, *room))


def write_prompts(expansion: Expansion, folder: Folder) -> Questions:
    """Write the prompts of the step, so that its workers can read them."""
    asked = folder.child(ASKED)
    asked.write_table("prompts.parquet", question_table(expansion.prompts()))
    return Questions(asked, ("train",))


@dataclass(frozen=True)
class ProposeGuideline(PromptHandler):
    """The pool's handler for the `guidelines` step."""

    seed: int

    def messages(self, question: Question) -> list[Message]:
        """The text of `Expansion.prompts`."""
        return [{"role": "user", "content": question.question}]

    def seed_of(self, question: Question, attempt: int) -> int:
        """Another one for each proposal and attempt."""
        again = [attempt] if attempt else []
        return stable_seed(self.seed, "expand", question.question_id, *again)

    def row(self, question: Question, answers: Sequence[Response]) -> dict[str, Any]:
        """The row of one proposal, as the model wrote it."""
        [response] = answers
        if response.completion is None:
            return self.failed_row(question, response.error or "")
        columns = _response_columns(response.completion) | {"seed": response.seed}
        return self._row(question) | columns

    def failed_row(self, question: Question, reason: str) -> dict[str, Any]:
        """The row of a proposal that was not made, and why."""
        return self._row(question) | {"error": reason, "num_failed": 1}

    def _row(self, question: Question) -> dict[str, Any]:
        further = {"question_fingerprint": question.fingerprint, "error": None, "num_failed": 0}
        return question.to_row() | further


def _response_columns(completion: Completion) -> dict[str, Any]:
    reason = completion.end_reason
    return {
        "response": completion.own_turn.answer or "",
        "finish_reason": reason,
        "num_truncated": int(reason != "stop"),
        "num_tokens": completion.num_tokens,
        "num_prompt_tokens": completion.num_prompt_tokens,
    }


# --- selection of proposals --------------------------------------------------------------------


def guideline_text(response: str) -> str:
    """The proposal in a model's text: one line, without a label, list marks or quotes."""
    text = read_turn(response).answer or ""
    text = _LIST_NUMBER.sub("", " ".join(text.split()).strip(_MARKS))
    return _LIST_NUMBER.sub("", _LABEL.sub("", text).strip(_MARKS)).strip(_MARKS)


def why_dropped(row: Mapping[str, Any], known: Iterable[Guideline]) -> str | None:
    """Why the proposal is not used as a guideline, or None."""
    if row["error"]:
        return "error"
    if row["finish_reason"] != "stop":
        return "truncated"
    text = guideline_text(row["response"])
    num_words = len(text.split())
    if num_words < MIN_WORDS:
        return "empty"
    if num_words > MAX_WORDS:
        return "too_long"
    if _OF_A_CASE.search(text):
        return "of_a_case"
    own = shingles(text)
    if any(similarity(own, shingles(other.text)) >= SIMILAR for other in known):
        return "near_duplicate"
    return None


def select_guidelines(
    rows: Iterable[Mapping[str, Any]], known: Sequence[Guideline]
) -> tuple[list[Guideline], dict[str, list[str]]]:
    """(the further guidelines, the ids of the dropped proposals by reason).

    They are processed in the order of the ids: of two similar proposals, the first is kept.
    """
    kept: list[Guideline] = []
    dropped: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: _number_of(row["question_id"])):
        if reason := why_dropped(row, [*known, *kept]):
            dropped.setdefault(reason, []).append(row["question_id"])
        else:
            kept.append(Guideline(row["question_id"], guideline_text(row["response"])))
    return kept, dropped


def _number_of(proposal_id: str) -> int:
    return int(proposal_id.rpartition("-")[2])


def select_step_guidelines(
    folder: Folder, prompts: Questions, known: Sequence[Guideline]
) -> dict[str, Any]:
    """Write the step's `guidelines.yaml` with all guidelines that paths will follow, in the format
    of `synthesis.guidelines`; returns the manifest's facts. Runs as a task."""
    kept, dropped = select_guidelines(Ledger.read(folder).of(prompts.keys()).rows(), known)
    rows = [{"id": each.guideline_id, "text": each.text} for each in (*known, *kept)]
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)
    folder.write_bytes(FILE, text.encode())
    return {"kept": [each.guideline_id for each in kept], "dropped": dropped}


def read_step_guidelines(folder: Folder) -> tuple[Guideline, ...]:
    """All guidelines of a finished step, with the original ones first.

    Raises `DamagedFileError`.
    """
    try:
        return check_guidelines(yaml.safe_load(folder.read_bytes(FILE)), f"{folder.uri}/{FILE}")
    except (yaml.YAMLError, UnicodeDecodeError, FileNotFoundError) as error:
        raise DamagedFileError(f"{folder.uri}/{FILE} is damaged or missing") from error
