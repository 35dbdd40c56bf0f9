"""An object store of one process: what S3 and Google Cloud Storage answer to the requests that tensorstore sends.

Objects, conditional writes and listings in pages are those of the services; signatures are not looked at. It is told to
deny, to fail, to lose an answer, or to ignore conditions.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 7  # names in a listing: so few that every store has listings of several pages
Fault = Callable[[str, str], str]


@dataclass
class Server:
    """What it holds, and how it behaves.

    objects: by bucket and key, content and generation. fault: asked with the method and the key of every request: ""
    to answer, "deny", "unavailable", "lost" (done, and the connection ends before the answer), "gone" (not done, and
    the connection ends). conditions: whether conditions of writes are looked at.
    """

    objects: dict[str, dict[str, tuple[bytes, int]]] = field(default_factory=dict)
    fault: Fault = lambda method, key: ""
    conditions: bool = True
    requests: Counter[str] = field(default_factory=Counter)
    address: str = ""
    changing: threading.RLock = field(default_factory=threading.RLock)
    _generation: int = 1000

    def put(self, bucket: str, key: str, data: bytes) -> int:
        """Writes an object; its generation."""
        with self.changing:
            self._generation += 1
            self.objects[bucket][key] = data, self._generation
            return self._generation


def etag(data: bytes) -> str:
    """What S3 calls the generation of an object: it is of its content."""
    return f'"{hashlib.md5(data).hexdigest()}"'


@contextmanager
def serve(*buckets: str) -> Iterator[Server]:
    """Runs a server with these buckets, on a port of its own."""
    server = Server({bucket: {} for bucket in buckets})
    handler = type("Handler", (_Handler,), {"store": server})
    with _Quiet(("127.0.0.1", 0), handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    store: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        google = url.path.startswith(("/storage/v1/", "/upload/storage/v1/"))
        api: type[_S3] | type[_Google] = _Google if google else _S3
        bucket, key = api.place(url.path, asked)
        self.store.requests[f"{self.command} {key}"] += 1
        fault = self.store.fault(self.command, key)
        if fault == "gone":
            self.close_connection = True
            return
        if fault == "unavailable":
            self._answer(503, b"", {})
            return
        if fault == "deny":
            self._answer(403, api.error("AccessDenied"), {})
            return
        with self.store.changing:
            objects = self.store.objects.get(bucket)
            if objects is None:
                answer: Answer = 404, api.error("NoSuchBucket"), {}
            else:
                answer = api(self.store, bucket, objects, self.headers, asked).answer(self.command, key, body)
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(*answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


Answer = tuple[int, bytes, dict[str, str]]


@dataclass
class _Api:
    store: Server
    bucket: str
    objects: dict[str, tuple[bytes, int]]
    headers: Message
    asked: dict[str, str]

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def ranged(self, data: bytes, headers: dict[str, str]) -> Answer:
        wanted = self.header("Range")
        if wanted is None:
            return 200, data, headers
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(data) - int(last)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= stop:
            return 416, b"", headers
        return 206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}


class _S3(_Api):
    @staticmethod
    def place(path: str, asked: dict[str, str]) -> tuple[str, str]:
        bucket, _, key = path.lstrip("/").partition("/")
        return bucket, unquote(key)

    @staticmethod
    def error(code: str) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()

    def answer(self, method: str, key: str, body: bytes) -> Answer:
        if not key:
            return self.list()
        there = self.objects.get(key)
        if method in ("GET", "HEAD"):
            return self.read(there)
        if method == "DELETE":
            self.objects.pop(key, None)
            return 204, b"", {}
        none_match, match = self.header("If-None-Match"), self.header("If-Match")
        if self.store.conditions:
            if none_match == "*" and there is not None:
                return 412, self.error("PreconditionFailed"), {}
            if match is not None and there is None:
                return 404, self.error("NoSuchKey"), {}
            if match is not None and there is not None and match != etag(there[0]):
                return 412, self.error("PreconditionFailed"), {}
        self.store.put(self.bucket, key, body)
        return 200, b"", {"ETag": etag(body)}

    def read(self, there: tuple[bytes, int] | None) -> Answer:
        if there is None:
            return 404, self.error("NoSuchKey"), {}
        tag = etag(there[0])
        if self.header("If-Match") not in (None, tag):
            return 412, self.error("PreconditionFailed"), {}
        if self.header("If-None-Match") == tag:
            return 304, b"", {"ETag": tag}
        return self.ranged(there[0], {"ETag": tag})

    def list(self) -> Answer:
        prefix = self.asked.get("prefix", "")
        after = self.asked.get("continuation-token") or self.asked.get("start-after") or ""
        names = sorted(name for name in self.objects if name.startswith(prefix) and name > after)
        page, more = names[:PAGE], len(names) > PAGE
        sizes = {name: len(self.objects[name][0]) for name in page}
        said = "".join(f"<Contents><Key>{escape(n)}</Key><Size>{sizes[n]}</Size></Contents>" for n in page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        said = f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}{said}"
        kind = 'ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return 200, f'<?xml version="1.0"?><{kind}>{said}</ListBucketResult>'.encode(), {}


class _Google(_Api):
    @staticmethod
    def place(path: str, asked: dict[str, str]) -> tuple[str, str]:
        bucket, _, key = path.partition("/b/")[2].partition("/o")
        return bucket, unquote(key.lstrip("/")) or asked.get("name", "")

    @staticmethod
    def error(code: str) -> bytes:
        return json.dumps({"error": {"message": code}}).encode()

    def answer(self, method: str, key: str, body: bytes) -> Answer:
        if not key:
            return self.list()
        there = self.objects.get(key)
        generation = 0 if there is None else there[1]
        if method in ("GET", "HEAD"):
            return self.read(there, generation)
        wanted = self.asked.get("ifGenerationMatch")
        if self.store.conditions and wanted is not None and int(wanted) != generation:
            return 412, self.error("conditionNotMet"), {}
        if method == "DELETE":
            found = self.objects.pop(key, None)
            return (204 if found else 404), b"", {}
        made = self.store.put(self.bucket, key, body)
        return 200, self.about(key, body, made), {"Content-Type": "application/json"}

    def read(self, there: tuple[bytes, int] | None, generation: int) -> Answer:
        if there is None:
            return 404, self.error("notFound"), {}
        if int(self.asked.get("ifGenerationNotMatch", -1)) == generation:
            return 304, b"", {}
        return self.ranged(there[0], {"x-goog-generation": str(generation)})

    def about(self, name: str, data: bytes, generation: int) -> bytes:
        said = {"name": name, "bucket": self.bucket, "generation": str(generation), "size": str(len(data))}
        return json.dumps(said | {"metageneration": "1"}).encode()

    def list(self) -> Answer:
        start, end = self.asked.get("startOffset", ""), self.asked.get("endOffset", "")
        token = self.asked.get("pageToken", "")
        names = sorted(n for n in self.objects if n >= start and (not end or n < end) and n > token)
        said: dict[str, object] = {"items": [json.loads(self.about(n, *self.objects[n])) for n in names[:PAGE]]}
        if len(names) > PAGE:
            said["nextPageToken"] = names[PAGE - 1]
        return 200, json.dumps(said).encode(), {"Content-Type": "application/json"}
