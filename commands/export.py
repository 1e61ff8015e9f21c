"""`regenesis.py export RUN --to FOLDER`: the examples and the model as folders to be shared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import InputError
from cluster.models.hub import hub_errors
from cluster.store.folder import Folder
from cluster.store.named import folder_to_write, refuse_within
from cluster.terminal import say
from commands.arguments import add_run
from commands.version import commit, version
from pipelines.export.folders import WHAT, default_what, plan_export, write_export
from pipelines.stored_run import StoredRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, what of it is exported, and where to."""
    add_run(parser)
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder that is empty")
    parser.add_argument("--what", nargs="+", choices=WHAT, help="default: all that there is")
    parser.add_argument("--round", type=int, help="default: the last one with examples")
    parser.add_argument("--dataset", help="the model that was tuned on this dataset alone")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="DATASET", help="leave out the rows of these"
    )
    parser.add_argument("--base-licence", metavar="ID", help="the licence of the base model")
    parser.add_argument(
        "--hub", metavar="OWNER/NAME", help="also upload to the Hugging Face hub, as private"
    )
    parser.add_argument("--public", action="store_true", help="with --hub: as public")


def run(arguments: argparse.Namespace) -> int:
    """Write the folders and, where that is asked for, upload them."""
    _check_hub(arguments, Folder.open(arguments.to, argument="--to"))
    to = folder_to_write("--to", arguments.to)
    stored = StoredRun.read(arguments.run)
    refuse_within("--to", to, stored.folder)
    export = plan_export(stored, arguments.round, arguments.dataset, arguments.without)
    what = arguments.what or default_what(export)
    made_by = f"regenesis {version()}" + (f" ({commit()})" if commit() else "")
    written = write_export(export, what, to, made_by, arguments.base_licence)
    for folder in written:
        say(f"exported: {folder.uri}")
    if arguments.hub:
        _upload(written, arguments.hub, is_private=not arguments.public)
    return 0


def _check_hub(arguments: argparse.Namespace, to: Folder) -> None:
    """Raises `InputError` for a name that is none, and for a folder that cannot be uploaded."""
    if arguments.hub is None:
        if arguments.public:
            raise InputError("--public is for --hub; give both or neither")
        return
    if arguments.hub.count("/") != 1 or not all(arguments.hub.split("/")):
        raise InputError(f"--hub {arguments.hub}: expected OWNER/NAME")
    if not to.is_local:
        raise InputError(f"--hub uploads from a disk, and --to {to.uri} is not on one")


def _upload(folders: Sequence[Folder], name: str, *, is_private: bool) -> None:
    """Upload each folder into its repository; an adapter's name ends with `-adapter`."""
    from huggingface_hub import HfApi

    api = HfApi()
    for folder in folders:
        kind = "dataset" if folder.name == "dataset" else "model"
        repository = f"{name}-adapter" if folder.name == "adapter" else name
        with hub_errors("--hub", repository, f"upload the folder {folder.uri} by hand"):
            api.create_repo(repository, repo_type=kind, private=is_private, exist_ok=True)
            made = api.upload_folder(
                repo_id=repository, folder_path=Path(folder.path), repo_type=kind
            )
        say(f"uploaded: {made.commit_url}")
