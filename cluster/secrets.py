"""Keys and passwords belong in the environment: an address that holds one is refused.

What is printed, logged or stored passes `hide` where it may hold such an address all the same, for
example the error message of a library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import InputError

_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"]*:[^\s?#'\"]*@")
_PARAMETER = re.compile(
    r"([?&][^=&\s'\"]*(?:key|secret|token|password|passwd|signature|credential|sig)[^=&\s'\"]*=)"
    r"[^&\s'\"]+",
    re.IGNORECASE,
)
_KEY_NAME = re.compile(
    r"(.*[_-])?((api|access|secret|private|account)[_-]?key([_-]id)?|secret|password|passwd"
    r"|credentials?|authorization)"
    r"|((hf|hub|auth|access|api|bearer|refresh|session|security|wandb)[_-])?token",
    re.IGNORECASE,
)
"""Names of settings that hold a key. `eos_token` and its like are tokens of another kind."""
HIDDEN = "..."
NOTIFY = "cluster.notify"
_NOTIFIED = re.compile(r"^((?:--\w+=)?cluster(?:\.notify)?=).*", re.DOTALL)
"""An argument that sets who is told: `cluster.notify=...`, `--set=cluster.notify=...`, or
`cluster={notify: ...}`."""


def hide(text: str) -> str:
    """The text with `...` instead of the passwords and keys in its addresses."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _PASSWORD.sub(rf"\g<1>{HIDDEN}@", text))


def has_key(text: str) -> bool:
    """Whether an address in the text holds a password or a key."""
    return hide(text) != text


def refuse_key(field: str, uri: str) -> None:
    """Raises `InputError` for an address with a key in it, which would end up in files and logs."""
    if has_key(uri):
        raise InputError(
            f"{field} {hide(uri)!r} holds a key or a password, which would be written to files and "
            f"logs; take it out of the address and {_instead(uri)}"
        )


def _instead(uri: str) -> str:
    if uri.startswith("s3://"):
        return (
            "give the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to the driver and to "
            "all nodes, or give the machines a role that may use the bucket"
        )
    if uri.startswith(("gs://", "gcs://")):
        return "name a key file in GOOGLE_APPLICATION_CREDENTIALS on the driver and on all nodes"
    return "give it in the variables or files that the service documents"


def refuse_keys(field: str, value: Any) -> None:
    """The same for a tree of settings: for all addresses in it, and for keys by their names."""
    if field == NOTIFY:
        return  # an address that is a secret as a whole; it is stored without (`host_only`)
    if isinstance(value, str) and _KEY_NAME.fullmatch(field.rpartition(".")[2]):
        raise InputError(
            f"{field} is given as a text, which would be written to files and logs; take it out of "
            "the config and set the environment variable that the library reads it from"
        )
    if isinstance(value, str) and "://" in value:
        refuse_key(field, value)
    elif isinstance(value, Mapping):
        for name, each in value.items():
            refuse_keys(f"{field}.{name}" if field else str(name), each)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            refuse_keys(field, each)


def hide_arguments(arguments: Sequence[str]) -> str:
    """A command line as it may be written down."""
    return " ".join(_NOTIFIED.sub(rf"\g<1>{HIDDEN}", hide(argument)) for argument in arguments)


def host_only(target: str) -> str:
    """A command or an address that may be a secret as a whole, such as that of a chat's webhook:
    only the program or the host is shown."""
    if target.startswith(("http://", "https://")):
        parts = urlsplit(target)
        return f"{parts.scheme}://{parts.hostname or ''}/{HIDDEN}"
    program = target.split(maxsplit=1)[0] if target.strip() else ""
    return f"{program} {HIDDEN}" if program != target.strip() else program
