"""Fixtures of the sandbox tests: a sandbox without pauses behind a real socket, and a receiver for its webhooks."""

import asyncio
import json
from collections import deque
from pathlib import Path

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.server import Sandbox
from omni.sandbox.webhooks import RetryPolicy

CAPTURES = Path(__file__).parents[2] / "captures"
API_KEY = "a key for the gateway that is long enough"


class Receiver:
    """Takes webhooks and answers as told: ``answers`` are status codes in turn, 200 after them."""

    def __init__(self):
        self.bodies = []
        self.headers = []
        self.paths = []
        self.answers = deque()
        self.asgi = Starlette(routes=[Route("/{path:path}", self._take, methods=["POST"])])
        self.url = None

    async def _take(self, request):
        self.paths.append(request.url.path)
        self.headers.append(request.headers)
        self.bodies.append(await request.json())
        status = self.answers.popleft() if self.answers else 200
        return JSONResponse(
            {"status": "success", "instance": "sandbox", "trace_id": f"trace-{len(self.bodies)}"}, status
        )

    def of(self, event):
        return [body for body in self.bodies if body["event"] == event]


@pytest.fixture
async def receiver():
    made = Receiver()
    async with serve_on_loopback(made.asgi) as url:
        made.url = url
        yield made


@pytest.fixture
async def sandbox(receiver):
    policy = RetryPolicy(attempts=3)
    async with Sandbox(webhook_url=f"{receiver.url}/hook", api_key=API_KEY, speed=0, retry_policy=policy) as made:
        yield made


@pytest.fixture
async def base_url(sandbox):
    async with serve_on_loopback(sandbox.asgi) as url:
        yield url


@pytest.fixture
async def http(base_url):
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(base_url=base_url, timeout=timeout) as session:
        yield session


@pytest.fixture
def evolution_call(http):
    """POST to the simulated Evolution with its key; (status, body)."""

    async def call(path, body, *, apikey="sandbox-evolution-key", method="POST"):
        headers = {} if apikey is None else {"apikey": apikey}
        async with http.request(method, f"/evolution{path}", json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    return call


def capture(name):
    """One file of the recorded Evolution exchanges."""
    return json.loads((CAPTURES / "evolution" / name).read_text())


def shape(value):
    """The names and nesting of a JSON value without its contents; lists by their first item."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


async def within(seconds, awaitable):
    """Wait for something that must happen soon."""
    async with asyncio.timeout(seconds):
        return await awaitable
