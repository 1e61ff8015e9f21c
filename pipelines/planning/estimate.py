"""Estimate a run from a probe of its first questions: tokens, hours, money and right paths.

It is pure arithmetic on what a probe measured::

    print(format_estimate(estimate_run(questions, predictions, workload, speed, cost)))

The paths of one question are correlated: some questions are easy whatever guideline is followed. So
the questions are the independent units, and they are resampled with all their paths, dataset by
dataset (a stratified bootstrap). A variance formula would be enough for the totals, but the
bootstrap also keeps the skew of accepted paths and handles the ratio of two totals. Each resample
is widened, because a percentile interval is too narrow with so few questions (see `_sample` and
`_student_factor`).

All intervals are 90 % intervals: one run in twenty is above, and one in twenty below.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cluster.errors import InputError, OverBudgetError
from cluster.inference.schedule import DatasetQuota
from cluster.settings import EXTENT, OPERATIONAL, Settings
from cluster.terminal import format_table

RESAMPLES = 2_000
Z_90 = 1.644854
"""Two-sided 90 % quantile of the standard normal distribution."""

Array = NDArray[np.float64]
Limit = Annotated[Annotated[float, Field(gt=0)] | None, OPERATIONAL]


class Budget(Settings):
    """The limits of a run; null is no limit.

    A run that is estimated to exceed a `max_*` is refused before it begins. `generated_tokens`
    refuses nothing: it determines where the paths of a round end.
    """

    generated_tokens: Annotated[Annotated[int, Field(gt=0)] | None, EXTENT] = None
    """About this many tokens are generated for the paths of each round, over all datasets; then no
    further question is begun. With the same number, any two strategies have the same cost."""
    max_hours: Limit = None
    """A run that would take more hours than this is refused."""
    max_gpu_hours: Limit = None
    """A run that would take more GPU-hours than this is refused."""
    max_money: Limit = None
    """A run that would cost more is refused, in `cost.currency`; needs `cost.gpu_hour`."""

    @property
    def can_refuse(self) -> bool:
        """Whether the run has to be estimated before it begins."""
        limits = (self.max_hours, self.max_gpu_hours, self.max_money)
        return any(limit is not None for limit in limits)


class CostSettings(Settings):
    """The price of the hardware."""

    gpu_hour: Annotated[Annotated[float, Field(ge=0)] | None, OPERATIONAL] = None
    """Price of one GPU for an hour, in any currency; null leaves money out of the estimate."""
    currency: Annotated[str, OPERATIONAL] = "USD"
    """The name that is printed with each amount of money."""

    def of(self, num_gpus: float, seconds: float) -> dict[str, Any]:
        """The price of this many GPUs for this time, as facts of an event."""
        hours = num_gpus * seconds / 3600
        facts: dict[str, Any] = {"gpu_hours": round(hours, 4)}
        if self.gpu_hour is not None:
            facts |= {"money": round(hours * self.gpu_hour, 4), "currency": self.currency}
        return facts


# --- the result of a probe ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProbedQuestion:
    """All paths of one training question of the run."""

    dataset: str
    num_paths: int
    num_generations: int
    num_tokens: int
    """Generated in all stages together."""
    num_prompt_tokens: int
    num_accepted: int
    """Paths with the right answer, by ground truth or majority, as `examples.verdict` defines."""
    num_kept: int
    """Accepted paths that pass the filters which look at one question at a time."""
    num_learned_tokens: int
    """Of the targets of these paths; 0 where what is learned are not paths."""
    num_bytes: int
    """Its row on disk, compressed."""
    num_truncated: int
    """Paths that a limit cut off."""


@dataclass(frozen=True, slots=True)
class ProbedPredictions:
    """Greedy answers of the base model to held-out questions of the run."""

    num_tokens: tuple[int, ...]
    """Generated tokens, one number per question."""


@dataclass(frozen=True, slots=True)
class PlannedTraining:
    """How the examples of each round are learned, by supervised fine-tuning of one model."""

    num_epochs: tuple[int, ...]
    """Of each round."""
    batch_size: int
    """Examples of one step."""
    max_steps: int | None = None
    max_learned_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The amount of work, including what was probed."""

    num_questions: Mapping[str, int]
    """Training questions by dataset, of one round. The probed ones are included, since their rows
    are kept; questions finished before the probe are left out, or passed as probed too."""
    paths_per_question: int
    max_per_question: int
    """Limit on the paths of a question that are kept for training (`examples.max_per_question`)."""
    num_predictions: int
    """Held-out questions, each answered once by every evaluated model."""
    rounds: int = 1
    num_models_predicted: int = 2
    """The base model and one more per round."""
    shares: Mapping[str, DatasetQuota] = field(default_factory=dict)
    """Quotas by dataset; others have the default."""
    max_tokens: int | None = None
    """Limit for the paths of one round, over all datasets (`budget.generated_tokens`)."""
    max_examples: int | None = None
    """Limit on the examples of one round, over all datasets (`examples.max_examples`)."""
    training: PlannedTraining | None = None
    """None where the number of steps does not follow from that of the examples."""

    @property
    def num_engine_starts(self) -> int:
        """How often all engines start together: for the paths of each round, and for the answers of
        each model except the base, which answers on the first round's engines."""
        return self.rounds + max(0, self.num_models_predicted - 1)

    @property
    def num_answers(self) -> int:
        """Predictions of all models; each is one generation."""
        return self.num_predictions * self.num_models_predicted


