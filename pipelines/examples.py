"""The `examples` step: which paths are learned from. The one step that drops, and it counts why.

A row, for example::

    {"example_id": "0/regenesis/gsm8k/train/00042/decompose/0/0", "question_id": ...,
     "dataset": "gsm8k", "guideline_id": "decompose", "answer_added": False,
     "messages": [{"role": "user", ...}, {"role": "assistant", ...}],
     "prompt_token_ids": [1, 4093, ...], "target_token_ids": [788, ..., 2]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from cluster.chat import end_turn, load_tokenizer, prompt_ids, target_ids
from cluster.ledger import Ledger
from cluster.models import Model
from cluster.schedule import Questions
from cluster.settings import Settings
from cluster.storage import Folder
from cluster.tasks import map_tasks, num_cpus
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


@dataclass(frozen=True)
class ExampleSelector:
    """Selects the examples of one question at a time; needs no memory of the others."""

    settings: ExampleSettings
    tokenizer: Any
    template_args: Mapping[str, Any]

    def add_question(self, row: dict[str, Any], selection: Selection) -> None:
        """Grade a ledger row's paths anew and sort them into kept and dropped."""
        question = Question.from_row(row)
        candidates: list[dict[str, Any]] = []
        seen: set[str] = set()
        for path in row["paths"] or ():
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


def select_examples(rows: Iterable[dict[str, Any]], selector: ExampleSelector) -> Selection:
    """Select from ledger rows. The result does not depend on the order of the rows."""
    selection = Selection()
    for row in rows:
        selector.add_question(row, selection)
    return selection


def select_step_examples(
    paths: Folder,
    questions: Questions,
    output: Folder,
    settings: ExampleSettings,
    start: Model,
    template_args: Mapping[str, Any],
) -> dict[str, Any]:
    """Select the examples of a step's questions and write them; returns the manifest's facts.

    Beside the examples, `dropped/` has every path left out, with its reason. Runs as a task that
    starts others: the ledger's files are shared out over the cluster.
    """
    shares = Ledger.read(paths).of(questions.keys()).split(num_cpus())
    selected = map_tasks(
        _select_share, [(share, settings, start, template_args) for share in shares]
    )
    kept, dropped = ([share[n] for share in selected] for n in (0, 1))
    _write_sorted(kept, output, "train")
    _write_sorted(dropped, output.child("dropped"), "dropped")
    num_examples = sum(table.num_rows for table in kept)
    reasons = Counter(reason for table in dropped for reason in table["reason"].to_pylist())
    return {
        "num_paths": num_examples + sum(reasons.values()),
        "num_examples": num_examples,
        "num_answers_added": sum(pc.sum(t["answer_added"]).as_py() or 0 for t in kept),
        "dropped": dict(reasons.most_common()),
    }


def _select_share(
    ledger: Ledger, settings: ExampleSettings, start: Model, template_args: Mapping[str, Any]
) -> tuple[pa.Table, pa.Table]:
    """The kept and the dropped of some of the ledger's files."""
    selector = ExampleSelector(settings, load_tokenizer(start.fetch()), template_args)
    selection = select_examples(ledger.rows(), selector)
    return (
        pa.Table.from_pylist(selection.examples, schema=EXAMPLES_SCHEMA),
        pa.Table.from_pylist(selection.dropped, schema=DROPPED_SCHEMA),
    )


def _write_sorted(tables: list[pa.Table], folder: Folder, name: str) -> None:
    """Write the rows in the order of their ids, whichever share they came from.

    File by file: Arrow cannot sort a text column of more than 2 GiB at once.
    """
    ids = pa.chunked_array([chunk for t in tables for chunk in t.column(0).chunks], pa.string())
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    ends = np.cumsum([table.num_rows for table in tables])
    for number, start in enumerate(range(0, len(order), ROWS_PER_FILE)):
        rows = order[start : start + ROWS_PER_FILE]
        owners = np.searchsorted(ends, rows, side="right")
        pieces = [
            table.take(pa.array(rows[owners == share] - (ends[share] - table.num_rows)))
            for share, table in enumerate(tables)
        ]
        merged = pa.concat_tables(pieces)
        folder.write_table(f"{name}-{number:05d}.parquet", merged.sort_by(merged.column_names[0]))
