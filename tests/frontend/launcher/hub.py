"""A small hub over loopback: what the Hugging Face hub answers of a few repositories, and how it may fail."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "cafe"


@dataclass
class Hub:
    """Repositories by name, each of files by name; and what goes wrong."""

    repositories: dict[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    cut_after: int | None = None  # bytes of each answer of the CDN
    wrong: bool = False  # bytes are others than the hub has
    ranges: list[str] = field(default_factory=list)  # that were asked for, one for each transfer
    requests: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)  # that the CDN was shown
    address: str = ""


def _entry(name: str, data: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
    if name.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at `hub.address`; its CDN is the same server by another name."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(path)
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
            file = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            found = api or file
            name = api[1] if api else file[2] if file else ""
            if found is None or name not in hub.repositories:
                return self.fail(401, "RepoNotFound")
            if name in hub.gated and "Authorization" not in self.headers:
                return self.fail(403, "GatedRepo")
            if api:
                if api[2] not in ("main", COMMIT):
                    return self.fail(404, "RevisionNotFound")
                siblings = [_entry(*item) for item in hub.repositories[name].items()]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None
            assert file is not None
            if not file[1]:
                self.send_response(302)
                self.send_header("Location", f"{hub.address.replace('127.0.0.1', 'localhost')}/cdn{path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            hub.tokens.append(self.headers.get("Authorization", ""))
            data = hub.repositories[name][file[4]]
            asked = self.headers.get("Range", "")
            hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
            rest = (bytes(len(data)) if hub.wrong else data)[start:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest if hub.cut_after is None else rest[: hub.cut_after])
            self.close_connection = True
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
