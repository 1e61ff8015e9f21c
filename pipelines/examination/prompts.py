"""The menu of prompts: each model is asked dev with all of them, and test with its best one.

A base model that is only asked as its tuned model was trained may look worse than it is. So it gets
the same menu as every other model, and the best prompt is chosen by dev questions, never by test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.errors import InputError
from cluster.store.folder import Folder
from cluster.store.ledger import Ledger
from evaluation.grader import ReadAs, Verdict
from evaluation.model_scores import MEAN, Measure
from evaluation.prompt import PROMPTS
from evaluation.question import Question
from evaluation.reading.names import nearest
from evaluation.scores import percent
from evaluation.shots import Shot
from pipelines.examination.models import ExaminedModel
from pipelines.examination.settings import ExaminationSettings
from pipelines.stored_run import StoredRun
from pipelines.synthesis.reasoning_path import ReasoningPath

FEW_SHOT = "few_shot"
MENU = (*PROMPTS, FEW_SHOT)
"""`few_shot` is the standard prompt after solved questions."""
NUM_SHOTS = 4


@dataclass(frozen=True)
class Variant:
    """A model with one of the prompts."""

    model: ExaminedModel
    """With the name that tables give it."""
    evaluation: ExaminationSettings
    of: str
    """The name of the model without the prompt."""
    prompt: str


@dataclass(frozen=True)
class Choice:
    """The best prompt of a model on dev."""

    prompt: str
    share: float
    """Right, as the mean over the tasks."""
    says: str
    """A sentence for people."""


def read_menu(text: str, evaluation: ExaminationSettings) -> tuple[str, ...]:
    """The prompts of `--prompts a,b`. Raises `InputError`."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in MENU:
            raise InputError(
                f"--prompts {name}: there is no such prompt{nearest(name, MENU)}; there are "
                f"{', '.join(MENU)}"
            )
    if len(names) < 2:
        raise InputError(f"--prompts {text}: give at least two of {', '.join(MENU)}")
    if (FEW_SHOT in names) != bool(evaluation.shots):
        raise InputError(
            "--prompts: few_shot and solved questions belong together; give few_shot with --shots "
            "FILE or --shots-from RUN, or neither"
        )
    return names


def variants_of(
    models: Iterable[ExaminedModel],
    evaluation: ExaminationSettings,
    prompts: Mapping[str, Sequence[str]],
) -> list[Variant]:
    """Each model with its prompts, which are given by the name of the model."""
    return [
        Variant(
            replace(model, name=f"{model.name}.{prompt}"),
            _with_prompt(evaluation, prompt),
            model.name,
            prompt,
        )
        for model in models
        for prompt in prompts[model.name]
    ]


def _with_prompt(evaluation: ExaminationSettings, prompt: str) -> ExaminationSettings:
    is_few_shot = prompt == FEW_SHOT
    shots = evaluation.shots if is_few_shot else ()
    name = "standard" if is_few_shot else prompt
    return evaluation.model_copy(update={"prompt": name, "shots": shots})


def choose_prompts(variants: Sequence[Variant], measures: Sequence[Measure]) -> dict[str, Choice]:
    """The best prompt of each model by its dev answers; of equals the first of the menu.

    It is the mean over the tasks in domain, or over all tasks if none is in domain, under the
    forced reading if there is one, otherwise under the tolerant one: a prompt that asks for no box
    is not to lose by that.
    """
    scored = [m for m in measures if m.metric == "accuracy" and m.task != MEAN]
    reading = "forced" if any(m.reading == "forced" for m in scored) else "tolerant"
    in_domain = [m for m in scored if m.group == "in_domain"]
    counted = [m for m in in_domain or scored if m.reading == reading]
    shares: dict[str, dict[str, float]] = {}
    for each in variants:
        own = [m.value for m in counted if m.model == each.model.name]
        shares.setdefault(each.of, {})[each.prompt] = sum(own) / len(own)
    return {name: _choice(name, of_prompts, reading) for name, of_prompts in shares.items()}


def _choice(name: str, shares: Mapping[str, float], reading: str) -> Choice:
    best = max(shares, key=lambda prompt: shares[prompt])
    each = ", ".join(f"{prompt} {percent(share)}" for prompt, share in shares.items())
    says = f"{name}: the best prompt on dev is {best} ({reading}, mean over tasks: {each})"
    return Choice(best, shares[best], says)


def final_prompts(menu: Sequence[str], choices: Mapping[str, Choice]) -> dict[str, list[str]]:
    """With which prompts each model is asked test: the first of the menu, and its best one."""
    return {name: list(dict.fromkeys([menu[0], each.prompt])) for name, each in choices.items()}


# --- solved questions of a run -----------------------------------------------------------------


def shots_of_run(location: str, number: int = NUM_SHOTS) -> tuple[Shot, ...]:
    """Right paths that the model of a run wrote in its first round, to be shown as examples.

    The shortest ones whose answer is boxed, without a hint, each of another question; the datasets
    take turns. Raises `InputError` where there is none.
    """
    paths = StoredRun.read(location).step("round_0/paths")
    if paths.manifest() is None:
        raise InputError(
            f"--shots-from {location}: its paths are not finished; run the config again"
        )
    found = _shortest(paths, number)
    turns = [
        each for rank in range(number) for own in found.values() for each in own[rank : rank + 1]
    ]
    if not turns:
        raise InputError(
            f"--shots-from {location}: none of its paths is right and boxed; give solved questions "
            "with --shots FILE"
        )
    return tuple(
        Shot(question=asked.text, response=path.reasoning, answer_type=asked.answer_type)
        for path, asked in turns[:number]
    )


def _shortest(paths: Folder, number: int) -> dict[str, list[tuple[ReasoningPath, Question]]]:
    """By dataset the questions with the shortest usable paths, and these paths."""
    found: dict[str, list[tuple[ReasoningPath, Question]]] = {}
    for row in Ledger.read(paths).rows():
        question = Question.from_row(row)
        parsed = (ReasoningPath.from_row(path) for path in row["paths"])
        usable = [path for path in parsed if _is_usable(path)]
        if not usable:
            continue
        shortest = min(usable, key=lambda path: (len(path.reasoning), path.path_id))
        own = found.setdefault(question.dataset, [])
        own.append((shortest, question.with_options(shortest.option_order)))
        own.sort(key=lambda pair: (len(pair[0].reasoning), pair[0].path_id))
        del own[number:]
    return dict(sorted(found.items()))


def _is_usable(path: ReasoningPath) -> bool:
    is_right = (path.verdict, path.read_as) == (Verdict.CORRECT.value, ReadAs.BOXED.value)
    return is_right and not path.is_hinted and bool(path.reasoning.strip())
