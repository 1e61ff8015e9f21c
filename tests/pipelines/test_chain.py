from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from cluster.errors import InputError
from cluster.inference.engine import (
    Completion,
    Engine,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    GenerationTimeoutError,
    PromptTooLongError,
    SamplingSettings,
)
from cluster.inference.job import Slots
from evaluation.prompt import answer_messages
from evaluation.question import Question
from pipelines.synthesis.chain import (
    Previous,
    Recipe,
    SynthesisSettings,
    run_chain,
    run_chains,
    stage_messages,
)
from pipelines.synthesis.guidelines import load_guidelines, load_prompts
from pipelines.synthesis.reasoning_path import PATH_TYPE
from pipelines.synthesis.seeds import stable_seed
from tests.scripted import ScriptedEngine

QUESTION = Question("d/train/1", "d", "train", "in_domain", "What is {2} + 2?", "4", "number")


class Recorder:
    """Answers each stage with fixed text and remembers what it was asked."""

    def __init__(self, last: str = "2 + 2 is 4. \\boxed{4}", fail_at: str = "") -> None:
        self.asked: list[tuple[str, SamplingSettings, int]] = []
        self._last, self._fail_at = last, fail_at

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        prompt = messages[-1]["content"]
        self.asked.append((prompt, sampling, seed))
        if self._fail_at and self._fail_at in prompt:
            raise PromptTooLongError("the prompt has 9 tokens, the model's context 8")
        text = ["use fingers", "1. count", self._last][(len(self.asked) - 1) % 3]
        return [Completion(text, [7, 8, 2], "stop", len(prompt))]

    def shutdown(self) -> None: ...


class Stages:
    """Each stage by its own function, whatever else is running."""

    def __init__(self, **answers: Any) -> None:
        self.asked: list[tuple[str, SamplingSettings, int]] = []
        self._answers = {"adapt": "look", "structure": "1. go", "path": "\\boxed{4}"} | answers

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        stage = stage_of(messages[-1]["content"])
        self.asked.append((stage, sampling, seed))
        await asyncio.sleep(0)
        answer = self._answers[stage]
        text = answer(seed) if callable(answer) else answer
        return [Completion(text, list(text.encode()), "stop", 9)]

    def shutdown(self) -> None: ...


def stage_of(prompt: str) -> str:
    if "\nGuideline: " in prompt:
        return "adapt"
    return "structure" if "\nAdvice: " in prompt else "path"


def recipe(**settings: object) -> Recipe:
    return Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(settings)))


def chains(
    engine: Engine, plan: Recipe, previous: dict[str, Any] | None = None, num_slots: int = 2
) -> list[dict[str, Any]]:
    before = Previous.from_row(previous)
    made = asyncio.run(run_chains(engine, plan, QUESTION, Slots(num_slots), before))
    return [path.to_row() for path in made]


def seeds(plan: Recipe, attempt: int = 0) -> dict[str, set[int]]:
    """The seeds of each path's three stages."""
    tries = [attempt] if attempt else []
    return {
        spec.path_id: {
            stable_seed(plan.settings.seed, spec.path_id, stage, *tries)
            for stage in ("adapt", "structure", "path")
        }
        for spec in plan.specs(QUESTION)
    }


def test_guidelines_ours_are_25_with_their_own_ids_and_texts() -> None:
    guidelines = load_guidelines()
    assert len({guideline.guideline_id for guideline in guidelines}) == 25
    assert len({guideline.text for guideline in guidelines}) == 25


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "expected a list"),
        ([{"id": "a"}], "guideline 1 needs"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "given twice"),
        ([{"id": "a/b", "text": "x"}], "without a slash"),
        ([{"id": "a", "text": " "}], "has no text"),
    ],
)
def test_guidelines_malformed_file_is_refused(
    tmp_path: Path, rows: list[object], expected: str
) -> None:
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump(rows))
    with pytest.raises(InputError, match=expected):
        load_guidelines(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"adapt": "{question}"}, "lacks {guideline}"),
        ({"path": "{question} {structure} {answer}"}, "has {answer}; known"),
        ({"path": "{question} {structure} \\boxed{"}, "write {{ for a plain brace"),
    ],
)
def test_prompts_malformed_file_is_refused(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    prompts = {"adapt": "{question} {guideline}", "structure": "{question} {adapted_guideline}"}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(prompts | {"path": "{question} {structure}"} | changes))
    with pytest.raises(InputError, match=expected):
        load_prompts(path)


