"""What stands between a harness and the world: a proxy that sees each of its requests as a step and can do something about it.

It swaps the session's token for the model's key, as the credential proxy does.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A model answers within this, and a tool too.
DEADLINE = 120
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
# Requests that come as often as the clock wants them to, and change nothing.
UNCOUNTED = {"lease", "deltas", "wait"}


@dataclass
class Step:
    """One request."""

    number: int
    verb: str
    body: dict

    def appends(self, kind: str) -> bool:
        """Whether it wants to append an event of this type."""
        events = self.body.get("events", []) + self.body.get("then", [])
        return any(event.get("type") == kind for event in events)


@dataclass
class Fault:
    """What happens to requests. `before` sees each before it is passed on, and may wait; `after` when its answer is there."""

    before: Callable[[Door, Step], None] = lambda door, step: None
    after: Callable[[Door, Step], None] = lambda door, step: None
    # Whether the answer of a request that was carried out is replaced by 503.
    loses: Callable[[Door, Step], bool] = lambda door, step: False


def killed_at(number: int, *, late: bool) -> Fault:
    """The harness is killed once: before the step is passed on, or when it was carried out and the harness does not know yet."""

    def kill(door: Door, step: Step) -> None:
        if step.number == number and not door.killed:
            door.killed = True
            door.kill()

    return Fault(after=kill) if late else Fault(before=kill)


class Door:
    """The proxy of one session."""

    def __init__(self, service: str, model: str, model_key: str, fault: Fault) -> None:
        self.service, self.model, self.model_key, self.fault = service, model, model_key, fault
        self.process: subprocess.Popen[bytes] | None = None
        self.session: object = None
        self.steps: list[Step] = []
        self.killed = False
        self.lock = threading.Lock()
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                door.handle(self)

            do_POST = do_DELETE = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A harness that was killed hangs up."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def kill(self) -> None:
        """The harness is gone, and all that it has started."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def _step(self, path: str, body: bytes) -> Step | None:
        verb = re.sub(r"^/harness/v1/sessions/[^/]+/|^/model/v1/", "", path.split("?")[0])
        if "wait_seconds" in path and "wait_seconds=0" not in path:
            verb = "wait"
        try:
            parsed = json.loads(body) if body else {}
        except json.JSONDecodeError:
            parsed = {}
        with self.lock:
            step = Step(0 if verb in UNCOUNTED else 1 + sum(1 for step in self.steps if step.number), verb, parsed)
            self.steps.append(step)
        return step

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        step = self._step(request.path, body)
        self.fault.before(self, step)
        to_model = request.path.startswith("/model/")
        target = urllib.parse.urlsplit(self.model if to_model else self.service)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        if to_model:
            headers = {name: value for name, value in headers.items() if name.lower() not in ("x-api-key", "authorization")}
            headers["x-api-key"] = self.model_key
        upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=DEADLINE)
        try:
            upstream.request(request.command, request.path.removeprefix("/model"), body, headers)
            answer = upstream.getresponse()
            if step.number and not to_model and "text/event-stream" not in (answer.getheader("content-type") or ""):
                self._whole(request, step, answer)
            else:
                self._streamed(request, step, answer)
        finally:
            upstream.close()
            request.close_connection = True

    def _whole(self, request: BaseHTTPRequestHandler, step: Step, answer: http.client.HTTPResponse) -> None:
        content = answer.read()
        self.fault.after(self, step)
        status = answer.status
        if self.fault.loses(self, step) and status < 300:
            status, content = 503, b'{"type":"error","error":{"type":"api_error","message":"lost on the way"}}'
        self._head(request, status, answer, ("content-length", str(len(content))))
        request.wfile.write(content)

    def _streamed(self, request: BaseHTTPRequestHandler, step: Step, answer: http.client.HTTPResponse) -> None:
        self._head(request, answer.status, answer, ("transfer-encoding", "chunked"))
        while chunk := answer.read1(65536):
            request.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            request.wfile.flush()
        self.fault.after(self, step)
        request.wfile.write(b"0\r\n\r\n")

    @staticmethod
    def _head(request: BaseHTTPRequestHandler, status: int, answer: http.client.HTTPResponse, length: tuple[str, str]) -> None:
        request.send_response_only(status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                request.send_header(name, value)
        request.send_header(*length)
        request.send_header("connection", "close")
        request.end_headers()
