"""Runs inside a sandbox: what programs do besides plain requests, with placeholders, against the server of protocols.mjs.

protocols.py [CHECK...]   prints for each `ok NAME`, or `FAILED NAME: why`, and what came back with a credential in it; fails if one did.

SERVER, OTHER, OBJECTS     hosts that a credential is bound to: PROTOCOL_TOKEN, OTHER_TOKEN, and keys of AWS
REFUSED                    a host that the sandbox may not reach
BEHIND_PROXY               1 where a credential proxy is in between. Without it the placeholders are the values themselves.

The proxy and the authorities to trust are in the environment, as Longhand sets them.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import secrets
import ssl
import struct
import subprocess
import sys
import tempfile
import urllib.parse

SERVER, OTHER, OBJECTS, REFUSED = (os.environ[name] for name in ("SERVER", "OTHER", "OBJECTS", "REFUSED"))
PLACEHOLDER = os.environ["PROTOCOL_TOKEN"]
BEHIND_PROXY = os.environ.get("BEHIND_PROXY") == "1"
BEARER = ["--header", f"Authorization: Bearer {PLACEHOLDER}"]
# How curl is told a version, how curl says it, and how the server does.
VERSIONS = [("--http2", "2", "2.0"), ("--http1.1", "1.1", "1.1")]
# In seconds: what hangs is a failure too.
LIMIT = 120
SIZE = 100 << 20
PIECE = 1 << 20
# Base64 may begin with what stands before a value, and end with a character that the value alone does not decide.
REMOVED = r"(?:bWU6)?\[credential removed\]\*+[A-Za-z0-9+/_-]?=*"
FORMS = ["raw", "base64", "base64url", "basic", "url", "hex", "upper"]


class Failed(Exception):
    """What is not as it should be."""


def need(holds, what):
    if not holds:
        raise Failed(what)


def command(*arguments):
    return ["curl", "--silent", "--show-error", "--max-time", str(LIMIT), *arguments]


def curl(*arguments):
    """What curl writes to its standard output, whatever it came to."""
    done = subprocess.run(command(*arguments), capture_output=True, timeout=LIMIT + 10)
    return (done.stdout + done.stderr).decode(errors="replace")


def ask(*arguments):
    text = curl(*arguments)
    try:
        return json.loads(text)
    except ValueError:
        raise Failed(text) from None


def check_versions():
    for flag, of_client, of_server in VERSIONS:
        text = curl(flag, *BEARER, "--write-out", "%{http_version}", f"https://{SERVER}/whoami")
        expected = json.dumps({"version": of_server, "known": "one"}, separators=(",", ":")) + "\n" + of_client
        need(text == expected, f"{flag}: {text}")


def check_events():
    """The server goes on only once it was told of the first event: who holds that back gets no second one."""
    for flag, _, _ in VERSIONS:
        name = secrets.token_hex(4)
        arguments = command(flag, "--no-buffer", *BEARER, f"https://{SERVER}/events?id={name}")
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as reader:
            first = reader.stdout.readline() + reader.stdout.readline()
            need(first == b"data: first\n\n", f"{flag}: {first}")
            need(reader.poll() is None, f"{flag}: the stream has ended")
            ask(*BEARER, f"https://{SERVER}/events/told?id={name}")
            rest = reader.stdout.read()
            need(rest == b"data: second\n\n" and reader.wait(LIMIT) == 0, f"{flag}: {rest}")


def check_chunked():
    """The second half of a body leaves only once the first one has arrived."""
    halves = [secrets.token_bytes(5000), secrets.token_bytes(7000)]
    whole = hashlib.sha256(b"".join(halves)).hexdigest()
    for flag, _, of_server in VERSIONS:
        name = secrets.token_hex(4)
        arguments = command(flag, *BEARER, "--upload-file", "-", f"https://{SERVER}/upload?id={name}")
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            writer.stdin.write(halves[0])
            writer.stdin.flush()
            ask(*BEARER, f"https://{SERVER}/upload/arrived?id={name}")
            writer.stdin.write(halves[1])
            writer.stdin.close()
            text = writer.stdout.read()
        # HTTP/2 has no other framing than its own.
        transfer = "chunked" if of_server == "1.1" else None
        expected = {"size": 12000, "sha256": whole, "length": None, "transfer": transfer}
        need(text and json.loads(text) == expected, f"{flag}: {text}")


def check_large():
    with tempfile.NamedTemporaryFile() as file:
        digest = hashlib.sha256()
        for _ in range(SIZE // PIECE):
            piece = secrets.token_bytes(PIECE)
            digest.update(piece)
            file.write(piece)
        file.flush()
        for flag, _, _ in VERSIONS:
            got = ask(flag, *BEARER, "--upload-file", file.name, f"https://{SERVER}/upload")
            need((got["size"], got["sha256"]) == (SIZE, digest.hexdigest()), f"{flag} up: {got}")
            need(got["length"] == str(SIZE) and got["transfer"] is None, f"{flag} up: {got}")
    for flag, _, _ in VERSIONS:
        with tempfile.NamedTemporaryFile() as heads:
            arguments = command(flag, *BEARER, "--dump-header", heads.name, f"https://{SERVER}/download")
            digest, size = hashlib.sha256(), 0
            with subprocess.Popen(arguments, stdout=subprocess.PIPE) as reader:
                while piece := reader.stdout.read(PIECE):
                    digest.update(piece)
                    size += len(piece)
            named = re.search(r"(?m)^x-sha256: ([0-9a-f]{64})\s*$", heads.read().decode())
            need(named and (size, digest.hexdigest()) == (SIZE, named[1]), f"{flag} down: {size} bytes of {named}")


class WebSocket:
    """A client of one, with what it offers and the credential in the head of its request."""

    def __init__(self):
        proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
        trust = ssl.create_default_context()
        self.connection = http.client.HTTPSConnection(proxy.hostname, proxy.port, timeout=LIMIT, context=trust)
        self.connection.set_tunnel(SERVER, 443)
        self.connection.connect()
        self.stream = self.connection.sock.makefile("rwb")
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self.send(
            f"GET /websocket HTTP/1.1\r\nHost: {SERVER}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer {PLACEHOLDER}\r\n\r\n".encode()
        )
        head = b"".join(iter(self.stream.readline, b"\r\n")).decode().lower()
        accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        expected = f"sec-websocket-accept: {base64.b64encode(accept).decode()}\r\n".lower()
        need(head.startswith("http/1.1 101 ") and expected in head, head)
        need("sec-websocket-extensions" not in head, head)

    def send(self, data):
        self.stream.write(data)
        self.stream.flush()

    def frame(self, kind, data):
        mask = secrets.token_bytes(4)
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.send(bytes([0x80 | kind]) + length + mask + masked)

    def next(self):
        """The kind and the data of the next frame, which is not masked."""
        kind, length = self.stream.read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self.stream.read(2))
        return kind & 15, self.stream.read(length)

    def say(self, text):
        self.frame(1, text.encode())
        return self.next()


def check_websocket():
    socket = WebSocket()
    kind, data = socket.next()
    # Frames that are compressed could not be searched, so that nobody is offered to.
    offered = None if BEHIND_PROXY else "permessage-deflate"
    need(kind == 1 and json.loads(data) == {"known": "one", "extensions": offered}, data)
    # What is in a frame goes as it is, a placeholder too. An end that a value may begin with would be held back until more comes.
    for text in ["first.", "x" * 1000 + ".", f"{PLACEHOLDER}.", "last."]:
        got = socket.say(text)
        need(got == (1, b"echo: " + text.encode()), got)
    kind, data = socket.say("secret")
    print(f"websocket: {data.decode(errors='replace')}")
    clean(json.loads(data))
    # The frames after it begin where they should.
    need(socket.say("end.") == (1, b"echo: end."), "a frame of another length")
    socket.frame(8, struct.pack(">H", 1000))
    need(socket.next() == (8, struct.pack(">H", 1000)), "no frame that closes")
    socket.connection.close()


def clean(forms):
    """Whether a credential was taken out in each of its forms."""
    need(sorted(forms) == sorted(FORMS), forms)
    for name, form in forms.items():
        need(not BEHIND_PROXY or re.fullmatch(REMOVED, form), f"{name}: {form}")


def check_echo():
    for flag, _, _ in VERSIONS:
        text = curl(flag, "--include", "--suppress-connect-headers", *BEARER, f"https://{SERVER}/echo").replace("\r\n", "\n")
        print(f"echo {flag}: {text}")
        need(re.match(r"HTTP/[0-9.]+ 200\b", text) and text.count("\nend\n") == 1, "no answer")
        clean(dict(re.findall(r"(?m)^x-echo-(\w+): (.*)$", text.partition("\n\n")[0])))
        clean(dict(re.findall(r"(?m)^(\w+)=(.*)[.]$", text)))
        trailer = re.findall(r"(?m)^x-trailer: (.*)$", text)
        need(len(trailer) == (flag == "--http2"), "another number of trailers")
        need(not BEHIND_PROXY or all(re.fullmatch(REMOVED, value) for value in trailer), "a trailer has it")
        need(not BEHIND_PROXY or "set-cookie" not in text.lower(), "a cookie came back")


def followed(to, trust="--location"):
    """The heads, the body and the outcome where a redirect leads."""
    with tempfile.TemporaryDirectory() as folder:
        heads, body = os.path.join(folder, "heads"), os.path.join(folder, "body")
        files = ["--dump-header", heads, "--output", body]
        url = f"https://{SERVER}/redirect?to={urllib.parse.quote(to, '')}"
        outcome = curl(trust, *files, "--write-out", "%{http_code} %{http_connect} %{num_redirects}", *BEARER, url)
        return content(heads), content(body), outcome


def content(path):
    """curl makes no file where no answer came."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="latin-1") as file:
        return file.read()


