"""EvolutionChannel over real HTTP: against a server on loopback that answers with recorded bodies, or breaks in the ways servers do."""

import asyncio
import json
import socket
from email.utils import formatdate
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from omni.channels.whatsapp.evolution import EvolutionChannel
from omni.model import InstanceConfig, OutboundMessage, SendResult, SentSearch
from omni.settings import Settings
from omni.testing import FakeClock

CAPTURES = Path(__file__).parents[1] / "captures" / "evolution"
MESSAGE = OutboundMessage(index=0, recipient="5511999990001@s.whatsapp.net", text="Olá 👋")
WAIT_S = 5


def recorded(number, name):
    (path,) = CAPTURES.glob(f"{number}_*.json")
    exchange = json.loads(path.read_text(encoding="utf-8"))[name]
    return exchange["status"], exchange["response"]


class FakeEvolution:
    """Answers every call with what the test set and remembers what came in."""

    def __init__(self) -> None:
        self.answer = (201, {})
        self.headers: dict[str, str] = {}
        self.calls: list[tuple[str, str | None, dict]] = []
        self.held: asyncio.Event | None = None
        self.pages: list[dict] = []

    async def take(self, request: web.Request) -> web.Response:
        self.calls.append((request.raw_path, request.headers.get("apikey"), await request.json()))
        if self.held is not None:
            await self.held.wait()
        status, body = self.answer
        if self.pages:
            status, body = 200, self.pages.pop(0)
        return web.json_response(body, status=status, headers=self.headers)


@pytest.fixture
async def evolution():
    """(fake, its base URL)"""
    fake = FakeEvolution()
    app = web.Application()
    app.router.add_post("/{path:.*}", fake.take)
    async with TestServer(app, host="127.0.0.1") as server:
        yield fake, str(server.make_url("/"))
        if fake.held is not None:
            fake.held.set()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def channel(http):
    return EvolutionChannel(lambda: http, settings=Settings(_env_file=None, send_timeout_ms=5_000))


@pytest.fixture
def hasty_channel(http):
    return EvolutionChannel(lambda: http, settings=Settings(_env_file=None, send_timeout_ms=100))


def at(url, name="wa-lab"):
    return InstanceConfig(name="shop", whatsapp_instance=name, evolution_url=url, evolution_key="global-test-key")


async def test_a_send_is_the_recorded_request_and_its_answer_is_read(evolution, channel):
    fake, url = evolution
    fake.answer = recorded("06", "exchange")
    result = await channel.send_text(at(url), MESSAGE)
    assert result == SendResult(is_accepted=True, status_code=201, key_id="3EB062FC76156D8A8A2791")
    assert fake.calls == [
        (
            "/message/sendText/wa-lab",
            "global-test-key",
            {"number": "5511999990001", "text": "Olá 👋", "linkPreview": False},
        )
    ]


async def test_an_instances_name_is_quoted_in_the_path(evolution, channel):
    fake, url = evolution
    await channel.send_text(at(url, "loja/açaí 1"), MESSAGE)
    assert fake.calls[0][0] == "/message/sendText/loja%2Fa%C3%A7a%C3%AD%201"


@pytest.mark.parametrize(
    ("number", "name", "kind"),
    [
        ("04", "bad_apikey", "unauthorized"),
        ("04", "unknown_instance", "unknown_instance"),
        ("04", "send_v1_shape", "rejected"),
        ("07", "send_no_such", "not_on_whatsapp"),
        ("07", "send_empty", "rejected"),
        ("07", "send_fail", "transient"),
        ("07", "send_unconnected", "transient"),
    ],
)
async def test_recorded_refusals_arrive_as_their_kind(evolution, channel, number, name, kind):
    fake, url = evolution
    fake.answer = recorded(number, name)
    result = await channel.send_text(at(url), MESSAGE)
    assert (result.is_accepted, result.status_code, result.error_kind) == (False, fake.answer[0], kind)


async def test_a_proxys_retry_after_is_read(evolution, channel):
    fake, url = evolution
    fake.answer, fake.headers = (503, {}), {"Retry-After": "7"}
    result = await channel.send_text(at(url), MESSAGE)
    assert (result.error_kind, result.retry_after_s) == ("transient", 7.0)


