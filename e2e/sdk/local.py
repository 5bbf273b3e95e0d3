"""A control plane on loopback: etcd, kube-apiserver and the session service as three kinds of real processes, and nothing that
runs pods. Sessions are made, listed, changed and deleted as on any cluster; their events stay queued, since no harness takes them.

    with Stack(programs, chart_objects, crds) as stack: ...

Everything listens on 127.0.0.1 and lives in a temporary folder, and ends with the block.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path

import yaml

NAMESPACE = "longhand-system"
AUDIENCE = "longhand"
GROUP = "/apis/longhand.dev/v1alpha1"
START_SECONDS = 60
STOP_SECONDS = 10


class Manifests(yaml.SafeLoader):
    """YAML as Kubernetes reads it: without dates."""


Manifests.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def manifests(text: str) -> list[dict]:
    """The objects of a YAML stream."""
    return [made for made in yaml.load_all(text, Manifests) if made]


class Refused(Exception):
    """The API server, or the service, did not do it."""

    def __init__(self, what: str, status: int, body: object) -> None:
        super().__init__(f"{what}: {status} {body}")
        self.status = status


class Client:
    """JSON over HTTP, on one connection that is made again when it breaks."""

    def __init__(self, url: str, token: str, ca: str | None = None) -> None:
        self.url, self.token, self.ca = url, token, ca
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urllib.parse.urlsplit(self.url)
        assert parts.hostname and parts.port
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca)
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=30, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def call(self, method: str, path: str, body: object = None, kind: str = "application/json") -> tuple[int, object]:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", "Content-Type": kind}
        data = None if body is None else json.dumps(body)
        for last in (False, True):
            try:
                self._connection = self._connection or self._connect()
                self._connection.request(method, path, data, headers)
                answer = self._connection.getresponse()
                text = answer.read()
                break
            except (http.client.HTTPException, OSError):
                self.close()
                if last:
                    raise
        try:
            return answer.status, json.loads(text) if text else None
        except json.JSONDecodeError:
            return answer.status, text.decode(errors="replace")

    def do(self, method: str, path: str, body: object = None, ok: tuple[int, ...] = (), **kwargs: str) -> object:
        """The answer; statuses in `ok` are no failure."""
        status, answer = self.call(method, path, body, **kwargs)
        if status >= 300 and status not in ok:
            raise Refused(f"{method} {path}", status, answer)
        return answer


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Stack:
    """The processes, and how to speak to them: `api` as an administrator, `url` for clients of the service."""

    def __init__(self, programs: dict[str, str], chart_objects: list[dict], crds: Path, *, tls: bool = False) -> None:
        self.programs, self.chart_objects, self.crds = programs, chart_objects, crds
        self._folder = tempfile.TemporaryDirectory(prefix="longhand-sdk-")
        self.folder = Path(self._folder.name)
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        ports = free_ports(7)
        self._kube_etcd, self._log_etcd = ports[0:2], ports[2:4]
        self._kube_port, self._port, self._health_port = ports[4:7]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._port}"
        # Of the service, which speaks plain HTTP unless it is told otherwise.
        self.service_ca = str(self.folder / "service.crt") if tls else None
        self.kube_url = f"https://127.0.0.1:{self._kube_port}"
        self.log_etcd_url = f"http://127.0.0.1:{self._log_etcd[0]}"
        self.admin_token = secrets.token_hex(16)

    def __enter__(self) -> Stack:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name, process in reversed(self._processes):
            # What the others have written goes with the folder: only the service is worth an orderly end.
            process.send_signal(signal.SIGTERM if name == "session" else signal.SIGKILL)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"{name} did not end in {STOP_SECONDS} s and is killed")
                process.kill()
                process.wait()
        self._folder.cleanup()

    @property
    def ca(self) -> str:
        return str(self.folder / "certs" / "apiserver.crt")

    def process_id(self, name: str) -> int:
        return next(process.pid for known, process in self._processes if known == name)

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _run(self, name: str, arguments: list[str], **environment: str) -> None:
        with self.log_of(name).open("wb") as log:
            environment = {**os.environ, **environment}
            process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self._processes.append((name, process))

    def _wait(self, name: str, ready: object) -> None:
        process = next(process for known, process in self._processes if known == name)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if ready():  # type: ignore[operator]
                    return
            except (OSError, http.client.HTTPException, Refused):
                pass
            if process.poll() is not None or time.monotonic() > end:
                tail = self.log_of(name).read_text(errors="replace")[-4000:]
                raise SystemExit(f"{name} did not become ready:\n{tail}")
            time.sleep(0.1)

    def _etcd(self, name: str, ports: list[int]) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in ports)
        self._run(
            name,
            # What is written here is gone with the folder: there is no power failure to survive.
            [self.programs["etcd"], "--data-dir", str(self.folder / name), "--unsafe-no-fsync",
             "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", "--log-level", "warn"],
        )  # fmt: skip

    def _start(self) -> None:
        self._etcd("etcd-kube", self._kube_etcd)
        self._etcd("etcd-log", self._log_etcd)
        self._kube_apiserver()
        self.api = Client(self.kube_url, self.admin_token, self.ca)
        self._wait("kube-apiserver", lambda: self.api.call("GET", "/readyz")[0] == 200)
        self._install()
        self.operator = Client(self.url, self.token(NAMESPACE, "longhand-operator"), self.service_ca)
        self._session()
        health = Client(f"http://127.0.0.1:{self._health_port}", "")
        self._wait("session", lambda: health.call("GET", "/readyz")[0] == 200)

    def _kube_apiserver(self) -> None:
        key = self.folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        issuer = "https://kubernetes.default.svc"
        self._run(
            "kube-apiserver",
            [self.programs["kube-apiserver"], f"--etcd-servers=http://127.0.0.1:{self._kube_etcd[0]}",
             "--bind-address=127.0.0.1", f"--secure-port={self._kube_port}", f"--cert-dir={self.folder / 'certs'}",
             f"--service-account-issuer={issuer}", f"--api-audiences={issuer}", f"--service-account-key-file={key}",
             f"--service-account-signing-key-file={key}", f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
             "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none",
             # There is no controller that would make the ServiceAccount `default`.
             "--disable-admission-plugins=ServiceAccount", "--profiling=false"],
        )  # fmt: skip

    def _install(self) -> None:
        self.namespace(NAMESPACE)
        for file in sorted(self.crds.glob("*.yaml")):
            for definition in manifests(file.read_text()):
                self.api.do("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for made in self.chart_objects:
            group, plural = made["apiVersion"], made["kind"].lower() + "s"
            namespace = made["metadata"].get("namespace")
            root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
            path = f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
            self.api.do("POST", path, made)
        end = time.monotonic() + START_SECONDS
        while self.api.call("GET", f"{GROUP}/vaults")[0] != 200:
            if time.monotonic() > end:
                raise SystemExit("the definitions are not served")
            time.sleep(0.1)

    def kubeconfig(self, name: str, token: str) -> str:
        file = self.folder / f"{name}.kubeconfig"
        cluster = {"server": self.kube_url, "certificate-authority": self.ca}
        file.write_text(
            json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "c", "user": {"token": token}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            })
        )  # fmt: skip
        return str(file)

    def _certificate(self) -> list[str]:
        """The flags for a certificate that is made here, if the service is to have one."""
        if not self.service_ca:
            return []
        key = str(self.folder / "service.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
             "/CN=longhand-session", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", self.service_ca],
            check=True, capture_output=True,
        )  # fmt: skip
        return ["--tls-cert-file", self.service_ca, "--tls-key-file", key]

    def _session(self) -> None:
        token = self.token(NAMESPACE, "longhand-session", audience=None)
        self._run(
            "session",
            [self.programs["session"], "--etcd-endpoints", f"http://127.0.0.1:{self._log_etcd[0]}",
             "--namespace", NAMESPACE, "--operator-service-account", f"{NAMESPACE}:longhand-operator",
             "--service-account", f"{NAMESPACE}:longhand-session",
             "--objects-url", (self.folder / "objects").as_uri(),
             "--listen", f"127.0.0.1:{self._port}", "--health-listen", f"127.0.0.1:{self._health_port}",
             *self._certificate()],
            KUBECONFIG=self.kubeconfig("session", token), RUST_LOG=os.environ.get("RUST_LOG", "info"),
        )  # fmt: skip

    def namespace(self, name: str) -> None:
        self.api.do("POST", "/api/v1/namespaces", {"metadata": {"name": name}}, ok=(409,))

    def token(self, namespace: str, account: str, audience: str | None = AUDIENCE) -> str:
        """A token of a ServiceAccount, which is made if there is none."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.api.do("POST", path, {"metadata": {"name": account}}, ok=(409,))
        spec = {"expirationSeconds": 7200, **({"audiences": [audience]} if audience else {})}
        answer = self.api.do("POST", f"{path}/{account}/token", {"spec": spec})
        return answer["status"]["token"]  # type: ignore[index]