@dataclass(frozen=True, slots=True)
class Speed:
    """What the probe measured, and what the run will use."""

    tokens_per_s: float
    """Generated tokens per second of all workers of the probe together, without starting times."""
    num_workers_probed: int
    num_workers: int
    """Engines of the run."""
    gpus_per_worker: float
    start_s: float
    """Seconds until a new engine answers."""


# --- the estimate ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Range:
    """A central estimate and its 90 % interval; None if the probe cannot tell."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class DatasetEstimate:
    """One dataset, in one round."""

    dataset: str
    num_questions: int
    num_probed: int
    tokens_per_path: Range
    """Generated in all stages of a path together."""
    truncated_share: Range
    accepted_share: Range
    """Between 0 and 1, of all paths of the dataset, not only of the probed ones."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The complete run with all rounds, including the probe."""

    num_probed: int
    paths: float | None
    """Planned and not sampled, so it has no interval."""
    generations: Range
    tokens: Range
    """Generated for paths and predictions."""
    prompt_tokens: Range
    """For paths only."""
    hours: Range
    gpu_hours: Range | None
    """None if no GPU is used."""
    money: Range | None
    """None if no GPU is used or there is no price."""
    disk_gib: Range
    """For the rows of paths only."""
    accepted: Range
    kept: Range
    """Paths that pass the filters and fit into `examples.max_examples`, before the limit
    `examples.max_hinted_share`."""
    steps: Range | None
    """Of the trainings of all rounds, with what is kept; None if they do not follow from that."""
    learned_tokens: Range | None
    """In the targets of these steps."""
    cost_per_accepted: Range
    cost_unit: str
    """Unit of `cost_per_accepted`: the currency, else GPU-hours, else seconds."""
    currency: str
    datasets: tuple[DatasetEstimate, ...]
    assumptions: tuple[str, ...]


