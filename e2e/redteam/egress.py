"""The way out: what the session's proxy refuses, through the relay and asked directly."""

import base64
import json
import os
import re
import socket
import ssl
import urllib.parse

from table import FACTS, exchange, forged, memory_of_sandboxd, outcome, raw_key, read_all, row, status, variable_of_sandboxd

RELAY = ("127.0.0.1", 3129)
DIRECT = (FACTS["harness"], 8084)
OTHER = (FACTS["other_harness"], 8084)
MODEL, TLS, UNBOUND = FACTS["model_host"], FACTS["tls_host"], FACTS["unbound_host"]
# Placeholders, as every program here has them.
KEY, TLS_KEY = os.environ.get("MODEL_KEY", ""), os.environ.get("TLS_KEY", "")
MADE_UP = "lhp_" + "A" * 43
PATH = "/v1/messages"
MESSAGE = {"model": "scripted-1", "max_tokens": 64, "messages": [{"role": "user", "content": "from a sandbox"}]}


def head(method, target, host, fields=(), body=""):
    lines = ["%s %s HTTP/1.1" % (method, target), "Host: " + host, "Connection: close", *fields]
    if body:
        lines.append("Content-Length: %d" % len(body))
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def plain(path, *fields, method="POST", host=MODEL, named=None, body=""):
    """The whole answer to a request over plain HTTP, through the relay."""
    return exchange(RELAY, head(method, "http://" + host + path, named or host, fields, body))


def refuses(name, refusal, attempt):
    row("egress/" + name, refusal)(lambda: outcome(attempt))


def is_refused(name, refusal, path, *fields, **more):
    refuses(name, refusal, lambda: status(plain(path, *fields, **more)))


