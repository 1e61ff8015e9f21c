"""The layout of a run before anything is generated: its steps and their folders."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cluster.errors import InputError
from cluster.models.model import Model
from cluster.settings import fingerprint, load_settings
from pipelines.config import Config
from pipelines.plan import check_run, first_round, lay_out_rounds, plan_run, step_names
from pipelines.planning.dry_run import describe_steps
from pipelines.questions.loading import load_questions
from pipelines.run import Run
from pipelines.selection.filters import VerdictName
from pipelines.steps import guidelines as guidelines_step
from pipelines.steps import paths as paths_step
from pipelines.steps import predictions as predictions_step
from pipelines.steps.model import TrainingProgress
from pipelines.strategy import strategies, with_strategy
from pipelines.synthesis.handler import SynthesizePaths
from tests.conftest import REPOSITORY, sums

CLUSTER_CONFIGS = ("llama3_8b", "mistral_7b", "paper_mistral")
DOCUMENT = (REPOSITORY / "docs" / "STRATEGIES.md").read_text()


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    """A config for a cluster, with four questions and a model that nobody loads."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    tree: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "llama3_8b.yaml").read_text())
    datasets = sums("sums", 0, num_train=4, num_dev=0, num_test=2)
    storage = {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")}
    return tree | {
        "model": {"path": str(model)},
        "questions": {"datasets": datasets},
        "storage": storage,
    }


def plan(tree: dict[str, Any], folder: Path, *overrides: str) -> Run:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    config = load_settings(Config, path, overrides, with_strategy)
    return plan_run(config, *check_run(config), load_questions(config.questions).facts())


def described(run: Run) -> str:
    return describe_steps(run, load_questions(run.config.questions))


@pytest.mark.parametrize("name", [".", "..", "....", "a/b", "", "../b"])
def test_run_that_would_be_another_folder_is_refused(
    base: dict[str, Any], tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match="run: "):
        plan(base | {"run": name}, tmp_path)
    assert plan(base | {"run": ".a..b"}, tmp_path).folder.name == ".a..b"


# --- a bound over all datasets -----------------------------------------------------------------


def test_bound_of_tokens_is_an_extent_of_the_paths(base: dict[str, Any], tmp_path: Path) -> None:
    free, bound, higher = (
        first_round(plan(base, tmp_path, f"budget.generated_tokens={number}")).paths
        for number in ("null", "500", "900")
    )
    assert free.folder == bound.folder == higher.folder
    assert len({free.extent, bound.extent, higher.extent}) == 3
    # As it was before there was such a bound.
    questions = plan(base, tmp_path).questions
    assert free.extent == fingerprint(questions.extent("train"), [])
    bound.commit()
    assert bound.is_done
    assert not higher.is_done
    assert not free.is_done


def test_bound_of_tokens_reaches_the_pool_and_the_dry_run(
    base: dict[str, Any], tmp_path: Path
) -> None:
    run = plan(base, tmp_path, "budget.generated_tokens=500")
    assert paths_step.job(run, first_round(run)).max_tokens == 500
    assert predictions_step.job(run, run.base_predictions).max_tokens is None
    assert "stop at about 500 generated tokens" in described(run)
    paths = first_round(run).paths
    assert f"{paths.folder.name}: run, at most 300 generations" in described(run)
    paths.commit()
    # Questions that the bound left out are no longer to be done.
    assert re.search(rf"{paths.folder.name}: skip, finished\n", described(run))


@pytest.mark.parametrize(("strategy", "expected"), [("direct", 4 * 25), ("star", 2 * 4)])
def test_dry_run_counts_the_stages_that_a_chain_has(
    base: dict[str, Any], tmp_path: Path, strategy: str, expected: int
) -> None:
    told = described(plan(base, tmp_path, f"synthesis.strategy={strategy}"))
    assert re.search(rf"round_0/paths-\w+: run, at most {expected} generations", told)


def test_dry_run_counts_judgements_and_the_pass_with_hints(
    base: dict[str, Any], tmp_path: Path
) -> None:
    more = ("synthesis.judge=correct", "synthesis.hint_stages=[path]")
    told = described(plan(base, tmp_path, *more))
    assert re.search(rf"round_0/paths-\w+: run, at most {4 * 25 * 4 * 2} generations", told)


# --- proposed guidelines -----------------------------------------------------------------------


def test_run_without_an_expansion_has_no_step_for_it(base: dict[str, Any], tmp_path: Path) -> None:
    run = plan(base, tmp_path)
    assert run.guidelines_step is None
    assert not [name for name in step_names(run) if "guidelines" in name]
    assert "expand" not in json.dumps(first_round(run).paths.content)
    assert "expansion" not in first_round(run).paths.content


def test_folders_of_all_rounds_follow_from_what_the_expansion_is_made_of(
    base: dict[str, Any], tmp_path: Path
) -> None:
    def folders(*overrides: str) -> tuple[str, ...]:
        run = plan(base, tmp_path, "rounds=2", *overrides)
        assert run.guidelines_step is not None
        assert f"base/{run.guidelines_step.folder.name}" == step_names(run)[1]
        paths = (round_.paths.folder.path for round_ in lay_out_rounds(run))
        return (run.guidelines_step.folder.path, *paths)

    three = folders("synthesis.expand_guidelines=3")
    assert three == folders("synthesis.expand_guidelines=3", "engine.max_num_seqs=9")
    plain = plan(base, tmp_path, "rounds=2")
    assert first_round(plain).paths.folder.path not in three
    for other in (
        ("synthesis.expand_guidelines=4",),
        ("synthesis.expand_guidelines=3", "synthesis.seed=1"),
        ("synthesis.expand_guidelines=3", "synthesis.stages.expand.temperature=0.2"),
    ):
        assert not {*folders(*other)} & {*three}


def test_dry_run_leaves_room_for_all_proposals_until_they_are_made(
    base: dict[str, Any], tmp_path: Path
) -> None:
    run = plan(base, tmp_path, "synthesis.expand_guidelines=3")
    assert run.guidelines_step is not None
    told = described(run)
    assert re.search(r"base/guidelines-\w+: run, at most 3 generations", told)
    assert re.search(rf"round_0/paths-\w+: run, at most {4 * 28 * 3} generations", told)
    rows = [{"id": "a", "text": "One."}, {"id": "proposed-01", "text": "Another one."}]
    run.guidelines_step.folder.write_bytes("guidelines.yaml", yaml.safe_dump(rows).encode())
    # Not before its manifest is written.
    assert (
        len(guidelines_step.with_proposed(first_round(run).recipe, run.guidelines_step).guidelines)
        == 25
    )
    run.guidelines_step.commit()
    told = described(run)
    assert re.search(r"base/guidelines-\w+: skip, finished\n", told)
    assert re.search(rf"round_0/paths-\w+: run, at most {4 * 2 * 3} generations", told)
    handler = paths_step.job(run, first_round(run)).handler
    assert isinstance(handler, SynthesizePaths)
    assert [each.guideline_id for each in handler.recipe.guidelines] == ["a", "proposed-01"]


# --- docs/STRATEGIES.md ------------------------------------------------------------------------


def overrides_in_document() -> list[list[str]]:
    """The `--set` values of each command and of each line of settings in its blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [
        [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        for words in commands
        if "--set" in words
    ]


@pytest.mark.parametrize("overrides", overrides_in_document(), ids=" ".join)
def test_settings_in_the_document_make_a_run_of_its_own(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    for name in ("guidelines", "prompts"):
        ours = (REPOSITORY / "pipelines" / "synthesis" / f"{name}.yaml").read_text()
        (tmp_path / f"my_{name}.yaml").write_text(ours.replace("question", "problem"))
    prompts = tmp_path / "my_prompts.yaml"
    prompts.write_text(prompts.read_text().replace("{problem}", "{question}"))
    monkeypatch.chdir(tmp_path)
    plain, run = plan(base, tmp_path), plan(base, tmp_path, *overrides)
    assert described(run)
    [tuned], [other] = (first_round(each).branches for each in (run, plain))
    assert tuned.model.identity != other.model.identity
    assert run.base_predictions.identity == plain.base_predictions.identity


def test_document_has_the_commands_and_the_ablations() -> None:
    assert len(overrides_in_document()) >= 37


def test_document_has_every_control() -> None:
    """By the settings that controls have, so that one cannot be forgotten."""
    shown = {override for overrides in overrides_in_document() for override in overrides}
    verdicts = set(get_args(VerdictName))
    wanted = {f"examples.verdict={name}" for name in verdicts}
    wanted |= {f"examples.questions={name}" for name in ("solved", "mixed")}
    wanted |= {f"examples.retries={name}" for name in ("unhinted", "none")}
    wanted |= {f"synthesis.swap_adaptations={name}" for name in ("questions", "guidelines")}
    wanted |= {"examples.add_boxed_answer=false", "synthesis.guidelines=placebo"}
    assert wanted <= shown
    prefixes = ("examples.max_examples", "training.max_steps", "training.max_learned_tokens")
    for prefix in (*prefixes, "synthesis.guideline_subset"):
        assert any(override.startswith(f"{prefix}=") for override in shown), prefix


def test_table_in_the_document_says_what_the_strategies_set(
    base: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in DOCUMENT.splitlines()
        if line.startswith("| `")
    ]
    assert {row[0].strip("`") for row in rows} == set(strategies())
    for name, paths, temperature, keeps, _, source in rows:
        run = plan(base, tmp_path, f"synthesis.strategy={name.strip('`')}")
        config = run.config
        assert paths_step.job(run, first_round(run)).handler.width == int(
            paths.split()[0].strip(",")
        )
        assert config.synthesis.stages.of("path").temperature == float(temperature)
        assert source == strategies()[name.strip("`")].source
        if "at most" in keeps:
            assert config.examples.max_per_question == int(keeps.split()[-1])
        assert config.training.start_from == "base"


@pytest.mark.parametrize("config", CLUSTER_CONFIGS)
@pytest.mark.parametrize("name", list(strategies()))
def test_configs_for_a_cluster_leave_a_strategy_what_it_sets(config: str, name: str) -> None:
    path = REPOSITORY / "configs" / f"{config}.yaml"
    overrides = [f"synthesis.strategy={name}"]
    made = load_settings(Config, path, overrides, with_strategy).model_dump(mode="json")
    assert contains(made, strategies()[name].settings)


def contains(tree: Any, part: Any) -> bool:
    """Whether a tree has all that a part of it says."""
    if not hasattr(part, "items"):
        return bool(tree == part)
    return all(contains(tree[name], value) for name, value in part.items())


# --- one model for each dataset ----------------------------------------------------------------


def test_per_dataset_plans_a_model_for_each_dataset_that_is_trained_on(
    base: dict[str, Any], tmp_path: Path
) -> None:
    base["questions"]["datasets"] |= sums("more_sums", 10**6, num_train=2, num_dev=0, num_test=2)
    base["questions"]["datasets"] |= sums("far", 2 * 10**6, "out_of_domain", num_dev=0, num_test=2)
    joint = plan(base, tmp_path)
    run = plan(base, tmp_path, "training.mix=per_dataset")
    [round_] = lay_out_rounds(run)
    assert [branch.dataset for branch in round_.branches] == ["more_sums", "sums"]
    assert [step.name for step in round_.steps()] == [
        "paths",
        "examples",
        *("model-more_sums", "model-sums"),
        *("predictions-more_sums", "predictions-sums"),
        *("scores-more_sums", "scores-sums"),
    ]
    assert len({step.folder.path for step in round_.steps()}) == 8
    lines = [f"round_0/{step.folder.name}: run" for step in round_.steps()]
    assert [line for line in lines if line not in described(run)] == []
    assert round_.examples.identity == first_round(joint).examples.identity


def test_training_line_has_the_mfu_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"step": 5.0, "num_steps": 9.0, "loss": 0.4, "learning_rate": 1e-6, "grad_norm": 1.2}
    facts |= {"tokens": 100.0, "tokens_per_s": 50.0}
    TrainingProgress("model", every_s=0)(facts)
    TrainingProgress("model-gsm8k", every_s=0)(facts | {"mfu": 0.413})
    plain, known = capsys.readouterr().out.splitlines()
    assert plain.startswith(
        "model: step 5/9 | loss 0.4000 | lr 1.00e-06 | grad norm 1.20 | 50 tok/s"
    )
    assert "MFU" not in plain
    assert known.startswith("model-gsm8k: step 5/9")
    assert "| 50 tok/s | MFU 41% |" in known


def test_rounds_are_laid_out_one_after_the_other(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan(base, tmp_path, "rounds=2", "training.start_from=previous")
    rounds = lay_out_rounds(run)
    first = next(rounds)
    assert (first.generator, first.start) == (run.base, run.base)
    # What the first round showed may decide what the second one begins with.
    better = Model("a better one", "better", "cache")
    monkeypatch.setattr("pipelines.plan.next_generator", lambda round_: better)
    second = next(rounds)
    assert (second.generator, second.start) == (better, better)
    assert second.paths.content["model"] == "a better one"


# --- what is refused ---------------------------------------------------------------------------


def test_run_of_questions_without_answers_goes_by_the_majority_only(
    base: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bare.jsonl").write_text('{"id": "1", "question": "What is 5 + 1?"}\n')
    columns = {"answer": None, "answer_type": None, "choices": None}
    bare = {
        "source": {
            "kind": "files",
            "train": str(tmp_path / "bare.jsonl"),
            "columns": columns,
            "answer_type": "number",
        },
        "dev_share": 0.0,
    }
    base["questions"]["datasets"]["bare"] = bare
    with pytest.raises(InputError, match=r"datasets\.bare has no answers"):
        plan(base, tmp_path)
    run = plan(base, tmp_path, "examples.verdict=majority")
    assert run.questions.num_kept("train") == {"sums": 4, "bare": 1}


def test_examples_hang_on_the_held_out_questions_only_where_overlaps_are_dropped(
    base: dict[str, Any], tmp_path: Path
) -> None:
    def examples(*overrides: str) -> str:
        return first_round(plan(base, tmp_path, *overrides)).examples.identity

    fewer = "questions.datasets.sums.num_test=1"
    drop = "examples.contamination.drop=true"
    assert examples() == examples(fewer)
    assert examples(drop) != examples(drop, fewer)