async def test_a_redirect_is_not_followed(evolution, channel):
    """It would hand the key to whoever answers there."""
    fake, url = evolution
    fake.answer, fake.headers = (307, {}), {"Location": f"{url}elsewhere"}
    result = await channel.send_text(at(url), MESSAGE)
    assert (result.error_kind, len(fake.calls)) == ("rejected", 1)


async def test_a_refused_connection_is_worth_another_attempt(channel):
    with socket.socket() as unused:
        # Bound and not listening: nobody else can get the port while the test runs.
        unused.bind(("127.0.0.1", 0))
        result = await channel.send_text(at(f"http://127.0.0.1:{unused.getsockname()[1]}"), MESSAGE)
    assert result == SendResult(
        is_accepted=False, error_kind="transient", error="no connection to Evolution (ClientConnectorError)"
    )


async def test_a_send_that_is_not_answered_in_time_may_have_gone_out(evolution, hasty_channel):
    fake, url = evolution
    fake.held = asyncio.Event()
    result = await asyncio.wait_for(hasty_channel.send_text(at(url), MESSAGE), WAIT_S)
    assert (result.is_accepted, result.status_code, result.error_kind) == (False, None, "ambiguous")
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    "answered",
    [b"", b"HTTP/1.1 20", b'HTTP/1.1 201 Created\r\nContent-Length: 400\r\n\r\n{"key":', b"not http at all\r\n\r\n"],
)
async def test_a_connection_that_breaks_after_the_request_leaves_it_open(channel, answered):
    async def break_off(reader, writer):
        await reader.readuntil(b"}")
        writer.write(answered)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await asyncio.wait_for(channel.send_text(at(f"http://127.0.0.1:{port}"), MESSAGE), WAIT_S)
    assert (result.is_accepted, result.error_kind) == (False, "ambiguous")


@pytest.mark.parametrize("url", [None, "", "evolution.local:8080", "ftp://a.b", "http://", "http://[broken"])
async def test_an_instance_without_a_usable_url_is_a_refusal_and_no_exception(channel, url):
    assert await channel.send_text(at(url), MESSAGE) == SendResult(
        is_accepted=False, error_kind="rejected", error="the instance's evolution_url is missing or no URL"
    )


async def test_a_typing_sign_is_the_recorded_request(evolution, channel):
    fake, url = evolution
    fake.answer = recorded("11", "sendPresence_800")
    assert await channel.send_presence(at(url), "98765432101234@lid", state="composing", duration_ms=800) is True
    assert fake.calls == [
        (
            "/chat/sendPresence/wa-lab",
            "global-test-key",
            {"number": "98765432101234@lid", "presence": "composing", "delay": 800},
        )
    ]


@pytest.mark.parametrize(("number", "name"), [("04", "presence"), ("07", "presence_unconnected")])
async def test_a_channel_without_typing_signs_says_so(evolution, channel, number, name):
    fake, url = evolution
    fake.answer = recorded(number, name)
    assert await channel.send_presence(at(url), MESSAGE.recipient, state="composing", duration_ms=100) is False


async def test_a_typing_sign_that_is_not_answered_is_given_up(evolution, hasty_channel):
    fake, url = evolution
    fake.held = asyncio.Event()
    shown = hasty_channel.send_presence(at(url), MESSAGE.recipient, state="composing", duration_ms=1)
    assert await asyncio.wait_for(shown, WAIT_S) is False


FOUND = SentSearch(verdict="found", key_id="3EB0BF7CA49767CDACC1FE")
ABSENT = SentSearch(verdict="absent")
UNKNOWN = SentSearch(verdict="unknown")
AWAY = SentSearch(verdict="unknown", retryable=True)
RECORDED_AT_S = 1_795_343_020


def a_row(key_id, text="x", at_s=RECORDED_AT_S):
    key = {"id": key_id, "fromMe": True, "remoteJid": "5511999990009@s.whatsapp.net"}
    return {"key": key, "message": {"conversation": text}, "messageTimestamp": at_s}


def a_page(rows, *, number=1, pages=1):
    return {"messages": {"total": 500, "pages": pages, "currentPage": number, "records": rows}}