def test_prompts_that_a_file_leaves_out_are_ours(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("adapt: Rewrite {guideline} for {question}")
    ours, merged = load_prompts(), load_prompts(path)
    assert merged.texts == {**ours.texts, "adapt": "Rewrite {guideline} for {question}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapd: Rewrite {guideline}", "there is no prompt 'adapd'; the names are adapt"),
        ("just a text", "expected prompts as `name: text`"),
        ("", "expected prompts as"),
        ("hint: '{answer}'\nhint: '{answer}!'", "line 2: .*'hint' is given twice"),
    ],
)
def test_prompts_file_with_other_names_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        load_prompts(path)


def test_chain_each_stage_sees_what_the_one_before_wrote() -> None:
    engine = Recorder()
    plan = recipe(stages={"adapt": {"max_tokens": 11}, "path": {"max_tokens": 99}})
    spec = plan.specs(QUESTION)[0]
    [made] = asyncio.run(run_chain(engine, plan, QUESTION, [spec]))
    path = made.to_row()
    adapt, structure, solve = (prompt for prompt, _, _ in engine.asked)
    assert spec.guideline
    assert spec.guideline.text in adapt
    assert "use fingers" in structure
    assert "1. count" in solve
    assert "\\boxed{}" in solve
    # One prefix for all stages and chains of a question; braces of the question are left alone.
    assert all(p.startswith("What is {2} + 2?\n\n") for p in (adapt, structure, solve))
    assert [sampling.max_tokens for _, sampling, _ in engine.asked] == [11, 512, 99]
    assert path["reasoning"] == "2 + 2 is 4. \\boxed{4}"
    assert path["token_ids"] == [7, 8, 2]
    assert [g["stage"] for g in path["generations"]] == ["adapt", "structure", "path"]


def test_chain_seeds_hang_on_path_and_stage_only() -> None:
    first, second = Recorder(), Recorder()
    plan = recipe(guidelines_per_question=4, samples=2)
    specs = plan.specs(QUESTION)
    for spec in specs:
        asyncio.run(run_chain(first, plan, QUESTION, [spec]))
    for spec in reversed(specs):
        asyncio.run(run_chain(second, plan, QUESTION, [spec]))
    seeds = [seed for _, _, seed in first.asked]
    assert len(set(seeds)) == 4 * 2 * 3
    assert sorted(seeds) == sorted(seed for _, _, seed in second.asked)
    assert stable_seed(0, specs[0].path_id, "adapt") == seeds[0]
    assert recipe(seed=1).specs(QUESTION)[0].path_id == recipe().specs(QUESTION)[0].path_id


def test_tasks_drawn_guidelines_cover_all_over_many_questions() -> None:
    plan = recipe(guidelines_per_question=5)
    drawn = [
        {
            spec.path_id.split("/")[-3]
            for spec in plan.specs(
                Question(f"d/train/{n}", "d", "train", "in_domain", "q", "4", "number")
            )
        }
        for n in range(60)
    ]
    assert {len(ids) for ids in drawn} == {5}
    assert len(set().union(*drawn)) == 25


def test_chain_prompt_too_long_keeps_the_path_with_its_reason() -> None:
    plan = recipe(guidelines_per_question=1)
    paths = chains(Recorder(fail_at="Advice:"), plan)
    assert paths[0]["error"] == "structure: the prompt has 9 tokens, the model's context 8"
    assert len(paths[0]["generations"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think>\n\\boxed{4}", ("hm", "\\boxed{4}", "stop")),
        ("hm, so\n</think>\n4", ("hm, so", "4", "stop")),
        ("<think>hm \\boxed{5}", ("hm \\boxed{5}", "", "length")),
        ("no thoughts", ("", "no thoughts", "stop")),
    ],
)
def test_thinking_is_kept_apart_from_the_answer(text: str, expected: tuple[str, str, str]) -> None:
    plan = recipe(guidelines_per_question=1)
    engine = Recorder(last=text)
    [path] = asyncio.run(run_chain(engine, plan, QUESTION, plan.specs(QUESTION)[:1]))
    made = (path.thinking, path.reasoning, path.generations[-1].finish_reason)
    assert made == expected


