"""The `examples` step: select the paths to train on. It is the only step that drops, and counts
why.

`pipelines.selection.filters` decides which paths are kept. Here they become the rows that a trainer
reads (`pipelines.selection.example`), on all CPUs of the cluster. Further folders have every other
path with its reason (`dropped/`), right and wrong solutions of the same prompt
(`preference_pairs/`), single right and wrong solutions (`unpaired_preferences/`), and the questions
with their pass rates (`rl_prompts/`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import InputError
from cluster.inference.schedule import Questions
from cluster.models.chat_template import (
    control_token_ids,
    end_of_turn,
    end_turn,
    load_tokenizer,
    num_control_tokens,
    prompt_ids,
    target_ids,
    typed_ids,
)
from cluster.models.model import Model
from cluster.remote import map_blocks
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from cluster.thinking import ThinkingFormat, TurnReader
from evaluation.grader import ReadAs, box
from evaluation.prompt import Form, answer_messages, learned_messages
from evaluation.question import Question
from pipelines.selection.contamination import EvaluationWords
from pipelines.selection.example import (
    EXAMPLES_SCHEMA,
    MESSAGES,
    PAIRS_SCHEMA,
    UNPAIRED_SCHEMA,
    Example,
    Target,
)
from pipelines.selection.filters import (
    JUDGING,
    ExampleSettings,
    GradedQuestion,
    filter_paths,
    num_guessed_kept,
    num_kept_by_truth,
    why_question_unused,
    wrong_paths,
)
from pipelines.selection.limits import has_limits, kept_of, over_limits, wanted_of, without
from pipelines.selection.retries import Tries
from pipelines.synthesis.handler import stored_paths
from pipelines.synthesis.reasoning_path import HINTED, ReasoningPath

DROPPED_SCHEMA = pa.schema(
    [("path_id", pa.string()), ("dataset", pa.string()), ("reason", pa.string())]
)
PROMPTS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("prompt", MESSAGES),
        ("answer", pa.string()),
        ("answer_type", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("pass_rate", pa.float32()),
        ("num_tries", pa.int32()),
    ]
)
"""Prompts in the format of TRL's GRPO, which passes the other columns to the reward function."""

COUNTS_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("num_paths", pa.int32()),
        ("num_guessed", pa.float64()),  # expected number of kept paths that guessed
        ("num_kept_by_truth", pa.int32()),  # kept by the ground truth; only for random
        ("num_control_tokens", pa.int32()),  # typed in the question
        ("overlaps_with", pa.list_(pa.string())),  # evaluation datasets that share words
        ("num_hinted_tokens", pa.int64()),  # generated for it with the answer shown
        ("num_unhinted_tokens", pa.int64()),  # in the retries that count as equally many
    ]
)
"""Counts of a question itself, and not of the rows that are made from it."""

ORIGINAL = "original"
GOLD_ANSWER = "gold_answer"
"""The forms of targets that no path wrote: the question's solution, and its answer alone."""

ROWS_PER_FILE = 10_000
_SCHEMAS = {
    "examples": EXAMPLES_SCHEMA,
    "dropped": DROPPED_SCHEMA,
    "pairs": PAIRS_SCHEMA,
    "unpaired": UNPAIRED_SCHEMA,
    "prompts": PROMPTS_SCHEMA,
    "counts": COUNTS_SCHEMA,
}
_FOLDERS = {
    "examples": "",
    "dropped": "dropped",
    "pairs": "preference_pairs",
    "unpaired": "unpaired_preferences",
    "prompts": "rl_prompts",
}
"""The subfolder of each kind of rows in the step's folder; the counts become its facts."""

_BLOCK_SCHEMA = pa.schema(
    [(kind, pa.list_(pa.struct(list(schema)))) for kind, schema in _SCHEMAS.items()]
)

Tables = dict[str, list[pa.Table]]
"""The rows of each kind, in one table per block and an empty one."""


