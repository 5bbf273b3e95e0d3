"""Claude Code as a harness of Longhand: it thinks, its tools are the session's alone, and what it knows is in the log.

Each line of its transcript is mirrored into the log, and no tool is called before the line that wants it is there. Killed in the middle,
its successor writes the transcript anew, with the results of the calls that were open, and Claude Code goes on from it. The loop is that
of the harness in Python beside this one.
"""

import ctypes, functools, hashlib, json, os, re, signal, subprocess, sys, tempfile, threading, time, urllib.error, urllib.request, uuid  # noqa: E401
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "harness-python"))

import harness  # noqa: E402
from harness import TLS, Log, Moved, Turn, event, leave  # noqa: E402

CLAUDE = os.environ.get("CLAUDE", "claude")
CONVERSATION = str(uuid.uuid5(uuid.NAMESPACE_URL, os.environ["SESSION_ID"]))
HOME = Path(tempfile.gettempdir()).resolve() / "claude-code"
TRANSCRIPT = HOME / ".claude" / "projects" / re.sub("[^a-zA-Z0-9]", "-", str(HOME)) / f"{CONVERSATION}.jsonl"
SERVER, KIND, GO_ON = "longhand", "x.harness.transcript", "Go on where you were interrupted."
QUIET = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "MCP_TOOL_TIMEOUT": "3600000"}
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None, use_errno=True), 1
CHUNK, FLUSH_SECONDS, KEEP_ALIVE_SECONDS, PATIENCE_SECONDS = 80_000, 5, 10, 600


def die_with(parent):
    """What a child does before it becomes another program: it is killed when its parent is, however that happens."""
    if LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
        os._exit(1)


def tool_use_id(model_id):
    """The identifier of the event that stands for a call: always the same, so that a call that is asked for again is the same call."""
    return "sevt_" + hashlib.sha256(f"{os.environ['SESSION_ID']} {model_id}".encode()).hexdigest()[:24]


def blocks(line, kind):
    content = line.get("message", {}).get("content")
    return [block for block in content if block.get("type") == kind] if isinstance(content, list) else []


class Mirror(Log):
    """What the log says, the transcript among it."""

    def __init__(self):
        super().__init__()
        self.text, self.rest, self.lines, self.asked, self.given, self.intended = "", "", [], [], False, set()

    def take(self, body):
        super().take(body)
        if self.given and body["type"] in ("user.message", "user.interrupt"):
            self.asked, self.given = [], False  # It is in the transcript, and is not asked again.
        if body["type"] == "user.message":
            self.asked += body["content"]
        elif body["type"] == "agent.tool_use":
            self.intended.add(body["id"])
        elif body["type"] == KIND:
            self.text += body["text"]
            *whole, self.rest = (self.rest + body["text"]).split("\n")
            lines = [json.loads(line) for line in whole if line]
            self.lines += lines
            self.given = self.given or any(line["type"] == "user" and not blocks(line, "tool_result") for line in lines)
        elif body["type"] == "span.model_request_end" and not body["is_error"]:
            self.asked, self.given = [], False

    def orphans(self):
        """Calls in the transcript without results, and the lines that want them."""
        answered = {block["tool_use_id"] for line in self.lines for block in blocks(line, "tool_result")}
        calls = [(line, block) for line in self.lines for block in blocks(line, "tool_use")]
        return [(line, block) for line, block in calls if block["id"] not in answered]

    def has_answered(self):
        """Whether the last word of the transcript is the agent's, and ends its turn."""
        last = [line for line in self.lines if line["type"] in ("assistant", "user")][-1:]
        ended = any(line["message"].get("stop_reason") not in (None, "tool_use", "pause_turn") and blocks(line, "text") for line in last)
        return self.given and last[0]["type"] == "assistant" and ended

    def wants_model(self):
        return bool(self.asked) and not self.interrupted and not self.gave_up


