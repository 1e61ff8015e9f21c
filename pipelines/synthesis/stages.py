"""The stages of a reasoning path. One value says all about a stage, so that a new one is added
here, and its prompt in `pipelines/synthesis/prompts.yaml`.

A stage asks the model one prompt and keeps the text in a column of the path. Later stages may use
that text as a field of their prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, cast

import pydantic
from pydantic import Field

from cluster.inference.engine import SamplingSettings
from cluster.settings import OPERATIONAL, Settings


@dataclass(frozen=True, slots=True)
class Stage:
    """One generation of a chain."""

    name: str
    """As the config, the prompts and the seeds call it."""
    column: str
    """Of the path, for what is written; also the field of later prompts that shows it."""
    fields: frozenset[str]
    """Those that its prompt has to show."""
    sampling: SamplingSettings
    """How it is drawn, where the config does not say."""
    summary: str
    """What it asks for."""
    came_later: bool = False
    """Whether runs were made before this stage existed. Then it is part of what decides the paths
    only where a chain has it."""


ADAPT = Stage(
    name="adapt",
    column="adapted_guideline",
    fields=frozenset({"question", "guideline"}),
    sampling=SamplingSettings(max_tokens=256),
    summary="Says how a guideline applies to the question.",
)
STRUCTURE = Stage(
    name="structure",
    column="structure",
    fields=frozenset({"question", "adapted_guideline"}),
    sampling=SamplingSettings(max_tokens=512),
    summary="Plans the steps of the solution.",
)
PATH = Stage(
    name="path",
    column="reasoning",
    fields=frozenset({"question", "structure"}),
    sampling=SamplingSettings(max_tokens=2048),
    summary="Writes the solution, which is what is learned. The last stage of every chain.",
)

STAGES: Mapping[str, Stage] = MappingProxyType(
    {stage.name: stage for stage in (ADAPT, STRUCTURE, PATH)}
)
"""All stages by name, in the order in which a chain may have them."""
STAGE_NAMES = tuple(STAGES)


if TYPE_CHECKING:
    _SamplingOfStages = Settings
else:
    _SamplingOfStages = pydantic.create_model(
        "_SamplingOfStages",
        __base__=Settings,
        __module__=__name__,
        **{
            stage.name: (SamplingSettings, Field(stage.sampling, description=stage.summary))
            for stage in STAGES.values()
        },
    )


class StageSettings(_SamplingOfStages):
    """How each stage is drawn, by its name, and what else is asked of the model."""

    judge: SamplingSettings = SamplingSettings(temperature=0.0, max_tokens=512)
    """Of the question whether a path is sound; counts where `synthesis.judge` asks it."""
    expand: Annotated[SamplingSettings, OPERATIONAL] = SamplingSettings(max_tokens=256)
    """Of the guidelines that the model proposes; counts where it is asked for any."""

    def of(self, stage: str) -> SamplingSettings:
        """How the stage of this name is drawn."""
        return cast(SamplingSettings, getattr(self, stage))
