"""Inside vLLM's own processes: what each of them digests of the tensors that it reads.

vLLM imports this file in every process of an engine before that loads its model, since it is named
as `worker_extension_cls`; nothing else imports it. The tensors stay where they are; on request
their digests (`cluster.weights`) go to the engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from vllm.config import replace
from vllm.lora.lora_model import LoRAModel
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from cluster.engine import LOAD_FORMAT
from cluster.weights import with_digests

_models: defaultdict[str, dict[str, str]] = defaultdict(dict)
"""By the model's folder: a draft model is loaded in the same process."""
_adapter: dict[str, str] = {}


@register_model_loader(LOAD_FORMAT)
class DigestingLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's default loader; digests the tensors before vLLM fuses and shards them."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(replace(load_config, load_format="auto"))

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
        weights = super().get_all_weights(model_config, model)
        return with_digests(weights, _models[model_config.model])


def _digest_adapters() -> None:
    """Wrap what gets the tensors of an adapter: for these vLLM has no loader to register."""
    make = LoRAModel.from_lora_tensors.__func__

    def from_lora_tensors(cls: Any, lora_model_id: int, tensors: Any, *args: Any, **kw: Any) -> Any:
        read = dict(with_digests(tensors.items(), _adapter))
        return make(cls, lora_model_id, read, *args, **kw)

    LoRAModel.from_lora_tensors = classmethod(from_lora_tensors)


_digest_adapters()


class LoadedTensors:
    """What vLLM adds to its worker class: a method for `collective_rpc`."""

    model_config: Any

    def loaded_tensors(self) -> dict[str, dict[str, str]]:
        """The digests of all that this process read, by name, of the `model` and the `adapter`."""
        return {"model": _models[self.model_config.model], "adapter": _adapter}
