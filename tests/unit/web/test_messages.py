"""Sending a text by request: whom it goes to, as how many messages, what is answered and what is recorded."""

import asyncio
import dataclasses
from typing import Any

import httpx
import pytest
from tests.unit.web.fakes import WAIT_S, Desk, RecordingChannel, client_of, refusal

from omni.channels.whatsapp.delivery import AnswerDelivery
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage, SendResult
from omni.web.server import create_web_app

PATH = "/api/v1/instance/support/send-text"
PHONE = "5511999990001"
REFUSED = SendResult(is_accepted=False, status_code=400, error_kind="not_on_whatsapp", error="exists: false")


def message(text: str, *, index: int = 0, start: int = 0) -> OutboundMessage:
    return OutboundMessage(index=index, recipient=PHONE, text=text, start=start, end=start + len(text))


async def test_a_text_goes_out_as_one_message_and_its_id_is_answered(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post(PATH, json={"phone_number": PHONE, "text": "Bom dia! 🐛"})

    assert (answer.status_code, answer.json()) == (
        200,
        {
            "success": True,
            "message_id": "3EB01",
            "status": "sent",
            "evolution_response": {
                "status_code": 201,
                "messages": [{"status": "accepted", "key_id": "3EB01", "error": None}],
            },
            "error": None,
            "trace_id": "trace-out",
        },
    )
    assert [(name, sent.recipient, sent.text) for name, sent in desk.channel.sent] == [
        ("support", PHONE, "Bom dia! 🐛")
    ]


async def test_what_was_sent_is_recorded_with_its_outcome(desk: Desk, client: httpx.AsyncClient):
    await client.post(PATH, json={"phone_number": PHONE, "text": "Oi"})

    now_ns = desk.clock.mono_ns()
    assert desk.recorded == [
        (
            "support",
            PHONE,
            [
                MessageOutcome(
                    message=message("Oi"),
                    status="accepted",
                    attempts=1,
                    queued_ns=now_ns,
                    started_ns=now_ns,
                    ended_ns=now_ns,
                    key_id="3EB01",
                    status_code=201,
                )
            ],
        )
    ]


async def test_the_trace_is_open_before_anything_is_sent_and_named_by_the_outbox(desk: Desk):
    """What is sent is on record also when the process dies in the middle, and receipts find it: F22."""
    parts, named = desk.parts(), []

    def open_text(instance: InstanceConfig, recipient: str, *, trace_id: str) -> AnswerDelivery:
        named.append(trace_id)
        return parts.open_text(instance, recipient, trace_id=trace_id)

    async with client_of(create_web_app(dataclasses.replace(parts, open_text=open_text))) as client:
        await client.post(PATH, json={"phone_number": PHONE, "text": "one\n\ntwo"})

    (trace_id,) = named
    assert desk.opened == [
        {"num_sent": 0, "trace_id": trace_id, "num_chars": 8, "begun_ns": desk.clock.mono_ns()},
    ]
    assert [sent.text for _, sent in desk.channel.sent] == ["one", "two"]


async def test_a_refused_message_is_an_answer_with_success_false(desk: Desk, client: httpx.AsyncClient):
    desk.channel.results = [REFUSED]

    answer = await client.post(PATH, json={"phone_number": PHONE, "text": "Oi"})

    assert (answer.status_code, answer.json()) == (
        200,
        {
            "success": False,
            "message_id": None,
            "status": "failed",
            "evolution_response": {
                "status_code": 400,
                "messages": [{"status": "failed", "key_id": None, "error": "exists: false"}],
            },
            "error": "exists: false",
            "trace_id": "trace-out",
        },
    )


async def test_behind_a_refused_message_nothing_more_is_sent(desk: Desk, client: httpx.AsyncClient):
    desk.channel.results = [SendResult(is_accepted=True, status_code=201, key_id="A"), REFUSED]

    answer = await client.post(PATH, json={"phone_number": PHONE, "text": "one\n\ntwo\n\nthree"})

    assert [sent.text for _, sent in desk.channel.sent] == ["one", "two"]
    assert [outcome.status for outcome in desk.recorded[0][2]] == ["accepted", "failed", "not_sent"]
    assert (answer.json()["success"], answer.json()["message_id"]) == (False, "A")


@pytest.mark.parametrize(
    ("of_instance", "of_request", "texts"),
    [
        (None, None, ["one", "two"]),
        (True, None, ["one", "two"]),
        (False, None, ["one\n\ntwo"]),
        (False, True, ["one", "two"]),
        (True, False, ["one\n\ntwo"]),
    ],
)
async def test_the_request_decides_about_splitting_before_the_instance(
    desk: Desk, client: httpx.AsyncClient, of_instance: bool | None, of_request: bool | None, texts: list[str]
):
    desk.instances.rows["support"]["enable_auto_split"] = of_instance

    await client.post(PATH, json={"phone_number": PHONE, "text": "one\n\ntwo", "split_message": of_request})

    assert [sent.text for _, sent in desk.channel.sent] == texts


async def test_a_text_too_long_for_one_message_is_cut_even_when_not_to_be_split(desk: Desk, client: httpx.AsyncClient):
    words = "word " * 1_999 + "last"

    await client.post(PATH, json={"phone_number": PHONE, "text": words, "split_message": False})

    texts = [sent.text for _, sent in desk.channel.sent]
    assert len(texts) == 3
    assert all(len(text) <= 4096 for text in texts)
    assert " ".join(texts) == words
    assert [sent.index for _, sent in desk.channel.sent] == [0, 1, 2]


@pytest.mark.parametrize(
    ("written", "recipient"),
    [
        ("5511999990001", "5511999990001"),
        ("+55 (11) 99999-0001", "5511999990001"),
        ("14155550100", "14155550100"),
        ("5511999990001@s.whatsapp.net", "5511999990001@s.whatsapp.net"),
        ("98765432101234@lid", "98765432101234@lid"),
        ("120363000000000001@g.us", "120363000000000001@g.us"),
    ],
)
async def test_a_recipient_is_taken_as_written_without_guessing_a_country(
    desk: Desk, client: httpx.AsyncClient, written: str, recipient: str
):
    """The predecessor put 55 in front of every number it took for Brazilian."""
    answer = await client.post(PATH, json={"phone_number": written, "text": "Hi"})

    assert answer.json()["success"]
    assert [sent.recipient for _, sent in desk.channel.sent] == [recipient]


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"phone_number": PHONE}, "text", "field required"),
        ({"phone_number": PHONE, "text": ""}, "text", "must not be blank"),
        ({"phone_number": PHONE, "text": " \n\t"}, "text", "must not be blank"),
        ({"phone_number": PHONE, "text": "\u200b\u200d"}, "text", "shows nothing"),
        ({"phone_number": PHONE, "text": "x" * 65_537}, "text", "string should have at most 65536 characters"),
        ({"text": "Hi"}, "phone_number", "is required"),
        ({"phone_number": " ", "text": "Hi"}, "phone_number", "is required"),
        ({"user_id": "u-1", "text": "Hi"}, "user_id", "is not supported; send phone_number"),
        *(
            (
                {"phone_number": phone, "text": "Hi"},
                "phone_number",
                "must be 7 to 15 digits with country code, or a WhatsApp address",
            )
            for phone in ("abc", "123456", "1" * 16, "5511@evil.example", "status@broadcast", "../x@s.whatsapp.net")
        ),
    ],
)
async def test_a_request_that_cannot_be_sent_is_refused_clearly(
    desk: Desk, client: httpx.AsyncClient, body: dict[str, Any], field: str, rule: str
):
    answer = await client.post(PATH, json=body)

    assert (answer.status_code, answer.json()) == (
        422,
        refusal(422, "request_invalid", f"{field}: {rule}", fields=[{"field": field, "message": rule}]),
    )
    assert (desk.channel.sent, desk.opened, desk.recorded) == ([], [], [])


