"""What a run has to know about its model and its chat template before anything is generated.

The facts are kept in the run's folder. The key of a local model is a digest of the files that
determine its answers, so an edited template is another model; the key of any other model is its
name. For example::

    {"meta-llama/Llama-3.2-1B-Instruct": {"date": "2026-02-03", "needs_turns": false},
     "3f2ac81d09be": {"date": null, "needs_turns": true, "identity": "{\"folder\": ...}"}}

A template may write today's date. All prompts of a run have the date on which the run began, so
that prompts in training and evaluation do not differ after midnight.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cluster.errors import DamagedFileError
from cluster.models.chat_template import CLOCK
from cluster.models.model import Model, read_template
from cluster.settings import fingerprint
from cluster.store.folder import Folder
from cluster.store.step import STEPS_FILE
from cluster.thinking import has_mark
from pipelines.config import Config

TEMPLATE_FILE = "template.json"
SEAL = "fingerprint"
"""The key of a hash of the other entries: one wrong character would name all folders otherwise."""


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """See the module; most templates have the default facts."""

    date: str | None = None
    needs_turns: bool = False
    identity: str | None = None
    """The identity after which the run's folders were named when it first used this local model. It
    is kept even if a later version reads more files, or the user corrects a generation config."""

    @classmethod
    def of(cls, template: str | None) -> TemplateFacts:
        """The facts about a template; None is an unknown template."""
        if template is None:
            return cls()
        date = datetime.now(UTC).date().isoformat() if CLOCK in template else None
        return cls(date, needs_turns=not template or has_mark(template))

    def named(self, base: Model) -> Model:
        """The base model with the identity that later steps depend on."""
        identity = self.identity or base.identity
        return replace(base, identity=identity, needs_turns=self.needs_turns)

    def with_date(self, settings: Any) -> Any:
        """Settings with `template_args` that have the date, where the template writes one."""
        if self.date is None:
            return settings
        arguments = {CLOCK: self.date} | settings.template_args
        return settings.model_copy(update={"template_args": arguments})

    def dated(self, config: Config) -> Config:
        """The config with the date among the arguments of a template that writes it."""
        if self.date is None:
            return config
        stages = config.synthesis.stages
        dated = {name: self.with_date(getattr(stages, name)) for name in type(stages).model_fields}
        synthesis = config.synthesis.model_copy(update={"stages": stages.model_copy(update=dated)})
        evaluation = self.with_date(config.evaluation)
        return config.model_copy(update={"synthesis": synthesis, "evaluation": evaluation})


def keep_template_facts(folder: Folder, base: Model) -> None:
    """Write the facts about the base model to the run's folder, unless they are there.

    Raises `InputError` when the model is on the hub and the hub does not answer, and
    `DamagedFileError`.
    """
    stored = _stored(folder)
    if _key(base) in stored:
        return
    facts = _of_folder(folder, base, stored) or TemplateFacts.of(read_template(base.path))
    if facts != TemplateFacts():
        kept = stored | {_key(base): asdict(facts)}
        folder.write_json(TEMPLATE_FILE, kept | {SEAL: fingerprint(kept)})


def template_facts(folder: Folder, base: Model) -> TemplateFacts:
    """The facts about the base model that a run's folder has or will have.

    It does not contact the hub. Raises `DamagedFileError`.
    """
    stored = _stored(folder)
    if _key(base) in stored:
        return TemplateFacts(**stored[_key(base)])
    return _of_folder(folder, base, stored) or TemplateFacts()


def _key(base: Model) -> str:
    return base.files.digest if base.files else base.path


def _of_folder(folder: Folder, base: Model, stored: dict[str, Any]) -> TemplateFacts | None:
    """The facts about a local model that is new to the run; None for any other model."""
    if base.files is None:
        return None
    facts = replace(TemplateFacts.of(read_template(base.path)), identity=base.files.identity)
    begun = folder.read_json(STEPS_FILE)
    if begun is None or any(map(_has_identity, stored.values())):
        return facts
    if isinstance(begun, dict):  # this version began the run, and kept facts that are gone
        if facts.date is not None:
            raise DamagedFileError(
                f"{folder.uri}/{TEMPLATE_FILE} is missing, which has the date of all prompts of "
                "the run; restore it, or choose another run to begin again"
            )
        return facts
    # An earlier version, which began the run, kept facts by the model's path without an identity.
    former = {**asdict(facts), **stored.get(base.path, {})}
    return TemplateFacts(**former | {"identity": base.files.former_identity})


def _has_identity(entry: dict[str, Any]) -> bool:
    return entry.get("identity") is not None


def _stored(folder: Folder) -> dict[str, Any]:
    stored = folder.read_json(TEMPLATE_FILE)
    if isinstance(stored, dict):
        seal = stored.pop(SEAL, None)
        are_facts = all(isinstance(each, dict) for each in stored.values())
        if are_facts and seal in (None, fingerprint(stored)):  # earlier versions wrote no seal
            return stored
    if TEMPLATE_FILE in folder.file_names(".json"):
        raise DamagedFileError(
            f"{folder.uri}/{TEMPLATE_FILE} is damaged; restore the original, or choose another "
            "run to begin again"
        )
    return {}