@dataclass
class Selection:
    """What was kept, why the rest was dropped, and the further rows, by kind."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    unpaired: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)

    def to_block(self) -> pa.Table:
        """One row with a list for each kind: six tables in the form that Ray Data passes on."""
        return pa.Table.from_pylist([vars(self)], schema=_BLOCK_SCHEMA)


@dataclass(frozen=True)
class ExampleSelector:
    """Selects the examples of one question at a time, independently of other questions.

    Raises `InputError` for a tokenizer without an end-of-sequence token, and if the prompt opens a
    thinking part that is to be stripped.
    """

    settings: ExampleSettings
    tokenizer: Any
    template_args: Mapping[str, Any]
    evaluation: EvaluationWords | None = None

    def __post_init__(self) -> None:
        if self._end is not None and self.settings.thinking == "strip" and self._opened:
            raise InputError(
                "examples.thinking: strip, but the chat template ends the prompt with "
                f"{self._opened.strip()}, "
                "which an answer without thinking would leave open; set it to keep, or switch "
                "thinking off in evaluation.template_args"
            )

    @cached_property
    def _reader(self) -> TurnReader:
        return TurnReader(self.tokenizer)

    @cached_property
    def _format(self) -> ThinkingFormat:
        return ThinkingFormat.of(self.tokenizer)

    @cached_property
    def _opened(self) -> str:
        """How every prompt begins the thinking; empty if none does."""
        asked = "What is 17 plus 25?"
        messages = [{"role": "user", "content": asked}]
        return self._reader.opened(prompt_ids(self.tokenizer, messages, self.template_args), asked)

    @cached_property
    def _end(self) -> int:
        end = end_of_turn(self.tokenizer)
        if end is None:
            raise InputError(
                "model.path: the tokenizer has no eos_token, so the model could not learn "
                "where an answer ends; set one in its tokenizer_config.json"
            )
        return end

    @cached_property
    def _other_ends(self) -> list[int]:
        """Special tokens that may end what a model sampled, but that end no target."""
        return sorted(control_token_ids(self.tokenizer) - self._reader.mark_ids)

    def add_question(self, row: dict[str, Any], selection: Selection) -> None:
        """Grade a ledger row's paths again and divide them into kept and dropped."""
        question = Question.from_row(row)
        overlaps = self.evaluation.datasets_sharing(question) if self.evaluation else []
        paths = [
            self._measured(question, path)
            for path in stored_paths(row, question, self.settings.read_last)
        ]
        tried = Tries.of(paths, self.settings)
        graded = GradedQuestion(question, tried.used, self.settings, bool(overlaps))
        kept, reasons = filter_paths(graded)
        reasons |= tried.unused
        selection.counts.append(
            {
                "dataset": question.dataset,
                "num_paths": len(paths),
                "num_guessed": num_guessed_kept(graded, kept),
                "num_kept_by_truth": (
                    num_kept_by_truth(graded) if self.settings.verdict == "random" else 0
                ),
                "num_control_tokens": num_control_tokens(self.tokenizer, question.text),
                "overlaps_with": overlaps,
                "num_hinted_tokens": tried.num_hinted_tokens,
                "num_unhinted_tokens": tried.num_unhinted_tokens,
            }
        )
        by_id = {path.path_id: path for path in paths}
        # A path is needed up to three times, so it is tokenized once.
        example = cache(lambda path_id: self._example(graded, by_id[path_id], "evaluation"))
        selection.examples += [each.to_row() for each in self._examples(graded, kept, example)]
        selection.dropped += [
            {"path_id": path_id, "dataset": question.dataset, "reason": reason}
            for path_id, reason in reasons.items()
        ]
        wrong = wrong_paths(graded, reasons)
        selection.pairs += [
            example(chosen.path_id).preferred_to(example(rejected.path_id))
            for chosen, rejected in _same_prompt_pairs(kept, wrong)
        ]
        selection.unpaired += [
            example(path.path_id).labelled(is_right=is_right)
            for of_label, is_right in ((kept, True), (wrong, False))
            for path in of_label[: self.settings.max_per_question]
            if self.settings.verdict in JUDGING  # otherwise kept paths need not be right
        ]
        if graded.num_tries:
            selection.prompts.append(_rl_prompt(graded))

    def _measured(self, question: Question, path: ReasoningPath) -> ReasoningPath:
        """The path with the length of the target that it would give."""
        if path.error or not path.is_finished:
            return path
        shown = path.shown_question(question)
        return replace(path, num_learned_tokens=len(self._target(shown, path).token_ids))

    def _examples(
        self,
        graded: GradedQuestion,
        kept: Sequence[ReasoningPath],
        example: Callable[[str], Example],
    ) -> Iterator[Example]:
        """The examples of one question: each kept path in each form, then its given solution.

        `example` returns the example of a path id in the evaluation's form.
        """
        for number, path in enumerate(kept):
            for form in self.settings.forms:
                if form == "evaluation":
                    yield example(path.path_id)
                elif form != "answer_only" or number == 0:  # all have the same answer
                    yield self._example(graded, path, form)
        yield from self._gold(graded)

    def _example(self, graded: GradedQuestion, path: ReasoningPath, form: Form) -> Example:
        question = path.shown_question(graded.question)
        if form == "answer_only":
            target = self._edited(box(path.shown_answer, question.answer_type))
        else:
            target = self._target(question, path)
        prompt = learned_messages(question, form)
        return Example(
            example_id=path.path_id if form == "evaluation" else f"{path.path_id}/{form}",
            question_id=question.question_id,
            dataset=question.dataset,
            form=form,
            prompt=prompt,
            prompt_token_ids=prompt_ids(self.tokenizer, prompt, self.template_args),
            target=target,
            guideline_id=path.guideline_id,
            pass_number=path.pass_number,
            vote_share=graded.votes.share(path.predicted),
            guessed_share=graded.guessed_share,
        )

    def _gold(self, graded: GradedQuestion) -> Iterator[Example]:
        """The example from what the question came with, if that is used and no filter of questions
        or length excludes it."""
        question, verdict = graded.question, self.settings.verdict
        if verdict == "gold_answers":
            form, target = GOLD_ANSWER, self._edited(box(question.answer, question.answer_type))
        elif question.solution and (
            self.settings.original_solutions or verdict == "gold_solutions"
        ):
            form, target = ORIGINAL, self._original_target(question)
        else:
            return
        is_out = graded.is_contaminated and self.settings.contamination.drop
        is_long = len(target.token_ids) > self.settings.max_target_tokens
        if is_out or is_long or why_question_unused(graded):
            return
        prompt = answer_messages(question)
        yield Example(
            example_id=f"{form}/{question.question_id}",
            question_id=question.question_id,
            dataset=question.dataset,
            form=form,
            prompt=prompt,
            prompt_token_ids=prompt_ids(self.tokenizer, prompt, self.template_args),
            target=target,
        )

    def _original_target(self, question: Question) -> Target:
        if not self.settings.add_boxed_answer:
            return replace(self._edited(question.solution), answer_added=False)
        return self._edited(with_boxed_answer(question.solution, question, question.answer))

    def _edited(self, text: str) -> Target:
        """The target for a text that no model sampled, as `_target` returns it."""
        return self._written("" if self._opened else None, text)

    def _target(self, question: Question, path: ReasoningPath) -> Target:
        """The target of a solution."""
        thinking = self._learned_thinking(path)
        stated = path.read_as in (ReadAs.BOXED, ReadAs.NOTHING)
        if self.settings.add_boxed_answer and not stated:
            boxed = with_boxed_answer(path.reasoning, question, path.shown_answer)
            return self._written(thinking, boxed)
        sampled = self._sampled(path, thinking)
        return sampled or replace(self._written(thinking, path.reasoning), answer_added=False)

    def _sampled(self, path: ReasoningPath, thinking: str | None) -> Target | None:
        """The target with the sampled ids, which are what the model really wrote.

        None if they decode to another text, contain other marks of thinking than a target must
        have, or are unknown; the text is then tokenized again.
        """
        ids = end_turn(path.token_ids, self._end, self._other_ends)
        turn = self._reader.read(ids[:-1], self._opened)
        is_left_out = turn.thinking is not None and thinking is None
        has_its_tags = self._reader.num_marks(ids) in ((1,) if self._opened else (0, 2))
        is_same = (turn.answer or "").strip() == path.reasoning
        if not path.token_ids or is_left_out or not has_its_tags or not is_same:
            return None
        text = f"{self._opened}{self.tokenizer.decode(ids[:-1])}".strip()
        return Target(path.reasoning if turn.thinking is None else text, ids, answer_added=False)

    def _learned_thinking(self, path: ReasoningPath) -> str | None:
        """The thinking that is learned with a solution; None if there was none or it is left
        out."""
        if self._opened:
            return path.thinking
        if self.settings.thinking == "strip":
            return None
        if not path.token_ids:
            return path.thinking or None
        return path.thinking if self._reader.read(path.token_ids).thinking is not None else None

    def _written(self, thinking: str | None, answer: str) -> Target:
        """A target whose text is tokenized, without the part that the prompt has already begun."""
        text = self._format.write(thinking, answer)
        if self._opened:
            text = f"{self._opened}{text.removeprefix(self._format.begin)}"
        ids = self._ids(text.removeprefix(self._opened), answer)
        shown = answer if thinking is None else text
        return Target(shown, end_turn(ids, self._end), answer_added=True)

    def _ids(self, text: str, answer: str) -> list[int]:
        """The ids of a text that ends with an answer, in which no characters are control tokens."""
        if not num_control_tokens(self.tokenizer, answer):
            return target_ids(self.tokenizer, text)
        head = target_ids(self.tokenizer, text.removesuffix(answer))
        return [*head, *typed_ids(self.tokenizer, answer)]


