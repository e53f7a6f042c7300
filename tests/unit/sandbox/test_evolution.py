"""The simulated Evolution against what the real one was recorded to do."""

import asyncio
import re

import aiohttp
import jwt
import pytest
from tests.unit.sandbox.conftest import API_KEY, capture, shape, within

from omni.sandbox.evolution import PlannedReceipt
from omni.sandbox.webhooks import RetryPolicy, WebhookTarget

TEXT = {"number": "5511999990001", "text": "Olá 👋", "linkPreview": False}


async def settled(sandbox):
    await within(5, sandbox.tasks.idle())


async def test_a_sent_text_is_answered_in_the_recorded_shape(evolution_call):
    recorded = capture("06_sendText_baileys.json")["exchange"]["response"]

    status, body = await evolution_call("/message/sendText/sandbox", TEXT)

    assert status == 201
    assert shape(body) == shape(recorded)
    assert list(body) == list(recorded)
    assert re.fullmatch(r"3EB0[0-9A-F]{18}", body["key"]["id"])
    assert (body["status"], body["pushName"], body["source"]) == ("PENDING", "Você", "web")
    assert body["key"]["remoteJid"] == "5511999990001@s.whatsapp.net"
    assert body["message"] == {"conversation": "Olá 👋"}


async def test_a_quoting_text_names_what_it_quotes(evolution_call):
    recorded = capture("06_sendText_baileys.json")["with_quote"]["response"]
    _, first = await evolution_call("/message/sendText/sandbox", TEXT)

    _, second = await evolution_call(
        "/message/sendText/sandbox", TEXT | {"quoted": {"key": {"id": first["key"]["id"]}}}
    )

    assert shape(second) == shape(recorded)
    assert second["contextInfo"]["quotedMessage"] == {"conversation": "Olá 👋"}


async def test_every_sent_text_is_recorded_with_its_times(sandbox, evolution_call):
    _, body = await evolution_call("/message/sendText/sandbox", TEXT | {"number": "98765432101234@lid"})

    [sent] = sandbox.evolution.sent
    assert (sent.instance_name, sent.number, sent.jid, sent.text, sent.key_id) == (
        "sandbox",
        "98765432101234@lid",
        "98765432101234@lid",
        "Olá 👋",
        body["key"]["id"],
    )
    assert sent.received_ns < sent.accepted_ns
    [call] = sandbox.evolution.calls
    assert (call.path, call.status_code, call.received_ns < call.answered_ns) == (
        "/message/sendText/sandbox",
        201,
        True,
    )


@pytest.mark.parametrize(
    ("file", "name", "path", "body", "apikey"),
    [
        ("04_errors.json", "unknown_instance", "/message/sendText/nope", TEXT, "sandbox-evolution-key"),
        ("04_errors.json", "unknown_instance", "/message/sendText/nope", TEXT, None),
        ("04_errors.json", "bad_apikey", "/message/sendText/sandbox", TEXT, "wrong"),
        ("04_errors.json", "no_apikey_existing", "/message/sendText/sandbox", TEXT, None),
        ("04_errors.json", "send_missing_number", "/message/sendText/sandbox", {"text": "x"}, "sandbox-evolution-key"),
        (
            "04_errors.json",
            "send_v1_shape",
            "/message/sendText/sandbox",
            {"number": "5511999990001", "options": {"delay": 100}, "textMessage": {"text": "v1 body"}},
            "sandbox-evolution-key",
        ),
        (
            "07_sendText_errors_baileys.json",
            "send_empty",
            "/message/sendText/sandbox",
            {"number": "5511999990001", "text": "  \n"},
            "sandbox-evolution-key",
        ),
        (
            "07_sendText_errors_baileys.json",
            "send_no_such",
            "/message/sendText/sandbox",
            {"number": "5511900009999", "text": "hi"},
            "sandbox-evolution-key",
        ),
        (
            "07_sendText_errors_baileys.json",
            "presence_nodelay",
            "/chat/sendPresence/sandbox",
            {"number": "5511999990001", "presence": "composing"},
            "sandbox-evolution-key",
        ),
        (
            "07_sendText_errors_baileys.json",
            "presence_v1",
            "/chat/sendPresence/sandbox",
            {"number": "5511999990001", "options": {"presence": "composing", "delay": 100}},
            "sandbox-evolution-key",
        ),
        (
            "07_sendText_errors_baileys.json",
            "mark_v1",
            "/chat/markMessageAsRead/sandbox",
            {"read_messages": []},
            "sandbox-evolution-key",
        ),
        (
            "13_webhook_set_and_byevents_jwt.json",
            "set_without_events_500",
            "/webhook/set/sandbox",
            {"webhook": {"enabled": True, "url": "http://127.0.0.1:18099/x"}},
            "sandbox-evolution-key",
        ),
        (
            "13_webhook_set_and_byevents_jwt.json",
            "set_v1_flat_400",
            "/webhook/set/sandbox",
            {"enabled": True, "url": "http://127.0.0.1:18099/x"},
            "sandbox-evolution-key",
        ),
        (
            "13_webhook_set_and_byevents_jwt.json",
            "set_unknown_event_400",
            "/webhook/set/sandbox",
            {"webhook": {"enabled": True, "url": "http://127.0.0.1:18099/x", "events": ["NOPE"]}},
            "sandbox-evolution-key",
        ),
    ],
)
async def test_refusals_are_the_recorded_ones_to_the_letter(sandbox, evolution_call, file, name, path, body, apikey):
    sandbox.evolution.unregistered_numbers.add("5511900009999")
    recorded = capture(file)[name]

    assert await evolution_call(path, body, apikey=apikey) == (recorded["status"], recorded["response"])
    assert sandbox.evolution.sent == []


