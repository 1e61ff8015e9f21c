"""Splits, limits and overlaps of the questions of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from cluster.errors import InputError
from cluster.settings import content_of
from evaluation.grader import Verdict, grade
from evaluation.question import QUESTION_TABLE_SCHEMA, SPLITS, Question
from pipelines.questions.loading import QuestionSet, QuestionSettings, load_questions
from pipelines.questions.splits import ROWS_PER_BATCH


def settings_of(folder: Path, **datasets: Any) -> QuestionSettings:
    tree = {"folder": str(folder), "datasets": datasets}
    return QuestionSettings.model_validate_json(json.dumps(tree))


def load(folder: Path, **datasets: Any) -> QuestionSet:
    return load_questions(settings_of(folder, **datasets))


def load_or_skip(folder: Path, **datasets: Any) -> QuestionSet:
    settings = settings_of(folder, **datasets)
    return load_questions(settings.model_copy(update={"on_error": "skip"}))


def asked(loaded: QuestionSet) -> list[Question]:
    return list(loaded.questions(*SPLITS))


def write(folder: Path, name: str, texts: Mapping[str, str] | Iterable[str]) -> str:
    """A file of number questions; ids are the texts themselves unless a mapping gives them."""
    named = texts if isinstance(texts, Mapping) else {text: text for text in texts}
    lines = [
        json.dumps({"id": key, "question": text, "answer": 7, "answer_type": "number"})
        for key, text in named.items()
    ]
    (folder / name).write_text("\n".join(lines))
    return name


def numbered(num: int, word: str = "question") -> list[str]:
    return [f"{word} {number}" for number in range(num)]


def texts_of(questions: Iterable[Question], split: str, dataset: str = "") -> list[str]:
    return [q.question for q in questions if q.split == split and dataset in ("", q.dataset)]


def ids_of(questions: Iterable[Question], split: str) -> list[str]:
    return [q.question_id for q in questions if q.split == split]


def files(**paths: Any) -> dict[str, Any]:
    return {"source": {"kind": "files"} | paths}


def family(name: str, num: int = 30, **more: Any) -> dict[str, Any]:
    source = {"kind": "reasoning_gym", "family": name} | more.pop("source", {})
    return {"source": source, "num_train": num, "num_dev": num, "num_test": num} | more


def counts_of(loaded: QuestionSet, dataset: str, split: str) -> Mapping[str, Any]:
    return next(c for c in loaded.counts if (c["dataset"], c["split"]) == (dataset, split))


NEAR = """
from evaluation.extraction.answer_extraction import find_answer
from evaluation.grader import Grade, ReadAs, Verdict


def grade(text, question, *, read_last, finished):
    read_as, answer = find_answer(text, last=read_last, finished=finished)
    if answer is None:
        return Grade(None, Verdict.NO_ANSWER, ReadAs.NOTHING)
    near = abs(float(answer) - float(question.answer)) <= float(question.grader_data)
    also = answer in question.aliases
    return Grade(answer, Verdict.CORRECT if near or also else Verdict.WRONG, read_as)
