"""The `examples` step: which paths are learned from. The one step that drops, and it counts why.

A row, for example::

    {"example_id": "0/regenesis/gsm8k/train/00042/decompose/0/0", "question_id": ...,
     "dataset": "gsm8k", "guideline_id": "decompose", "answer_added": False,
     "messages": [{"role": "user", ...}, {"role": "assistant", ...}],
     "prompt_token_ids": [1, 4093, ...], "target_token_ids": [788, ..., 2]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from cluster.chat import end_turn, prompt_ids, target_ids
from cluster.settings import Settings
from cluster.storage import Folder
from evaluation.grader import ReadAs, Verdict, boxed_answer
from evaluation.prompt import answer_messages
from evaluation.question import AnswerType, Question
from pipelines.chain import stable_seed
from pipelines.synthesis import grade_path, path_finished

EXAMPLES_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("guideline_id", pa.string()),
        ("answer_added", pa.bool_()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("target_token_ids", pa.list_(pa.int32())),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [("path_id", pa.string()), ("dataset", pa.string()), ("reason", pa.string())]
)
ROWS_PER_FILE = 10_000


class ExampleSettings(Settings):
    """Which paths become training examples."""

    max_per_question: Annotated[int, Field(gt=0)] = 5
    """The paper keeps at most 5 correct paths a question, drawn at random."""
    max_target_tokens: Annotated[int, Field(gt=0)] = 800
    """Longer solutions are dropped (paper: under 800 tokens)."""
    read_last: tuple[AnswerType, ...] = ("number",)
    """Answer types whose last number or letter counts when no clearer answer was written. Off
    where guessing is easy: with 25 tries some last letter is nearly always the right one."""
    seed: int = 0


@dataclass
class Selection:
    """What was kept, and why the rest was not."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    num_paths: int = 0
    num_answers_added: int = 0

    def reasons(self) -> dict[str, int]:
        """Dropped paths by reason, the commonest first."""
        return dict(Counter(row["reason"] for row in self.dropped).most_common())


@dataclass(frozen=True)
class ExampleSelector:
    """Selects the examples of one question at a time; needs no memory of the others."""

    settings: ExampleSettings
    tokenizer: Any
    template_args: Mapping[str, Any]

    def add_question(self, row: dict[str, Any], question: Question, selection: Selection) -> None:
        """Grade a ledger row's paths anew and sort them into kept and dropped."""
        candidates: list[dict[str, Any]] = []
        seen: set[str] = set()
        for path in row["paths"]:
            path = path | grade_path(path, question, self.settings.read_last)
            reason = self._why_dropped(path, seen)
            if reason:
                self._drop(selection, path, question, reason)
            else:
                seen.add(path["reasoning"])
                candidates.append(path)
        drawn = sorted(
            candidates, key=lambda path: stable_seed(self.settings.seed, path["path_id"])
        )
        for path in drawn[self.settings.max_per_question :]:
            self._drop(selection, path, question, "over_max_per_question")
        for path in drawn[: self.settings.max_per_question]:
            self._keep(selection, path, question)
        selection.num_paths += len(row["paths"])

    def _why_dropped(self, path: dict[str, Any], seen: set[str]) -> str | None:
        if path["verdict"] != Verdict.CORRECT:
            return str(path["verdict"])
        if not path_finished(path):
            return str(Verdict.TRUNCATED)
        if len(path["token_ids"]) > self.settings.max_target_tokens:
            return "too_long"
        return "duplicate" if path["reasoning"] in seen else None

    def _drop(
        self, selection: Selection, path: dict[str, Any], question: Question, reason: str
    ) -> None:
        selection.dropped.append(
            {"path_id": path["path_id"], "dataset": question.dataset, "reason": reason}
        )

    def _keep(self, selection: Selection, path: dict[str, Any], question: Question) -> None:
        messages = answer_messages(question)
        added = path["read_as"] != ReadAs.BOXED
        solution = with_boxed_answer(path["reasoning"], question) if added else path["reasoning"]
        # Sampled ids are what the model really wrote; text is tokenised again only when edited,
        # or when a thinking part was taken off its front.
        edited = added or bool(path["thinking"])
        ids = target_ids(self.tokenizer, solution) if edited else path["token_ids"]
        selection.num_answers_added += added
        selection.examples.append(
            {
                "example_id": path["path_id"],
                "question_id": question.question_id,
                "dataset": question.dataset,
                "guideline_id": path["guideline_id"],
                "answer_added": added,
                "messages": [*messages, {"role": "assistant", "content": solution}],
                "prompt_token_ids": prompt_ids(self.tokenizer, messages, self.template_args),
                "target_token_ids": end_turn(ids, self.tokenizer.eos_token_id),
            }
        )


def with_boxed_answer(solution: str, question: Question) -> str:
    """The solution with its final answer written in the format that the prompt asks for."""
    return f"{solution}\n\nThe final answer is {boxed_answer(question)}."


def select_examples(
    rows: Iterable[dict[str, Any]],
    question_of: Callable[[str], Question],
    selector: ExampleSelector,
) -> Selection:
    """Select from all ledger rows. The result does not depend on the order of the rows."""
    selection = Selection()
    for row in rows:
        selector.add_question(row, question_of(row["question_id"]), selection)
    selection.examples.sort(key=lambda example: str(example["example_id"]))
    selection.dropped.sort(key=lambda dropped: dropped["path_id"])
    return selection


def write_selection(selection: Selection, folder: Folder) -> None:
    """Write the examples, and beside them in `dropped/` every path left out, with its reason."""
    for number, table in enumerate(_tables(selection.examples, EXAMPLES_SCHEMA)):
        folder.write_table(f"train-{number:05d}.parquet", table)
    for number, table in enumerate(_tables(selection.dropped, DROPPED_SCHEMA)):
        folder.child("dropped").write_table(f"dropped-{number:05d}.parquet", table)


def _tables(rows: list[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    for start in range(0, len(rows), ROWS_PER_FILE):
        yield pa.Table.from_pylist(rows[start : start + ROWS_PER_FILE], schema=schema)
