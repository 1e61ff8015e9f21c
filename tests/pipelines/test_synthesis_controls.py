"""The controls of the synthesis: placebo guidelines, subsets of guidelines, swapped adaptations."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.inference.engine import Completion, SamplingSettings
from cluster.inference.job import Slots
from cluster.inference.schedule import Questions
from cluster.store.folder import Folder
from evaluation.question import Question, question_table
from pipelines.synthesis.chain import GuidelineSubset, Recipe, draw_subset
from pipelines.synthesis.guidelines import PLACEBO, load_guidelines
from pipelines.synthesis.handler import SynthesizePaths
from pipelines.synthesis.swapped_adaptations import OtherQuestions, next_on_ring
from tests.pipelines.test_chain import recipe
from tests.pipelines.test_controls import assert_share

QUESTIONS = [
    Question(f"{name}/train/{n}", name, "train", "in_domain", f"What is {n} + {n}?", "0", "number")
    for name, number in (("a", 10), ("b", 2))
    for n in range(number)
]
EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        """a all an and are as at be been by come comes could each every for from had has have how i
        in into is it its like made may might must no not of on one only or other out own so than
        that the their them then there these they this to used was were what when where which who
        will with would you your""",
    )
)
"""Words without which no sentence is written; two guidelines may share them."""


# --- placebo guidelines ------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.casefold())


def test_placebo_guidelines_have_the_length_and_form_of_ours_one_by_one() -> None:
    ours, placebos = load_guidelines(), recipe(guidelines=PLACEBO).guidelines
    assert len(placebos) == len(ours)
    for real, placebo in zip(ours, placebos, strict=True):
        assert len(words_of(placebo.text)) == len(words_of(real.text)), placebo
        assert placebo.text.count(",") == real.text.count(","), placebo
        assert 0.9 < len(placebo.text) / len(real.text) < 1.1, placebo
        assert placebo.text.endswith(".")
    lengths = [sum(len(each.text) for each in group) for group in (ours, placebos)]
    assert abs(lengths[1] / lengths[0] - 1) < 0.02
    commands = {words_of(each.text)[0] for each in placebos}
    assert commands == {"imagine", "picture", "remember", "walk"}


def test_placebo_guidelines_share_no_word_of_content_with_ours() -> None:
    def content(guidelines: Sequence[Any]) -> set[str]:
        return {word for each in guidelines for word in words_of(each.text)} - EVERYDAY

    ours, placebos = content(load_guidelines()), content(recipe(guidelines=PLACEBO).guidelines)
    assert len(ours) > 150
    assert ours & placebos == set()
    of_answers = "answer question solve check step plan problem think reason number result solution"
    assert not placebos & set(of_answers.split())


def test_placebo_is_a_name_and_a_file_of_that_name_in_a_folder_is_the_users(tmp_path: Path) -> None:
    mine = tmp_path / "placebo"
    mine.write_text("- id: own\n  text: Draw a picture.\n")
    assert [each.guideline_id for each in recipe(guidelines=str(mine)).guidelines] == ["own"]
    assert recipe(guidelines=PLACEBO).guidelines[0].guideline_id == "placebo_01"


# --- subsets -----------------------------------------------------------------------------------


def test_each_guideline_has_the_same_chance_to_be_in_a_subset() -> None:
    seeds, everything = range(800), load_guidelines()
    drawn = Counter(
        guideline.guideline_id
        for seed in seeds
        for guideline in draw_subset(everything, GuidelineSubset(size=5, seed=seed))
    )
    assert len(drawn) == 25
    for number in drawn.values():
        assert_share([True] * number + [False] * (len(seeds) - number), 5 / 25)


# --- swapped adaptations -----------------------------------------------------------------------


class Telling:
    """Writes into each text what it was made from: the question, and the guideline's place."""

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        await asyncio.sleep(0)
        prompt = messages[-1]["content"]
        asked = prompt.partition("\n")[0]
        if "\nGuideline: " in prompt:
            guideline = prompt.partition("\nGuideline: ")[2].partition("\n")[0]
            text = f"adapted <{asked}> <{guideline}> {seed}"
        elif "\nAdvice: " in prompt:
            text = "plan of " + prompt.partition("\nAdvice: ")[2].partition("\n")[0]
        else:
            text = (
                f"for <{asked}>: {prompt.partition('plan of ')[2].partition(chr(10))[0]} "
                + "\\boxed{0}"
            )
        return [Completion(text, [1, 2], "stop", 3)]

    def shutdown(self) -> None: ...


def others_of(folder: Path, questions: Sequence[Question], seed: int = 0) -> OtherQuestions:
    store = Folder.open(str(folder))
    store.write_table("questions.parquet", question_table(questions))
    return OtherQuestions(Questions(store, ("train",)), seed)


def paths_of(plan: Recipe, others: OtherQuestions | None) -> dict[str, dict[str, Any]]:
    handler = SynthesizePaths(plan, (), others)

    async def make() -> list[dict[str, Any]]:
        slots = Slots(64)
        return list(
            await asyncio.gather(*(handler(Telling(), q.to_row(), slots, None) for q in QUESTIONS))
        )

    return {path["path_id"]: path for row in asyncio.run(make()) for path in row["paths"]}


def test_ring_gives_each_name_another_one_and_each_is_given_once() -> None:
    names = [f"n{number}" for number in range(40)]
    for seed in range(50):
        ring = next_on_ring(names, seed)
        assert sorted(ring) == sorted(ring.values()) == sorted(names)
        assert all(one != other for one, other in ring.items())
    assert next_on_ring(names[::-1], 1) == next_on_ring(names, 1)
    assert next_on_ring(["a"], 1) == {"a": "a"}
    assert next_on_ring([], 1) == {}


