"""The Hugging Face hub: check that it provides what the config names; if not, say why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import InputError

_TIMEOUT_S = 10.0


@contextmanager
def hub_errors(
    field: str, name: str, instead: str, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever the hub's libraries raise within the block into one `InputError`.

    `field` is the setting that names the model or dataset, `name` its value, and `instead` what to
    do without the hub; `also` lists further errors of the library that is used.
    """
    from huggingface_hub import errors

    own: tuple[type[Exception], ...] = (_http_error(), errors.EntryNotFoundError)
    kinds: tuple[type[Exception], ...] = (*own, OSError, ValueError, RuntimeError, *also)
    try:
        yield
    except kinds as error:
        raise InputError(f"{field} {name!r}: {_reason(error)}, or {instead}") from error


def _http_error() -> type[Exception]:
    """The errors of the HTTP library of `huggingface_hub`, which changed between versions."""
    from huggingface_hub import errors

    kind: type[Exception] = vars(errors)["HTTPError"]
    return kind


def _reason(error: BaseException) -> str:
    """What went wrong at the hub, and what to do about it."""
    from huggingface_hub import errors

    for found, reason in (
        (
            errors.GatedRepoError,
            "access to it is restricted on the Hugging Face hub; ask for it there and set HF_TOKEN",
        ),
        (
            errors.RevisionNotFoundError,
            "the Hugging Face hub has no such revision of it; correct the revision",
        ),
        (
            errors.RepositoryNotFoundError,
            "the Hugging Face hub has nothing of this name that you may access; correct the name, "
            "or set HF_TOKEN if it is private",
        ),
        (
            errors.RemoteEntryNotFoundError,
            "the Hugging Face hub has it, but a required file is missing; correct the name",
        ),
        (errors.HFValidationError, "this is not a valid name on the Hugging Face hub; correct it"),
        (
            (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError),
            "it was not downloaded before, and the Hugging Face hub cannot be reached; check the "
            "network",
        ),
    ):
        if any(isinstance(each, found) for each in _chain(error)):
            return reason
    chain = list(_chain(error))
    answered = any(isinstance(each, errors.HfHubHTTPError) for each in chain)
    silent = (_http_error(), ConnectionError, TimeoutError)
    if not answered and any(isinstance(each, silent) for each in chain):
        return "the Hugging Face hub cannot be reached; check the network"
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words.rstrip(".")
    return f"it cannot be downloaded from the Hugging Face hub ({reason}); correct the config"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes; libraries wrap the one that says most."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_hub_model(name: str) -> None:
    """Refuse a model that this machine cannot get from the hub. Raises `InputError`.

    Requests one small file, without retries; a model that was downloaded before needs no hub.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache

    instead = "download it elsewhere and name its folder with model.path"
    with hub_errors("model.path", name, instead):
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(name, "config.json"), token=get_token(), timeout=_TIMEOUT_S)


def hub_file(name: str, file: str) -> Path | None:
    """Download a small file of a model from the hub; None if the model has no such file.

    Raises `InputError` when the hub does not provide it.
    """
    from huggingface_hub import errors, hf_hub_download

    instead = "download it elsewhere and name its folder with model.path"
    with hub_errors("model.path", name, instead):
        try:
            return Path(hf_hub_download(name, file, etag_timeout=_TIMEOUT_S))
        except errors.LocalEntryNotFoundError:
            return None  # offline, and not downloaded before
        except errors.EntryNotFoundError:
            return None