async def test_an_unknown_route_is_named_in_its_404(evolution_call):
    recorded = capture("04_errors.json")["unknown_route"]

    status, body = await evolution_call("/message/sendFoo/evo-lab", {})

    assert (status, body) == (recorded["status"], recorded["response"])


@pytest.mark.parametrize(
    ("kind", "call", "path", "body", "recorded"),
    [
        ("connection_closed", "sendText", "/message/sendText/sandbox", TEXT, "send_fail"),
        ("never_connected", "sendText", "/message/sendText/sandbox", TEXT, "send_unconnected"),
        (
            "never_connected",
            "sendPresence",
            "/chat/sendPresence/sandbox",
            {"number": "5511999990001", "presence": "composing", "delay": 0},
            "presence_unconnected",
        ),
    ],
)
async def test_ordered_faults_have_the_recorded_bodies_and_end(
    sandbox, evolution_call, kind, call, path, body, recorded
):
    expected = capture("07_sendText_errors_baileys.json")[recorded]
    sandbox.evolution.fail_next(kind, 2, call=call)

    assert [await evolution_call(path, body) for _ in range(2)] == [(expected["status"], expected["response"])] * 2
    assert (await evolution_call(path, body))[0] == 201


@pytest.mark.parametrize(
    ("kind", "status", "retry_after"),
    [("unavailable", 503, "1"), ("too_many_requests", 429, "1"), ("bad_gateway", 502, None)],
)
async def test_proxy_faults_carry_their_headers_and_no_json(sandbox, http, kind, status, retry_after):
    sandbox.evolution.fail_next(kind)
    headers = {"apikey": "sandbox-evolution-key"}

    async with http.post("/evolution/message/sendText/sandbox", json=TEXT, headers=headers) as answer:
        assert (answer.status, answer.headers.get("retry-after")) == (status, retry_after)


@pytest.mark.parametrize(("kind", "num_sent"), [("hang_unsent", 0), ("hang_sent", 1)])
async def test_a_hanging_call_never_answers_whether_or_not_the_text_went_out(sandbox, http, kind, num_sent):
    sandbox.evolution.fail_next(kind)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await http.post(
                "/evolution/message/sendText/sandbox", json=TEXT, headers={"apikey": "sandbox-evolution-key"}
            )
    assert len(sandbox.evolution.sent) == num_sent


async def test_a_cut_answer_breaks_after_the_text_went_out(sandbox, evolution_call):
    sandbox.evolution.fail_next("cut_answer")

    with pytest.raises(aiohttp.ClientPayloadError):
        await evolution_call("/message/sendText/sandbox", TEXT)
    assert len(sandbox.evolution.sent) == 1


async def test_a_connection_may_break_off_before_anything_was_sent(sandbox, evolution_call):
    sandbox.evolution.fail_next("cut_unsent")

    with pytest.raises(aiohttp.ClientPayloadError):
        await evolution_call("/message/sendText/sandbox", TEXT)
    assert sandbox.evolution.sent == []


