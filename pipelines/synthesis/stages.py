"""The stages of a reasoning path. A stage is a single value, so a new one is added here, with its
prompt in `pipelines/synthesis/prompts.yaml`.

A stage sends the model one prompt and stores the text in a column of the path. Later stages may use
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
    """Its name in the config, the prompts and the seeds."""
    column: str
    """The path's column for its text, which is also the name of the field in later prompts."""
    fields: frozenset[str]
    """The fields that its prompt must contain."""
    sampling: SamplingSettings
    """The sampling settings, unless the config overrides them."""
    summary: str
    """A sentence about what it does."""
    came_later: bool = False
    """Whether runs existed before this stage. If so, it is part of a path's identity only if the
    chain uses it, and a user's prompts may leave out its prompt."""


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
"""All stages by name, in the order in which a chain may use them."""
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
    """The sampling settings of each stage by name, and of the model's other tasks."""

    judge: SamplingSettings = SamplingSettings(temperature=0.0, max_tokens=512)
    """For the question whether a path is sound; used if `synthesis.judge` asks it."""
    expand: Annotated[SamplingSettings, OPERATIONAL] = SamplingSettings(max_tokens=256)
    """For the guidelines that the model proposes; used if any are requested."""

    def of(self, stage: str) -> SamplingSettings:
        """The sampling settings of the stage with this name."""
        return cast(SamplingSettings, getattr(self, stage))
