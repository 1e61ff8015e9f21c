"""Further guidelines: the prompts, the model's proposals, and which of them are kept."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import DamagedFileError, InputError
from cluster.inference.engine import Completion, EngineSettings, GenerationError, SamplingSettings
from cluster.inference.job import Slots
from cluster.models.model import Model
from cluster.settings import content_of, load_settings
from cluster.store.folder import Folder
from cluster.store.ledger import PartWriter
from evaluation.question import Question
from pipelines.selection.similarity import shingles, similarity
from pipelines.steps import guidelines as guidelines_step
from pipelines.steps import paths as paths_step
from pipelines.synthesis.chain import Recipe, SynthesisSettings
from pipelines.synthesis.guidelines import Guideline, Prompts, load_guidelines, load_prompts
from pipelines.synthesis.handler import SynthesizePaths
from pipelines.synthesis.propose_guidelines import (
    MAX_WORDS,
    NUM_SHOWN,
    PROPOSALS_SCHEMA,
    SIMILAR,
    Expansion,
    ProposeGuideline,
    guideline_text,
    read_step_guidelines,
    select_guidelines,
    select_step_guidelines,
    why_dropped,
    with_room,
    write_prompts,
)

OURS = load_guidelines()
NEW = "Turn the question round and ask what would make its opposite true."
OTHER = "Look for a quantity that stays the same whatever happens, and reason from it."


def recipe(**settings: Any) -> Recipe:
    return Recipe.load(0, SynthesisSettings.model_validate_json(json.dumps(settings)))


def expansion(number: int = 4, **settings: Any) -> Expansion:
    made = Expansion.of(recipe(expand_guidelines=number, **settings))
    assert made is not None
    return made


def proposal(text: str, number: int = 0, **columns: Any) -> dict[str, Any]:
    """The row of a proposal, as far as it decides."""
    row = {"question_id": f"proposed-{number:02d}", "response": text, "error": None}
    return row | {"finish_reason": "stop"} | columns


# --- what the model is asked -------------------------------------------------------------------


def test_prompts_show_each_proposal_a_draw_of_its_own_of_what_is_there() -> None:
    asked = expansion(20).prompts()
    assert [question.question_id for question in asked[:3]] == [f"proposed-0{n}" for n in range(3)]
    shown = [[each.text for each in OURS if f"- {each.text}\n" in q.question] for q in asked]
    assert {len(texts) for texts in shown} == {NUM_SHOWN}
    assert len({tuple(texts) for texts in shown}) == 20
    assert len(set(itertools.chain(*shown))) == 25
    assert asked == expansion(20).prompts()
    # More of them are the same ones and some more.
    assert expansion(21).prompts()[:20] == asked
    assert expansion(20, seed=1).prompts() != asked


def test_ids_go_on_after_those_that_are_in_the_file() -> None:
    edited = (Guideline("proposed-03", NEW), Guideline("proposed-x", OTHER), *OURS)
    assert replace(expansion(2), guidelines=edited).ids() == ["proposed-04", "proposed-05"]
    assert expansion(120).ids()[-1] == "proposed-119"


def test_nothing_is_asked_for_by_default() -> None:
    assert Expansion.of(recipe()) is None
    assert with_room(recipe()) == recipe()


def test_room_is_made_for_all_that_may_be_kept() -> None:
    assert SynthesizePaths(with_room(recipe(expand_guidelines=7, samples=2)), ()).width == 64
    few = recipe(expand_guidelines=7, guidelines_per_question=30)
    assert SynthesizePaths(with_room(few), ()).width == 30


def test_expansion_of_a_chain_that_follows_no_guideline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "synthesis.yaml"
    path.write_text("{chain: [path], expand_guidelines: 3}")
    with pytest.raises(InputError, match="expand_guidelines: a chain of only path follows none"):
        load_settings(SynthesisSettings, path)


def test_prompt_of_ones_own_has_to_show_the_guidelines(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    stages = "adapt: '{question} {guideline}'\nstructure: '{question} {adapted_guideline}'\n"
    path.write_text(f"{stages}path: '{{question}} {{structure}}'\n")
    assert load_prompts(path)["expand"] == load_prompts()["expand"]
    path.write_text(f"{path.read_text()}expand: one more, please\n")
    with pytest.raises(InputError, match=r"the prompt expand lacks \{guidelines\}"):
        load_prompts(path)


# --- what decides ------------------------------------------------------------------------------


def test_content_changes_with_what_decides_the_proposals_and_with_nothing_else() -> None:
    def content(made: Expansion, engine: EngineSettings, model: str = "m") -> dict[str, Any]:
        return guidelines_step.content(made, engine, Model(model, "", ""))

    same = content(expansion(), EngineSettings())
    assert content(expansion(samples=3), EngineSettings(max_num_seqs=7)) == same
    others = [
        content(expansion(5), EngineSettings()),
        content(expansion(seed=1), EngineSettings()),
        content(expansion(stages={"expand": {"temperature": 0.3}}), EngineSettings()),
        content(replace(expansion(), prompt="{guidelines}?"), EngineSettings()),
        content(replace(expansion(), guidelines=OURS[1:]), EngineSettings()),
        content(expansion(), EngineSettings(dtype="float32")),
        content(expansion(), EngineSettings(), "another"),
    ]
    assert len({json.dumps(each, sort_keys=True) for each in [same, *others]}) == 8


def test_paths_of_runs_without_an_expansion_are_what_they_were() -> None:
    asked = recipe(expand_guidelines=3, stages={"expand": {"temperature": 0.1}})
    assert content_of(asked.settings) == content_of(recipe().settings)
    content = paths_step.content(recipe(), EngineSettings(), Model("m", "", ""))
    assert "expand" not in json.dumps(content)
    other = Prompts({**recipe().prompts.texts, "expand": "{guidelines}?"})
    assert (
        paths_step.content(replace(recipe(), prompts=other), EngineSettings(), Model("m", "", ""))
        == content
    )


# --- the handler -------------------------------------------------------------------------------


class Proposer:
    """Writes one text, or fails, and remembers what it was asked."""

    def __init__(self, answer: Completion | Exception) -> None:
        self.asked: list[tuple[str, SamplingSettings, int]] = []
        self._answer = answer

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        [message] = messages
        self.asked.append((message["content"], sampling, seed))
        if isinstance(self._answer, Exception):
            raise self._answer
        return [self._answer]

    def shutdown(self) -> None: ...


def propose(
    engine: Proposer, question: Question, previous: dict[str, Any] | None = None
) -> dict[str, Any]:
    made = expansion()
    handler = ProposeGuideline(made.sampling, made.seed)
    row = {**question.to_row(), "question_fingerprint": question.fingerprint, "attempt": 0}
    return asyncio.run(handler(engine, row, Slots(1), previous))


def test_proposal_is_one_generation_with_a_seed_of_its_own() -> None:
    engine = Proposer(Completion(NEW, [5, 6], "stop", 90))
    asked = expansion().prompts()
    rows = [propose(engine, question) for question in asked]
    assert [prompt for prompt, _, _ in engine.asked] == [question.question for question in asked]
    assert len({seed for _, _, seed in engine.asked}) == len(asked)
    assert [row["seed"] for row in rows] == [seed for _, _, seed in engine.asked]
    assert {sampling.max_tokens for _, sampling, _ in engine.asked} == {256}
    [read] = pa.Table.from_pylist(rows[:1], schema=PROPOSALS_SCHEMA).to_pylist()
    assert {*rows[0]} <= {*PROPOSALS_SCHEMA.names}
    assert (read["response"], read["num_tokens"], read["num_prompt_tokens"]) == (NEW, 2, 90)
    assert Question.from_row(read) == asked[0]


def test_proposal_that_failed_is_tried_with_another_seed() -> None:
    engine = Proposer(GenerationError("refused"))
    [question] = expansion(1).prompts()
    first = propose(engine, question)
    assert (first["error"], first["num_failed"]) == ("refused", 1)
    assert pa.Table.from_pylist([first], schema=PROPOSALS_SCHEMA).num_rows == 1
    propose(engine, question, {**first, "attempt": 0})
    seeds = [seed for _, _, seed in engine.asked]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("text", "finish_reason"), [(NEW, "length"), (f"<think>{NEW}", "stop"), (NEW[:20], "length")]
)
def test_proposal_that_did_not_come_to_its_end_is_cut_off(text: str, finish_reason: str) -> None:
    [question] = expansion(1).prompts()
    row = propose(Proposer(Completion(text, [1], finish_reason, 9)), question)
    assert (row["finish_reason"], row["num_truncated"]) == ("length", 1)
    assert why_dropped(row, OURS) == "truncated"


# --- what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        NEW,
        f"  {NEW}\n",
        f'"{NEW}"',
        f"Strategy: {NEW}",
        f"**New Guideline:** {NEW}",
        f"Here is one more strategy of this kind:\n\n- {NEW}",
        f"1. {NEW}",
        f"Guideline 11: “{NEW}”",
        f"<think>Which one is missing?</think>\n{NEW}",
        NEW.replace(" and ", "\nand "),
    ],
)
def test_text_of_a_proposal_is_the_guideline_alone(response: str) -> None:
    assert guideline_text(response) == NEW


def test_text_that_speaks_of_a_strategy_stays_whole() -> None:
    text = "Write a strategy down first. Then follow it: step by step."
    assert guideline_text(text) == text


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (NEW, None),
        (OTHER, None),
        ("", "empty"),
        ("Strategy:", "empty"),
        ("Think about it.", "empty"),
        ("word " * (MAX_WORDS + 1), "too_long"),
        (f"{NEW} For example, ask who lost instead of who won.", "of_a_case"),
        ("If Tom has 3 apples, count the apples that he has.", "of_a_case"),
        ("Write the sum as a + b = c and solve it for the unknown.", "of_a_case"),
        (OURS[4].text, "near_duplicate"),
        (f"Guideline: {OURS[4].text.upper()}", "near_duplicate"),
        (OURS[4].text.replace("smaller", "tiny"), "near_duplicate"),
    ],
)
def test_proposal_is_dropped_for_a_reason(response: str, reason: str | None) -> None:
    assert why_dropped(proposal(response), OURS) == reason


def test_proposal_without_an_answer_is_dropped() -> None:
    assert why_dropped(proposal("", error="refused"), OURS) == "error"


def test_our_own_guidelines_would_all_be_kept() -> None:
    texts = [shingles(each.text) for each in OURS]
    assert all(similarity(a, b) < SIMILAR / 2 for a, b in itertools.combinations(texts, 2))
    assert all(why_dropped(proposal(each.text), ()) is None for each in OURS)


def test_selection_keeps_the_first_of_two_that_are_alike_in_whatever_order_they_come() -> None:
    rows = [
        proposal(NEW, 100),
        proposal(NEW, 3),
        proposal("", 1),
        proposal(OTHER, 7),
        proposal(OTHER, 99),
        proposal("", 0),
    ]
    kept, dropped = select_guidelines(rows, OURS)
    assert kept == [Guideline("proposed-03", NEW), Guideline("proposed-07", OTHER)]
    assert dropped == {
        "empty": ["proposed-00", "proposed-01"],
        "near_duplicate": ["proposed-99", "proposed-100"],
    }


def test_step_writes_a_file_that_a_user_can_name(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    made = expansion(3)
    prompts = write_prompts(made, folder)
    rows = [
        question.to_row()
        | {"question_fingerprint": question.fingerprint, "attempt": 0}
        | proposal(text, number)
        for number, (question, text) in enumerate(
            zip(made.prompts(), (NEW, "", OTHER), strict=True)
        )
    ]
    PartWriter(folder.child("parts/1/000000"), PROPOSALS_SCHEMA).write(rows)
    facts = select_step_guidelines(folder, prompts, made.guidelines)
    assert facts == {"kept": ["proposed-00", "proposed-02"], "dropped": {"empty": ["proposed-01"]}}
    expected = (*OURS, Guideline("proposed-00", NEW), Guideline("proposed-02", OTHER))
    assert read_step_guidelines(folder) == expected
    assert load_guidelines(tmp_path / "guidelines.yaml") == expected
    # Named and expanded again, the new ones get other ids.
    again = recipe(guidelines=str(tmp_path / "guidelines.yaml"), expand_guidelines=2)
    assert again.guidelines == expected
    assert (further := Expansion.of(again)) is not None
    assert further.ids() == ["proposed-03", "proposed-04"]


@pytest.mark.parametrize("data", [None, b"- {id: a", b"\xff"])
def test_proposed_guidelines_that_are_gone_or_damaged_are_named(
    tmp_path: Path, data: bytes | None
) -> None:
    folder = Folder.open(str(tmp_path))
    if data is not None:
        folder.write_bytes("guidelines.yaml", data)
    with pytest.raises(DamagedFileError, match=r"/guidelines\.yaml is damaged or missing"):
        read_step_guidelines(folder)