class Search:
    """A channel whose clock stands at the recorded moment, and the question about the recorded message."""

    def __init__(self, http, fake, url):
        self.clock = FakeClock()
        self.clock.advance_ms((RECORDED_AT_S - self.clock.wall_ns() / 1e9) * 1_000)
        self.channel = EvolutionChannel(lambda: http, settings=Settings(_env_file=None), clock=self.clock)
        self.fake, self.url = fake, url
        self.date_at(0)

    def date_at(self, lead_s):
        """Let Evolution's clock be so far ahead of ours."""
        self.fake.headers = {"Date": formatdate(self.clock.wall_ns() / 1e9 + lead_s, usegmt=True)}

    async def ask(self, *, text="oi", started_s=RECORDED_AT_S, known=(), url=None):
        message = OutboundMessage(index=0, recipient="5511999990001@s.whatsapp.net", text=text)
        return await self.channel.find_sent(
            at(url or self.url), message, started_wall_ns=started_s * 10**9, known_key_ids=known
        )


@pytest.fixture
def search(http, evolution):
    return Search(http, *evolution)


async def test_the_recorded_message_is_found(search):
    search.fake.answer = recorded("18", "findMessages")
    assert await search.ask() == FOUND
    assert search.fake.calls == [
        (
            "/chat/findMessages/wa-lab",
            "global-test-key",
            {"where": {"key": {"fromMe": True}}, "page": 1, "offset": 200},
        )
    ]


async def test_the_recorded_message_is_not_another_one(search):
    search.fake.answer = recorded("18", "findMessages")
    assert await search.ask(text="outra") == ABSENT
    assert await search.ask(known={"3EB0BF7CA49767CDACC1FE"}) == ABSENT
    assert await search.ask(started_s=RECORDED_AT_S + 60) == UNKNOWN


@pytest.mark.parametrize("lead_s", [-3_600, -30, 30, 3_600])
async def test_a_gateway_whose_clock_is_wrong_is_understood(search, lead_s):
    search.date_at(lead_s)
    page = recorded("18", "findMessages")[1]
    page["messages"]["records"][0]["messageTimestamp"] += lead_s
    search.fake.answer = (200, page)
    assert await search.ask() == FOUND


async def test_a_date_nobody_can_read_is_no_date(search):
    search.fake.answer = recorded("18", "findMessages")
    search.fake.headers = {"Date": "yesterday"}
    assert await search.ask() == FOUND


async def test_a_busy_instance_is_read_until_the_rows_are_old_enough(search):
    page = recorded("18", "findMessages")[1]["messages"]["records"]
    search.fake.pages = [a_page([a_row("N1")], pages=9), a_page([*page, a_row("O", at_s=RECORDED_AT_S - 200)], pages=9)]
    assert await search.ask() == FOUND
    assert [body["page"] for _, _, body in search.fake.calls] == [1, 2]


async def test_an_instance_too_busy_to_be_read_back_tells_nothing(search):
    search.fake.pages = [a_page([a_row(f"N{number}")], number=number, pages=9) for number in (1, 2, 3)]
    assert await search.ask() == UNKNOWN
    assert len(search.fake.calls) == 3


async def test_an_evolution_that_keeps_nothing_tells_nothing(search):
    search.fake.answer = (200, a_page([], pages=0))
    assert await search.ask() == UNKNOWN


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (recorded("04", "unknown_instance"), UNKNOWN),
        (recorded("04", "unknown_route"), UNKNOWN),
        (recorded("04", "bad_apikey"), UNKNOWN),
        (recorded("04", "send_v1_shape"), UNKNOWN),
        ((200, []), UNKNOWN),
        (recorded("07", "send_unconnected"), AWAY),
        ((502, {}), AWAY),
        ((503, {}), AWAY),
    ],
)
async def test_a_search_that_is_refused_tells_nothing_and_says_whether_to_ask_again(search, answer, expected):
    search.fake.answer = answer
    assert await search.ask() == expected


async def test_a_search_without_an_answer_may_be_asked_again(search):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert await search.ask(url=f"http://127.0.0.1:{unused.getsockname()[1]}") == AWAY
    assert await search.ask(url="no url") == UNKNOWN


async def test_a_search_that_takes_too_long_is_given_up(evolution, hasty_channel):
    fake, url = evolution
    fake.held = asyncio.Event()
    asked = hasty_channel.find_sent(at(url), MESSAGE, started_wall_ns=0, known_key_ids=())
    assert await asyncio.wait_for(asked, WAIT_S) == AWAY
