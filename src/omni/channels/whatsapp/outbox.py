"""Writes outgoing messages down before they are sent, and what became of them after.

A message is in the ledger as ``queued`` when it is known, as ``sending`` before its first attempt, and with its verdict when it has one.
Only ``sending`` is waited for: it is what tells a later process that the message may have gone out. The wait is bounded. When
the ledger cannot take it in time the message is sent all the same, counted and logged: what is on record must not decide whether people get
their answers.

Knows no lanes and no channel. Runs on event loops; a message's writes are made on the loop that sends it.
"""

import logging
from asyncio import Future
from hashlib import sha256
from typing import Any

from msgspec import Struct, structs

from omni.channels.whatsapp.patience import MS_PER_S, Sleep, wait_up_to
from omni.channels.whatsapp.sending import Sending
from omni.clock import NS_PER_S, Clock, wall_datetime
from omni.model import MessageOutcome, OutboundMessage
from omni.ports import Ledger, PutOutbound
from omni.records import OutboxRecord
from omni.settings import Settings

log = logging.getLogger(__name__)

# What the ledger may take longer than the database: its spool has to be written as well.
_GRACE_MS = 250
# A write is begun this long before it is needed, or twice as long as the last one took.
_MIN_LEAD_S = 0.05
_LOG_EVERY_NS = 60 * NS_PER_S


class AnswerIdentity(Struct, frozen=True, kw_only=True):
    """What the messages of one answer share in the ledger."""

    answer_id: str
    trace_id: str | None
    instance_name: str
    chat_key: str


def text_sha256(text: str) -> str:
    """The hash a text is known by once it is gone, in hex. Half a character is no UTF-8, and is told apart all the same."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Outbox:
    """The delivery's side of the ledger. Without a ledger it keeps nothing and costs nothing to wait for."""

    def __init__(self, ledger: Ledger | None, *, clock: Clock, settings: Settings, sleep: Sleep) -> None:
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._limit_s = (settings.database_wait_ms + _GRACE_MS) / MS_PER_S
        self._last_write_s = 0.0
        self._logged_ns: int | None = None
        self.num_unledgered = 0

    @property
    def lead_s(self) -> float:
        """Seconds before a message is due at which its write should begin, to be over in time; 0 without a ledger.

        Not earlier than that: from then on a process that dies leaves the message in doubt, and someone has to look for it.
        """
        return 0.0 if self._ledger is None else max(_MIN_LEAD_S, min(2 * self._last_write_s, self._limit_s))

    def open(self, identity: AnswerIdentity, message: OutboundMessage, *, is_notice: bool) -> OutboxRecord:
        """The record of a new message, in version 0: not written yet."""
        return OutboxRecord(
            message_uid=f"{identity.answer_id}/{message.index}",
            answer_id=identity.answer_id,
            trace_id=identity.trace_id,
            instance_name=identity.instance_name,
            chat_key=identity.chat_key,
            recipient=message.recipient,
            index=message.index,
            text=message.text,
            text_sha256=text_sha256(message.text),
            start=message.start,
            end=message.end,
            first_chunk=message.first_chunk,
            last_chunk=message.last_chunk,
            is_notice=is_notice,
            version=0,
            queued_at=wall_datetime(self._clock.wall_ns()),
        )

    def note_queued(self, sending: Sending) -> None:
        """Keep a message that has to wait; never blocks. One that is in the ledger already is left as it is."""
        if sending.record.version == 0:
            self._post(sending, state="queued")

    def begin(self, sending: Sending) -> None:
        """Start telling the ledger that the message is about to be sent; never blocks. Safe to call again."""
        if sending.is_begun:
            return
        sending.is_begun = True
        sending.record = self._next(sending, state="sending", started_at=wall_datetime(self._clock.wall_ns()))
        if self._ledger is None:
            return
        begun_ns = self._clock.mono_ns()
        sending.write = self._ledger.put(PutOutbound(sending.record))
        sending.write.add_done_callback(lambda write: self._note_written(write, begun_ns))

    async def write_ahead(self, sending: Sending) -> None:
        """Return once the ledger has the message as ``sending``, or once it had its time. Never raises for the ledger."""
        self.begin(sending)
        write, sending.write = sending.write, None
        if write is None:
            return
        is_done = await wait_up_to(write, self._limit_s, sleep=self._sleep)
        if not is_done or write.cancelled() or write.exception() is not None:
            sending.is_unledgered = True
            self._note_unledgered(sending)

    def close(self, sending: Sending, outcome: MessageOutcome) -> None:
        """Keep a message's final outcome. Never blocks, never raises.

        Its text stays for a while: whoever recovers a trace from a dead process may need it.
        """
        assert outcome.status in ("accepted", "failed", "not_sent")
        self._post(
            sending,
            state=outcome.status,
            attempts=outcome.attempts,
            ended_at=wall_datetime(self._clock.wall_ns()),
            key_id=outcome.key_id,
            status_code=outcome.status_code,
            error_kind=outcome.error_kind,
            error=outcome.error,
        )

    def _post(self, sending: Sending, **changes: Any) -> None:
        sending.record = self._next(sending, **changes)
        if self._ledger is not None:
            self._ledger.post(PutOutbound(sending.record))

    def _next(self, sending: Sending, **changes: Any) -> OutboxRecord:
        return structs.replace(sending.record, version=sending.record.version + 1, **changes)

    def _note_written(self, write: "Future[bool]", begun_ns: int) -> None:
        # Asking for the exception also tells asyncio that somebody looked: a message may be gone before its write fails.
        if not write.cancelled() and write.exception() is None:
            self._last_write_s = (self._clock.mono_ns() - begun_ns) / NS_PER_S

    def _note_unledgered(self, sending: Sending) -> None:
        self.num_unledgered += 1
        now_ns = self._clock.mono_ns()
        if self._logged_ns is None or now_ns - self._logged_ns >= _LOG_EVERY_NS:
            self._logged_ns = now_ns
            facts = {"trace_id": sending.record.trace_id, "message_index": sending.record.index}
            log.error("message_sent_without_ledger", extra={**facts, "total": self.num_unledgered})
