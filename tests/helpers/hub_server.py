"""A small hub on this machine: the calls that the real libraries make for datasets and models, over HTTP.

It serves repositories from memory with byte ranges (`repositories[name] = {path: bytes}`, a model's name being
"models/..."), keeps the commits that `push` replaces, knows gated repositories, sends readers of the `signed` ones to
addresses that are good for one request, and fails as `faults` say.
"""

import gzip
import hashlib
import io
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.processes import start
from tests.helpers.text import REPOSITORY

SHA = "a" * 40  # of a repository nobody has pushed to


@dataclass
class Fault:
    """What happens to `times` GET requests whose path contains `path`, after the first `after`: the other fields."""

    path: str
    times: int = 1
    after: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the body that still arrive
    stall: float = 0.0  # seconds of silence before the answer
    garbled: bool = False  # every byte of the body is another one


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else each answer waits 40 ms for an acknowledgement
    hub: "HubServer"
    drop_after: int | None = None
    garbled = False

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self.drop_after, self.garbled = None, False
        fault = self.hub.next_fault(unquote(self.path))
        if fault is not None:
            time.sleep(fault.stall)
            self.drop_after, self.garbled = fault.drop_after, fault.garbled
            if fault.status is not None:
                self.hub.requests.append(f"GET {self.path}")
                return self._send(fault.status, b"{}", fault.headers)
        return self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "signed":
            _, signature, *parts = parts
            if signature not in self.hub.signatures:
                return self._send(403, b"<Error>Request has expired</Error>", {})
            self.hub.signatures.remove(signature)
        elif self.command == "GET" and parts[0] == "datasets" and "/".join(parts[1:3]) in self.hub.signed:
            return self._send(302, b"", {"Location": f"{self.hub.url}/signed/{self.hub.sign()}{self.path}"})
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.authorizations.add(self.headers.get("Authorization"))
        if parts[0] == "api" and parts[1] in ("datasets", "models") and len(parts) >= 4:
            self._api(_name(parts[1], parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            self._file(_name("datasets", parts[1:3]), parts[4], "/".join(parts[5:]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(_name("models", parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "EntryNotFound")

    def _api(self, name: str, rest: list[str]) -> None:
        if name not in self.hub.repositories:
            return self._error(401, "RepoNotFound")
        sha, files = self.hub.commit(name, rest[1] if len(rest) > 1 else "main")
        if files is None:
            return self._error(404, "RevisionNotFound")
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            gated = "manual" if name in self.hub.gated else False
            about = {"id": name.removeprefix("models/"), "sha": sha, "siblings": siblings, "private": False}
            return self._json({**about, "gated": gated, "tags": []})
        if rest[0] == "tree":
            return self._json(_tree(files, "/".join(rest[2:]), "recursive=true" in self.path.lower()))
        return self._error(404, "EntryNotFound")

    def _file(self, name: str, revision: str, path: str) -> None:
        if name not in self.hub.repositories:
            return self._error(401, "RepoNotFound")
        if name in self.hub.gated:
            return self._error(403, "GatedRepo")
        sha, files = self.hub.commit(name, revision)
        data = (files or {}).get(path)
        if data is None:
            return self._error(404, "RevisionNotFound" if files is None else "EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not asked:
            return self._send(200, data, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        begin, end = (int(first), int(last or len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
        end = min(end, len(data) - 1)
        self.hub.ranges.append((f"{name}/{path}", begin, end + 1))
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
        if self.garbled:
            data = bytes(byte ^ 0x55 for byte in data)
        if self.command != "HEAD":
            self.close_connection = self.close_connection or self.drop_after is not None
            self.wfile.write(data[: self.drop_after])


def _name(kind: str, parts: list[str]) -> str:
    return "/".join(parts if kind == "datasets" else [kind, *parts])


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict] = {}
    for path, data in files.items():
        if path.startswith(prefix):
            head, *deeper = path.removeprefix(prefix).split("/")
            kind = {"type": "directory", "size": 0} if deeper else {"type": "file", "size": len(data)}
            entries[prefix + head] = {"path": prefix + head, "oid": hashlib.sha1(path.encode()).hexdigest(), **kind}
            if recursive:
                oid = hashlib.sha1(path.encode()).hexdigest()
                entries[path] = {"path": path, "oid": oid, "type": "file", "size": len(data)}
    return list(entries.values())


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that hang up on a stall are part of the tests."""


class HubServer:
    """`with HubServer() as hub:` serves `hub.repositories` at `hub.url`."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.signed: set[str] = set()
        self.signatures: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.authorizations: set[str | None] = set()
        self.ranges: list[tuple[str, int, int]] = []  # (repository and path, first byte, byte after the last)
        self._replaced: dict[str, list[dict[str, bytes]]] = {}
        self._lock = threading.Lock()
        self._signed = 0
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def push(self, name: str, files: dict[str, bytes]) -> None:
        """Make a new commit of a repository; earlier ones stay readable by their SHAs."""
        self._replaced.setdefault(name, []).append(self.repositories[name])
        self.repositories[name] = files

    def commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes] | None]:
        """Return a revision's commit and files; None for the files of a commit that is not there."""
        commits = [*self._replaced.get(name, []), self.repositories[name]]
        shas = [chr(ord("a") + number) * 40 for number in range(len(commits))]
        sha = shas[-1] if revision == "main" else revision
        return sha, commits[shas.index(sha)] if sha in shas else None

    def sign(self) -> str:
        """Return a signature that is good for one request."""
        with self._lock:
            self._signed += 1
            self.signatures.add(str(self._signed))
            return str(self._signed)

    def next_fault(self, path: str) -> Fault | None:
        """Take one of the faults that are due for a request, if any."""
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    if fault.after == 0:
                        fault.times -= 1
                        return fault
                    fault.after -= 1
        return None

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def parquet(rows: list[dict], row_group_size: int = 40, compression: str = "snappy", keep: int | None = None) -> bytes:
    """The first `keep` of these rows."""
    buffer, table = io.BytesIO(), pa.Table.from_pylist(rows)[:keep]
    pq.write_table(table, buffer, row_group_size=row_group_size, compression=compression)
    return buffer.getvalue()


def with_bad_page(data: bytes, group: int) -> bytes:
    """Overwrite the middle of a row group's first column: of one of its pages."""
    column = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(group).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    middle = begin + column.total_compressed_size // 2
    return data[: middle - 40] + b"\xff" * 80 + data[middle + 40 :]


def json_gz(rows: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def run_worker(
    tmp_path: Path,
    endpoint: str,
    worker: str = "hub.py",
    environment: dict[str, str] | None = None,
    **task,
) -> dict:
    """Run a worker of this folder against a hub; `task` is what it reads from standard input."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    script = REPOSITORY / "tests" / "helpers" / "workers" / worker
    process = start(script, cwd=tmp_path, variables={**settings, **(environment or {})})
    printed, _ = process.communicate(json.dumps(task), timeout=150)
    assert process.wait() == 0, printed
    return json.loads(printed.splitlines()[-1])
