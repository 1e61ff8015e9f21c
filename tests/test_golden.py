"""What the scripted engine led to at commit 811bd38 is what it leads to now.

`tests/golden/outcomes.json` holds, for each way of synthesis, counts and digests of the rows, of
what was selected of them and of the scores; `tests/golden/runs.json` the same of whole runs. They
were recorded before the driver was taken apart. What a name is called today and was called then
is in `tests/golden/renames.json`. A change that is meant to change results is recorded anew::

    REGENESIS_RECORD_GOLDEN=1 python -m pytest tests/test_golden.py
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.inference.engine import EngineSettings
from cluster.inference.job import Handler, Slots
from cluster.models.chat_template import load_tokenizer
from cluster.settings import settings_of, with_overrides
from evaluation.predictions import PREDICTIONS_SCHEMA, EvaluationSettings, PredictAnswer, Prediction
from evaluation.question import Question, Split
from evaluation.scores import compare_scores
from pipelines.config import Config
from pipelines.selection.contamination import EvaluationWords
from pipelines.selection.select_examples import ExampleSelector, select_examples
from pipelines.strategy import with_strategy
from pipelines.synthesis.chain import Recipe
from pipelines.synthesis.handler import PATHS_SCHEMA, SynthesizePaths
from tests.conftest import arithmetic, ledger_rows, run_here
from tests.golden.engine import GoldenEngine

GOLDEN = Path(__file__).parent / "golden"
RENAMES: dict[str, dict[str, str]] = json.loads((GOLDEN / "renames.json").read_text())
"""What columns, and texts that name something, are called now, to what they were called then. A
column that came later is renamed to the empty text, and left out."""
NO_RESULTS = ("grader_version", "question_fingerprint", "")
RECORDS = "REGENESIS_RECORD_GOLDEN"

VARIANTS: dict[str, list[str]] = {
    "regenesis": ["synthesis.guidelines_per_question=6"],
    "direct": ["synthesis.strategy=direct"],
    "star": ["synthesis.strategy=star"],
    "rft": ["synthesis.strategy=rft"],
    "rest_em": ["synthesis.strategy=rest_em"],
    "lmsi": ["synthesis.strategy=lmsi"],
    "hints": [
        "synthesis.guidelines_per_question=2",
        "synthesis.hint_stages=[structure, path]",
        "examples.max_hinted_share=0.3",
    ],
    "judge": ["synthesis.guidelines_per_question=4", "synthesis.judge=correct"],
    "judge_all": ["synthesis.guidelines_per_question=2", "synthesis.judge=all"],
    "shuffled": [
        "synthesis.strategy=direct",
        "synthesis.samples=6",
        "synthesis.shuffle_options=true",
        "examples.read_last=[number, choice, boolean]",
    ],
    "without_adaptation": [
        "synthesis.chain=[structure, path]",
        "synthesis.guidelines_per_question=3",
        "synthesis.samples=2",
    ],
    "without_structure": [
        "synthesis.chain=[adapt, path]",
        "synthesis.guidelines_per_question=6",
        "examples.drop_leaks=[hint, structure, guideline]",
    ],
    "unfiltered": [
        "synthesis.guidelines_per_question=6",
        "examples.verdict=unfiltered",
        "examples.draw=diversity",
    ],
    "strict": [
        "synthesis.guidelines_per_question=8",
        "examples.pass_rate=[0.2, 0.8]",
        "examples.min_correct_above_chance=0.5",
        "examples.max_similarity=0.8",
        "examples.contamination.drop=true",
        "examples.contamination.num_words=5",
        "examples.thinking=keep",
    ],
}


def questions(split: Split) -> list[Question]:
    """Sums to be worked out, chosen among options, and judged."""
    made = []
    for number in range(8):
        first, second = 17 * number + 3, 5 * number * number + 1
        value, place = first + second, number % 4
        options = [value + offset - place for offset in range(4)]
        text = f"What is {first} + {second} in {split} number {number % 5}?"
        claim = f"Is {first} + {second} equal to {value + number % 2}?"
        name = f"{split}/{number:02d}"
        made += [
            Question(f"sums/{name}", "sums", split, "in_domain", text, str(value), "number"),
            Question(
                f"options/{name}",
                "options",
                split,
                "in_domain",
                text,
                "ABCD"[place],
                "choice",
                tuple(map(str, options)),
                solution=f"We add: {first} + {second} = {value}.",
            ),
            Question(
                f"claims/{name}",
                "claims",
                split,
                "in_domain" if split == "train" else "out_of_domain",
                claim,
                "no" if number % 2 else "yes",
                "boolean",
            ),
        ]
    return made


def answered(
    handler: Handler, asked: Sequence[Question], model: str, schema: pa.Schema
) -> list[dict[str, Any]]:
    """The rows as they come back from storage: each question tried, and its failures once more."""
    engine = GoldenEngine(model, EngineSettings())

    async def answer(question: Question) -> dict[str, Any]:
        row = question.to_row() | {"question_fingerprint": question.fingerprint}
        first = await handler(engine, row, Slots(4), None) | {"attempt": 0}
        if not first["num_failed"]:
            return first
        [stored] = pa.Table.from_pylist([first], schema=schema).to_pylist()
        return await handler(engine, row, Slots(4), stored) | {"attempt": 1}

    async def answer_all() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(answer, asked)))

    rows = asyncio.run(answer_all())
    read: list[dict[str, Any]] = pa.Table.from_pylist(rows, schema=schema).to_pylist()
    return read


def outcome_of(config: Config, model_folder: Path) -> dict[str, Any]:
    """All that one config makes of the training questions: rows and examples."""
    held_out = questions("dev") + questions("test")
    handler = SynthesizePaths(Recipe.load(0, config.synthesis), config.examples.read_last)
    rows = answered(handler, questions("train"), "base", PATHS_SCHEMA)
    words = EvaluationWords.of(
        pa.Table.from_pylist([question.to_row() for question in held_out]),
        config.examples.contamination.num_words,
    )
    selector = ExampleSelector(
        config.examples, load_tokenizer(str(model_folder)), config.evaluation.template_args, words
    )
    selected = vars(select_examples(rows, selector))
    return {
        "width": handler.width,
        "paths": described(rows),
        "num_paths": sum(row["num_paths"] for row in rows),
        "num_accepted": sum(row["num_accepted"] for row in rows),
        "num_failed": sum(row["num_failed"] for row in rows),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "selected": {kind: described(of_kind) for kind, of_kind in selected.items()},
        "dropped": counted(row["reason"] for row in selected["dropped"]),
    }


# --- how an outcome is written down ------------------------------------------------------------


def described(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows there are, and a digest of them all under their names of then."""
    lines = sorted(json.dumps(as_named_then(row), sort_keys=True) for row in rows)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{len(lines)} {digest[:16]}"


