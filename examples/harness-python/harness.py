"""A harness of Longhand in one file: the loop of docs/harness-contract.md, with nothing but Python's standard library.

It keeps nothing but what the log says: killed between any two lines, its successor reads the log and goes on.
"""

import json, os, queue, secrets, signal, ssl, sys, threading, time, urllib.error, urllib.request  # noqa: E401

BASE = f"{os.environ['LOG_URL'].rstrip('/')}/harness/v1/sessions/{os.environ['SESSION_ID']}"
TLS = ssl.create_default_context(cadata=os.environ.get("LOG_CA") or None)
USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
ERRORS = {429: "model_rate_limited_error", 503: "model_overloaded_error", 529: "model_overloaded_error"}


class Moved(Exception):
    """409: the log or the inbox has changed since it was read."""


def leave(code, why):
    print(why, file=sys.stderr, flush=True)
    os._exit(code)


def post(url, body, headers, seconds):
    with open(os.environ["SESSION_TOKEN_FILE"]) as file:  # It is replaced before it expires.
        headers = {"content-type": "application/json", **{name: value + file.read().strip() for name, value in headers.items()}}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    if url.endswith("/v1/messages"):
        request.add_header("anthropic-version", "2023-06-01")
    with urllib.request.urlopen(request, timeout=seconds, context=TLS if url.startswith("https") else None) as answer:
        return json.load(answer)


def call(verb, body=None, patience=600):
    """A call of the harness API. All may be repeated: a change that was made finds its events in the log."""
    end = time.monotonic() + patience
    while True:
        try:
            return post(f"{BASE}/{verb}", body, {"authorization": "Bearer "}, 90)
        except urllib.error.HTTPError as error:
            status, why = error.code, f"{verb}: {error.code} {error.read(2000).decode(errors='replace')}"
        except (OSError, ValueError) as error:
            status, why = 503, f"{verb}: {error}"
        if status == 409:
            raise Moved(why)
        if status in (403, 404, 412):
            leave(4 if status == 412 else 0, f"the session is not ours: {why}")
        if (status < 500 and status != 429) or time.monotonic() > end:
            raise SystemExit(why)
        time.sleep(0.3)


def ask_model(body):
    """The answer of the model API, or a status and why there is none."""
    try:
        return 200, post(f"{os.environ['MODEL_BASE_URL'].rstrip('/')}/v1/messages", body, {"x-api-key": ""}, 900)
    except urllib.error.HTTPError as error:
        return error.code, error.read(2000).decode(errors="replace")
    except (OSError, ValueError) as error:
        return 500, str(error)


def event(kind, **fields):
    return {"id": "sevt_" + secrets.token_hex(12), "type": kind, **fields}


class Log:
    """What the log says: the conversation, and what is open in it."""

    def __init__(self):
        self.head, self.items, self.waits, self.span, self.status = 0, [], {}, None, "idle"
        self.failures, self.gave_up, self.interrupted, self.usage = 0, False, False, dict.fromkeys(USAGE, 0)

    def open(self, *waits):
        """Calls of the last answer that have no result, and wait for one of these."""
        last = next((item["calls"] for item in reversed(self.items) if "calls" in item), [])
        return [one for one in last if "result" not in one and (not waits or one["waits"] in waits)]

    def take(self, body):
        kind = body["type"]
        if kind == "user.message":
            self.items.append({"user": body["content"]})
            self.failures, self.gave_up, self.interrupted = 0, False, False
        elif kind == "user.interrupt":
            self.interrupted = True
            for one in self.open():
                one["waits"] = "client stopped" if one["waits"] == "client" else "stopped"
        elif kind == "user.tool_confirmation":
            for one in self.open("person"):  # The service knows what was said.
                one["waits"] = "sandbox" if one["event"] == body["tool_use_id"] else "person"
        elif kind == "x.tool.outcome_asked":  # The sandbox was lost: a person says whether it is run again.
            for one in self.open("sandbox"):
                one["waits"] = "person" if one["event"] == body["tool_use_id"] else "sandbox"
        elif kind.endswith("tool_result"):
            for one in self.open():
                if one["event"] == body.get("tool_use_id", body.get("custom_tool_use_id")):
                    one["result"] = {"content": body.get("content") or [], "is_error": bool(body.get("is_error"))}
        elif kind.endswith("tool_use"):
            self.waits[body["id"]] = {"allow": "sandbox", "ask": "person"}.get(body.get("evaluated_permission"), "client")
        elif kind == "x.model_response":
            ids = {one["model_id"]: one["event_id"] for one in body["tool_events"]}
            calls = [{"id": block["id"], "event": ids.get(block["id"])} for block in body["content"] if block["type"] == "tool_use"]
            self.items.append({"answer": body["content"], "stop": body["stop_reason"], "calls": calls})
            self.failures = 0
            for one in calls:
                one["waits"] = self.waits.get(one["event"])
            self.settle("This call was not run: there is no such tool, or its input is not a JSON object.", None)
        elif kind == "span.model_request_start":
            self.span = body["id"]  # What this request says of the calls, all later ones say.
            self.settle("This call was interrupted before it had a result. Whether it took effect is not known.")
        elif kind == "span.model_request_end":
            self.span = None
            self.usage = {name: count + body["model_usage"][name] for name, count in self.usage.items()}
        elif kind == "session.error":
            retries = body["error"]["retry_status"]["type"] == "retrying"
            self.failures, self.gave_up = self.failures + retries, self.gave_up or not retries
        elif kind.startswith("session.status_"):
            self.status = kind.removeprefix("session.status_")

    def settle(self, text, *waits):
        for one in self.open(*waits):
            one["result"] = {"content": [{"type": "text", "text": text}], "is_error": True}

    def messages(self):
        found = []
        for item in self.items:
            results = [{"type": "tool_result", "tool_use_id": one["id"], **one.get("result", {})} for one in item.get("calls", [])]
            answer = [block for block in item.get("answer", []) if block != {"type": "text", "text": ""}]
            for role, content in (("user", item.get("user")), ("assistant", answer), ("user", results)):
                if found and found[-1]["role"] == role:
                    found[-1]["content"] = found[-1]["content"] + (content or [])
                elif content:
                    found.append({"role": role, "content": content})
        return found

    def wants_model(self):
        last = self.items[-1] if self.items and not (self.interrupted or self.gave_up) else {}
        wanted = "user" in last or last.get("stop") == "pause_turn" or (last.get("calls") and last["stop"] != "refusal")
        return wanted and not self.open("person", "client")

    def stop_reason(self):
        waiting, last = [one["event"] for one in self.open("person", "client")], self.items[-1] if self.items else {}
        if waiting:
            return {"type": "requires_action", "event_ids": waiting}
        return {"type": "retries_exhausted" if self.gave_up else "refusal" if last.get("stop") == "refusal" else "end_turn"}