@pytest.mark.parametrize(
    ("kind", "file", "name"),
    [
        ("not_on_whatsapp", "07_sendText_errors_baileys.json", "send_no_such"),
        ("text_required", "07_sendText_errors_baileys.json", "send_empty"),
        ("wrong_shape", "04_errors.json", "send_v1_shape"),
        ("unauthorized", "04_errors.json", "bad_apikey"),
        ("method_not_available", "04_errors.json", "presence"),
    ],
)
async def test_every_recorded_refusal_can_be_ordered(sandbox, evolution_call, kind, file, name):
    recorded = capture(file)[name]
    sandbox.evolution.fail_next(kind)

    answer = await evolution_call("/message/sendText/sandbox", {"number": "5511900009999", "text": "hi"})

    assert answer == (recorded["status"], recorded["response"])


async def test_an_instance_can_be_forgotten_for_one_call(sandbox, evolution_call):
    sandbox.evolution.fail_next("unknown_instance")

    status, body = await evolution_call("/message/sendText/sandbox", TEXT)

    assert (status, body["response"]) == (404, {"message": ['The "sandbox" instance does not exist']})


async def test_a_kept_message_is_found_in_the_recorded_shape(sandbox, evolution_call):
    recorded = capture("18_global_plus_local_and_websocket.json")["findMessages"]
    _, sent = await evolution_call("/message/sendText/sandbox", TEXT)
    await settled(sandbox)
    await evolution_call("/message/sendText/sandbox", TEXT)

    status, body = await evolution_call("/chat/findMessages/sandbox", {"where": {"key": {"id": sent["key"]["id"]}}})

    assert status == recorded["status"]
    assert shape(body) == shape(recorded["response"])
    [row] = body["messages"]["records"]
    assert (row["key"], row["message"]) == (sent["key"], sent["message"])
    assert [update["status"] for update in row["MessageUpdate"]] == ["DELIVERY_ACK", "READ"]


async def test_kept_messages_come_in_pages_newest_first(sandbox, evolution_call):
    await sandbox.evolution.user_writes("sandbox", "oi", sent_at_s=1)
    for number in range(5):
        await evolution_call("/message/sendText/sandbox", TEXT | {"text": f"texto {number}"})

    async def find(**query):
        _, body = await evolution_call("/chat/findMessages/sandbox", query)
        found = body["messages"]
        texts = [row["message"]["conversation"] for row in found["records"]]
        return texts, found["total"], found["pages"], found["currentPage"]

    ours = {"key": {"fromMe": True}}
    assert await find(where=ours, offset=2, page=1) == (["texto 4", "texto 3"], 5, 3, 1)
    assert await find(where=ours, offset=2, page=3) == (["texto 0"], 5, 3, 3)
    assert (await find())[0][-1] == "oi"
    assert await find(where={"key": {"remoteJid": "5511999990009@s.whatsapp.net"}}) == ([], 0, 0, 1)
    early = {"gte": "1970-01-01T00:00:00Z", "lte": "1970-01-01T00:01:00Z"}
    assert await find(where={"messageTimestamp": early}) == (["oi"], 1, 1, 1)


async def test_an_evolution_that_saves_nothing_finds_nothing(sandbox, evolution_call):
    sandbox.evolution.instances["sandbox"].rows.keeps = False
    await evolution_call("/message/sendText/sandbox", TEXT)

    _, body = await evolution_call("/chat/findMessages/sandbox", {"where": {}})

    assert body == {"messages": {"total": 0, "pages": 0, "currentPage": 1, "records": []}}


async def test_a_database_that_fails_behind_the_send_leaves_neither_row_nor_event(sandbox, receiver, evolution_call):
    sandbox.evolution.fail_next("not_kept")

    status, body = await evolution_call("/message/sendText/sandbox", TEXT)
    await settled(sandbox)
    _, found = await evolution_call("/chat/findMessages/sandbox", {})

    assert (status, "Prisma" in body["response"]["message"][0]) == (400, True)
    assert len(sandbox.evolution.sent) == 1
    assert (found["messages"]["total"], receiver.of("send.message")) == (0, [])


async def test_a_search_can_be_made_to_fail(sandbox, evolution_call):
    sandbox.evolution.fail_next("server_error", call="findMessages")

    assert (await evolution_call("/chat/findMessages/sandbox", {}))[0] == 500
    assert (await evolution_call("/chat/findMessages/sandbox", {}))[0] == 200


