"""Small records for tests of the ledger and the spool."""

from datetime import UTC, datetime

from omni.model import InboundMessage
from omni.ports import InsertPayload, InsertTrace, PutInbound, PutOutbound, PutReceipt, UpdateTrace
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord

AT = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)


def inbound(number=1, *, version=1, instance_name="shop", text="oi", raw=None):
    message = InboundMessage(
        instance_name=instance_name,
        message_id=f"M{number}",
        chat_key="5511999990001@s.whatsapp.net",
        reply_to="5511999990001@s.whatsapp.net",
        sender_phone="5511999990001",
        sender_name="Maria",
        text=text,
        message_type="text",
        raw=raw or {},
    )
    return PutInbound(
        InboxRecord(
            instance_name=instance_name,
            message_id=f"M{number}",
            chat_key=message.chat_key,
            trace_id=f"T{number}",
            received_at=AT,
            version=version,
            message=message,
        )
    )


def outbound(number=1, *, version=1, state="queued", text="olá"):
    return PutOutbound(
        OutboxRecord(
            message_uid=f"U{number}",
            answer_id="A",
            trace_id="T1",
            instance_name="shop",
            chat_key="c",
            recipient="r",
            index=number,
            text=text,
            text_sha256="00",
            queued_at=AT,
            state=state,
            version=version,
        )
    )


def receipt(number=1):
    return PutReceipt(
        ReceiptRecord(instance_name="shop", key_id=f"K{number}", status="read", received_at=AT, event_at=AT)
    )


def opened(trace_id="T1", **columns):
    return InsertTrace(trace_id, {"status": "received", "received_at": AT, **columns})


def payload(trace_id="T1", stage="custom", **content):
    return InsertPayload(trace_id=trace_id, stage=stage, payload_type="request", payload=content, timestamp=AT)


def closed(trace_id="T1"):
    return UpdateTrace(trace_id, {"status": "completed", "completed_at": AT})
