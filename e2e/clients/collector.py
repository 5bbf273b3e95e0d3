"""A collector of traces for tests: keeps what comes by OTLP over HTTP, and gives it back.

collector.py [--port 4318]

`POST /v1/traces` is kept as it is, `GET /exports` is a JSON list of all that came, each in Base64, and `GET /healthz` says that it is there.
"""

import argparse
import base64
import http.server
import json
import threading

MAX_BODY = 8 << 20
MAX_EXPORTS = 10_000


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    exports: list[bytes] = []
    lock = threading.Lock()

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if self.path != "/v1/traces" or length > MAX_BODY:
            return self.answer(404, b"")
        body = self.rfile.read(length)
        with self.lock:
            if len(self.exports) >= MAX_EXPORTS:
                return self.answer(429, b"")
            self.exports.append(body)
        self.answer(200, b"")

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, b"ok")
        if self.path != "/exports":
            return self.answer(404, b"")
        with self.lock:
            exports = [base64.b64encode(export).decode() for export in self.exports]
        self.answer(200, json.dumps(exports).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=4318)
    port = parser.parse_args().port
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Collector).serve_forever()


if __name__ == "__main__":
    main()
