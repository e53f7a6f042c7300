"""One message on its way out: what is known of it while it waits, is sent, and is looked for.

Made by an answer's delivery, written down by the outbox, moved on by a lane. Holds facts and turns them into outcomes; decides nothing.
"""

from asyncio import Future
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from omni.clock import Anchor
from omni.model import InstanceConfig, MessageOutcome, MessageStatus, OutboundMessage, SendErrorKind, SendResult
from omni.records import OutboxRecord, OutboxState

STOPPED = "stopped before it was sent"
"""Why a message was not sent when the process stops."""

_CUT_OFF = "stopped while it was being sent"
_FINAL: Mapping[OutboxState, MessageStatus] = {"accepted": "accepted", "failed": "failed", "not_sent": "not_sent"}


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
    """One message on its way through a lane and what is known about it so far. Compared by identity.

    ``record`` is the newest version the ledger was given. ``is_begun`` says that the ledger was told an attempt may follow, ``write``
    is that telling while it is under way. ``is_in_doubt`` says that an earlier process may have sent it.
    """

    answer: Answer
    message: OutboundMessage
    record: OutboxRecord
    queued_ns: int
    started_ns: int | None = None
    ended_ns: int | None = None
    attempts: int = 0
    result: SendResult | None = None
    write: "Future[bool] | None" = None
    is_begun: bool = False
    is_in_doubt: bool = False
    is_unledgered: bool = False
    is_settled: bool = False

    @property
    def is_started(self) -> bool:
        """Whether a first attempt has begun, or may have."""
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
            is_unledgered=self.is_unledgered,
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

    def cut_off(self, *, at_ns: int) -> MessageOutcome:
        """The outcome of a message that the end of its lane met, wherever it was: what is not known to have failed is unknown."""
        if not self.is_started:
            return self.not_sent(STOPPED)
        if self.result is None:
            self.result, self.ended_ns = broken_off("ambiguous", _CUT_OFF), at_ns
        return self.outcome()


def broken_off(kind: SendErrorKind, error: str) -> SendResult:
    """The result of an attempt that ended without any answer."""
    return SendResult(is_accepted=False, error_kind=kind, error=error)


def resumed_sending(answer: Answer, record: OutboxRecord, *, anchor: Anchor) -> Sending:
    """A message that an earlier process queued or began to send, ready for a lane of this one."""
    is_in_doubt = record.state == "sending"
    started_ns = None
    if is_in_doubt:
        started_ns = anchor.mono_ns if record.started_at is None else anchor.mono_at(record.started_at)
    return Sending(
        answer=answer,
        message=recorded_message(record),
        record=record,
        queued_ns=anchor.mono_at(record.queued_at),
        started_ns=started_ns,
        attempts=max(record.attempts, 1) if is_in_doubt else record.attempts,
        is_begun=is_in_doubt,
        is_in_doubt=is_in_doubt,
    )


def recorded_message(record: OutboxRecord) -> OutboundMessage:
    """The message of a record; its text is "" where the record keeps only the hash."""
    return OutboundMessage(
        index=record.index,
        recipient=record.recipient,
        text=record.text or "",
        start=record.start,
        end=record.end,
        first_chunk=record.first_chunk,
        last_chunk=record.last_chunk,
    )


def recorded_outcome(record: OutboxRecord, *, anchor: Anchor) -> MessageOutcome | None:
    """The outcome of a record in its final state, its times counted by the wall clock; None while it has no final state."""
    status = _FINAL.get(record.state)
    if status is None:
        return None
    return MessageOutcome(
        message=recorded_message(record),
        status=status,
        attempts=record.attempts,
        queued_ns=anchor.mono_at(record.queued_at),
        started_ns=None if record.started_at is None else anchor.mono_at(record.started_at),
        ended_ns=None if record.ended_at is None else anchor.mono_at(record.ended_at),
        key_id=record.key_id,
        status_code=record.status_code,
        error_kind=record.error_kind,
        error=record.error,
    )
