from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evaluation.question import Question
from pipelines.selection.answer_leaks import Leak, find_leak
from pipelines.synthesis.reasoning_path import ReasoningPath

QUESTION = Question(
    "d/train/1",
    "d",
    "train",
    "in_domain",
    "Ann has 3 apples and buys 12 more. How many?",
    "15",
    "number",
)
ALL: tuple[Leak, ...] = ("hint", "structure", "guideline")

CITES = (
    "Per the plan, we add 3 and 12.",
    "As the plan says, the sum is 15.",
    "The plan states that we should add.",
    "We were asked by the plan to add the numbers.",
    "The plan that was given says to add.",
    "In accordance with the plan, we add.",
    "The plan described above asks us to add.",
    "This follows the plan exactly: 15.",
    "Now I move on to step 2 of the plan.",
    "Continuing with the plan, we add 12.",
    "We have completed all the steps of the plan.",
    "The plan recommends counting first.",
    "By following the plan, we get 15.",
    "Looking at the plan, the next thing to do is to add.",
    "I stick with the plan and add 12.",
    "The plan above is to add the two numbers.",
    "Going by the plan, 3 + 12 = 15.",
    "The plan has three steps; the first is to count.",
    "This completes the plan: 15.",
    "As stated in the plan, we add.",
    "As required by the plan, we check the sum.",
    "Let's follow the plan step by step.",
    "We'll use the plan to solve this.",
    "Let me apply the advice: count first.",
    "The advice says to count first.",
    "According to the advice, we count first.",
    "As the advice suggests, I simplify.",
    "In the spirit of the guideline, I take small steps.",
    "Applying the guideline, I take small steps.",
    "The guideline asks us to take small steps.",
    "Considering the guideline, I split the problem.",
    "The given strategy says to split the problem.",
    "With the given strategy, I split the problem.",
    "The strategy above tells us to split the problem.",
    "As the strategy suggests, I split the problem.",
    "Based on the steps provided, we add.",
    "The instructions above say to add.",
    "As the instructions say, we add.",
    "Following the instructions, we add 3 and 12.",
    "Following the outline, I first list the facts.",
    "The outline provided starts with the facts.",
    "The structured plan says to add.",
    "Using the reasoning structure, I list the facts.",
    "Following the reasoning structure, I list the facts.",
    "Following the structured approach given, I list the facts.",
    "The framework says to list the facts.",
    "As the template says, we list the facts.",
    "We proceed as planned in the outline.",
    "Step 3 from the plan: add.",
    "The roadmap says to begin with the apples.",
    "The blueprint calls for an addition.",
    "The provided hint about small steps helps here.",
    "The suggestion was to work backwards, so we begin with 15.",
    "As the plan directs, we add.",
    "As mentioned in the plan, she buys 12.",
    "As noted in the plan, she buys 12.",
    "We now execute step 1 of the given plan.",
    "The plan provided is to add.",
    "As the plan wants it, we check.",
    "The plan's last point asks for a check.",
    "The plan says to add the two numbers: 3 + 12 = 15.",
    "As described in the plan, we add 3 and 12.",
    "As the structure suggests, we begin with the 3 apples.",
    "Following the guideline, break it into parts.",
    "Following the plan, add 3 and 12.",
    "According to the plan, we first find the number of apples.",
    "The plan is given above, so we add.",
    "Step 1 of the plan: she has 3 apples.",
    "The first step of the plan is to count the apples.",
    "The plan's first step is to count.",
    "We use the plan: 3 + 12.",
    "The plan suggests adding the numbers.",
    "The plan tells us to add.",
    "The plan calls for an addition.",
    "The plan first asks for the apples she has.",
    "The given plan is to add.",
    "Using the provided structure, we get 15.",
    "The steps given are to add 3 and 12.",
    "Following the given steps, 3 + 12 = 15.",
    "Following the suggested approach we add 3 and 12.",
    "By the given advice we add.",
    "The advice was to look for the data.",
    "Your plan works well: 3 + 12 = 15.",
    "Based on your advice, I add 3 and 12.",
    "Based on this structure: 15",
    "In line with the outline, we list what is known.",
    "The outline says to list what is known.",
    "As outlined in the plan, the sum is 15.",
    "We are told by the plan to add.",
    "Let us carry out the plan: 3 + 12 = 15.",
    "I will execute the plan step by step.",
    "The guidance here is to simplify.",
    "As per the guidelines, we check the result.",
    "We apply the guideline of breaking down the problem.",
    "Sticking to the plan, we add.",
    "As the plan indicates, the total is 15.",
    "The next step in the plan is to add 12.",
    "The reasoning structure starts with the apples.",
    "As instructed, we first list the numbers.",
    "As advised, I look for a pattern: 15.",
    "The structure above tells us to add.",
    "The framework provided asks for the unknown.",
    "Under the plan, we then add 12.",
    "We go through the plan: first 3, then 12.",
    "This is what the plan requires: 3 + 12 = 15.",
    "I followed the plan and found 15.",
    "The steps provided lead to 15.",
    "The strategy suggested is to work backwards.",
    "Point 3 of the outline asks for a check.",
    "Returning to the plan, we now add 12.",
    "With the plan in mind, we add 3 and 12.",
    "The numbers in the plan are 3 and 12.",
    "The structure's first step is to count the apples.",
    "Using the framework given, we list the unknowns.",
    "As laid out in the reasoning structure, we add.",
    "We were told in the outline to add.",
    "The template asks us to name what is known.",
    "As the steps describe, we add.",
    "The steps that were given lead to 15.",
)
CITES_NOTHING = (
    "Per hour, she sells 12 apples.",
    "The phone plan says 12 dollars a month in its ad.",
    "The savings plan gives 15 dollars.",
    "A meal plan for 3 days needs 12 apples.",
    "The lesson plan covers 3 chapters.",
    "According to the bus schedule, it leaves at 3.",
    "The instructions on the box say 12 minutes.",
    "Following the path, she walks 15 km.",
    "Following the rule of three, x = 15.",
    "Following the pattern, the next number is 15.",
    "Following the same reasoning, we get 15.",
    "Following the same steps for May gives 15.",
    "Using the steps above, 3 + 12 = 15.",
    "By the method described in the question, we add.",
    "The approach is simple: add.",
    "Our plan: add 3 and 12.",
    "Plan: add 3 and 12.",
    "Here is the plan: add 3 and 12.",
    "Let me outline the solution: first add, then check.",
    "I will outline the steps.",
    "The outline of the argument is short.",
    "The given numbers are 3 and 12.",
    "The given equation is x = 15.",
    "The given information says that she has 3 apples.",
    "The information provided tells us the price.",
    "The table provided shows 12 apples.",
    "The statement above is true.",
    "As stated above, she has 3 apples.",
    "As mentioned above, the total is 15.",
    "As described above, we add.",
    "As we said, 3 + 12 = 15.",
    "The problem says that she buys 12 more.",
    "The question asks for the total.",
    "As the question says, she buys 12 more.",
    "The rule says that order does not matter.",
    "The formula tells us that the area is 15.",
    "The theorem states that the sum is 15.",
    "The recipe calls for 3 eggs.",
    "The contract calls for 12 payments.",
    "He follows his teacher's advice and saves 3 dollars.",
    "A friend advised him to save 12 dollars.",
    "The framework of the bridge has 15 beams.",
    "The strategy of the team is to defend.",
    "The structure above the river is 12 m high.",
    "The template has 12 holes.",
    "The city's plan is to build 15 houses.",
    "According to her plan, she saves 3 dollars a day.",
    "The first step of the stairs is 12 cm high.",
    "The last step is to add.",
    "Step 3 of the calculation gives 15.",
    "The next step in the calculation is to add.",
    "We execute the addition first.",
    "Based on the given data, the answer is 15.",
    "Using the given values, 3 + 12 = 15.",
    "Using the provided numbers, 3 + 12 = 15.",
    "The steps to solve this are: add, then check.",
    "Her instructions were to buy 12 apples.",
    "This strategy works: 15.",
    "This approach gives 15.",
    "With this method, we get 15.",
    "They plan a trip of 3 hours.",
    "The structure of the molecule has 15 atoms.",
    "Her plan is to buy apples: 3 + 12 = 15.",
    "Add 3 and 12.",
    "Ann plans to buy 12 more, so she has 15.",
    "The structure of the equation suggests a substitution.",
    "Using the structure of the sum, we pair the terms.",
    "The plan is to first find x and then y.",
    "We plan our steps: first add, then check.",
    "My plan is to add the numbers.",
    "The floor plan shows 3 rooms.",
    "Based on the floor plan, there are 15 rooms.",
    "The company follows a business plan for 12 years.",
    "According to the table, she has 3 apples.",
    "According to the problem, she buys 12 more.",
    "As given in the question, she has 3 apples.",
    "Following the order of operations, 3 + 12 = 15.",
    "We use the following steps: add, then check.",
    "These steps give 15.",
    "The steps are: 1. Add 3 and 12.",
    "In the first step we add 3 and 12.",
    "The next step is to add 12.",
    "Step 2: add 12 to get 15.",
    "The steps given in the problem are an addition and a check.",
    "The method of elimination gives 15.",
    "Using the method of substitution, x = 15.",
    "By the distributive property the result is 15.",
    "The building has a steel structure.",
    "The sentence structure is that of a question.",
    "This structure is a ring of 15 elements.",
    "Her doctor advised her to eat 3 apples.",
    "The graph suggests that the value is 15.",
    "A plane leaves at 3 and lands at 15.",
    "The plane says nothing about the line it holds.",
    "The planet follows its orbit for 15 days.",
    "Planning ahead saves 12 minutes.",
    "The strategy is to work backwards from 15.",
    "Our approach is to count up from 3.",
    "The process takes 15 minutes.",
    "Let us follow the money: 3 + 12 = 15.",
    "The approach given by Gauss pairs the terms.",
    "Everything goes as planned: 15.",
    "She follows the recipe and needs 15 eggs.",
    "The population structure changes after 12 years.",
    "The family plans on 3 days of rest.",
    "The steps above give 15.",
    "The structure is 12 metres high.",
    "This framework of steel weighs 15 tons.",
    "The outline of the square is 12 cm long.",
    "The plan of the house has 3 rooms.",
    "The method gives 15.",
    "As suggested by the symmetry, both sides are equal.",
    "Let us suggest a value and check it.",
    "The tree structure has 15 nodes.",
    "The data is stored in a structure with 3 fields.",
    "The procedure takes 3 steps.",
    "A template for 12 cookies fits on the tray.",
    "The crystal structure shows 12 neighbours.",
    "Using this structure of the polynomial, factor it.",
)


