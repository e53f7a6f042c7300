"""The context that follows a turn: what the gateway, and users of the library, log to.

Every ``log_*`` method reads the clock, appends one frozen event to the trace's journal and returns: no I/O, no JSON, no waiting,
no exception. Figures are derived from the events afterwards, by ``timeline.build_timeline`` and by nothing else.
"""

from typing import Any

from omni.clock import Anchor, Clock, SystemClock, take_anchor
from omni.model import Ending, MessageOutcome
from omni.ports import PayloadType
from omni.tracing.events import (
    AgentRequested,
    AgentResponded,
    ColumnsChanged,
    FirstByteSeen,
    MessageSettled,
    ProcessingStarted,
    RequestWritten,
    StageLogged,
    StreamFailed,
    ToolCalled,
    TurnEnded,
)
from omni.tracing.fitting import as_count, as_payload, as_text
from omni.tracing.recorder import TraceJournal
from omni.tracing.timeline import Timeline, build_timeline

# Columns callers may set by keyword in update_trace_status; others are passed over, as the predecessor did.
_SETTABLE_COLUMNS = frozenset({
    "processing_started_at",
    "agent_request_at",
    "agent_response_at",
    "evolution_send_at",
    "session_name",
    "agent_session_id",
    "agent_processing_time_ms",
    "agent_request_tokens",
    "agent_response_tokens",
    "agent_response_success",
    "agent_response_length",
    "agent_tools_used",
    "evolution_response_code",
    "evolution_success",
    "message_type",
    "message_length",
    "has_media",
    "has_quoted_message",
})  # fmt: skip
# The predecessor closed streaming failures as "error", which its own analytics did not count.
_CLOSING_STATUSES = {"completed": "completed", "failed": "failed", "error": "failed"}


