"""One whole session, driven by the official Python SDK, of any version from 0.92.0 on. It is told where to go as any program that
uses the SDK is: by ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY and SSL_CERT_FILE. The model behind it follows script.yaml.

    drive.py DEADLINE_SECONDS
"""

from __future__ import annotations

import faulthandler
import inspect
import secrets
import sys
import time
from collections.abc import Callable, Iterable

import anthropic

DEADLINE_SECONDS = int(sys.argv[1])
NAME = f"{anthropic.__version__}-{secrets.token_hex(4)}"
WEATHER = {
    "type": "custom",
    "name": "weather",
    "description": "Says how the weather is.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLSET = {
    "type": "agent_toolset_20260401",
    "default_config": {"enabled": True, "permission_policy": {"type": "always_allow"}},
    "configs": [{"name": "write", "permission_policy": {"type": "always_ask"}}],
}
PREVIEWS = ("event_start", "event_delta")

client = anthropic.Anthropic()
beta = client.beta
begun = time.monotonic()


def step(text: str) -> None:
    print(f"{time.monotonic() - begun:6.2f} {text}", flush=True)


def refused(status: int, call: Callable[[], object]) -> str:
    """The message of a request that must be refused, and at once: what cannot be right the next time is not sent again."""
    since = time.monotonic()
    try:
        answer = call()
    except anthropic.APIStatusError as error:
        assert error.status_code == status, error
        assert time.monotonic() - since < 5, f"it was repeated: {error}"
        return error.message
    raise AssertionError(f"it was taken: {answer}")


def text(content: Iterable[object] | None) -> str:
    return "".join(getattr(block, "text", "") for block in content or [])


class Talk:
    """A session and its stream. All events and previews are kept."""

    def __init__(self, session: str) -> None:
        self.session = session
        stream = beta.sessions.events.stream
        self.previews = "event_deltas" in inspect.signature(stream).parameters
        self.stream = iter(stream(session, **({"event_deltas": ["agent.message"]} if self.previews else {})))
        self.events: list = []
        self.shown: dict[str, str] = {}

    def send(self, *events: dict) -> None:
        taken = beta.sessions.events.send(self.session, events=list(events))
        assert [event.type for event in taken.data or []] == [event["type"] for event in events], taken

    def say(self, words: str) -> None:
        self.send({"type": "user.message", "content": [{"type": "text", "text": words}]})

    def until(self, kind: str) -> list:
        """The events up to the next one of a type, with it."""
        seen: list = []
        for event in self.stream:
            if event.type == "event_start":
                self.shown[event.event.id] = ""
            elif event.type == "event_delta":
                self.shown[event.event_id] += event.delta.content.text
            else:
                seen.append(event)
                self.events.append(event)
            if event.type == kind:
                return seen
        raise AssertionError(f"the stream ended before {kind}: {[event.type for event in self.events]}")

    def until_idle(self, reason: str) -> list:
        seen = self.until("session.status_idle")
        assert seen[-1].stop_reason.type == reason, seen[-1]
        assert seen[-2].type == "session.usage", [event.type for event in seen]
        for message in of(seen, "agent.message"):
            if self.previews:
                assert self.shown[message.id] == text(message.content), (self.shown, message)
        return seen


def of(events: Iterable, kind: str) -> list:
    return [event for event in events if event.type == kind]


def results(events: Iterable) -> dict[str, tuple[str, bool]]:
    return {event.tool_use_id: (text(event.content), bool(event.is_error)) for event in of(events, "agent.tool_result")}


def agent_with_versions() -> str:
    agent = beta.agents.create(name=NAME, model="scripted-1", system="You are a test.", tools=[TOOLSET, WEATHER])
    assert agent.version == 1 and agent.type == "agent" and agent.name == NAME, agent
    changed = beta.agents.update(agent.id, version=1, description="drives a session")
    assert changed.version == 2 and changed.description == "drives a session", changed
    message = refused(409, lambda: beta.agents.update(agent.id, version=1, description="stale"))
    assert "version" in message, message
    assert [version.version for version in beta.agents.versions.list(agent.id)] == [2, 1]
    assert beta.agents.retrieve(agent.id, version=1).description is None
    return agent.id


