"""What clients see of a session, in lines that can be compared: without identifiers, times and numbers of tokens."""

from __future__ import annotations

import json

Line = str

# What a harness that was killed says once more, or what another one need not say.
REPEATED = ("span.", "session.status_running", "session.status_rescheduled", "session.usage", "session.error", "agent.thinking")


def text(content: list[dict] | None) -> str:
    return "".join(block.get("text", f"<{block['type']}>") for block in content or []).strip()


def public(events: list[dict]) -> list[Line]:
    """A line for each public event; results of parallel calls in the order of the calls."""
    lines: list[Line] = []
    calls: dict[str, int] = {}
    for event in events:
        kind = event["type"]
        if kind.startswith("x."):
            continue
        match kind:
            case "user.message" | "agent.message":
                lines.append(f"{kind} {text(event['content'])}")
            case "agent.tool_use" | "agent.custom_tool_use":
                calls[event["id"]] = len(calls)
                asks = f" {event['evaluated_permission']}" if kind == "agent.tool_use" else ""
                lines.append(f"{kind} {event['name']} {json.dumps(event['input'])}{asks}")
            case "agent.tool_result" | "user.custom_tool_result":
                call = calls[event.get("tool_use_id") or event["custom_tool_use_id"]]
                lines.append(f"{kind} {call} {'error: ' if event['is_error'] else ''}{text(event['content'])}")
            case "session.status_idle":
                lines.append(f"{kind} {event['stop_reason']['type']}")
            case "session.error":
                error = event["error"]
                lines.append(f"{kind} {error['type']} {error['retry_status']['type']}")
            case _:
                lines.append(kind)
    return in_order(lines)


def in_order(lines: list[Line]) -> list[Line]:
    """Each run of results sorted."""
    sorted_lines: list[Line] = []
    run: list[Line] = []
    for line in lines:
        if line.startswith("agent.tool_result "):
            run.append(line)
            continue
        sorted_lines += [*sorted(run), line]
        run = []
    return sorted_lines + sorted(run)


def essence(lines: list[Line]) -> list[Line]:
    """What was said and done; calls before their results, whether they ran at once or one by one."""
    found: list[Line] = []
    calls: list[Line] = []
    for line in [*(line for line in lines if not line.startswith(REPEATED)), ""]:
        if line.startswith("agent.tool_"):
            calls.append(line)
            continue
        uses = [call for call in calls if call.startswith("agent.tool_use")]
        results = sorted(call for call in calls if not call.startswith("agent.tool_use"))
        found += [*uses, *results, line]
        calls = []
    return found[:-1]


def same(found: list[Line], expected: list[Line], *, exact: bool) -> bool:
    if found.count("span.model_request_start") != found.count("span.model_request_end"):
        return False
    return found == expected if exact else essence(found) == essence(expected)


def shown(lines: list[Line]) -> str:
    return "\n".join(f"    {line}" for line in lines)
