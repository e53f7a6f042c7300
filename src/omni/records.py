"""The rows of the ledger: what came in, what goes out, what was confirmed. Frozen, each with a version that grows with every change.

A row is always put whole. Of two versions of one row the newer counts, in whatever order they arrive and however often, so that a row can
be written again after a failure, or be moved from a spool into the database, without a thought.
"""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from omni.model import InboundMessage, ReceiptStatus, SendErrorKind

InboxState = Literal["stored", "running", "delivering", "done"]
OutboxState = Literal["queued", "sending", "accepted", "failed", "not_sent"]


class InboxRecord(Struct, frozen=True, kw_only=True):
    """One inbound message as the ledger keeps it; (instance_name, message_id) is its identity.

    ``stored`` it waits, ``running`` its agent is asked, ``delivering`` the whole answer is in the outbox, ``done`` nothing is left
    to do. ``version`` grows with each change; the ledger keeps the newest whatever the order they come in. ``message`` is None once it
    is done. ``num_takes`` counts how often an answer to it was begun.
    """

    instance_name: str
    message_id: str
    chat_key: str
    trace_id: str
    received_at: datetime
    state: InboxState = "stored"
    version: int = 1
    num_takes: int = 0
    message: InboundMessage | None = None


class OutboxRecord(Struct, frozen=True, kw_only=True):
    """One outgoing message as the ledger keeps it; ``message_uid`` is its identity, given by us before it is sent.

    ``answer_id`` is what the messages of one answer share: the trace's id, or one made for a text sent by request. ``sending`` means
    that an attempt may have been made. ``text`` is removed some time after the final state; the hash stays. ``version`` grows
    with each change; the ledger keeps the newest.
    """

    message_uid: str
    answer_id: str
    trace_id: str | None
    instance_name: str
    chat_key: str
    recipient: str
    index: int
    text: str | None
    text_sha256: str
    start: int = 0
    end: int = 0
    first_chunk: int | None = None
    last_chunk: int | None = None
    is_notice: bool = False
    state: OutboxState = "queued"
    version: int = 1
    attempts: int = 0
    queued_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    key_id: str | None = None
    status_code: int | None = None
    error_kind: SendErrorKind | None = None
    error: str | None = None


class ReceiptRecord(Struct, frozen=True, kw_only=True):
    """One receipt as the ledger keeps it; (instance_name, key_id, status) is its identity, the first arrival stays.

    ``event_at`` is the event's own time moved to true UTC, ``event_uncertainty_ms`` how wrong that may be; both None when unknown.
    ``trace_id`` is None until the message it belongs to is known.
    """

    instance_name: str
    key_id: str
    status: ReceiptStatus
    received_at: datetime
    event_at: datetime | None = None
    event_uncertainty_ms: int | None = None
    trace_id: str | None = None
    version: int = 1