def test_chain_unclosed_thinking_counts_as_cut_off() -> None:
    plan = recipe(guidelines_per_question=1)
    engine = Recorder(last="<think>it may be \\boxed{4}")
    [made] = asyncio.run(run_chain(engine, plan, QUESTION, plan.specs(QUESTION)[:1]))
    path = made.to_row()
    assert path["reasoning"] == ""
    assert path["thinking"] == "it may be \\boxed{4}"
    assert path["generations"][-1]["finish_reason"] == "length"


# --- failures and further attempts -------------------------------------------------------------


def fails_for(bad: set[int], error: Exception) -> Any:
    def answer(seed: int) -> str:
        if seed in bad:
            raise error
        return f"It is \\boxed{{4}} by {seed}."

    return answer


@pytest.mark.parametrize("stage", ["adapt", "structure", "path"])
@pytest.mark.parametrize(
    "error", [GenerationError("refused"), GenerationTimeoutError("no answer within 5 s")]
)
def test_chains_failed_generation_ends_only_its_own_path(
    stage: str, error: GenerationError
) -> None:
    plan = recipe(guidelines_per_question=4)
    bad = list(seeds(plan))[2]
    engine = Stages(**{stage: fails_for(seeds(plan)[bad], error)})
    paths = chains(engine, plan)
    whole = chains(Stages(**{stage: fails_for(set(), error)}), plan)
    assert [path["path_id"] for path in paths] == list(seeds(plan))
    assert [path["error"] for path in paths] == [None, None, f"{stage}: {error}", None]
    assert [a == b for a, b in zip(paths, whole, strict=True)] == [True, True, False, True]
    # What it had generated before stays told.
    stages = ["adapt", "structure", "path"]
    assert [g["stage"] for g in paths[2]["generations"]] == stages[: stages.index(stage)]
    assert paths[2]["reasoning"] == ""


@pytest.mark.parametrize("error", [EngineDiedError("CUDA error"), ValueError("a fault of ours")])
def test_chains_other_errors_are_no_matter_of_one_path(error: Exception) -> None:
    plan = recipe(guidelines_per_question=2)
    engine = Stages(path=fails_for(set().union(*seeds(plan).values()), error))
    with pytest.raises(type(error), match=str(error)):
        chains(engine, plan)


def test_subset_of_the_guidelines_is_the_same_for_every_question() -> None:
    def ids(size: int, seed: int = 0, name: str = "d/train/1", **more: object) -> list[str]:
        plan = recipe(guideline_subset={"size": size, "seed": seed}, **more)
        specs = plan.specs(replace(QUESTION, question_id=name))
        return [spec.guideline.guideline_id for spec in specs if spec.guideline]

    everything = [guideline.guideline_id for guideline in recipe().guidelines]
    assert ids(25) == everything
    assert ids(5) == ids(5, name="d/train/2") == [name for name in everything if name in ids(5)]
    assert set(ids(2)) < set(ids(5)) < set(ids(10)), "of one seed the smaller is part of the larger"
    assert len({tuple(ids(5, seed)) for seed in range(9)}) > 7
    assert len(ids(5, samples=3)) == 15
    assert len(ids(5, guidelines_per_question=2)) == 2
    with pytest.raises(InputError, match=r"guideline_subset\.size: 26 exceeds the 25"):
        ids(26)


def test_chains_next_attempt_runs_only_the_failed_paths_again() -> None:
    plan = recipe(guidelines_per_question=5)
    failed = list(seeds(plan))[1:3]
    bad = seeds(plan)[failed[0]] | seeds(plan)[failed[1]]
    first = chains(Stages(path=fails_for(bad, GenerationError("refused"))), plan)
    # As it comes back from the ledger: graded, and through Arrow.
    stored = pa.array([path | {"verdict": "correct"} for path in first], PATH_TYPE).to_pylist()
    engine = Stages(path=fails_for(bad, GenerationError("refused")))
    second = chains(engine, plan, {"attempt": 0, "paths": stored})
    assert len(engine.asked) == 2 * 3
    assert {seed for _, _, seed in engine.asked} == set().union(
        *(seeds(plan, attempt=1)[path_id] for path_id in failed)
    )
    assert [path["path_id"] for path in second] == [path["path_id"] for path in first]
    assert not any(path["error"] for path in second)
    for before, after in zip(stored, second, strict=True):
        assert (after == before) == (before["path_id"] not in failed)