def _same_prompt_pairs(
    kept: Sequence[ReasoningPath], wrong: Sequence[ReasoningPath]
) -> Iterator[tuple[ReasoningPath, ReasoningPath]]:
    """Each kept path with a wrong one of the same prompt, as long as there are any."""
    rejected = list(wrong)
    for chosen in kept:
        same_prompt = (p for p in rejected if p.option_order == chosen.option_order)
        other = next(same_prompt, None)
        if other is not None:
            rejected.remove(other)
            yield chosen, other


def _rl_prompt(graded: GradedQuestion) -> dict[str, Any]:
    question = graded.question
    return {
        "question_id": question.question_id,
        "dataset": question.dataset,
        "prompt": answer_messages(question),
        "answer": question.answer,
        "answer_type": question.answer_type,
        "choices": list(question.choices),
        "pass_rate": graded.num_right / graded.num_tries,
        "num_tries": graded.num_tries,
    }


def with_boxed_answer(solution: str, question: Question, answer: str) -> str:
    """The solution followed by its answer in the format that the prompt asks for."""
    return f"{solution}\n\nThe final answer is {box(answer, question.answer_type)}."


def select_examples(rows: Iterable[dict[str, Any]], selector: ExampleSelector) -> Selection:
    """Select from ledger rows. The result does not depend on the order of the rows."""
    selection = Selection()
    for row in rows:
        selector.add_question(row, selection)
    return selection


