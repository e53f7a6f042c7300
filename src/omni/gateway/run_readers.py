"""Puts the events of one run on its trace, and its text into its delivery.

Two readers, one per way of asking: a streamed run has chunks and moments of its own, a whole answer is one response. Neither waits for
anything; ``agent_run`` feeds them. Both remember the run's id, by which its server can be told to stop it.
"""

from typing import Any

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery
from omni.errors import AgentError
from omni.model import (
    AgentEvent,
    Ending,
    FirstByte,
    RequestWritten,
    RunActivity,
    RunEnded,
    RunStarted,
    TextDelta,
    ToolCall,
    UpstreamCancel,
    Usage,
)
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.trace_context import TraceContext


class AgentEnd(Struct, frozen=True, kw_only=True):
    """How the agent's part of a turn ended, and what it said."""

    ending: Ending
    text: str = ""
    error_message: str | None = None
    error_stage: str | None = None

    @property
    def has_text(self) -> bool:
        """Whether there is anything to see."""
        return bool(self.text.strip())


class StreamReader:
    """Puts the events of a streamed run on the trace and its text into the delivery."""

    def __init__(self, trace: TraceContext, answer: AnswerDelivery) -> None:
        self._trace = StreamingTraceContext.upgrade(trace)
        self._answer = answer
        self._texts: list[str] = []
        self._has_event = False
        self._has_token = False
        self.run_id: str | None = None
        self.end: AgentEnd | None = None

    @property
    def has_text(self) -> bool:
        """Whether anything came so far that is to be seen."""
        return self._has_token

    def take(self, event: AgentEvent) -> None:
        """Take the run's next event. Never blocks; ``end`` is set by the last one."""
        trace = self._trace
        match event:
            case TextDelta():
                self._note_event(event.mono_ns)
                if not self._has_token and event.text.strip():
                    self._has_token = True
                    trace.log_first_token(
                        event.text,
                        {"event_type": event.event_type, "chunk_size": len(event.text)},
                        at_ns=event.mono_ns,
                    )
                index = len(self._texts)
                trace.log_streaming_chunk(event.text, index, event_type=event.event_type, at_ns=event.mono_ns)
                self._texts.append(event.text)
                self._answer.feed(event.text, index)
            case RequestWritten():
                trace.mark_request_written(event.mono_ns)
            case FirstByte():
                trace.mark_first_byte(event.mono_ns)
            case RunStarted():
                self._note_event(event.mono_ns)
                self.run_id = event.run_id
                trace.update_session_info(agent_session_id=event.session_id)
            case ToolCall():
                self._note_event(event.mono_ns)
                trace.log_tool_call(event.name, phase=event.phase, is_error=event.is_error, at_ns=event.mono_ns)
            case RunActivity():
                self._note_event(event.mono_ns)
            case RunEnded():
                self._note_event(event.mono_ns)
                self._take_end(event)

    def fail(
        self,
        error: AgentError | str,
        *,
        ending: Ending,
        at_ns: int,
        usage: Usage | None = None,
        error_type: str | None = None,
        upstream_cancel: UpstreamCancel | None = None,
    ) -> AgentEnd:
        """Close the stream on the trace as failed, with what arrived until ``at_ns``."""
        stage = error.stage if isinstance(error, AgentError) else "streaming_error"
        text = "".join(self._texts)
        self._trace.log_streaming_error(
            error,
            stage,
            ending=ending,
            error_type=error_type or ending,
            usage=usage,
            content=text,
            upstream_cancel=upstream_cancel,
            at_ns=at_ns,
        )
        self.end = AgentEnd(ending=ending, text=text, error_message=str(error), error_stage=stage)
        return self.end

    def _note_event(self, at_ns: int) -> None:
        if not self._has_event:
            self._has_event = True
            self._trace.mark_first_event(at_ns)

    def _take_end(self, event: RunEnded) -> None:
        self._trace.update_session_info(agent_session_id=event.session_id)
        if event.ending == "completed":
            text = "".join(self._texts)
            data = {"event_type": event.event_type, "streaming_chunks": len(self._texts)}
            if event.content is not None:
                data["terminal_content_equals_chunks"] = event.content == text
            self._trace.log_streaming_complete(text, data, usage=event.usage, at_ns=event.mono_ns)
            self.end = AgentEnd(ending="completed", text=text)
        else:
            self.fail(
                _cause_of(event),
                ending=event.ending,
                at_ns=event.mono_ns,
                usage=event.usage,
                error_type=event.event_type,
            )


