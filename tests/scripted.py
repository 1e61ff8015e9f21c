"""An engine that answers from a table: for tests of orchestration, never of quality.

`engine.options` sets what it does: `latency_s`; `wrong_share`, in percent of seeds; `num_tokens`,
how long each answer is; `crash_file` (the first worker that sees the file removes it and dies);
`poison`, a text whose question kills its engine, and `poison_exit`, one that ends the whole
process; `fail_share` and `slow_share`, in percent of seeds whose generation fails or never ends;
`log_file`, which gets a line for each answer: a hash of its sum, the seed and the stage;
`start_log`, which gets one for each engine that starts, see `Started`; `start_s`, how long that
takes. With a placement group it starts a worker in each of its bundles, as vLLM does.
"""

from __future__ import annotations

import ast
import asyncio
import copy
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.inference.engine import (
    Beginning,
    Completion,
    EngineDiedError,
    EngineSettings,
    GenerationError,
    SamplingSettings,
)
from cluster.models.weight_digests import digest_folder

_PROPOSALS = (
    "Strategy: Turn the question round and ask what would make its opposite true.",
    '"Look for a quantity that stays the same whatever happens, and reason from it."',
    "For example, if Tom has 3 apples, count them.",
)
_SUM = re.compile(r"-?\d+(?: [+*-] -?\d+)+")


def solve(text: str) -> str:
    """The value of the first sum or product of integers in a text, or 0."""
    found = _SUM.search(text)
    return str(_value(ast.parse(found.group(), mode="eval").body)) if found else "0"


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        return left - right if isinstance(node.op, ast.Sub) else left * right
    return int(ast.literal_eval(node))


def gpu_memory_gib() -> float:
    """Of a GPU that only Ray counts: as CUDA sees of an H100. See `PRETENDED_MEMORY`."""
    return 79.1


def _append(path: str, line: str) -> None:
    """One write of a whole line: workers share the file."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, line.encode())
    os.close(log)


@dataclass(frozen=True)
class Started:
    """One engine, or one worker of an engine with a placement group, as the `start_log` has it."""

    pid: int
    niceness: int
    node_id: str
    gpus: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES shows it."""
    kind: str
    """`engine`, `worker` of an engine, or `trainer`: a worker of a training."""

    @classmethod
    def here(cls, kind: str) -> Started:
        import ray

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"
        return cls(os.getpid(), os.nice(0), node_id, tuple(filter(None, gpus.split(","))), kind)

    @classmethod
    def read(cls, log: Path, *kinds: str) -> list[Started]:
        """All of some kinds that started, in the order in which they did; engines by default."""
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        started = [cls(**line | {"gpus": tuple(line["gpus"])}) for line in lines]
        return [each for each in started if each.kind in (kinds or ("engine",))]

    def append_to(self, log: str) -> None:
        _append(log, json.dumps(asdict(self)) + "\n")


class _Rank:
    """Takes the place of one of vLLM's Ray workers."""

    def note(self, log: str) -> None:
        Started.here("worker").append_to(log)


