"""The cards of what is exported: what it is, where it is from, how good it is, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.models.model import PACKAGED_MODELS
from cluster.terminal import format_table
from pipelines.export.publishing import licence_id, licence_of, public_name, redacted
from pipelines.selection.filters import GOLD

PAPER = "https://arxiv.org/abs/2410.02108"
TABLES = {
    "examples": "chats with their token ids, as they were learned",
    "preference_pairs": "a right and a wrong answer to one prompt (for DPO)",
    "unpaired_preferences": "right and wrong answers, each with a label (for KTO)",
    "rl_prompts": "prompts with the right answer and the share of right paths (for GRPO)",
}
"""The tables of an exported dataset, and what a row is."""
_PATH_SETTINGS = ("guidelines", "prompts", "engine")
_SHOWN_SETTINGS = ("synthesis", "examples", "training", "evaluation")


@dataclass(frozen=True)
class CardFacts:
    """All that the cards of one round tell."""

    run: str
    round: int
    config: Mapping[str, Any]
    examples: Mapping[str, Any]
    """The manifest of the examples."""
    model: Mapping[str, Any]
    """The manifest of the model; empty where it is not exported."""
    scores: str
    """The score tables as Markdown; empty where there are none."""
    commands: Sequence[str]
    tuned_on: str | None
    """The only dataset that the model learned from; None: all of them."""
    made_by: str
    """The program with its version and commit."""
    base_licence: str | None = None

    @property
    def base(self) -> str:
        """The public name of the model that the run began with."""
        path = str(self.config["model"]["path"])
        packaged = PACKAGED_MODELS.get(path)
        return packaged.hub_name if packaged else public_name(path)

    @property
    def licence(self) -> str | None:
        """The licence of the base model, where it is known."""
        packaged = PACKAGED_MODELS.get(str(self.config["model"]["path"]))
        return self.base_licence or (packaged.licence if packaged else None)

    def licences(self, names: Sequence[str]) -> dict[str, str]:
        """The licence of each of some datasets."""
        datasets = self.config["questions"]["datasets"]
        return {name: licence_of(datasets[name]) for name in names if name in datasets}


def dataset_card(facts: CardFacts, rows: Mapping[str, int], names: Sequence[str]) -> str:
    """The card of the dataset; `rows` counts the rows of each table, `names` are its datasets."""
    licences = facts.licences(names)
    header = {
        "license": licence_id(licences.values()),
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "reasoning", "regenesis"],
        "configs": [
            {"config_name": name, "data_files": f"{name}/*.parquet"}
            | ({"default": True} if name == "examples" else {})
            for name in rows
        ],
    }
    tables = [["config", "rows", "content"]]
    tables += [[name, f"{number:,}", TABLES[name]] for name, number in rows.items()]
    parts = [
        f"# Training examples for {facts.base}, round {facts.round} of {facts.run}",
        f"These are solutions to training questions. {_author(facts)} The filters below chose "
        f"them. The strategy of [ReGenesis]({PAPER}) was "
        f"`{facts.config['synthesis']['strategy']}`.",
        format_table(tables),
        'Load a table with `load_dataset("FOLDER", "examples")`.',
        _datasets(licences),
        "The licence of the model that wrote the solutions may limit their use, too. That of "
        f"{facts.base} is {facts.licence or 'not recorded in the run; see its page'}.",
        *_how_it_was_made(facts),
    ]
    return _card(header, parts)


def model_card(facts: CardFacts, *, is_adapter: bool) -> str:
    """The card of the model, or of its adapter."""
    names = [facts.tuned_on] if facts.tuned_on else sorted(facts.examples["datasets"])
    header = {
        **({"license": facts.licence} if facts.licence else {}),
        "base_model": facts.base,
        "base_model_relation": "adapter" if is_adapter else "finetune",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reasoning", "regenesis"],
    }
    kind = "A LoRA adapter for" if is_adapter else "A fine-tuned version of"
    licence = facts.licence or "not recorded in the run; see the page of the base model"
    parts = [
        f"# {facts.base}, trained in round {facts.round} of {facts.run}",
        f"{kind} {facts.base}. It was trained on {facts.model['num_examples']:,} solutions in "
        f"{facts.model['num_steps']:,} steps, with [ReGenesis]({PAPER}). {_author(facts)} "
        f"Licence of the base model: {licence}.",
        _datasets(facts.licences(names)),
        *([f"## Scores\n\n{facts.scores}"] if facts.scores else []),
        *_how_it_was_made(facts),
    ]
    return _card(header, parts)


def _card(header: Mapping[str, Any], parts: Sequence[str]) -> str:
    head = yaml.safe_dump(dict(header), sort_keys=False)
    return f"---\n{head}---\n\n" + redacted("\n\n".join(parts)) + "\n"


def _author(facts: CardFacts) -> str:
    """A sentence on who wrote the solutions."""
    if facts.config["examples"]["verdict"] in GOLD:
        return "They came with the questions; no model wrote them."
    if facts.config["synthesis"].get("engine"):
        return f"Another model than {facts.base} wrote them (`synthesis.engine`)."
    after = f" after {facts.round} rounds of training" if facts.round else ""
    return f"{facts.base}{after} wrote them itself."


def _datasets(licences: Mapping[str, str]) -> str:
    rows = [["dataset", "licence"], *([name, text] for name, text in licences.items())]
    return f"## Datasets of the questions\n\n{format_table(rows)}"


def _how_it_was_made(facts: CardFacts) -> list[str]:
    settings = {name: _settings(facts.config, name) for name in _SHOWN_SETTINGS}
    shown = yaml.safe_dump(settings, sort_keys=False)
    commands = "\n".join(facts.commands) or "not recorded"
    versions = (facts.model or facts.examples).get("versions") or {}
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [
        f"## From paths to examples\n\n{_funnel(facts.examples)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## How it was made\n\n{facts.made_by}; {packages}\n\n```sh\n{commands}\n```\n\n"
        f"```yaml\n{shown}```",
    ]


def _settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A branch of the config without what only the machine of the run had."""
    branch = dict(config.get(name) or {})
    return {key: value for key, value in branch.items() if key not in _PATH_SETTINGS}