def test_every_other_name_is_equally_likely_to_be_the_next_one() -> None:
    names = [f"n{number}" for number in range(6)]
    drawn = Counter(next_on_ring(names, seed)["n0"] for seed in range(3000))
    assert set(drawn) == set(names[1:])
    for number in drawn.values():
        assert_share([True] * number + [False] * (3000 - number), 1 / 5)


def test_adaptation_swapped_between_questions_is_that_of_another_question(tmp_path: Path) -> None:
    own = paths_of(recipe(guidelines_per_question=25), None)
    swapped = paths_of(recipe(swap_adaptations="questions"), others_of(tmp_path, QUESTIONS))
    assert swapped.keys() == own.keys()
    assert len(swapped) == 25 * len(QUESTIONS)
    used = Counter(path["adapted_guideline"] for path in swapped.values())
    assert used == Counter(path["adapted_guideline"] for path in own.values()), "each once"
    texts = {question.question_id: question.text for question in QUESTIONS}
    for path_id, path in swapped.items():
        asked = next(name for name in texts if f"/{name}/" in path_id)
        [of, guideline] = re.findall("<(.*?)>", path["adapted_guideline"])
        assert of != texts[asked], "never its own"
        assert of in {text for name, text in texts.items() if name[0] == asked[0]}, "one dataset"
        assert f"<{guideline}>" in own[path_id]["adapted_guideline"], "the same guideline"
        assert path["reasoning"].startswith(f"for <{texts[asked]}>"), "the question stays"
        assert path["adapted_guideline"] in path["reasoning"], "and it is what was followed"


def test_adaptation_swapped_between_guidelines_is_that_of_another_guideline() -> None:
    settings = {"guidelines_per_question": 4, "samples": 2}
    own = paths_of(recipe(**settings), None)
    swapped = paths_of(recipe(**settings, swap_adaptations="guidelines"), None)
    assert swapped.keys() == own.keys()
    for question in QUESTIONS:
        mine = [name for name in own if f"/{question.question_id}/" in name]
        assert len(mine) == 8
        assert all(swapped[n]["adapted_guideline"] != own[n]["adapted_guideline"] for n in mine)
        before, after = (
            Counter(paths[name]["adapted_guideline"] for name in mine) for paths in (own, swapped)
        )
        assert before == after, "the same adaptations, under other names"


def test_swap_takes_away_what_is_due_to_the_fit_of_an_adaptation(tmp_path: Path) -> None:
    """A path is right in 80 % of cases if the adaptation fits its question, otherwise in 30 %."""
    own = paths_of(recipe(), None)
    swapped = paths_of(recipe(swap_adaptations="questions"), others_of(tmp_path, QUESTIONS, 5))

    def is_right(path: Mapping[str, Any]) -> bool:
        [asked] = re.findall("for <(.*?)>", path["reasoning"])
        fits = f"adapted <{asked}>" in path["adapted_guideline"]
        return random.Random(path["path_id"]).random() < (0.8 if fits else 0.3)

    assert_share(map(is_right, own.values()), 0.8)
    of_a = [path for path in swapped.values() if "/a/train/" in path["path_id"]]
    assert_share(map(is_right, of_a), 0.3)


def test_other_question_stays_while_the_dataset_stays_whatever_the_order(tmp_path: Path) -> None:
    one = others_of(tmp_path / "1", QUESTIONS)
    other = others_of(tmp_path / "2", QUESTIONS[::-1])
    fewer = others_of(tmp_path / "3", [q for q in QUESTIONS if q.dataset == "a"])
    for question in QUESTIONS:
        assert one.of(question) == other.of(question)
        assert one.of(question).dataset == question.dataset
        if question.dataset == "a":
            assert fewer.of(question) == one.of(question)
    changed = others_of(tmp_path / "4", QUESTIONS, seed=1)
    assert any(changed.of(question) != one.of(question) for question in QUESTIONS)


def test_swap_leaves_the_later_stages_seeds_alone(tmp_path: Path) -> None:
    own, swapped = (
        paths_of(recipe(guidelines_per_question=3, **more), others)
        for more, others in (
            ({}, None),
            ({"swap_adaptations": "questions"}, others_of(tmp_path, QUESTIONS)),
        )
    )
    for name, path in own.items():
        seeds, others = ([g["seed"] for g in one["generations"]] for one in (path, swapped[name]))
        assert seeds[0] != others[0]
        assert seeds[1:] == others[1:]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chain": ["structure", "path"]}, "no stage adapt"),
        ({"chain": ["path"]}, "no stage adapt"),
        ({"hint_stages": ["adapt"]}, "remove adapt from hint_stages"),
    ],
)
def test_swap_that_cannot_swap_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(swap_adaptations="guidelines", **settings)


def test_adaptations_are_not_left_unswapped_without_the_other_questions() -> None:
    with pytest.raises(ValueError, match="swap_adaptations: questions needs the other question"):
        paths_of(recipe(swap_adaptations="questions"), None)


def test_adaptation_of_a_first_pass_is_followed_in_a_pass_with_a_hint() -> None:
    plan = recipe(swap_adaptations="guidelines", hint_stages=["structure"])
    question = replace(QUESTIONS[0], answer="7")
    row = asyncio.run(SynthesizePaths(plan, ())(Telling(), question.to_row(), Slots(9), None))
    passes = {n: [p["adapted_guideline"] for p in row["paths"] if p["pass"] == n] for n in (0, 1)}
    assert passes[0] == passes[1]
    assert len(passes[1]) == 25
