"""A Timeline told for people: the summary dictionary, and the one sentence that holds the story. Pure."""

from typing import Any

from omni.clock import NS_PER_S, exact_ms, whole_ms
from omni.tracing.timeline import Timeline


def streaming_summary(timeline: Timeline) -> dict[str, Any]:
    """What ``get_streaming_summary`` answers. Milliseconds; None where unknown, never 0.

    ``status`` is ``completed``, ``failed``, ``incomplete`` while the agent writes, or ``no_streaming_data`` before its first text.
    ``total_streaming_duration_ms`` is ``total_streaming_time_ms`` under the name older callers read.
    """
    first_wall = None if timeline.first_token_ns is None else _wall(timeline, timeline.first_token_ns)
    end_wall = None if timeline.agent_end_ns is None else _wall(timeline, timeline.agent_end_ns)
    return {
        "trace_id": timeline.trace_id,
        "status": _status(timeline),
        "ending": timeline.ending,
        "first_token_time": first_wall,
        "final_token_time": end_wall,
        "first_token_latency_ms": timeline.first_token_latency_ms,
        "first_to_final_ms": timeline.first_to_final_ms,
        "total_streaming_time_ms": timeline.total_streaming_time_ms,
        "total_streaming_duration_ms": timeline.total_streaming_time_ms,
        "total_chunks": timeline.total_chunks,
        "dropped_chunks": timeline.num_dropped_chunks,
        "total_content_length": timeline.total_content_length,
        "events_captured": len(timeline.chunks),
        "messages_sent": len(timeline.messages),
        "messages_accepted": timeline.num_accepted,
        "messages_delivered": timeline.num_delivered,
        "messages_read": timeline.num_read,
        "messages_failed": timeline.num_failed,
        "time_to_first_message_ms": exact_ms(timeline.first_message_ns),
        "turn_total_ms": timeline.turn_total_ms,
        "tools_used": timeline.num_tools,
    }


def headline(timeline: Timeline) -> str:
    """The turn in one sentence, for the terminal, the page and the log."""
    num_chunks, num_chars = timeline.total_chunks, timeline.total_content_length
    messages = _told_messages(timeline)
    total = timeline.total_streaming_time_ms
    if not timeline.is_streaming:
        if _is_by_request(timeline):
            took = "sent by request"
        elif total is None:
            took = "not answered"
        elif timeline.content:
            took = f"answered whole in {total} ms"
        else:
            took = f"no answer after {total} ms"
        answer = "" if _is_by_request(timeline) else f"{num_chars} {_plural(num_chars, 'character')}, "
        text = f"{took}: {answer}{messages}"
    else:
        took = "streaming" if total is None else f"streamed in {total} ms"
        first = timeline.first_token_latency_ms
        token = "no text came" if first is None else f"first token after {first} ms"
        text = (
            f"{took}: {num_chars} {_plural(num_chars, 'character')} in {num_chunks} {_plural(num_chunks, 'chunk')}, "
            f"{token}, {messages}"
        )
    if timeline.ending not in (None, "completed"):
        text = f"{timeline.ending} at {timeline.error_stage or 'unknown stage'}; {text}"
    return text


def _is_by_request(timeline: Timeline) -> bool:
    """Whether messages went out that no agent was asked for; a notice is the sign of a question that could not be asked."""
    messages = timeline.messages
    return timeline.request_ns is None and bool(messages) and not any(message.is_notice for message in messages)


def _told_messages(timeline: Timeline) -> str:
    """What became of the messages: "accepted" is all that is known until a receipt says more."""
    num_sent, num_delivered, num_failed = len(timeline.messages), timeline.num_delivered, timeline.num_failed
    if not num_delivered:
        text = f"{timeline.num_accepted} {_plural(timeline.num_accepted, 'message')} accepted"
    elif num_delivered == num_sent:
        text = f"{num_sent} {_plural(num_sent, 'message')} delivered"
    else:
        text = f"{num_delivered} of {num_sent} messages delivered"
    if num_failed:
        text += f", {num_failed} failed"
    if timeline.last_read_ns is not None:
        read = "read" if timeline.num_read == num_delivered else f"{timeline.num_read} read"
        text += f", {read} after {_spoken(timeline.last_read_ns)}"
    return text


def _spoken(duration_ns: int) -> str:
    """A duration as one says it, in its largest unit that leaves two of them: 450 ms, 6 s, 90 s, 3 min, 30 d."""
    seconds = duration_ns / NS_PER_S
    if seconds < 1:
        return f"{whole_ms(duration_ns)} ms"
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{round(seconds / size_s)} {unit}"
    return f"{round(seconds)} s"


def _status(timeline: Timeline) -> str:
    if timeline.ending == "completed":
        return "completed"
    if timeline.ending is not None:
        return "failed"
    if timeline.first_token_ns is None:
        return "no_streaming_data"
    return "incomplete"


def _wall(timeline: Timeline, offset_ns: int) -> str:
    return timeline.anchor.at(timeline.anchor.mono_ns + offset_ns).isoformat()


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"
