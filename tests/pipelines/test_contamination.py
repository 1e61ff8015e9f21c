from __future__ import annotations

from evaluation.question import Question, Split, question_table
from pipelines.selection.contamination import EvaluationWords, word_runs

LONG = "a farmer has {} hens and each hen lays two eggs on every day of the week"


def asked(text: str, dataset: str = "d", split: Split = "test", number: int = 0) -> Question:
    question_id = f"{dataset}/{split}/{number}"
    return Question(question_id, dataset, split, "in_domain", text, "4", "number")


def words(*questions: Question, num_words: int = 8) -> EvaluationWords:
    return EvaluationWords.of(question_table(questions), num_words)


def test_questions_that_share_a_run_of_words_overlap() -> None:
    held_out = words(asked(LONG.format(3)), asked("Something else altogether.", "other"))
    near = asked("Once more: " + LONG.format(9).upper() + "?", split="train")
    assert held_out.datasets_sharing(near) == ["d"]
    far = asked("a farmer has 3 hens and sells all of them for gold", split="train")
    assert held_out.datasets_sharing(far) == []


def test_overlaps_are_named_by_dataset() -> None:
    held_out = words(asked(LONG.format(3), "one"), asked(LONG.format(4), "two"))
    assert held_out.datasets_sharing(asked(LONG.format(5), split="train")) == ["one", "two"]


def test_words_of_many_evaluation_questions_are_a_template() -> None:
    many = [asked(LONG.format(n), number=n) for n in range(100, 111)]
    assert words(*many).datasets_sharing(asked(LONG.format(5), split="train")) == []
    assert words(*many[:10]).datasets_sharing(asked(LONG.format(5), split="train")) == ["d"]


def test_short_questions_overlap_only_as_a_whole_and_signs_count() -> None:
    held_out = words(asked("What is 3 + 5?"))
    assert held_out.datasets_sharing(asked("What is 3 * 5?", split="train")) == []
    assert held_out.datasets_sharing(asked("what IS 3 + 5", split="train")) == ["d"]
    assert held_out.datasets_sharing(asked("", split="train")) == []
    assert words().datasets_sharing(asked("What?", split="train")) == []


def test_word_runs_do_not_hang_on_the_process() -> None:
    assert [int(run) for run in word_runs("one two three", 3)] == [11227827503902287926]
    assert len(word_runs("one two three four", 3)) == 2
    first, second = word_runs("one two three", 3), word_runs("three two one", 3)
    assert first[0] != second[0]