class ReplyReader:
    """The same for an agent that was asked for its whole answer at once: no chunks, one response.

    Without ``answer`` nothing is delivered; the text is in ``end``.
    """

    def __init__(self, trace: TraceContext, answer: AnswerDelivery | None) -> None:
        self._trace = trace
        self._answer = answer
        self._texts: list[str] = []
        self.run_id: str | None = None
        self.end: AgentEnd | None = None

    @property
    def has_text(self) -> bool:
        """Whether anything came so far that is to be seen."""
        return any(text.strip() for text in self._texts)

    def take(self, event: AgentEvent) -> None:
        """Take the run's next event. Never blocks; ``end`` is set by the last one."""
        match event:
            case RequestWritten():
                self._trace.mark_request_written(event.mono_ns)
            case FirstByte():
                self._trace.mark_first_byte(event.mono_ns)
            case RunStarted():
                self.run_id = event.run_id
                self._trace.update_session_info(agent_session_id=event.session_id)
            case TextDelta():
                if self._answer is not None:
                    self._answer.feed(event.text, len(self._texts))
                self._texts.append(event.text)
            case ToolCall():
                self._trace.log_tool_call(event.name, phase=event.phase, is_error=event.is_error, at_ns=event.mono_ns)
            case RunEnded():
                self._take_end(event)
            case _:
                pass

    def fail(
        self,
        error: AgentError | str,
        *,
        ending: Ending,
        at_ns: int,
        usage: Usage | None = None,
        upstream_cancel: UpstreamCancel | None = None,
    ) -> AgentEnd:
        """Put the failure on the trace as the agent's response, with what arrived until ``at_ns``."""
        stage = whole_stage(error)
        status = error.status_code if isinstance(error, AgentError) else None
        detail = error.detail if isinstance(error, AgentError) else None
        payload = {
            "success": False,
            "ending": ending,
            "error": str(error),
            "detail": detail,
            "upstream_cancel": upstream_cancel,
        }
        self._respond(payload, usage=usage, status_code=status, at_ns=at_ns)
        self.end = AgentEnd(ending=ending, text="".join(self._texts), error_message=str(error), error_stage=stage)
        return self.end

    def _take_end(self, event: RunEnded) -> None:
        self._trace.update_session_info(agent_session_id=event.session_id)
        if event.ending == "completed":
            self._respond({"success": True}, usage=event.usage, status_code=200, at_ns=event.mono_ns)
            self.end = AgentEnd(ending="completed", text="".join(self._texts))
        else:
            self.fail(_cause_of(event), ending=event.ending, at_ns=event.mono_ns, usage=event.usage)

    def _respond(self, payload: dict[str, Any], *, usage: Usage | None, status_code: int | None, at_ns: int) -> None:
        told: dict[str, Any] = {"message": "".join(self._texts), "streaming": False, **payload}
        if usage is not None:
            told["usage"] = structs.asdict(usage)
        self._trace.log_agent_response(told, status_code=status_code, at_ns=at_ns)


def whole_stage(error: AgentError | str) -> str:
    """The stage at which a whole answer failed: there is no stream that could have."""
    is_before = isinstance(error, AgentError) and error.stage == "agent_request"
    return "agent_request" if is_before else "agent_response"


def _cause_of(event: RunEnded) -> str:
    if event.error_message:
        return event.error_message
    match event.ending:
        case "incomplete":
            return "the stream ended without a terminal event"
        case "paused":
            return "the run waits for input"
        case "cancelled":
            return "the run was cancelled at the agent"
        case _:
            return "the agent reported an error"
