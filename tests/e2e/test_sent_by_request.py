"""A text sent by request, over real sockets: its trace, its rows in the outbox and its receipts belong together."""

import asyncio
from typing import Any

import pytest
from tests.e2e.documents import MS, bubble, delivery, told
from tests.e2e.whatsapp import PHONE, WAIT_S, World

pytestmark = pytest.mark.slow


async def send(world: World, instance: str, text: str) -> dict[str, Any]:
    path = f"/api/v1/instance/{instance}/send-text"
    reply: dict[str, Any] = await world.api.call("POST", path, json={"phone_number": PHONE, "text": text})
    return reply


async def test_receipts_of_a_text_sent_by_request_join_its_trace(world: World) -> None:
    instance = await world.add_instance("http://127.0.0.1:9", agent="nobody")
    reply = await send(world, instance, "Seu pedido saiu.\n\nChega hoje. 🚚")
    for sent in world.whatsapp.evolution.sent:
        await world.whatsapp.evolution.post_receipt(instance, sent.key_id, "DELIVERY_ACK")
        await world.whatsapp.evolution.post_receipt(instance, sent.key_id, "READ")

    document = await document_when_read(world, reply["trace_id"], number=2)

    seen = {
        "status": "read",
        "receipts": ["delivered", "read"],
        **dict.fromkeys(("delivered_ms", "read_ms", "delivered_event_ms", "read_event_ms"), MS),
        "event_uncertainty_ms": MS,
        "is_notice": False,
    }
    assert told(document["delivery"]) == delivery(
        bubble(0, "Seu pedido saiu.", None, **seen),
        bubble(1, "Chega hoje. 🚚", None, **seen),
        delivered=2,
        read=2,
        unknown=0,
        success_percent=100.0,
        tail_lag_ms=None,
    )
    for message in document["delivery"]["messages"]:
        moments = [message[f"{name}_ms"] for name in ("queued", "started", "accepted", "delivered", "read")]
        assert [0, *moments] == sorted([0, *moments])
    assert document["timeline"]["stages"]["turn_total_ms"] >= document["delivery"]["messages"][1]["accepted_ms"]


async def document_when_read(world: World, trace_id: str, *, number: int) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            document = await world.document(trace_id)
            if document["delivery"]["read"] >= number:
                return document
            await world.whatsapp.next_change()
