"""Forced readings: how they are asked for, graded, stored and scored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import InputError
from cluster.inference.engine import (
    Beginning,
    Completion,
    EndpointSettings,
    EngineSettings,
    GenerationError,
    SamplingSettings,
    check_engine_continues,
)
from cluster.inference.job import Slots
from cluster.store.folder import Folder
from evaluation.forced_scores import (
    ForcedScore,
    compare_readings,
    forced_table,
    format_forced,
    right_under,
)
from evaluation.model_scores import format_measures, measure_model
from evaluation.predictions import (
    EvaluationSettings,
    PredictAnswer,
    Prediction,
    predictions_schema,
)
from evaluation.question import Question
from evaluation.readings import CUES, TRAINED, UNTRAINED, Reading, grade_continuation
from evaluation.statistics import paired_difference
from pipelines.selection.example import EXAMPLES_SCHEMA
from pipelines.selection.select_examples import with_boxed_answer
from pipelines.steps.scores import count_targets

NUMBER = Question("d/test/1", "d", "test", "in_domain", "What is 20 + 4?", "24", "number")
CHOICE = Question(
    "d/test/2", "d", "test", "in_domain", "Which?", "B", "choice", ("cat", "dog", "ox")
)
FRACTION = Question("d/test/3", "d", "test", "in_domain", "x?", "\\frac{1}{2}", "math")
SCHEMA = predictions_schema(samples=False, readings=True)


class Continues:
    """Says 25, goes on with the truth, and weighs the second of two or more options most."""

    def __init__(self, *, fails: bool = False, answers: bool = True) -> None:
        self.begun: list[tuple[Beginning, SamplingSettings]] = []
        self._fails, self._answers = fails, answers

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        if not self._answers:
            raise GenerationError("the prompt is too long")
        return [Completion("It is 25", [7, 8, 2], "stop", 9)] * n

    async def go_on(
        self,
        messages: Sequence[Mapping[str, str]],
        beginning: Beginning,
        sampling: SamplingSettings,
    ) -> Completion:
        self.begun.append((beginning, sampling))
        if self._fails:
            raise GenerationError("refused")
        weighed = tuple(-1.0 - (place != 1) for place, _ in enumerate(beginning.options))
        return Completion(" 24.", [3], "stop", 12, option_log_likelihoods=weighed)

    def shutdown(self) -> None: ...


def predict(question: Question, engine: Continues) -> dict[str, Any]:
    handler = PredictAnswer(EvaluationSettings(max_tokens=50).sampling, readings=True)
    row = question.to_row() | {"question_fingerprint": question.fingerprint}
    return asyncio.run(handler(engine, row, Slots(2), None))


def test_answer_is_continued_behind_each_cue_and_the_row_keeps_ids_and_readings() -> None:
    engine = Continues()
    [stored] = pa.Table.from_pylist([predict(NUMBER, engine)], schema=SCHEMA).to_pylist()
    prediction = Prediction.from_row(stored)
    assert (prediction.response_ids, prediction.num_tokens) == ((7, 8, 2), 3)
    assert (prediction.verdict, prediction.read_as) == ("wrong", "last")
    assert {name: r.verdict for name, r in prediction.readings.items()} == dict.fromkeys(
        CUES, "correct"
    )
    assert prediction.graded() == prediction
    begun = [(b.answered is not None, b.cue, b.options) for b, _ in engine.begun]
    assert begun == [(True, UNTRAINED, ()), (True, TRAINED, ()), (False, UNTRAINED, ())]
    assert {(s.temperature, s.max_tokens) for _, s in engine.begun} == {(0.0, 16)}


def test_options_are_weighed_with_and_without_the_answer() -> None:
    engine = Continues()
    prediction = Prediction.from_row(predict(CHOICE, engine))
    assert [b.options for b, _ in engine.begun] == [(" A", " B", " C"), (), (" A", " B", " C")]
    assert prediction.readings["forced"].option_log_likelihoods == (-2.0, -1.0, -2.0)
    assert prediction.readings["forced"].likeliest == "B"
    assert right_under(prediction, "likelihood")
    assert right_under(prediction, "likelihood_no_reasoning")
    assert not right_under(prediction, "forced")  # 24 is no option
    assert right_under(Prediction.from_row(predict(NUMBER, Continues())), "likelihood") is None


def test_reading_that_failed_is_counted_tried_again_and_wrong() -> None:
    failed = predict(NUMBER, Continues(fails=True))
    assert (failed["num_failed"], failed["error"]) == (3, None)
    prediction = Prediction.from_row(failed)
    assert prediction.readings["forced"].error == "refused"
    assert right_under(prediction, "forced") is False
    weighed = Prediction.from_row(predict(CHOICE, Continues(fails=True)))
    assert weighed.readings["forced"].likeliest is None
    assert right_under(weighed, "likelihood") is False
    unanswered = predict(NUMBER, Continues(answers=False))
    assert unanswered["num_failed"] == 4
    assert unanswered["boxed"]["error"] == "the prompt is too long"
    assert pa.Table.from_pylist([failed, unanswered], schema=SCHEMA).num_rows == 2


def test_predictions_without_readings_are_as_they_were() -> None:
    plain = Prediction(NUMBER, "24", finish_reason="stop").graded()
    assert not {"response_ids", *CUES} & plain.to_row().keys()
    assert right_under(plain, "forced") is None
    assert predictions_schema(samples=False, readings=False).names == [
        name for name in SCHEMA.names if name not in ("response_ids", *CUES)
    ]


def test_engine_that_continues_no_answer_is_refused_before_anything_starts() -> None:
    served = EndpointSettings(url="http://localhost:1/v1", model="m")
    server = EngineSettings(implementation="endpoint", endpoint=served)
    own = EngineSettings(implementation="tests.golden.engine.GoldenEngine")
    for refused in (server, own):
        with pytest.raises(InputError, match=r"--readings needs an engine .* run the model here"):
            check_engine_continues(refused, "--readings")
    check_engine_continues(EngineSettings(), "--readings")


def test_targets_that_hold_the_cue_are_counted_by_dataset(tmp_path: Path) -> None:
    said = {"a": ["It is 4.", f"It is 4.{UNTRAINED} 4"], "b": ["No."]}
    rows = [
        {"dataset": name, "messages": [{"role": "assistant", "content": text}]}
        for name, texts in said.items()
        for text in texts
    ]
    folder = Folder.open(str(tmp_path))
    folder.write_table("train-0.parquet", pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA))
    assert count_targets(folder, UNTRAINED.strip(), None) == (1, 3)
    assert count_targets(folder, UNTRAINED.strip(), "b") == (0, 1)


def test_time_left_knows_of_the_continuations() -> None:
    handler = PredictAnswer(EvaluationSettings(max_tokens=50).sampling, readings=True)
    assert (handler.width, handler.generations) == (3, {50: 1, 16: 3})
    same = PredictAnswer(EvaluationSettings(max_tokens=16).sampling, readings=True)
    assert same.generations == {16: 4}


def test_trained_cue_is_how_a_target_is_ended_and_the_other_is_not() -> None:
    ended = with_boxed_answer("", NUMBER, "24")
    assert ended.startswith(TRAINED)
    assert UNTRAINED.strip() not in ended


@pytest.mark.parametrize(
    ("question", "cue", "text", "predicted"),
    [
        (NUMBER, UNTRAINED, " 24", "24"),
        (NUMBER, UNTRAINED, " 24.\n\nLet me check: 25", "24"),
        (NUMBER, UNTRAINED, " 20 + 4 = 24", "24"),
        (NUMBER, UNTRAINED, " \\boxed{24}", "24"),
        (NUMBER, UNTRAINED, "", None),
        (NUMBER, TRAINED, "24}. So it is 25", "24"),
        (NUMBER, TRAINED, "24 because 20 plus", "24"),  # cut before the box is closed
        (NUMBER, TRAINED, "}", None),
        (CHOICE, UNTRAINED, " B) dog", "B"),
        (CHOICE, TRAINED, "dog}", "B"),
        (CHOICE, UNTRAINED, " D", None),
        (FRACTION, TRAINED, "\\frac{1}{2}}$.", "0.5"),
        (FRACTION, UNTRAINED, " $\\frac12$", "0.5"),
    ],
)
def test_continuation_is_graded_as_an_answer(
    question: Question, cue: str, text: str, predicted: str | None
) -> None:
    result = grade_continuation(cue, text, question)
    assert result.predicted == predicted
    assert (result.verdict == "correct") == (predicted is not None)


LISTED = Question("d/test/4", "d", "test", "in_domain", "?", "A", "choice", ("ice", "sand", "fire"))
YES = Question("d/test/5", "d", "test", "in_domain", "?", "yes", "boolean")


@pytest.mark.parametrize(
    ("question", "text", "is_list"),
    [
        (LISTED, "\nA. ice\nB. sand\nC. fire", True),
        (LISTED, " A\nB\nC", True),
        (LISTED, " (A)\n\n(B)", True),
        (LISTED, " ice\nsand", True),
        (LISTED, " A. ice. B. sand", True),
        (LISTED, " A\nA\nA", False),
        (LISTED, " A. ice\nThe answer is A", False),
        (LISTED, " A\n\nExplanation: B is wrong", False),
        (LISTED, " A. ice\nQ: Which is hot?", False),
        (LISTED, " A. ice. It is cold.", False),
        (NUMBER, " 24\n25\n26", True),
        (NUMBER, " 24. 25. 26.", True),
        (NUMBER, " 24.0\n24", False),
        (NUMBER, " 24\nStep 2: add 25", False),
        (NUMBER, " 24. There are 25 more.", False),
        (YES, " yes\nno", True),
        (YES, " yes. No.", True),
        (YES, " yes\nIt is not hot.", False),
        (FRACTION, " \\frac12\n\\frac13", False),  # such answers look like any other text
    ],
)
def test_continuation_that_lists_answers_gives_none(
    question: Question, text: str, is_list: bool
) -> None:
    result = grade_continuation(UNTRAINED, text, question)
    assert result.verdict == ("no_answer" if is_list else "correct")


# --- scores ------------------------------------------------------------------------------------


def predictions(strict: str, forced: str, task: str = "t") -> dict[str, Prediction]:
    """`1`, `0` and `-` (unreadable) for each answer; `1` and `0` for each forced reading."""
    said = {"1": "\\boxed{24}", "0": "\\boxed{25}", "-": "hm"}
    found = {}
    for number, (answer, right) in enumerate(zip(strict, forced, strict=True)):
        question = Question(f"{task}/{number}", task, "test", "in_domain", "?", "24", "number")
        text = " 24" if right == "1" else " 25"
        readings = {name: Reading(cue.text, text) for name, cue in CUES.items()}
        asked = Prediction(question, said[answer], finish_reason="stop", readings=readings)
        found[question.question_id] = asked.graded()
    return found


def scores(base: dict[str, Prediction], tuned: dict[str, Prediction]) -> list[ForcedScore]:
    return compare_readings([each.question for each in base.values()], base, tuned)


def test_gain_of_format_alone_is_all_in_strict_minus_forced() -> None:
    base, tuned = predictions("----10", "110011"), predictions("110010", "110011")
    forced, *_ = scores(base, tuned)
    assert (forced.reading, forced.base, forced.tuned, forced.difference) == (
        "forced",
        *[4 / 6] * 2,
        0,
    )
    assert forced.format_part == pytest.approx(2 / 6)
    assert forced.format_part_low is not None
    assert forced.format_part_low <= 2 / 6 <= (forced.format_part_high or 0)
    cells = (forced.base_read_right, forced.base_unread_right, forced.base_unread_wrong)
    assert cells == pytest.approx((2 / 6, 2 / 6, 2 / 6))
    assert forced.tuned_read_wrong == pytest.approx(2 / 6)


def test_gain_of_knowledge_is_the_difference_under_the_forced_reading() -> None:
    base, tuned = predictions("0000", "0000"), predictions("1110", "1110")
    [forced] = [each for each in scores(base, tuned) if each.reading == "forced"]
    expected = paired_difference([0] * 4, [1, 1, 1, 0])
    assert (forced.difference, forced.difference_low, forced.difference_high) == expected
    assert (forced.gained, forced.lost, forced.format_part) == (3, 0, 0.0)


def test_tasks_of_a_domain_have_all_and_mean_and_are_shown() -> None:
    base = predictions("00", "00") | predictions("0000", "0000", "u")
    tuned = predictions("11", "11") | predictions("0000", "0000", "u")
    found = scores(base, tuned)
    forced = {each.task: each for each in found if each.reading == "forced"}
    assert [each.difference for each in forced.values()] == [1.0, 0.0, pytest.approx(1 / 3), 0.5]
    assert forced["mean"].num_questions == 6
    assert not [each for each in found if each.reading.startswith("likelihood")]
    shares, cells = format_forced(found).split("\n\n")
    assert "| in_domain/mean | no_reasoning | 6 " in shares
    assert "| in_domain/t    | boxed   | 0.0 > 100.0 " in cells
    assert forced_table(found).num_rows == len(found)


def test_one_question_of_a_task_has_no_interval_of_the_part_of_the_format() -> None:
    base = predictions("-", "1") | predictions("--", "10", "u")
    tuned = predictions("1", "1") | predictions("11", "11", "u")
    forced = {each.task: each for each in scores(base, tuned) if each.reading == "forced"}
    assert (forced["t"].format_part, forced["t"].format_part_low) == (1.0, None)
    assert forced["u"].format_part_low is not None
    mean = forced["mean"]
    assert (mean.format_part, mean.format_part_low, mean.format_part_high) == (0.75, None, None)
    assert mean.difference_low <= mean.difference == 0.25
    assert "75.0" in format_forced(list(forced.values()))


def test_models_without_readings_have_no_line() -> None:
    plain = {"a": Prediction(NUMBER, "24", finish_reason="stop").graded()}
    assert (
        compare_readings(
            [NUMBER], {NUMBER.question_id: plain["a"]}, {NUMBER.question_id: plain["a"]}
        )
        == []
    )
    assert format_forced([]) == ""


def test_table_of_models_shows_each_reading() -> None:
    rows = [*predictions("1-", "10").values()]
    measures = measure_model("m", rows)
    found = {(m.reading, m.metric): m.value for m in measures}
    assert found["forced", "accuracy"] == found["forced", "read_right"] == 0.5
    _, readings, cells = format_measures(measures).split("\n\n")
    assert "| no reasoning " in readings
    assert "forced: read & right" in cells
