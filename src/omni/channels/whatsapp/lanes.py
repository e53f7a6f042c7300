"""One chat's queue of messages and the task that sends them, in order and with the chat's spacing.

A lane belongs to one chat of one instance. It exists while there is something to send or while the spacing behind its last
accepted message is still running, and then it is gone. Everything about attempts is decided here: which failures are tried again,
how long to wait, and when to stop trying. What certainly did not go out is sent again, what may have gone out only once the channel
is known not to have it. It opens no connection and knows no text: that is the channel's and the splitter's part.

Runs on the event loop only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from msgspec import Struct, structs

from omni.channels.whatsapp.outbox import Outbox
from omni.channels.whatsapp.patience import MS_PER_S, Backoff, Sleep
from omni.channels.whatsapp.reconcile import Reconciler, Verdict, Watch
from omni.channels.whatsapp.sending import Sending, broken_off
from omni.clock import NS_PER_S, Clock
from omni.faults import fault_facts
from omni.model import SendResult, SentSearch
from omni.ports import Channel
from omni.settings import Settings

log = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 60.0
"""A server that asks for more patience than this is not waited for: the chat's next answers would wait as well."""

_Answered = TypeVar("_Answered")


class LaneParts(Struct, frozen=True, kw_only=True):
    """What all lanes of one delivery work with."""

    channel: Channel
    outbox: Outbox
    reconciler: Reconciler
    backoff: Backoff
    clock: Clock
    settings: Settings
    sleep: Sleep