def test_chains_every_attempt_draws_anew() -> None:
    plan = recipe(guidelines_per_question=3, samples=2)
    asked: list[set[int]] = []
    for attempt in range(4):
        engine = Stages()
        previous = {"attempt": attempt - 1, "paths": []} if attempt else None
        chains(engine, plan, previous)
        asked.append({seed for _, _, seed in engine.asked})
        assert asked[-1] == set().union(*seeds(plan, attempt).values())
    assert len(set().union(*asked)) == 4 * 3 * 2 * 3


@pytest.mark.parametrize("paths", [[], None])
def test_chains_question_that_was_set_aside_is_run_whole(paths: list[Any] | None) -> None:
    plan = recipe(guidelines_per_question=3)
    engine = Stages()
    result = chains(engine, plan, {"attempt": 1, "paths": paths, "error": "a fault"})
    assert [path["path_id"] for path in result] == list(seeds(plan))
    assert {seed for _, _, seed in engine.asked} == set().union(*seeds(plan, 2).values())


def test_chains_previous_attempt_without_failures_asks_nothing() -> None:
    plan = recipe(guidelines_per_question=3)
    paths = chains(Stages(), plan)
    engine = Stages()
    assert chains(engine, plan, {"attempt": 0, "paths": paths}) == paths
    assert engine.asked == []


def test_chains_results_do_not_hang_on_how_many_run_at_once() -> None:
    plan = recipe(guidelines_per_question=6)
    by_seed = fails_for(set(), GenerationError(""))
    one, many = (chains(Stages(path=by_seed), plan, num_slots=num) for num in (1, 50))
    assert one == many


# --- long thinking -----------------------------------------------------------------------------


def test_chain_of_long_stages_keeps_every_token() -> None:
    options = {"num_tokens": 16_384, "wrong_share": 0}
    engine = ScriptedEngine("scripted", EngineSettings(options=options))
    plan = recipe(guidelines_per_question=2, stages={"path": {"max_tokens": None}})
    for path in chains(engine, plan):
        text = path["reasoning"].encode()
        assert path["token_ids"] == [*text, *[32] * (16_384 - len(text))]
        assert [g["num_tokens"] for g in path["generations"]] == [16_384] * 3
        assert pa.array([path], PATH_TYPE).to_pylist()[0]["token_ids"] == path["token_ids"]


def test_chain_long_thinking_is_told_apart_in_every_stage() -> None:
    thought = "Hm, or 5? " * 4000
    engine = Stages(
        adapt="<think>short</think>\n\nlook twice",
        structure="no thoughts: 1. go",
        path=f"<think>\n{thought}</think>\n\nIt is \\boxed{{4}}",
    )
    plan = recipe(guidelines_per_question=1)
    [path] = chains(engine, plan)
    assert path["adapted_guideline"] == "look twice"
    assert path["structure"] == "no thoughts: 1. go"
    assert path["thinking"] == thought.strip()
    assert path["reasoning"] == "It is \\boxed{4}"
    # The ids are those of the whole answer, as it was sampled.
    assert bytes(path["token_ids"]).decode().endswith("</think>\n\nIt is \\boxed{4}")
    assert len(path["token_ids"]) == path["generations"][-1]["num_tokens"] > len(thought)
    assert [g["finish_reason"] for g in path["generations"]] == ["stop"] * 3


def test_chain_template_arguments_of_each_stage_reach_the_engine() -> None:
    thinking = {"adapt": False, "structure": False, "path": True}
    engine = Stages()
    stages = {
        name: {"template_args": {"enable_thinking": on}, "max_tokens": None}
        for name, on in thinking.items()
    }
    chains(engine, recipe(guidelines_per_question=3, stages=stages))
    assert len(engine.asked) == 9
    for stage, sampling, _ in engine.asked:
        assert sampling.template_args == {"enable_thinking": thinking[stage]}
        assert sampling.max_tokens is None


