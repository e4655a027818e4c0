"""A hub: an HTTP server that speaks the part of the Hugging Face hub's protocol that a download uses.

Large files are answered, as on the hub, by a redirect to another host.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    start: int
    """First byte asked for."""
    token: str | None
    host: str


@dataclass
class Repository:
    """Files of a repository at its newest commit, and at older ones."""

    commits: dict[str, dict[str, bytes]]
    stated: dict[str, str] = field(default_factory=dict)
    """SHA-256 that the hub states for a file instead of its own."""

    @property
    def newest(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Hub:
    """What the server has, what it was asked, and how it misbehaves."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    """Path of a file to the number of bytes after which the connection is cut, once."""
    down_after_cut: bool = False
    """Whether the server refuses work from a cut on."""
    down: bool = False
    surplus: dict[str, bytes] = field(default_factory=dict)
    """Path of a file to bytes that are sent after it, which the listing does not count."""

    def downloads(self) -> list[Request]:
        """Requests for files' contents."""
        return [each for each in self.requests if each.path.startswith("/cdn/")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            host = self.headers["Host"].split(":")[0]
            hub.requests.append(Request(self.command, path, start, self.headers.get("Authorization"), host))
            if hub.down:
                return self._send(503, b"out of order")
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                return self._info(name, revision)
            kind, _, rest = path.lstrip("/").partition("/")
            if kind == "cdn":
                return self._content(*_split(rest), start)
            name, revision, file = _split(path.lstrip("/").replace("/resolve/", "/", 1))
            return self._redirect(name, revision, file)

        def _info(self, name: str, revision: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            commit = repository.newest if revision == "main" else revision
            if commit not in repository.commits:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            siblings = [
                _sibling(path, data, repository.stated.get(path, sha256(data)))
                for path, data in repository.commits[commit].items()
            ]
            self._send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

        def _redirect(self, name: str, revision: str, file: str) -> None:
            port = hub.endpoint.rsplit(":", 1)[1]
            self._send(302, b"", {"Location": f"http://localhost:{port}/cdn/{name}/{revision}/{file}"})

        def _content(self, name: str, revision: str, file: str, start: int) -> None:
            data = hub.repositories[name].commits[revision][file] + hub.surplus.get(file, b"")
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            cut = hub.cuts.pop(file, None)
            if cut is None:
                return self._send(206 if start else 200, data[start:], headers)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut])
            self.close_connection = True
            hub.down = hub.down_after_cut

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _split(path: str) -> tuple[str, str, str]:
    owner, name, revision, file = path.split("/", 3)
    return f"{owner}/{name}", revision, file


def _sibling(path: str, data: bytes, checksum: str) -> dict[str, object]:
    sibling: dict[str, object] = {
        "rfilename": path,
        "size": len(data),
        "blobId": hashlib.sha1(data).hexdigest(),
    }
    if not path.endswith(".json"):
        sibling["lfs"] = {"size": len(data), "sha256": checksum, "pointerSize": 134}
    return sibling
