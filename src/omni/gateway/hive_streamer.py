"""The story of one answer: ask the agent, read what it says, deliver it while it is written, and put all of it on record.

Reading the stream never waits for sending: text goes to the delivery's splitter and lane without an await, and the lane has its own
task. The trace is closed only when the agent is done and every message has its outcome. Whatever goes wrong ends here as a
known ending, with the text received so far delivered and kept, one polite notice for the user, and stage and cause for the operator.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery, Delivery
from omni.channels.whatsapp.presence import TypingIndicator, TypingSign
from omni.clock import Clock
from omni.errors import AgentError, AgentTimeout, SettingsError
from omni.gateway.notices import Language, notice_for
from omni.gateway.run_readers import AgentEnd, ReplyReader, StreamReader
from omni.gateway.turn import Turn
from omni.model import (
    AgentEvent,
    AgentRequest,
    Ending,
    InstanceConfig,
    MessageOutcome,
)
from omni.ports import AgentBackend
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.summary import headline, streaming_summary
from omni.tracing.trace_context import TraceContext

log = logging.getLogger(__name__)

# Characters of the question kept in the stage streaming_start, as the predecessor kept them; agent_request has it whole.
_PREVIEW_CHARS = 100
_CUT_OFF = "the turn was cut off before it was done"


class Question(Struct, frozen=True, kw_only=True):
    """One turn to be answered: who asked what, through which instance, and where the answer goes."""

    instance: InstanceConfig
    request: AgentRequest
    recipient: str
    chat_key: str


class AnswerStreamer:
    """Answers questions. One object serves all turns of a process; each turn has its own state."""

    def __init__(self, *, delivery: Delivery, typing: TypingIndicator, clock: Clock, language: Language) -> None:
        self._delivery = delivery
        self._typing = typing
        self._clock = clock
        self._language: Language = language
        self._running: dict[str, tuple[Question, TraceContext]] = {}
        self._num_by_ending: dict[str, int] = {}
        self._cut_off_ending: Ending = "cancelled"

    async def answer(self, question: Question, agent: AgentBackend, trace: TraceContext) -> bool:
        """Answer one question and close its trace; True when the whole answer was accepted by the channel.

        Never raises for what the agent or the channel did. Cancelling it stops the agent and is recorded in the trace.
        """
        trace.await_delivery()
        trace.log_processing_start()
        trace.update_session_info(session_name=question.request.session_id)
        is_streaming = question.request.stream
        if is_streaming:
            StreamingTraceContext.upgrade(trace)
        self._running[trace.trace_id] = (question, trace)
        try:
            async with self._typing.shown(question.instance, question.recipient) as sign:
                end, outcomes = await self._ask_and_deliver(question, agent, trace, sign)
        except asyncio.CancelledError:
            self._close(trace, self._cut_off())
            raise
        finally:
            self._running.pop(trace.trace_id, None)
        return self._close(trace, _with_delivery(end, outcomes))

    async def _ask_and_deliver(
        self, question: Question, agent: AgentBackend, trace: TraceContext, sign: TypingSign
    ) -> tuple[AgentEnd, tuple[MessageOutcome, ...]]:
        answer = self._delivery.open_answer(
            question.instance,
            question.recipient,
            chat_key=question.chat_key,
            on_outcome=_outcome_logger(trace, has_chunks=question.request.stream, sign=sign),
        )
        try:
            end = await self._ask(question, agent, trace, answer)
            notice = notice_for(end.ending, has_text=end.has_text, language=self._language)
            if notice is not None:
                answer.notice(notice)
            answer.finish()
            return end, await answer.wait_done()
        except asyncio.CancelledError:
            answer.abandon()
            answer.finish()
            raise

    async def ask_whole(self, question: Question, agent: AgentBackend, trace: TraceContext) -> str:
        """The agent's whole answer, or the polite notice when there is none, for callers who deliver it themselves.

        After an answer the trace stays open until the caller logs the sending; otherwise it is closed with the run's ending.
        """
        trace.update_session_info(session_name=question.request.session_id)
        try:
            end = await self._ask(question, agent, trace, None)
        except asyncio.CancelledError:
            self._close(trace, self._cut_off())
            raise
        if end.ending != "completed":
            self._close(trace, end)
        if end.ending == "completed" and end.has_text:
            return end.text
        return notice_for(end.ending, has_text=False, language=self._language) or ""

    def note_stopping(self) -> None:
        """The process is about to stop: turns cut off from here on were interrupted, not cancelled by anybody."""
        self._cut_off_ending = "interrupted"

    async def refuse(self, turn: Turn, error: SettingsError) -> bool:
        """Close a turn that cannot be asked because its instance is not set up for it; the user gets one notice."""
        trace = turn.trace
        trace.await_delivery()
        answer = self._delivery.open_answer(
            turn.instance,
            turn.message.reply_to,
            chat_key=turn.message.chat_key,
            on_outcome=_outcome_logger(trace, has_chunks=False, sign=None),
        )
        notice = notice_for("error", has_text=False, language=self._language)
        assert notice is not None
        answer.notice(notice)
        answer.finish()
        await answer.wait_done()
        return self._close(trace, AgentEnd(ending="error", error_message=str(error), error_stage=error.stage))

    def get_streaming_analytics(self) -> dict[str, Any]:
        """What is running now, with its figures so far, and how many turns ended how since the process started."""
        streams = [
            {
                "trace_id": trace_id,
                "instance_name": question.instance.name,
                "agent_id": question.request.agent_id,
                **streaming_summary(trace.timeline),
            }
            for trace_id, (question, trace) in list(self._running.items())
        ]
        return {"active_streams": len(streams), "streams": streams, "ended": dict(self._num_by_ending)}

    async def _ask(
        self, question: Question, agent: AgentBackend, trace: TraceContext, answer: AnswerDelivery | None
    ) -> AgentEnd:
        request = question.request
        trace.log_agent_request(_request_payload(question), is_streaming=request.stream)
        if isinstance(trace, StreamingTraceContext) and request.stream:
            trace.log_streaming_start({
                f"{request.agent_kind}_id": request.agent_id,
                "recipient": question.recipient,
                "message_preview": request.message[:_PREVIEW_CHARS],
            })  # fmt: skip
        reader: StreamReader | ReplyReader = ReplyReader(trace, answer)
        if request.stream and answer is not None:
            reader = StreamReader(trace, answer)
        try:
            # The client is an async generator; closing it closes the agent's connection.
            events = cast("AsyncGenerator[AgentEvent]", agent.run(request))
            async with aclosing(events):
                async for event in events:
                    reader.take(event)
        except AgentError as exc:
            return reader.fail(exc, ending=_ending_of(exc), at_ns=self._clock.mono_ns())
        except asyncio.CancelledError:
            reader.fail(_CUT_OFF, ending=self._cut_off_ending, at_ns=self._clock.mono_ns())
            raise
        return reader.end or reader.fail(
            "the agent's stream ended without a word about its end", ending="incomplete", at_ns=self._clock.mono_ns()
        )

    def _cut_off(self) -> AgentEnd:
        ending = self._cut_off_ending
        return AgentEnd(ending=ending, error_message=_CUT_OFF, error_stage=ending)

    def _close(self, trace: TraceContext, end: AgentEnd) -> bool:
        trace.end_turn(end.ending, error_message=end.error_message, error_stage=end.error_stage)
        self._num_by_ending[end.ending] = self._num_by_ending.get(end.ending, 0) + 1
        timeline = trace.timeline
        log.info(
            "turn_ended",
            extra={
                "trace_id": trace.trace_id,
                "ending": end.ending,
                "error_stage": end.error_stage,
                "headline": headline(timeline),
                "turn_total_ms": timeline.turn_total_ms,
            },
        )
        return end.ending == "completed"


def _outcome_logger(
    trace: TraceContext, *, has_chunks: bool, sign: TypingSign | None
) -> Callable[[MessageOutcome], None]:
    def log_outcome(outcome: MessageOutcome) -> None:
        if sign is not None and outcome.status == "accepted":
            sign.note_message()
        message = outcome.message
        is_notice = message.first_chunk is None
        if not has_chunks:
            outcome = structs.replace(outcome, message=structs.replace(message, first_chunk=None, last_chunk=None))
        trace.log_message(outcome, is_notice=is_notice)

    return log_outcome


def _with_delivery(end: AgentEnd, outcomes: tuple[MessageOutcome, ...]) -> AgentEnd:
    """A complete answer that did not go out whole is a failed one; an agent's own failure keeps its name."""
    failed = next((outcome for outcome in outcomes if outcome.status in ("failed", "not_sent")), None)
    if failed is None or end.ending != "completed":
        return end
    return AgentEnd(
        ending="send_failed",
        error_message=failed.error or failed.error_kind or "a message was not sent",
        error_stage="evolution_send",
    )


def _request_payload(question: Question) -> dict[str, Any]:
    request = question.request
    return {
        "message": request.message,
        "user_id": request.user_id,
        "session_id": request.session_id,
        f"{request.agent_kind}_id": request.agent_id,
        "streaming": request.stream,
        "recipient": question.recipient,
    }


def _ending_of(error: AgentError) -> Ending:
    return "timeout" if isinstance(error, AgentTimeout) else "error"