# --- chains without some stages ----------------------------------------------------------------


class Asked:
    """Answers any request, and keeps what it was."""

    def __init__(self, bad: str = "nothing fails") -> None:
        self.prompts: list[str] = []
        self.counts: list[int] = []
        self._bad = bad

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        prompt = messages[-1]["content"]
        self.prompts.append(prompt)
        self.counts.append(n)
        if self._bad in prompt:
            raise GenerationError("refused")
        return [Completion(f"by {seed + i}", [seed % 100 + i], "stop", 9) for i in range(n)]

    def shutdown(self) -> None: ...


def test_chain_without_adaptation_structures_the_guideline_as_it_is() -> None:
    engine, plan = Asked(), recipe(chain=["structure", "path"], guidelines_per_question=1)
    [path] = chains(engine, plan)
    [spec] = plan.specs(QUESTION)
    assert spec.guideline
    assert len(engine.prompts) == 2
    assert f"Advice: {spec.guideline.text}" in engine.prompts[0]
    assert path["structure"] in engine.prompts[1]
    assert path["adapted_guideline"] == ""


def test_chain_without_structure_follows_the_advice_as_it_is() -> None:
    engine, plan = Asked(), recipe(chain=["adapt", "path"], guidelines_per_question=1)
    [path] = chains(engine, plan)
    assert len(engine.prompts) == 2
    assert f"Advice: {path['adapted_guideline']}" in engine.prompts[1]
    assert "boxed" in engine.prompts[1]
    assert [g["stage"] for g in path["generations"]] == ["adapt", "path"]


def test_plain_chain_asks_the_evaluation_prompt_for_many_answers_at_once() -> None:
    engine, plan = Asked(), recipe(chain=["path"], samples=20, strategy="direct")
    paths = chains(engine, plan, num_slots=64)
    assert engine.counts == [16, 4]
    assert set(engine.prompts) == {answer_messages(QUESTION)[0]["content"]}
    assert [p["path_id"] for p in paths] == [f"0/direct/d/train/1/none/0/{n}" for n in range(20)]
    assert {path["guideline_id"] for path in paths} == {None}
    seeds = [path["generations"][0]["seed"] for path in paths]
    assert len(set(seeds)) == 20
    # Each seed is the one that the engine gave that very sample.
    assert [path["reasoning"] for path in paths] == [f"by {seed}" for seed in seeds]
    assert pa.array(paths, PATH_TYPE).to_pylist()[0]["guideline_id"] is None


def test_plain_chain_more_samples_keep_the_first_ones() -> None:
    few, many = (chains(Asked(), recipe(chain=["path"], samples=n)) for n in (32, 48))
    assert many[:32] == few


@pytest.mark.parametrize("num_before", [1, 16, 20, 33])
def test_plain_chain_taken_over_samples_are_asked_for_no_more_and_the_others_are_the_same(
    num_before: int,
) -> None:
    few, many = (chains(Asked(), recipe(chain=["path"], samples=n)) for n in (num_before, 40))
    engine = Asked()
    grown = chains(engine, recipe(chain=["path"], samples=40), {"attempt": -1, "paths": few})
    assert grown == many
    assert sum(engine.counts) == 40 - num_before


def test_chains_taken_over_paths_of_guidelines_stay_and_the_others_are_the_same() -> None:
    one, more = recipe(guidelines_per_question=3), recipe(guidelines_per_question=5, samples=2)
    few, many = chains(Stages(), one), chains(Stages(), more)
    engine = Stages()
    assert chains(engine, more, {"attempt": -1, "paths": few}) == many
    assert len(engine.asked) == 3 * (10 - 3)
    engine = Stages()
    assert chains(engine, one, {"attempt": -1, "paths": many}) == few
    assert engine.asked == []


COLOURS = Question(
    "d/train/2",
    "d",
    "train",
    "in_domain",
    "Which?",
    "B",
    "choice",
    ("red", "green", "blue", "white"),
)


