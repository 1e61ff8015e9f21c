"""What a run has to know about its model's chat template before anything is generated.

The facts are kept in the run's folder, once for each model that the run used, for example::

    {"meta-llama/Llama-3.2-1B-Instruct": {"date": "2026-02-03", "needs_turns": false}}

A template may write today's date. All prompts of a run have the date on which the run began, so
that prompts in training and evaluation do not differ after midnight.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.models.chat_template import CLOCK
from cluster.models.model import read_template
from cluster.store.folder import Folder
from cluster.thinking import has_mark
from pipelines.config import Config

TEMPLATE_FILE = "template.json"


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """See the module; most templates have the default facts, which are not stored."""

    date: str | None = None
    needs_turns: bool = False

    @classmethod
    def of(cls, template: str | None) -> TemplateFacts:
        """The facts about a template; None is an unknown template."""
        if template is None:
            return cls()
        date = datetime.now(UTC).date().isoformat() if CLOCK in template else None
        return cls(date, needs_turns=not template or has_mark(template))

    def dated(self, config: Config) -> Config:
        """The config with the date among the arguments of a template that writes it."""
        if self.date is None:
            return config
        date = {CLOCK: self.date}

        def with_date(settings: Any) -> Any:
            return settings.model_copy(update={"template_args": date | settings.template_args})

        stages = config.synthesis.stages
        dated = {name: with_date(getattr(stages, name)) for name in type(stages).model_fields}
        synthesis = config.synthesis.model_copy(update={"stages": stages.model_copy(update=dated)})
        evaluation = with_date(config.evaluation)
        return config.model_copy(update={"synthesis": synthesis, "evaluation": evaluation})


def keep_template_facts(folder: Folder, model: str) -> None:
    """Write the facts about a model's template to the run's folder, unless they are there.

    Raises `InputError` when the model is on the hub and the hub does not answer.
    """
    stored = _stored(folder)
    if model in stored:
        return
    facts = TemplateFacts.of(read_template(model))
    if facts != TemplateFacts():
        folder.write_json(TEMPLATE_FILE, stored | {model: asdict(facts)})


def template_facts(folder: Folder, model: str) -> TemplateFacts:
    """The facts about a model's template in a run's folder."""
    return TemplateFacts(**_stored(folder).get(model, {}))


def _stored(folder: Folder) -> dict[str, Any]:
    stored = folder.read_json(TEMPLATE_FILE)
    return stored if isinstance(stored, dict) else {}
