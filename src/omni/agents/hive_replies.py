"""Reads the one JSON document Hive (Agno) answers when it does not stream, and the values it shares with streamed events.

A reply is read whole: who answered, which tools ran, the text, how the run ended, what it cost. Its status is taken at its word only where
it says something: Agno 1.x calls finished runs RUNNING. The text of a failed run is the provider's error message and
never the answer. ``hive_events`` uses this for streams that turn out to be a document.
"""

import json
from typing import Any

import msgspec
from msgspec import Struct

from omni.agents.usage import usage_of
from omni.errors import AgentProtocolError
from omni.model import AgentEvent, Ending, RunEnded, RunStarted, TextDelta, ToolCall

REPLY_EVENT = "RunReply"
"""``event_type`` of what comes from a reply, which has no event names of its own."""

# RUNNING and COMPLETED, and whatever later versions invent, mean the run is over and its content is the answer.
_ENDING_BY_STATUS: dict[str, Ending] = {
    "ERROR": "error",
    "PAUSED": "paused",
    "CANCELLED": "cancelled",
    "PENDING": "incomplete",  # accepted for a background run nobody waits for
}
ANSWERED = frozenset[Ending]({"completed", "paused"})
"""Endings whose terminal content is text for the user: what was said so far, when the run waits for input."""


class _Reply(Struct):
    event: Any = None
    run_id: Any = None
    session_id: Any = None
    model: Any = None
    content: Any = None
    status: Any = None
    metrics: Any = None
    tools: Any = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_NOT_JSON = (ValueError, RecursionError)  # msgspec's and Python's decoding errors are ValueErrors


def is_reply(document: bytes) -> bool:
    """Whether a JSON object is a whole run rather than an event of one."""
    try:
        reply = _decode_reply(document)
    except _NOT_JSON:
        return False
    return reply.event is None and (reply.content is not None or isinstance(reply.run_id, str))


def interpret_reply(body: bytes, mono_ns: int) -> tuple[AgentEvent, ...]:
    """The events of a run that was answered in one document, read at ``mono_ns``; the last one is its RunEnded.

    Raises AgentProtocolError when the body is no JSON object.
    """
    try:
        reply = _decode_reply(body)
    except _NOT_JSON as exc:
        raise AgentProtocolError("The agent server's reply is not a JSON object.") from exc
    status = reply.status.upper() if isinstance(reply.status, str) else ""
    ending = _ENDING_BY_STATUS.get(status, "completed")
    text = content_text(reply.content)
    run_id, session_id = text_or_none(reply.run_id), text_or_none(reply.session_id)
    events: list[AgentEvent] = []
    if run_id is not None:
        events.append(
            RunStarted(mono_ns=mono_ns, run_id=run_id, session_id=session_id, model=text_or_none(reply.model))
        )
    for tool in reply.tools if isinstance(reply.tools, list) else ():
        events += _tool_calls(tool, mono_ns)
    if text is not None and ending in ANSWERED:
        events.append(TextDelta(mono_ns, text, REPLY_EVENT))
    events.append(
        RunEnded(
            mono_ns=mono_ns,
            ending=ending,
            event_type=REPLY_EVENT,
            content=text if ending in ANSWERED else None,
            error_message=text if ending == "error" else None,
            usage=usage_of(reply.metrics),
            run_id=run_id,
            session_id=session_id,
        )
    )
    return tuple(events)


def content_text(content: object) -> str | None:
    """The text of a ``content`` field, None when there is none.

    Agents with an output schema answer with an object; it is shown as one line of JSON, keys in the order the agent gave.
    """
    if isinstance(content, str):
        return content or None
    return None if content is None else json.dumps(content, ensure_ascii=False)


def text_or_none(value: object) -> str | None:
    """The value if it is text that says something."""
    return value if isinstance(value, str) and value else None


def _tool_calls(tool: Any, mono_ns: int) -> list[ToolCall]:
    """A tool's start and end; nothing for one that only waits for somebody's consent."""
    if not isinstance(tool, dict) or (tool.get("result") is None and tool.get("tool_call_error") is None):
        return []
    name = text_or_none(tool.get("tool_name"))
    return [
        ToolCall(mono_ns=mono_ns, phase="started", name=name),
        ToolCall(mono_ns=mono_ns, phase="completed", name=name, is_error=tool.get("tool_call_error") is True),
    ]
