"""Code inside vLLM's processes: each process digests the tensors that it reads.

vLLM imports this file in every process of an engine before it loads the model, because the file is
named as `worker_extension_cls`; nothing else imports it. The tensors stay in the process; their
digests (`cluster.models.weight_digests`) are sent to the engine on request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from vllm.config import replace
from vllm.lora.lora_model import LoRAModel
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.runai_streamer_loader import RunaiModelStreamerLoader

from cluster.inference.vllm_engine import LOAD_FORMAT, READ_BY_NAME
from cluster.models.weight_digests import with_digests

_models: defaultdict[str, dict[str, str]] = defaultdict(dict)
"""Keyed by the model's folder, because a draft model is loaded in the same process."""
_adapters: defaultdict[int, dict[str, str]] = defaultdict(dict)
"""Keyed by the number that the engine gave the adapter."""


def _register(load_format: str, loader: type[Any], num_threads: int | None = None) -> None:
    """Register one of vLLM's loaders again under our name for its format. It digests the tensors
    before vLLM fuses, shards and quantizes them."""

    @register_model_loader(f"{LOAD_FORMAT}_{load_format}")
    class DigestingLoader(loader):  # type: ignore[misc]
        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format=load_format))

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            weights = super().get_all_weights(model_config, model)
            return with_digests(weights, _models[model_config.model], num_threads)


for _format in READ_BY_NAME:
    # This loader frees a file's tensors before it opens the next, so none is read ahead.
    _ahead = 1 if _format == "fastsafetensors" else None
    _loader = RunaiModelStreamerLoader if _format == "runai_streamer" else DefaultModelLoader
    _register(_format, _loader, _ahead)


def _digest_adapters() -> None:
    """Wrap the function that reads an adapter, since vLLM has no loader for it to register."""
    make = LoRAModel.from_lora_tensors.__func__

    def from_lora_tensors(cls: Any, lora_model_id: int, tensors: Any, *args: Any, **kw: Any) -> Any:
        read = dict(with_digests(tensors.items(), _adapters[lora_model_id]))
        return make(cls, lora_model_id, read, *args, **kw)

    LoRAModel.from_lora_tensors = classmethod(from_lora_tensors)


_digest_adapters()


class LoadedTensors:
    """The methods that vLLM adds to its worker class, for `collective_rpc`."""

    model_config: Any

    def loaded_tensors(self) -> dict[str, dict[str, str]]:
        """The digests of all tensors that this process read for the `model` and for each adapter,
        by its number."""
        adapters = {str(number): digests for number, digests in _adapters.items()}
        return {"model": _models[self.model_config.model]} | adapters
