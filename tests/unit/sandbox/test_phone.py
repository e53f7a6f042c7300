"""The phone's HTTP side: what the page gets and posts, and to whom the key is given."""

import asyncio
import json

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.unit.sandbox.conftest import API_KEY, within

from omni.errors import SettingsError
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.phone_events import Typing
from omni.sandbox.server import Sandbox, sandbox_instance


async def next_event(stream):
    """The next event of a page's stream; comments are passed over."""
    async with asyncio.timeout(5):
        while True:
            block = await stream.readuntil(b"\n\n")
            if block.startswith(b"data: "):
                return json.loads(block.removeprefix(b"data: "))


async def events_until(stream, kind):
    seen = []
    while not seen or seen[-1]["type"] != kind:
        seen.append(await next_event(stream))
    return seen


async def test_the_page_and_its_parts_are_served_and_confined_to_this_server(http):
    async with http.get("/phone/") as page:
        text = await page.text()
        policy = page.headers["content-security-policy"]
    parts = ["phone.css", "phone.js", "trace_panel.js", "stream_picture.js", "whatsapp_text.js"]

    statuses = {}
    for name in parts:
        async with http.get(f"/phone/static/{name}") as answer:
            statuses[name] = (
                answer.status,
                "http://" in (await answer.text()).replace("http://www.w3.org/2000/svg", ""),
            )

    assert statuses == dict.fromkeys(parts, (200, False))
    assert "<title>Omni sandbox phone</title>" in text
    assert policy.startswith("default-src 'self';")


async def test_the_sandbox_leads_to_its_phone(http):
    async with http.get("/") as answer:
        assert (answer.status, answer.url.path) == (200, "/phone/")


async def test_the_page_is_told_where_the_traces_are(http):
    async with http.get("/phone/config") as answer:
        config = await answer.json()

    assert config["instance_name"] == "sandbox"
    assert (config["api_base"], config["trace_base"], config["api_key"]) == ("", "", API_KEY)
    assert config["contact"] == {"name": "Maria", "phone": "5511999990001"}
    assert config["commands"][0] == {"command": "/prose", "title": "Paragraphs"}
    assert "/error-first" in [entry["command"] for entry in config["commands"]]


async def test_the_key_is_not_given_to_a_page_under_a_foreign_name(http):
    """A page that rebinds its name to this machine reads the configuration under that name."""
    async with http.get("/phone/config", headers={"Host": "attacker.example"}) as answer:
        assert (await answer.json())["api_key"] is None


async def test_what_the_person_writes_goes_out_and_comes_back_as_events(http, receiver):
    async with http.get("/phone/events") as stream:
        first = await next_event(stream.content)
        async with http.post("/phone/messages", json={"text": "oi"}) as answer:
            assert (answer.status, await answer.json()) == (202, {"status": "sent"})
        events = await events_until(stream.content, "turn_opened")

    key_id = receiver.bodies[0]["data"]["key"]["id"]
    assert first == {"type": "hello"}
    assert [{k: v for k, v in event.items() if k != "at_ms"} for event in events] == [
        {"type": "user_wrote", "key_id": key_id, "text": "oi"},
        {"type": "ticked", "key_id": key_id, "state": "delivered"},
        {"type": "turn_opened", "key_id": key_id, "trace_id": "trace-1"},
    ]


async def test_a_message_nobody_takes_is_marked_as_failed(http, receiver):
    receiver.answers.append(401)
    async with http.get("/phone/events") as stream:
        async with http.post("/phone/messages", json={"text": "oi"}):
            pass
        events = await events_until(stream.content, "ticked")

    assert events[-1]["state"] == "failed"


async def test_answers_typing_and_receipts_reach_the_page_in_order(http, evolution_call):
    number = {"number": "5511999990001"}
    async with http.get("/phone/events") as stream:
        await evolution_call("/chat/sendPresence/sandbox", number | {"presence": "composing", "delay": 0})
        _, body = await evolution_call("/message/sendText/sandbox", number | {"text": "olá"})
        events = [await next_event(stream.content) for _ in range(6)]

    key_id = body["key"]["id"]
    assert [{k: v for k, v in event.items() if k != "at_ms"} for event in events] == [
        {"type": "hello"},
        {"type": "typing", "is_on": True},
        {"type": "typing", "is_on": False},
        {"type": "agent_wrote", "key_id": key_id, "text": "olá"},
        {"type": "ticked", "key_id": key_id, "state": "delivered"},
        {"type": "ticked", "key_id": key_id, "state": "read"},
    ]


async def test_texts_for_other_people_do_not_show_on_this_phone(sandbox, http, evolution_call):
    await evolution_call("/message/sendText/sandbox", {"number": "5511000000000", "text": "private"})
    await evolution_call("/message/sendText/sandbox", {"number": "98765432101234@lid", "text": "for me"})

    async with http.get("/phone/events") as stream:
        events = await events_until(stream.content, "agent_wrote")

    assert [event["text"] for event in events if event["type"] == "agent_wrote"] == ["for me"]
    assert len(sandbox.evolution.sent) == 2


