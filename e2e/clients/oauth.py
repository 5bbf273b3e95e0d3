"""An OAuth provider as strict ones are, and an MCP server that takes nothing but its access tokens."""

import hashlib
import secrets
import threading
import time

LIFETIME = 3600
# What is counted of an MCP server's methods.
MCP_KINDS = {"initialize": "mcp initialize", "tools/list": "mcp list", "tools/call": "mcp call", "ping": "mcp ping"}
WHOAMI = {
    "name": "whoami",
    "description": "Says how the caller is known.",
    "inputSchema": {"type": "object", "properties": {}},
    "annotations": {"readOnlyHint": True},
}


class Provider:
    """Hands out a refresh token with each access token. Each is good once: a second use is a theft, and revokes everything."""

    def __init__(self, first):
        self.lock = threading.Lock()
        self.refresh = first and digest(first)
        self.used = set()
        # When an access token expires.
        self.access = {}

    def token(self, form):
        """The status and the answer to a form, after RFC 6749."""
        if form.get("grant_type") != "refresh_token":
            return 400, {"error": "unsupported_grant_type"}
        if not form.get("refresh_token") or not form.get("client_id"):
            return 400, {"error": "invalid_request"}
        given = digest(form["refresh_token"])
        with self.lock:
            if given in self.used:
                self.refresh = None
                self.access.clear()
            if given != self.refresh:
                return 400, {"error": "invalid_grant"}
            self.used.add(given)
            access, refresh = "at-" + secrets.token_urlsafe(32), "rt-" + secrets.token_urlsafe(32)
            self.refresh = digest(refresh)
            self.access[digest(access)] = time.monotonic() + LIFETIME
        return 200, {"access_token": access, "token_type": "Bearer", "expires_in": LIFETIME, "refresh_token": refresh}

    def knows(self, access):
        with self.lock:
            return self.access.get(digest(access), 0) > time.monotonic()


def digest(token):
    """What is kept of a token, and compared: how long that takes tells nothing about the token."""
    return hashlib.sha256(token.encode()).digest()


def mcp(message):
    """What is counted of a JSON-RPC message, and the answer to it; none to a notification."""
    method, params = message.get("method"), message.get("params") or {}
    kind = MCP_KINDS.get(method, "mcp other")
    if "id" not in message:
        return kind, None
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    if method == "initialize":
        about = {"name": "forge", "version": "1.0"}
        result = {"protocolVersion": params.get("protocolVersion"), "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        result = {"tools": [WHOAMI]}
    elif method == "tools/call" and params.get("name") == WHOAMI["name"]:
        result = {"content": [{"type": "text", "text": "known by a refreshed token"}]}
    elif method == "ping":
        result = {}
    else:
        return kind, {**answer, "error": {"code": -32601, "message": "no such method or tool"}}
    return kind, {**answer, "result": result}