def estimate_run(
    questions: Sequence[ProbedQuestion],
    predictions: ProbedPredictions,
    workload: Workload,
    speed: Speed,
    cost: CostSettings,
    seed: int = 0,
) -> Estimate:
    """Estimate the run; the result is determined by the seed and the order of the questions."""
    rng = np.random.default_rng(seed)
    parts = _question_parts(questions, workload, rng)
    answers = _prediction_part(predictions, workload, rng)
    totals = {name: _total(parts.values(), name) for name in _COLUMNS}
    tokens = _total([*parts.values(), answers], "tokens")
    if workload.max_tokens is not None:
        # The number of questions is uncertain, the tokens are not: all of them, or the limit.
        endless = replace(workload, max_tokens=None)
        every = _question_parts(questions, endless, np.random.default_rng(seed))
        made = sum(question.num_tokens for question in questions)
        most = workload.rounds * max(made, workload.max_tokens)
        paths = _total(every.values(), "tokens").at_most(most)
        tokens = paths.with_added(_total([answers], "tokens"))
    hours = tokens.times(_seconds_per_token(speed) / 3600).plus(
        speed.start_s * workload.num_engine_starts / 3600
    )
    gpus = speed.num_workers * speed.gpus_per_worker
    money = hours.times(gpus * cost.gpu_hour) if gpus and cost.gpu_hour is not None else None
    price, unit = _price(hours, gpus, money, cost.currency)
    kept = totals["kept"]
    if workload.max_examples is not None:
        kept = kept.at_most(workload.rounds * workload.max_examples)
    training, each = workload.training, _tokens_of_example(totals)
    steps = _steps(kept.times(1 / workload.rounds), each, training) if training else None
    learned = steps.times(training.batch_size * each) if steps and training else None
    return Estimate(
        num_probed=len(questions),
        paths=_finite(totals["paths"].value),
        generations=totals["generations"].plus(workload.num_answers).range(),
        tokens=tokens.range(),
        prompt_tokens=totals["prompt_tokens"].range(),
        hours=hours.range(),
        gpu_hours=hours.times(gpus).range() if gpus else None,
        money=money.range() if money else None,
        disk_gib=totals["bytes"].times(2**-30).range(),
        accepted=totals["accepted"].range(),
        kept=kept.range(),
        steps=steps.range() if steps else None,
        learned_tokens=learned.range() if learned else None,
        cost_per_accepted=price.over(totals["accepted"]).range(),
        cost_unit=unit,
        currency=cost.currency,
        datasets=tuple(_dataset_estimate(name, part) for name, part in parts.items()),
        assumptions=(*_assumptions(parts, workload, speed), *_unreached(steps, each, workload)),
    )


def _tokens_of_example(totals: Mapping[str, _Total]) -> float:
    """Mean learned tokens of a kept path; NaN where the probe has none."""
    kept, learned = totals["kept"].value, totals["learned"].value
    return learned / kept if kept > 0 and learned > 0 else math.nan


def _steps(kept: _Total, tokens_of_example: float, training: PlannedTraining) -> _Total:
    """The steps of all rounds, each of which learns from as many examples as `kept`."""
    passes = [kept.times(epochs / training.batch_size) for epochs in training.num_epochs]
    most = _most_steps(training, tokens_of_example)
    limited = passes if most is None else [each.at_most(most) for each in passes]
    return functools.reduce(_Total.with_added, limited)


def _most_steps(training: PlannedTraining, tokens_of_example: float) -> float | None:
    """The steps of one training that its limits allow; None without limits."""
    limits = [] if training.max_steps is None else [float(training.max_steps)]
    if training.max_learned_tokens is not None and math.isfinite(tokens_of_example):
        in_step = tokens_of_example * training.batch_size
        limits.append(float(math.ceil(training.max_learned_tokens / in_step)))
    return min(limits, default=None)


def _unreached(steps: _Total | None, tokens_of_example: float, workload: Workload) -> list[str]:
    """A sentence if the trainings are expected to end before the limits that make them equal."""
    training = workload.training
    most = _most_steps(training, tokens_of_example) if training else None
    if steps is None or most is None or not steps.value < workload.rounds * most:
        return []
    return [
        "The training is expected to end before the limits training.max_steps and "
        "training.max_learned_tokens; raise training.num_epochs to reach them."
    ]


