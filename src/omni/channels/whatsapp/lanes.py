"""One chat's queue of messages and the task that sends them, in order and with the chat's spacing.

A lane belongs to one chat of one instance. It exists while there is something to send or while the spacing behind its last
accepted message is still running, and then it is gone. Everything about attempts is decided here: which failures are tried again,
how long to wait, and when to stop trying. It opens no connection and knows no text: that is the channel's and the splitter's part.

Runs on the event loop only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from omni.clock import NS_PER_MS, NS_PER_S, Clock
from omni.faults import fault_facts
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage, SendErrorKind, SendResult
from omni.ports import Channel
from omni.settings import Settings

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]

MAX_RETRY_AFTER_S = 60.0
"""A server that asks for more patience than this is not waited for: the chat's next answers would wait as well."""

STOPPED = "stopped before it was sent"
"""Why a message was not sent when the process stops."""

_MS_PER_S = NS_PER_S // NS_PER_MS


class Answer(Protocol):
    """What a lane needs to know of the answer a message belongs to."""

    @property
    def instance(self) -> InstanceConfig:
        """The instance that sends it."""
        ...

    @property
    def given_up_because(self) -> str | None:
        """Why no further attempt is to be made, None while there is. Messages not yet started are settled by then."""
        ...

    def settle(self, outcome: MessageOutcome) -> None:
        """Take the final outcome of one message. Never raises."""
        ...


class Sending(Struct, eq=False):
    """One message on its way through a lane and what is known about it so far. Compared by identity."""

    answer: Answer
    message: OutboundMessage
    queued_ns: int
    started_ns: int | None = None
    ended_ns: int | None = None
    attempts: int = 0
    result: SendResult | None = None

    @property
    def is_started(self) -> bool:
        """Whether a first attempt has begun."""
        return self.started_ns is not None

    def outcome(self) -> MessageOutcome:
        """The final outcome by the last attempt's result."""
        assert self.result is not None
        return MessageOutcome(
            message=self.message,
            status="accepted" if self.result.is_accepted else "failed",
            attempts=self.attempts,
            queued_ns=self.queued_ns,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            key_id=self.result.key_id,
            status_code=self.result.status_code,
            error_kind=self.result.error_kind,
            error=self.result.error,
        )

    def pending(self) -> MessageOutcome:
        """The outcome of a message that waits or is being sent."""
        return MessageOutcome(
            message=self.message,
            status="pending",
            attempts=self.attempts,
            queued_ns=self.queued_ns,
            started_ns=self.started_ns,
        )

    def not_sent(self, reason: str) -> MessageOutcome:
        """The outcome of a message no attempt was made for."""
        return MessageOutcome(
            message=self.message, status="not_sent", attempts=0, queued_ns=self.queued_ns, error=reason
        )


class Lane:
    """Sends one chat's messages one after the other.

    ``on_idle`` is called once: when nothing is left and the spacing is over, or when the sending was cancelled.
    """

    def __init__(
        self, channel: Channel, *, clock: Clock, settings: Settings, sleep: Sleep, on_idle: Callable[[], object]
    ) -> None:
        self._channel = channel
        self._clock = clock
        self._settings = settings
        self._sleep = sleep
        self._on_idle = on_idle
        self._waiting: deque[Sending] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, sending: Sending) -> None:
        """Queue one message; never blocks. The queue has no bound of its own: ``delivery`` says why."""
        self._waiting.append(sending)
        if self._task is None:
            self._task = asyncio.create_task(self._send_all(), name="omni-lane")

    async def stop(self) -> None:
        """Cancel the sending; every message that is left is settled as not sent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._settle_waiting()

    def _settle_waiting(self) -> None:
        while self._waiting:
            sending = self._waiting.popleft()
            if sending.answer.given_up_because is None:
                sending.answer.settle(sending.not_sent(STOPPED))

    async def _send_all(self) -> None:
        try:
            await self._send_waiting()
        finally:
            # Also when the loop it runs on ends under it: nobody may wait for a message this task no longer sends.
            self._settle_waiting()
            self._on_idle()

    async def _send_waiting(self) -> None:
        while self._waiting:
            sending = self._waiting.popleft()
            if sending.answer.given_up_because is not None:
                continue
            await self._send_guarded(sending)
            outcome = sending.outcome()
            sending.answer.settle(outcome)
            if outcome.status == "accepted" or outcome.error_kind == "ambiguous":
                # Slept here and not before the next message: the lane stays as long as the spacing has to be remembered.
                await self._sleep(self._spacing_ms(sending) / _MS_PER_S)

    def _spacing_ms(self, sending: Sending) -> int:
        own = sending.answer.instance.message_spacing_ms
        return self._settings.message_spacing_ms if own is None else own

    async def _send_guarded(self, sending: Sending) -> None:
        """Send one message; whatever a channel raises ends here, so that one message's fault is no other message's."""
        try:
            await self._send(sending)
        except asyncio.CancelledError:
            if sending.result is None:
                self._end(sending, _broken_off("ambiguous", "stopped while it was being sent"))
            sending.answer.settle(sending.outcome())
            raise
        except Exception as exc:  # noqa: BLE001 - around one message's task: a channel must not raise, and one that does ends only that message
            # Nobody knows how far it got, so the message is not sent again.
            log.error("channel_raised", extra=fault_facts(exc))  # noqa: TRY400 - a traceback could hold text
            self._end(sending, _broken_off("ambiguous", f"the channel raised {type(exc).__name__}"))

    async def _send(self, sending: Sending) -> None:
        sending.started_ns = self._clock.mono_ns()
        while True:
            sending.result = None
            sending.attempts += 1
            result = await self._channel.send_text(sending.answer.instance, sending.message)
            self._end(sending, result)
            delay_s = self._retry_delay_s(result, attempts=sending.attempts)
            if delay_s is None or sending.answer.given_up_because is not None:
                return
            await self._sleep(delay_s)
            if sending.answer.given_up_because is not None:
                return

    def _end(self, sending: Sending, result: SendResult) -> None:
        sending.result = result
        sending.ended_ns = self._clock.mono_ns()

    def _retry_delay_s(self, result: SendResult, *, attempts: int) -> float | None:
        """Seconds before the next attempt; None when there is none. Only what certainly was not sent is sent again."""
        if result.error_kind != "transient" or attempts >= self._settings.send_attempts:
            return None
        asked_s = result.retry_after_s or 0.0
        if asked_s > MAX_RETRY_AFTER_S:
            return None
        own_s: float = self._settings.send_retry_ms * 2 ** (attempts - 1) / _MS_PER_S
        return max(asked_s, own_s)


def _broken_off(kind: SendErrorKind, error: str) -> SendResult:
    return SendResult(is_accepted=False, error_kind=kind, error=error)
