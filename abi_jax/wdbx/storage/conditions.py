"""Whether a server looks at the conditions of writes, as Amazon's and Google's do; some that are like them do not.

Before it creates an object in S3, tensorstore asks whether it is there, and so cannot tell. One request of our own can.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from time import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from abi_jax.wdbx.errors import StorageError, WdbxError
from abi_jax.wdbx.storage.kvstore import Objects

SECONDS = 30.0
REFUSED = (409, 412)  # answers to a write under the condition that an object is new, which it is not


def check_google(objects: Objects) -> None:
    """Raises `WdbxError` where a server that speaks as Google's does ignores conditions."""
    key = _ended_pin()
    objects.put(key, b"there")
    try:
        made = objects.create(key, b"there again")
    finally:
        objects.delete([key])
    if made is not None:
        raise _ignored(objects.url, "the server of TENSORSTORE_GCS_HTTP_URL", "200")


def check_s3(objects: Objects, spec: Mapping[str, Any]) -> None:
    """Raises `WdbxError` where a server that speaks as S3 does ignores conditions, or cannot be asked.

    spec: of tensorstore: `endpoint`, `aws_region`, `bucket`, `path`.
    """
    if not os.environ.get("AWS_ACCESS_KEY_ID") or not os.environ.get("AWS_SECRET_ACCESS_KEY"):
        raise WdbxError(
            f"{objects.url}: whether {spec['endpoint']} looks at conditions of writes is asked with the credentials in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; expected them to be set"
        )
    key = _ended_pin()
    objects.put(key, b"there")
    try:
        status = _create(f"{spec['endpoint']}/{spec['bucket']}/{quote(spec['path'] + key)}", spec["aws_region"])
    except (URLError, OSError) as error:
        raise StorageError(f"{objects.url}: {spec['endpoint']} does not answer: {error}") from None
    finally:
        objects.delete([key])
    if status not in REFUSED:
        raise _ignored(objects.url, spec["endpoint"], str(status))


def _ended_pin() -> str:
    """A key that means nothing, and is taken away by whoever writes to the store."""
    return f"pins/{uuid4().hex}-{int(time() * 1e6):020d}"


def _ignored(url: str, server: str, status: str) -> WdbxError:
    return WdbxError(
        f"{url}: {server} answered {status} to a write on the condition that an object is new, which it was not; "
        "expected 412: without conditional writes two writers cannot be told apart"
    )


def _create(url: str, region: str) -> int:
    """Asks to write an empty object under the condition that there is none; the status of the answer."""
    headers = signed("PUT", url, region, datetime.now(UTC), os.environ)
    request = Request(url, data=b"", headers={**headers, "If-None-Match": "*"}, method="PUT")
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def signed(method: str, url: str, region: str, now: datetime, secrets: Mapping[str, str]) -> dict[str, str]:
    """The headers that sign a request without a body, as Signature Version 4 wants them."""
    parts, digest, moment = urlsplit(url), hashlib.sha256(b"").hexdigest(), now.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": moment}
    if token := secrets.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    asked = f"{method}\n{parts.path}\n{parts.query}\n{lines}\n{names}\n{digest}"
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(asked.encode()).hexdigest()}"
    key = b"AWS4" + secrets["AWS_SECRET_ACCESS_KEY"].encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{secrets['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return headers
