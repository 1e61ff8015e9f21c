from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest
from datasets import load_dataset

from cluster.errors import InputError
from cluster.inference.schedule import Questions, chunk_folder
from cluster.models.chat_template import load_tokenizer, prompt_ids, target_ids
from cluster.models.model import Model
from cluster.remote import run_task
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.thinking import read_turn
from commands.select import format_selection
from evaluation.prompt import answer_messages
from evaluation.question import Question, question_table
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.filters import ExampleSettings
from pipelines.selection.select_examples import (
    COUNTS_SCHEMA,
    DROPPED_SCHEMA,
    ROWS_PER_FILE,
    ExampleSelector,
    Selection,
    _keep_limits,
    _write_sorted,
    select_examples,
    select_step_examples,
    with_boxed_answer,
)
from pipelines.steps.examples import summary
from pipelines.synthesis.handler import PATHS_SCHEMA

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is 2 + 2?", "4", "number")


def byte_ids(text: str) -> list[int]:
    """The ids of a text for the small model, whose tokens are bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    ids = {letter: number for number, letter in enumerate(sorted(letters.values()))}
    return [ids[letters[byte]] for byte in text.encode()]


def path(name: str, reasoning: str, **changes: Any) -> dict[str, Any]:
    return {
        "path_id": f"0/regenesis/d/train/1/{name}/0/0",
        "guideline_id": name,
        "pass": 0,
        "option_order": [],
        "structure": "",
        "reasoning": reasoning,
        "thinking": "",
        "token_ids": byte_ids(reasoning),
        "judged": None,
        "generations": [{"stage": "path", "finish_reason": "stop"}],
        "error": None,
    } | changes


def select(
    model: Path, *paths: dict[str, Any], question: Question = QUESTION, **settings: Any
) -> Selection:
    selector = ExampleSelector(ExampleSettings(**settings), load_tokenizer(str(model)), {})
    return select_examples([question.to_row() | {"paths": list(paths)}], selector)


def reasons(selection: Selection) -> dict[str, int]:
    return dict(Counter(row["reason"] for row in selection.dropped))


def test_selection_counts_every_path_once_with_its_reason(model_folder: Path) -> None:
    cut = [{"stage": "path", "finish_reason": "length"}]
    selection = select(
        model_folder,
        path("a", "It is \\boxed{4}"),
        path("b", "It is \\boxed{5}"),
        path("c", "No idea"),
        path("d", "It is \\boxed{4}"),
        path("e", "Surely \\boxed{4}", generations=cut),
        path("f", "", generations=[], error="adapt: too long"),
        path("g", "Yes, " * 160 + "\\boxed{4}"),
    )
    assert [example["guideline_id"] for example in selection.examples] == ["a"]
    assert reasons(selection) == {
        "wrong": 1,
        "no_answer": 1,
        "duplicate": 1,
        "truncated": 1,
        "error": 1,
        "too_long": 1,
    }
    assert len(selection.examples) + len(selection.dropped) == 7
    assert {row["dataset"] for row in selection.dropped} == {"d"}


def test_selection_draws_at_most_k_whatever_the_order(model_folder: Path) -> None:
    paths = [path(f"g{n}", f"Way {n}: \\boxed{{4}}") for n in range(9)]
    first = select(model_folder, *paths, max_per_question=3)
    random.Random(0).shuffle(paths)
    second = select(model_folder, *paths, max_per_question=3)
    other_seed = select(model_folder, *paths, max_per_question=3, seed=1)
    assert first.examples == second.examples
    assert len(first.examples) == 3
    assert reasons(first) == {"over_max_per_question": 6}
    assert [e["example_id"] for e in other_seed.examples] != [
        e["example_id"] for e in first.examples
    ]


def test_example_unedited_path_is_learned_by_its_sampled_ids(model_folder: Path) -> None:
    example = select(model_folder, path("a", "It is \\boxed{4}")).examples[0]
    eos = load_tokenizer(str(model_folder)).eos_token_id
    ids = byte_ids("It is \\boxed{4}")
    assert example["target_token_ids"] == [*ids, eos]
    sampled = [*byte_ids("\n"), *ids, eos]
    ended = select(model_folder, path("a", "It is \\boxed{4}", token_ids=sampled)).examples[0]
    assert ended["target_token_ids"] == sampled
    assert not example["answer_added"]


def test_example_unboxed_answer_is_written_in_the_format_asked_for(model_folder: Path) -> None:
    selection = select(model_folder, path("a", "So the answer is 4."))
    example = selection.examples[0]
    tokenizer = load_tokenizer(str(model_folder))
    text = tokenizer.decode(example["target_token_ids"])
    assert text == "So the answer is 4.\n\nThe final answer is \\boxed{4}.<|end|>"
    assert example["messages"][-1]["content"] + "<|end|>" == text
    assert example["answer_added"]


def test_example_prompt_ids_are_those_of_the_evaluation(model_folder: Path) -> None:
    example = select(model_folder, path("a", "It is \\boxed{4}")).examples[0]
    tokenizer = load_tokenizer(str(model_folder))
    assert example["prompt_token_ids"] == prompt_ids(tokenizer, answer_messages(QUESTION), {})
    assert example["messages"][:-1] == answer_messages(QUESTION)


@pytest.fixture
def thinking_model(model_folder: Path, tmp_path: Path) -> Path:
    """The small model with a chat template that begins the thinking in the prompt."""
    folder = shutil.copytree(model_folder, tmp_path / "thinking")
    template = folder / "chat_template.jinja"
    opened = template.read_text().replace("assistant\n", "assistant\n<think>\n")
    assert opened != template.read_text()
    template.write_text(opened)
    return folder


ANSWER = "It is \\boxed{4}"
THOUGHT = f"<think>\nhm\n</think>\n\n{ANSWER}"


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("sampled", [THOUGHT, THOUGHT.removeprefix("<think>\n"), ANSWER])
@pytest.mark.parametrize("thinking", ["strip", "keep"])
@pytest.mark.parametrize("boxed", [True, False])
def test_example_thinking_is_learned_whole_or_not_at_all(
    opened: bool,
    sampled: str,
    thinking: str,
    boxed: bool,
    model_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue("thinking_model") if opened else model_folder
    tokenizer = load_tokenizer(str(model))
    text = sampled if boxed else sampled.replace("\\boxed{4}", "4.")
    turn = read_turn(text)
    thought, answer = turn.thinking, turn.answer or ""
    ids = target_ids(tokenizer, text)
    one = path("a", answer.strip(), thinking=thought or "", token_ids=ids)
    if opened and thinking == "strip":
        with pytest.raises(InputError, match=r"examples\.thinking: strip, but the chat template"):
            select(model, one, thinking=thinking)
        return
    [example] = select(model, one, thinking=thinking).examples
    shown, learned = (
        tokenizer.decode(example[f"{part}_token_ids"]) for part in ("prompt", "target")
    )
    answered = shown.rpartition("assistant\n")[2] + learned
    kept = bool(thought) and thinking == "keep"
    assert answered.count("<think>") == answered.count("</think>") == int(kept or opened)
    assert ("hm" in answered) == kept
    assert answered.endswith("\\boxed{4}<|end|>" if boxed else "\\boxed{4}.<|end|>")
    assert example["messages"][-1]["content"] + "<|end|>" == answered
    if boxed and learned == text + "<|end|>":
        assert example["target_token_ids"][:-1] == ids


def test_example_sampled_thinking_is_learned_by_its_own_ids(model_folder: Path) -> None:
    tokenizer = load_tokenizer(str(model_folder))
    ids = target_ids(tokenizer, f"<think>\nhm  </think> {ANSWER}")
    sampled = path("a", ANSWER, thinking="hm", token_ids=ids)
    [example] = select(model_folder, sampled, thinking="keep").examples
    assert example["target_token_ids"] == [*ids, tokenizer.eos_token_id]


def test_example_of_a_server_that_tells_no_ids_is_learned_with_its_thinking(
    model_folder: Path,
) -> None:
    asked = path("a", ANSWER, thinking="hm", token_ids=[])
    [kept] = select(model_folder, asked, thinking="keep").examples
    assert kept["messages"][-1]["content"] == THOUGHT
    [bare] = select(model_folder, asked | {"thinking": ""}, thinking="keep").examples
    assert bare["messages"][-1]["content"] == ANSWER


def test_example_control_token_that_a_solution_spells_out_is_learned_as_text(
    model_folder: Path,
) -> None:
    tokenizer = load_tokenizer(str(model_folder))
    text = f"The mark <|turn|> begins a turn. {ANSWER}"
    [example] = select(model_folder, path("a", text, token_ids=[])).examples
    assert example["target_token_ids"] == [*byte_ids(text), tokenizer.eos_token_id]


def test_examples_of_a_tokenizer_without_an_end_are_refused(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            facts = json.loads((folder / name).read_text())
            facts.pop("eos_token", None)
            (folder / name).write_text(json.dumps(facts))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|end|>", "\n"))
    with pytest.raises(InputError, match="has no eos_token"):
        select(folder, path("a", ANSWER))


@pytest.mark.parametrize(("read_last", "num"), [((), 0), (("number",), 1)])
def test_selection_last_number_counts_only_when_the_config_says(
    model_folder: Path, read_last: tuple[str, ...], num: int
) -> None:
    selection = select(model_folder, path("a", "2 and 2 makes 4"), read_last=read_last)
    assert len(selection.examples) == num


def test_selection_question_that_was_set_aside_has_nothing_to_learn(model_folder: Path) -> None:
    selector = ExampleSelector(ExampleSettings(), load_tokenizer(str(model_folder)), {})
    aside = QUESTION.to_row() | {"error": "a fault"}
    rows = [aside | {"paths": []}, aside | {"paths": None}]
    nothing = {"dataset": "d", "num_paths": 0, "num_guessed": 0.0, "num_kept_by_truth": 0}
    nothing |= {"overlaps_with": [], "num_control_tokens": 0}
    nothing |= {"num_hinted_tokens": 0, "num_unhinted_tokens": 0}
    assert select_examples(rows, selector) == Selection(counts=[nothing, nothing])


def test_selection_judges_by_todays_grader(model_folder: Path) -> None:
    old = path("a", "It is \\boxed{4}", verdict="wrong", predicted="7", read_as="last")
    assert len(select(model_folder, old).examples) == 1


def test_selected_shares_are_one_table_in_the_order_of_ids(tmp_path: Path) -> None:
    ids = [f"{number:06d}" for number in range(2 * ROWS_PER_FILE + 1)]
    random.Random(0).shuffle(ids)
    shares = [
        pa.Table.from_pylist([{"path_id": id_} for id_ in ids[start::3]], schema=DROPPED_SCHEMA)
        for start in range(3)
    ]
    folder = Folder.open(str(tmp_path))
    _write_sorted(shares, folder, "dropped")
    assert folder.file_names() == [f"dropped-0000{number}.parquet" for number in range(3)]
    assert folder.read_table().column("path_id").to_pylist() == sorted(ids)
    _write_sorted([], folder.child("empty"), "train")
    assert folder.child("empty").file_names() == []


def training_questions(number: int) -> list[Question]:
    return [
        Question(f"d/train/{n}", "d", "train", "in_domain", f"{n} + 2?", str(n + 2), "number")
        for n in range(number)
    ]


def write_paths(
    folder: Folder, questions: list[Question], rows_per_part: int = 2, *, hinted: bool = False
) -> None:
    """For each question a right path, one without a box, and a wrong one."""
    rows = [
        question.to_row()
        | {
            "question_fingerprint": question.fingerprint,
            "attempt": 0,
            "paths": [
                path("a", f"It is \\boxed{{{question.answer}}}", **{"pass": int(hinted)}),
                path("b", f"The answer is {question.answer}."),
                path("c", "It is \\boxed{-1}"),
            ],
        }
        for question in questions
    ]
    for row in rows:
        for one in row["paths"]:
            one["path_id"] = f"0/regenesis/{row['question_id']}/{one['guideline_id']}/0/0"
    for number, start in enumerate(range(0, len(rows), rows_per_part)):
        writer = PartWriter(folder.child(chunk_folder("1", number)), PATHS_SCHEMA)
        writer.write(rows[start : start + rows_per_part])


def held_out(questions: Questions) -> Questions:
    return Questions(questions.folder, ("dev", "test"))


def stored(folder: Folder, questions: list[Question]) -> Questions:
    folder.write_table("questions.parquet", question_table(questions))
    return Questions(folder, ("train",))


def test_step_examples_are_written_sorted_whichever_files_the_rows_are_in(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = training_questions(7)
    write_paths(root.child("paths"), questions)
    asked = stored(root.child("questions"), questions[:6])  # the last is not asked for any more
    settings, model = ExampleSettings(), Model("tiny", str(model_folder), str(tmp_path / "cache"))
    outputs = [root.child("examples"), root.child("examples of compact files")]
    facts = []
    for output in outputs:
        facts.append(
            run_task(
                select_step_examples,
                root.child("paths"),
                asked,
                held_out(asked),
                settings,
                model,
                {},
                output,
            )
        )
        compact(root.child("paths"), PATHS_SCHEMA)
    of_all = {"num_paths": 18, "num_kept_paths": 12, "num_examples": 12, "dropped": {"wrong": 6}}
    of_dataset = {"expected_lucky_share": 0.0, "overlaps_with": {}}
    rows = outputs[0].read_table().to_pylist()
    learned = {
        "num_answers_added": 6,
        "num_prompt_tokens": sum(len(row["prompt_token_ids"]) for row in rows),
        "num_learned_tokens": sum(len(row["target_token_ids"]) for row in rows),
    }
    expected = {
        **of_all,
        **learned,
        "num_control_tokens": 0,
        "num_hinted": 0,
        "num_preference_pairs": 6,
        "num_unpaired_preferences": 18,
        "datasets": {"d": {**of_all, **learned, **of_dataset}},
    }
    assert facts == [expected] * 2
    for name in ("", "dropped", "preference_pairs", "rl_prompts", "unpaired_preferences"):
        folder, twin = (output.child(name) if name else output for output in outputs)
        table = folder.read_table()
        ids = table.column(0).to_pylist()
        assert ids == sorted(ids)
        assert len(set(ids)) == len(ids)
        assert table.equals(twin.read_table())
    assert outputs[0].walk() == [
        "dropped/dropped-00000.parquet",
        "preference_pairs/preference_pairs-00000.parquet",
        "rl_prompts/rl_prompts-00000.parquet",
        "train-00000.parquet",
        "unpaired_preferences/unpaired_preferences-00000.parquet",
    ]


def test_step_examples_load_in_datasets_and_arrow(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = training_questions(1)
    write_paths(root.child("paths"), questions)
    folder = root.child("examples")
    asked = stored(root.child("questions"), questions)
    select_step_examples(
        root.child("paths"),
        asked,
        held_out(asked),
        ExampleSettings(),
        Model("tiny", str(model_folder), str(tmp_path / "cache")),
        {},
        folder,
    )
    folder.commit({"step": "examples"})
    loaded = load_dataset(
        "parquet", data_files=f"{folder.path}/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert loaded[0]["messages"][0]["role"] == "user"
    arrow = pyarrow.dataset.dataset(f"{folder.path}/train-00000.parquet").to_table()
    assert arrow.num_rows == loaded.num_rows == 2
    dropped = folder.child("dropped").read_table().to_pylist()
    assert [row["reason"] for row in dropped] == ["wrong"]


def test_step_examples_of_no_rows_are_none(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    asked = stored(root.child("questions"), training_questions(2))
    facts = select_step_examples(
        root.child("paths"),
        asked,
        held_out(asked),
        ExampleSettings(),
        Model("tiny", str(model_folder), str(tmp_path / "cache")),
        {},
        root.child("examples"),
    )
    assert (facts["num_paths"], facts["num_examples"], facts["dropped"]) == (0, 0, {})
    assert root.child("examples").walk() == []


def test_step_examples_without_an_output_are_only_counted(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = training_questions(3)
    write_paths(root.child("paths"), questions)
    asked = stored(root.child("questions"), questions)
    model = Model("tiny", str(model_folder), str(tmp_path / "cache"))
    before = root.walk()
    settings = ExampleSettings(max_per_question=1)
    facts = select_step_examples(
        root.child("paths"), asked, held_out(asked), settings, model, {}, None
    )
    assert facts["dropped"] == {"wrong": 3, "over_max_per_question": 3}
    assert root.walk() == before


def test_boxed_answer_is_added_after_the_solution() -> None:
    boxed = with_boxed_answer("Done.", QUESTION, "4")
    assert boxed == "Done.\n\nThe final answer is \\boxed{4}."


OPTIONS = Question(
    "d/train/2", "d", "train", "in_domain", "Which?", "C", "choice", ("red", "green", "blue")
)


def test_example_of_shuffled_options_is_asked_as_its_path_was(model_folder: Path) -> None:
    # Shown as A) blue B) red C) green: the right answer's letter is A.
    shuffled = path("a", "Blue: the answer is (A).", option_order=[2, 0, 1])
    plain = path("b", "It is \\boxed{C}")
    wrong = path("c", "It is \\boxed{C}", option_order=[2, 0, 1])
    selection = select(model_folder, shuffled, plain, wrong, question=OPTIONS)
    assert reasons(selection) == {"wrong": 1}
    by_guideline = {example["guideline_id"]: example for example in selection.examples}
    asked, answered = by_guideline["a"]["messages"]
    assert "A) blue\nB) red\nC) green" in asked["content"]
    assert answered["content"].endswith("The final answer is \\boxed{A}.")
    assert "A) red\nB) green\nC) blue" in by_guideline["b"]["messages"][0]["content"]
    assert by_guideline["a"]["vote_share"] == pytest.approx(2 / 3), "both said blue"
    [pair] = selection.pairs
    assert pair["chosen_id"] == shuffled["path_id"]
    assert pair["rejected_id"] == wrong["path_id"], "only this one has the same prompt"


def test_preference_pairs_are_of_one_prompt_and_prompts_have_pass_rates(
    model_folder: Path,
) -> None:
    selection = select(
        model_folder,
        path("a", "It is \\boxed{4}"),
        path("b", "So \\boxed{4}"),
        path("c", "It is \\boxed{5}"),
        path("d", "No idea"),
    )
    [pair] = selection.pairs
    assert pair["prompt"] == answer_messages(QUESTION)
    assert pair["chosen"][0]["content"] in ("It is \\boxed{4}", "So \\boxed{4}")
    assert pair["rejected"] == [{"role": "assistant", "content": "It is \\boxed{5}"}]
    eos = load_tokenizer(str(model_folder)).eos_token_id
    assert pair["rejected_token_ids"] == [*byte_ids("It is \\boxed{5}"), eos]
    [prompt] = selection.prompts
    assert (prompt["pass_rate"], prompt["num_tries"], prompt["answer"]) == (0.5, 4, "4")
    assert prompt["prompt"] == answer_messages(QUESTION)


def test_unpaired_preferences_are_the_kept_paths_and_wrong_ones(model_folder: Path) -> None:
    cut = [{"stage": "path", "finish_reason": "length"}]
    selection = select(
        model_folder,
        path("a", "It is \\boxed{4}"),
        path("b", "So \\boxed{4}"),
        path("c", "It is \\boxed{5}"),
        path("d", "It is \\boxed{5}"),
        path("e", "I think it is \\boxed{6}", generations=cut),
        path("f", "Surely " * 120 + "\\boxed{7}"),
        path("g", "No idea"),
    )
    *right, wrong = selection.unpaired
    assert [row["label"] for row in right] == [True, True]
    for row, example in zip(right, selection.examples, strict=True):
        assert row["example_id"] == example["example_id"]
        assert row["completion_token_ids"] == example["target_token_ids"]
    assert not wrong["label"]
    assert wrong["completion"] == [{"role": "assistant", "content": "It is \\boxed{5}"}]
    for row in selection.unpaired:
        assert row["prompt"] == answer_messages(QUESTION)
        assert row["prompt_token_ids"] == selection.examples[0]["prompt_token_ids"]


def test_unpaired_preferences_hold_wrong_paths_of_questions_that_none_solved(
    model_folder: Path,
) -> None:
    wrong = [path(f"g{n}", f"It is \\boxed{{{n}}}") for n in range(3)]
    selection = select(model_folder, *wrong)
    assert selection.pairs == []
    assert [row["label"] for row in selection.unpaired] == [False] * 3
    assert len(select(model_folder, *wrong, max_per_question=2).unpaired) == 2
    left_out = select(model_folder, *wrong, pass_rate=(0.1, 1.0))
    assert left_out.unpaired == [], "the question is too hard, whichever way it is learnt"


def test_preferences_have_no_hinted_path_beyond_their_share(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = training_questions(4)
    write_paths(root.child("paths"), questions, hinted=True)
    asked = stored(root.child("questions"), questions)
    model = Model("tiny", str(model_folder), str(tmp_path / "cache"))
    forms: Any = ("plain", "evaluation")
    settings = ExampleSettings(max_hinted_share=0.0, max_per_question=2, forms=forms)
    output = root.child("examples")
    select_step_examples(root.child("paths"), asked, held_out(asked), settings, model, {}, output)
    ids = output.read_table().column("example_id").to_pylist()
    kept = {name.removesuffix("/plain") for name in ids}
    assert len(ids) == 2 * len(kept) > 0
    pairs = output.child("preference_pairs").read_table()
    assert set(pairs.column("chosen_id").to_pylist()) <= kept
    unpaired = output.child("unpaired_preferences").read_table().to_pylist()
    assert {row["example_id"] for row in unpaired if row["label"]} == kept


def test_majority_examples_say_their_share_and_keep_their_own_answer(model_folder: Path) -> None:
    paths = [path(f"g{n}", f"Way {n}: the answer is 5") for n in range(3)]
    selection = select(model_folder, *paths, path("w", "\\boxed{4}"), verdict="majority")
    assert reasons(selection) == {"minority": 1}
    for example in selection.examples:
        assert example["vote_share"] == pytest.approx(0.75)
        assert example["lucky_share"] is None
        assert example["messages"][-1]["content"].endswith("The final answer is \\boxed{5}.")


def within_limits(
    tables: list[pa.Table], settings: ExampleSettings, **counts: int
) -> tuple[list[pa.Table], pa.Table]:
    """The examples that may stay, and the paths that may not."""
    rows = [{"dataset": name, "num_kept_by_truth": number} for name, number in counts.items()]
    of_all = {
        "examples": tables,
        "dropped": [],
        "pairs": [],
        "unpaired": [],
        "counts": [pa.Table.from_pylist(rows, schema=COUNTS_SCHEMA)],
    }
    _keep_limits(of_all, settings)
    [out] = of_all["dropped"]
    return of_all["examples"], out


def kept_table(num_hinted: int, num_plain: int) -> pa.Table:
    rows = [
        {
            "example_id": f"{n:03d}",
            "dataset": "d",
            "pass": int(n < num_hinted),
            "form": "evaluation",
        }
        for n in range(num_hinted + num_plain)
    ]
    return pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA)


@pytest.mark.parametrize(
    ("share", "num_left"), [(1.0, 9), (0.5, 6), (0.25, 2), (0.0, 0), (0.99, 9)]
)
def test_hinted_examples_are_at_most_their_share(share: float, num_left: int) -> None:
    settings = ExampleSettings(max_hinted_share=share)
    whole = kept_table(9, 6)
    tables, out = within_limits([whole.slice(0, 5), whole.slice(5)], settings)
    left = pa.concat_tables(tables)
    hinted = sum(left.column("pass").to_pylist())
    assert hinted == num_left
    assert left.num_rows == 6 + num_left
    assert out.num_rows == 9 - num_left
    assert hinted <= share * left.num_rows + 1e-9
    one_share, _ = within_limits([whole], settings)
    assert one_share[0].equals(left), "which ones go does not depend on the shares"


def test_hinted_path_goes_with_the_examples_of_all_its_forms() -> None:
    forms = {"evaluation": "", "plain": "/plain", "answer_only": "/answer_only"}
    rows = [
        {"example_id": f"{n}{suffix}", "dataset": "d", "pass": int(n < 6), "form": form}
        for n in range(9)
        for form, suffix in forms.items()
        if form != "answer_only" or n == 0
    ]
    whole = pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA)
    [left], out = within_limits([whole], ExampleSettings(max_hinted_share=0.5))
    gone = set(out.column("path_id").to_pylist())
    assert gone < set("012345")
    ids = left.column("example_id").to_pylist()
    assert {name[0] for name in ids} == set("012345678") - gone
    assert len(ids) == sum(str(row["example_id"])[0] not in gone for row in rows)
    hinted = sum(left.column("pass").to_pylist())
    assert 4 <= hinted <= 6  # six plain ones; the next path would be too much


# --- forms and original solutions --------------------------------------------------------------


def test_each_path_is_learned_in_each_form_and_an_answer_alone_once(model_folder: Path) -> None:
    forms = ("evaluation", "plain", "answer_only")
    first, second = path("a", "It is \\boxed{4}"), path("b", "Two and two: \\boxed{4}")
    selection = select(model_folder, first, second, forms=forms)
    prompts = {
        row["example_id"].partition("/1/")[2]: row["messages"][0]["content"]
        for row in selection.examples
    }
    assert len(prompts) == len(selection.examples) == 5
    assert sum("step by step" in prompt for prompt in prompts.values()) == 2
    assert all(QUESTION.text in prompt for prompt in prompts.values())
    alone = [row for row in selection.examples if row["form"] == "answer_only"]
    assert [row["messages"][1]["content"] for row in alone] == ["\\boxed{4}"]
    tokenizer = load_tokenizer(str(model_folder))
    for row in selection.examples:
        asked = prompt_ids(tokenizer, row["messages"][:1], {})
        assert row["prompt_token_ids"] == asked
        if row["form"] == "answer_only":
            assert tokenizer.decode(row["target_token_ids"][:-1]) == "\\boxed{4}"
        else:  # what the model sampled
            assert row["target_token_ids"][:-1] == byte_ids(row["messages"][1]["content"])
    assert [row["num_paths"] for row in selection.counts] == [2]
    assert not selection.dropped


def test_original_solution_is_learned_beside_the_paths(model_folder: Path) -> None:
    question = replace(QUESTION, solution="Two and two make four.")
    wrong = path("a", "It is \\boxed{5}")
    assert not select(model_folder, wrong, question=question).examples
    (row,) = select(model_folder, wrong, question=question, original_solutions=True).examples
    assert row["example_id"] == f"original/{QUESTION.question_id}"
    assert (row["form"], row["guideline_id"], row["pass"]) == ("original", None, 0)
    solution = "Two and two make four.\n\nThe final answer is \\boxed{4}."
    assert row["messages"][1]["content"] == solution
    tokenizer = load_tokenizer(str(model_folder))
    assert tokenizer.decode(row["target_token_ids"][:-1]) == solution
    assert not select(model_folder, wrong, original_solutions=True).examples
    short = {"original_solutions": True, "max_target_tokens": 10}
    assert not select(model_folder, wrong, question=question, **short).examples


def test_facts_count_paths_and_not_their_forms(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = [replace(each, solution="Add two.") for each in training_questions(3)]
    write_paths(root.child("paths"), questions)
    asked = stored(root.child("questions"), questions)
    model = Model("tiny", str(model_folder), str(tmp_path / "cache"))
    settings = ExampleSettings(forms=("plain", "answer_only"), original_solutions=True)
    facts = select_step_examples(
        root.child("paths"), asked, held_out(asked), settings, model, {}, None
    )
    assert (facts["num_paths"], facts["num_kept_paths"]) == (9, 6)
    assert facts["num_examples"] == 6 + 3 + 3
    assert facts["datasets"]["d"]["num_kept_paths"] == 6
    assert facts["dropped"] == {"wrong": 3}


# --- controls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "text", "edited"),
    [
        ("gold_answers", "\\boxed{4}", True),
        ("gold_solutions", "Two and two.\n\nThe final answer is \\boxed{4}.", True),
    ],
)
def test_gold_is_learned_instead_of_paths(
    model_folder: Path, verdict: str, text: str, edited: bool
) -> None:
    question = replace(QUESTION, solution="Two and two.")
    selection = select(
        model_folder, path("a", "It is \\boxed{4}"), question=question, verdict=verdict
    )
    [example] = selection.examples
    assert example["messages"][-1]["content"] == text
    assert example["messages"][:-1] == answer_messages(question)
    assert example["answer_added"] == edited
    assert reasons(selection) == {"not_gold": 1}
    assert selection.pairs == selection.unpaired == []
    too_long = select(model_folder, question=question, verdict=verdict, max_target_tokens=3)
    assert too_long.examples == []
    unsolved = select(
        model_folder,
        path("a", "\\boxed{5}"),
        question=question,
        verdict=verdict,
        questions="solved",
    )
    assert unsolved.examples == []


def test_without_the_boxed_sentence_a_target_is_what_the_model_wrote(model_folder: Path) -> None:
    written = path("a", "So the answer is 4.")
    [example] = select(model_folder, written, add_boxed_answer=False).examples
    tokenizer = load_tokenizer(str(model_folder))
    *ids, last = example["target_token_ids"]
    assert tokenizer.decode(ids) == example["messages"][-1]["content"] == "So the answer is 4."
    assert last == tokenizer.eos_token_id
    assert not example["answer_added"]
    question = replace(QUESTION, solution="Two and two.")
    [_, own] = select(
        model_folder, written, question=question, add_boxed_answer=False, original_solutions=True
    ).examples
    assert own["messages"][-1]["content"] == "Two and two."
    assert not own["answer_added"]


def test_control_calls_nothing_it_keeps_right(model_folder: Path) -> None:
    paths = [path("a", "It is \\boxed{4}"), path("b", "It is \\boxed{5}")]
    for verdict in ("unfiltered", "random", "wrong_only"):
        selection = select(model_folder, *paths, verdict=verdict)
        assert selection.pairs == selection.unpaired == []
        assert len(selection.examples) == (1 if verdict == "wrong_only" else 2)


def test_limits_over_all_questions_and_the_tokens_that_are_left(
    model_folder: Path, tmp_path: Path, ray_cluster: str
) -> None:
    root = Folder.open(str(tmp_path))
    questions = training_questions(8)
    write_paths(root.child("paths"), questions)
    asked = stored(root.child("questions"), questions)
    model = Model("tiny", str(model_folder), str(tmp_path / "cache"))

    def facts_with(**changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        settings, output = ExampleSettings(**changes), root.child(f"examples-{changes}")
        facts = select_step_examples(
            root.child("paths"), asked, held_out(asked), settings, model, {}, output
        )
        return facts, output.read_table().to_pylist()

    whole, _ = facts_with()
    facts, rows = facts_with(max_examples=3)
    assert len(rows) == facts["num_examples"] == 3 < whole["num_examples"]
    left_over = whole["num_examples"] - 3
    assert facts["dropped"] == whole["dropped"] | {"over_max_examples": left_over}
    assert facts["num_learned_tokens"] == sum(len(row["target_token_ids"]) for row in rows)
    assert facts["num_prompt_tokens"] == sum(len(row["prompt_token_ids"]) for row in rows)
    of_datasets = facts["datasets"].values()
    for name in ("num_learned_tokens", "num_answers_added"):
        assert sum(each[name] for each in of_datasets) == facts[name]
    assert facts_with(verdict="random")[0]["num_examples"] == whole["num_examples"]


def test_summary_says_what_is_learned_besides_the_kept_paths_and_warns_of_control_tokens() -> None:
    facts = {
        "num_paths": 3,
        "num_kept_paths": 2,
        "num_answers_added": 1,
        "num_examples": 2,
        "num_learned_tokens": 90,
        "num_prompt_tokens": 50,
        "num_control_tokens": 0,
        "dropped": {"wrong": 1},
        "datasets": {},
    }
    said = summary(facts)
    assert "kept 2 of 3 paths (1 with the boxed answer added); dropped: 1 wrong" in said
    assert "warning" not in said
    assert "are used for training" not in said
    said = summary(facts | {"num_examples": 4, "num_control_tokens": 6})
    assert "examples: 4 are used for training" in said
    assert "warning: the questions contain 6 control tokens of the model" in said


def test_table_of_a_selection_has_a_total_of_several_datasets() -> None:
    facts = {
        "num_paths": 4,
        "num_kept_paths": 1,
        "num_examples": 1,
        "dropped": {"wrong": 3},
        "overlaps_with": {},
    }
    alone = format_selection(facts | {"datasets": {"a": facts}})
    both = format_selection(facts | {"datasets": {"a": facts, "b": facts}})
    assert [line.split("|")[1].strip() for line in alone.splitlines()[2:]] == ["a"]
    assert [line.split("|")[1].strip() for line in both.splitlines()[2:]] == ["a", "b", "all"]
    assert "25.0 %" in both
