"""Writes a run with invented answers, within a second and without a model: for looking at reports.

    python -m tests.report.invented_run FOLDER [SEED]

Its numbers mean nothing. It has several datasets, kinds and rounds, cut off answers, trainings and
an hour of events, which a scripted run of a few seconds lacks.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.inference.schedule import Questions, summarize
from cluster.settings import settings_of
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter, compact
from cluster.store.step import STEPS_FILE, Step, claim_run_folder, write_steps
from evaluation.grader import GRADER_VERSION
from evaluation.model_scores import measures_table, score_models
from evaluation.predictions import PREDICTIONS_SCHEMA
from evaluation.question import Question, question_table
from evaluation.scores import score_predictions, scores_table
from pipelines.config import Config
from pipelines.stored_run import CONFIG_FILE, StoredRun, record_config
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.handler import PATHS_SCHEMA
from tests.finished_run import write_questions

BEGAN = datetime(2026, 11, 29, 8, tzinfo=UTC)


@dataclass(frozen=True)
class Invented:
    """What the run is made of."""

    name: str = "invented"
    rounds: int = 2
    num_train: int = 24
    num_test: int = 120
    guidelines_per_question: int = 8
    seed: int = 0
    text: str = ""
    """In every field that a model or a dataset can fill, in place of the usual one."""
    gains: Sequence[float] = (0.16, 0.2)
    """How much more often the model of each round is right in domain."""
    is_finished: bool = True
    """Else the last round has only half of its paths."""
    own_reason: str = ""
    """Why a filter of one's own drops paths; empty without one."""

    def datasets(self) -> dict[str, tuple[str, tuple[str, ...], float]]:
        """The domain, the kinds and the base's share of right answers, by name."""
        mine = {
            "arithmetic": ("in_domain", ("sums", "products"), 0.34),
            "word_problems": ("in_domain", ("money", "time"), 0.28),
            "science": ("out_of_domain", ("",), 0.41),
            "logic": ("out_of_domain", ("",), 0.3),
        }
        return {f"{self.text}{name}": facts for name, facts in mine.items()}


