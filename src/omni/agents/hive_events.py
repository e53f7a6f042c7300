"""Reads meaning out of the JSON objects of a Hive (Agno) run: which text is the answer, what ends it, how it ended.

One ``HiveRun`` follows one run. It knows the event names of Agno 1.x, 2.x and 3.x, of agents, teams and workflows. The root is the first
run a stream names; members of a team and steps of a workflow run under ids of their own, and neither their text nor their
end is the answer's. Of several terminal events the first one counts: cancelled runs are reported completed afterwards.

It refuses nothing it does not know: unknown events, unknown fields and odd types are activity, and an object that is not JSON is counted
while the stream goes on. It does no I/O and asks no clock; ``frames`` gives it objects, ``hive`` the time.
"""

import json
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from omni.agents.hive_replies import ANSWERED, content_text, interpret_reply, is_reply, text_or_none
from omni.agents.usage import add_usage, usage_of
from omni.errors import AgentProtocolError
from omni.model import AgentEvent, Ending, RunActivity, RunEnded, RunStarted, TextDelta, ToolCall, Usage

UNREADABLE = "unreadable"
"""``event_type`` of an object that is not JSON or says nothing of a run."""

# 1.x says RunResponseContent, later servers RunContent; a team that routes relabels its member's text as its own.
_TEXT_EVENTS: dict[str | None, str] = {
    name: name for name in ("RunContent", "RunResponseContent", "TeamRunContent", "TeamRunResponseContent")
}
_ENDING_BY_SUFFIX: dict[str, Ending] = {
    "Completed": "completed",
    "Error": "error",
    "Cancelled": "cancelled",
    "Paused": "paused",
}
_ENDINGS: dict[str, Ending] = {
    f"{root}{suffix}": ending for root in ("Run", "TeamRun", "Workflow") for suffix, ending in _ENDING_BY_SUFFIX.items()
}
_ENDINGS["error"] = "error"  # what 3.x sends when a queued run fails before it has events of its own
_TOOL_PHASES: dict[str, Literal["started", "completed"]] = {
    "ToolCallStarted": "started",
    "ToolCallCompleted": "completed",
    "TeamToolCallStarted": "started",
    "TeamToolCallCompleted": "completed",
}
_START_EVENTS = frozenset({"RunStarted", "TeamRunStarted", "WorkflowStarted", "RunContinued", "TeamRunContinued"})
_MODEL_REQUEST_EVENTS = frozenset({"ModelRequestCompleted", "TeamModelRequestCompleted"})


class _Event(Struct, gc=False):
    """What every event is read for; decoding three fields of a delta costs a quarter of a microsecond."""

    event: str | None = None
    run_id: Any = None
    content: Any = None


class _EventDetails(Struct):
    """What only a few events are read for. Any, because one odd field must not cost the end of a run."""

    session_id: Any = None
    model: Any = None
    tool: Any = None
    metrics: Any = None
    error: Any = None
    reason: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_details = msgspec.json.Decoder(_EventDetails).decode
_NOT_JSON = (ValueError, RecursionError)  # msgspec's and Python's decoding errors are ValueErrors