def as_named_then(value: Any) -> Any:
    """A value with columns, and texts that name something, called as they were at 811bd38."""
    if isinstance(value, Mapping):
        named = {
            RENAMES["columns"].get(name, name): as_named_then(item) for name, item in value.items()
        }
        return {name: item for name, item in named.items() if name not in NO_RESULTS}
    if isinstance(value, list | tuple):
        return [as_named_then(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return RENAMES["values"].get(value, value) if isinstance(value, str) else value


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = as_named_then(row)
    return renamed


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason was given, under its name of then."""
    counts: dict[str, int] = {}
    for reason in reasons:
        name = RENAMES["values"].get(reason, reason)
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def check(file: str, name: str, outcome: Any) -> None:
    """Compare with what was recorded, or record it where that is asked for."""
    path = GOLDEN / file
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get(RECORDS):
        recorded[name] = outcome
        path.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert outcome == recorded[name]


# --- the outcomes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_synthesis_selection_and_scores_are_what_they_were(name: str, model_folder: Path) -> None:
    tree = {
        "run": "golden",
        "model": {"path": "base"},
        "questions": {"datasets": arithmetic("unused", 0, num_train=1, num_dev=0, num_test=1)},
    }
    config = settings_of(Config, with_strategy(with_overrides(tree, VARIANTS[name])), "golden")
    check("outcomes.json", name, outcome_of(config, model_folder))


def test_predictions_and_scores_are_what_they_were() -> None:
    held_out = questions("dev") + questions("test")
    predict = PredictAnswer(EvaluationSettings().sampling)
    base, tuned = (
        answered(predict, held_out, model, PREDICTIONS_SCHEMA) for model in ("base", "model-1")
    )
    scores = compare_scores(
        held_out,
        *({row["question_id"]: Prediction.from_row(row) for row in rows} for rows in (base, tuned)),
    )
    outcome = {
        "predictions": {"base": described(base), "tuned": described(tuned)},
        "scores": [rounded(asdict(score)) for score in scores],
    }
    check("scores.json", "predictions", outcome)


def write_questions(folder: Path) -> dict[str, Any]:
    """The questions as files, and the datasets of a config that name them."""
    datasets: dict[str, Any] = {}
    for dataset in ("sums", "options", "claims"):
        source = {"kind": "files"}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            rows = [
                {
                    "id": question.question_id,
                    "question": question.question,
                    "answer": question.answer,
                    "answer_type": question.answer_type,
                    "choices": list(question.choices) or None,
                }
                for question in questions(split)
                if question.dataset == dataset
            ]
            path = folder / f"{dataset}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            source[split] = str(path)
        if dataset == "claims":
            del source["train"]
        domain = "out_of_domain" if dataset == "claims" else "in_domain"
        datasets[dataset] = {"source": source, "dev_share": 0.0, "domain": domain}
    return datasets


RUNS: dict[str, dict[str, Any]] = {
    "two_rounds_with_hints_and_a_judge": {
        "rounds": 2,
        "synthesis": {"guidelines_per_question": 2, "hint_stages": ["path"], "judge": "correct"},
    },
    "one_model_a_dataset_by_preferences": {
        "synthesis": {"guidelines_per_question": 4},
        "training": {"mix": "per_dataset", "objective": "dpo"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_whole_run_ends_as_it_did(
    name: str,
    scripted_config: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    config = scripted_config | {"questions": {"datasets": write_questions(tmp_path)}}
    config["engine"] = config["engine"] | {"implementation": "tests.golden.engine.GoldenEngine"}
    changes = RUNS[name]
    config["training"] |= {"num_epochs": 1} | changes.get("training", {})
    config |= {key: value for key, value in changes.items() if key != "training"}
    result = run_here("run", write_config(config))
    assert result.returncode == 0, result.stderr
    check("runs.json", name, run_outcome(tmp_path / "runs" / "scripted"))


def run_outcome(run: Path) -> dict[str, Any]:
    """Rows, selected examples, trained examples and scores of each step of a run."""
    outcome: dict[str, Any] = {}
    for step in sorted(folder.parent for folder in run.glob("*/*/manifest.json")):
        name = f"{step.parent.name}/{step.name.rpartition('-')[0]}"
        manifest = json.loads((step / "manifest.json").read_text())
        if "rows" in manifest:
            outcome[name] = described(ledger_rows(step))
        elif "num_paths" in manifest:
            facts = {key: manifest[key] for key in sorted(manifest) if key.startswith("num_")}
            outcome[name] = facts | {"examples": described(rows_of(step))}
        elif "num_steps" in manifest:
            outcome[name] = {key: manifest[key] for key in ("num_examples", "num_steps")}
        else:
            outcome[name] = [rounded(row) for row in rows_of(step)]
    return outcome


def rows_of(step: Path) -> list[dict[str, Any]]:
    """The rows of the Parquet files directly in a step's folder."""
    tables = [pq.read_table(file) for file in sorted(step.glob("*.parquet"))]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def test_every_strategy_is_among_the_outcomes() -> None:
    from pipelines.strategy import strategies

    assert set(strategies()) <= set(VARIANTS)
    assert set(yaml.safe_load((GOLDEN / "outcomes.json").read_text())) == set(VARIANTS)