async def test_an_unknown_instance_is_a_404(desk: Desk, client: httpx.AsyncClient):
    answer = await client.post("/api/v1/instance/nobody/send-text", json={"phone_number": PHONE, "text": "Hi"})

    assert (answer.status_code, answer.json()) == (
        404,
        refusal(404, "record_not_found", "Instance 'nobody' not found", stage="store"),
    )


async def test_the_older_optional_fields_are_accepted(desk: Desk, client: httpx.AsyncClient):
    extras = {
        "quoted_message_id": "3EB0",
        "auto_parse_mentions": True,
        "mentioned": [PHONE],
        "mentions_everyone": False,
        "user_id": "u-1",
    }
    answer = await client.post(PATH, json={"phone_number": PHONE, "text": "Hi", **extras})

    assert answer.json()["success"]


class HangingChannel(RecordingChannel):
    """Accepts the first message and never answers for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.is_hanging = asyncio.Event()

    async def send_text(self, instance: Any, message: OutboundMessage) -> SendResult:
        if self.sent:
            self.is_hanging.set()
            await asyncio.Event().wait()
        return await super().send_text(instance, message)


async def test_what_went_out_is_recorded_when_the_server_stops_in_the_middle(desk: Desk):
    channel = desk.channel = HangingChannel()
    async with client_of(desk.app()) as client:
        sending = asyncio.create_task(client.post(PATH, json={"phone_number": PHONE, "text": "one\n\ntwo\n\nthree"}))
        async with asyncio.timeout(WAIT_S):
            await channel.is_hanging.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    assert [(outcome.status, outcome.attempts) for outcome in desk.recorded[0][2]] == [
        ("accepted", 1),
        ("pending", 1),
        ("not_sent", 0),
    ]


def test_parts_are_frozen(desk: Desk):
    with pytest.raises(dataclasses.FrozenInstanceError):
        desk.parts().api_key = ""
