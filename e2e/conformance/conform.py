"""Runs scripted sessions with a harness and compares what clients see with what docs/harness-contract.md says. See `run`.

    conform.py [--kinds KIND,...] [--essence] [--tools-of SERVER] PROGRAMS CHART_OBJECTS CRDS COMMAND [ARGUMENTS...]
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))

from door import Door, Fault, Step, killed_at  # noqa: E402
from local import Client, Stack, manifests  # noqa: E402
from transcript import Line, essence, public, same, shown  # noqa: E402
from world import Failed, Session, World, eventually  # noqa: E402

AT_ONCE = 4
# A client that stops the turn waits no longer than this; it has one core less than it would like.
INTERRUPT_SECONDS = 3
EXIT_SECONDS = 5
# The kubelet kills the process after this.
TERMINATION_SECONDS = 10

RUNNING, START, STOP, USAGE = "session.status_running", "span.model_request_start", "span.model_request_end", "session.usage"


def user(text: str) -> Line:
    return f"user.message {text}"


def says(text: str) -> list[Line]:
    """One model request that ends with a message."""
    return [START, f"agent.message {text}", STOP]


def idle(reason: str = "end_turn") -> list[Line]:
    return [USAGE, f"session.status_idle {reason}"]


HELLO = [user("say hello"), RUNNING, *says("Hello."), *idle()]
COMMANDS = [
    user("run three commands"), RUNNING,
    START, "agent.thinking", "agent.message Looking.", 'agent.tool_use bash {"command": "echo one >> runs; echo first"} allow',
    'agent.tool_use bash {"command": "echo two >> runs; echo second"} allow', STOP,
    "agent.tool_result 0 first", "agent.tool_result 1 second",
    START, 'agent.tool_use bash {"command": "echo three >> runs; echo third"} allow', STOP, "agent.tool_result 2 third",
    *says("The last one said third"), *idle(),
]  # fmt: skip


def expect(session: Session, expected: list[Line], *, exact: bool = True) -> None:
    found = public(session.events())
    if not same(found, expected, exact=exact and not session.world.essence):
        raise Failed(f"clients see\n{shown(found)}\nand should see\n{shown(expected)}")


# Scenarios: each is a function of a session that is not begun yet.


def a_plain_turn(session: Session) -> None:
    session.say("say hello")
    session.until_done()
    expect(session, HELLO)


def tools_in_parallel(session: Session) -> None:
    session.say("run three commands")
    session.until_done()
    expect(session, COMMANDS)
    ran_once(session)


def a_long_result(session: Session) -> None:
    session.say("print much")
    session.until_done()
    result = session.until("agent.tool_result")["content"][0]["text"]
    if len(result) < 20_000 or set(result[:20_000]) != {'"'}:
        raise Failed(f"the result has {len(result)} characters and begins with {result[:80]}")
    if essence(public(session.events()))[-2:] != essence(["agent.message That was much.", *idle()]):
        raise Failed(f"the turn ends otherwise: {session.events()[-4:]}")


def ran_once(session: Session) -> None:
    runs = (session.workspace / "runs").read_text().split()
    if sorted(runs) != ["one", "three", "two"] or runs[-1] != "three":
        raise Failed(f"tools ran as {runs}")


def the_client_runs_a_tool(session: Session) -> None:
    session.say("weather?")
    session.until_done()
    call = session.until("agent.custom_tool_use")["id"]
    stop = session.until("session.status_idle")["stop_reason"]
    if stop != {"type": "requires_action", "event_ids": [call]}:
        raise Failed(f"the session waits for {stop}, not for {call}")
    session.send({"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": [{"type": "text", "text": "sunny"}]})
    session.until_done()
    expect(session, [
        user("weather?"), RUNNING, START, 'agent.custom_tool_use weather {"city": "Bern"}',
        'agent.tool_use bash {"command": "echo meanwhile"} allow', STOP, "agent.tool_result 1 meanwhile", *idle("requires_action"),
        "user.custom_tool_result 0 sunny", RUNNING, *says("It is sunny."), *idle(),
    ])  # fmt: skip


def a_person_confirms_and_denies(session: Session) -> None:
    session.say("keep two notes")
    session.until_done()
    calls = [event["id"] for event in session.events() if event["type"] == "agent.tool_use"]
    if session.until("session.status_idle")["stop_reason"].get("event_ids") != calls:
        raise Failed("the session does not wait for both calls")
    if list(session.workspace.iterdir()):
        raise Failed("a tool ran before it was confirmed")
    session.send(
        {"type": "user.tool_confirmation", "tool_use_id": calls[0], "result": "allow"},
        {"type": "user.tool_confirmation", "tool_use_id": calls[1], "result": "deny", "deny_message": "no"},
    )
    session.until_done()
    kept = sorted(path.name for path in session.workspace.glob("*.txt"))
    if kept != ["allowed.txt"]:
        raise Failed(f"the sandbox holds {kept}")
    ends = session.events()[-2:]
    if public(session.events())[-5:] != [*says("There is allowed.txt"), *idle()]:
        raise Failed(f"the turn ends with {ends}")


def an_unknown_tool(session: Session) -> None:
    session.say("call what is not there")
    session.until_done()
    if (found := public(session.events()))[-5:] != [*says("There is no such tool."), *idle()]:
        raise Failed(f"clients see\n{shown(found)}")


def interrupted_while_the_model_speaks(session: Session) -> None:
    session.say("never end")
    process = session.start()
    session.until(START)
    stop_and_go_on(session, process)
    expect(session, [user("never end"), RUNNING, START, "user.interrupt", STOP, *idle(), *HELLO], exact=False)


def interrupted_while_a_tool_runs(session: Session) -> None:
    session.say("sleep for long")
    process = session.start()
    eventually("the tool runs", (session.workspace / "asleep").exists)
    stop_and_go_on(session, process)
    results = [event for event in session.events() if event["type"] == "agent.tool_result"]
    if len(results) != 1 or not results[0]["is_error"]:
        raise Failed(f"the call has the results {results}")


def stop_and_go_on(session: Session, process: object) -> None:
    began = time.monotonic()
    session.send({"type": "user.interrupt"})
    stop = session.until("session.status_idle", seconds=INTERRUPT_SECONDS)["stop_reason"]
    took = time.monotonic() - began
    if stop["type"] != "end_turn" or took > INTERRUPT_SECONDS:
        raise Failed(f"the turn ended with {stop} after {took:.1f} s")
    session.exit_code(process, EXIT_SECONDS)  # type: ignore[arg-type]
    session.say("say hello")
    session.until_done()


def hold_the_model(session: Session) -> tuple[threading.Event, threading.Event]:
    """The first request to the model waits: the first event says that it was made, the second lets it go on."""
    asked, go_on = threading.Event(), threading.Event()

    def hold(_: Door, step: Step) -> None:
        if step.verb == "messages" and not asked.is_set():
            asked.set()
            go_on.wait(20)

    session.door.fault = Fault(before=hold)
    return asked, go_on


def messages_are_queued(session: Session) -> None:
    """What comes in the middle of a turn is taken up after the answer, in order, and answered at once."""
    asked, go_on = hold_the_model(session)
    session.say("say hello")
    process = session.start()
    asked.wait(20)
    session.say("first more")
    session.say("then say hello")
    go_on.set()
    if session.exit_code(process, 30) != 0:
        raise Failed("the harness failed")
    both = [user("first more"), user("then say hello")]
    expect(session, [user("say hello"), RUNNING, *says("Hello."), *both, *says("Hello."), *idle()])


def the_head_moves(session: Session) -> None:
    moved = []

    def move(_: Door, step: Step) -> None:
        if step.appends("agent.message") and not moved:
            moved.append(step)
            session.rename("moved")

    session.door.fault = Fault(before=move)
    session.say("say hello")
    session.until_done()
    expect(session, [*HELLO[:3], "session.updated", *HELLO[3:]])


def a_message_comes_at_the_end(session: Session) -> None:
    sent = []

    def send(_: Door, step: Step) -> None:
        if step.verb == "idle" and not sent:
            sent.append(step)
            session.say("say hello again")

    session.door.fault = Fault(before=send)
    session.say("say hello")
    session.until_done()
    expect(session, [*HELLO[:-2], user("say hello again"), *says("Hello."), *idle()])


def answers_are_lost(session: Session) -> None:
    """Each change is carried out, and its answer is lost once."""
    lost = set()

    def lose(_: Door, step: Step) -> bool:
        if step.verb not in ("promote", "append", "idle", "execute"):
            return False
        said = json.dumps(step.body, sort_keys=True)
        return said not in lost and not lost.add(said)  # type: ignore[func-returns-value]

    session.door.fault = Fault(loses=lose)
    session.say("run three commands")
    session.until_done()
    expect(session, COMMANDS, exact=False)
    ran_once(session)


def another_harness_takes_over(session: Session) -> None:
    """While the model answers the first, the second claims: the first appends nothing more, and goes at once."""
    asked, go_on = hold_the_model(session)
    session.say("run three commands")
    zombie = session.start()
    asked.wait(20)
    token = session.name_pod("pod-2")
    Client(session.world.stack.url, token).do("POST", f"/harness/v1/sessions/{session.id}/claim", {})
    before = session.events()
    go_on.set()
    if session.exit_code(zombie, EXIT_SECONDS) == 0:
        raise Failed("a harness that is fenced off says that all is well")
    if session.events() != before:
        raise Failed("the log has grown")
    session.token = token
    session.until_done()
    expect(session, COMMANDS, exact=False)
    ran_once(session)


def the_model_is_overloaded(session: Session) -> None:
    session.say("be overloaded")
    session.until_done()
    failed = [START, STOP, "session.error model_overloaded_error retrying", "session.status_rescheduled"]
    expect(session, [user("be overloaded"), RUNNING, *failed, RUNNING, *says("Now it goes."), *idle()])


def the_model_refuses_the_request(session: Session) -> None:
    session.say("be wrong")
    session.until_done()
    failed = [START, STOP, "session.error model_request_failed_error terminal"]
    expect(session, [user("be wrong"), RUNNING, *failed, *idle("retries_exhausted")])


def the_model_refuses(session: Session) -> None:
    session.say("refuse this")
    session.until_done()
    expect(session, [user("refuse this"), RUNNING, *says("I will not."), *idle("refusal")])


def the_next_message_finds_the_same_process(session: Session) -> None:
    session.say("say hello")
    process = session.start()
    session.until("session.status_idle")
    session.say("say hello")
    session.until("session.status_idle", 2)
    if process.poll() is not None:
        raise Failed("the harness did not wait for the next message")
    process.terminate()
    if session.exit_code(process, TERMINATION_SECONDS) != 0:
        raise Failed("a harness that is asked to stop says that it failed")
    expect(session, HELLO + HELLO)


ONE_BY_ONE = {
    "turn": [a_plain_turn, tools_in_parallel, a_long_result, the_next_message_finds_the_same_process, messages_are_queued],
    "clients": [the_client_runs_a_tool, a_person_confirms_and_denies, an_unknown_tool],
    "interrupt": [interrupted_while_the_model_speaks, interrupted_while_a_tool_runs],
    "log": [the_head_moves, a_message_comes_at_the_end, answers_are_lost, another_harness_takes_over],
    "model": [the_model_is_overloaded, the_model_refuses_the_request, the_model_refuses],
}
WITH_GRACE = {the_next_message_finds_the_same_process}


class Suite:
    """The cases that have run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.failed: list[str] = []
        self.count = 0

    def case(self, name: str, scenario: object, **how: object) -> None:
        session = None
        try:
            session = Session(self.world, name.replace("_", "-").replace(" ", "-"), **how)  # type: ignore[arg-type]
            scenario(session)  # type: ignore[operator]
            print(f"ok      {name}")
        except Exception as error:  # noqa: BLE001
            told = str(error) if isinstance(error, Failed) else traceback.format_exc()
            print(f"FAILED  {name}: {told}\n{session.complaints() if session else ''}")
            self.failed.append(name)
        finally:
            self.count += 1
            if session:
                session.close()

    def run(self, kinds: list[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for scenario in (scenario for kind in kinds for scenario in ONE_BY_ONE.get(kind, [])):
                pool.submit(self.case, scenario.__name__, scenario, idle_seconds=20 if scenario in WITH_GRACE else 0)
            if "kill" not in kinds:
                return
            for number in range(1, self.steps() + 1):
                for late in (False, True):
                    name = f"killed {'after' if late else 'before'} step {number}"
                    pool.submit(self.case, name, killed, fault=killed_at(number, late=late))

    def steps(self) -> int:
        """How many steps the session takes that is killed at each of them."""
        session = Session(self.world, "counted")
        try:
            session.say("run three commands")
            session.until_done()
            return len([step for step in session.door.steps if step.number])
        finally:
            session.close()


def killed(session: Session) -> None:
    session.say("run three commands")
    session.until_done()
    if not session.door.killed:
        raise Failed("the harness took fewer steps than before and was not killed")
    expect(session, COMMANDS, exact=False)
    ran_once(session)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default=",".join([*ONE_BY_ONE, "kill"]))
    parser.add_argument("--essence", action="store_true", help="model requests need not be told one by one")
    parser.add_argument("--tools-of", help="the harness calls its tools as those of this MCP server")
    parser.add_argument("programs")
    parser.add_argument("objects")
    parser.add_argument("crds")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    programs, began = json.loads(arguments.programs), time.monotonic()
    # Each harness is started in a folder of its own.
    command = [str(Path(word).absolute()) if Path(word).exists() else word for word in arguments.command]
    with Stack(programs, manifests(Path(arguments.objects).read_text()), Path(arguments.crds)) as stack:
        script = (Path(__file__).parent / "script.yaml").read_text()
        if arguments.tools_of:
            script = script.replace("name: bash", f"name: mcp__{arguments.tools_of}__bash")
        world = World(stack, programs, command, script, essence=arguments.essence)
        try:
            suite = Suite(world)
            suite.run(arguments.kinds.split(","))
        finally:
            world.close()
    passed = suite.count - len(suite.failed)
    print(f"{passed} of {suite.count} cases passed in {time.monotonic() - began:.0f} s: {' '.join(arguments.command)}")
    return 1 if suite.failed or not suite.count else 0


if __name__ == "__main__":
    sys.exit(main())
