"""Sessions whose harness is a process here: a control plane on loopback (`local.Stack`), a scripted model, and for each session a
`sandboxd`. What the operator does on a cluster is done here: it names the harness's pod, and says where a sandbox is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from door import Door, Fault
from local import GROUP, Client, Stack, free_ports
from local import NAMESPACE as SERVICE_NAMESPACE

NAMESPACE = "conformance"
SOON = 20
LOOK_AGAIN = 0.03
TOOLS = [
    {"type": "agent_toolset_20260401", "configs": [{"name": "write", "permissionPolicy": "AlwaysAsk"}]},
    {"type": "custom", "name": "weather", "description": "Says what the weather is.",
     "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}}},
]  # fmt: skip


class Failed(AssertionError):
    """A harness did not do what the contract says."""


def eventually(what: str, condition: Callable[[], object], seconds: float = SOON) -> object:
    """What `condition` gives as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(LOOK_AGAIN)
    return found


class World:
    """What all sessions share."""

    def __init__(self, stack: Stack, programs: dict[str, str], harness: list[str], script: str, *, essence: bool) -> None:
        self.stack, self.programs, self.harness, self.essence = stack, programs, harness, essence
        self.api_objects = f"{GROUP}/namespaces/{NAMESPACE}"
        self.processes: list[tuple[Path, subprocess.Popen[bytes]]] = []
        self.model_key = stack.folder / "model-key"
        self.model_key.write_text("a key that no harness sees")
        self.model_port = free_ports(1)[0]
        (stack.folder / "script.yaml").write_text(script)
        self._model(stack.folder / "script.yaml")
        self._objects()

    def _model(self, script: Path) -> None:
        self.run("scripted-model", [self.programs["scripted-model"], "--script", str(script), "--api-key-file", str(self.model_key),
                                    "--listen", f"127.0.0.1:{self.model_port}"], self.stack.folder)  # fmt: skip
        model = Client(f"http://127.0.0.1:{self.model_port}", "")

        def ready() -> bool:
            try:
                return model.call("GET", "/readyz")[0] == 200
            except OSError:
                return False

        eventually("the scripted model listens", ready)

    def _objects(self) -> None:
        api = self.stack.api
        self.stack.namespace(NAMESPACE)
        accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        api.do("POST", accounts, {"metadata": {"name": "default"}}, ok=(409,))
        self.client_token = self.stack.token(NAMESPACE, "client")
        binding = {
            "metadata": {"name": "client"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "longhand-edit"},
            "subjects": [{"kind": "ServiceAccount", "name": "client", "namespace": NAMESPACE}],
        }
        api.do("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings", binding)
        spec = {"model": {"id": "scripted-1"}, "system": "You are a test.", "tools": TOOLS}
        self.make("agents", "Agent", {"name": "agent"}, spec)
        self.make("sandboxtemplates", "SandboxTemplate", {"name": "small"}, {})

    def make(self, plural: str, kind: str, metadata: dict, spec: dict) -> dict:
        made = {"apiVersion": "longhand.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        return self.api().do("POST", f"{self.api_objects}/{plural}", made)  # type: ignore[return-value]

    def api(self) -> Client:
        """A client of the API server for one thread."""
        return Client(self.stack.kube_url, self.stack.admin_token, self.stack.ca)

    def run(self, name: str, command: list[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder,
                                       env={**os.environ, **environment}, start_new_session=True)  # fmt: skip
        self.processes.append((folder, process))
        return process

    def verify_key(self) -> str | None:
        """What a sandbox verifies the service's tokens with, once the service has published it."""
        status, keys = self.api().call("GET", f"/api/v1/namespaces/{SERVICE_NAMESPACE}/configmaps/longhand-session-keys")
        return keys["data"]["sandboxd-verify-key"] if status == 200 else None  # type: ignore[index,call-overload]

    def close(self) -> None:
        for _, process in reversed(self.processes):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(SOON)


class Session:
    """One session, and the processes that serve it."""

    def __init__(self, world: World, name: str, fault: Fault | None = None, idle_seconds: int = 0) -> None:
        self.world, self.name = world, name
        self._folder = tempfile.TemporaryDirectory(prefix="longhand-conformance-")
        self.folder = Path(self._folder.name)
        self.workspace = self.folder / "workspace"
        self.workspace.mkdir()
        self.api, self.operator = world.api(), Client(world.stack.url, world.stack.operator.token)
        spec = {"agentRef": {"name": "agent"}, "harnessIdleSeconds": idle_seconds,
                "sandboxes": [{"name": "default", "templateRef": {"name": "small"}}]}  # fmt: skip
        made = world.make("agentsessions", "AgentSession", {"name": name}, spec)
        self.uid = made["metadata"]["uid"]
        path = f"/internal/v1/namespaces/{NAMESPACE}/sessions/{name}"
        self.id = self.operator.do("PUT", path, {"uid": self.uid})["sessionId"]  # type: ignore[index]
        self.token = self.name_pod("pod-1")
        self.door = Door(world.stack.url, f"http://127.0.0.1:{world.model_port}", world.model_key.read_text(), fault or Fault())
        self.door.session = self
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.stop = threading.Event()
        self.sandboxes = threading.Thread(target=self._sandboxes, daemon=True)
        self.sandboxes.start()

    # What the operator does.

    def name_pod(self, pod: str) -> str:
        """Makes a pod, names it as the session's harness, and gives its token."""
        name = f"{self.name}-{pod}"
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        spec = {"serviceAccountName": "default", "containers": [{"name": "harness", "image": "harness"}]}
        uid = self.api.do("POST", pods, {"metadata": {"name": name}, "spec": spec})["metadata"]["uid"]  # type: ignore[index]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}
        token = {"spec": {"audiences": ["longhand"], "expirationSeconds": 3600, "boundObjectRef": bound}}
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"
        answer = self.api.do("POST", account, token)
        self._status("agentsessions", self.name, {"harness": {"generation": 1, "podName": name, "podUID": uid, "failures": 0}})
        return answer["status"]["token"]  # type: ignore[index]

    def _status(self, plural: str, name: str, status: dict) -> None:
        path = f"{self.world.api_objects}/{plural}/{name}/status"
        self.api.do("PATCH", path, {"status": status}, kind="application/merge-patch+json")

    def _sandboxes(self) -> None:
        """Starts `sandboxd` as soon as the session wants a sandbox."""
        api = self.world.api()
        while not self.stop.wait(LOOK_AGAIN):
            found = api.do("GET", f"{self.world.api_objects}/sandboxes")["items"]  # type: ignore[index]
            for sandbox in found:
                if sandbox["spec"].get("sessionRef", {}).get("uid") == self.uid and "status" not in sandbox:
                    self._hands(api, sandbox["metadata"]["name"])
                    return

    def _hands(self, api: Client, name: str) -> None:
        port, pod = free_ports(1)[0], f"hands-of-{self.name}"
        key = eventually("the verify key is published", self.world.verify_key)
        self.world.run("sandboxd", [self.world.programs["sandboxd"]], self.folder, SANDBOXD_LISTEN=f"127.0.0.1:{port}",
                       SANDBOXD_WORKSPACE=str(self.workspace), SANDBOXD_VERIFY_KEY=str(key), SANDBOXD_RELAY="off", POD_UID=pod)  # fmt: skip
        ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        status = {"podUID": pod, "podName": pod, "address": f"127.0.0.1:{port}", "restarts": 0, "conditions": [ready]}
        path = f"{self.world.api_objects}/sandboxes/{name}/status"
        api.do("PATCH", path, {"status": status}, kind="application/merge-patch+json")

    # What the kubelet does.

    def start(self, token: str | None = None) -> subprocess.Popen[bytes]:
        """Starts the harness as its container."""
        self.starts += 1
        token_file = self.folder / f"token-{self.starts}"
        token_file.write_text(token or self.token)
        home = Path(tempfile.mkdtemp(prefix="home-", dir=self.folder))
        self.process = self.world.run(
            "harness", self.world.harness, self.folder,
            SESSION_ID=self.id, LOG_URL=self.door.url, SESSION_TOKEN_FILE=str(token_file),
            MODEL_BASE_URL=f"{self.door.url}/model", MCP_URL=f"{self.door.url}/harness/v1/sessions/{self.id}/mcp",
            HOME=str(home), TMPDIR=str(home),
        )  # fmt: skip
        self.door.process = self.process
        return self.process

    def until_done(self, seconds: float = 60) -> None:
        """Starts the harness again whenever it fails, as the kubelet does, until it says by 0 that it is done."""
        end_of_patience = time.monotonic() + seconds
        process = self.start()
        while True:
            code = self.exit_code(process, end_of_patience - time.monotonic())
            if code == 0:
                return
            if self.starts > 6:
                raise Failed(f"the harness has failed {self.starts} times, the last time with {code}")
            process = self.start()

    @staticmethod
    def exit_code(process: subprocess.Popen[bytes], seconds: float) -> int:
        try:
            code = process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            raise Failed("the harness did not end in time") from None
        # As with a container, nothing that it has started outlives it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return code

    # What a client does.

    @property
    def wire(self) -> Client:
        """One for each use, since faults happen in threads of their own."""
        return Client(self.world.stack.url, self.world.client_token)

    def send(self, *events: dict) -> None:
        self.wire.do("POST", f"/v1/sessions/{self.id}/events", {"events": list(events)})

    def say(self, text: str) -> None:
        self.send({"type": "user.message", "content": [{"type": "text", "text": text}]})

    def rename(self, title: str) -> None:
        """Appends an event that is not the harness's: the head of the log moves."""
        self.wire.do("POST", f"/v1/sessions/{self.id}", {"title": title})

    def events(self) -> list[dict]:
        found: list[dict] = []
        page = ""
        while True:
            answer = self.wire.do("GET", f"/v1/sessions/{self.id}/events?limit=1000{page}")
            found += [event for event in answer["data"] if event["processed_at"]]  # type: ignore[index]
            if not (next_page := answer.get("next_page")):  # type: ignore[union-attr]
                return found
            page = f"&page={next_page}"

    def until(self, kind: str, count: int = 1, seconds: float = SOON) -> dict:
        """The event of this type that comes as number `count`."""

        def found() -> dict | None:
            of_kind = [event for event in self.events() if event["type"] == kind]
            return of_kind[count - 1] if len(of_kind) >= count else None

        return eventually(f"{kind} number {count}", found, seconds)  # type: ignore[return-value]

    def close(self) -> None:
        self.stop.set()
        self.sandboxes.join(SOON)
        self.door.close()
        for folder, process in self.world.processes:
            if folder == self.folder:
                end(process)
        self._folder.cleanup()

    def complaints(self) -> str:
        """The end of what the harness has printed."""
        log = self.folder / "harness.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""
