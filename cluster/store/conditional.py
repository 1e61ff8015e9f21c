"""Create an object only if its name is free, which pyarrow's file systems cannot do.

S3 and Google Cloud Storage check this themselves when a request asks for it (`If-None-Match: *`);
`obstore` makes that request. It takes region, endpoint and keys from the run's file system, or, as
pyarrow does, from the environment.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow.fs

from cluster.errors import InputError
from cluster.store.network import one_line


def create_object(filesystem: pyarrow.fs.FileSystem, path: str, data: bytes) -> bool:
    """Write an object unless it exists; returns whether it was written. Raises `OSError`.

    On other file systems (HDFS, or one written in Python) it checks first and then writes: two
    commands that begin at the same moment may both succeed there.
    """
    store = _store(filesystem, path.partition("/")[0])
    if store is None:
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
            return False
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return True
    return _put(store, path.partition("/")[2], data)


def _put(store: Any, key: str, data: bytes) -> bool:
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    try:
        obstore.put(store, key, data, mode="create")
    except AlreadyExistsError:
        return False
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"{key}: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise PermissionError(f"{key}: there is no such bucket") from error
    except BaseError as error:
        raise OSError(f"{key}: {one_line(error)}") from error
    return True


def _store(filesystem: pyarrow.fs.FileSystem, bucket: str) -> Any:
    """The bucket for obstore; None for an unknown file system."""
    if filesystem.type_name not in ("s3", "gcs"):
        return None
    try:
        from obstore.store import GCSStore, S3Store
    except ImportError as error:
        raise InputError(
            f"a run on {filesystem.type_name} needs the package obstore: pip install obstore"
        ) from error
    if filesystem.type_name == "gcs":
        return GCSStore(bucket, retry_config=_RETRIES)
    return S3Store(bucket, retry_config=_RETRIES, **_s3_options(filesystem))


_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=10)}
"""`cluster.store.network` tries again: a second attempt here would find what the first one made."""


def _s3_options(filesystem: Any) -> dict[str, Any]:
    """How pyarrow reaches S3, as options of obstore."""
    # The pickled form is the only access to its options.
    known: dict[str, Any] = filesystem.__reduce__()[1][0]
    options: dict[str, Any] = {"region": known.get("region") or None}
    if endpoint := known.get("endpoint_override"):
        scheme = known.get("scheme") or "https"
        options["endpoint"] = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
        options["client_options"] = {"allow_http": scheme == "http"}
        options["virtual_hosted_style_request"] = bool(known.get("force_virtual_addressing"))
    names = ("access_key", "access_key_id"), ("secret_key", "secret_access_key")
    for theirs, name in (*names, ("session_token", "session_token")):
        if known.get(theirs):
            options[name] = known[theirs]
    if known.get("anonymous"):
        options["skip_signature"] = True
    return {name: value for name, value in options.items() if value is not None}
