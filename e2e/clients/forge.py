"""The servers that real clients are driven against: git with LFS, PyPI, npm and cargo registries, an echo, OAuth and MCP.

forge.py --cert FILE --key FILE --credential-file FILE --name HOST [--port 8443] [--root DIR] [--refresh-token-file FILE]

Nothing is served without the credential, except for `/healthz`, `/seen` (how often what was served), and what has tokens of its
own: LFS objects, OAuth and MCP. Its value is read at each request, so that a rotation is seen. It is in no log, and in no answer
but that of `/echo`.
"""

import argparse
import base64
import collections
import hashlib
import hmac
import http.server
import json
import os
import re
import secrets
import signal
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse

import content
import oauth

MAX_BODY = 64 << 20
# How long a token for one LFS object is good, in seconds.
MINTED_FOR = 600
OPERATIONS = {"GET": "download", "PUT": "upload"}
LFS_TYPE = "application/vnd.git-lfs+json"

# `body` is bytes, or yields them while they come.
Answer = collections.namedtuple("Answer", "status kind body headers", defaults=[b"", {}])
# `guard` says whether a request may, `act` does what it asks for.
Route = collections.namedtuple("Route", "methods pattern guard act")


class BadRequest(Exception):
    """What cannot be read."""


class Request:
    """A request whose body, a file, is there as a whole: it is taken out of its framing here, and not by git."""

    def __init__(self, method, target, headers, body):
        url = urllib.parse.urlsplit(target)
        self.method, self.query, self.headers, self.body = method, url.query, headers, body
        # npm encodes the slash of a scope.
        self.path = urllib.parse.unquote(url.path)
        self.authorization = headers.get("Authorization", "")
        self.match = None

    def after(self, scheme):
        """What stands behind the scheme of `Authorization`."""
        sent, _, rest = self.authorization.partition(" ")
        return rest.strip() if sent.lower() == scheme else ""

    def basic(self):
        """User name and password of HTTP Basic, as bytes."""
        try:
            return base64.b64decode(self.after("basic"), validate=True)
        except ValueError:
            return b""

    def text(self):
        self.body.seek(0)
        return self.body.read().decode(errors="replace")

    def json(self):
        try:
            value = json.loads(self.text())
        except ValueError as error:
            raise BadRequest("no JSON") from error
        if not isinstance(value, dict):
            raise BadRequest("no JSON object")
        return value