async def test_presence_answers_only_after_its_delay(sandbox, evolution_call):
    body = {"number": "5511999990001", "presence": "composing", "delay": 120}

    answer = await evolution_call("/chat/sendPresence/sandbox", body)

    assert answer == (201, {"presence": "composing"})
    [call] = sandbox.evolution.calls
    assert call.answered_ns - call.received_ns >= 120 * 1_000_000
    assert [(seen.state, seen.delay_ms) for seen in sandbox.evolution.presences] == [("composing", 120)]


async def test_marking_as_read_does_nothing_for_privacy_addresses(sandbox, evolution_call):
    keys = [
        {"id": "A1", "fromMe": False, "remoteJid": "5511999990001@s.whatsapp.net"},
        {"id": "A2", "fromMe": False, "remoteJid": "98765432101234@lid"},
    ]

    answer = await evolution_call("/chat/markMessageAsRead/sandbox", {"readMessages": keys})

    assert answer == (201, {"message": "Read messages", "read": "success"})
    assert [(read.message_id, read.is_effective) for read in sandbox.evolution.reads] == [("A1", True), ("A2", False)]


async def test_connection_state_has_the_recorded_body(evolution_call):
    answer = await evolution_call("/instance/connectionState/sandbox", None, method="GET")

    assert answer == (200, {"instance": {"instanceName": "sandbox", "state": "open"}})