def check_redirects():
    _, body, outcome = followed(f"https://{SERVER}/whoami")
    need(outcome == "200 200 1" and json.loads(body)["known"] == "one", f"the same host: {outcome} {body}")
    _, body, outcome = followed(f"https://{OTHER}/whoami")
    need(outcome == "200 200 1" and json.loads(body)["known"] == "nothing", f"another host: {outcome} {body}")
    if not BEHIND_PROXY:
        return
    # A program that takes its credential along has it refused there.
    heads, body, outcome = followed(f"https://{OTHER}/whoami", "--location-trusted")
    rule = f'credential "protocols/one" may not be used for this request: it allows hosts {SERVER} only, not {OTHER}'
    need(outcome == "403 200 1" and rule in body, f"taken along: {outcome} {body}")
    need("x-longhand-denied: credential_rule" in heads.lower(), heads)
    heads, body, outcome = followed(f"https://{REFUSED}/echo")
    # Of an answer to CONNECT, programs show no more than its head.
    rule = f"HTTP/1.1 403 this sandbox may not reach {REFUSED}: its template's allowedHosts do not name it"
    need(" 403 1" in outcome and rule in heads, f"refused: {outcome} {heads}")
    need("x-longhand-denied: host_not_allowed" in heads.lower(), heads)


