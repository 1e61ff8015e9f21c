"""Writes the folders of an export: a dataset, a model and an adapter, each with its card."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from cluster.errors import DamagedFileError, InputError
from cluster.models.model import tuned_model
from cluster.models.weight_digests import check_saved
from cluster.store.contents import damaged_files, wrong_files
from cluster.store.folder import Folder
from evaluation.scores import Score, format_scores
from pipelines.export.cards import TABLES, CardFacts, dataset_card, model_card
from pipelines.export.publishing import check_published, public_name
from pipelines.stored_run import StoredRun

WHAT = ("dataset", "model", "adapter")
_ADAPTER = "adapter/"
_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Keys of a model's JSON files that hold where a model was, on the machine of the run."""
_WITH_NAMES = ("config.json", "adapter_config.json", "tokenizer_config.json")
_CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """What of a run is exported: one round, and of several models one dataset's."""

    run: StoredRun
    round: int
    tuned_on: str | None
    without: tuple[str, ...] = ()

    def step(self, kind: str) -> tuple[Folder, dict[str, Any]]:
        """A finished step of the round and its manifest.

        Raises `InputError` when it is missing or unfinished, and `DamagedFileError`.
        """
        name = f"round_{self.round}/{kind}"
        suffix = f"-{self.tuned_on}" if self.tuned_on and kind != "examples" else ""
        found = [each for each in self.run.steps if each.rpartition("-")[0] == name + suffix]
        folder = self.run.folder.child(found[0]) if found else None
        manifest = folder.manifest() if folder else None
        if folder is None or manifest is None:
            raise InputError(
                f"{name}{suffix}: the run {self.run.folder.uri} has no such finished step; "
                "finish the run, or choose another --round, --dataset or --what"
            )
        if "files" not in manifest:
            raise InputError(
                f"{folder.uri} was finished by an earlier version, which listed no files; only "
                "steps of this version can be exported"
            )
        if wrong := wrong_files(folder, manifest):
            raise DamagedFileError(f"{folder.uri}: {wrong[0]}")
        return folder, manifest

    def whole_step(self, kind: str) -> tuple[Folder, dict[str, Any]]:
        """The same, with the contents of its files compared as well."""
        folder, manifest = self.step(kind)
        if damaged := damaged_files(folder, manifest["files"]):
            raise DamagedFileError(f"{folder.uri}: {damaged[0]}; restore the original")
        if kind == "model":
            check_saved(tuned_model(folder, self.run.config["storage"]["cache"]))
        return folder, manifest

    @property
    def datasets(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings of all datasets."""
        found: Mapping[str, Mapping[str, Any]] = self.run.config["questions"]["datasets"]
        return found


def plan_export(
    run: StoredRun, round_: int | None, tuned_on: str | None, without: Sequence[str]
) -> Export:
    """Choose what is exported; by default the last round with examples whose model was not refused.

    Raises `InputError` for a round or dataset that the run does not have, and when there are
    several models and none is chosen.
    """
    rounds = sorted({int(n[6 : n.index("/")]) for n in run.steps if n.startswith("round_")})
    if round_ is None:
        finished = [n for n in rounds if _has_examples(run, n) and not _is_refused(run, n)]
        round_ = finished[-1] if finished else 0
    models = [n.rpartition("-")[0] for n in run.steps if n.startswith(f"round_{round_}/model-")]
    names = [name.removeprefix(f"round_{round_}/model-") for name in models]
    if models and tuned_on is None and f"round_{round_}/model" not in models:
        raise InputError(f"--dataset: there is a model for each of {', '.join(names)}; choose one")
    if tuned_on is not None and tuned_on not in names:
        raise InputError(f"--dataset {tuned_on}: there is no model that was tuned on it alone")
    known = run.config["questions"]["datasets"]
    for name in without:
        if name not in known:
            raise InputError(f"--without {name}: the run has the datasets {', '.join(known)}")
    return Export(run, round_, tuned_on, tuple(without))


def _has_examples(run: StoredRun, number: int) -> bool:
    found = [name for name in run.steps if name.startswith(f"round_{number}/examples-")]
    return bool(found) and run.folder.child(found[0]).manifest() is not None


def _is_refused(run: StoredRun, number: int) -> bool:
    """Whether the gate refused the model of a round."""
    found = [name for name in run.steps if name.startswith(f"round_{number}/decision-")]
    facts = run.folder.child(found[0]).manifest() if found else None
    return facts is not None and not facts["adopted"]


def default_what(export: Export) -> list[str]:
    """The dataset, and what there is of the model and its adapter."""
    try:
        _, manifest = export.step("model")
    except DamagedFileError:
        raise
    except InputError:
        return ["dataset"]
    has_adapter = any(name.startswith(_ADAPTER) for name in manifest["files"])
    return [*WHAT[:2], *(["adapter"] if has_adapter else [])]


def write_export(
    export: Export, what: Collection[str], to: Folder, made_by: str, base_licence: str | None
) -> list[Folder]:
    """Write the folders `dataset`, `model` and `adapter` below `to`; returns those written.

    Everything is checked before anything is written. Raises `InputError` for a folder that is not
    empty and for what may not be published, and as `Export.step` does.
    """
    if not to.is_empty():
        raise InputError(f"--to {to.uri} is not empty; name a new folder")
    examples, examples_facts = export.whole_step("examples")
    model_facts = export.whole_step("model")[1] if {"model", "adapter"} & set(what) else {}
    _check_what(export, what, examples_facts, model_facts)
    facts = CardFacts(
        run=str(export.run.config["run"]),
        round=export.round,
        config=export.run.config,
        examples=examples_facts,
        model=model_facts,
        scores=_scores(export),
        commands=export.run.commands(),
        tuned_on=export.tuned_on,
        made_by=made_by,
        base_licence=base_licence,
    )
    writers: Mapping[str, Callable[[Folder], None]] = {
        "dataset": lambda target: _write_dataset(export, examples, facts, target),
        "model": lambda target: _write_model(export, facts, target, is_adapter=False),
        "adapter": lambda target: _write_model(export, facts, target, is_adapter=True),
    }
    written = [to.child(name) for name in WHAT if name in what]
    for target in written:
        writers[target.name](target)
    return written


def _check_what(
    export: Export, what: Collection[str], examples: Mapping[str, Any], model: Mapping[str, Any]
) -> None:
    learned = {name for name, of in examples["datasets"].items() if of["num_examples"]}
    if "dataset" in what:
        # Its prompts are there even where no example was kept.
        check_published(export.datasets, set(examples["datasets"]) - {*export.without}, "dataset")
        if learned <= {*export.without}:
            raise InputError("--without: the dataset would have no example; leave fewer out")
    if model:
        used = {export.tuned_on} if export.tuned_on else learned
        check_published(export.datasets, used, "model")
    if "adapter" in what and not any(name.startswith(_ADAPTER) for name in model["files"]):
        raise InputError("--what adapter: the model was trained whole and has no adapter")


def _scores(export: Export) -> str:
    """The tables of the test questions; empty where they were not scored."""
    try:
        folder, _ = export.whole_step("scores")
    except DamagedFileError:
        raise
    except InputError:
        return ""
    rows: list[dict[str, Any]] = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in folder.read_table().to_pylist()
    ]
    return format_scores([Score(**row) for row in rows])


# --- the dataset -------------------------------------------------------------------------------


def _write_dataset(export: Export, examples: Folder, facts: CardFacts, target: Folder) -> None:
    rows, names = {}, set()
    for table in TABLES:
        source = examples if table == "examples" else examples.child(table)
        number, found = _copy_rows(source, target.child(table), export.without)
        names |= found
        if number:
            rows[table] = number
    target.write_bytes(_CARD, dataset_card(facts, rows, sorted(names)).encode())


def _copy_rows(source: Folder, target: Folder, without: Sequence[str]) -> tuple[int, set[str]]:
    """Copy tables file by file without the rows of some datasets; returns rows and datasets."""
    number, names = 0, set()
    for file in source.file_names(".parquet"):
        table = source.read_parquet(file)
        out = pc.is_in(table.column("dataset"), pa.array(list(without), pa.string()))
        table = table.filter(pc.invert(out))
        if table.num_rows:
            target.write_table(file, table)
            number += table.num_rows
            names |= set(table.column("dataset").unique().to_pylist())
    return number, names


# --- the model ---------------------------------------------------------------------------------


def _write_model(export: Export, facts: CardFacts, target: Folder, *, is_adapter: bool) -> None:
    """Copy the files of the model, or of its adapter, and write the card."""
    folder, manifest = export.step("model")
    for name in manifest["files"]:
        if name.startswith(_ADAPTER) == is_adapter:
            _copy_file(folder, name, target, name.removeprefix(_ADAPTER), facts.base)
    target.write_bytes(_CARD, model_card(facts, is_adapter=is_adapter).encode())


def _copy_file(source: Folder, name: str, target: Folder, as_name: str, base: str) -> None:
    if posixpath.basename(name) in _WITH_NAMES:
        values = json.loads(source.read_bytes(name))
        target.write_json(as_name, _with_public_names(values, base))
        return
    place = posixpath.join(target.path, as_name)
    target.filesystem.create_dir(posixpath.dirname(place), recursive=True)
    pyarrow.fs.copy_files(
        posixpath.join(source.path, name),
        place,
        source_filesystem=source.filesystem,
        destination_filesystem=target.filesystem,
    )


def _with_public_names(values: dict[str, Any], base: str) -> dict[str, Any]:
    """The values of a JSON file with public names where it names the folder of a model."""
    named = {name: public_name(str(values[name])) for name in _NAMES if values.get(name)}
    if "base_model_name_or_path" in named:
        named["base_model_name_or_path"] = base
    return values | named
