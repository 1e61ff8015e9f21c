"""Check the config and the base model of a run, before anything is generated.

`check_config` reads only the config, the guidelines and the prompts. `check_base` renders each
prompt of the run once with the base model's tokenizer, and saves and reloads what a tuned model
will inherit; no weights are loaded. It does so in a subprocess, so that the driver imports neither
torch nor transformers. Each check is a function in a table and raises a single `InputError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import InputError
from cluster.inference.cpu_binding import parse_cores
from cluster.inference.engine import EngineSettings, SamplingSettings, check_sampling_options
from cluster.models.model import is_hub_name, is_ready
from cluster.notify import refuse_missing_program
from cluster.session import starts_cluster
from cluster.store.named import refuse_unwritable
from cluster.subprocesses import run_apart
from cluster.tracking import refuse_missing_trackers
from evaluation.prompt import asked_messages
from evaluation.question import Question
from pipelines.config import Config
from pipelines.planning.base_checks import Asking, Base, UnsureError, look_at_base
from pipelines.synthesis.chain import PathSpec, Recipe, stage_messages
from pipelines.synthesis.propose_guidelines import Expansion
from training.settings import TrainingSettings

SAMPLE = Question(
    "preflight/train/0",
    "preflight",
    "train",
    "in_domain",
    "A shop sold 48 clips in April and half as many in May. How many did it sell in all?",
    "72",
    "number",
)
"""Represents the run's questions, which may be long and need not exist yet."""

RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "padding"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "processor_kwargs"),
    }
)
"""Arguments of `apply_chat_template` with which a prompt is rendered; no template uses these
names."""


# --- checks of the config ------------------------------------------------------------------------


def check_config(config: Config, recipe: Recipe, until: str | None) -> None:
    """Raise `InputError` for problems in the config, the guidelines and the prompts."""
    for check in CONFIG_CHECKS:
        check(config, recipe, until)