class HiveRun:
    """Follows one run. ``interpret`` what each read completes, then ``finish`` if the body ended before the run did.

    ``is_ended`` is True once a terminal event was read; whatever follows is ignored. ``num_unreadable`` counts objects that were
    no JSON or no event.
    """

    __slots__ = ("_half", "_has_events", "_has_text", "_root", "_session_id", "_usage", "is_ended", "num_unreadable")

    def __init__(self) -> None:
        self._root: str | None = None
        self._session_id: str | None = None
        self._usage: Usage | None = None  # summed over the root's model requests, for ends that carry no metrics
        self._half = ""  # the first half of an emoji whose second half is in the next delta
        self._has_text = False
        self._has_events = False
        self.is_ended = False
        self.num_unreadable = 0

    def interpret(self, frames: Iterable[bytes], mono_ns: int) -> list[AgentEvent]:
        """The events in the objects of one read that returned at ``mono_ns``, up to the first terminal one."""
        events: list[AgentEvent] = []
        for frame in frames:
            if self.is_ended:
                break
            try:
                event = _decode_event(frame)
            except _NOT_JSON:
                self._interpret_odd(frame, mono_ns, events)
                continue
            content = event.content
            name = _TEXT_EVENTS.get(event.event)
            if name is not None and event.run_id == self._root and type(content) is str and content:
                self._has_text = True
                events.append(TextDelta(mono_ns, self._joined(content) if self._half else content, name))
            else:
                self._interpret_other(event, frame, mono_ns, events)
        return events

    def finish(self, mono_ns: int, *, saw_garbage: bool) -> RunEnded:
        """The end of a run whose body ended at ``mono_ns`` without a terminal event.

        Raises AgentProtocolError when there was no event at all, yet bytes that are none (``saw_garbage``, from the framer).
        """
        if not self._has_events and not self._has_text and (saw_garbage or self.num_unreadable):
            raise AgentProtocolError("The agent server's answer holds no event that can be read.")
        return self._end(mono_ns, "incomplete")

    def _interpret_odd(self, frame: bytes, mono_ns: int, events: list[AgentEvent]) -> None:
        """An object the strict decoder refuses: Python's NaN in an agent's data, half an emoji in a delta, or no JSON at all."""
        try:
            plain = json.loads(frame)
            clean = msgspec.json.encode(_whole_characters(plain))  # writes null for NaN
            event = _decode_event(clean)
        except _NOT_JSON:
            self._skip(mono_ns, events)
            return
        content = plain.get("content") if isinstance(plain, dict) else None
        if isinstance(content, str) and event.event in _TEXT_EVENTS and event.run_id == self._root:
            event.content = self._joined(content)
        self._interpret_other(event, clean, mono_ns, events)

    def _joined(self, content: str) -> str:
        """``content`` behind the half character kept from the delta before; a half at its own end is kept for the next."""
        text, self._half = self._half + content, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def _interpret_other(self, event: _Event, frame: bytes, mono_ns: int, events: list[AgentEvent]) -> None:
        """Everything but a piece of the answer."""
        name = event.event
        if name is None:
            self._interpret_unnamed(frame, mono_ns, events)
            return
        self._has_events = True
        details = _details_of(frame)
        self._session_id = self._session_id or text_or_none(details.session_id)
        run_id = text_or_none(event.run_id)
        if self._root is None and run_id is not None:
            self._root = run_id
            model = text_or_none(details.model)
            events.append(RunStarted(mono_ns=mono_ns, run_id=run_id, session_id=self._session_id, model=model))
            if name in _START_EVENTS:
                return
        # 1.x and 2.x report errors without a run id; a member's event always carries one.
        is_root = run_id is None or run_id == self._root
        if is_root and name in _ENDINGS:
            self._interpret_end(event, details, mono_ns, events)
        elif is_root and name in _TEXT_EVENTS and (text := content_text(event.content)) is not None:
            self._has_text = True
            events.append(TextDelta(mono_ns, text, name))
        elif name in _TOOL_PHASES:
            events.append(_tool_call(_TOOL_PHASES[name], details.tool, mono_ns))
        else:
            if is_root and name in _MODEL_REQUEST_EVENTS:
                self._usage = add_usage(self._usage, usage_of(msgspec.structs.asdict(details)))
            events.append(RunActivity(mono_ns, name))

    def _interpret_end(self, event: _Event, details: _EventDetails, mono_ns: int, events: list[AgentEvent]) -> None:
        name = event.event or ""
        ending = _ENDINGS[name]
        text = content_text(event.content)
        message: str | None = None
        if ending == "error":
            message = text or content_text(details.error)
        elif ending == "cancelled":
            message = text_or_none(details.reason)
        # 3.x puts text into a cancelled run's content that was never streamed: no check, and nothing to show.
        answer = text if ending in ANSWERED else None
        if answer is not None and not self._has_text:
            # A workflow streams no text of its own, and an agent may stream none: this is the whole answer.
            events.append(TextDelta(mono_ns, answer, name))
        usage = usage_of(details.metrics)
        events.append(self._end(mono_ns, ending, event_type=name, content=answer, error_message=message, usage=usage))

    def _interpret_unnamed(self, frame: bytes, mono_ns: int, events: list[AgentEvent]) -> None:
        """An object without an event name: the whole run in one document if it is the first thing said, else nothing."""
        if self._has_events or self._has_text or not is_reply(frame):
            self._skip(mono_ns, events)
            return
        self._has_events = True
        self.is_ended = True
        events += interpret_reply(frame, mono_ns)

    def _skip(self, mono_ns: int, events: list[AgentEvent]) -> None:
        self.num_unreadable += 1
        events.append(RunActivity(mono_ns, UNREADABLE))

    def _end(
        self,
        mono_ns: int,
        ending: Ending,
        *,
        event_type: str | None = None,
        content: str | None = None,
        error_message: str | None = None,
        usage: Usage | None = None,
    ) -> RunEnded:
        self.is_ended = True
        return RunEnded(
            mono_ns=mono_ns,
            ending=ending,
            event_type=event_type,
            content=content,
            error_message=error_message,
            usage=usage or self._usage,
            run_id=self._root,
            session_id=self._session_id,
        )


def _whole_characters(value: Any) -> Any:
    """A JSON value with half characters replaced; only values the strict decoder refused come here."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    return value


def _details_of(frame: bytes) -> _EventDetails:
    """The further fields of an event; none when one of them is not text at all, which only reading it brings to light."""
    try:
        return _decode_details(frame)
    except _NOT_JSON:
        return _EventDetails()


def _tool_call(phase: Literal["started", "completed"], tool: object, mono_ns: int) -> ToolCall:
    known = tool if isinstance(tool, dict) else {}
    return ToolCall(
        mono_ns=mono_ns,
        phase=phase,
        name=text_or_none(known.get("tool_name")),
        is_error=known.get("tool_call_error") is True,
    )
