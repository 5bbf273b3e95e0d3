"""The API of sandboxd, on its own loopback, without what the session service signs."""

import json

from table import exchange, forged, raw_key, row, status, variable_of_sandboxd

LOCAL = ("127.0.0.1", 8090)
CALL = json.dumps({"call_id": "sevt_attempt", "tool": "bash", "input": {"command": "id"}})
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"


def ask(method, path, more="", body=""):
    head = "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" % (method, path)
    if "Upgrade" in more:
        head = head.replace("Connection: close\r\n", "")
    if body:
        head += "Content-Length: %d\r\n" % len(body)
    return status(exchange(LOCAL, (head + more + "\r\n" + body).encode()))


def without(name, method, path, more="", body=""):
    row("sandboxd/" + name, "401")(lambda: ask(method, path, more, body))


without("execute-without-token", "POST", "/v1/execute", body=CALL)
without("mcp-without-token", "POST", "/mcp", body='{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}')
without("files-without-token", "GET", "/v1/files?path=/etc/passwd")
without("archive-without-token", "GET", "/v1/archive?path=/etc")
without("drain-without-token", "POST", "/v1/drain", body="{}")
without("resume-without-token", "DELETE", "/v1/drain")
without("workspace-without-token", "GET", "/v1/workspace")
without("refill-without-token", "PUT", "/v1/workspace", body="x")
without("rebind-without-token", "PUT", "/v1/egress", body='{"proxy": "127.0.0.1:1", "token": "a", "variables": {}}')
without("unbind-without-token", "DELETE", "/v1/egress")
without("terminal-without-token", "GET", "/v1/terminal", WEBSOCKET)
without("port-without-token", "GET", "/v1/ports/3129", "Connection: Upgrade\r\nUpgrade: tcp\r\n")
without("junk-token", "POST", "/v1/execute", "Authorization: Bearer a.b.c\r\n", CALL)
without("basic-token", "POST", "/v1/execute", "Authorization: Basic YTpi\r\n", CALL)


def token(name, make, path="/v1/execute"):
    def attempt():
        pod, key = variable_of_sandboxd("POD_UID"), variable_of_sandboxd("SANDBOXD_VERIFY_KEY")
        more = "Authorization: Bearer %s\r\n" % make(pod, key)
        if path == "/v1/terminal":
            return ask("GET", path, more + WEBSOCKET)
        return ask("POST", path, more, CALL)

    row("sandboxd/" + name, "401")(attempt)


token("alg-none", lambda pod, key: forged("none", b"", aud="sandboxd", sub=pod))
token("alg-none-terminal", lambda pod, key: forged("none", b"", aud="sandboxd", sub=pod, scope="terminal"), "/v1/terminal")
token("hmac-of-public-key", lambda pod, key: forged("HS256", raw_key(key), aud="sandboxd", sub=pod))
token("hmac-of-public-key-text", lambda pod, key: forged("HS256", key.encode(), aud="sandboxd", sub=pod))
token("zero-signature", lambda pod, key: forged("EdDSA", bytes(64), aud="sandboxd", sub=pod))
token("expired", lambda pod, key: forged("EdDSA", bytes(64), aud="sandboxd", sub=pod, iat=1000, exp=1300))
token("other-pod", lambda pod, key: forged("EdDSA", bytes(64), aud="sandboxd", sub="another"))