def check_objects():
    own = f"{os.environ['AWS_ACCESS_KEY_ID']}:{os.environ['AWS_SECRET_ACCESS_KEY']}"
    url = f"https://{OBJECTS}/bucket/a%20b%2Bc"

    def signed(*arguments, keys=own, region="us-east-1"):
        signing = ["--user", keys, "--aws-sigv4", f"aws:amz:{region}:s3"]
        return curl("--write-out", " %{http_code}", *signing, *arguments)

    for flag, _, of_server in VERSIONS:
        put = signed(flag, "--request", "PUT", "--data-binary", f"of {of_server}", url)
        need(put == " 200", f"{flag} PUT: {put}")
        got = signed(flag, f"{url}?partNumber=2&versionId=1")
        need(got == f"of {of_server} 200", f"{flag} GET: {got}")
    if not BEHIND_PROXY:
        return
    got = signed("--include", url, region="eu-west-1")
    need(got.endswith(" 403") and "it signs for the regions us-east-1 only" in got, f"another region: {got}")
    need("x-longhand-denied: aws_signature" in got.lower(), f"another region: {got}")
    got = signed("--include", url, keys="AKIAIOSFODNN7EXAMPLE:not-of-this-session")
    need(got.endswith(" 403") and "x-longhand-denied: foreign_credential" in got.lower(), f"other keys: {got}")


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def main():
    failed = False
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            print(f"ok {name}", flush=True)
        except (Failed, OSError, ValueError, subprocess.SubprocessError, http.client.HTTPException) as error:
            failed = True
            print(f"FAILED {name}: {type(error).__name__} {str(error)[:1000]}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