def _seconds_per_token(speed: Speed) -> float:
    """For all workers of the run together, each as fast as those of the probe."""
    rate = speed.tokens_per_s * speed.num_workers / speed.num_workers_probed
    return 1 / rate if rate > 0 else math.nan


def _price(hours: _Total, gpus: float, money: _Total | None, currency: str) -> tuple[_Total, str]:
    """(the price of the complete run, its unit)."""
    if money:
        return money, currency
    return (hours.times(gpus), "GPU-hours") if gpus else (hours.times(3600), "seconds")


def _dataset_estimate(name: str, part: _Part) -> DatasetEstimate:
    paths = _total([part], "paths").value
    a_path = 1 / paths if paths else math.nan
    return DatasetEstimate(
        dataset=name,
        num_questions=part.num_probed + part.num_left,
        num_probed=part.num_probed,
        tokens_per_path=_total([part], "tokens").times(a_path).range(),
        truncated_share=_total([part], "truncated").times(a_path).range(),
        accepted_share=_total([part], "accepted").times(a_path).range(),
    )


def _assumptions(parts: Mapping[str, _Part], workload: Workload, speed: Speed) -> tuple[str, ...]:
    said = [
        "The measured tokens per second are assumed to hold, without an interval; a probe "
        "that did not fill the engines measured too low a rate."
    ]
    if speed.num_workers != speed.num_workers_probed:
        said.append(
            f"{speed.num_workers} workers are assumed to be "
            f"{speed.num_workers / speed.num_workers_probed:.3g} times as fast as the "
            f"{speed.num_workers_probed} of the probe (linear scaling)."
        )
    said.append("The hours of training and the waits between steps are not estimated.")
    if workload.rounds > 1 or workload.num_models_predicted > 1:
        said.append(
            "Later rounds and tuned models are assumed to generate as much as the base model."
        )
    sizes = {name: part.num_probed + part.num_left for name, part in parts.items()}
    if ended := [name for name, num in workload.num_questions.items() if sizes[name] < num]:
        bound = workload.max_tokens is not None
        limits = "budget.generated_tokens or at their own limits" if bound else "the limits set"
        said.append(f"Assumed to stop at {limits}: {_some(ended)}.")
    thin = [name for name, part in parts.items() if part.num_probed < 2 and part.num_left]
    if thin:
        said.append(
            f"Fewer than two questions were probed in {_some(thin)}: assumed to be like the others."
        )
    return tuple(said)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- the statistics ----------------------------------------------------------------------------

_COLUMNS = (
    *("paths", "generations", "tokens", "prompt_tokens"),
    *("bytes", "truncated", "accepted", "kept", "learned"),
)


@dataclass(frozen=True)
class _Sample:
    """The questions that represent one dataset. Arrays have a column for each of `_COLUMNS`."""

    rows: Array
    """One row per question."""
    means: Array
    """Means of resampled questions, one row per resample."""
    freedom: int
    """Degrees of freedom behind the spread of the means."""


@dataclass(frozen=True)
class _Part:
    """One dataset (a stratum), or the predictions. Arrays have a column for each of `_COLUMNS`.

    What was probed is certain. The rest is `num_left` times a mean that is known up to
    `deviations`. The spread of their sum is that of a sample of n out of N drawn without
    replacement, N (N - n) s^2 / n (Cochran, Sampling Techniques, 1977, 2.6).
    """

    num_probed: int
    num_left: int
    weight: int
    """How often the part is made: once per round."""
    known: Array
    """Sums over the probed questions."""
    mean: Array
    """The mean of one question."""
    deviations: Array
    """Deviations of the mean, one row per resample."""
    freedom: int
    above: Array
    """How much more a question of an unobserved kind can have; see `_unmet_kind`."""
    below: Array
    unmet: Array
    """The share of such questions, for each resample."""
    ceiling: Array
    """The most that one question can have."""

    @property
    def factor(self) -> int:
        """Questions to be processed, over all rounds."""
        return self.weight * self.num_left