class Turn:
    """From a claim until nothing is left to do."""

    def __init__(self, claim, log):
        self.epoch, self.agent, self.log, self.over = claim["epoch"], claim["session"]["agent"], log, threading.Event()
        self.sandboxes = claim["session"]["sandboxes"]
        self.tools, self.abandoned, self.claimed = {tool["name"]: tool for tool in claim["tools"]}, set(), threading.Lock()
        threading.Thread(target=self.live, args=(claim["lease_ttl_seconds"] / 3,), daemon=True).start()

    def live(self, period):
        while not self.over.wait(period):
            with self.claimed:  # What idle has given up is not renewed.
                if not self.over.is_set():
                    call("lease", {"epoch": self.epoch})

    def read(self):
        behind = True
        while behind:
            page = call(f"events?after={self.log.head}&limit=500")
            self.take(page["records"])
            behind = self.log.head < page["head"]

    def take(self, records):
        for record in records:
            if record["seq"] == self.log.head + 1:
                self.log.head = record["seq"]
                self.log.take(record["event"])

    def change(self, verb, **fields):
        self.take(call(verb, {"epoch": self.epoch, "expected_head": self.log.head, **fields})["records"])

    def serve(self):
        while not self.over.is_set():
            try:
                self.read()
                self.step(call("inbox"))
            except Moved:
                pass

    def step(self, inbox):
        """One thing, decided from the log and the inbox."""
        log, wake = self.log, inbox["wake_revision"]
        interrupts = [item["event"]["id"] for item in inbox["items"] if item["event"]["type"] == "user.interrupt"][:32]
        queued = [item["event"]["id"] for item in inbox["items"] if item["event"]["type"] != "user.interrupt"][:32]
        ended = [self.span_end(is_error=True)] if log.span else []
        running = [] if log.status == "running" else [event("session.status_running")]
        if interrupts:
            self.change("promote", inbox=interrupts, then=ended)
        elif ended:  # The request of a harness that died, or was interrupted.
            self.change("append", events=ended)
        elif stopped := [one for one in log.open("stopped") if one["event"] not in self.abandoned]:
            self.execute(stopped, 5)
            self.abandoned |= {one["event"] for one in stopped}
        elif calls := log.open("sandbox"):
            self.unless_interrupted(wake, lambda: self.execute(calls, 3600))
        elif queued:
            self.change("promote", inbox=queued, then=running)
        elif log.wants_model():
            if not log.failures or self.unless_interrupted(wake, lambda: time.sleep(min(2**log.failures, 30)) or True):
                self.request(wake, running)
        else:
            self.idle(wake)

    def idle(self, wake):
        five, usage = self.log.usage["cache_creation_input_tokens"], {name: self.log.usage[name] for name in USAGE[:3]}
        usage |= {"cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": 0}}
        usage |= {"active_seconds": None, "list_cost": None}
        last = [event("session.usage", usage=usage), event("session.status_idle", stop_reason=self.log.stop_reason())]
        with self.claimed:
            if wake is not None:  # Without it, an answer was lost and the session is given up already.
                self.change("idle", wake_revision=wake, events=last)
            self.over.set()

    def execute(self, calls, patience):
        """Asks for the results of all calls at once; the service puts them into the log."""
        threads = [threading.Thread(target=self.ask_result, args=(one["event"], patience), daemon=True) for one in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience)
        return True

    def ask_result(self, tool_use, patience):
        try:
            call("execute", {"epoch": self.epoch, "tool_use_id": tool_use}, patience)
        except (Moved, SystemExit) as error:
            print(error, file=sys.stderr)

    def unless_interrupted(self, wake, work):
        """What `work` gives, or None as soon as an interrupt is queued."""
        first, over = queue.Queue(), threading.Event()

        def watch(after):
            while not over.is_set():
                inbox = call(f"inbox?wait_seconds=25&after_revision={after}")
                if any(item["event"]["type"] == "user.interrupt" for item in inbox["items"]):
                    first.put(None)
                    return
                after = max(after, inbox["wake_revision"] or 0)

        threading.Thread(target=watch, args=(wake or 0,), daemon=True).start()
        threading.Thread(target=lambda: first.put(work()), daemon=True).start()
        outcome = first.get()
        over.set()
        return outcome

    def span_end(self, *, is_error, usage=None):
        tokens = {name: (usage or {}).get(name) or 0 for name in USAGE}
        return event("span.model_request_end", model_request_start_id=self.log.span, is_error=is_error, model_usage=tokens)

    def request(self, wake, running):
        self.change("append", events=[*running, event("span.model_request_start")])
        model = self.agent["model"]
        body = {"model": model["id"], "max_tokens": model["max_tokens"], "messages": self.log.messages()}
        body |= {"system": self.agent["system"]} if self.agent.get("system") else {}
        names = ("name", "description", "input_schema")
        body |= {"tools": [{name: tool[name] for name in names} for tool in self.tools.values()]} if self.tools else {}
        outcome = self.unless_interrupted(wake, lambda: ask_model(body))
        if outcome is None:
            return
        events = self.answer(outcome[1]) if outcome[0] == 200 else self.failure(*outcome)
        while self.log.span:  # The outcome is put on record before anything else is done.
            try:
                self.change("append", events=events)
            except Moved:
                self.read()

    def answer(self, message):
        content, stop, events, tool_events = message["content"], message["stop_reason"], [], []
        if any("thinking" in block["type"] for block in content):
            events.append(event("agent.thinking"))
        if texts := [{"type": "text", "text": block["text"]} for block in content if block.get("text")]:
            events.append(event("agent.message", content=texts))
        for block in content if stop not in ("refusal", "max_tokens") else []:
            if block["type"] == "tool_use" and (tool := self.tools.get(block["name"])):
                permission = tool["evaluated_permission"]
                kind, asks = ("agent.tool_use", {"evaluated_permission": permission}) if permission else ("agent.custom_tool_use", {})
                chosen = {} if len(self.sandboxes) < 2 or not permission else {"x_sandbox": block["input"].get("sandbox")}
                given = {name: value for name, value in block["input"].items() if name != "sandbox" or not chosen}
                events.append(event(kind, name=block["name"], input=given, **asks, **chosen))
                tool_events.append({"model_id": block["id"], "event_id": events[-1]["id"]})
        events.append(event("x.model_response", content=content, stop_reason=stop, tool_events=tool_events))
        return [*events, self.span_end(is_error=False, usage=message["usage"])]

    def failure(self, status, why):
        again = status == 429 or status >= 500
        retry = "terminal" if not again else "retrying" if self.log.failures < 4 else "exhausted"
        error = {"type": ERRORS.get(status, "model_request_failed_error"), "message": why[:1000], "retry_status": {"type": retry}}
        later = [event("session.status_rescheduled")] if retry == "retrying" else []
        return [self.span_end(is_error=True), event("session.error", error=error), *later]


def work_comes(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if call(f"inbox?wait_seconds={min(25, int(left) + 1)}&after_revision=0")["wake_revision"] is not None:
            return True
    return False


def main(log, turn):
    signal.signal(signal.SIGTERM, lambda *_: leave(0, "asked to stop"))
    threading.excepthook = lambda failed: leave(1, f"{failed.exc_type.__name__}: {failed.exc_value}")
    while True:
        claim = call("claim", {})
        turn(claim, log).serve()
        if not work_comes(claim["session"]["harness_idle_seconds"]):
            leave(0, "nothing is left to do")


if __name__ == "__main__":
    main(Log(), Turn)