"""


def test_files_with_a_grader_of_the_users_own_and_aliases_load_and_grade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "near.py").write_text(NEAR)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "q.csv").write_text(
        'id,question,answer,also,how_near\na,How far?,100,"[""7"", ""8""]",2.5\n'
    )
    columns = {"aliases": "also", "grader_data": "how_near"}
    source = {"test": "q.csv", "answer_type": "number", "columns": columns}
    mine = files(**source) | {"domain": "out_of_domain"}
    [question] = asked(load(tmp_path, mine=mine | {"grader": "near:grade"}))
    responses = {r"\boxed{98}": "correct", r"\boxed{97}": "wrong", r"\boxed{8}": "correct"}
    responses |= {"Hm.": "no_answer", r"<think>\boxed{97}</think>\boxed{101}": "correct"}
    verdicts = {text: grade(text, question, read_last=False).verdict for text in responses}
    assert verdicts == responses

    [by_type] = asked(load(tmp_path, mine=mine))
    assert by_type.grader == ""
    assert grade(r"\boxed{98}", by_type, read_last=False).verdict == Verdict.WRONG
    assert grade(r"\boxed{8.0}", by_type, read_last=False).verdict == Verdict.CORRECT
    assert by_type.fingerprint != question.fingerprint


def test_dev_is_carved_from_train_by_id(tmp_path: Path) -> None:
    train, test = write(tmp_path, "a.jsonl", numbered(1000)), write(tmp_path, "b.jsonl", ["t"])
    loaded = asked(load(tmp_path, mine=files(train=train, test=test)))
    assert 70 <= len(texts_of(loaded, "dev")) <= 130
    assert len(loaded) == 1001
    (tmp_path / "a.jsonl").unlink()
    write(tmp_path, "a.jsonl", numbered(1500)[::-1])
    longer = asked(load(tmp_path, mine=files(train=train, test=test)))
    assert set(texts_of(loaded, "dev")) <= set(texts_of(longer, "dev"))
    assert set(texts_of(loaded, "train")) <= set(texts_of(longer, "train"))


def test_test_share_is_carved_only_without_a_test_file(tmp_path: Path) -> None:
    train = write(tmp_path, "a.jsonl", numbered(500))
    carved = asked(load(tmp_path, mine=files(train=train) | {"test_share": 0.5}))
    assert 200 <= len(texts_of(carved, "test")) <= 300
    test = write(tmp_path, "b.jsonl", ["t"])
    given = asked(load(tmp_path, mine=files(train=train, test=test) | {"test_share": 0.5}))
    assert texts_of(given, "test") == ["t"]


def test_limit_takes_a_prefix_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    train, test = write(tmp_path, "a.jsonl", numbered(90)), write(tmp_path, "b.jsonl", ["t"])
    small = asked(load(tmp_path, mine=files(train=train, test=test) | {"num_train": 10}))
    write(tmp_path, "a.jsonl", numbered(90)[::-1])
    large = asked(load(tmp_path, mine=files(train=train, test=test) | {"num_train": 40}))
    assert len(ids_of(small, "train")) == 10
    assert ids_of(small, "train") == ids_of(large, "train")[:10]
    assert ids_of(small, "train") != sorted(ids_of(small, "train"))


def test_repeated_text_keeps_one_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    rows = {"1": "Same  text", "2": "same TEXT", "3": "another"}
    test = write(tmp_path, "a.jsonl", rows)
    loaded = load(tmp_path, mine=files(test=test) | {"domain": "out_of_domain"})
    write(tmp_path, "a.jsonl", dict(reversed(rows.items())))
    again = load(tmp_path, mine=files(test=test) | {"domain": "out_of_domain"})
    assert loaded == again
    assert counts_of(loaded, "mine", "test")["num_dropped_duplicate"] == 1
    assert counts_of(loaded, "mine", "test")["num_kept"] == 2


def test_train_loses_what_any_dataset_holds_out(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", ["one", "two", "three", "four"])
    dev, test = write(tmp_path, "dev.jsonl", ["TWO"]), write(tmp_path, "test.jsonl", ["five"])
    other = write(tmp_path, "other.jsonl", ["three", "six"])
    loaded = load(
        tmp_path,
        mine=files(train=train, dev=dev, test=test),
        theirs=files(test=other) | {"domain": "out_of_domain"},
    )
    assert sorted(texts_of(asked(loaded), "train")) == ["four", "one"]
    assert counts_of(loaded, "mine", "train")["num_dropped_overlap"] == 2


def test_test_keeps_a_text_before_dev(tmp_path: Path) -> None:
    dev, test = write(tmp_path, "dev.jsonl", ["one", "two"]), write(tmp_path, "t.jsonl", ["two"])
    loaded = load(tmp_path, mine=files(dev=dev, test=test) | {"domain": "out_of_domain"})
    assert texts_of(asked(loaded), "dev") == ["one"]
    assert texts_of(asked(loaded), "test") == ["two"]


def test_tests_of_two_datasets_may_share_a_question(tmp_path: Path) -> None:
    test = write(tmp_path, "t.jsonl", ["one", "two"])
    outside = files(test=test) | {"domain": "out_of_domain"}
    loaded = load(tmp_path, whole=outside, part=outside)
    assert [counts["num_kept"] for counts in loaded.counts] == [2, 2]


def test_raising_a_test_limit_leaves_train_alone(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", numbered(50))
    test = write(tmp_path, "test.jsonl", numbered(20))
    few, all_of_it = (
        asked(load(tmp_path, mine=files(train=train, test=test) | {"num_test": limit}))
        for limit in (1, None)
    )
    assert ids_of(few, "train") == ids_of(all_of_it, "train")
    assert not set(texts_of(all_of_it, "train")) & set(numbered(20))


def test_train_wholly_held_out_is_refused(tmp_path: Path) -> None:
    same = write(tmp_path, "a.jsonl", ["one", "two"])
    other = write(tmp_path, "b.jsonl", {"x": "one", "y": "two"})
    with pytest.raises(InputError, match=r"questions\.datasets\.mine.*are also in"):
        load(tmp_path, mine=files(train=same, test=other))


def test_reordered_options_are_the_same_question(tmp_path: Path) -> None:
    for name, choices in (("a.jsonl", ["x", "y"]), ("b.jsonl", ["y", "x"])):
        rows = [{"id": "1", "question": "Pick", "choices": choices, "answer": "A"}]
        rows += [{"id": "2", "question": f"Pick from {name}", "choices": ["x"], "answer": "A"}]
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
    mine = files(train="a.jsonl", test="b.jsonl", answer_type="choice") | {"dev_share": 0.0}
    loaded = asked(load(tmp_path, mine=mine))
    assert texts_of(loaded, "train") == ["Pick from a.jsonl"]


def test_counts_add_up_and_name_the_commonest_answer(tmp_path: Path) -> None:
    test = write(tmp_path, "a.jsonl", numbered(12))
    mine = files(test=test) | {"domain": "out_of_domain", "num_test": 5}
    assert load(tmp_path, mine=mine).counts == [
        {
            "dataset": "mine",
            "split": "test",
            "domain": "out_of_domain",
            "num_read": 12,
            "num_dropped_duplicate": 0,
            "num_dropped_overlap": 0,
            "num_wanted": 5,
            "num_kept": 5,
            "overlaps": {"exact": 0},
            "commonest_answer_share": 1.0,
        }
    ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("products", {"max_digits": 2}),
        ("basic_arithmetic", {"max_terms": 2, "max_digits": 2, "operators": ["+", "-"]}),
        ("chain_sum", {"max_terms": 2, "max_digits": 2}),
        ("simple_equations", {"max_terms": 2}),
    ],
)
def test_generated_splits_share_no_text(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    source = {"settings": values}
    one = family(name, num=100, source=source | {"seed": 1})
    two = family(name, num=100, source=source | {"seed": 2})
    outside = family(name, num=100, source=source | {"seed": 3}, domain="out_of_domain")
    outside |= {"num_train": 0}
    questions = asked(load(tmp_path, one=one, two=two, outside=outside))
    train, dev, test = (
        {q.normalized_text for q in questions if q.split == split} for split in SPLITS
    )
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert len(questions) == 800
    assert len({q.question_id for q in questions}) == 800


def test_generated_limit_takes_a_prefix(tmp_path: Path) -> None:
    small = asked(load(tmp_path, mine=family("chain_sum", 20)))
    large = asked(load(tmp_path, mine=family("chain_sum", 20) | {"num_train": 60}))
    for split in SPLITS:
        num_small = len(ids_of(small, split))
        assert ids_of(small, split) == ids_of(large, split)[:num_small]
    assert len(ids_of(large, "train")) == 60
    assert ids_of(large, "train") == sorted(ids_of(large, "train"))


def test_generated_out_of_domain_has_no_train(tmp_path: Path) -> None:
    mine = family("chain_sum", 10) | {"domain": "out_of_domain", "num_train": None}
    loaded = load(tmp_path, mine=mine)
    assert [counts["split"] for counts in loaded.counts] == ["dev", "test"]
    assert {q.domain for q in asked(loaded)} == {"out_of_domain"}


def test_family_of_which_nothing_is_wanted_gives_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, mine=family("chain_sum", 0))
    assert (loaded.table.num_rows, loaded.counts) == (0, [])
    assert loaded.table.schema == QUESTION_TABLE_SCHEMA


def test_narrow_family_says_how_many_it_has(tmp_path: Path) -> None:
    mine = family("products", 90, source={"settings": {"max_digits": 1}})
    with pytest.raises(InputError, match=r"products gave \d+ different train .*lower num_train"):
        load(tmp_path, mine=mine)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (files(test="t.jsonl"), "in_domain needs source.train"),
        (files() | {"domain": "out_of_domain"}, "no files"),
        (files(train="t.jsonl") | {"domain": "out_of_domain"}, "remove source.train"),
        (family("chain_sum") | {"domain": "out_of_domain"}, "remove num_train"),
        (family("chain_sum") | {"num_dev": None}, "num_dev is missing"),
        (family("chain_sum") | {"dev_share": 0.3}, "dev_share is for files"),
        (
            files(test="t") | {"domain": "out_of_domain", "max_accepted_paths": 3},
            "no train; remove",
        ),
        (family("chain_sum") | {"max_generated_tokens": 0}, "greater than 0"),
        (family("chain_sum") | {"weight": 0.0}, "greater than 0"),
        (family("chain_sum") | {"num_dev": -1}, "greater than or equal to 0"),
        (files(train="t.jsonl") | {"dev_share": 0.6, "test_share": 0.5}, "nothing to train on"),
        (files(train="t.jsonl") | {"source": {"kind": "csv"}}, "'files', 'reasoning_gym'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, dataset: dict[str, Any], expected: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=expected):
        settings_of(tmp_path, mine=dataset)


def test_dataset_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match="name at least one"):
        settings_of(tmp_path)
    with pytest.raises(pydantic.ValidationError, match=r"'GSM 8K' may only contain"):
        settings_of(tmp_path, **{"GSM 8K": files(train="t.jsonl")})


def test_resolved_settings_load_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, a=files(train=["a.jsonl"]), b=family("chain_sum"))
    assert QuestionSettings.model_validate_json(settings.model_dump_json()) == settings


def test_weights_and_bounds_are_no_content(tmp_path: Path) -> None:
    more = {"weight": 2, "max_generated_tokens": 10_000, "max_accepted_paths": 5}
    settings = settings_of(tmp_path, mine=family("chain_sum") | more)
    assert settings.datasets["mine"].weight == 2.0
    assert set(content_of(settings.datasets["mine"])).isdisjoint(more)
    assert "on_error" not in content_of(settings)


def test_table_holds_the_questions_with_their_fingerprints(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "question": f"Pick {n}", "choices": ["x", "y", ""][: n % 3 + 1]}
        for n in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r | {"answer": "A"}) for r in rows))
    loaded = load(tmp_path, mine=files(train="a.jsonl", answer_type="choice"))
    assert loaded.table.schema == QUESTION_TABLE_SCHEMA
    assert loaded.table.num_rows == len(asked(loaded)) == 20
    assert loaded.table.column("question_fingerprint").to_pylist() == [
        question.fingerprint for question in asked(loaded)
    ]
    assert {len(question.choices) for question in asked(loaded)} == {1, 2, 3}


def test_split_and_questions_keep_to_the_splits_asked_for(tmp_path: Path) -> None:
    loaded = load(tmp_path, a=family("chain_sum", 5), b=family("products", 4))
    held_out = loaded.split("dev", "test")
    assert held_out.column("split").to_pylist() == 5 * ["dev"] + 5 * ["test"] + 4 * ["dev"] + (
        4 * ["test"]
    )
    ids = [q.question_id for q in loaded.questions("dev", "test")]
    assert held_out.column("question_id").to_pylist() == ids
    assert loaded.split().num_rows == 0
    assert QuestionSet(loaded.table.combine_chunks(), []).split("dev", "test") == held_out


def test_extent_follows_from_the_questions_and_not_from_their_order(tmp_path: Path) -> None:
    loaded = load(tmp_path, a=family("chain_sum", 5), b=family("products", 4))
    turned = load(tmp_path, b=family("products", 4), a=family("chain_sum", 5))
    assert loaded.extent("train") == turned.extent("train")
    one_chunk = QuestionSet(loaded.table.combine_chunks(), [])
    assert loaded.extent(*SPLITS) == one_chunk.extent(*reversed(SPLITS))
    fewer = load(tmp_path, a=family("chain_sum", 5), b=family("products", 3))
    extents = [loaded.extent("train"), loaded.extent("dev"), fewer.extent("train"), fewer.extent()]
    assert len(set(extents)) == 4


def test_extent_follows_a_changed_answer(tmp_path: Path) -> None:
    test = write(tmp_path, "a.jsonl", {"1": "one"})
    outside = files(test=test) | {"domain": "out_of_domain"}
    before = load(tmp_path, mine=outside).extent("test")
    (tmp_path / test).write_text((tmp_path / test).read_text().replace("7", "8"))
    assert load(tmp_path, mine=outside).extent("test") != before


def test_many_batches_keep_order_and_counts(tmp_path: Path) -> None:
    num = 2 * ROWS_PER_BATCH + 7
    train = write(tmp_path, "a.jsonl", [*numbered(num), "QUESTION 5 "])
    test = write(tmp_path, "b.jsonl", numbered(3))
    settings = files(train=train, test=test) | {"dev_share": 0.0}
    loaded = load(tmp_path, mine=settings)
    counts = counts_of(loaded, "mine", "train")
    assert (counts["num_dropped_duplicate"], counts["num_dropped_overlap"]) == (1, 3)
    assert counts["num_kept"] == loaded.split("train").num_rows == num - 3
    by_hash = sorted(
        loaded.split("train").column("question_id").to_pylist(),
        key=lambda key: hashlib.sha256(key.encode()).hexdigest(),
    )
    assert ids_of(asked(loaded), "train") == by_hash
    assert all(q.question_id.lower().endswith(q.question.lower()) for q in asked(loaded))


def test_broken_dataset_is_set_aside_and_the_others_load(tmp_path: Path) -> None:
    good = files(train=write(tmp_path, "good.jsonl", numbered(9)))
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n{oops}\n')
    alone = load(tmp_path, good=good)
    loaded = load_or_skip(
        tmp_path, bad=files(train="bad.jsonl"), good=good, gone=files(train="x.jsonl")
    )
    assert loaded.table == alone.table
    assert loaded.counts == alone.counts
    assert list(loaded.broken) == ["bad", "gone"]
    assert "bad.jsonl:1: no column 'question'" in loaded.broken["bad"]
    assert "no question file" in loaded.broken["gone"]


def test_broken_dataset_stops_the_run_by_default(tmp_path: Path) -> None:
    datasets = {"good": family("chain_sum", 5), "gone": files(train="x.jsonl")}
    tree = {"folder": str(tmp_path), "datasets": datasets}
    with pytest.raises(InputError, match=r"^no question file .*x\.jsonl"):
        load_questions(QuestionSettings.model_validate_json(json.dumps(tree)))


def test_the_only_dataset_is_refused_with_its_own_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no question file .*x\.jsonl"):
        load(tmp_path, gone=files(train="x.jsonl"))


def test_nothing_left_but_broken_datasets_is_refused_with_all_sentences(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    broken = {"gone": files(train="x.jsonl"), "empty": files(train="empty.jsonl")}
    with pytest.raises(
        InputError, match=r"no dataset is left; (?s:.*)gone: no q.*\n  empty: .*contains"
    ):
        load_or_skip(tmp_path, **broken)
    outside = files(test=write(tmp_path, "t.jsonl", ["one"])) | {"domain": "out_of_domain"}
    with pytest.raises(InputError, match=r"to train on is left; (?s:.*)gone: no q.*\n  empty: "):
        load_or_skip(tmp_path, outside=outside, **broken)


def test_broken_dataset_out_of_domain_never_stops_a_run(tmp_path: Path) -> None:
    outside = files(test="x.jsonl") | {"domain": "out_of_domain"}
    assert list(load_or_skip(tmp_path, mine=family("chain_sum", 5), outside=outside).broken) == [
        "outside"
    ]
    other = files(test=write(tmp_path, "t.jsonl", ["one"])) | {"domain": "out_of_domain"}
    assert load_or_skip(tmp_path, outside=outside, other=other).table.num_rows == 1


def test_train_wholly_held_out_is_set_aside_and_still_holds_out(tmp_path: Path) -> None:
    same = write(tmp_path, "a.jsonl", ["one", "two"])
    good = write(tmp_path, "good.jsonl", ["two", "three"])
    loaded = load_or_skip(
        tmp_path,
        mine=files(train=same, test=write(tmp_path, "b.jsonl", {"x": "one", "y": "two"})),
        good=files(train=good) | {"dev_share": 0.0},
    )
    assert "are also in a dev or test split" in loaded.broken["mine"]
    assert [q.question for q in asked(loaded)] == ["three"]


def test_what_is_wrong_with_a_broken_dataset_can_always_be_written(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"half \\ud83d": 1}')
    loaded = load_or_skip(tmp_path, mine=family("chain_sum", 5), bad=files(train="bad.jsonl"))
    assert b"half \\ud83d" in loaded.broken["bad"].encode()


def test_emoji_combining_characters_and_long_texts_come_through_byte_for_byte(
    tmp_path: Path,
) -> None:
    texts = [
        "1 👩‍🔬 + 1 👩🏽‍🚀?",
        "cafe\u0301 and caf\u00e9",
        "ع ١٢٣ \u200b",
        "long " * 40_000 + "?",
    ]
    test = write(tmp_path, "a.jsonl", {str(n): text for n, text in enumerate(texts)})
    loaded = load(tmp_path, mine=files(test=test) | {"domain": "out_of_domain"})
    assert {q.question for q in loaded.questions("test")} == set(texts)
    sink = pa.BufferOutputStream()
    pq.write_table(loaded.table, sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue())) == loaded.table