def path(**columns: Any) -> ReasoningPath:
    return ReasoningPath.from_row({"path_id": "p", "guideline_id": "plan"} | columns)


@pytest.mark.parametrize(
    ("reasoning", "leaks"),
    [
        ("3 + 12 = 15, as we were told the answer.", True),
        ("The given answer is 15, so it must be so.", True),
        ("We know that the right answer is 15.", True),
        ("According to the hint it is 15.", True),
        ("We know the answer is 15.\n\nThe answer is 15.", True),
        ("You already have the final answer. You are correct: 15.", True),
        ("Once we have 3 and 12 we know what the answer is: 15.", False),
        ("3 + 12 = 15, so the answer is 15.", False),
        ("As given, she has 3 apples. The final answer is \\boxed{15}.", False),
    ],
)
def test_hinted_path_that_cites_the_hint_leaks(reasoning: str, leaks: bool) -> None:
    assert find_leak(QUESTION, path(**{"pass": 1}, reasoning=reasoning), ALL) == (
        "hint" if leaks else None
    )
    assert find_leak(QUESTION, path(reasoning=reasoning), ("hint",)) is None


@pytest.mark.parametrize(
    ("reasoning", "leaks"),
    [
        ("Following the plan, add 3 and 12.", True),
        ("The guideline says to look for data.", True),
        ("Based on this structure: 15", True),
        ("By the given advice we add.", True),
        ("Her plan is to buy apples: 3 + 12 = 15", False),
        ("Add 3 and 12.", False),
    ],
)
def test_solution_that_cites_the_guideline_leaks(reasoning: str, leaks: bool) -> None:
    assert find_leak(QUESTION, path(reasoning=reasoning), ALL) == ("guideline" if leaks else None)
    plain = path(reasoning=reasoning, guideline_id=None)
    assert find_leak(QUESTION, plain, ALL) is None, "a plain chain has no guideline to cite"


