"""Records for the tests of the ledger: whole ones, and small ones that differ where a test wants them to."""

from datetime import UTC, datetime, timedelta
from typing import Any

from omni.model import InboundMessage
from omni.ports import PutInbound, PutOutbound, PutReceipt
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def message(**changes: Any) -> InboundMessage:
    values: dict[str, Any] = {
        "instance_name": "flash",
        "message_id": "3EB0A",
        "chat_key": "5511999990001@s.whatsapp.net",
        "reply_to": "98765432101234@lid",
        "sender_phone": "5511999990001",
        "sender_name": "Ana 🌸",
        "text": "Olá, how long will it take?",
        "message_type": "text",
        "sent_at_s": 1_795_348_800,
        "raw": {"event": "messages.upsert", "data": {"key": {"id": "3EB0A"}, "numbers": [1, 2.5, None, True]}},
    }
    return InboundMessage(**values | changes)


def inbound(message_id: str = "3EB0A", **changes: Any) -> InboxRecord:
    values: dict[str, Any] = {
        "instance_name": "flash",
        "message_id": message_id,
        "chat_key": "5511999990001@s.whatsapp.net",
        "trace_id": f"trace-{message_id}",
        "received_at": NOON,
        "message": message(message_id=message_id),
    }
    return InboxRecord(**values | changes)


def outbound(message_uid: str = "uid-1", **changes: Any) -> OutboxRecord:
    values: dict[str, Any] = {
        "message_uid": message_uid,
        "answer_id": "trace-3EB0A",
        "trace_id": "trace-3EB0A",
        "instance_name": "flash",
        "chat_key": "5511999990001@s.whatsapp.net",
        "recipient": "98765432101234@lid",
        "index": 0,
        "text": "It will take a while. 🌸",
        "text_sha256": "ab" * 32,
        "queued_at": NOON,
    }
    return OutboxRecord(**values | changes)


WHOLE_OUTBOUND = outbound(
    "uid-whole",
    index=3,
    text=None,
    start=10,
    end=33,
    first_chunk=2,
    last_chunk=7,
    is_notice=True,
    state="failed",
    version=4,
    attempts=2,
    started_at=NOON + timedelta(milliseconds=20),
    ended_at=NOON + timedelta(milliseconds=320),
    key_id="3EB0B",
    status_code=500,
    error_kind="ambiguous",
    error="the connection broke",
)


def receipt(key_id: str = "3EB0B", **changes: Any) -> ReceiptRecord:
    values: dict[str, Any] = {"instance_name": "flash", "key_id": key_id, "status": "delivered", "received_at": NOON}
    return ReceiptRecord(**values | changes)


def put(record: InboxRecord | OutboxRecord | ReceiptRecord) -> PutInbound | PutOutbound | PutReceipt:
    match record:
        case InboxRecord():
            return PutInbound(record)
        case OutboxRecord():
            return PutOutbound(record)
        case ReceiptRecord():
            return PutReceipt(record)