def _funnel(examples: Mapping[str, Any]) -> str:
    rows = [["dataset", "paths", "kept", "examples", "dropped"]]
    for name, found in examples["datasets"].items():
        dropped = ", ".join(f"{number} {reason}" for reason, number in found["dropped"].items())
        numbers = [found["num_paths"], found["num_kept_paths"], found["num_examples"]]
        rows.append([name, *map(str, numbers), dropped])
    return format_table(rows)


def _limits(facts: CardFacts) -> str:
    examples = facts.examples
    packaged = PACKAGED_MODELS.get(str(facts.config["model"]["path"]))
    limits = [
        "This is one run with one seed. The intervals of the scores are over questions and say "
        "nothing about another seed.",
        _verdict_limit(str(facts.config["examples"]["verdict"])),
    ]
    if edited := examples.get("num_answers_added"):
        limits.append(
            f"Of the {examples['num_examples']:,} targets, {edited:,} were edited: the final "
            "answer was appended in the format that the prompt asks for."
        )
    if hinted := examples.get("num_hinted"):
        limits.append(f"{hinted:,} examples are from paths that were shown the right answer.")
    if packaged:
        limits.append(f"The base model is {packaged.precision}, not the original weights.")
    return "\n".join(f"- {limit}" for limit in limits)


def _verdict_limit(verdict: str) -> str:
    if verdict == "ground_truth":
        return "Paths were chosen by their final answer alone; their reasoning may be wrong."
    if verdict == "majority":
        return "Paths were chosen by the majority of answers, which may be wrong."
    return f"Paths were chosen by the control `{verdict}`, which does not ask for right answers."