# --- the step ----------------------------------------------------------------------------------


def select_step_examples(
    paths: Folder,
    questions: Questions,
    held_out: Questions,
    settings: ExampleSettings,
    start: Model,
    template_args: Mapping[str, Any],
    output: Folder | None,
) -> dict[str, Any]:
    """Select the examples of a step's questions and write them; returns the manifest's facts.

    Without an `output` nothing is written. Runs as a task, off the driver: Ray Data distributes the
    index of the ledger's files to all CPUs of the cluster, where their rows are graded and
    tokenized once into Arrow. Raises `InputError` as `ExampleSelector` does.
    """
    words = EvaluationWords.of(held_out.read(), settings.contamination.num_words)
    _selector(start, settings, template_args, words)  # refuses bad settings here
    ledger = Ledger.read(paths).of(questions.keys())
    tables = _map_ledger(ledger, (start, settings, template_args, words))
    if has_limits(settings):
        _keep_limits(tables, settings)
    if output is not None:
        for kind, name in _FOLDERS.items():
            folder = output.child(name) if name else output
            _write_sorted(tables[kind], folder, name or "train")
    return _facts(tables, settings)


def _map_ledger(ledger: Ledger, selector: tuple[Any, ...]) -> Tables:
    """What is selected from a ledger; one block for each of its files."""
    tables: Tables = {kind: [schema.empty_table()] for kind, schema in _SCHEMAS.items()}
    indices = [of_file.index for of_file in ledger.split()]
    empty = replace(ledger, index=ledger.index.slice(length=0))
    if len(indices) == 1:  # a worker would import the tokenizer's packages again, for no gain
        blocks = [_select_block(indices[0], empty, *selector)]
    else:
        blocks = map_blocks(_select_block, indices, empty, *selector)
    for block in blocks:
        for kind in tables:
            rows = pc.list_flatten(block.column(kind)).combine_chunks()
            tables[kind].append(pa.Table.from_struct_array(rows))
    return tables