class TraceContext:
    """Follows one turn from webhook to answer. Safe to use from any thread; methods never block and never raise.

    ``db_session`` is accepted for callers of the predecessor and ignored.
    """

    is_streaming = False

    def __init__(
        self,
        trace_id: str,
        db_session: object = None,  # noqa: ARG002 - the predecessor's signature
        *,
        journal: TraceJournal | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.trace_id = trace_id
        self._clock: Clock = clock or SystemClock()
        self._journal = journal or TraceJournal(trace_id, take_anchor(self._clock), None)
        self._awaits_delivery = False

    @property
    def anchor(self) -> Anchor:
        """The turn's start on both clocks."""
        return self._journal.anchor

    @property
    def timeline(self) -> Timeline:
        """Everything known about the turn so far. Linear in the number of chunks."""
        journal = self._journal
        return build_timeline(self.trace_id, journal.anchor, journal.kept_events(), num_dropped_chunks=journal.num_shed)

    def await_delivery(self) -> None:
        """Keep the trace open after the agent's end until ``end_turn``: messages are still on their way."""
        self._awaits_delivery = True

    def log_stage(
        self,
        stage: str,
        payload: dict[str, Any],
        payload_type: PayloadType = "request",
        status_code: int | None = None,
        error_details: str | None = None,
    ) -> None:
        """Keep a payload for a stage of the caller's choosing."""
        self._journal.append(
            StageLogged(
                mono_ns=self._clock.mono_ns(),
                stage=stage,
                payload_type=payload_type,
                payload=as_payload(payload),
                status_code=status_code,
                error_details=error_details,
            )
        )

    def update_trace_status(
        self, status: str, error_message: str | None = None, error_stage: str | None = None, **columns: Any
    ) -> None:
        """Set the trace's status; ``completed`` and ``failed`` (or the predecessor's ``error``) close it.

        Further keywords set columns of the row; unknown ones are passed over.
        """
        known = {name: value for name, value in columns.items() if name in _SETTABLE_COLUMNS}
        closing = _CLOSING_STATUSES.get(status)
        if closing is None:
            known["status"] = status
            if error_message:
                known["error_message"] = error_message
            if error_stage:
                known["error_stage"] = error_stage
        if known:
            self._journal.append(ColumnsChanged(mono_ns=self._clock.mono_ns(), columns=known))
        if closing == "completed":
            self.end_turn("completed")
        elif closing is not None:
            self.end_turn(self._failure_ending(error_stage), error_message=error_message, error_stage=error_stage)

    def update_session_info(self, session_name: str | None = None, agent_session_id: str | None = None) -> None:
        """Keep the session's names; None leaves what is there."""
        given = {"session_name": session_name, "agent_session_id": agent_session_id}
        known = {name: value for name, value in given.items() if value is not None}
        if known:
            self._journal.append(ColumnsChanged(mono_ns=self._clock.mono_ns(), columns=known))

    def log_processing_start(self) -> None:
        """The turn left its queue."""
        self._journal.append(ProcessingStarted(self._clock.mono_ns()))

    def log_agent_request(self, agent_payload: dict[str, Any], *, is_streaming: bool | None = None) -> None:
        """The agent is about to be asked; latencies count from here unless ``mark_request_written`` follows.

        ``is_streaming`` says whether a stream was asked for; None takes the context's kind.
        """
        self._journal.append(
            AgentRequested(
                mono_ns=self._clock.mono_ns(),
                payload=as_payload(agent_payload),
                is_streaming=self.is_streaming if is_streaming is None else is_streaming,
            )
        )

    def mark_request_written(self, at_ns: int) -> None:
        """The request's last byte went to the socket at ``at_ns`` (monotonic nanoseconds)."""
        self._journal.append(RequestWritten(at_ns))

    def mark_first_byte(self, at_ns: int) -> None:
        """The first byte of the answer arrived at ``at_ns`` (monotonic nanoseconds)."""
        self._journal.append(FirstByteSeen(at_ns))

    def log_tool_call(
        self, name: str | None, *, phase: str = "started", is_error: bool = False, at_ns: int | None = None
    ) -> None:
        """A tool started or completed."""
        self._journal.append(
            ToolCalled(
                mono_ns=self._now(at_ns),
                phase="completed" if phase == "completed" else "started",
                name=name,
                is_error=is_error,
            )
        )

    def log_agent_response(
        self,
        agent_response: dict[str, Any],
        processing_time_ms: int | None = None,
        status_code: int | None = 200,
        *,
        at_ns: int | None = None,
    ) -> None:
        """The whole answer of an agent that did not stream; keys as the predecessor's (message, success, usage, ...)."""
        self._journal.append(
            AgentResponded(
                mono_ns=self._now(at_ns),
                payload=as_payload(agent_response, key="message"),
                processing_time_ms=as_count(processing_time_ms),
                status_code=status_code,
            )
        )

    def log_evolution_send(self, send_payload: dict[str, Any], response_code: int, success: bool) -> None:  # noqa: FBT001 - the predecessor's signature
        """One message was handed to Evolution; closes the trace unless delivery is awaited."""
        now_ns = self._clock.mono_ns()
        payload = as_payload(send_payload, key="text")
        num_before = sum(isinstance(event, MessageSettled) for event in self._journal.events)
        self._journal.append(
            MessageSettled(
                mono_ns=now_ns,
                index=num_before,
                recipient=as_text(payload.get("recipient") or payload.get("number")),
                text=as_text(payload.get("text")) or "",
                status="accepted" if success else "failed",
                accepted_ns=now_ns if success else None,
                status_code=as_count(response_code),
                error=None if success else f"Evolution API answered {response_code}",
                payload=payload,
            )
        )
        if self._awaits_delivery:
            return
        if success:
            self.end_turn("completed")
        else:
            self.end_turn(
                "send_failed", error_message=f"Evolution API answered {response_code}", error_stage="evolution_send"
            )

    def log_message(self, outcome: MessageOutcome, *, is_notice: bool = False) -> None:
        """What became of one message of the answer."""
        message = outcome.message
        is_accepted = outcome.status in ("accepted", "delivered", "read")
        self._journal.append(
            MessageSettled(
                mono_ns=outcome.ended_ns if outcome.ended_ns is not None else self._clock.mono_ns(),
                index=message.index,
                recipient=message.recipient,
                text=message.text,
                status=outcome.status,
                attempts=outcome.attempts,
                queued_ns=outcome.queued_ns,
                started_ns=outcome.started_ns,
                accepted_ns=outcome.ended_ns if is_accepted else None,
                start=message.start,
                end=message.end,
                first_chunk=message.first_chunk,
                last_chunk=message.last_chunk,
                key_id=outcome.key_id,
                status_code=outcome.status_code,
                error_kind=outcome.error_kind,
                error=outcome.error,
                is_notice=is_notice,
            )
        )

    def end_turn(
        self,
        ending: Ending,
        *,
        error_message: str | None = None,
        error_stage: str | None = None,
        at_ns: int | None = None,
    ) -> None:
        """Close the trace: everything about the turn is known. ``at_ns`` (monotonic) is for a turn found to have ended earlier."""
        self._journal.append(
            TurnEnded(mono_ns=self._now(at_ns), ending=ending, error_message=error_message, error_stage=error_stage)
        )

    def _now(self, at_ns: int | None) -> int:
        return self._clock.mono_ns() if at_ns is None else at_ns

    def _failure_ending(self, error_stage: str | None) -> Ending:
        for event in reversed(self._journal.events):
            if isinstance(event, StreamFailed):
                return event.ending
        return "send_failed" if error_stage == "evolution_send" else "error"