def _start_ranks(settings: EngineSettings, log: str) -> list[Any]:
    """A worker in each bundle of the engine: those named for vLLM, else all that have GPUs."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Bundle

    group = ray.util.get_current_placement_group()
    named = os.environ.get("VLLM_RAY_BUNDLE_INDICES")
    has_gpu = [i for i, bundle in enumerate(group.bundle_specs) if bundle.get("GPU")]
    indices = [int(i) for i in named.split(",")] if named else has_gpu
    rank = ray.remote(num_cpus=0, num_gpus=settings.use_gpu)(_Rank)
    ranks = [
        rank.options(scheduling_strategy=Bundle(group, placement_group_bundle_index=i)).remote()
        for i in indices[: settings.ranks]
    ]
    ray.get([each.note.remote(log) for each in ranks])
    return ranks


class ScriptedEngine:
    """Adapts, structures and solves sums; right or wrong by its seed."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._options: dict[str, Any] = settings.options
        self._num_answers = 0
        if start_log := self._options.get("start_log"):
            Started.here("engine").append_to(start_log)
            self._ranks = _start_ranks(settings, start_log) if settings.placement_group else []
        time.sleep(self._options.get("start_s", 0.0))

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        if latency_s := self._options.get("latency_s", 0.0):
            await asyncio.sleep(latency_s)
        self._num_answers += 1
        self._maybe_crash()
        prompt = messages[-1]["content"]
        await self._misbehave(prompt, seed)
        text = self._answer(prompt, seed)
        self._log(prompt, seed)
        ids = list(text.encode())
        ids += [32] * (self._options.get("num_tokens", 0) - len(ids))
        return [Completion(text, ids, "stop", num_prompt_tokens=len(prompt))] * n

    async def go_on(
        self,
        messages: Sequence[Mapping[str, str]],
        beginning: Beginning,
        sampling: SamplingSettings,
    ) -> Completion:
        """Says the truth, whatever it answered before."""
        text = f" {solve(messages[-1]['content'])}."
        return Completion(text, list(text.encode()), "stop", num_prompt_tokens=9)

    def _answer(self, prompt: str, seed: int) -> str:
        if "general strategies" in prompt:
            return _PROPOSALS[seed % len(_PROPOSALS)]
        if "\nGuideline: " in prompt:
            return "Look at the signs first."
        if "\nAdvice: " in prompt:
            return "1. Read it. 2. Work it out."
        wrong = seed % 100 < self._options.get("wrong_share", 50)
        return f"I work it out: {solve(prompt)}. \\boxed{{{'-1' if wrong else solve(prompt)}}}"

    async def _misbehave(self, prompt: str, seed: int) -> None:
        if (poison := self._options.get("poison")) and poison in prompt:
            raise EngineDiedError("CUDA error: an illegal memory access was encountered")
        if (poison := self._options.get("poison_exit")) and poison in prompt:
            os._exit(1)
        if seed // 100 % 100 < self._options.get("fail_share", 0):
            raise GenerationError("the request was refused")
        if seed // 10_000 % 100 < self._options.get("slow_share", 0):
            await asyncio.sleep(3600)

    def _log(self, prompt: str, seed: int) -> None:
        if log_file := self._options.get("log_file"):
            asked = hashlib.sha256(_SUM.findall(prompt)[0].encode()).hexdigest()[:16]
            stage = "adapt" if "\nGuideline: " in prompt else "path"
            stage = "structure" if "\nAdvice: " in prompt else stage
            _append(log_file, f"{asked} {seed} {stage}\n")

    def _maybe_crash(self) -> None:
        crash_file = self._options.get("crash_file")
        if crash_file and self._num_answers > 40:
            try:
                Path(crash_file).unlink()
            except FileNotFoundError:
                return
            os._exit(1)

    def shutdown(self) -> None:
        """Nothing to end."""


class ReportingEngine(ScriptedEngine):
    """Also tells the digests of the tensors in the model's folder; with the option `differ` each
    engine those of another model."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        self._model = model

    async def loaded_weights(self) -> list[dict[str, dict[str, str]]]:
        own = {"own": str(os.getpid())} if self._options.get("differ") else {}
        return [{"model": digest_folder(Path(self._model)) | own}]


class AdaptingEngine(ScriptedEngine):
    """Serves adapters: one whose folder is called `wrong` is always wrong, any other always right;
    without an adapter it answers by its seeds."""

    def __init__(self, model: str, settings: EngineSettings, adapters: Sequence[str] = ()) -> None:
        super().__init__(model, settings)
        self._adapters = adapters

    def with_adapter(self, adapter: str) -> AdaptingEngine:
        """See `cluster.inference.engine.ServesAdapters`."""
        if adapter not in self._adapters:
            raise ValueError(f"the engine was started without {adapter}")
        view = copy.copy(self)
        wrong_share = 100 if Path(adapter).name == "wrong" else 0
        view._options = self._options | {"wrong_share": wrong_share}
        return view


class PlantedEngine(ScriptedEngine):
    """How good it is follows from the round of the model that it serves.

    The option `wrong` has the percentage of wrong answers by that round (`base`, `0`, `1`, ...); a
    question that a better model misses, a worse one misses, too. `noise` is the percentage of
    questions that each model draws anew. The models in `collapsed` give one text for everything.
    """

    def __init__(self, model: str, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        found = re.search(r"round_(\d+)", model)
        self._round = found[1] if found else "base"

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: SamplingSettings,
        seed: int,
        n: int = 1,
    ) -> list[Completion]:
        """Samples of one request differ here."""
        of_seeds = [
            await super(PlantedEngine, self).chat(messages, sampling, seed + i) for i in range(n)
        ]
        return [completion for [completion] in of_seeds]

    def _answer(self, prompt: str, seed: int) -> str:
        if "\nGuideline: " in prompt or "\nAdvice: " in prompt:
            return super()._answer(prompt, seed)
        asked = f"{_SUM.findall(prompt)[:1]} {seed}"
        if self._round in self._options.get("collapsed", ()):
            return "It is \\boxed{7}"
        noise = self._options.get("noise", 0)
        drawn = asked if _percent(f"noise {asked} {self._round}") >= noise else asked + self._round
        wrong = _percent(drawn) < self._options["wrong"][self._round]
        words = " ".join(f"step{_percent(f'{asked} {word}')}" for word in range(12))
        return f"I take {words}. \\boxed{{{'-1' if wrong else solve(prompt)}}}"


def _percent(text: str) -> int:
    """0 to 99, the same for the same text."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100
