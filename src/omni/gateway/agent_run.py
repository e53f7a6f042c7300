"""Asks an agent for one turn and hears it out: patiently where nothing was begun yet, and never longer than anybody wants to listen.

Between the story of an answer and the agent's client. A server that cannot be reached for a moment is asked again; a run that may have
begun never is, because it would be begun twice. A run that is not read to its end (a user, a stopping server, a message that cannot be
delivered, silence) is stopped at its server where that has a way to, with the connection still open, so that no tokens are spent on
nobody. The end goes on record once that is settled, at the moment it came.

It sends nothing to the user and closes no trace: that is ``answer_story``.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from itertools import count
from random import random
from typing import Any, cast

from msgspec import Struct, structs

from omni.channels.whatsapp.delivery import AnswerDelivery
from omni.clock import NS_PER_S, Clock
from omni.errors import AgentError, AgentFailed, AgentTimeout, AgentUnreachable
from omni.gateway.run_readers import AgentEnd, ReplyReader, StreamReader
from omni.model import AgentEvent, AgentRequest, Ending, InstanceConfig, RequestWritten, UpstreamCancel
from omni.ports import AgentBackend
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.trace_context import TraceContext

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]

RETRY_DELAYS_S = (0.5, 2.0)
"""Seconds before the second and the third attempt, up to half as much again by chance: a server that restarts is back by then."""

CANCEL_LIMIT_S = 3.0
"""Longest a server is waited for that is told to stop a run; the connection is closed then in any case."""

# What a proxy says while there is no server behind it.
_NOBODY_THERE = frozenset({502, 503})
# Characters of the question kept in the stage streaming_start, as the predecessor kept them; agent_request has it whole.
_PREVIEW_CHARS = 100


class Question(Struct, frozen=True, kw_only=True):
    """One turn to be answered: who asked what, through which instance, and where the answer goes."""

    instance: InstanceConfig
    request: AgentRequest
    recipient: str
    chat_key: str


class Halt(Struct, frozen=True, kw_only=True):
    """Why a run is not read to its end. ``notice_as`` is the ending whose notice the user gets, where it is not ``ending``'s own."""

    ending: Ending
    sentence: str
    notice_as: Ending


class _Failure(Struct, frozen=True, kw_only=True):
    """Why a run is over whose own words do not say so. ``may_go_on`` at its server, that is."""

    error: AgentError | str
    ending: Ending
    at_ns: int
    may_go_on: bool