def _select_block(
    index: pa.Table,
    ledger: Ledger,
    start: Model,
    settings: ExampleSettings,
    template_args: Mapping[str, Any],
    evaluation: EvaluationWords,
) -> pa.Table:
    """The block for the rows that a part of the ledger's index names."""
    selector = _selector(start, settings, template_args, evaluation)
    return select_examples(replace(ledger, index=index).rows(), selector).to_block()


def _selector(
    start: Model,
    settings: ExampleSettings,
    template_args: Mapping[str, Any],
    evaluation: EvaluationWords,
) -> ExampleSelector:
    return ExampleSelector(
        settings, load_tokenizer(start.fetch("small")), template_args, evaluation
    )


def _keep_limits(tables: Tables, settings: ExampleSettings) -> None:
    """Remove what exceeds the limits over all questions, and record the reason for each path."""
    wanted = wanted_of(pa.concat_tables(tables["counts"]))
    over = over_limits(kept_of(tables["examples"]), wanted, settings)
    gone = pa.array([name for each, _ in over for name in each.example_ids], pa.string())
    tables["examples"] = [without(table, "example_id", gone) for table in tables["examples"]]
    rows = [
        {"path_id": each.source_id, "dataset": each.dataset, "reason": reason}
        for each, reason in over
        if each.is_path
    ]
    out = pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA)
    tables["dropped"].append(out)
    # They are not preferred to others either.
    for kind, column in (("pairs", "chosen_id"), ("unpaired", "example_id")):
        tables[kind] = [without(table, column, out.column("path_id")) for table in tables[kind]]


def _facts(tables: Tables, settings: ExampleSettings) -> dict[str, Any]:
    """The counts overall and for each dataset."""
    kept = pa.concat_tables([_small(_with_lengths(table)) for table in tables["examples"]])
    dropped = pa.concat_tables([_small(table) for table in tables["dropped"]])
    counts = pa.concat_tables(tables["counts"])
    names = {name for t in (counts, kept) for name in pc.unique(t.column("dataset")).to_pylist()}
    return {
        "num_paths": pc.sum(counts.column("num_paths")).as_py() or 0,
        "num_kept_paths": _of_paths(kept, settings).num_rows,
        "num_examples": kept.num_rows,
        **_what_is_learned(kept),
        "num_control_tokens": pc.sum(counts.column("num_control_tokens")).as_py() or 0,
        "num_hinted": pc.sum(pc.equal(kept.column("pass"), HINTED)).as_py() or 0,
        "num_preference_pairs": sum(table.num_rows for table in tables["pairs"]),
        "num_unpaired_preferences": sum(table.num_rows for table in tables["unpaired"]),
        "dropped": _by_reason(dropped),
        **_retry_facts(counts),
        "datasets": {
            name: _dataset_facts(_of(kept, name), _of(dropped, name), _of(counts, name), settings)
            for name in sorted(names)
        },
    }


