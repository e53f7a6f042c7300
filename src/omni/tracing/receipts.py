"""What receipts make of a turn's messages: each message's status, and when it was delivered and read. Pure.

Receipts come in any order, any number of times, late by days, or never; the same set of them gives the same result. Knowledge only grows:

    accepted < delivered < read      rank never goes down, and what was read was delivered
    failed                           only while no receipt says that it was delivered
    server_ack                       optional; proves nothing more than that it was accepted
    pending                          says nothing
    deleted                          is noted apart: it may have been read before

A message whose sending failed, or nobody knows of, was sent all the same when WhatsApp confirms it. No receipt at all is unknown,
not failed.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from omni.clock import Anchor
from omni.model import MessageStatus, ReceiptStatus
from omni.tracing.events import MessageSettled, ReceiptSeen

REPORTED = "WhatsApp reported an error"
"""The error of a message WhatsApp refused; Evolution does not pass its code on."""


class MessageReceipts(Struct, frozen=True, kw_only=True):
    """What WhatsApp said of one message. ``*_ns`` count from the turn's start; None where no receipt of its own told it.

    ``delivered_ns`` and ``read_ns`` are the first arrivals here, ``*_event_ns`` what those events say themselves, wrong by at most
    ``event_uncertainty_ms``. None is earlier than the message's sending. ``statuses`` are in the order of their first arrival.
    """

    statuses: tuple[ReceiptStatus, ...] = ()
    delivered_ns: int | None = None
    read_ns: int | None = None
    delivered_event_ns: int | None = None
    read_event_ns: int | None = None
    event_uncertainty_ms: int | None = None

    @property
    def is_deleted(self) -> bool:
        """Whether it was deleted for everyone."""
        return "deleted" in self.statuses


def join_receipts(
    messages: Sequence[MessageSettled], receipts: Iterable[ReceiptSeen], anchor: Anchor
) -> tuple[tuple[MessageSettled, ...], tuple[MessageReceipts, ...]]:
    """The messages with the status their receipts give them, and the receipts of each, in the same order."""
    by_key: dict[str, list[ReceiptSeen]] = {}
    for receipt in receipts:
        by_key.setdefault(receipt.key_id, []).append(receipt)
    if not by_key:
        return tuple(messages), (_NONE,) * len(messages)
    told = tuple(
        _NONE if message.key_id is None else _receipts_of(message, by_key.get(message.key_id, []), anchor)
        for message in messages
    )
    return tuple(map(_with_status, messages, told)), told


_NONE = MessageReceipts()


def _receipts_of(message: MessageSettled, receipts: list[ReceiptSeen], anchor: Anchor) -> MessageReceipts:
    # By the microsecond, as they are stored; those of one microsecond stay in the order they were logged.
    receipts = sorted(receipts, key=lambda receipt: anchor.offset_ns(receipt.mono_ns))
    sent_ns = message.started_ns if message.started_ns is not None else message.queued_ns
    # What comes from another clock may seem to be earlier than its own cause.
    earliest_ns = max(0 if sent_ns is None else anchor.offset_ns(sent_ns), 0)

    def offset(mono_ns: int | None) -> int | None:
        return None if mono_ns is None else max(anchor.offset_ns(mono_ns), earliest_ns)

    first: dict[ReceiptStatus, ReceiptSeen] = {}
    first_timed: dict[ReceiptStatus, ReceiptSeen] = {}
    for receipt in receipts:
        first.setdefault(receipt.status, receipt)
        if receipt.event_ns is not None:
            first_timed.setdefault(receipt.status, receipt)
    delivered, read = first.get("delivered"), first.get("read")
    timed = [first_timed[status] for status in ("delivered", "read") if status in first_timed]
    uncertainties = [one.event_uncertainty_ms for one in timed if one.event_uncertainty_ms is not None]
    delivered_event, read_event = first_timed.get("delivered"), first_timed.get("read")
    read_ns = None if read is None else offset(read.mono_ns)
    read_event_ns = None if read_event is None else offset(read_event.event_ns)
    return MessageReceipts(
        statuses=tuple(first),
        delivered_ns=_no_later(None if delivered is None else offset(delivered.mono_ns), read_ns),
        read_ns=read_ns,
        delivered_event_ns=_no_later(
            None if delivered_event is None else offset(delivered_event.event_ns), read_event_ns
        ),
        read_event_ns=read_event_ns,
        event_uncertainty_ms=max(uncertainties, default=None),
    )


def _with_status(message: MessageSettled, told: MessageReceipts) -> MessageSettled:
    statuses = told.statuses
    status: MessageStatus = message.status
    if "read" in statuses:
        status = "read"
    elif "delivered" in statuses:
        status = "delivered"
    elif "failed" in statuses and message.status not in ("delivered", "read"):
        return structs.replace(message, status="failed", error=REPORTED)
    elif "server_ack" in statuses and message.status not in ("delivered", "read"):
        status = "accepted"
    return message if status == message.status else structs.replace(message, status=status)


def _no_later(delivered_ns: int | None, read_ns: int | None) -> int | None:
    """What was read had been delivered, even when the word of that came later."""
    if delivered_ns is None or read_ns is None:
        return delivered_ns
    return min(delivered_ns, read_ns)
