"""A small fake W&B server on 127.0.0.1: as much of it as a run in online mode needs, and a record of what it was sent.

The operations are those that wandb 0.31 sends; an unknown one gets an empty answer and is recorded like the others.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "tester"


@dataclass
class Backend:
    """What has arrived.

    Attributes:
        url: For ``WANDB_BASE_URL``.
        operations: GraphQL operations in the order of arrival: name and variables.
        history: Rows of the run's history.
        summary: The run's summary, in JSON; a run that is resumed is given it.
        log: One word for each thing that happened, in order: an operation's name, "history", "complete" (the run was
            ended), or what a test has written with ``POST /mark/<word>``.
    """

    url: str = ""
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: str | None = None
    log: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, name: str) -> list[dict[str, Any]]:
        """Variables of every operation of that name."""
        return [variables for operation, variables in self.operations if operation == name]

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Record an operation and answer it."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else "anonymous"
        with self.lock:
            self.operations.append((name, variables))
            self.log.append(name)
        return {"data": self.answer(name, variables)}

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What the client reads of an operation's result."""
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": _bucket(variables), "inserted": True}}
        if name == "RunResumeStatus" and self.summary is not None:
            return {"model": _resumable(variables, self.summary)}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "run-node", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            sequence = {"id": "sequence", "latestArtifact": {"id": "artifact", "versionIndex": 0}}
            return {
                "createArtifact": {"artifact": {"id": "artifact", "state": "COMMITTED", "artifactSequence": sequence}}
            }
        if name == "ArtifactType":  # asked before a table is logged
            return {"project": None}
        if name == "NotifyScriptableRunAlert":
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "Viewer":
            viewer = {"id": "viewer", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if name == "ServerInfo":
            versions = {"max_cli_version": "99.0.0", "min_cli_version": "0.0.1"}
            return {"serverInfo": {"cliVersionInfo": versions, "features": []}}
        if name == "UpsertView2":
            return {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}
        return {}

    def file_stream(self, content: dict[str, Any]) -> None:
        """Record a piece of the run's stream."""
        lines = content.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        summary = content.get("files", {}).get("wandb-summary.json", {}).get("content", [])
        with self.lock:
            self.summary = summary[-1] if summary else self.summary
            if lines:
                self.history += [json.loads(line) for line in lines]
                self.log.append("history")
            if content.get("complete"):
                self.log.append("complete")


def _bucket(variables: dict[str, Any]) -> dict[str, Any]:
    project = {"id": "project", "name": variables.get("project"), "entity": {"id": "entity", "name": ENTITY}}
    name = variables.get("name")
    bucket = {"id": base64.b64encode(f"Run:v1:{name}".encode()).decode(), "name": name, "displayName": name}
    return {**bucket, "description": "", "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}


def _resumable(variables: dict[str, Any], summary: str) -> dict[str, Any]:
    counts = dict.fromkeys(("logLineCount", "historyLineCount", "eventsLineCount"), 1)
    tails = {"historyTail": json.dumps([json.dumps({"_step": 0, "_runtime": 1})]), "eventsTail": "[]"}
    kept = {"summaryMetrics": summary, "config": "{}", "wandbConfig": '{"t": 1}', "tags": []}  # "t": it has begun
    name = {"id": "run", "name": variables["name"], "displayName": variables["name"]}
    entity = {"id": "entity", "name": ENTITY}
    return {"id": "project", "name": "tests", "entity": entity, "bucket": {**name, **counts, **tails, **kept}}


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/graphql":
                request = json.loads(body)
                self._reply(backend.graphql(request["query"], request.get("variables") or {}))
            elif self.path.endswith("/file_stream"):
                backend.file_stream(json.loads(body))
                self._reply({})
            elif self.path.startswith("/mark/"):
                with backend.lock:
                    backend.log.append(self.path.removeprefix("/mark/"))
                self._reply({})
            else:
                self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        do_GET = do_PUT  # noqa: N815  # http.server's name

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _reply(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


@contextmanager
def fake_backend() -> Iterator[Backend]:
    """A server on a free port, for as long as the block lasts."""
    backend = Backend()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(backend))
    server.daemon_threads = True
    backend.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
