"""Where a store is, by its path or URL: a folder of this machine, its memory, or an object store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from abi_jax.errors import InputError
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.local import LocalStorage

if TYPE_CHECKING:
    from abi_jax.wdbx.storage.objects import ObjectStorage

SCHEMES = ("file", "memory", "gs", "s3")
AMAZON = ".amazonaws.com"
RETRIES = {"max_retries": 6, "initial_delay": "100ms", "max_delay": "2s"}  # some seconds, then somebody is told
_shared: list[Any] = []  # what `memory://name` is in, all of this process


def open_storage(where: str | Path) -> Storage:
    """The storage at a path or URL. Nothing is written yet; of an object store it is asked whether it is there.

    `memory://name` is gone with the process, `memory://` with the store. S3 is configured by `AWS_ENDPOINT_URL`,
    `AWS_REGION` and the usual places for credentials, Google Cloud Storage by its application default credentials and
    `TENSORSTORE_GCS_HTTP_URL`. Raises `InputError` with a scheme that is none, `StorageError` where a bucket is not
    there, may not be looked into, or does not answer.
    """
    text = os.fspath(where)
    scheme, colon, rest = text.partition("://")
    if not colon and ":/" in text and text.partition(":/")[0] in SCHEMES:
        raise InputError(f"{text} is a URL with one slash, as a path makes of it; expected it as text, with two")
    if not colon:
        return LocalStorage(Path(where))
    if scheme == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise InputError(f"{text} is on host {host!r}; expected file:///path, of this machine")
        return LocalStorage(Path("/" + unquote(path)))
    if "@" in rest.partition("/")[0]:
        raise InputError(f"a URL {scheme}://...@... has credentials in it; expected {scheme}://name/path without")
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise InputError(f"{text}: scheme {scheme!r} is not known; expected a path, or one of {known}")
    return _in_memory(text, rest) if scheme == "memory" else _in_bucket(text, scheme, rest)


def place_of(where: str | Path) -> Storage:
    """The storage at a path or URL that somebody will find again. Raises `InputError` where nobody will."""
    if os.fspath(where) == "memory://":
        raise InputError("memory:// is another place whenever it is opened; expected memory://name")
    return open_storage(where)


def _in_memory(url: str, name: str) -> "ObjectStorage":
    import tensorstore as ts  # here, since it takes a while

    from abi_jax.wdbx.storage.kvstore import Objects
    from abi_jax.wdbx.storage.objects import ObjectStorage

    if not _shared:
        _shared.append(ts.Context())
    context = _shared[0] if name else ts.Context()
    spec = {"driver": "memory", "path": f"{name.strip('/')}/" if name else ""}
    return ObjectStorage(Objects(url, ts.KvStore.open(spec, context=context).result()))


def _in_bucket(url: str, scheme: str, rest: str) -> "ObjectStorage":
    import tensorstore as ts

    from abi_jax.wdbx.storage.conditions import check_google, check_s3
    from abi_jax.wdbx.storage.kvstore import Objects
    from abi_jax.wdbx.storage.objects import ObjectStorage

    bucket, _, path = rest.partition("/")
    path = path.strip("/")
    if not bucket or not path:
        raise InputError(f"{url} does not name a place for a store; expected {scheme}://bucket/path")
    spec: dict[str, Any] = {"driver": "gcs" if scheme == "gs" else "s3", "bucket": bucket, "path": f"{path}/"}
    endpoint = ""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
        if endpoint:
            spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
        elif region:
            spec |= {"aws_region": region}
        if "AWS_ACCESS_KEY_ID" in os.environ:  # else tensorstore complains of other places where there are none
            spec |= {"aws_credentials": {"type": "environment"}}
    context = ts.Context({"s3_request_retries": RETRIES, "gcs_request_retries": RETRIES})
    try:
        store = ts.KvStore.open(spec, context=context).result()
    except ValueError as error:
        raise InputError(f"{url}: {error}; expected {scheme}://bucket/path") from None
    objects = Objects(url.rstrip("/"), store, sentinel="wdbx.json" if scheme == "gs" else "")
    objects.names("wdbx.json")
    if endpoint and not (urlsplit(endpoint).hostname or "").endswith(AMAZON):
        return ObjectStorage(objects, check=lambda: check_s3(objects, spec))
    if scheme == "gs" and os.environ.get("TENSORSTORE_GCS_HTTP_URL"):
        return ObjectStorage(objects, check=lambda: check_google(objects))
    return ObjectStorage(objects)