def test_shuffled_options_are_drawn_for_each_path_and_asked_alone() -> None:
    plan = recipe(chain=["path"], samples=20, shuffle_options=True)
    specs = plan.specs(COLOURS)
    orders = [spec.option_order for spec in specs]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 5
    assert [spec.option_order for spec in plan.specs(COLOURS)] == orders
    assert recipe(chain=["path"], samples=20).specs(COLOURS)[0].option_order == ()
    assert {spec.option_order for spec in plan.specs(QUESTION)} == {()}
    engine = Asked()
    paths = asyncio.run(run_chains(engine, plan, COLOURS, Slots(64)))
    assert engine.counts == [1] * 20
    prompts = [answer_messages(COLOURS.with_options(order))[0]["content"] for order in orders]
    assert sorted(engine.prompts) == sorted(prompts)
    assert [path.option_order for path in paths] == orders


def test_shuffled_options_hint_has_the_letter_that_the_path_is_shown() -> None:
    plan = recipe(shuffle_options=True, hint_stages=["path"], guidelines_per_question=1)
    [spec] = plan.specs(COLOURS, 1)
    columns = {"adapted_guideline": "a", "structure": "s"}
    [message] = stage_messages("path", plan, COLOURS, spec, columns)
    shown = COLOURS.with_options(spec.option_order)
    assert f"right answer is {shown.shown_answer}" in message["content"]
    assert shown.shown_answer.endswith(") green")
    assert f"\n{shown.shown_answer}" in message["content"], "as it stands among the options"


def test_plain_chain_failed_request_is_tried_again_alone() -> None:
    plan = recipe(chain=["path"], samples=18)
    paths = chains(Asked(), plan)
    failed = [path | {"error": "path: refused"} for path in paths[16:]]
    engine = Asked()
    again = chains(engine, plan, {"attempt": 0, "paths": paths[:16] + failed})
    assert engine.counts == [2]
    assert again[:16] == paths[:16]
    assert not any(path["error"] for path in again)
    everything = chains(Asked(bad="{2}"), plan)
    assert {path["error"] for path in everything} == {"path: refused"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chain": ["path", "adapt"]}, "not in the order"),
        ({"chain": ["plan", "path"]}, r"there is no stage 'plan'; there are \['adapt', "),
        ({"hint_stages": ["plan"]}, "there is no stage 'plan'"),
        ({"chain": ["adapt", "structure"]}, "last stage must be path"),
        ({"chain": []}, "not in the order"),
        ({"chain": ["path"], "hint_stages": ["adapt"]}, "adapt is not a stage of the chain"),
        ({"chain": ["path"], "guidelines_per_question": 3}, "follows none"),
        ({"chain": ["path"], "guideline_subset": {"size": 3}}, "follows none"),
        ({"expand_guidelines": 3, "guideline_subset": {"size": 3}}, "remove one of them"),
        ({"guideline_subset": {"size": 0}}, "greater than 0"),
        ({"samples": 2, "chain": ["path"], "stages": {"path": {"temperature": 0.0}}}, "equal at"),
    ],
)
def test_chain_that_does_not_fit_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SynthesisSettings.model_validate_json(json.dumps(settings))


# --- the right answer shown --------------------------------------------------------------------


@pytest.mark.parametrize("hinted", [["path"], ["adapt"], ["adapt", "structure", "path"]])
def test_hint_is_shown_in_its_stages_of_the_second_pass_only(hinted: list[str]) -> None:
    plan = recipe(hint_stages=hinted, guidelines_per_question=1)
    first, second = Asked(), Asked()
    asyncio.run(run_chains(first, plan, QUESTION, Slots(2)))
    paths = asyncio.run(run_chains(second, plan, QUESTION, Slots(2), pass_number=1))
    assert not any("right answer is 4" in prompt for prompt in first.prompts)
    assert ["right answer is 4" in prompt for prompt in second.prompts] == [
        stage in hinted for stage in ("adapt", "structure", "path")
    ]
    assert paths[0].is_hinted
    assert paths[0].path_id.endswith("/1/0")


def test_hint_names_an_option_with_its_letter_and_text() -> None:
    choice = Question("c/1", "c", "train", "in_domain", "2 + 2?", "B", "choice", ("three", "four"))
    engine, plan = Asked(), recipe(chain=["path"], hint_stages=["path"])
    asyncio.run(run_chains(engine, plan, choice, Slots(2), pass_number=1))
    assert "the right answer is B) four" in engine.prompts[0]
