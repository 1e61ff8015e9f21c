from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pytest
from datasets import load_dataset

from cluster.chat import load_tokenizer, prompt_ids
from cluster.storage import Folder
from evaluation.prompt import answer_messages
from evaluation.question import Question
from pipelines.examples import (
    ExampleSelector,
    ExampleSettings,
    Selection,
    select_examples,
    with_boxed_answer,
    write_selection,
)

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")


def path(name: str, reasoning: str, **changes: Any) -> dict[str, Any]:
    return {
        "path_id": f"0/regenesis/d/train/1/{name}/0/0",
        "guideline_id": name,
        "reasoning": reasoning,
        "thinking": "",
        "token_ids": [5, 6, 7],
        "generations": [{"finish_reason": "stop"}],
        "error": None,
    } | changes


def select(
    model: Path, *paths: dict[str, Any], question: Question = QUESTION, **settings: Any
) -> Selection:
    selector = ExampleSelector(ExampleSettings(**settings), load_tokenizer(str(model)), {})
    rows = [{"question_id": question.question_id, "paths": list(paths)}]
    return select_examples(rows, lambda _: question, selector)


def test_selection_counts_every_path_once_with_its_reason(model_folder: Path) -> None:
    cut = [{"finish_reason": "length"}]
    selection = select(
        model_folder,
        path("a", "It is \\boxed{4}"),
        path("b", "It is \\boxed{5}"),
        path("c", "No idea"),
        path("d", "It is \\boxed{4}"),
        path("e", "Surely \\boxed{4}", generations=cut),
        path("f", "", generations=[], error="adapt: too long"),
        path("g", "Yes, \\boxed{4}", token_ids=list(range(801))),
    )
    assert [example["guideline_id"] for example in selection.examples] == ["a"]
    assert selection.reasons() == {
        "wrong": 1,
        "no_answer": 1,
        "duplicate": 1,
        "truncated": 1,
        "error": 1,
        "too_long": 1,
    }
    assert selection.num_paths == 7


def test_selection_draws_at_most_k_whatever_the_order(model_folder: Path) -> None:
    paths = [path(f"g{n}", f"Way {n}: \\boxed{{4}}") for n in range(9)]
    first = select(model_folder, *paths, max_per_question=3)
    random.Random(0).shuffle(paths)
    second = select(model_folder, *paths, max_per_question=3)
    other_seed = select(model_folder, *paths, max_per_question=3, seed=1)
    assert first.examples == second.examples
    assert len(first.examples) == 3
    assert first.reasons() == {"over_max_per_question": 6}
    assert [e["example_id"] for e in other_seed.examples] != [
        e["example_id"] for e in first.examples
    ]


def test_example_unedited_path_is_learned_by_its_sampled_ids(model_folder: Path) -> None:
    example = select(model_folder, path("a", "It is \\boxed{4}")).examples[0]
    eos = load_tokenizer(str(model_folder)).eos_token_id
    assert example["target_token_ids"] == [5, 6, 7, eos]
    ended = select(model_folder, path("a", "It is \\boxed{4}", token_ids=[5, eos])).examples[0]
    assert ended["target_token_ids"] == [5, eos]
    assert not example["answer_added"]


def test_example_unboxed_answer_is_written_in_the_format_asked_for(model_folder: Path) -> None:
    selection = select(model_folder, path("a", "So the answer is 4."))
    example = selection.examples[0]
    tokenizer = load_tokenizer(str(model_folder))
    text = tokenizer.decode(example["target_token_ids"])
    assert text == "So the answer is 4.\n\nThe final answer is \\boxed{4}.<|end|>"
    assert example["messages"][-1]["content"] + "<|end|>" == text
    assert selection.num_answers_added == 1


def test_example_prompt_ids_are_those_of_the_evaluation(model_folder: Path) -> None:
    example = select(model_folder, path("a", "It is \\boxed{4}")).examples[0]
    tokenizer = load_tokenizer(str(model_folder))
    assert example["prompt_token_ids"] == prompt_ids(tokenizer, answer_messages(QUESTION), {})
    assert example["messages"][:-1] == answer_messages(QUESTION)


def test_example_thinking_is_not_learned_with_the_answer(model_folder: Path) -> None:
    thought = path("a", "It is \\boxed{4}", thinking="hm", token_ids=[1, 2, 3])
    example = select(model_folder, thought).examples[0]
    tokenizer = load_tokenizer(str(model_folder))
    assert tokenizer.decode(example["target_token_ids"]) == "It is \\boxed{4}<|end|>"


@pytest.mark.parametrize(("read_last", "num"), [((), 0), (("number",), 1)])
def test_selection_last_number_counts_only_when_the_config_says(
    model_folder: Path, read_last: tuple[str, ...], num: int
) -> None:
    selection = select(model_folder, path("a", "2 and 2 makes 4"), read_last=read_last)
    assert len(selection.examples) == num


def test_selection_loads_in_datasets_and_arrow(model_folder: Path, tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "examples"))
    selection = select(model_folder, path("a", "\\boxed{4}"), path("b", "\\boxed{5}"))
    write_selection(selection, folder)
    folder.commit({"step": "examples"})
    loaded = load_dataset(
        "parquet", data_files=f"{folder.path}/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert loaded[0]["messages"][0]["role"] == "user"
    arrow = pyarrow.dataset.dataset(f"{folder.path}/train-00000.parquet").to_table()
    assert arrow.num_rows == loaded.num_rows == 1
    dropped = folder.child("dropped").read_table().to_pylist()
    assert [row["reason"] for row in dropped] == ["wrong"]


def test_boxed_answer_is_added_after_the_solution() -> None:
    assert with_boxed_answer("Done.", QUESTION) == "Done.\n\nThe final answer is \\boxed{4}."