@dataclass(frozen=True)
class _Total:
    """A sum or ratio: its central value, and the draws from which its limits are read."""

    value: float
    low: Array
    high: Array

    def times(self, factor: float) -> _Total:
        return _Total(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, constant: float) -> _Total:
        return _Total(self.value + constant, self.low + constant, self.high + constant)

    def with_added(self, other: _Total) -> _Total:
        """The sum, draw by draw."""
        return _Total(self.value + other.value, self.low + other.low, self.high + other.high)

    def at_most(self, most: float) -> _Total:
        value = float(np.minimum(self.value, most))
        return _Total(value, np.minimum(self.low, most), np.minimum(self.high, most))

    def over(self, other: _Total) -> _Total:
        """The ratio, draw by draw: both come from the same resampled questions."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.float64(self.value) / np.float64(other.value))
            return _Total(value, self.low / other.high, self.high / other.low)

    def range(self) -> Range:
        """The range of the draws; values that are not finite are unknown."""
        # No interpolation, because between a number and infinity there is nothing to report.
        low = float(np.quantile(self.low, 0.05, method="inverted_cdf"))
        high = float(np.quantile(self.high, 0.95, method="inverted_cdf"))
        return Range(
            _finite(self.value), _finite(min(low, self.value)), _finite(max(high, self.value))
        )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _question_parts(
    questions: Sequence[ProbedQuestion], workload: Workload, rng: np.random.Generator
) -> dict[str, _Part]:
    """A part for each dataset. A dataset with fewer than two probed questions uses all of them."""
    of_dataset: dict[str, list[ProbedQuestion]] = {name: [] for name in workload.num_questions}
    for question in questions:
        of_dataset[question.dataset].append(question)
    samples = {name: _sample(_rows(asked), rng) for name, asked in of_dataset.items()}
    everything = _rows(questions)
    ceiling = _ceiling(everything, workload)
    donors = [sample for sample in samples.values() if len(sample.rows)]
    speaking = {
        name: own if own.freedom else _borrowed_sample(everything, donors, rng)
        for name, own in samples.items()
    }
    begun = _num_begun({name: _mean(sample.rows) for name, sample in speaking.items()}, workload)
    parts = {}
    for name, num in workload.num_questions.items():
        own = samples[name].rows
        size = max(begun[name], min(num, len(own)))
        parts[name] = _part(own, speaking[name], size, workload.rounds, ceiling, rng)
    return parts


def _num_begun(means: Mapping[str, Array], workload: Workload) -> dict[str, int]:
    """How many questions of each dataset begin before the limits, if each were like its mean."""
    shares = {name: workload.shares.get(name, DatasetQuota()) for name in means}
    enough = {
        name: _num_within(shares[name], num, means[name])
        for name, num in workload.num_questions.items()
    }
    tokens = np.array([mean[_COLUMNS.index("tokens")] for mean in means.values()])
    if workload.max_tokens is None or not np.isfinite(tokens).all():
        return enough
    # The order is that of `cluster.inference.schedule.interleave`.
    times = [(np.arange(num) + 0.5) / shares[name].weight for name, num in enough.items()]
    owners = np.repeat(np.arange(len(enough)), list(enough.values()))
    order = np.argsort(np.concatenate(times), kind="stable")
    made = np.cumsum(tokens[owners[order]])
    # A question begins as long as those before it do not reach the limit.
    num = 1 + int(np.searchsorted(made, workload.max_tokens))
    counts = np.bincount(owners[order][:num], minlength=len(enough))
    return dict(zip(enough, counts.tolist(), strict=True))


def _num_within(share: DatasetQuota, num: int, mean: Array) -> int:
    """How many of the questions begin before a limit is reached, if each were like the mean."""
    for limit, column in ((share.max_tokens, "tokens"), (share.max_accepted, "accepted")):
        each = float(mean[_COLUMNS.index(column)])
        if limit is not None and each > 0:
            num = min(num, math.ceil(limit / each))
    return num


def _prediction_part(
    predictions: ProbedPredictions, workload: Workload, rng: np.random.Generator
) -> _Part:
    """The part with the answers of all models."""
    rows = np.zeros((len(predictions.num_tokens), len(_COLUMNS)))
    rows[:, _COLUMNS.index("tokens")] = predictions.num_tokens
    no_ceiling = np.full(len(_COLUMNS), math.inf)
    return _part(rows, _sample(rows, rng), workload.num_answers, 1, no_ceiling, rng)


def _rows(questions: Sequence[ProbedQuestion]) -> Array:
    """One row per question, with a column for each of `_COLUMNS`."""
    rows = [
        (
            *(q.num_paths, q.num_generations, q.num_tokens, q.num_prompt_tokens),
            *(q.num_bytes, q.num_truncated, q.num_accepted, q.num_kept, q.num_learned_tokens),
        )
        for q in questions
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(_COLUMNS))


def _ceiling(everything: Array, workload: Workload) -> Array:
    """The most that one question can have: infinite, except for counts of paths."""
    ceiling = np.full(len(_COLUMNS), math.inf)
    most = max([workload.paths_per_question, *everything[:, _COLUMNS.index("paths")]])
    for name in ("truncated", "accepted"):
        ceiling[_COLUMNS.index(name)] = most
    ceiling[_COLUMNS.index("kept")] = min(most, workload.max_per_question)
    return ceiling


def _sample(rows: Array, rng: np.random.Generator) -> _Sample:
    """The questions of one dataset, resampled.

    The means' distance from the overall mean is multiplied by sqrt(n / (n - 1)): resampling n
    values with replacement has the variance with divisor n (Hesterberg, The American Statistician
    69(4), 2015).
    """
    num, mean = len(rows), _mean(rows)
    if num < 2:
        return _Sample(rows, np.tile(mean, (RESAMPLES, 1)), 0)
    counts = rng.multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
    means = mean + (counts @ rows / num - mean) * math.sqrt(num / (num - 1))
    return _Sample(rows, means, num - 1)


def _mean(rows: Array) -> Array:
    return rows.mean(axis=0) if len(rows) else np.full(rows.shape[1], math.nan)


def _borrowed_sample(
    everything: Array, donors: Sequence[_Sample], rng: np.random.Generator
) -> _Sample:
    """All questions, for a dataset that was hardly probed.

    Each resample uses the mean of one of the probed datasets, with a probability proportional to
    its questions: the difference between datasets is the uncertainty about one that was not probed.
    """
    if not donors:
        return _sample(everything, rng)
    sizes = np.array([len(donor.rows) for donor in donors])
    chosen = rng.choice(len(donors), size=RESAMPLES, p=sizes / sizes.sum())
    means = np.empty((RESAMPLES, len(_COLUMNS)))
    for number, donor in enumerate(donors):
        means[chosen == number] = donor.means[chosen == number]
    return _Sample(everything, means, len(donors) - 1 or donors[0].freedom)


def _part(
    own: Array,
    sample: _Sample,
    num: int,
    weight: int,
    ceiling: Array,
    rng: np.random.Generator,
) -> _Part:
    """A part of `num` questions, of which `own` were probed; `sample` represents the others."""
    if num < len(own):
        raise ValueError(f"{len(own)} questions were probed out of {num}")
    left = num - len(own)
    mean = _mean(sample.rows)
    deviations = (sample.means - mean) * (math.sqrt(num / left) if left else 0.0)
    if not sample.freedom:
        # One question does not show how much others differ from it.
        deviations = np.full_like(deviations, math.nan)
    above, below = _unmet_kind(sample.rows, ceiling)
    deviations[:, above + below > 0] = 0.0
    return _Part(
        num_probed=len(own),
        num_left=left,
        weight=weight,
        known=own.sum(axis=0),
        mean=mean,
        deviations=deviations,
        freedom=sample.freedom,
        above=above,
        below=below,
        unmet=_unmet_share(len(sample.rows), rng),
        ceiling=ceiling,
    )


def _unmet_kind(rows: Array, ceiling: Array) -> tuple[Array, Array]:
    """(how much more, how much less than the mean) a question of an unobserved kind can have.

    It is nonzero only where a count was the same in all probed questions, usually the minimum or
    maximum: resampling these would give an interval of width zero.
    """
    mean = _mean(rows)
    constant = np.isfinite(ceiling) & (rows == mean).all(axis=0) & (len(rows) > 0)
    return np.where(constant, ceiling - mean, 0.0), np.where(constant, mean, 0.0)


def _unmet_share(num: int, rng: np.random.Generator) -> Array:
    """Draws of the share of questions of a kind that was not observed among `num`.

    Beta(1, n), whose 95 % point 1 - 0.05^(1/n), about 3/n, is the exact limit (Clopper and Pearson,
    1934; as the rule of three: Hanley and Lippman-Hand, JAMA 249, 1983). It counts questions, since
    the paths of a question are correlated.
    """
    # An even grid in random order has no noise in the quantiles of a single part.
    even = rng.permutation((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    return np.asarray(1 - even ** (1 / num)) if num else np.ones(RESAMPLES)


def _total(parts: Iterable[_Part], column_name: str) -> _Total:
    """The sum over all parts of the probed and the remaining questions."""
    column = _COLUMNS.index(column_name)
    parts = list(parts)
    known = sum(part.weight * float(part.known[column]) for part in parts)
    parts = [part for part in parts if part.num_left]
    value = known + sum(part.factor * float(part.mean[column]) for part in parts)
    most = known + sum(part.factor * float(part.ceiling[column]) for part in parts)
    spreads = [part.factor * part.deviations[:, column] for part in parts]
    none = np.zeros(RESAMPLES)
    student = _student_factor(spreads, [part.freedom for part in parts])
    draws = value + student * sum(spreads, none)
    above = sum((part.factor * part.above[column] * part.unmet for part in parts), none)
    below = sum((part.factor * part.below[column] * part.unmet for part in parts), none)
    # A total is at least what exists already, and at most what is possible.
    return _Total(value, np.clip(draws - below, known, most), np.clip(draws + above, known, most))


def _student_factor(spreads: Sequence[Array], freedoms: Sequence[int]) -> float:
    """How much wider an interval is because the spread is also estimated from few questions.

    Student's t over the normal quantile, with the degrees of freedom of a sum of estimated
    variances (Satterthwaite, Biometrics Bulletin 2, 1946).
    """
    variances = [float(spread.var()) for spread in spreads]
    total = sum(variances)
    if total == 0 or not math.isfinite(total):
        return 1.0
    over = sum(
        variance**2 / freedom
        for variance, freedom in zip(variances, freedoms, strict=True)
        if variance
    )
    return student_t_95(max(1.0, total**2 / over)) / Z_90


def student_t_95(freedom: float) -> float:
    """One-sided 95 % quantile of Student's t, to 0.3 % from two degrees of freedom, 5 % at one.

    It uses the expansion 26.7.5 of Abramowitz and Stegun (1964).
    """
    z = Z_90
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


# --- the output --------------------------------------------------------------------------------


def check_budget(estimate: Estimate, budget: Budget) -> list[str]:
    """Warnings if only the upper end of an estimate exceeds the budget, or nothing is known.

    Raises `OverBudgetError` if the central estimate exceeds it.
    """
    if budget.max_money is not None and estimate.money is None:
        raise InputError(
            "budget.max_money is set, but there is no price: set cost.gpu_hour, or limit "
            "budget.max_hours if no GPU is used"
        )
    checks = (
        ("max_hours", budget.max_hours, estimate.hours, "hours"),
        ("max_gpu_hours", budget.max_gpu_hours, estimate.gpu_hours, "GPU-hours"),
        ("max_money", budget.max_money, estimate.money, estimate.currency),
    )
    warnings = [
        _check_limit(name, limit, taken, unit)
        for name, limit, taken, unit in checks
        if limit is not None and taken is not None
    ]
    return [warning for warning in warnings if warning]


def _check_limit(name: str, limit: float, taken: Range, unit: str) -> str | None:
    """A warning, if there is one. Raises `OverBudgetError`."""
    said = f"the run is estimated to take {_with_interval(taken)} {unit}"
    over = f"budget.{name} is {_number(limit)}"
    if taken.value is None:
        return f"{over}, but the probe cannot tell how many {unit} the run will take"
    if taken.value > limit:
        faster = ", raise engine.max_workers" if name == "max_hours" else ""
        raise OverBudgetError(
            f"{said}, but {over}; lower questions.datasets.*.num_train, budget.generated_tokens, "
            f"synthesis.guidelines_per_question or rounds{faster}, or raise the budget"
        )
    if taken.high is None:
        return f"{said}; {over}, but the probe cannot tell whether this is enough"
    return f"{said}; {over}, which may not be enough" if taken.high > limit else None


def format_estimate(estimate: Estimate) -> str:
    """Format the estimate as Markdown: the run, its datasets, and the assumptions."""
    questions = sum(dataset.num_questions for dataset in estimate.datasets)
    head = f"estimated from {estimate.num_probed} of {questions:,} questions, 90 % intervals"
    return "\n\n".join(
        [
            head,
            format_table([["whole run", "estimate"], *_run_rows(estimate)]),
            format_table([_DATASET_TITLES, *map(_dataset_row, estimate.datasets)]),
            textwrap.fill(" ".join(estimate.assumptions), width=100),
        ]
    )


def _run_rows(estimate: Estimate) -> list[list[str]]:
    rows: list[tuple[str, Range | None]] = [
        ("paths", Range(estimate.paths, estimate.paths, estimate.paths)),
        ("generations", estimate.generations),
        ("generated tokens", estimate.tokens),
        ("prompt tokens of paths", estimate.prompt_tokens),
        ("hours", estimate.hours),
        ("GPU-hours", estimate.gpu_hours),
        (f"cost in {estimate.currency}", estimate.money),
        ("GiB of paths on disk", estimate.disk_gib),
        ("accepted paths", estimate.accepted),
        ("kept for training, at most", estimate.kept),
        ("training steps, at most", estimate.steps),
        ("learned tokens, at most", estimate.learned_tokens),
        (f"{estimate.cost_unit} per accepted path", estimate.cost_per_accepted),
    ]
    return [[title, _with_interval(value)] for title, value in rows if value]


_DATASET_TITLES = [
    *("dataset", "questions", "probed", "tokens per path"),
    *("truncated, percent", "accepted, percent"),
]


def _dataset_row(dataset: DatasetEstimate) -> list[str]:
    return [
        dataset.dataset,
        f"{dataset.num_questions:,}",
        str(dataset.num_probed),
        _with_interval(dataset.tokens_per_path),
        _with_interval(_in_percent(dataset.truncated_share)),
        _with_interval(_in_percent(dataset.accepted_share)),
    ]


def _in_percent(share: Range) -> Range:
    ends = (share.value, share.low, share.high)
    return Range(*(None if end is None else 100 * end for end in ends))


def _with_interval(range_: Range) -> str:
    if range_.value is None and range_.low is None and range_.high is None:
        return "unknown"
    if range_.low == range_.value == range_.high:
        return _number(range_.value)
    return f"{_number(range_.value)} [{_number(range_.low)}, {_number(range_.high)}]"


def _number(value: float | None) -> str:
    """Format three significant digits; more would claim more than a probe can know."""
    if value is None:
        return "unknown"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"
