"""What the suite expects to exist: plain Kubernetes objects whose label `longhand.dev/id` says by which identifier clients know them.

Sessions get their logs as the operator gets them, and lose them as its sweep takes them, since nothing else runs here that would.
"""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from local import GROUP, Client

AGENT = "agent_011CZkYpogX7uDKUyvBTophP"
ENVIRONMENT = "env_011CZkZ9X2dpNyB7HsEFoRfW"
SESSION = "sesn_011CZkZAtmR3yMPDzynEDxu7"
THREAD = "sthr_011CZkZVWa6oJjw1rgXZpnBt"
RESOURCE = "sesrsc_011CZkZBJq5dWxk9fVLNcPht"
VAULT = "vlt_011CZkZDLs7fYzm1hXNPeRjv"
CREDENTIAL = "vcrd_011CZkZEMt8gZan2iYPQfSkw"
WORK = "work_id"
FILE = "file_id"
ID = "longhand.dev/id"

# What a family is made of besides its own kind; collections are emptied in this order.
KINDS = {
    "session": [f"{GROUP}/namespaces/{{}}/agentsessions"],
    "agent": [f"{GROUP}/namespaces/{{}}/agents", "/apis/apps/v1/namespaces/{}/controllerrevisions"],
    "environment": [f"{GROUP}/namespaces/{{}}/sandboxtemplates"],
    "vault": [f"{GROUP}/namespaces/{{}}/vaults", "/api/v1/namespaces/{}/secrets"],
    # No object of Kubernetes.
    "file": [],
}


def metadata(name: str, identifier: str | None = None, **labels: str) -> dict:
    return {"name": name, "labels": {**({ID: identifier} if identifier else {}), **labels}}


class Seeds:
    """The objects of one namespace."""

    def __init__(self, namespace: str, api: Client, operator: Client, wire: Client, etcd: str) -> None:
        self.namespace, self.api, self.operator, self.wire, self.etcd = namespace, api, operator, wire, Client(etcd, "")

    def close(self) -> None:
        for client in (self.api, self.operator, self.wire, self.etcd):
            client.close()

    def fresh(self, family: str, **how: object) -> None:
        """Takes away what there is of a family, and makes what the suite expects."""
        self.clear(family)
        getattr(self, f"_{family}")(**how)

    def clear(self, family: str) -> None:
        for collection in KINDS[family]:
            self.api.do("DELETE", collection.format(self.namespace))
        if family == "session":
            self._sweep()
        if family == "file":
            self._forget(f"/longhand/file/{self.namespace}/")

    def _make(self, plural: str, meta: dict, spec: dict) -> dict:
        kind = {"agents": "Agent", "agentsessions": "AgentSession", "sandboxtemplates": "SandboxTemplate", "vaults": "Vault"}[plural]
        made = {"apiVersion": "longhand.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}
        return self.api.do("POST", f"{GROUP}/namespaces/{self.namespace}/{plural}", made)  # type: ignore[return-value]

    def _agent(self) -> None:
        model = {"id": "claude-opus-5-5", "credential": {"vault": "models", "name": "key"}}
        self._make("agents", metadata("support", AGENT), {"model": model, "tools": [{"type": "agent_toolset_20260401"}]})

    def _environment(self, work: str | None = None) -> None:
        """With a piece of work in this state, the environment is self-hosted."""
        self._make("sandboxtemplates", metadata("hands", ENVIRONMENT), {"selfHosted": True} if work else {})
        if work:
            self._put_work(work)

    def _vault(self) -> None:
        credential = {
            "name": "crm",
            "id": CREDENTIAL,
            "secretRef": {"name": "crm", "key": "token"},
            "mcpServerURL": "https://example-server.modelcontextprotocol.io/sse",
            "allow": {"hosts": ["example-server.modelcontextprotocol.io"]},
            "placement": {"type": "bearer"},
            "oauth": {"refresh": {
                "clientID": "crm", "tokenEndpoint": "https://example-server.modelcontextprotocol.io/token",
                "tokenEndpointAuth": "client_secret_basic", "clientSecretRef": {"name": "crm", "key": "client"},
                "refreshTokenRef": {"name": "crm", "key": "refresh"}}},
        }  # fmt: skip
        self._make("vaults", metadata("customers", VAULT), {"credentials": [credential]})
        # A vault may be named as kubectl names it, and the suite names one so.
        self._make("vaults", metadata("string"), {"credentials": []})

    def _session(self, archived: bool = False) -> None:
        spec = {
            "agentRef": {"name": "support"},
            "sandboxes": [{"name": "default", "templateRef": {"name": "hands"}}],
            "budget": {"amount": "1000", "currency": "USD"},
            "resources": [{"name": "code", "id": RESOURCE, "mountPath": "/workspace/code",
                           "githubRepository": {"url": "https://github.com/example/code"}}],
        }  # fmt: skip
        meta = metadata("first", SESSION, **{"longhand.dev/thread-id": THREAD})
        made = self._make("agentsessions", meta, spec)
        path = f"/internal/v1/namespaces/{self.namespace}/sessions/first"
        self.operator.do("PUT", path, {"uid": made["metadata"]["uid"]})
        if archived:
            self.wire.do("POST", f"/v1/sessions/{SESSION}/archive")

    def _sweep(self) -> None:
        """The logs of this namespace, whose resources are gone."""
        logs = self.operator.do("GET", "/internal/v1/sessions?limit=1000")
        for log in logs["sessions"]:  # type: ignore[index]
            if log["namespace"] == self.namespace:
                self.operator.do("DELETE", f"/internal/v1/sessions/{log['sessionId']}")

    def _file(self) -> None:
        """Put where the service knows it, since no client chooses an identifier. Its content is asked for by no case."""
        namespace = self.api.do("GET", f"/api/v1/namespaces/{self.namespace}")
        file = {"id": FILE, "filename": "notes.txt", "mimeType": "text/plain", "bytes": 0, "sha256": sha256().hexdigest(),
                "createdAt": rfc3339(datetime.now(UTC)), "namespaceUid": namespace["metadata"]["uid"]}  # type: ignore[index]  # fmt: skip
        key = f"/longhand/file/{self.namespace}/{FILE}"
        self.etcd.do("POST", "/v3/kv/put", {"key": encoded(key), "value": encoded(json.dumps(file))})

    def _forget(self, prefix: str) -> None:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self.etcd.do("POST", "/v3/kv/deleterange", {"key": encoded(prefix), "range_end": encoded(end)})

    def _put_work(self, state: str) -> None:
        """Work is not an object of Kubernetes: it is put where the service keeps it, as a restore would. Its session is
        one that nobody else has."""
        self.clear("session")
        session = self._make("agentsessions", metadata("served"), {"agentRef": {"name": "support"}})
        path = f"/internal/v1/namespaces/{self.namespace}/sessions/served"
        log = self.operator.do("PUT", path, {"uid": session["metadata"]["uid"]})
        now = datetime.now(UTC)
        at = {} if state == "queued" else {"acknowledgedAt": rfc3339(now), "leasedUntil": rfc3339(now + timedelta(minutes=5))}
        item = {"id": WORK, "session": log["sessionId"], "state": state, "attempt": 0, "ttlSeconds": 60, "createdAt": rfc3339(now), **at}
        prefix = f"/longhand/work/item/{self.namespace}/hands/"
        self._forget(prefix)
        self.etcd.do("POST", "/v3/kv/put", {"key": encoded(prefix + WORK), "value": encoded(json.dumps(item))})


def rfc3339(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()