def write_invented_run(root: Path, what: Invented) -> Folder:
    """Write the run below a folder and return its folder."""
    random_ = random.Random(what.seed)
    folder = Folder.open(str(root / what.name))
    claim_run_folder(folder, what.name)
    config = _config(root, what)
    record_config(config, folder)
    asked = _questions(what, random.Random(0))  # runs of other seeds have the same questions
    questions = Step.below(folder, "questions", {})
    write_questions(questions, asked)
    recipe = Recipe.load(0, config.synthesis)
    names = [f"{what.text}{each.guideline_id}" for each in recipe.guidelines]
    skill = {name: random_.uniform(-0.12, 0.2) for name in names}
    steps = [questions, _predictions(folder.child("base"), asked, what, 0.0, random_)]
    for number in range(what.rounds):
        below, is_last = folder.child(f"round_{number}"), number == what.rounds - 1
        content = {
            "guidelines": [{"guideline_id": n, "text": what.text or f"Use {n}."} for n in names],
            "prompts": {"path": what.text or "Solve it step by step: {question}"},
        }
        paths = Step.below(below, "paths", content)
        rows = _path_rows(asked, what, number, skill, random_)
        if is_last and not what.is_finished:
            paths.keep_content()
            _write_rows(paths, rows[: len(rows) // 2], PATHS_SCHEMA)
            steps.append(paths)
            steps += [Step.below(below, kind, {}) for kind in ("examples", "model", "predictions")]
            break
        _write_ledger(paths, rows, PATHS_SCHEMA, Questions(questions.folder, ("train",)))
        examples, model = Step.below(below, "examples", {}), Step.below(below, "model", {})
        examples.commit(**_examples(rows, what.own_reason))
        model.commit(
            num_examples=300,
            num_steps=60,
            first_loss=1.9,
            last_loss=1.1,
            seconds=900.0,
            num_tokens=9,
        )
        steps += [paths, examples, model]
        steps.append(_predictions(below, asked, what, what.gains[number], random_))
        steps.append(_scores(below, questions, steps[1], steps[-1]))
    _write_events(folder, what, random_)
    places = [step.folder.path.removeprefix(f"{folder.path}/") for step in steps]
    folder.write_json(STEPS_FILE, places)
    return folder


def _config(root: Path, what: Invented) -> Config:
    tree = {
        "run": what.name,
        "rounds": what.rounds,
        "model": {"path": "/models/some-model-1b"},
        "questions": {
            "datasets": {"arithmetic": {"source": {"kind": "files", "train": "a.jsonl"}}}
        },
        "synthesis": {"guidelines_per_question": what.guidelines_per_question, "seed": what.seed},
        "storage": {"root": str(root), "cache": str(root / "cache")},
    }
    return settings_of(Config, tree, "test")


def _questions(what: Invented, random_: random.Random) -> list[Question]:
    asked = []
    for name, (domain, kinds, _) in what.datasets().items():
        splits = [("train", what.num_train)] if domain == "in_domain" else []
        for split, number in [*splits, ("test", what.num_test)]:
            for place in range(number):
                answer = str(random_.randint(2, 60))
                asked.append(
                    Question(
                        f"{name}/{split}/{place:05d}",
                        name,
                        split,  # type: ignore[arg-type]
                        domain,  # type: ignore[arg-type]
                        what.text or f"How many are {random_.randint(2, 99)} and some more?",
                        answer,
                        "number",
                        kind=what.text or kinds[place % len(kinds)],
                    )
                )
    return asked


def _answer(question: Question, chance: float, random_: random.Random) -> dict[str, Any]:
    """A text, its end and its grade: right with this chance."""
    fate = random_.random()
    right = random_.random() < chance
    said = question.answer if right else str(random_.randint(61, 99))
    text = f"I work it out step by step. \\boxed{{{said}}}"
    if fate < 0.06:
        text, right, said = "I work it out step by", False, ""
    elif fate < 0.14:
        text = f"I work it out. It is {said}"
    read = "nothing" if not said else "last" if fate < 0.14 else "boxed"
    return {
        "text": text,
        "finish_reason": "length" if fate < 0.06 else "stop",
        "num_tokens": 400 if fate < 0.06 else random_.randint(60, 260),
        "predicted": said or None,
        "verdict": "truncated" if fate < 0.06 else "correct" if right else "wrong",
        "read_as": read,
    }


def _ledger_row(question: Question, **facts: Any) -> dict[str, Any]:
    numbers = {"num_paths": 0, "num_accepted": 0, "num_failed": 0, "num_truncated": 0}
    first = {"question_fingerprint": question.fingerprint, "attempt": 0, "error": None}
    return question.to_row() | first | numbers | {"num_tokens": 0, "num_prompt_tokens": 0} | facts


def _path_rows(
    asked: Iterable[Question],
    what: Invented,
    number: int,
    skill: Mapping[str, float],
    random_: random.Random,
) -> list[dict[str, Any]]:
    rows = []
    for question in asked:
        if question.split != "train":
            continue
        level = 0.35 + 0.08 * number + random_.uniform(-0.3, 0.3)
        drawn = random_.sample(sorted(skill), min(len(skill), what.guidelines_per_question))
        paths = [
            _path(question, what, number, name, level + skill[name], random_) for name in drawn
        ]
        tokens = sum(made["num_tokens"] for path in paths for made in path["generations"])
        rows.append(
            _ledger_row(
                question,
                round=number,
                strategy="regenesis",
                grader_version=GRADER_VERSION,
                paths=paths,
                num_paths=len(paths),
                num_accepted=sum(path["verdict"] == "correct" for path in paths),
                num_truncated=sum(path["verdict"] == "truncated" for path in paths),
                num_tokens=tokens,
            )
        )
    return rows


def _path(
    question: Question,
    what: Invented,
    number: int,
    guideline: str,
    chance: float,
    random_: random.Random,
) -> dict[str, Any]:
    answer = _answer(question, chance, random_)
    made = [("adapt", 30, "stop"), ("structure", 60, "stop")]
    made.append(("path", answer["num_tokens"], answer["finish_reason"]))
    return {
        "path_id": f"{number}/regenesis/{question.question_id}/{guideline}/0/0",
        "guideline_id": guideline,
        "pass": 0,
        "sample": 0,
        "option_order": [],
        "adapted_guideline": what.text or "Look at the numbers first.",
        "structure": what.text or "1. Read it. 2. Work it out.",
        "thinking": "",
        "reasoning": what.text or answer["text"],
        "token_ids": [],
        "generations": [
            {"stage": stage, "seed": 1, "finish_reason": end, "num_tokens": tokens}
            for stage, tokens, end in made
        ],
        "predicted": what.text or answer["predicted"],
        "verdict": answer["verdict"],
        "read_as": answer["read_as"],
        "error": None,
    }


def _examples(rows: Sequence[Mapping[str, Any]], own_reason: str) -> dict[str, Any]:
    datasets: dict[str, dict[str, Any]] = {}
    for row in rows:
        facts = datasets.setdefault(
            row["dataset"],
            {"num_paths": 0, "num_kept_paths": 0, "num_examples": 0, "expected_lucky_share": 0.02}
            | {"dropped": {}, "overlaps_with": {}},
        )
        reasons = why_dropped(row["paths"], own_reason)
        kept = len(row["paths"]) - len(reasons)
        facts["num_paths"] += len(row["paths"])
        facts["num_kept_paths"] += kept
        facts["num_examples"] += kept
        for reason in reasons:
            facts["dropped"][reason] = facts["dropped"].get(reason, 0) + 1
    total = sum(facts["num_examples"] for facts in datasets.values())
    return {"num_examples": total, "num_paths": 1, "num_kept_paths": total, "datasets": datasets}


def why_dropped(paths: Sequence[Mapping[str, Any]], own_reason: str = "") -> list[str]:
    """The reasons for which paths of one question are dropped; of the right ones three are kept,
    and some leak or repeat others. With `own_reason`, a filter of one's own drops some, too."""
    reasons = [path["verdict"] for path in paths if path["verdict"] != "correct"]
    kept = 0
    for path in paths:
        if path["verdict"] != "correct":
            continue
        drawn = random.Random(path["path_id"]).random()
        if drawn < 0.08:
            reasons.append("leak_guideline" if drawn < 0.06 else "leak_structure")
        elif own_reason and drawn < 0.2:
            reasons.append(own_reason)
        elif drawn < 0.3:
            reasons.append("duplicate")
        elif kept == 3:
            reasons.append("over_max_per_question")
        else:
            kept += 1
    return reasons


def _predictions(
    below: Folder, asked: Sequence[Question], what: Invented, gain: float, random_: random.Random
) -> Step:
    """The answers of a model whose folder is in the run's, after the questions."""
    step = Step.below(below, "predictions", {})
    rows = []
    for question in asked:
        if question.split == "train":
            continue
        domain, _, share = what.datasets()[question.dataset]
        hard = random.Random(question.question_id).uniform(-0.25, 0.25)
        chance = share + hard + (gain if domain == "in_domain" else 0.1 * gain)
        answer = _answer(question, chance, random_)
        facts = {k: v for k, v in answer.items() if k != "text"}
        own = {"response": answer["text"], "thinking": "", "grader_version": GRADER_VERSION}
        rows.append(_ledger_row(question, **facts, **own))
    _write_rows(step, rows, PREDICTIONS_SCHEMA)
    ledger = compact(step.folder, PREDICTIONS_SCHEMA)
    step.commit(rows=summarize(ledger, _keys(asked)))
    return step


def _keys(asked: Sequence[Question]) -> pa.Table:
    held_out = [each for each in asked if each.split != "train"]
    return question_table(held_out).select(["question_id", "question_fingerprint", "dataset"])


def write_invented_evaluation(root: Path, gains: Mapping[str, float]) -> Folder:
    """An evaluation of models with these names, each right by so much more often."""
    what, random_ = Invented(name="evaluation"), random.Random(1)
    folder = Folder.open(str(root / what.name))
    claim_run_folder(folder, what.name)
    folder.write_bytes(CONFIG_FILE, b"run: evaluation\n")
    asked = _questions(what, random.Random(0))
    questions = Step.below(folder, "questions", {})
    write_questions(questions, asked)
    models = folder.child("models")
    answered = {
        name: _predictions(models.child(name), asked, what, gain, random_)
        for name, gain in gains.items()
    }
    scores = Step.below(models, "scores", {})
    of_models = {name: step.folder for name, step in answered.items()}
    measures = score_models(Questions(questions.folder, ("dev", "test")), of_models)
    scores.folder.write_table("scores.parquet", measures_table(measures))
    scores.commit()
    steps = [questions, *answered.values(), scores]
    folder.write_json(STEPS_FILE, [s.folder.path.removeprefix(f"{folder.path}/") for s in steps])
    return folder


def _scores(below: Folder, questions: Step, base: Step, tuned: Step) -> Step:
    step = Step.below(below, "scores", {})
    held_out = Questions(questions.folder, ("dev", "test"))
    scores = score_predictions(held_out, base.folder, tuned.folder)
    step.folder.write_table("scores.parquet", scores_table(scores))
    step.commit()
    return step


def _write_ledger(
    step: Step, rows: list[dict[str, Any]], schema: pa.Schema, asked: Questions
) -> None:
    _write_rows(step, rows, schema)
    step.commit(rows=summarize(compact(step.folder, schema), asked.keys()))


def _write_rows(step: Step, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    PartWriter(step.folder.child("parts/000000-000001-aaaa/0"), schema).write(rows)


# --- events ------------------------------------------------------------------------------------


def _write_events(folder: Folder, what: Invented, random_: random.Random) -> None:
    """One command with, for each round, half an hour of paths and a training."""
    events: list[dict[str, Any]] = []
    now = BEGAN

    def record(event: str, minutes: float = 0.0, **facts: Any) -> None:
        nonlocal now
        now += timedelta(minutes=minutes)
        at = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        events.append({"at": at, "event": event, **facts})

    record("command_started", command="run", pid=1)
    for number in range(what.rounds):
        record("step_started", round=number, step="paths")
        tokens = 0
        for minute in range(30):
            tokens += int(60 * random_.gauss(2400 if 4 < minute < 26 else 1500, 120))
            counts: dict[str, Any] = {
                "questions": {"paths": minute},
                "questions_left": {"paths": 30 - minute},
            }
            record("rate", 1, tokens=tokens, in_flight=64, engines=2, **counts)
        cost: dict[str, Any] = {"gpu_hours": 1.0, "money": 2.5, "currency": "EUR"}
        record("generated", jobs=["paths"], num_tokens=tokens, wall_s=1800.0, **cost)
        record("step_finished", round=number, step="paths", seconds=1800.0)
        record("step_started", round=number, step="model")
        for step in range(0, 61, 4):
            facts: dict[str, Any] = {
                "step": float(max(1, step)),
                "num_steps": 60.0,
                "loss": 1.1 + 0.8 * 0.95**step + random_.uniform(-0.03, 0.03),
                "learning_rate": 1e-5 * (1 - step / 61),
                "grad_norm": random_.uniform(0.8, 1.4),
                "tokens_per_s": random_.uniform(800, 900),
            }
            record("training_rate", 1, model=f"round {number}", **facts)
        record("trained", model=f"round {number}", tokens=90000, seconds=900.0, **cost)
        record("step_finished", round=number, step="model", seconds=900.0)
    if what.is_finished:
        record("command_finished", command="run", pid=1, seconds=5400.0)
    lines = "".join(f"{json.dumps(event)}\n" for event in events)
    folder.child("logs/20261129T080000-run").write_bytes("events.jsonl", lines.encode())


def invented_run(root: Path, **changes: Any) -> StoredRun:
    """The run, opened."""
    return StoredRun.read(write_invented_run(root, Invented(**changes)))


DECISION: dict[str, Any] = {
    "adopted": False,
    "began_with": "the base model",
    "gate_lines": ["products: -0.08 [-0.12, -0.04]"],
    "alarms": ["diversity of the paths of a question: 12.0 %, below 30.0 %"],
    "stop": None,
    "measures": {"diversity": 0.12, "vote_share": None, "path_tokens": 40.0},
}


def with_decision(run: StoredRun) -> StoredRun:
    """The run with `DECISION` about its round 1."""
    step = Step.below(run.folder.child("round_1"), "decision", {"any": "content"})
    step.commit(**DECISION)
    name = step.folder.path.removeprefix(f"{run.folder.path}/")
    write_steps(run.folder, [*run.steps, name])
    return StoredRun.read(run.folder)


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print(write_invented_run(Path(sys.argv[1]), Invented(name=f"invented_{seed}", seed=seed)).uri)
