"""A small hub on this machine: the calls that the real `datasets` and `huggingface_hub` libraries make, over HTTP.

It serves repositories from memory (`repositories[name] = {path: bytes}`) with byte ranges, knows gated repositories,
and can cut the connection of the next so many range requests.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SHA = "a" * 40


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: "HubServer"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.hub.requests.append(f"{self.command} {self.path}")
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[:1] == ["datasets"] and len(parts) > 5 and parts[3] == "resolve":
            self._file("/".join(parts[1:3]), "/".join(parts[5:]))
        else:
            self._error(404, "EntryNotFound")

    def _api(self, name: str, rest: list[str]) -> None:
        if name not in self.hub.repositories:
            return self._error(401, "RepoNotFound")
        files = self.hub.repositories[name]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            gated = "manual" if name in self.hub.gated else False
            return self._json(
                {"id": name, "sha": SHA, "siblings": siblings, "private": False, "gated": gated, "tags": []}
            )
        if rest[0] == "tree":
            return self._json(_tree(files, "/".join(rest[2:])))
        return self._error(404, "EntryNotFound")

    def _file(self, name: str, path: str) -> None:
        if name not in self.hub.repositories:
            return self._error(401, "RepoNotFound")
        if name in self.hub.gated:
            return self._error(403, "GatedRepo")
        data = self.hub.repositories[name].get(path)
        if data is None:
            return self._error(404, "EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not asked:
            return self._send(200, data, headers)
        if self.hub.cuts > 0 and path == self.hub.cut_path:
            self.hub.cuts -= 1
            self.close_connection = True
            return None
        first, last = asked.removeprefix("bytes=").split("-")
        begin, end = (int(first), int(last or len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
        end = min(end, len(data) - 1)
        return self._send(206, data[begin : end + 1], {**headers, "Content-Range": f"bytes {begin}-{end}/{len(data)}"})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _tree(files: dict[str, bytes], folder: str) -> list[dict]:
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict] = {}
    for path, data in files.items():
        if path.startswith(prefix):
            head, *deeper = path.removeprefix(prefix).split("/")
            kind = {"type": "directory", "size": 0} if deeper else {"type": "file", "size": len(data)}
            entries[prefix + head] = {"path": prefix + head, "oid": hashlib.sha1(path.encode()).hexdigest(), **kind}
    return list(entries.values())


class HubServer:
    """`with HubServer() as hub:` serves `hub.repositories` at `hub.url`."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.cuts, self.cut_path = 0, ""
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