class AgentRun:
    """One question to one agent, with all its attempts. Read it, settle it; on one event loop."""

    def __init__(
        self,
        question: Question,
        agent: AgentBackend,
        trace: TraceContext,
        answer: AnswerDelivery | None,
        *,
        clock: Clock,
        sleep: Sleep,
    ) -> None:
        self._question = question
        self._agent = agent
        self._trace = trace
        self._clock = clock
        self._sleep = sleep
        self._reader: StreamReader | ReplyReader = ReplyReader(trace, answer)
        if question.request.stream and answer is not None:
            self._reader = StreamReader(trace, answer)
        self._failure: _Failure | None = None
        self._upstream: UpstreamCancel | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_written = False
        self._is_answered = False
        self.halted_by: Halt | None = None

    @property
    def ending(self) -> Ending | None:
        """How the run ended; None while it goes on."""
        if self._reader.end is not None:
            return self._reader.end.ending
        return None if self._failure is None else self._failure.ending

    @property
    def has_text(self) -> bool:
        """Whether the agent has said anything that is to be seen."""
        return self._reader.has_text

    async def read(self) -> None:
        """Ask, and read until the run is over. Never raises for what the agent does."""
        self._log_request()
        try:
            await self._read_patiently()
        except AgentError as exc:
            is_silent = isinstance(exc, AgentTimeout)
            self._fail(exc, ending="timeout" if is_silent else "error", may_go_on=is_silent)
        else:
            self._fail("the agent's stream ended without a word about its end", ending="incomplete", may_go_on=False)

    async def read_until(self, halted: asyncio.Future[None]) -> None:
        """Read until the run is over or has been halted, which ``halted`` tells. ``settle`` has to follow."""
        if halted.done():
            return
        self._task = asyncio.create_task(self.read(), name="omni-run")
        either: set[asyncio.Future[None]] = {self._task, halted}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()

    def halt(self, cause: Halt) -> None:
        """Hear nothing more from now on. Without effect on a run that is over."""
        if self.ending is None:
            self.halted_by = cause
            self._fail(cause.sentence, ending=cause.ending, may_go_on=True)

    async def settle(self) -> AgentEnd:
        """Stop the run at its server if it may be going on there, let the connection go, and put the end on record."""
        await self._cancel_upstream()
        await self.aclose()
        return self.put_on_record()

    def put_on_record(self) -> AgentEnd:
        """The end, on the trace if it is not there yet; without waiting for anything. Only for a run that is over."""
        if self._reader.end is not None:
            return self._reader.end
        failure = self._failure
        assert failure is not None
        return self._reader.fail(
            failure.error, ending=failure.ending, at_ns=failure.at_ns, upstream_cancel=self._upstream
        )

    async def aclose(self) -> None:
        """Let the agent's connection go. Safe to call again."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _read_patiently(self) -> None:
        request = self._question.request
        begun_ns = self._clock.mono_ns()
        for attempt in count(1):
            try:
                await self._read_once(request)
            except AgentError as exc:
                waited_s = (self._clock.mono_ns() - begun_ns) / NS_PER_S
                delay_s = self._retry_delay_s(exc, attempt=attempt, waited_s=waited_s)
                if delay_s is None:
                    raise
                self._log_retry(exc, attempt=attempt, delay_s=delay_s)
                await self._sleep(delay_s)
            else:
                return
            waited_s = (self._clock.mono_ns() - begun_ns) / NS_PER_S
            request = structs.replace(request, waited_s=waited_s)

    async def _read_once(self, request: AgentRequest) -> None:
        self._is_written = self._is_answered = False
        # The client is an async generator; closing it closes the agent's connection.
        events = cast("AsyncGenerator[AgentEvent]", self._agent.run(request))
        async with aclosing(events):
            async for event in events:
                if self._failure is not None:
                    continue  # halted: the connection is kept until the server was told, its words are not
                if type(event) is RequestWritten:
                    self._is_written = True
                else:
                    self._is_answered = True
                self._reader.take(event)

    def _retry_delay_s(self, error: AgentError, *, attempt: int, waited_s: float) -> float | None:
        """Seconds before the next attempt, None when there is none: only what certainly began no run is asked again."""
        if isinstance(error, AgentUnreachable):
            is_safe = not self._is_written
        else:
            is_refused = isinstance(error, AgentFailed) and error.status_code in _NOBODY_THERE
            is_safe = is_refused and not self._is_answered
        if not is_safe or self.ending is not None or attempt > len(RETRY_DELAYS_S):
            return None
        delay_s = RETRY_DELAYS_S[attempt - 1] * (1 + random() / 2)  # noqa: S311 - spreads attempts, guards nothing
        return delay_s if waited_s + delay_s < self._question.request.timeout_s else None

    def _fail(self, error: AgentError | str, *, ending: Ending, may_go_on: bool) -> None:
        if self.ending is None:
            self._failure = _Failure(error=error, ending=ending, at_ns=self._clock.mono_ns(), may_go_on=may_go_on)

    async def _cancel_upstream(self) -> None:
        run_id = self._reader.run_id
        if self._failure is None or not self._failure.may_go_on or run_id is None:
            return
        self._upstream = "failed"  # until the server has said otherwise
        try:
            async with asyncio.timeout(CANCEL_LIMIT_S):
                is_noted = await self._agent.cancel_run(self._question.request, run_id)
        except (AgentError, TimeoutError) as exc:
            facts = {"trace_id": self._trace.trace_id, "cause": type(exc).__name__}
            log.debug("upstream_cancel_failed", extra=facts)
            return
        self._upstream = "requested" if is_noted else "unsupported"

    def _log_request(self) -> None:
        question, request, trace = self._question, self._question.request, self._trace
        trace.log_agent_request(_request_payload(question), is_streaming=request.stream)
        if isinstance(trace, StreamingTraceContext) and request.stream:
            trace.log_streaming_start({
                f"{request.agent_kind}_id": request.agent_id,
                "recipient": question.recipient,
                "message_preview": request.message[:_PREVIEW_CHARS],
            })  # fmt: skip

    def _log_retry(self, error: AgentError, *, attempt: int, delay_s: float) -> None:
        self._trace.log_stage(
            "agent_retry",
            {
                "attempt": attempt,
                "error": str(error),
                "error_type": type(error).__name__,
                "detail": error.detail,
                "next_attempt_after_ms": round(delay_s * 1_000),
            },
            "error",
            error.status_code,
            str(error),
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