@pytest.mark.parametrize(("addressing", "index"), [("pn", 0), ("lid", 1)])
async def test_a_written_message_is_posted_as_recorded(sandbox, receiver, addressing, index):
    recorded = capture("08_messages_upsert_pn_lid_group_fromme.json")["webhooks"][index]["body"]
    quoted = "3EB0" if addressing == "lid" else None

    post = await sandbox.evolution.user_writes("sandbox", "quanto custa?", addressing=addressing, quoted_key_id=quoted)

    [body] = receiver.bodies
    expected = shape(recorded)
    expected["data"]["message"].pop("messageContextInfo", None)  # that phone was an iPhone
    assert shape(body) == expected
    assert list(body) == list(recorded)
    assert list(body["data"]["key"]) == list(recorded["data"]["key"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["date_time"])
    assert body["destination"] == f"{receiver.url}/hook"
    assert receiver.headers[0]["authorization"] == f"Bearer {API_KEY}"
    assert (post.trace_id, post.attempts, post.is_taken) == ("trace-1", 1, True)


async def test_a_sent_text_comes_back_as_an_event_with_the_body_of_its_answer(sandbox, receiver, evolution_call):
    _, body = await evolution_call("/message/sendText/sandbox", TEXT)
    await settled(sandbox)

    [event] = receiver.of("send.message")
    assert event["data"] == body
    assert shape(event) == shape(capture("06_sendText_baileys.json")["webhooks"][0]["body"])


async def test_receipts_follow_in_order_and_in_the_recorded_shape(sandbox, receiver, evolution_call):
    _, body = await evolution_call("/message/sendText/sandbox", TEXT)
    await settled(sandbox)

    receipts = receiver.of("messages.update")
    assert [(r["data"]["status"], r["data"]["keyId"]) for r in receipts] == [
        ("DELIVERY_ACK", body["key"]["id"]),
        ("READ", body["key"]["id"]),
    ]
    assert shape(receipts[0]) == shape(capture("09_messages_update_statuses.json")["webhooks"][0]["body"])


async def test_planned_receipts_replace_the_usual_ones(sandbox, receiver, evolution_call):
    sandbox.evolution.receipts = (PlannedReceipt(status="ERROR", after_s=0),)

    await evolution_call("/message/sendText/sandbox", TEXT)
    await settled(sandbox)

    assert [r["data"]["status"] for r in receiver.of("messages.update")] == ["ERROR"]


async def test_a_connection_change_is_posted_and_remembered(sandbox, receiver, evolution_call):
    await sandbox.evolution.set_connection("sandbox", "close", status_reason=401)

    recorded = capture("10_presence_connection_update.json")["connection_webhooks"][0]["body"]
    assert shape(receiver.bodies[0]) == shape(recorded)
    assert receiver.bodies[0]["data"] == {"instance": "sandbox", "state": "close", "statusReason": 401}
    _, state = await evolution_call("/instance/connectionState/sandbox", None, method="GET")
    assert state["instance"]["state"] == "close"


@pytest.mark.parametrize(
    ("answers", "attempts", "status", "is_taken"),
    [([500, 503], 3, 200, True), ([429, 410], 3, 200, True), ([404], 1, 404, False), ([500] * 9, 3, 500, False)],
)
async def test_webhooks_are_tried_again_unless_refused_for_good(sandbox, receiver, answers, attempts, status, is_taken):
    receiver.answers.extend(answers)

    post = await sandbox.evolution.user_writes("sandbox", "oi")

    assert (post.attempts, post.status_code, post.is_taken) == (attempts, status, is_taken)
    assert len({body["date_time"] for body in receiver.bodies}) == 1
    assert len(receiver.bodies) == attempts


def test_webhooks_are_tried_again_when_the_real_service_does_it():
    """5 s, doubling, up to 300 s, a fifth more or less by chance and never under 5 s; ten attempts."""
    policy = RetryPolicy()
    assert policy.attempts == 10
    assert [policy.wait_s(failed, chance=lambda: 0.5) for failed in range(1, 10)] == [
        5, 10, 20, 40, 80, 160, 300, 300, 300,
    ]  # fmt: skip
    assert [policy.wait_s(failed, chance=lambda: 0.0) for failed in (1, 2)] == [5.0, 8.0]
    assert [policy.wait_s(failed, chance=lambda: 1.0) for failed in (1, 2)] == [6.0, 12.0]


async def test_a_gateway_that_cannot_store_gets_the_same_event_again(sandbox, receiver):
    receiver.answers.extend([503, 503])

    post = await sandbox.evolution.user_writes("sandbox", "oi")

    assert (post.attempts, post.is_taken) == (3, True)
    assert receiver.bodies[0] == receiver.bodies[1] == receiver.bodies[2]


async def test_a_receiver_that_is_away_is_tried_again_and_given_up(sandbox):
    sandbox.post_webhooks_to("http://127.0.0.1:1/hook")

    post = await sandbox.evolution.user_writes("sandbox", "oi")

    assert (post.attempts, post.status_code, post.is_taken, post.trace_id) == (3, None, False, None)


async def test_setting_a_webhook_answers_as_recorded_and_takes_effect(sandbox, receiver, evolution_call):
    recorded = capture("13_webhook_set_and_byevents_jwt.json")
    key = "a signing key that is long enough!"
    wanted = {
        "enabled": True,
        "url": f"{receiver.url}/by",
        "byEvents": True,
        "base64": False,
        "headers": {"jwt_key": key, "x-tenant": "t1"},
        "events": ["MESSAGES_UPSERT", "SEND_MESSAGE"],
    }

    status, row = await evolution_call("/webhook/set/sandbox", {"webhook": wanted})
    await sandbox.evolution.user_writes("sandbox", "oi")
    unwanted = await sandbox.evolution.set_connection("sandbox", "open")

    assert status == 201
    assert shape(row) == shape(recorded["set_ok"]["response"])
    assert await evolution_call("/webhook/find/sandbox", None, method="GET") == (200, row)
    assert unwanted is None
    assert receiver.paths == ["/by/messages-upsert"]
    [headers] = receiver.headers
    assert headers["x-tenant"] == "t1"
    assert "jwt_key" not in headers
    claims = jwt.decode(headers["authorization"].removeprefix("Bearer "), key, algorithms=["HS256"])
    assert (claims["app"], claims["action"], claims["exp"] - claims["iat"]) == ("evolution", "webhook", 600)


async def test_instances_are_kept_apart(sandbox, receiver, evolution_call):
    other = sandbox.evolution.add_instance("second", target=WebhookTarget(url=f"{receiver.url}/second"))

    status, _ = await evolution_call("/message/sendText/second", TEXT, apikey=other.token)
    refused, _ = await evolution_call("/message/sendText/sandbox", TEXT, apikey=other.token)
    await settled(sandbox)

    assert (status, refused) == (201, 401)
    assert {body["instance"] for body in receiver.bodies} == {"second"}


async def test_a_failure_of_background_work_is_reported_at_the_end(sandbox):
    async def broken():
        raise ValueError("broken on purpose")

    sandbox.tasks.spawn(broken(), name="broken")
    await sandbox.tasks.idle()

    with pytest.raises(ExceptionGroup) as caught:
        await sandbox.tasks.stop()
    assert [str(error) for error in caught.value.exceptions] == ["broken on purpose"]