class Lane:
    """Sends one chat's messages one after the other.

    ``on_idle`` is called once: when nothing is left and the spacing is over, or when the sending was cancelled.
    """

    def __init__(self, parts: LaneParts, *, on_idle: Callable[[], object]) -> None:
        self._parts = parts
        self._on_idle = on_idle
        self._waiting: deque[Sending] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_next_due = False

    def put(self, sending: Sending) -> None:
        """Queue one message; never blocks. The queue has no bound of its own: ``delivery`` says why."""
        is_next = self._task is None or (self._is_next_due and not self._waiting)
        self._waiting.append(sending)
        if is_next:
            self._parts.outbox.begin(sending)
        else:
            self._parts.outbox.note_queued(sending)
        if self._task is None:
            self._task = asyncio.create_task(self._send_all(), name="omni-lane")

    async def stop(self) -> None:
        """Cancel the sending; every message that is left is settled as not sent, or as unknown when it may have been."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._settle_waiting()

    def _settle_waiting(self) -> None:
        while self._waiting:
            self._cut_off(self._waiting.popleft())

    def _cut_off(self, sending: Sending) -> None:
        if not sending.is_settled:
            sending.answer.settle(sending.cut_off(at_ns=self._parts.clock.mono_ns()))

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
            try:
                if not sending.is_settled:
                    await self._send(sending)
            finally:
                self._cut_off(sending)
            result = sending.result
            if result is not None and (result.is_accepted or result.error_kind == "ambiguous"):
                # Slept here and not before the next message: the lane stays as long as the spacing has to be remembered.
                await self._pause(self._spacing_s(sending))

    async def _pause(self, spacing_s: float) -> None:
        """Keep the spacing; near its end the next message is told to the ledger, so that this costs no time of its own."""
        lead_s = min(self._parts.outbox.lead_s, spacing_s)
        if lead_s <= 0:
            await self._parts.sleep(spacing_s)
            return
        await self._parts.sleep(spacing_s - lead_s)
        self._is_next_due = True
        try:
            upcoming = next((each for each in self._waiting if not each.is_settled), None)
            if upcoming is not None:
                self._parts.outbox.begin(upcoming)
            await self._parts.sleep(lead_s)
        finally:
            self._is_next_due = False

    def _spacing_s(self, sending: Sending) -> float:
        own = sending.answer.instance.message_spacing_ms
        return (self._parts.settings.message_spacing_ms if own is None else own) / MS_PER_S

    async def _send(self, sending: Sending) -> None:
        """Send one message and settle it. What a channel raises ends in its result, so that one message's fault is no other's."""
        await self._parts.outbox.write_ahead(sending)
        if sending.is_settled:
            return
        with self._parts.reconciler.watching(sending) as watch:
            if sending.is_in_doubt:
                self._end(sending, broken_off("ambiguous", "Omni died while it was being sent"))
                await self._reconcile(sending, watch)
            while (pause_s := self._pause_before_next_s(sending)) is not None:
                if pause_s:
                    await self._parts.sleep(pause_s)
                if sending.attempts and (self._is_found_meanwhile(sending, watch) or self._is_given_up(sending)):
                    break
                await self._attempt(sending)
                await self._reconcile(sending, watch)
        sending.answer.settle(sending.outcome())

    def _is_given_up(self, sending: Sending) -> bool:
        return sending.answer.given_up_because is not None

    def _is_found_meanwhile(self, sending: Sending, watch: Watch) -> bool:
        """Whether the channel said during a pause that an attempt went through after all."""
        verdict = self._parts.reconciler.heard(watch)
        if verdict is not None:
            self._note_verdict(sending, verdict)
        return verdict is not None

    async def _attempt(self, sending: Sending) -> None:
        if sending.started_ns is None:
            sending.started_ns = self._parts.clock.mono_ns()
        sending.result = None
        sending.attempts += 1
        result = await self._ask(
            self._parts.channel.send_text(sending.answer.instance, sending.message),
            otherwise=lambda name: broken_off("ambiguous", f"the channel raised {name}"),
        )
        self._end(sending, result)

    async def _reconcile(self, sending: Sending, watch: Watch) -> None:
        """Make a result that leaves everything open a known one, if that can be."""
        result = sending.result
        if result is None or result.error_kind != "ambiguous":
            return

        async def ask(known_key_ids: Collection[str]) -> SentSearch:
            return await self._ask(
                self._parts.channel.find_sent(
                    sending.answer.instance,
                    sending.message,
                    started_wall_ns=self._started_wall_ns(sending),
                    known_key_ids=known_key_ids,
                ),
                otherwise=lambda _: SentSearch(verdict="unknown"),
            )

        verdict = await self._parts.reconciler.resolve(watch, ask, is_searchable=result.is_searchable)
        self._note_verdict(sending, verdict)

    def _note_verdict(self, sending: Sending, verdict: Verdict) -> None:
        result = sending.result
        if verdict.verdict == "found":
            sending.result = SendResult(is_accepted=True, key_id=verdict.key_id)
            sending.ended_ns = verdict.at_ns
        elif verdict.verdict == "absent" and result is not None:
            error = f"{result.error}; the channel has no such message"
            sending.result = structs.replace(result, error_kind="transient", error=error)
        log.info(
            "ambiguous_send_reconciled",
            extra={"trace_id": sending.record.trace_id, "index": sending.message.index, "verdict": verdict.verdict},
        )

    def _started_wall_ns(self, sending: Sending) -> int:
        record = sending.record
        return int((record.started_at or record.queued_at).timestamp() * NS_PER_S)

    def _end(self, sending: Sending, result: SendResult) -> None:
        sending.result = result
        sending.ended_ns = self._parts.clock.mono_ns()

    def _pause_before_next_s(self, sending: Sending) -> float | None:
        """Seconds before the next attempt; None when there is none. Only what certainly did not go out is sent again."""
        result = sending.result
        if result is None:
            return 0.0
        asked_s = result.retry_after_s or 0.0
        is_passing = result.error_kind == "transient" and asked_s <= MAX_RETRY_AFTER_S
        if not is_passing or sending.attempts >= self._parts.settings.send_attempts:
            return None
        return self._parts.backoff.pause_s(sending.attempts, asked_s=asked_s)

    async def _ask(self, answer: Awaitable[_Answered], *, otherwise: Callable[[str], _Answered]) -> _Answered:
        try:
            return await answer
        except Exception as exc:  # noqa: BLE001 - around one message's task: a channel must not raise, and one that does ends only that message
            log.error("channel_raised", extra=fault_facts(exc))  # noqa: TRY400 - a traceback could hold text
            return otherwise(type(exc).__name__)