def test_what_the_question_itself_speaks_of_is_no_leak() -> None:
    about = Question(
        "d/train/2", "d", "train", "in_domain", "Is the advice sound?", "yes", "boolean"
    )
    assert find_leak(about, path(reasoning="The advice is sound: yes"), ALL) is None


def test_a_plan_of_the_question_is_not_the_one_that_the_model_was_shown() -> None:
    about = replace(QUESTION, question="The plan costs 3 dollars and 12 more in May. How much?")
    assert find_leak(about, path(reasoning="The plan asks for 3 + 12 = 15 dollars."), ALL) is None
    verb = replace(QUESTION, question="They plan to buy 12 more than 3 apples. How many?")
    assert find_leak(verb, path(reasoning="The plan says to add: 15."), ALL) == "guideline"
    other = path(reasoning="The guideline says to add 3 and 12.")
    assert find_leak(about, other, ALL) == "guideline"


@pytest.mark.parametrize("reasoning", CITES)
def test_citation_of_an_unseen_text_is_found(reasoning: str) -> None:
    assert find_leak(QUESTION, path(reasoning=reasoning), ("guideline",)) == "guideline"
    assert find_leak(QUESTION, path(reasoning=reasoning.upper()), ("guideline",)) == "guideline"


@pytest.mark.parametrize("reasoning", CITES_NOTHING)
def test_ordinary_sentence_cites_nothing(reasoning: str) -> None:
    assert find_leak(QUESTION, path(reasoning=reasoning), ("guideline",)) is None


