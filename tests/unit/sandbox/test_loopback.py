"""Serving an application inside a test's own event loop."""

import signal
import socket

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from omni.sandbox.loopback import serve_on_loopback


async def hello(request):
    return PlainTextResponse("hello")


async def test_an_application_is_served_on_loopback_and_gone_afterwards():
    app = Starlette(routes=[Route("/", hello)])
    async with serve_on_loopback(app) as url, aiohttp.ClientSession() as http, http.get(url) as answer:
        assert await answer.text() == "hello"

    assert url.startswith("http://127.0.0.1:")
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(url)


async def test_the_lifespan_is_run_around_the_block():
    seen = []

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"
        seen.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        seen.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    async with serve_on_loopback(app, on_stop=lambda: seen.append("on_stop")):
        seen.append("block")

    assert seen == ["lifespan.startup", "block", "on_stop", "lifespan.shutdown"]


async def test_an_application_that_refuses_to_start_is_named_as_the_cause():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="refused to start"):
        async with serve_on_loopback(app):
            pass


async def test_a_taken_port_is_an_error_of_the_system():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with serve_on_loopback(hello, port=taken.getsockname()[1]):
            pass


async def test_signal_handlers_stay_as_they_were():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve_on_loopback(Starlette()):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