def connect(name, refusal, target):
    request = ("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target)).encode()
    refuses("connect-" + name, refusal, lambda: status(exchange(RELAY, request)))


# Where it may not go.
connect("denied-host", "403 host_not_allowed", "denied.test:443")
connect("below-an-allowed-host", "403 host_not_allowed", "a.allowed.test:443")
connect("beside-an-allowed-host", "403 host_not_allowed", "allowed.test.evil.test:443")
connect("address", "403 address_not_named", "1.1.1.1:443")
connect("address-v6", "403 address_not_named", "[2606:4700:4700::1111]:443")
connect("decimal-address", "400 malformed", "2130706433:443")
connect("octal-address", "400 malformed", "0177.0.0.1:443")
connect("hexadecimal-address", "400 malformed", "0x7f000001:443")
connect("short-address", "400 malformed", "127.1:8081")
connect("metadata", "403 address_not_named", "169.254.169.254:80")
connect("metadata-mapped", "403 address_not_named", "[::ffff:a9fe:a9fe]:80")
connect("localhost", "403 host_not_allowed", "localhost:8081")
connect("loopback-of-the-proxy", "403 address_not_named", "127.0.0.1:8081")
connect("loopback-v6", "403 address_not_named", "[::1]:8081")
connect("any-address", "403 address_not_named", "0.0.0.0:8081")
connect("api-server-by-name", "403 host_not_allowed", "kubernetes.default.svc:443")
connect("api-server-by-address", "403 address_not_named", FACTS["api"] + ":443")
connect("session-service", "403 host_not_allowed", "longhand-session.longhand-system.svc:8080")
connect("other-port-of-a-bound-host", "403 bound_elsewhere", TLS + ":8443")
connect("other-scheme-of-a-bound-host", "403 bound_elsewhere", MODEL + ":80")
connect("user-name", "400( malformed)?", "a:b@" + TLS + ":443")
is_refused("plain-denied-host", "403 host_not_allowed", "/", host="denied.test", method="GET")
is_refused("plain-metadata", "403 address_not_named", "/latest/meta-data/", host="169.254.169.254", method="GET")
is_refused("plain-other-port-of-a-bound-host", "403 bound_elsewhere", "/recorded", host=MODEL + ":8080", method="GET")
is_refused("plain-scheme-of-a-tunnel", "403 bound_elsewhere", "/", host=TLS, method="GET")

# With which credential.
is_refused("no-credential-at-a-bound-host", "403 no_credential", "/recorded", method="GET")
is_refused("method", "403 credential_rule", PATH, "x-api-key: " + KEY, method="GET")
is_refused("path", "403 credential_rule", "/recorded", "x-api-key: " + KEY)
is_refused("path-with-dots", "403 credential_rule", PATH + "/../../recorded", "x-api-key: " + KEY)
is_refused("path-with-encoded-dots", "403 credential_rule", PATH + "/%2e%2e/%2e%2e/recorded", "x-api-key: " + KEY)
is_refused("path-with-encoded-slash", "403 credential_rule", PATH + "/..%2f..%2frecorded", "x-api-key: " + KEY)
is_refused("trace", "403 method", PATH, "x-api-key: " + KEY, method="TRACE")
is_refused("placeholder-in-the-query", "403 placement", PATH + "?key=" + KEY)
is_refused("placeholder-in-the-path", "403 placement", PATH + "/" + KEY)
is_refused("made-up-placeholder", "403 unresolved_placeholder", PATH, "x-api-key: " + MADE_UP)
is_refused("part-of-a-placeholder", "403 unresolved_placeholder", PATH, "x-api-key: " + KEY[:-1])
is_refused("longer-placeholder", "403 unresolved_placeholder", PATH, "x-api-key: " + KEY + "A")
is_refused("made-up-placeholder-in-the-body", "403 unresolved_placeholder", PATH, "x-api-key: " + KEY, "anthropic-version: 2023-06-01", body=json.dumps(dict(MESSAGE, system=MADE_UP)))
is_refused("placeholder-in-base64", "403 hidden_placeholder", PATH, "x-note: " + base64.b64encode(KEY.encode()).decode())
is_refused("placeholder-in-base64-of-url", "403 hidden_placeholder", PATH, "x-note: " + base64.urlsafe_b64encode(b"x" + KEY.encode()).decode())
is_refused("placeholder-percent-encoded", "403 hidden_placeholder", PATH + "?a=%6c" + urllib.parse.quote(KEY)[1:])
is_refused("placeholder-of-another-host", "403 credential_rule", PATH, "x-api-key: " + TLS_KEY)
is_refused("placeholder-to-an-unbound-host", "403 placeholder_unbound", "/", "x-api-key: " + KEY, host=UNBOUND)
is_refused("foreign-authorization", "403 foreign_credential", PATH, "authorization: Bearer c3RvbGVuLWZyb20tc29tZXdoZXJl")
is_refused("foreign-authorization-beside", "403 foreign_credential", PATH, "x-api-key: " + KEY, "authorization: Bearer c3RvbGVu")
is_refused("foreign-key-twice", "403 foreign_credential", PATH, "x-api-key: " + KEY, "x-api-key: another")
is_refused("foreign-cookie", "403 foreign_credential", PATH, "cookie: session_token=abc")
is_refused("foreign-parameter", "403 foreign_credential", PATH + "?access_token=abc")

# Requests that can be read in two ways.
is_refused("other-host-field", "400 malformed", PATH, "x-api-key: " + KEY, named="denied.test")
is_refused("two-host-fields", "400( malformed)?", PATH, "x-api-key: " + KEY, "Host: denied.test")
is_refused("user-name-in-the-url", "400( malformed)?", PATH, host="a:b@" + MODEL, named=MODEL)
is_refused("folded-field", "400", PATH, "x-api-key: " + KEY + "\r\n folded")
is_refused("space-before-the-colon", "400", PATH, "Transfer-Encoding : chunked")
is_refused("two-lengths", "400", PATH, "Content-Length: 3", "Content-Length: 4")
is_refused("other-transfer-encoding", "400( malformed)?", PATH, "Transfer-Encoding: xchunked")


def smuggled(length_first):
    """Two lengths, and behind the shorter body what must be no request: what the model has recorded."""
    fields = ["Content-Length: 140", "Transfer-Encoding: chunked"]
    begin = "POST http://%s%s HTTP/1.1\r\nHost: %s\r\nx-api-key: %s\r\n" % (MODEL, PATH, MODEL, KEY)
    inner = "GET http://%s/recorded HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (MODEL, MODEL)
    whole = begin + "\r\n".join(fields if length_first else fields[::-1]) + "\r\n\r\n0\r\n\r\n" + inner
    with socket.create_connection(RELAY, 3) as stream:
        stream.sendall(whole.encode())
        answer = read_all(stream).decode("latin-1") + read_all(stream, 2).decode("latin-1")
    return " ".join(re.findall(r"HTTP/1\.1 (\d+)", answer)) + (" recorded" if '"requests"' in answer else "")


# The first is the model's answer to a message without a body, if there is one at all.
refuses("smuggled-behind-two-lengths", "400( 403)?", lambda: smuggled(True))
refuses("smuggled-behind-two-lengths-turned", "400( 403)?", lambda: smuggled(False))


# Tunnels.
def tunnel():
    stream = socket.create_connection(RELAY, 3)
    stream.settimeout(8)
    stream.sendall(("CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n\r\n" % (TLS, TLS)).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        some = stream.recv(1)
        if not some:
            break
        answer += some
    if status(answer.decode("latin-1")) != "200":
        raise ConnectionError(0, "no tunnel: " + status(answer.decode("latin-1")))
    return stream


def inside(request, name=TLS):
    """The answer to a request in TLS for `name`, by a program that trusts what it is told to."""
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    if name != TLS:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with tunnel() as stream, context.wrap_socket(stream, server_hostname=name) as secure:
            secure.sendall(request)
            return status(read_all(secure).decode("latin-1"))
    except ssl.SSLCertVerificationError as error:
        return "not trusted: %s" % error.verify_message
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return "no TLS"


def in_tls(name, refusal, request, server=TLS):
    refuses("tunnel-" + name, refusal, lambda: inside(request, server))


def without_tls(payload):
    with tunnel() as stream:
        stream.sendall(payload)
        answer = read_all(stream)
    return "silent" if not answer or answer[:1] == b"\x15" else "answered %r" % answer[:40]


in_tls("sni-of-another-host", "no TLS", head("GET", "/repos", "denied.test"), "denied.test")
in_tls("without-sni", "no TLS", head("GET", "/repos", TLS), None)
refuses("tunnel-of-plain-http", "silent", lambda: without_tls(head("GET", "/repos", TLS)))
refuses("tunnel-of-ssh", "silent", lambda: without_tls(b"SSH-2.0-OpenSSH_9.2\r\n"))
in_tls("other-host-field", "403 host_mismatch", head("GET", "/repos", "denied.test"))
in_tls("whole-url", "400 malformed", head("GET", "https://denied.test/repos", TLS))
in_tls("two-host-fields", "400 malformed", head("GET", "/repos", TLS, ["Host: denied.test"]))
in_tls("folded-field", "400", head("GET", "/repos", TLS, ["x-a: b\r\n folded"]))
in_tls("connect", "400 malformed", head("CONNECT", "denied.test:443", TLS))
in_tls("method", "403 credential_rule", head("POST", "/repos", TLS, ["authorization: Bearer " + TLS_KEY]))
in_tls("path", "403 credential_rule", head("GET", "/admin", TLS, ["authorization: Bearer " + TLS_KEY]))
in_tls("placeholder-of-another-host", "403 credential_rule", head("GET", "/repos", TLS, ["authorization: Bearer " + KEY]))
in_tls("foreign-authorization", "403 foreign_credential", head("GET", "/repos", TLS, ["authorization: Bearer c3RvbGVu"]))
in_tls("basic-of-another", "403 foreign_credential", head("GET", "/repos", TLS, ["authorization: Basic " + base64.b64encode(b"me:stolen").decode()]))

# Asked directly, past the relay.
ASK = "CONNECT %s:443 HTTP/1.1\r\nHost: %s:443\r\n%s\r\n"


def direct(name, refusal, token, address=DIRECT, target=TLS):
    def attempt():
        given = token()
        field = "Proxy-Authorization: %s\r\n" % given if given else ""
        return status(exchange(address, (ASK % (target, target, field)).encode()))

    refuses("direct-" + name, refusal, attempt)


def claims():
    pod = variable_of_sandboxd("POD_UID")
    return dict(aud="longhand-egress", sub="sesn_attempt", sandbox="main", pod=pod, harness="a", seed="A" * 43 + "=")


direct("without-token", "407 no_token", lambda: "")
direct("basic-token", "407 no_token", lambda: "Basic YTpi")
direct("wrong-token", "407 token_refused", lambda: "Bearer a.b.c")
direct("alg-none", "407 token_refused", lambda: "Bearer " + forged("none", b"", **claims()))
direct("hmac-of-public-key", "407 token_refused", lambda: "Bearer " + forged("HS256", raw_key(variable_of_sandboxd("SANDBOXD_VERIFY_KEY")), **claims()))
direct("zero-signature", "407 token_refused", lambda: "Bearer " + forged("EdDSA", bytes(64), **claims()))
direct("other-session-without-token", "407 no_token", lambda: "", OTHER)


@row("egress/direct-authority-without-token", "407 no_token")
def _():
    return outcome(lambda: status(exchange(DIRECT, head("GET", "/ca.pem", "a"))))


# The egress token, if the memory of sandboxd can be read: it gives what the relay gives, and nothing at another proxy.
def stolen(address, target):
    tokens = memory_of_sandboxd(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{40,}\.[A-Za-z0-9_-]{86}")
    if isinstance(tokens, str) or not tokens:
        return "nothing was stolen"
    field = "Proxy-Authorization: Bearer %s\r\n"
    answers = {status(exchange(address, (ASK % (target, target, field % token.decode())).encode())) for token in tokens}
    return " and ".join(sorted(answers))


NOTHING = "nothing was stolen"
refuses("stolen-token-denied-host", NOTHING + "|407 token_refused|403 host_not_allowed( and 407 token_refused)?", lambda: stolen(DIRECT, "denied.test"))
refuses("stolen-token-at-another-session", NOTHING + "|407 token_refused", lambda: stolen(OTHER, TLS))


# What comes back.
@row("egress/reflected-credential", "200, removed")
def _():
    said = dict(MESSAGE, messages=[{"role": "user", "content": "reflect " + KEY}])
    answer = plain(PATH, "x-api-key: " + KEY, "anthropic-version: 2023-06-01", "content-type: application/json", body=json.dumps(said))
    if re.search("sk-" + "e2e-[0-9a-f]", answer):
        return "the value"
    removed = "[credential removed]" in answer
    return status(answer) + (", removed" if removed else ", not removed: " + answer[-120:])
