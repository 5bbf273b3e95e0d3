"""Holds many event streams open at the session service, has events sent to all of them, and says what the service's memory was.

    streams.py PROGRAMS CHART_OBJECTS CRDS STREAMS RESULT

Twice, each time with a control plane of its own: every stream on a session of its own, and all streams on one session. The harness of each
session is played here, by a pod's token; the RESULT is read by e2e/src/bench/streams.rs.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import signal
import ssl
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))

from local import GROUP, Client, Stack, manifests  # noqa: E402

NAMESPACE = "streams"
OBJECTS = f"{GROUP}/namespaces/{NAMESPACE}"
ROUNDS = 10
# A message comes in as many previews, and is as long as this in the end.
PREVIEWS = 8
MESSAGE_BYTES = 1024
HARNESSES_AT_ONCE = 16
OPENED_AT_ONCE = 64
OPEN_SECONDS = 120
ROUND_SECONDS = 300
# A stream, and the connection of its harness.
FILES_OF_A_STREAM = 2
OTHER_FILES = 256


class Failed(Exception):
    """The service did not do what is measured."""


class Harness:
    """One session, and the pod that serves it. What the operator and the kubelet do on a cluster is done here."""

    def __init__(self, stack: Stack, name: str) -> None:
        api = Client(stack.kube_url, stack.admin_token, stack.ca)
        operator = Client(stack.url, stack.operator.token, stack.service_ca)
        made = {"apiVersion": "longhand.dev/v1alpha1", "kind": "AgentSession", "metadata": {"name": name},
                "spec": {"agentRef": {"name": "agent"}}}  # fmt: skip
        uid = api.do("POST", f"{OBJECTS}/agentsessions", made)["metadata"]["uid"]  # type: ignore[index]
        path = f"/internal/v1/namespaces/{NAMESPACE}/sessions/{name}"
        self.session: str = operator.do("PUT", path, {"uid": uid})["sessionId"]  # type: ignore[index]
        self._wire = Client(stack.url, self._pod(api, name), stack.service_ca)
        api.close()
        operator.close()

    @staticmethod
    def _pod(api: Client, name: str) -> str:
        """Makes a pod, names it as the session's harness, and gives its token."""
        spec = {"serviceAccountName": "default", "containers": [{"name": "harness", "image": "harness"}]}
        core = f"/api/v1/namespaces/{NAMESPACE}"
        uid = api.do("POST", f"{core}/pods", {"metadata": {"name": name}, "spec": spec})["metadata"]["uid"]  # type: ignore[index]
        status = {"harness": {"generation": 1, "podName": name, "podUID": uid, "failures": 0}}
        kind = "application/merge-patch+json"
        api.do("PATCH", f"{OBJECTS}/agentsessions/{name}/status", {"status": status}, kind=kind)
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}
        asked = {"spec": {"audiences": ["longhand"], "expirationSeconds": 3600, "boundObjectRef": bound}}
        return api.do("POST", f"{core}/serviceaccounts/default/token", asked)["status"]["token"]  # type: ignore[index]

    def speak(self) -> None:
        """Takes the session, as after a pause, and says something: its previews first."""
        path = f"/harness/v1/sessions/{self.session}"
        claim = self._wire.do("POST", f"{path}/claim", {})
        epoch, head = claim["epoch"], claim["head"]  # type: ignore[index]
        event, part = f"sevt_{secrets.token_hex(12)}", "x" * (MESSAGE_BYTES // PREVIEWS)
        delta = {"type": "content_delta", "index": 0, "content": {"type": "text", "text": part}}
        frames = [{"type": "event_start", "event": {"type": "agent.message", "id": event}}]
        frames += [{"type": "event_delta", "event_id": event, "delta": delta}] * PREVIEWS  # type: ignore[list-item]
        self._wire.do("POST", f"{path}/deltas", {"epoch": epoch, "frames": frames})
        said = {"id": event, "type": "agent.message", "content": [{"type": "text", "text": part * PREVIEWS}]}
        self._wire.do("POST", f"{path}/append", {"epoch": epoch, "expected_head": head, "events": [said]})

    def close(self) -> None:
        self._wire.close()


class Stream:
    """A client that watches a session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._unread = b""

    @classmethod
    async def open(cls, url: str, context: ssl.SSLContext, token: str, session: str) -> Stream:
        parts = urllib.parse.urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        target = f"/v1/sessions/{session}/events/stream?event_deltas[]=agent.message"
        head = f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {token}\r\naccept: text/event-stream\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise Failed(f"a stream was not opened: {answer.decode(errors='replace')}")
        return cls(reader, writer)

    async def _frame(self) -> bytes:
        while b"\n\n" not in self._unread:
            size = int(await self._reader.readline() or b"0", 16)
            if size == 0:
                raise Failed("a stream has ended")
            self._unread += await self._reader.readexactly(size)
            await self._reader.readexactly(len(b"\r\n"))
        frame, self._unread = self._unread.split(b"\n\n", 1)
        return frame

    async def message(self) -> None:
        """Reads up to the next message, all of whose previews have to come before it."""
        previews = ""
        while True:
            data = b"".join(line[5:] for line in (await self._frame()).split(b"\n") if line.startswith(b"data:"))
            event = json.loads(data) if data else {}
            if event.get("type") == "event_delta":
                previews += event["delta"]["content"]["text"]
            elif event.get("type") == "agent.message":
                if previews != event["content"][0]["text"]:
                    raise Failed(f"previews of {len(previews)} bytes have come of a message of {MESSAGE_BYTES}")
                return

    def close(self) -> None:
        self._writer.transport.abort()


def memory(process: int) -> dict[str, int]:
    """The resident set of a process in KiB, now and the most that it was."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].removesuffix("kB")) for name in ("VmRSS", "VmHWM")}


def install(stack: Stack) -> str:
    """What the sessions need; gives the token of who watches them."""
    stack.namespace(NAMESPACE)
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    stack.api.do("POST", accounts, {"metadata": {"name": "default"}}, ok=(409,))
    binding = {
        "metadata": {"name": "client"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "longhand-edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "client", "namespace": NAMESPACE}],
    }
    stack.api.do("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings", binding)
    agent = {"apiVersion": "longhand.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "agent"},
             "spec": {"model": {"id": "scripted-1"}}}  # fmt: skip
    stack.api.do("POST", f"{OBJECTS}/agents", agent)
    return stack.token(NAMESPACE, "client")


async def measure(stack: Stack, sessions: int, streams: int) -> dict[str, int]:
    """Memory in KiB before there is a session, with all streams open, and the most that it was until each has had its messages."""
    token, service = install(stack), stack.process_id("session")
    context = ssl.create_default_context(cafile=stack.service_ca)
    before = memory(service)["VmRSS"]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(HARNESSES_AT_ONCE) as pool:
        made = (loop.run_in_executor(pool, Harness, stack, f"s-{number}") for number in range(sessions))
        harnesses = await asyncio.gather(*made)
        slots = asyncio.Semaphore(OPENED_AT_ONCE)

        async def opened(number: int) -> Stream:
            async with slots:
                return await Stream.open(stack.url, context, token, harnesses[number % sessions].session)

        async with asyncio.timeout(OPEN_SECONDS):
            clients = await asyncio.gather(*(opened(number) for number in range(streams)))
        held = memory(service)["VmRSS"]
        for _ in range(ROUNDS):
            speaking = (loop.run_in_executor(pool, harness.speak) for harness in harnesses)
            async with asyncio.timeout(ROUND_SECONDS):
                await asyncio.gather(*speaking, *(client.message() for client in clients))
        found = {"before": before, "open": held, "peak": memory(service)["VmHWM"]}
    for client in clients:
        client.close()
    for harness in harnesses:
        harness.close()
    return found


def main() -> None:
    # So that what was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    programs, objects, crds, count, result = sys.argv[1:]
    streams = int(count)
    wanted, (soft, hard) = FILES_OF_A_STREAM * streams + OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    # One caller opens all streams, and one makes all sessions.
    os.environ["REQUESTS_PER_SECOND"] = "0"
    os.environ["NAMESPACE_OPEN_STREAMS"] = "0"
    found: dict[str, object] = {"streams": streams, "rounds": ROUNDS}
    for name, sessions in (("each", streams), ("shared", 1)):
        with Stack(json.loads(programs), manifests(Path(objects).read_text()), Path(crds), tls=True) as stack:
            try:
                found[name] = asyncio.run(measure(stack, sessions, streams))
            except Exception:
                print(f"the end of the service's log:\n{stack.log_of('session').read_text(errors='replace')[-3000:]}", file=sys.stderr)
                raise
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