@pytest.mark.parametrize(
    ("structure", "leaks"),
    [
        ("1. Add 3 and 12 to get 15.", True),
        ("1. Add. 2. The answer is \\boxed{15}", True),
        ("1. Take 3. 2. Add 12.", False),
        ("1. Look for 150 and 1.5 and x15.", False),
        ("", False),
    ],
)
def test_structure_that_holds_the_answer_leaks(structure: str, leaks: bool) -> None:
    found = find_leak(QUESTION, path(structure=structure), ALL)
    assert found == ("structure" if leaks else None)


def test_structure_of_a_question_without_a_number_leaks_only_the_answer_itself() -> None:
    asked = replace(QUESTION, answer="yes", answer_type="boolean")
    plan = "1. Compare the 3 apples with the 12 pears."
    assert find_leak(asked, path(structure=plan, reasoning="Yes."), ALL) is None
    told = f"{plan} \\boxed{{yes}}"
    assert find_leak(asked, path(structure=told, reasoning="Yes."), ALL) == "structure"


def test_only_the_wanted_leaks_are_looked_for() -> None:
    both = path(structure="It is 15.", reasoning="The guideline says 15.")
    assert find_leak(QUESTION, both, ()) is None
    assert find_leak(QUESTION, both, ("guideline",)) == "guideline"
    assert find_leak(QUESTION, both, ALL) == "structure"