def tool(talk: Talk) -> None:
    talk.say("What is six times seven?")
    seen = talk.until_idle("end_turn")
    assert of(seen, "session.status_running"), [event.type for event in seen]
    [call] = of(seen, "agent.tool_use")
    assert call.name == "bash" and call.input["command"] == "echo $((6 * 7))", call
    if hasattr(call, "evaluated_permission"):
        assert call.evaluated_permission == "allow", call
    assert results(seen)[call.id] == ("42\n", False) or results(seen)[call.id][0].strip() == "42", results(seen)
    assert "42" in text(of(seen, "agent.message")[-1].content)
    ends = of(seen, "span.model_request_end")
    assert len(ends) == 2 and all(end.model_usage.output_tokens > 0 for end in ends), ends


def confirmations(talk: Talk) -> None:
    talk.say("Please keep two notes.")
    seen = talk.until_idle("requires_action")
    calls = {call.input.get("file_path"): call for call in of(seen, "agent.tool_use")}
    allowed, denied = calls["allowed.txt"].id, calls["denied.txt"].id
    assert seen[-1].stop_reason.event_ids == [allowed, denied], seen[-1]
    assert {call.evaluated_permission for call in (calls["allowed.txt"], calls["denied.txt"])} == {"ask"}, calls
    assert set(results(seen)) == {calls[None].id}, "what asks nobody has run, and nothing else"
    message = refused(400, lambda: talk.send({"type": "user.tool_confirmation", "tool_use_id": calls[None].id, "result": "allow"}))
    assert "tool_use_id" in message, message

    talk.send({"type": "user.tool_confirmation", "tool_use_id": allowed, "result": "allow"})
    seen = talk.until_idle("requires_action")
    assert seen[-1].stop_reason.event_ids == [denied], "what remains"
    assert results(seen)[allowed][1] is False, results(seen)

    verdict = {"type": "user.tool_confirmation", "tool_use_id": denied, "result": "deny", "deny_message": "one is enough"}
    talk.send(verdict)
    seen = talk.until_idle("end_turn")
    said, is_error = results(seen)[denied]
    assert is_error and "one is enough" in said, said
    [listing] = of(seen, "agent.tool_use")
    assert "allowed.txt" in results(seen)[listing.id][0] and "denied.txt" not in results(seen)[listing.id][0], results(seen)


def custom_tool(talk: Talk) -> None:
    talk.say("How is the weather?")
    seen = talk.until_idle("requires_action")
    [call] = of(seen, "agent.custom_tool_use")
    assert call.name == "weather" and call.input == {"city": "Bern"}, call
    assert seen[-1].stop_reason.event_ids == [call.id], seen[-1]
    result = [{"type": "text", "text": "sunny"}]
    talk.send({"type": "user.custom_tool_result", "custom_tool_use_id": call.id, "content": result})
    seen = talk.until_idle("end_turn")
    assert text(of(seen, "agent.message")[-1].content) == "It is sunny"


def interrupt_of_an_answer(talk: Talk) -> None:
    talk.say("Tell me a long story.")
    # With previews, in the middle of a sentence.
    seen = talk.until("event_delta" if talk.previews else "span.model_request_start")
    since = time.monotonic()
    talk.send({"type": "user.interrupt"})
    seen += talk.until_idle("end_turn")
    step(f"  idle {time.monotonic() - since:.3f} s after the interrupt of an answer")
    assert not of(seen, "agent.message"), "half an answer is none"
    assert of(seen, "span.model_request_end")[-1].is_error is True