async def test_a_page_opened_later_gets_the_whole_chat_but_no_old_typing_sign(sandbox, http, evolution_call):
    await sandbox.evolution.user_writes("sandbox", "first")
    await evolution_call("/chat/sendPresence/sandbox", {"number": "5511999990001", "presence": "composing", "delay": 0})
    await evolution_call("/message/sendText/sandbox", {"number": "5511999990001", "text": "second"})

    async with http.get("/phone/events") as stream:
        events = await events_until(stream.content, "agent_wrote")

    assert [event["type"] for event in events] == ["hello", "user_wrote", "ticked", "turn_opened", "agent_wrote"]


async def test_a_page_that_does_not_read_is_cut_off_and_may_come_back(sandbox, http):
    sandbox.phone.waiting_events = 3
    async with http.get("/phone/events") as stream:
        assert await next_event(stream.content) == {"type": "hello"}
        for _ in range(5):  # no turn of the event loop in between: the page cannot read
            sandbox.phone._hear(Typing(is_on=True))
        rest = await within(5, stream.read())

    assert rest.count(b'"typing"') in range(1, 4)
    async with http.get("/phone/events") as stream:
        assert await next_event(stream.content) == {"type": "hello"}


async def test_a_quiet_stream_is_kept_alive(sandbox, http):
    sandbox.phone.keep_alive_s = 0.01
    async with http.get("/phone/events") as stream:
        await next_event(stream.content)
        assert await within(5, stream.content.readuntil(b"\n\n")) == b": still here\n\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"data": {"text": "oi"}}, 415),
        ({"data": "not json", "headers": {"content-type": "application/json"}}, 422),
        ({"json": {"words": "oi"}}, 422),
        ({"json": {"text": "  \n"}}, 422),
        ({"json": {"text": "x" * 4097}}, 422),
    ],
)
async def test_what_is_no_message_is_refused(http, receiver, sent, status):
    async with http.post("/phone/messages", **sent) as answer:
        assert (answer.status, list(await answer.json())) == (status, ["detail"])
    assert receiver.bodies == []


def test_the_instance_values_point_at_the_sandbox():
    assert sandbox_instance("http://127.0.0.1:8882/sandbox/") == {
        "name": "sandbox",
        "channel_type": "whatsapp",
        "evolution_url": "http://127.0.0.1:8882/sandbox/evolution",
        "evolution_key": "sandbox-evolution-key",
        "whatsapp_instance": "sandbox",
        "agent_instance_type": "hive",
        "agent_api_url": "http://127.0.0.1:8882/sandbox/hive",
        "agent_api_key": "sandbox-hive-key",
        "agent_id": "assistant",
        "agent_type": "agent",
        "agent_timeout": 60,
        "agent_stream_mode": True,
        "default_agent": "assistant",
    }
    assert sandbox_instance("http://h", dialect="agno1")["agent_api_url"] == "http://h/hive/agno1"


async def test_without_receipts_none_are_posted(receiver):
    async with Sandbox(webhook_url=receiver.url, receipts=False, speed=0) as quiet:
        assert quiet.evolution.receipts == ()


def test_a_negative_speed_is_refused():
    with pytest.raises(SettingsError, match="speed"):
        Sandbox(speed=-1)


async def test_traces_of_a_gateway_elsewhere_are_read_through_the_relay():
    async def document(request):
        return JSONResponse({"trace": request.path_params["trace_id"], "key": request.headers["x-api-key"]}, 207)

    gateway = Starlette(routes=[Route("/api/v1/traces/{trace_id}/streaming", document)])
    async with (
        serve_on_loopback(gateway) as api_base,
        Sandbox(api_base=api_base) as away,
        serve_on_loopback(away.asgi) as url,
        aiohttp.ClientSession(base_url=url) as http,
    ):
        async with http.get("/phone/config") as answer:
            config = await answer.json()
        path = f"/phone/{config['trace_base']}/api/v1/traces/t%201/streaming"
        async with http.get(path, headers={"x-api-key": "k"}) as answer:
            found = answer.status, await answer.json()

    assert (config["api_base"], config["trace_base"]) == (api_base, "relay")
    assert found == (207, {"trace": "t 1", "key": "k"})


async def test_a_gateway_that_is_away_is_said_so_by_the_relay():
    async with (
        Sandbox(api_base="http://127.0.0.1:1") as away,
        serve_on_loopback(away.asgi) as url,
        aiohttp.ClientSession(base_url=url) as http,
        http.get("/phone/relay/api/v1/traces/t/streaming") as answer,
    ):
        assert (answer.status, await answer.json()) == (502, {"detail": "The gateway cannot be reached."})


async def test_hanging_up_ends_pages_and_pulses_so_that_a_server_can_stop(sandbox, http):
    body = {"number": "5511999990001", "presence": "composing", "delay": 60_000}
    headers = {"apikey": "sandbox-evolution-key"}
    async with http.get("/phone/events") as stream:
        assert await next_event(stream.content) == {"type": "hello"}
        call = asyncio.create_task(
            http.post("/evolution/chat/sendPresence/sandbox", json=body, headers=headers).__aenter__()
        )
        assert await next_event(stream.content) == {"type": "typing", "is_on": True}

        sandbox.hang_up()

        await within(2, stream.read())
        answer = await within(2, call)
        assert answer.status == 201
        await answer.release()