class Forge:
    """What is known and kept, and an answer to each kind of request."""

    def __init__(self, name, root, credential_file, refresh_token_file=None):
        self.base, self.root, self.credential_file = f"https://{name}", root, credential_file
        self.provider = oauth.Provider(read_secret(refresh_token_file).decode() if refresh_token_file else None)
        self.packages = content.packages(self.base)
        self.key = secrets.token_bytes(32)
        self.seen, self.lock = collections.Counter(), threading.Lock()
        content.make(root)

    # Guards.
    def anybody(self, _request):
        return True

    def by_basic(self, request):
        return self.is_value(request.basic().partition(b":")[2])

    def by_bearer(self, request):
        return self.is_value(request.after("bearer").encode("latin-1"))

    def by_itself(self, request):
        """cargo sends the token without a scheme."""
        return self.is_value(request.authorization.encode("latin-1"))

    def by_minted(self, request):
        until, _, signature = request.after("bearer").partition(".")
        expected = self.signature(OPERATIONS.get(request.method), request.match["oid"], until)
        right = hmac.compare_digest(signature.encode("latin-1"), expected.encode())
        # What is signed is a number.
        return right and int(until) > time.time()

    def by_access_token(self, request):
        return self.provider.knows(request.after("bearer"))

    def is_value(self, given):
        value = read_secret(self.credential_file)
        return bool(value) and hmac.compare_digest(given, value)

    # Answers.
    def health(self, _request):
        return Answer(200, None, b"ok\n")

    def counts(self, _request):
        with self.lock:
            return said(None, dict(sorted(self.seen.items())))

    def package(self, request):
        kind = request.match["kind"]
        if request.path not in self.packages:
            return Answer(404, kind)
        media, body = self.packages[request.path]
        return Answer(200, kind, body, {"Content-Type": media})

    def echo(self, request):
        value = read_secret(self.credential_file)
        return said("echo", {
            "method": request.method,
            "headers": dict(request.headers.items()),
            "body": request.text(),
            "credential": value.decode(),
            "credential_base64": base64.b64encode(value).decode(),
        })

    def git(self, request):
        """Runs `git http-backend`, which speaks CGI."""
        service = request.match["service"]
        environment = {
            **content.GIT_ENVIRONMENT,
            "HOME": self.root,
            "GIT_PROJECT_ROOT": os.path.join(self.root, "git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "forge",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path.removeprefix("/git"),
            "QUERY_STRING": request.query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(request.body.seek(0, os.SEEK_END)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }
        request.body.seek(0)
        child = subprocess.Popen(["git", "http-backend"], stdin=request.body, stdout=subprocess.PIPE, env=environment)
        headers = {}
        while line := child.stdout.readline().decode("latin-1").strip():
            name, _, value = line.partition(": ")
            headers[name] = value
        status = int(headers.pop("Status", "200")[:3])
        return Answer(status, "git refs" if service == "info/refs" else f"git {service[4:]}", output_of(child), headers)

    def lfs_batch(self, request):
        asked = request.json()
        try:
            operation, wanted = asked["operation"], [(one["oid"], int(one["size"])) for one in asked["objects"]]
            known = operation in OPERATIONS.values() and all(re.fullmatch("[0-9a-f]{64}", oid) for oid, _ in wanted)
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest("no request for LFS objects") from error
        if not known:
            raise BadRequest("no request for LFS objects")
        objects = [self.lfs_entry(operation, oid, size) for oid, size in wanted]
        return said("lfs batch", {"transfer": "basic", "objects": objects}, media=LFS_TYPE)

    def lfs_entry(self, operation, oid, size):
        entry, there = {"oid": oid, "size": size}, os.path.exists(self.object_file(oid))
        if there and operation == "upload":
            return entry
        if not there and operation == "download":
            return {**entry, "error": {"code": 404, "message": "no such object"}}
        until = str(int(time.time()) + MINTED_FOR)
        link = {
            "href": f"{self.base}/git/app.git/lfs/objects/{oid}",
            "header": {"Authorization": f"Bearer {until}.{self.signature(operation, oid, until)}"},
            "expires_in": MINTED_FOR,
        }
        return {**entry, "authenticated": True, "actions": {operation: link}}

    def signature(self, operation, oid, until):
        return hmac.digest(self.key, f"{operation} {oid} {until}".encode(), "sha256").hex()

    def object_file(self, oid):
        return os.path.join(self.root, "lfs", oid)

    def lfs_object(self, request):
        oid, kind = request.match["oid"], f"lfs {OPERATIONS[request.method]}"
        if request.method == "GET":
            with open(self.object_file(oid), "rb") as file:
                return Answer(200, kind, file.read(), {"Content-Type": "application/octet-stream"})
        request.body.seek(0)
        data = request.body.read()
        if hashlib.sha256(data).hexdigest() != oid:
            return Answer(422, kind, b"the content has another hash\n")
        # Whoever asks meanwhile finds all of it or nothing.
        with tempfile.NamedTemporaryFile(dir=self.root, delete=False) as file:
            file.write(data)
        os.replace(file.name, self.object_file(oid))
        return Answer(200, kind)

    def lfs_locks(self, _request):
        return said("lfs locks", {"ours": [], "theirs": []}, media=LFS_TYPE)

    def token(self, request):
        status, answer = self.provider.token(dict(urllib.parse.parse_qsl(request.text())))
        return said("oauth refresh", answer, status, **{"Cache-Control": "no-store"})

    def mcp(self, request):
        if request.method == "DELETE":
            return Answer(200, "mcp end")
        kind, answer = oauth.mcp(request.json())
        return Answer(202, kind) if answer is None else said(kind, answer)

    def answer(self, request):
        """Judges a request and does what it asks for."""
        if re.search(rb"lh[ps]_", request.authorization.encode("latin-1") + b" " + request.basic()):
            return Answer(400, "placeholder", b"a placeholder came through\n")
        for route in ROUTES:
            request.match = re.fullmatch(route.pattern, request.path)
            if request.match:
                break
        else:
            return Answer(404, "unknown")
        if not route.guard(self, request):
            challenge = "Bearer" if route.guard is Forge.by_access_token else "Basic"
            return Answer(401, "refused", b"who are you?\n", {"WWW-Authenticate": f'{challenge} realm="forge"'})
        if request.method not in route.methods:
            return Answer(405, "method", b"", {"Allow": ", ".join(route.methods)})
        return route.act(self, request)

    def count(self, answer):
        """Kinds that stand for an outcome already are counted as they are; probes of the pod and of the test not at all."""
        if answer.kind:
            plain = answer.status < 400 or answer.kind in ("placeholder", "refused")
            with self.lock:
                self.seen[answer.kind if plain else f"{answer.kind} {answer.status}"] += 1


ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
ROUTES = [
    Route(["GET"], "/healthz", Forge.anybody, Forge.health),
    Route(["GET"], "/seen", Forge.anybody, Forge.counts),
    Route(["GET"], "/git/app[.]git/(?P<service>info/refs)", Forge.by_basic, Forge.git),
    Route(["POST"], "/git/app[.]git/(?P<service>git-(upload|receive)-pack)", Forge.by_basic, Forge.git),
    Route(["POST"], "/git/app[.]git/info/lfs/objects/batch", Forge.by_basic, Forge.lfs_batch),
    Route(["POST"], "/git/app[.]git/info/lfs/locks/verify", Forge.by_basic, Forge.lfs_locks),
    Route(["GET", "PUT"], "/git/app[.]git/lfs/objects/(?P<oid>[0-9a-f]{64})", Forge.by_minted, Forge.lfs_object),
    Route(["GET"], "/(?P<kind>pypi)/.*", Forge.by_basic, Forge.package),
    Route(["GET"], "/(?P<kind>npm)/.*", Forge.by_bearer, Forge.package),
    Route(["GET"], "/(?P<kind>cargo)/.*", Forge.by_itself, Forge.package),
    Route(ANY, "/echo", Forge.by_bearer, Forge.echo),
    Route(["POST"], "/oauth/token", Forge.anybody, Forge.token),
    Route(["POST", "DELETE"], "/mcp", Forge.by_access_token, Forge.mcp),
]


def read_secret(path):
    with open(path, "rb") as file:
        return file.read().strip()


def said(kind, value, status=200, media="application/json", **headers):
    return Answer(status, kind, json.dumps(value).encode(), {"Content-Type": media, **headers})


def output_of(child):
    """What a program writes, as it comes. It ends with its reader."""
    try:
        while some := child.stdout.read1(1 << 16):
            yield some
    finally:
        child.stdout.close()
        child.wait()


class Handler(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1: bodies in both framings, answers that stream, and one line on stderr for each request."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "forge", ""
    # Longer than a proxy keeps a connection, so that it is never this side that ends one which is about to be used.
    timeout = 300
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        # Here and not in `accept`, so that one who connects and is silent holds up nobody else.
        self.request.do_handshake()

    def handle_request(self):
        with tempfile.TemporaryFile(buffering=0) as body:
            request = Request(self.command, self.path, self.headers, body)
            try:
                for part in self.parts():
                    body.write(part)
                answer = self.server.forge.answer(request)
            except BadRequest as error:
                # Where the next request begins is not known.
                self.close_connection = True
                answer = Answer(400, "malformed", f"{error}\n".encode())
            self.server.forge.count(answer)
            path = urllib.parse.quote(request.path, "/@")
            print(f"{self.command} {path} {answer.status} {answer.kind or 'probe'}", file=sys.stderr, flush=True)
            self.write(answer)

    def parts(self):
        """The body of the request, out of its framing."""
        length, encoding = self.headers.get_all("Content-Length", []), self.headers.get_all("Transfer-Encoding", [])
        if not encoding:
            if len(length) > 1 or not re.fullmatch("[0-9]{1,9}", "".join(length) or "0"):
                raise BadRequest("no length")
            yield self.exactly(int("".join(length) or 0))
            return
        if length or [name.lower() for name in encoding] != ["chunked"]:
            raise BadRequest("another framing than chunked")
        left = MAX_BODY
        while size := self.chunk_size():
            left -= size
            yield self.exactly(size if left >= 0 else MAX_BODY + 1)
            if self.exactly(2) != b"\r\n":
                raise BadRequest("a chunk without an end")
        while self.rfile.readline(4096).strip():
            pass

    def chunk_size(self):
        size = self.rfile.readline(4096).partition(b";")[0].strip()
        if not re.fullmatch(b"[0-9a-fA-F]{1,8}", size):
            raise BadRequest("no size of a chunk")
        return int(size, 16)

    def exactly(self, size):
        if size > MAX_BODY:
            raise BadRequest("too much")
        data = self.rfile.read(size)
        if len(data) < size:
            raise BadRequest("a body that breaks off")
        return data

    def write(self, answer):
        whole = isinstance(answer.body, bytes)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header(*(("Content-Length", len(answer.body)) if whole else ("Transfer-Encoding", "chunked")))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if whole:
            self.wfile.write(answer.body)
            return
        for part in answer.body:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = handle_request

    def log_message(self, *_words):
        """Nothing: the base class would repeat whole targets, with their queries."""


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, port, forge, tls):
        self.forge, self.tls = forge, tls
        super().__init__(("", port), Handler)

    def server_bind(self):
        # The base class looks up its own name, which can take long in a cluster.
        socketserver.TCPServer.server_bind(self)

    def get_request(self):
        connection, address = super().get_request()
        return self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, _request, _address):
        error = sys.exc_info()[1]
        print(f"a connection ended with {type(error).__name__}", file=sys.stderr, flush=True)
        if not isinstance(error, (ConnectionError, TimeoutError, ssl.SSLError)):
            traceback.print_exception(error)


def main():
    parser = argparse.ArgumentParser(description="The servers that real clients are driven against.")
    for name in ("cert", "key", "credential-file", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--root")
    parser.add_argument("--refresh-token-file")
    words = parser.parse_args()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.load_cert_chain(words.cert, words.key)
    # As the first process of a container it would not end otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    root = os.path.abspath(words.root or tempfile.mkdtemp(prefix="forge-"))
    with Server(words.port, Forge(words.name, root, words.credential_file, words.refresh_token_file), tls) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
