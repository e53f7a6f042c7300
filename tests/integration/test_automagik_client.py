"""The older kind of agent, asked over a real loopback server: its whole answer, its failures, and moments that really happened."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from msgspec import structs

from omni.agents.automagik import AutomagikClient
from omni.clock import SystemClock
from omni.errors import AgentError, AgentFailed, AgentProtocolError, AgentRejected, AgentTimeout, AgentUnreachable
from omni.model import AgentRequest, FirstByte, RequestWritten, RunEnded, TextDelta, ToolCall, Usage

REPLY = {
    "message": "Custa R$ 10,00.",
    "success": True,
    "session_id": "5a1d",
    "tool_calls": [{"function": {"name": "price_lookup", "arguments": "{}"}}],
    "usage": {"request_tokens": 321, "response_tokens": 45, "total_tokens": 366},
}


def request_to(base_url, **changes):
    values = {
        "base_url": base_url,
        "api_key": "am_secret",
        "agent_kind": "agent",
        "agent_id": "simple",
        "message": "Qual o preço?",
        "session_id": "shop_5511999990001",
        "user_id": "5511999990001",
        "stream": False,
        "timeout_s": 5,
    }
    return AgentRequest(**values | changes)


@pytest.fixture
async def serve():
    """Serves one handler at the run route and gives its base URL."""
    runners = []

    async def start(handler):
        app = web.Application()
        app.router.add_post("/api/v1/agent/{name}/run", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield AutomagikClient(lambda: session, clock=SystemClock())


async def events_until_error(client, request):
    events, error = [], None
    try:
        async for event in client.run(request):
            events.append(event)
    except AgentError as exc:
        error = exc
    return events, error


async def test_a_whole_answer_is_one_text_with_tools_and_usage(serve, client):
    seen = []

    async def answer(request):
        seen.append((request.match_info["name"], request.headers["x-api-key"], await request.json()))
        return web.json_response(REPLY)

    events, error = await events_until_error(client, request_to(await serve(answer)))

    assert error is None
    assert seen == [
        (
            "simple",
            "am_secret",
            {
                "message_content": "Qual o preço?",
                "message_limit": 100,
                "message_type": "text",
                "session_name": "shop_5511999990001",
                "user": {"phone_number": "+5511999990001"},
            },
        )
    ]
    assert [type(event) for event in events] == [RequestWritten, FirstByte, ToolCall, TextDelta, RunEnded]
    assert (events[2].name, events[3].text) == ("price_lookup", "Custa R$ 10,00.")
    assert structs.replace(events[4], mono_ns=0) == RunEnded(
        mono_ns=0,
        ending="completed",
        content="Custa R$ 10,00.",
        usage=Usage(input_tokens=321, output_tokens=45, total_tokens=366),
        session_id="5a1d",
    )


async def test_moments_are_those_of_the_socket(serve):
    """The first byte is stamped when it comes, not when the answer is whole."""
    go_on, first_stamped = asyncio.Event(), asyncio.Event()

    class NoticingClock(SystemClock):
        """Tells when the second moment is taken: the first is the request, written."""

        num_stamps = 0

        def mono_ns(self):
            self.num_stamps += 1
            if self.num_stamps == 2:
                first_stamped.set()
            return SystemClock.mono_ns()

    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"message": "um ')
        await go_on.wait()
        await response.write(b'dois"}')
        return response

    base_url = await serve(answer)
    async with aiohttp.ClientSession() as session:
        client = AutomagikClient(lambda: session, clock=NoticingClock())
        asking = asyncio.create_task(events_until_error(client, request_to(base_url)))
        await asyncio.wait_for(first_stamped.wait(), 5)
        let_go_ns = SystemClock.mono_ns()
        go_on.set()
        events, _ = await asyncio.wait_for(asking, 5)
    written, first_byte, text, _ = events
    assert written.mono_ns < first_byte.mono_ns < let_go_ns < text.mono_ns


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, b'{"detail": "no"}', AgentRejected),
        (404, b'{"detail": "Agent not found"}', AgentRejected),
        (500, b"boom: internal", AgentFailed),
        (200, b"<html>", AgentProtocolError),
        (200, b'{"success": false, "message": "provider error"}', AgentFailed),
    ],
)
async def test_a_failure_is_an_error_and_never_an_answer(serve, client, status, body, kind):
    """F25: the server's words are for the operator, in ``detail``, and are no text of the answer."""

    async def answer(_request):
        return web.Response(status=status, body=body)

    events, error = await events_until_error(client, request_to(await serve(answer)))
    assert type(error) is kind
    assert not any(isinstance(event, TextDelta) for event in events)
    assert isinstance(events[0], RequestWritten)
    assert "boom" not in str(error)
    assert "provider" not in str(error)


async def test_a_refused_connection_wrote_nothing(client):
    events, error = await events_until_error(client, request_to("http://127.0.0.1:9"))
    assert (events, type(error)) == ([], AgentUnreachable)


async def test_silence_is_a_timeout(serve, client):
    hold = asyncio.Event()

    async def answer(_request):
        await hold.wait()
        return web.Response()

    events, error = await events_until_error(client, request_to(await serve(answer), timeout_s=0.1))
    hold.set()
    assert [type(event) for event in events] == [RequestWritten]
    assert isinstance(error, AgentTimeout)
    assert error.kind == "first_token"