class Relay(ThreadingHTTPServer):
    """The MCP server that Claude Code knows: it passes everything on, and a call only when it is on record what wants it."""

    daemon_threads = True

    def __init__(self, call_tool):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.send_error(405)

            do_DELETE = do_GET

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                called = body.get("method") == "tools/call"
                self.send_response(200 if "id" in body else 202)
                self.send_header("content-type", "text/event-stream" if "id" in body else "application/json")
                self.end_headers()
                answer = []
                work = threading.Thread(target=lambda: answer.append(call_tool(body) if called else to_service(body)), daemon=True)
                work.start()
                while work.is_alive():
                    work.join(KEEP_ALIVE_SECONDS)
                    if work.is_alive():
                        self.wfile.write(b": it still runs\n\n")
                if "id" in body and answer and answer[0]:
                    self.wfile.write(b"event: message\ndata: %b\n\n" % json.dumps(answer[0]).encode())

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def to_service(body):
    """The answer of MCP_URL to one JSON-RPC message."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with open(os.environ["SESSION_TOKEN_FILE"]) as file:
            headers = {"authorization": f"Bearer {file.read().strip()}", "content-type": "application/json",
                       "accept": "application/json, text/event-stream"}
        request = urllib.request.Request(os.environ["MCP_URL"], json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=3600, context=TLS if os.environ["MCP_URL"].startswith("https") else None) as answer:
                text = answer.read().decode()
                if answer.headers.get_content_type() == "application/json":
                    return json.loads(text)
                data = [line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
                if data or "id" not in body:
                    return json.loads(data[-1]) if data else None
                why = "an answer without an end"
        except urllib.error.HTTPError as error:
            why = f"{error.code} {error.read(2000).decode(errors='replace')}"
            if error.code in (401, 403, 412):
                leave(4, f"the session is not ours: {why}")
            if error.code < 500 and error.code != 429:
                return {"jsonrpc": "2.0", "id": body.get("id"), "error": {"code": -32603, "message": why}}
        except OSError as error:
            why = str(error)
        if time.monotonic() > end:
            leave(1, f"MCP: {why}")
        time.sleep(0.3)


class ClaudeTurn(Turn):
    """From a claim until nothing is left to do."""

    def __init__(self, claim, log):
        super().__init__(claim, log)
        self.changed, self.process, self.current, self.stopped, self.size = threading.Condition(), None, None, None, 0

    def insist(self, events):
        """Appends, whatever else is appended meanwhile; all events have identifiers of their own."""
        while True:
            try:
                return self.change("append", events=events)
            except Moved:
                self.read()

    def mirror(self, run, *, ended=False):
        """Puts what is new in the transcript on record, with what the agent says in it, unless the run is over."""
        with self.changed:
            if run is self.current:
                self.mirror_new(ended)
                self.changed.notify_all()

    def mirror_new(self, ended):
        size = TRANSCRIPT.stat().st_size if TRANSCRIPT.exists() else 0
        if size == self.size and not ended:
            return
        self.size, text = size, TRANSCRIPT.read_text() if size else ""
        new = text[len(self.log.text) : text.rfind("\n") + 1]
        lines = [json.loads(line) for line in new.split("\n") if line]
        known = {line.get("uuid") for line in [*self.log.lines, *lines]} | {None}
        # Lines are not written in their order: half of them would be no conversation.
        if not ended and (any(line.get("parentUuid") not in known for line in lines) or not any("message" in line for line in lines)):
            return
        while new:
            cut = new.rfind("\n", 0, CHUNK) + 1 or new.find("\n") + 1
            part, new = new[:cut], new[cut:]
            events = [event(KIND, text=part[at : at + CHUNK]) for at in range(0, len(part), CHUNK)]
            for line in map(json.loads, filter(None, part.split("\n"))):
                said = [{"type": "text", "text": block["text"]} for block in blocks(line, "text") if block["text"]]
                if line["type"] == "assistant" and said and line["message"].get("model") != "<synthetic>":
                    events.append({"id": "sevt_" + uuid.UUID(line["uuid"]).hex, "type": "agent.message", "content": said})
            self.insist(events)

    def call_tool(self, body, run):
        model_id = body["params"].get("_meta", {}).get("claudecode/toolUseId")

        def on_record():
            return run is self.current and any(block["id"] == model_id for line in self.log.lines for block in blocks(line, "tool_use"))

        with self.changed:
            if not model_id or not self.changed.wait_for(on_record, 30):
                text = "The call was not run: the transcript does not say that it is wanted."
                return {"jsonrpc": "2.0", "id": body["id"], "result": {"content": [{"type": "text", "text": text}], "isError": True}}
        body["params"]["_meta"] = {"longhand.dev/tool-use-id": tool_use_id(model_id)}
        return to_service(body)

    def restore(self, run, resuming):
        """Writes the transcript as the log has it, and gives each open call its result."""
        TRANSCRIPT.parent.mkdir(parents=True, exist_ok=True)
        TRANSCRIPT.write_text(self.log.text)
        if not self.log.text:  # A file, even an empty one, is a conversation that is in use.
            TRANSCRIPT.unlink()
        for line, block in self.log.orphans():
            name = block["name"].removeprefix(f"mcp__{SERVER}__")
            meta = {"longhand.dev/tool-use-id": tool_use_id(block["id"])}
            answer = {}
            if resuming or meta["longhand.dev/tool-use-id"] in self.log.intended:
                params = {"name": name, "arguments": block["input"], "_meta": meta}
                answer = to_service({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
            if run is not self.current:
                return
            result = answer.get("result") or {"content": [{"type": "text", "text": "The call was interrupted."}], "isError": True}
            said = {"tool_use_id": block["id"], "type": "tool_result", "content": result["content"], "is_error": bool(result.get("isError"))}
            with TRANSCRIPT.open("a") as file:
                kept = {name: line[name] for name in ("isSidechain", "userType", "cwd", "sessionId", "version", "gitBranch") if name in line}
                made = {"parentUuid": line["uuid"], "type": "user", "message": {"role": "user", "content": [said]}, "uuid": str(uuid.uuid4()),
                        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()), "sourceToolAssistantUUID": line["uuid"]}
                file.write(json.dumps(kept | made) + "\n")
        self.mirror(run, ended=True)

    def request(self, wake, running):
        self.change("append", events=[*running, event("span.model_request_start")])
        run = self.current = object()
        outcome = self.unless_interrupted(wake, lambda: self.run(run))
        if outcome is not None:
            return self.insist(outcome)
        self.stopped = run
        if self.process:
            self.process.kill()
            self.process.wait()
        self.mirror(run, ended=True)
        self.current = None

    def run(self, run):
        """Claude Code from a prompt to the end of its turn; what is to be put on record then."""
        given = self.log.given
        self.restore(run, given)
        if given and self.log.has_answered():
            return [self.span_end(is_error=False)]
        relay = Relay(lambda body: self.call_tool(body, run))
        try:
            return self.converse(run, [] if given else self.log.asked, relay.server_address[1])
        finally:
            relay.shutdown()
            relay.server_close()

    def converse(self, run, prompt, port):
        servers = HOME / "mcp.json"
        servers.write_text(json.dumps({"mcpServers": {SERVER: {"type": "http", "url": f"http://127.0.0.1:{port}/mcp"}}}))
        known = "--resume" if self.log.lines else "--session-id"
        command = [
            CLAUDE, "-p", "--bare", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", "--tools", "",
            "--strict-mcp-config", "--mcp-config", str(servers), "--allowedTools", f"mcp__{SERVER}", "--model", self.agent["model"]["id"], known, CONVERSATION,
            "--settings", json.dumps({"apiKeyHelper": f"cat '{os.environ['SESSION_TOKEN_FILE']}'"}),
            *(["--system-prompt", self.agent["system"]] if self.agent.get("system") else []),
        ]  # fmt: skip
        environment = {**os.environ, **QUIET, "HOME": str(HOME), "ANTHROPIC_BASE_URL": os.environ["MODEL_BASE_URL"]}
        if not prompt:
            environment |= {"CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "1", "CLAUDE_CODE_RESUME_PROMPT": GO_ON}
        with_us = functools.partial(die_with, os.getpid())
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HOME, env=environment, preexec_fn=with_us)
        if self.stopped is run:  # An interrupt came before there was anything to end.
            self.process.kill()
        result, spoken = {}, set()

        def listen():
            for line in self.process.stdout:
                said = json.loads(line)
                if said.get("type") == "assistant":
                    spoken.add(said["uuid"])
                elif said.get("type") == "result":
                    result.update(said, deadline=time.monotonic() + FLUSH_SECONDS)

        threading.Thread(target=listen, daemon=True).start()
        if prompt:
            json.dump({"type": "user", "message": {"role": "user", "content": prompt}}, self.process.stdin)
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        while self.process.poll() is None:
            self.mirror(run)
            written = result and spoken <= {line.get("uuid") for line in self.log.lines}
            if written or time.monotonic() > result.get("deadline", float("inf")):  # It ends without writing what is left to write.
                self.process.stdin.close()
                break
            time.sleep(0.02)
        try:
            self.process.wait(FLUSH_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.mirror(run, ended=True)
        if result.get("subtype") == "success" and not result.get("is_error"):
            return [self.span_end(is_error=False, usage=result.get("usage"))]
        why = str(result.get("result") or f"Claude Code ended with {self.process.returncode}")[:1000]
        error = {"type": "model_request_failed_error", "message": why, "retry_status": {"type": "exhausted"}}
        return [self.span_end(is_error=True), event("session.error", error=error)]


if __name__ == "__main__":
    HOME.mkdir(parents=True, exist_ok=True)
    harness.main(Mirror(), ClaudeTurn)
