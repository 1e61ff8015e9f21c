"""The settings of what happens after a round (docs/ROUNDS.md). By default nothing does."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from cluster.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Reading = Literal["strict", "tolerant", "forced", "boxed"]


class GateSettings(Settings):
    """Tasks on which a round's model has to hold what the models before it could do."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Datasets whose dev questions are the gate. They are not reported, and they need `num_test:
    0`, so that nothing that is reported has decided about a round."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The loss that is allowed, as a share of the questions: a task holds if the lower end of the
    95 % interval of the paired difference is above -margin."""
    discordant: Annotated[float, Field(gt=0, le=1)] = 0.15
    """The expected share of questions on which exactly one of the two models is right. With the
    margin and the power it gives the number of questions that each task needs."""
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    """The probability that a model without any loss holds, for the number of questions."""
    min_reference: Share = 0.2
    """A task decides nothing if the model that is compared with answers a smaller share of it: it
    has little to lose there."""


class StopSettings(Settings):
    """Reasons to begin no further round; null: this is none. The run then ends with exit code 0."""

    no_gain: Annotated[int, Field(gt=0)] | None = None
    """Rounds in a row whose model is not shown to be better than the one with which the round
    began: on the dev questions in domain, without the gate's, the lower end of the 95 % interval of
    the paired difference is not above 0, or the model is not adopted."""
    max_generated_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens generated for the paths of all rounds; no round begins once there are this many."""
    min_solved: Share | None = None
    """The share of training questions with a right path in a round."""


class AlarmSettings(Settings):
    """Thresholds; beyond one, the round has an alarm, which changes nothing. Null: no alarm."""

    min_solved: Share | None = None
    """The share of training questions with a right path."""
    min_accepted: Share | None = None
    """The share of paths that are right."""
    max_vote_share: Share | None = None
    """The mean share of a question's most common answer among its answers that could be read."""
    min_diversity: Share | None = None
    """1 minus the mean similarity (Jaccard index of runs of three words) of paths of a question."""
    max_length_factor: Annotated[float, Field(gt=1)] | None = None
    """How much longer or shorter the paths may become, as a factor of their mean tokens in round
    0."""
    min_weights_changed: Share | None = None
    """The share of weights that the training changed, in the training's number type."""


class AfterRoundSettings(Settings):
    """What happens after each round (docs/ROUNDS.md)."""

    adopt: Literal["always", "gate"] = "always"
    """Whether the next round begins with the model of this one: always, or only if the gate holds;
    else it begins with the last model that was adopted."""
    gate: GateSettings | None = None
    """The gate. With `adopt: always` its result is reported and decides nothing."""
    reading: Reading = "tolerant"
    """The reading of the answers for the gate and for `stop.no_gain`. `forced` and `boxed` are made
    by `evaluation.readings`; under them a gain in format alone is none."""
    stop: StopSettings = StopSettings()
    alarms: AlarmSettings = AlarmSettings()

    @pydantic.model_validator(mode="after")
    def _gate_is_given(self) -> AfterRoundSettings:
        if self.adopt == "gate" and self.gate is None:
            raise ValueError("adopt: gate needs a gate; name its datasets in gate.tasks")
        return self

    @property
    def gate_tasks(self) -> tuple[str, ...]:
        """The datasets of the gate."""
        return self.gate.tasks if self.gate else ()

    @property
    def is_neutral(self) -> bool:
        """Whether nothing happens after a round."""
        limits = [
            getattr(branch, name)
            for branch, settings in ((self.stop, StopSettings), (self.alarms, AlarmSettings))
            for name in settings.model_fields
        ]
        return self.adopt == "always" and self.gate is None and set(limits) == {None}
