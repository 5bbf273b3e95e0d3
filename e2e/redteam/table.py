"""The table that attempts are rows of, and what several groups of them need."""

import base64
import collections
import errno
import hashlib
import hmac
import json
import os
import re
import socket
import time

# `refusal` is a regular expression for all of what `attempt` returns; `limit` is in seconds.
Row = collections.namedtuple("Row", "name refusal limit attempt")
ROWS = []

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "facts.json")) as file:
    FACTS = json.load(file)
# In gVisor a program asks a kernel of its own: what that one lets it do is not done to the node's.
OWN_KERNEL = FACTS["runtime_class"] == "gvisor"


def row(name, refusal, limit=15):
    """Makes the function below it an attempt."""

    def add(attempt):
        assert all(name != other.name for other in ROWS), name
        ROWS.append(Row(name, refusal, limit, attempt))
        return attempt

    return add


def errno_of(error):
    """A short and stable name of an OSError: `EPERM`, or `timed out`."""
    if isinstance(error, socket.timeout):
        return "timed out"
    return errno.errorcode.get(error.errno, str(error))


def outcome(act, *words):
    """What `act` returns, or the name of its error."""
    try:
        return act(*words)
    except OSError as error:
        return errno_of(error)


def read_all(stream, wait=5):
    """What comes until the end of the stream, or until nothing comes any more."""
    stream.settimeout(wait)
    taken = b""
    try:
        while len(taken) < 1 << 20:
            some = stream.recv(65536)
            if not some:
                break
            taken += some
            if complete(taken):
                break
    except OSError:
        pass
    return taken


def complete(answer):
    """Whether an answer that states its length is there as a whole."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return bool(end and length and len(body) >= int(length.group(1)))


def exchange(address, request, wait=5):
    """Sends bytes, and returns the answer as text."""
    with socket.create_connection(address, 3) as stream:
        stream.sendall(request)
        return read_all(stream, wait).decode("latin-1")


def status(answer):
    """The status of an answer and the rule that refused it, such as `403 host_not_allowed`."""
    found = re.match(r"HTTP/1\.[01] (\d+)", answer)
    if not found:
        return "closed" if not answer else "no HTTP: %r" % answer[:80]
    rule = re.search(r"(?im)^x-longhand-denied: *(\S+)", answer)
    return found.group(1) + (" " + rule.group(1) if rule else "")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(algorithm, secret, **claims):
    """A token that nobody signed, or that is signed by what everybody knows."""
    now = int(time.time())
    claims = dict({"iat": now, "exp": now + 60}, **claims)
    head = b64(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    said = head + "." + b64(json.dumps(claims).encode())
    if algorithm == "HS256":
        return said + "." + b64(hmac.new(secret, said.encode(), hashlib.sha256).digest())
    return said + "." + b64(secret)


def raw_key(key):
    """The bytes of a public key in base64, or none of them."""
    return base64.b64decode(key or "AAAA")


def variable_of_sandboxd(name):
    """A variable of sandboxd's own environment, if tools can read it."""
    try:
        with open("/proc/1/environ", "rb") as file:
            pairs = [pair.partition(b"=") for pair in file.read().split(b"\0")]
    except OSError:
        return ""
    return next((value.decode() for key, _, value in pairs if key == name.encode()), "")


def memory_of_sandboxd(pattern):
    """What the pattern finds in the memory of sandboxd, or the name of the error."""
    found = set()
    try:
        with open("/proc/1/maps") as maps, open("/proc/1/mem", "rb", 0) as memory:
            for line in maps:
                begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                if line.split()[1][:2] != "rw" or end - begin > 64 << 20:
                    continue
                try:
                    memory.seek(begin)
                    found.update(re.findall(pattern, memory.read(end - begin)))
                except (OSError, ValueError, OverflowError):
                    continue
    except OSError as error:
        return errno_of(error)
    return sorted(found)