def refuse_later_round(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse `--until` with a round that the run does not have, which would run everything."""
    number = (until or "").rpartition("/")[0]
    if number and int(number) >= config.rounds:
        rounds = "round 0 alone" if config.rounds == 1 else f"rounds 0 to {config.rounds - 1}"
        raise InputError(f"--until {until}: the run has {rounds} (rounds: {config.rounds})")


def refuse_missing_guidelines(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse more guidelines per question than exist, which would silently use all of them."""
    wanted = config.synthesis.guidelines_per_question
    there = len(recipe.guidelines) + config.synthesis.expand_guidelines
    if wanted is not None and wanted > there:
        raise InputError(
            f"synthesis.guidelines_per_question {wanted}: there are {there} guidelines; set it to "
            f"{there} or less, or to null for all of them"
        )


def refuse_lone_guideline(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse to swap adaptations between guidelines where a question follows only one."""
    there = len(recipe.guidelines) + config.synthesis.expand_guidelines
    followed = min(there, config.synthesis.guidelines_per_question or there)
    if config.synthesis.swap_adaptations == "guidelines" and followed == 1:
        raise InputError(
            "synthesis.swap_adaptations: guidelines, but each question follows only one guideline, "
            "so there is no other to swap with; let it follow two or more"
        )


def refuse_sampling(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse sampling options that the engine does not accept, which would fail every
    generation."""
    for asking in askings(config, recipe):
        check_sampling_options(asking.engine, asking.field, asking.sampling)


def refuse_reserved_arguments(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse template arguments whose names are used to render prompts."""
    for asking in askings(config, recipe):
        refuse_reserved(asking)


def refuse_reserved(asking: Asking) -> None:
    """Raises `InputError` for a template argument of one prompt."""
    for name in asking.sampling.template_args:
        if name in RESERVED or name.endswith("_token"):
            raise InputError(f"{asking.field}.template_args.{name} is set by the run; leave it out")


def refuse_missing_cores(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse cores that this machine does not have, if the engines run on it."""
    for name, engine in engines(config):
        if starts_cluster(config.cluster):
            refuse_cores_not_here(f"{name}.omp_threads_bind", engine)


def refuse_cores_not_here(field: str, engine: EngineSettings) -> None:
    """Raises `InputError` for cores of an engine that this machine does not have."""
    if engine.use_gpu or engine.is_endpoint:
        return
    there = sorted(os.sched_getaffinity(0))
    for core in parse_cores(field, engine.omp_threads_bind):
        if core not in there:
            raise InputError(
                f"{field} {engine.omp_threads_bind}: this machine has no core {core}; its "
                f"{len(there)} cores end at {there[-1]}; name existing ones, or set it to auto"
            )


def refuse_trackers(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse trackers that are not installed, if the training runs on this machine."""
    if starts_cluster(config.cluster) and trains(until):
        refuse_missing_trackers(config.training.tracking)


def refuse_missing_notifier(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse a command that this machine does not have; otherwise it is missed when a run ends."""
    if starts_cluster(config.cluster):
        refuse_missing_program(config.cluster.notify)


def refuse_unwritable_folders(config: Config, recipe: Recipe, until: str | None) -> None:
    """Refuse folders of this machine that cannot be written, if the run is on it alone."""
    storage = config.storage
    if not starts_cluster(config.cluster):
        return
    if "://" not in storage.root:
        refuse_unwritable("storage.root", storage.root)
    if "://" in storage.root or config.model.path.startswith("pypi:"):  # models are copied to it
        refuse_unwritable("storage.cache", storage.cache)


ConfigCheck = Callable[[Config, Recipe, str | None], None]
CONFIG_CHECKS: tuple[ConfigCheck, ...] = (
    refuse_later_round,
    refuse_missing_guidelines,
    refuse_lone_guideline,
    refuse_sampling,
    refuse_reserved_arguments,
    refuse_missing_cores,
    refuse_trackers,
    refuse_missing_notifier,
    refuse_unwritable_folders,
)


# --- checks of the base model --------------------------------------------------------------------


def check_base(
    config: Config, recipe: Recipe, until: str | None, *, may_fetch: bool
) -> Base | None:
    """Check the base model with the prompts that it will get; returns the facts about it.

    None if the run does not use it, because servers have their own models, and if its files are not
    on this machine and `may_fetch` is false: a model on the hub, or a packaged one that was not
    converted yet. Raises `InputError`.
    """
    path, cache = config.model.path, config.storage.cache
    if not _uses_base(config, until):
        return None
    if not may_fetch and (is_hub_name(path) or not is_ready(path, cache)):
        return None
    asked = [a for a in askings(config, recipe) if a.engine.needs_model or a.name == "evaluation"]
    contexts = {name: each for name, each in engines(config) if not each.is_endpoint}
    training = config.training if trains(until) else None
    return look_apart(path, cache, asked, contexts, training)


def look_apart(
    path: str,
    cache: str,
    asked: Sequence[Asking],
    contexts: Mapping[str, EngineSettings],
    training: TrainingSettings | None,
) -> Base:
    """`look_at_base` in another process. Raises `InputError`."""
    try:
        return run_apart(look_at_base, path, cache, asked, contexts, training)
    except UnsureError:  # a look without torch takes a second or two; with torch, longer
        return run_apart(look_at_base, path, cache, asked, contexts, training, with_torch=True)


def _uses_base(config: Config, until: str | None) -> bool:
    """Whether an engine needs the model's files, or a step after the paths its tokenizer."""
    step = (until or "").rpartition("/")[2]
    ends_early = step in ("questions", "guidelines", "paths") and not until_later_round(until)
    return not ends_early or any(each.needs_model for _, each in engines(config))


def until_later_round(until: str | None) -> bool:
    """Whether the last step belongs to a round after the first."""
    return (until or "").rpartition("/")[0] not in ("", "0")


def trains(until: str | None) -> bool:
    """Whether a run that ends with this step (None means the last one) trains a model."""
    step = (until or "").rpartition("/")[2]
    trained = step in ("model", "predictions", "scores")
    return until is None or trained or until_later_round(until)


def engines(config: Config) -> Iterator[tuple[str, EngineSettings]]:
    """The engines of a run, by the names of their settings."""
    yield "engine", config.engine
    if config.synthesis.engine is not None:
        yield "synthesis.engine", config.synthesis.engine


def askings(config: Config, recipe: Recipe) -> Iterator[Asking]:
    """Each kind of prompt in the run, with a short question."""
    of_paths = config.synthesis.engine or config.engine
    spec = PathSpec("preflight", _first_guideline(recipe), 0)
    for name in recipe.settings.chain:
        messages = stage_messages(name, recipe, SAMPLE, spec, {})
        yield _of_stage(name, config, messages, of_paths)
    if recipe.settings.judge != "none":
        text = recipe.prompts["judge"].format(question=SAMPLE.text, reasoning="24 + 48 = 72")
        yield _of_stage("judge", config, [{"role": "user", "content": text}], of_paths)
    if expansion := Expansion.of(recipe):
        text = expansion.prompts()[0].text
        yield _of_stage("expand", config, [{"role": "user", "content": text}], config.engine)
    yield Asking(
        "evaluation",
        "evaluation",
        asked_messages(SAMPLE, config.evaluation.prompt),
        config.evaluation.sampling,
        config.engine,
    )


def _first_guideline(recipe: Recipe) -> Any:
    return recipe.guidelines[0] if recipe.settings.follows_guidelines else None


def _of_stage(
    name: str, config: Config, messages: list[dict[str, str]], engine: EngineSettings
) -> Asking:
    sampling: SamplingSettings = config.synthesis.stages.of(name)
    return Asking(name, f"synthesis.stages.{name}", messages, sampling, engine)


def describe(base: Base) -> list[str]:
    """A line about the prompts, and one for each setting that is allowed but unusual."""
    tokens = ", ".join(f"{name} {number}" for name, number in base.prompt_tokens.items())
    opened = [name for name, is_open in base.opens_thinking.items() if is_open]
    thinking = f"; the template opens the thinking of {', '.join(opened)}" if opened else ""
    first = f"prompts, in tokens with a short question: {tokens}{thinking}"
    return [first, *(f"warning: {warning}" for warning in base.warnings)]