def _retry_facts(counts: pa.Table) -> dict[str, Any]:
    """Tokens that were generated with and without a hint, if there are retries without one."""
    tokens = {
        kind: pc.sum(counts.column(f"num_{kind}_tokens")).as_py() or 0
        for kind in ("hinted", "unhinted")
    }
    return {"retry_tokens": tokens} if tokens["unhinted"] else {}


def _of(table: pa.Table, dataset: str) -> pa.Table:
    return table.filter(pc.equal(table.column("dataset"), dataset))


def _by_reason(dropped: pa.Table) -> dict[str, int]:
    return dict(Counter(dropped.column("reason").to_pylist()).most_common())


def _with_lengths(examples: pa.Table) -> pa.Table:
    """The examples with their numbers of tokens."""
    for kind in ("prompt", "target"):
        lengths = pc.list_value_length(examples.column(f"{kind}_token_ids"))
        examples = examples.append_column(f"num_{kind}_tokens", lengths)
    return examples


def _what_is_learned(kept: pa.Table) -> dict[str, int]:
    """How many targets were edited, and how long prompts and targets are, in tokens."""
    columns = {
        "num_answers_added": "answer_added",
        "num_prompt_tokens": "num_prompt_tokens",
        "num_learned_tokens": "num_target_tokens",
    }
    return {fact: pc.sum(kept.column(name)).as_py() or 0 for fact, name in columns.items()}


_SMALL = {
    *("dataset", "reason", "answer_added", "pass", "lucky_share", "form"),
    *("num_prompt_tokens", "num_target_tokens"),
}


def _small(table: pa.Table) -> pa.Table:
    """A table without its long columns."""
    return table.select([name for name in table.column_names if name in _SMALL])


def _of_paths(kept: pa.Table, settings: ExampleSettings) -> pa.Table:
    """One example for each kept path."""
    with_reasoning = [form for form in settings.forms if form != "answer_only"]
    first = [*with_reasoning, "answer_only"][0]
    return kept.filter(pc.equal(kept.column("form"), first))


def _guessed_share(kept: pa.Table, num_guessed: float) -> float | None:
    """None if nothing is kept, or if the truth is not used."""
    is_known = kept.column("lucky_share").null_count < kept.num_rows
    return round(min(1.0, num_guessed / kept.num_rows), 6) if is_known else None


def _dataset_facts(
    kept: pa.Table, dropped: pa.Table, counts: pa.Table, settings: ExampleSettings
) -> dict[str, Any]:
    of_paths = _of_paths(kept, settings)
    num_guessed = pc.sum(counts.column("num_guessed")).as_py() or 0.0
    overlaps = pc.list_flatten(counts.column("overlaps_with")).to_pylist()
    return {
        "num_paths": pc.sum(counts.column("num_paths")).as_py() or 0,
        "num_kept_paths": of_paths.num_rows,
        "num_examples": kept.num_rows,
        **_what_is_learned(kept),
        "expected_lucky_share": _guessed_share(of_paths, num_guessed),
        "dropped": _by_reason(dropped),
        "overlaps_with": dict(sorted(Counter(overlaps).items())),
    }


def _write_sorted(tables: list[pa.Table], folder: Folder, name: str) -> None:
    """Write the rows in the order of their ids, whichever block they came from.

    Each file is sorted separately, because Arrow cannot sort a text column of more than 2 GiB.
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
