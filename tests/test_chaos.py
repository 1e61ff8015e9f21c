"""A kill -9 at any moment costs only work in flight.

Seeded: what is killed and after which share of the work follows from the seed alone, so a trial
that failed fails again with its number, as far as the machine's own timing lets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos import (
    Kill,
    Kind,
    Monkey,
    RayNodes,
    Trial,
    all_rows,
    check_complete,
    check_snapshots,
    count_lines,
    draw_kills,
    generations,
    ledger_folders,
    sums_config,
)
from tests.conftest import SCRIPTED_ENGINE, ledger_rows, run_here

LATENCY_S = 0.25
NUM_TRAIN = 32
NUM_TEST = 2
GUIDELINES = 3
NUM_NEEDED = 2 * (NUM_TRAIN * GUIDELINES * 3 + NUM_TEST)
NUM_ENGINES = 2
ENGINE = SCRIPTED_ENGINE | {
    "min_workers": NUM_ENGINES,
    "max_workers": NUM_ENGINES,
    "flush_s": 0.5,
}
TRIALS: dict[int, Sequence[Kind]] = {
    39: ["board", "actor", "worker"],
    18: ["raylet", "engine", "driver"],
}
"""What `make test` kills: each kind once."""
SLOW_TRIALS: dict[int, Sequence[Kind] | None] = {
    1: ["engine", "actor"],
    3: ["raylet"],
    4: ["driver", "driver"],
    5: ["driver"],
    **dict.fromkeys(range(100, 108)),
}
"""What `make test-slow` kills; None leaves that to the seed, too."""


@dataclass(frozen=True)
class Setting:
    """A config for trials, and what an undisturbed run of it gave."""

    folder: Path
    config: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]
    """By the name of the step."""

    def write(self, name: str, options: Mapping[str, Any], **engine: Any) -> Path:
        """The config of one run, in a separate folder."""
        folder = self.folder / name
        folder.mkdir()
        config = self.config | {
            "run": "trial",
            "engine": {**self.config["engine"], "options": dict(options), **engine},
            "storage": {"root": str(folder / "runs"), "cache": str(folder / "cache")},
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


def rows_by_step(run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        folder.name.partition("-")[0]: ledger_rows(folder) for folder in ledger_folders(run_folder)
    }


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Setting:
    """Two datasets of sums, and their rows when nothing is killed."""
    folder = tmp_path_factory.mktemp("chaos")
    config = sums_config(folder, NUM_TRAIN, NUM_TEST) | {
        "synthesis": {"guidelines_per_question": GUIDELINES},
        "engine": ENGINE,
        "cluster": {"address": ray_cluster, "progress_every_s": 1.0},
    }
    bare = Setting(folder, config, {})
    path = bare.write("undisturbed", {})
    result = run_here("run", path, "--until", "paths")
    assert result.returncode == 0, result.stderr
    rows = rows_by_step(path.parent / "runs" / "trial")
    assert {step: len(found) for step, found in rows.items()} == {
        "paths": 2 * NUM_TRAIN,
        "predictions": 2 * NUM_TEST,
    }
    return replace(bare, rows=rows)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """One cluster for all trials: what a trial kills of it is given back."""
    cluster = RayNodes(tmp_path_factory.mktemp("nodes"))
    try:
        cluster.start()
        yield cluster
    finally:
        left = cluster.stop()
    assert not left, "workers outlived their cluster"


def run_trial(nodes: RayNodes, setting: Setting, seed: int, kinds: Sequence[Kind] | None) -> Trial:
    """One trial from its seed, and all that has to hold after it."""
    log_file = setting.folder / f"{seed}.log"
    path = setting.write(f"trial-{seed}", {"latency_s": LATENCY_S, "log_file": str(log_file)})
    run_folder = path.parent / "runs" / "trial"
    monkey = Monkey(
        nodes,
        ["run", str(path), "--until", "paths"],
        draw_kills(seed, kinds),
        run_folder=run_folder,
        num_finished=lambda: count_lines(log_file),
        num_needed=NUM_NEEDED,
    )
    trial = monkey.run()
    made = generations(log_file)
    repeated = made.total() - len(made)
    story = "\n".join([*trial.story, f"{repeated} of {made.total()} generations repeated"])
    print(f"seed {seed}:\n{story}")
    assert trial.exit_codes[-1] == 0, f"{story}\n{trial.output}"
    assert len(trial.exit_codes) == 1 + trial.killed.count("driver"), f"{story}\n{trial.output}"
    assert len(made) == NUM_NEEDED, story
    assert repeated <= sum(most_repeated(kind) for kind in trial.killed), story
    assert not any(row["error"] for row in rows_by_step(run_folder)["paths"]), story
    assert rows_by_step(run_folder) == setting.rows, story
    check_snapshots(trial.snapshots, run_folder)
    for folder in ledger_folders(run_folder):
        step = folder.name.partition("-")[0]
        check_complete(folder, [row["question_id"] for row in setting.rows[step]])
    left = nodes.wait_gone(nodes.busy_workers)
    assert not left, f"{[process.name() for process in left]} outlived their driver"
    return trial


def most_repeated(kind: Kind) -> int:
    """The generations that one kill may cost: all of the questions that had no durable row.

    Those are the open ones of an engine, as many as fill its slots and one more, and those finished
    since the last flush, for whose writing a busy machine may take a second.
    """
    slots = ENGINE["max_num_seqs"] + ENGINE["max_num_seqs"] // 4
    of_question = GUIDELINES * 3
    num_open = -(-slots // GUIDELINES) + 1
    num_waiting = (ENGINE["flush_s"] + 1.0) * slots / LATENCY_S / of_question
    of_engine = int((num_open + num_waiting) * of_question)
    num_engines = {"engine": 1, "actor": 1, "worker": 1, "board": 0}.get(kind, NUM_ENGINES)
    return num_engines * of_engine


@pytest.mark.parametrize("seed", TRIALS)
def test_run_disturbed_ends_with_the_rows_of_an_undisturbed_one(
    nodes: RayNodes, setting: Setting, seed: int
) -> None:
    trial = run_trial(nodes, setting, seed, TRIALS[seed])
    assert trial.killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_TRIALS)
def test_run_disturbed_further_ends_with_the_rows_of_an_undisturbed_one(
    nodes: RayNodes, setting: Setting, seed: int
) -> None:
    trial = run_trial(nodes, setting, seed, SLOW_TRIALS[seed])
    assert trial.killed


# --- the real engine ---------------------------------------------------------------------------

VLLM: dict[str, Any] = {
    "use_gpu": False,
    "dtype": "float32",
    "max_model_len": 2048,
    "kv_cache_gib": 1,
    "max_num_seqs": 8,
    "chunk_size": 4,
    "chunks_in_flight": 2,
    "flush_s": 0.5,
    "options": {"enforce_eager": True},
}


@pytest.fixture(scope="module")
def real(setting: Setting, nodes: RayNodes, model_folder: Path) -> Setting:
    """The same questions with vLLM and a tiny model, and their rows when nothing is killed."""
    stage = {"max_tokens": 8}
    config = setting.config | {
        "model": {"path": str(model_folder)},
        "engine": VLLM,
        "synthesis": {
            "guidelines_per_question": GUIDELINES,
            "stages": {"adapt": stage, "structure": stage, "path": stage},
        },
        "evaluation": {"max_tokens": 8},
    }
    bare = replace(setting, config=config, rows={})
    path = bare.write("undisturbed-real", VLLM["options"])
    trial = real_monkey(nodes, path, []).run()
    assert trial.exit_codes == [0], trial.output
    return replace(bare, rows=rows_by_step(path.parent / "runs" / "trial"))


def real_monkey(nodes: RayNodes, config: Path, kills: Sequence[Kill]) -> Monkey:
    run_folder = config.parent / "runs" / "trial"
    return Monkey(
        nodes,
        ["run", str(config), "--until", "paths"],
        kills,
        run_folder=run_folder,
        num_finished=lambda: len(all_rows(run_folder)),
        num_needed=2 * (NUM_TRAIN + NUM_TEST),
        watch_rows=True,
    )


def drawn(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What of the rows is decided before anything is generated."""
    return [
        [
            row["question_id"],
            row["question_fingerprint"],
            *(
                (path["path_id"], [generation["seed"] for generation in path["generations"]])
                for path in row["paths"]
            ),
            *(path["generations"][0]["num_prompt_tokens"] for path in row["paths"]),
        ]
        for row in rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["engine", "actor", "driver"])
def test_run_disturbed_with_the_real_engine_keeps_every_durable_row(
    nodes: RayNodes, real: Setting, kind: Kind
) -> None:
    path = real.write(f"real-{kind}", VLLM["options"])
    trial = real_monkey(nodes, path, [Kill(kind, 0.3, 0.0, 0.0)]).run()
    print("\n".join(trial.story))
    run_folder = path.parent / "runs" / "trial"
    assert trial.killed == [kind], trial.output
    assert trial.exit_codes[-1] == 0, trial.output
    assert len(trial.exit_codes) == 1 + (kind == "driver"), trial.output
    assert trial.snapshots[0].rows
    check_snapshots(trial.snapshots, run_folder)
    rows = rows_by_step(run_folder)
    assert drawn(rows["paths"]) == drawn(real.rows["paths"])
    for folder in ledger_folders(run_folder):
        step = folder.name.partition("-")[0]
        check_complete(folder, [row["question_id"] for row in real.rows[step]])
    left = nodes.wait_gone(nodes.busy_workers)
    assert not left, f"{[process.name() for process in left]} outlived their driver"
