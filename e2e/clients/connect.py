"""A proxy that takes CONNECT, as a company has it: it resolves the names, and says what was asked of it.

connect.py [--port 3128] [--to NAME=ADDRESS:PORT]...

What it does not know by a `--to` it refuses. `GET /asked` is a JSON object of how often each `host:port` was asked for, and `GET /healthz`
says that it is there.
"""

import argparse
import collections
import http.server
import json
import select
import socket
import threading

# In seconds.
CONNECT, SILENT = 10, 300


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: collections.Counter = collections.Counter()
    lock = threading.Lock()
    known: dict[str, tuple[str, int]] = {}

    def do_CONNECT(self):
        with self.lock:
            self.asked[self.path] += 1
        if self.path not in self.known:
            return self.answer(403, b"")
        self.close_connection = True
        try:
            upstream = socket.create_connection(self.known[self.path], CONNECT)
        except OSError:
            return self.answer(502, b"")
        with upstream:
            self.send_response(200)
            self.end_headers()
            relay(self.connection, upstream)

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, b"ok")
        if self.path != "/asked":
            return self.answer(404, b"")
        with self.lock:
            asked = dict(self.asked)
        self.answer(200, json.dumps(asked).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def relay(one, other):
    """Until both have ended, or nothing moves."""
    pairs = {one: other, other: one}
    while pairs:
        ready, _, _ = select.select(list(pairs), [], [], SILENT)
        if not ready:
            return
        for end in ready:
            try:
                data = end.recv(1 << 16)
                pairs[end].sendall(data) if data else pairs[end].shutdown(socket.SHUT_WR)
            except OSError:
                return
            if not data:
                del pairs[end]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=3128)
    parser.add_argument("--to", action="append", default=[])
    words = parser.parse_args()
    for name, _, place in (to.partition("=") for to in words.to):
        host, _, port = place.rpartition(":")
        Proxy.known[name] = (host, int(port))
    http.server.ThreadingHTTPServer(("0.0.0.0", words.port), Proxy).serve_forever()


if __name__ == "__main__":
    main()
