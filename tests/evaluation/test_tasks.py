"""Each task's reader on tiny files in upstream's format; the rows are our own."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from evaluation.grader import Verdict, grade
from evaluation.question import SPLITS, Question, Split
from evaluation.reading.hub_rows import Hub, load_hub_split
from evaluation.task import find_task, plain_number, read_task, tasks
from evaluation.tasks.bbh import ANSWER_READERS
from evaluation.tasks.numglue import MAX_REORDERED
from tests.conftest import SHARED_DATA, boxed_truth

NAMES = ["anli", "aqua", "arc_challenge", "arc_easy", "asdiv", "asdiv_a", "bbh", "gsm8k"]
NAMES += ["math500", "numglue", "openbookqa", "reclor", "strategyqa", "strategyqa_facts", "svamp"]


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(name: str, path: Path, *splits: Split) -> list[Question]:
    return list(read_task(find_task(name), splits or ("test",), str(path)))


def complaint(name: str, path: Path, *splits: Split) -> str:
    with pytest.raises(InputError) as caught:
        read(name, path, *splits)
    return str(caught.value)


def seen(questions: list[Question]) -> list[tuple[str, str, str]]:
    return [(q.question_id, q.answer, q.answer_type) for q in questions]


# ---------------------------------------------------------------------------- all tasks


def test_every_file_is_found_and_every_task_complete() -> None:
    assert list(tasks()) == NAMES
    for task in tasks().values():
        assert task.hub or task.mirror or "form" in task.upstream or task.id_lists, task.name
        assert set(task.counts) <= set(task.splits)
        assert set(task.splits) <= set(SPLITS)
        assert task.hub is None or set(task.hub.splits) == set(task.splits)
        assert task.domain == "out_of_domain" or ("train" in task.splits and not task.no_training)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no task 'gsm8' \(nearest: gsm8k\)"):
        find_task("gsm8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", "12"),
        (" -1,234.5 ", "-1234.5"),
        ("$1,000", "1000"),
        (".5", ".5"),
        ("1,2", None),
        ("5:6", None),
        ("7/9", None),
        ("", None),
        ("$", None),
        ("3 p.m.", None),
    ],
)
def test_plain_number(text: str, expected: str | None) -> None:
    assert plain_number(text) == expected


# ---------------------------------------------------------------------------- in domain


def test_gsm8k_truth_stands_behind_the_last_mark(tmp_path: Path) -> None:
    rows = [
        {"question": "How many hens?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        {"question": "How many grains?", "answer": "Many.\n#### 1,024"},
    ]
    write(tmp_path, "grade_school_math/data/train.jsonl", lines(*rows))
    write(tmp_path, "grade_school_math/data/test.jsonl", lines(rows[0]))
    questions = read("gsm8k", tmp_path, "train", "test")
    assert seen(questions) == [
        ("gsm8k/train/00000", "2", "number"),
        ("gsm8k/train/00001", "1024", "number"),
        ("gsm8k/test/00000", "2", "number"),
    ]
    assert questions[0].domain == "in_domain"
    assert [question.solution for question in questions] == ["1 + 1 = 2", "Many.", "1 + 1 = 2"]


@pytest.mark.parametrize("answer", ["Two hens.", "#### two"])
def test_gsm8k_row_without_its_number_is_named(tmp_path: Path, answer: str) -> None:
    good = {"question": "How many?", "answer": "#### 1"}
    path = write(tmp_path, "test.jsonl", lines(good, {"question": "?", "answer": answer}))
    assert f"{path}:2, column 'answer' does not end with ####" in complaint("gsm8k", tmp_path)


def test_numglue_reads_all_eight_kinds(tmp_path: Path) -> None:
    date = {"day": "", "month": "", "year": ""}
    rows: list[dict[str, Any]] = [
        {"question": "How many cars?", "answer": "3", "type": "Type_1"},
        {"question": "Which month?", "answer": "May", "type": "Type_1"},
        {"question": "How heavy?", "answer": 4.17, "type": "Type_2"},
        {
            "question": "Which is hotter? ",
            "Option1": "ice",
            "Option2": "steam",
            "answer": "Option 2",
            "type": "Type_3",
        },
        {"question": "Three hens have _____ legs", "answer": 6, "type": "Type_4"},
        {
            "passage": "They scored twice.",
            "question": "How often?",
            "answer": {"number": "2", "date": date, "spans": []},
            "type": "Type_5",
        },
        {
            "passage": "Ann ran, Bob rode.",
            "question": "Who moved?",
            "answer": {"number": "", "date": date, "spans": ["Ann", "Bob"]},
            "type": "Type_6",
        },
        {
            "passage": "It was May 1901.",
            "question": "When?",
            "answer": {"number": "", "date": date | {"month": "May", "year": "1901"}, "spans": []},
            "type": "Type_6",
        },
        {
            "statement1": "There are two.",
            "statement2": "There are three.",
            "options": "Entailment or contradiction or neutral?",
            "answer": "contradiction",
            "type": "Type_7",
        },
        {"question": "How many left?", "answer": "83.0", "type": "Type_8"},
    ]
    write(tmp_path, "data/NumGLUE_test.json", lines(*rows))
    questions = read("numglue", tmp_path)
    assert seen(questions) == [
        ("numglue/test/t1/00000", "3", "number"),
        ("numglue/test/t1/00001", "May", "text"),
        ("numglue/test/t2/00000", "4.17", "number"),
        ("numglue/test/t3/00000", "B", "choice"),
        ("numglue/test/t4/00000", "6", "number"),
        ("numglue/test/t5/00000", "2", "number"),
        ("numglue/test/t6/00000", "Ann, Bob", "text"),
        ("numglue/test/t6/00001", "May 1901", "text"),
        ("numglue/test/t7/00000", "C", "choice"),
        ("numglue/test/t8/00000", "83", "number"),
    ]
    assert questions[5].question == "They scored twice.\nHow often?"
    assert [q.aliases for q in questions if q.aliases] == [("Bob, Ann",)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"type": "Type_9"}, "column 'type' is '9'"),
        ({"answer": {"number": "", "spans": []}, "type": "Type_5", "passage": "p"}, "no number"),
        ({"answer": "Option 3", "type": "Type_3"}, "neither Option 1 nor Option 2"),
        ({"answer": "maybe", "type": "Type_7"}, "known are entailment"),
        ({"answer": None}, "column 'answer' is null"),
        ({"answer": [], "type": "Type_5", "passage": "p"}, "column 'answer'"),
    ],
)
def test_numglue_wrong_row_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    row = {"question": "How many?", "answer": "1", "type": "Type_1"}
    write(tmp_path, "NumGLUE_test.json", lines(row, row | change))
    told = complaint("numglue", tmp_path)
    assert "NumGLUE_test.json:2" in told
    assert expected in told


def test_numglue_passage_answer_may_be_plain_and_many_spans_keep_their_order(
    tmp_path: Path,
) -> None:
    spans = [f"man {number}" for number in range(MAX_REORDERED + 1)]
    passage: dict[str, Any] = {"passage": "p", "question": "Who?", "type": "Type_6"}
    rows = [passage | {"answer": "Ann"}, passage | {"answer": {"number": "", "spans": spans}}]
    write(tmp_path, "NumGLUE_test.json", lines(*rows))
    plain, many = read("numglue", tmp_path)
    assert (plain.answer, plain.aliases) == ("Ann", ())
    assert (many.answer, many.aliases) == (", ".join(spans), ())


def ai2_row(labels: str, key: str) -> dict[str, Any]:
    choices = [{"text": f"option {n}", "label": label} for n, label in enumerate(labels)]
    return {"id": f"Q{key}{labels}", "question": {"stem": "Which?", "choices": choices}} | {
        "answerKey": key
    }


@pytest.mark.parametrize(
    ("name", "folder"), [("arc_challenge", "ARC-Challenge"), ("arc_easy", "ARC-Easy")]
)
def test_arc_options_are_lettered_by_position(tmp_path: Path, name: str, folder: str) -> None:
    rows = [ai2_row("ABCD", "C"), ai2_row("1234", "4"), ai2_row("ABC", "A"), ai2_row("ABCDE", "E")]
    write(tmp_path, f"{folder}/{folder}-Dev.jsonl", lines(*rows))
    questions = read(name, tmp_path, "dev")
    answers = [(q.answer, len(q.choices)) for q in questions]
    assert answers == [("C", 4), ("D", 4), ("A", 3), ("E", 5)]
    assert questions[1].question_id == f"{name}/dev/Q41234"
    assert questions[1].text.endswith("D) option 3")


def test_arc_key_that_is_no_label_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "ARC-Easy-Test.jsonl", lines(ai2_row("ABCD", "E")))
    told = complaint("arc_easy", tmp_path)
    assert told.startswith(f"{path}:1, column 'answerKey' is 'E', which is not one of the labels")


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"text": ["x", "y"], "label": ["A"]}, "has 1 labels for 2 options"),
        (["x", "y"], "expected a mapping, found ['x', 'y']"),
    ],
)
def test_arc_options_that_are_not_labelled_are_named(
    tmp_path: Path, choices: Any, expected: str
) -> None:
    row = {"id": "1", "question": "Which?", "choices": choices, "answerKey": "A"}
    path = write(tmp_path, "ARC-Easy-Test.jsonl", lines(row))
    told = complaint("arc_easy", tmp_path)
    assert told.startswith(f"{path}:1, column 'choices'")
    assert expected in told


def test_hub_form_of_ai2_gives_the_same_question(tmp_path: Path) -> None:
    nested = ai2_row("1234", "2")
    listed = nested["question"]["choices"]
    flat = {
        "id": nested["id"],
        "question": nested["question"]["stem"],
        "choices": {key: [choice[key] for choice in listed] for key in ("text", "label")},
        "answerKey": "2",
    }
    upstream, hub = tmp_path / "upstream", tmp_path / "hub"
    write(upstream, "ARC-Challenge-Test.jsonl", lines(nested))
    (hub / "ARC-Challenge").mkdir(parents=True)
    table = pa.Table.from_pylist([flat])
    pq.write_table(table, hub / "ARC-Challenge" / "test-00000-of-00001.parquet")
    assert read("arc_challenge", hub) == read("arc_challenge", upstream)
    stem = {"question_stem": flat.pop("question")} | flat
    write(tmp_path, "test.jsonl", lines(stem))
    write(upstream, "Data/Main/test.jsonl", lines(nested))
    assert read("openbookqa", tmp_path) == read("openbookqa", upstream)


def test_reclor_label_counts_from_zero_and_val_is_test(tmp_path: Path) -> None:
    row = {
        "context": "All ravens are black.",
        "question": "What follows?",
        "answers": ["a", "b", "c", "d"],
        "label": 2,
        "id_string": "val_0",
    }
    write(tmp_path, "val.json", json.dumps([row], indent=1))
    question = read("reclor", tmp_path)[0]
    assert (question.question_id, question.answer) == ("reclor/test/val_0", "C")
    assert question.question == "All ravens are black.\nWhat follows?"
    write(tmp_path, "val.json", json.dumps([row, row | {"label": 4}], indent=1))
    assert "val.json:14, column 'label' is 4" in complaint("reclor", tmp_path)


def test_reclor_has_to_be_asked_for_by_form() -> None:
    with pytest.raises(InputError, match=r"hub does not have it; get it from .*by form"):
        list(read_task(find_task("reclor"), ["test"]))


@pytest.mark.parametrize("facts", [["Ice is cold.", "Tea is hot."], "Ice is cold. Tea is hot."])
def test_strategyqa_shows_facts_only_in_the_task_named_so(tmp_path: Path, facts: Any) -> None:
    row = {"qid": "ab1", "question": "Is ice tea?", "answer": False, "facts": facts}
    write(tmp_path, "test.json", json.dumps([row]))
    plain, shown = read("strategyqa", tmp_path)[0], read("strategyqa_facts", tmp_path)[0]
    assert (plain.question_id, plain.question, plain.answer) == (
        "strategyqa/test/ab1",
        "Is ice tea?",
        "no",
    )
    assert shown.question_id == "strategyqa_facts/test/ab1"
    assert shown.question == "Ice is cold. Tea is hot.\n\nIs ice tea?"


def test_strategyqa_file_without_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "test.json", json.dumps([{"qid": "ab1", "question": "Is ice tea?"}]))
    assert "test.json:1: no column 'answer'" in complaint("strategyqa", tmp_path)


# ---------------------------------------------------------------------------- out of domain


ASDIV = """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File><ProblemSet>
{}
</ProblemSet></Machine-Reading-Corpus-File>
"""


def asdiv_problem(number: int, answer: str) -> str:
    return (
        f'<Problem ID="nluds-{number:04d}" Grade="1">\n<Body>Ann &amp; Bob row.</Body>'
        f"<Question>How far?</Question><Solution-Type>Sum</Solution-Type>"
        f"<Answer>{answer}</Answer><Formula>1+1=2</Formula></Problem>"
    )


def test_asdiv_leaves_units_and_keeps_what_is_no_number(tmp_path: Path) -> None:
    answers = [
        ("9 (apples)", "9", "number"),
        ("$0.50", "0.5", "number"),
        ("1,200 (km)", "1200", "number"),
        ("5:6", "5:6", "text"),
        ("50 (roses); 20 (tulips)", "50; 20", "text"),
        ("7/9", "7/9", "text"),
        ("3:30 p.m.", "3:30 p.m.", "text"),
        ("Yes", "yes", "boolean"),
        ("Ann", "Ann", "text"),
    ]
    problems = [asdiv_problem(n, answer) for n, (answer, _, _) in enumerate(answers)]
    write(tmp_path, "dataset/ASDiv.xml", ASDIV.format("\n".join(problems)))
    questions = read("asdiv", tmp_path)
    assert [(q.answer, q.answer_type) for q in questions] == [row[1:] for row in answers]
    assert questions[3].question_id == "asdiv/test/nluds-0003"
    assert questions[3].question == "Ann & Bob row. How far?"


def test_asdiv_list_is_as_right_in_a_sentence(tmp_path: Path) -> None:
    answers = ["50 (roses); 20 (tulips)", "7; 8; 9", "9 (apples)", "Ann"]
    problems = [asdiv_problem(n, answer) for n, answer in enumerate(answers)]
    write(tmp_path, "dataset/ASDiv.xml", ASDIV.format("\n".join(problems)))
    lists, three, number, name = read("asdiv", tmp_path)
    assert lists.aliases == ("50 and 20",)
    assert three.aliases == ("7, 8 and 9", "7, 8, and 9")
    assert number.aliases == name.aliases == ()
    own = {"id": "asdiv/test/1", "dataset": "asdiv", "answer": "50; 20", "answer_type": "text"}
    write(tmp_path, "asdiv.test.jsonl", lines(OURS | own))
    assert read("asdiv", tmp_path)[0].aliases == lists.aliases
    for said in ("50; 20", "50, 20", "50 and 20"):
        assert grade(f"\\boxed{{{said}}}", lists, read_last=False).verdict == Verdict.CORRECT
    assert grade("\\boxed{20 and 50}", lists, read_last=False).verdict == Verdict.WRONG


def test_asdiv_wrong_problem_is_named_by_line(tmp_path: Path) -> None:
    problems = [asdiv_problem(1, "2 (km)"), asdiv_problem(2, "(km)")]
    write(tmp_path, "ASDiv.xml", ASDIV.format("\n".join(problems)))
    assert "ASDiv.xml:5, column 'Answer' is empty" in complaint("asdiv", tmp_path)
    write(tmp_path, "ASDiv.xml", ASDIV.format(problems[0])[:-9])
    assert "ASDiv.xml is not XML" in complaint("asdiv", tmp_path)


def test_asdiv_a_takes_the_listed_ids_and_needs_the_lists(tmp_path: Path) -> None:
    problems = [asdiv_problem(n, f"{n} (km)") for n in range(4)]
    path = write(tmp_path, "dataset/ASDiv.xml", ASDIV.format("\n".join(problems)))
    assert "lists the rows of task asdiv_a" in complaint("asdiv_a", tmp_path)
    write(tmp_path, "dataset/nfolds/asdiv-a/fold0.txt", "nluds-0003\n")
    write(tmp_path, "dataset/nfolds/asdiv-a/fold1.txt", "nluds-0001\n")
    assert [q.answer for q in read("asdiv_a", tmp_path)] == ["1", "3"]
    assert "lists the rows of task asdiv_a" in complaint("asdiv_a", path)


def test_svamp_joins_body_and_question(tmp_path: Path) -> None:
    row = {"ID": "chal-1", "Body": "Tea costs 2.", "Question": "How much are 3?", "Answer": 6.0}
    write(tmp_path, "SVAMP.json", json.dumps([row]))
    question = read("svamp", tmp_path)[0]
    assert seen([question]) == [("svamp/test/chal-1", "6", "number")]
    assert question.question == "Tea costs 2.\nHow much are 3?"


def test_aqua_keeps_equal_options_apart_by_letter(tmp_path: Path) -> None:
    row = {"question": "How much?", "options": ["A)$1", "B)(a) 2", "C)2", "D) 2", "E)None"]}
    write(tmp_path, "test.json", lines(row | {"correct": "D"}))
    question = read("aqua", tmp_path)[0]
    assert question.choices == ("$1", "(a) 2", "2", "2", "None")
    assert question.answer == "D"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"correct": "F"}, "column 'correct' is 'F'"),
        ({"options": ["A)1", "2"]}, "column 'options': '2' should begin with B)"),
        ({"options": ["A)1", "C)2"]}, "column 'options': 'C)2' should begin with B)"),
        ({"options": "A)1 B)2"}, "column 'options': expected a list, found a text"),
    ],
)
def test_aqua_wrong_row_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    row = {"question": "How much?", "options": ["A)1", "B)2"], "correct": "A"}
    write(tmp_path, "test.json", lines(row, row | change))
    assert f"test.json:2, {expected}" in complaint("aqua", tmp_path)


BBH_ROWS = {
    "boolean_expressions": ("not ( True ) is", "False", "no", "boolean"),
    "navigate": ("Do you return?\nOptions:\n- Yes\n- No", "Yes", "yes", "boolean"),
    "formal_fallacies": ("Valid?\nOptions:\n- valid \n- invalid", "invalid", "B", "choice"),
    "snarks": ("Which is sarcastic?\nOptions:\n(A) The NB", "(A)", "A", "choice"),
    "ruin_names": ("Which?\nOptions:\n(A) mud\n(B) earth, & fire", "earth, & fire", "B", "choice"),
    "multistep_arithmetic_two": ("((1 + 2)) =", "-3", "-3", "number"),
    "dyck_languages": ("Complete. Input: [ [", "] ]", "] ]", "text"),
}


def write_bbh(folder: Path, changed: Mapping[str, tuple[str, str]]) -> None:
    for name in ANSWER_READERS:
        text, target = changed.get(name, ("Which?\nOptions:\n(A) x\n(B) y", "(A)"))
        if name not in changed and ANSWER_READERS[name] != "choice":
            targets = {"number": "3", "boolean": "yes", "text": "a b"}
            text, target = "How many?", targets[ANSWER_READERS[name]]
        rows = [{"input": text, "target": target}]
        tree = {"canary": "ours, {not} [a list]", "examples": rows}
        write(folder, f"bbh/{name}.json", json.dumps(tree, indent=2))


def test_bbh_reads_every_kind_of_target(tmp_path: Path) -> None:
    write_bbh(tmp_path, {name: row[:2] for name, row in BBH_ROWS.items()})
    questions = {q.question_id: q for q in read("bbh", tmp_path)}
    assert len(questions) == 27
    for name, (_, _, answer, answer_type) in BBH_ROWS.items():
        question = questions[f"bbh/test/{name}/0000"]
        assert (question.answer, question.answer_type) == (answer, answer_type), name
        assert "Options" not in question.question
    assert questions["bbh/test/formal_fallacies/0000"].choices == ("valid", "invalid")
    assert questions["bbh/test/snarks/0000"].choices == ("The NB",)


def test_bbh_sorted_words_may_have_commas(tmp_path: Path) -> None:
    write_bbh(tmp_path, {"word_sorting": ("Sort: b a", "a b"), "dyck_languages": ("[ [", "] ]")})
    with_aliases = {q.question_id: q.aliases for q in read("bbh", tmp_path) if q.aliases}
    assert with_aliases == {"bbh/test/word_sorting/0000": ("a, b",)}
    own = {"id": "bbh/test/word_sorting/0000", "dataset": "bbh", "answer_type": "text"}
    write(tmp_path, "bbh.test.jsonl", lines(OURS | own | {"answer": "a b"}))
    assert read("bbh", tmp_path)[0].aliases == ("a, b",)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("Which?\nOptions:\n(A) x", "(B)", "column 'target' is '(B)'"),
        ("Which?\nOptions:\n(A) x", "z", "column 'target' is 'z'"),
        ("Which?\nOptions:\n(A) x\n(C) y", "(A)", "does not list options as"),
        ("Which?", "(A)", "does not list options"),
    ],
)
def test_bbh_wrong_row_is_named(tmp_path: Path, text: str, target: str, expected: str) -> None:
    write_bbh(tmp_path, {"snarks": (text, target)})
    told = complaint("bbh", tmp_path)
    assert "snarks.json:4, " in told
    assert expected in told


def test_bbh_lacking_one_of_its_tasks_is_refused(tmp_path: Path) -> None:
    write_bbh(tmp_path, {})
    (tmp_path / "bbh" / "snarks.json").unlink()
    assert "lacks bbh/snarks.json of task bbh" in complaint("bbh", tmp_path)


def test_bbh_file_of_none_of_its_tasks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.jsonl", lines({"input": "How many?", "target": "3"}))
    told = complaint("bbh", path)
    assert "mine.jsonl:1" in told
    assert "does not contain one of the 27 tasks" in told


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("anli/R1/test.jsonl", "x", "column 'label' is 'x'; known are e, n, c and 0, 1, 2"),
        ("anli/R1/test.jsonl", ["e"], "column 'label' is ['e']"),
        ("anli/mine.jsonl", "e", "names no round; name the folder R1, R2 or R3"),
    ],
)
def test_anli_wrong_row_is_named(tmp_path: Path, name: str, label: Any, expected: str) -> None:
    row = {"uid": "u1", "context": "It rains.", "hypothesis": "It is wet.", "label": label}
    path = write(tmp_path, name, lines(row))
    told = complaint("anli", path)
    assert f"{path.name}:1" in told
    assert expected in told


def test_anli_rounds_stand_in_the_ids(tmp_path: Path) -> None:
    row = {"uid": "u1", "context": "It rains.", "hypothesis": "It is wet.", "label": "n"}
    for number in "123":
        write(tmp_path, f"anli_v1.0/R{number}/dev.jsonl", lines(row))
    questions = read("anli", tmp_path / "anli_v1.0", "dev")
    assert [q.question_id for q in questions] == [f"anli/dev/r{n}/u1" for n in "123"]
    assert {q.answer for q in questions} == {"B"}
    assert questions[0].question.startswith("Premise: It rains.\nHypothesis: It is wet.\nIs the")


def test_anli_hub_form_gives_the_same_question(tmp_path: Path) -> None:
    row = {"uid": "u1", "premise": "It rains.", "hypothesis": "It is wet.", "label": 2}
    (tmp_path / "plain_text").mkdir()
    for number in "123":
        path = tmp_path / "plain_text" / f"test_r{number}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    questions = read("anli", tmp_path)
    assert [(q.question_id, q.answer) for q in questions] == [
        (f"anli/test/r{n}/u1", "C") for n in "123"
    ]


def test_math500_tells_numbers_from_latex(tmp_path: Path) -> None:
    answers = [("12", "12", "number"), ("\\frac{1}{2}", "\\frac{1}{2}", "math")]
    answers += [("\\$18.90", "\\$18.90", "math"), ("3, 5", "3, 5", "math")]
    rows = [
        {"problem": "How much?", "answer": answer, "unique_id": f"test/algebra/{n}.json"}
        for n, (answer, _, _) in enumerate(answers)
    ]
    write(tmp_path, "prm800k/math_splits/test.jsonl", lines(*rows))
    questions = read("math500", tmp_path)
    assert [(q.answer, q.answer_type) for q in questions] == [row[1:] for row in answers]
    assert questions[0].question_id == "math500/test/algebra/0"


def test_math500_rows_of_our_own_format_that_say_text_are_latex(tmp_path: Path) -> None:
    own = OURS | {"id": "math500/test/algebra/1", "dataset": "math500"}
    latex = {"id": "math500/test/algebra/2", "answer": "\\frac{1}{2}", "answer_type": "text"}
    write(tmp_path, "math500.test.jsonl", lines(own, own | latex))
    assert [q.answer_type for q in read("math500", tmp_path)] == ["number", "math"]


def test_wrong_rows_up_to_a_number_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"#### {'x' if n in (1, 3) else n}"} for n in range(5)]
    write(tmp_path, "test.jsonl", lines(*rows))
    wrong: list[str] = []
    told = read_task(find_task("gsm8k"), ["test"], str(tmp_path), wrong=wrong, max_wrong=2)
    assert [q.answer for q in told] == ["0", "2", "4"]
    assert ["test.jsonl:2" in wrong[0], "test.jsonl:4" in wrong[1], len(wrong)] == [True, True, 2]
    with pytest.raises(InputError, match=r"test\.jsonl:4"):
        list(read_task(find_task("gsm8k"), ["test"], str(tmp_path), max_wrong=1))


# ---------------------------------------------------------------------------- sources of rows


OURS = {
    "id": "gsm8k/test/00007",
    "dataset": "gsm8k",
    "split": "test",
    "question": "How many hens?",
    "answer": "2",
    "answer_type": "number",
    "choices": None,
}


def test_rows_in_our_own_format_are_read_as_they_stand(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k.test.jsonl", lines(OURS))
    assert seen(read("gsm8k", tmp_path)) == [("gsm8k/test/00007", "2", "number")]
    assert seen(read("gsm8k", tmp_path / "gsm8k.test.jsonl")) == seen(read("gsm8k", tmp_path))
    renamed = list(read_task(find_task("gsm8k"), ["test"], str(tmp_path), dataset="mine"))
    assert renamed[0].question_id == "mine/test/gsm8k/test/00007"


def test_rows_in_our_own_format_may_have_aliases(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k.test.jsonl", lines(OURS | {"aliases": ["2.0", "3"]}))
    assert read("gsm8k", tmp_path)[0].aliases == ("3",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"aliases": ["none"]}, "the number 'none' cannot be read"),
        ({"dataset": "bbh"}, "column 'dataset' says 'bbh', not 'gsm8k'"),
        ({"split": "train"}, "column 'split' says 'train', not 'test'"),
        ({"answer_type": "integer"}, "column 'answer_type' says 'integer'"),
        ({"answer": "two hens"}, "the number 'two hens' cannot be read"),
        ({"question": " "}, "column 'question' is empty"),
        ({"answer_type": "choice", "choices": [None]}, "every option must be a text"),
        ({"id": "gsm8k/test/00007"}, "is already used at"),
    ],
)
def test_wrong_row_of_our_own_format_is_named(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    write(tmp_path, "gsm8k.test.jsonl", lines(OURS, OURS | {"id": "gsm8k/test/8"} | change))
    told = complaint("gsm8k", tmp_path)
    assert "gsm8k.test.jsonl:2" in told
    assert expected in told


def test_folder_without_the_split_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path, "gsm8k.test.jsonl", lines(OURS))
    told = complaint("gsm8k", tmp_path, "train")
    assert "no train file of task gsm8k" in told
    assert "gsm8k.train.jsonl or grade_school_math/data/train.jsonl" in told
    assert "source.splits" in told
    assert "does not exist" in complaint("gsm8k", tmp_path / "nowhere")


def test_one_file_serves_one_split_only(tmp_path: Path) -> None:
    row = {"question": "How many hens?", "answer": "#### 2"}
    named = write(tmp_path, "train.jsonl", lines(row))
    other = write(tmp_path, "mine.jsonl", lines(row))
    assert len(read("gsm8k", named, "train")) == 1
    assert len(read("gsm8k", other, "test")) == 1
    assert "its name is not that of the test file of gsm8k" in complaint("gsm8k", named, "test")
    assert "its name is not that of the train file of gsm8k" in complaint(
        "gsm8k", other, "train", "test"
    )


def test_kind_is_the_part_of_the_task(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "numglue.test.jsonl": OURS | {"id": "numglue/test/t8/00001", "dataset": "numglue"},
        "math500.test.jsonl": OURS | {"id": "math500/test/algebra/1", "dataset": "math500"},
        "gsm8k.test.jsonl": OURS | {"kind": "easy"},
        "anli/R2/test.jsonl": {"uid": "u", "context": "c", "hypothesis": "h", "label": "e"},
    }
    for name, row in rows.items():
        write(tmp_path, name, lines(row))
    write(tmp_path, "anli/R1/test.jsonl", lines(rows["anli/R2/test.jsonl"]))
    write(tmp_path, "anli/R3/test.jsonl", lines(rows["anli/R2/test.jsonl"]))
    kinds = {name: [q.kind for q in read(name, tmp_path)] for name in ("numglue", "math500")}
    assert kinds == {"numglue": ["t8"], "math500": ["algebra"]}
    assert [q.kind for q in read("gsm8k", tmp_path)] == ["easy"]
    assert [q.kind for q in read("anli", tmp_path / "anli")] == ["r1", "r2", "r3"]
    write_bbh(tmp_path, {})
    assert {q.kind for q in read("bbh", tmp_path)} == set(ANSWER_READERS)


def test_gzip_files_of_a_task_are_found_and_read(tmp_path: Path) -> None:
    row = {"question": "How many hens?", "answer": "#### 2"}
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress(lines(row).encode()))
    assert len(read("gsm8k", tmp_path)) == len(read("gsm8k", path)) == 1


def test_missing_shard_of_a_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    for number in (0, 2):
        table = pa.Table.from_pylist([{"question": f"{number}?", "answer": "#### 2"}])
        pq.write_table(table, tmp_path / "main" / f"test-0000{number}-of-00003.parquet")
    assert "is one of 3 files, but only 2 of them are given" in complaint("gsm8k", tmp_path)


def test_element_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    problem = asdiv_problem(1, "3").replace("</Problem>", "<Answer>4</Answer></Problem>")
    path = write(tmp_path, "ASDiv.xml", f"<Set>{problem}</Set>")
    assert f"{path}:1: the element 'Answer' is there twice" in complaint("asdiv", tmp_path)


def test_hub_rows_come_through_the_datasets_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "someone"
    for split in ("train", "test"):
        row = {"ID": f"chal-{split}", "Body": "Tea costs 2.", "Question": "Much?", "Answer": "6.00"}
        write(folder, f"{split}.jsonl", lines(row))
    rows = list(Hub(str(folder), {"test": ("train", "test")}).rows("test"))
    drafts = [find_task("svamp").read_row(row) for row in rows]
    assert [draft.key for draft in drafts] == ["chal-train", "chal-test"]
    assert [row.place for row in rows] == [f"{folder}/{s} row 1" for s in ("train", "test")]
    with pytest.raises(InputError, match=r"the dataset .*/someone/dev.* from the Hugging Face hub"):
        list(load_hub_split(str(folder), None, "dev"))


def test_task_without_a_folder_is_read_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    row = {"ID": "chal-1", "Body": "Tea costs 2.", "Question": "Much?", "Answer": "6.00"}
    write(tmp_path / "someone", "test.jsonl", lines(row))
    task = replace(find_task("svamp"), hub=Hub(str(tmp_path / "someone"), {"test": ("test",)}))
    assert seen(list(read_task(task, ["test"]))) == [("svamp/test/chal-1", "6", "number")]


@pytest.mark.parametrize("config", [None, "second"])
def test_hub_repository_with_a_script_is_read_as_the_hub_converted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for folder in ("default", "second"):
        path = tmp_path / "someone" / folder / "test" / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([{"of": folder}]), path)
    [row] = load_hub_split(str(tmp_path / "someone"), config, "test", is_converted=True)
    assert row.values == {"of": config or "default"}


def test_folder_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    told = complaint("gsm8k", tmp_path / ("x" * 300))
    assert told.startswith(f"cannot list source.path {tmp_path}")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the benchmark files are not here")
def test_shared_files_hold_the_published_numbers_of_rows() -> None:
    """The grader's tests check on the same files that each truth is graded as correct."""
    numglue = {"train": 2340, "dev": 205, "test": 659}  # of an incomplete mirror
    read_of = set()
    for task, split in itertools.product(tasks().values(), SPLITS):
        if (SHARED_DATA / f"{task.name}.{split}.jsonl").exists():
            questions = read(task.name, SHARED_DATA, split)
            expected = numglue[split] if task.name == "numglue" else task.counts[split]
            assert len(questions) == expected, (task.name, split)
            assert {q.answer_type for q in questions} <= set(task.answer_types)
            read_of.add(task.name)
    assert read_of == set(NAMES) - {"reclor"}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the benchmark files are not here")
def test_shared_math500_is_numbers_and_latex_each_right_against_itself() -> None:
    questions = read("math500", SHARED_DATA)
    assert Counter(q.answer_type for q in questions) == {"number": 319, "math": 181}
    for question in questions:
        result = grade(boxed_truth(question), question, read_last=False)
        assert result.verdict == Verdict.CORRECT, question.answer