def interrupt_of_a_tool(talk: Talk) -> None:
    talk.say("Now sleep for long.")
    seen = talk.until("agent.tool_result")
    sleeper, watcher = of(seen, "agent.tool_use")
    assert "it sleeps" in results(seen)[watcher.id][0], seen
    since = time.monotonic()
    talk.send({"type": "user.interrupt"})
    seen = talk.until_idle("end_turn")
    step(f"  idle {time.monotonic() - since:.3f} s after the interrupt of a tool")
    said, is_error = results(seen)[sleeper.id]
    assert is_error and "interrupted" in said, said
    talk.say("And who sleeps now?")
    seen = talk.until_idle("end_turn")
    assert "The sleeper is gone" in text(of(seen, "agent.message")[-1].content), "the program goes on"


def event_pages(talk: Talk) -> None:
    events = beta.sessions.events
    page = events.list(talk.session, limit=7)
    assert len(page.data) == 7 and page.has_next_page(), page
    forwards = [event.id for event in events.list(talk.session, limit=7)]
    backwards = [event.id for event in events.list(talk.session, limit=7, order="desc")]
    assert forwards == backwards[::-1] and len(set(forwards)) == len(forwards), (forwards, backwards)
    assert forwards == [event.id for event in talk.events], "the stream has shown what the list holds"
    cursor = page.next_page
    refused(400, lambda: events.list(talk.session, limit=7, order="desc", page=cursor))


def session_pages(agent: str, environment: str, first: str) -> list[str]:
    made = [first, *(beta.sessions.create(agent=agent, environment_id=environment).id for _ in range(2))]
    page = beta.sessions.list(agent_id=agent, limit=2)
    assert len(page.data) == 2 and page.has_next_page(), page
    rest = page.get_next_page()
    assert [len(rest.data), rest.has_next_page()] == [1, False], rest
    assert [session.id for session in [*page.data, *rest.data]] == made[::-1], "newest first"
    assert [session.id for session in beta.sessions.list(agent_id=agent, limit=2, order="asc")] == made
    return made


def end(talk: Talk, others: list[str], agent: str, environment: str) -> None:
    archived = beta.sessions.archive(talk.session)
    assert archived.status == "terminated" and archived.archived_at, archived
    talk.until("session.status_terminated")
    message = refused(400, lambda: talk.say("Are you still there?"))
    assert "archived" in message, message
    assert talk.session not in [session.id for session in beta.sessions.list(agent_id=agent)]
    assert talk.session in [session.id for session in beta.sessions.list(agent_id=agent, include_archived=True)]
    refused(409, lambda: beta.environments.delete(environment))
    for session in [talk.session, *others]:
        deleted = beta.sessions.delete(session)
        assert deleted.type == "session_deleted" and deleted.id == session, deleted
        refused(404, lambda session=session: beta.sessions.retrieve(session))
    assert beta.environments.delete(environment).type == "environment_deleted"
    assert beta.agents.archive(agent).archived_at


def main() -> None:
    step(f"anthropic {anthropic.__version__}")
    agent = agent_with_versions()
    environment = beta.environments.create(name=NAME, config={"type": "cloud"})
    refused(409, lambda: beta.environments.create(name=NAME, config={"type": "cloud"}))
    session = beta.sessions.create(agent=agent, environment_id=environment.id, title=NAME, metadata={"driver": "python"})
    assert session.status == "idle" and session.agent.version == 2 and session.title == NAME, session
    talk = Talk(session.id)
    for part in (tool, confirmations, custom_tool, interrupt_of_an_answer, interrupt_of_a_tool, event_pages):
        step(part.__name__)
        part(talk)
    now = beta.sessions.retrieve(session.id)
    assert now.status == "idle" and now.usage.output_tokens > 0 and now.usage.input_tokens > 0, now
    step("session_pages")
    [_, *others] = session_pages(agent, environment.id, session.id)
    step("end")
    end(talk, others, agent, environment.id)
    step("done")


if __name__ == "__main__":
    # Says where it hangs.
    faulthandler.dump_traceback_later(DEADLINE_SECONDS, exit=True)
    main()
