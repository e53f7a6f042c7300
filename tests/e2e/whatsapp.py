"""The other side of Omni in the end-to-end tests: the person at the phone, and the operator at the REST API.

WhatsApp is a simulated Evolution API served in the test's own loop, so that a test waits for what happens on the phone instead of for
time to pass. Its webhooks go to the running Omni over a real socket, and Omni's messages come back over one.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from tests.e2e.processes import OmniServer

from omni.clock import SystemClock
from omni.sandbox.evolution import SimulatedEvolution
from omni.sandbox.evolution_routes import evolution_app
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.phone_events import AgentWrote, PhoneEvent
from omni.sandbox.webhooks import RetryPolicy, WebhookPost, WebhookPoster, WebhookTarget

WAIT_S = 20.0
"""Longest anything may take that takes a fraction of a second on a quiet machine."""

_LOOK_AGAIN_S = 0.05
EVOLUTION_KEY = "evolution-key-of-these-tests"
PHONE = "5511999990001"
PHONE_JID = f"{PHONE}@s.whatsapp.net"

_numbers = itertools.count(1)


class WhatsApp:
    """The simulated Evolution, where it listens, and what the person sees."""

    def __init__(self, evolution: SimulatedEvolution, url: str) -> None:
        self.evolution = evolution
        self.url = url
        self.bubbles: list[str] = []
        self._changed = asyncio.Event()
        evolution.listen(self._note)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something that shows on the phone is so. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    async def until_bubbles(self, number: int) -> list[str]:
        """The first ``number`` messages the person got, once they are there."""
        await self.until(lambda: len(self.bubbles) >= number)
        return self.bubbles[:number]

    async def next_change(self) -> None:
        """Wait until anything happens on the phone, or a moment."""
        self._changed.clear()
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._changed.wait()
        except TimeoutError:
            return

    def _note(self, event: PhoneEvent) -> None:
        if isinstance(event, AgentWrote):
            self.bubbles.append(event.text)
        self._changed.set()


class Api:
    """The REST API with its key."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, method: str, path: str, *, status: int = 200, **request: Any) -> Any:
        """The JSON answer of a call that has to be answered with ``status``."""
        async with self.session.request(method, path, **request) as response:
            body = await response.json(content_type=None)
            assert response.status == status, body
            return body


class World:
    """One test's world: a running Omni, the operator's API, the person's phone."""

    def __init__(self, omni: OmniServer, api: Api, whatsapp: WhatsApp) -> None:
        self.omni = omni
        self.api = api
        self.whatsapp = whatsapp

    async def add_instance(self, agent_url: str, *, agent_key: str = "key", agent: str, **values: Any) -> str:
        """Configure an instance over REST, at Evolution too, and return its name."""
        name = f"shop-{next(_numbers)}"
        given = {
            "name": name,
            "channel_type": "whatsapp",
            "evolution_url": self.whatsapp.url,
            "evolution_key": EVOLUTION_KEY,
            "whatsapp_instance": name,
            "agent_instance_type": "hive",
            "agent_api_url": agent_url,
            "agent_api_key": agent_key,
            "agent_id": agent,
            "agent_stream_mode": True,
            "message_spacing_ms": 0,
        }
        await self.api.call("POST", "/api/v1/instances", json={**given, **values}, status=201)
        target = WebhookTarget(url=f"{self.omni.base_url}/webhook/evolution/{name}")
        self.whatsapp.evolution.add_instance(name, target=target)
        return name

    async def ask(self, instance: str, text: str, **how: Any) -> str:
        """The person writes; the id of the trace that follows the message."""
        post = await self.post(instance, text, **how)
        assert post.trace_id is not None, post.answer
        return post.trace_id

    async def post(self, instance: str, text: str, **how: Any) -> WebhookPost:
        """The person writes; what became of the webhook."""
        post = await self.whatsapp.evolution.user_writes(instance, text, **how)
        assert post is not None
        return post

    async def ended(self, trace_id: str) -> dict[str, Any]:
        """The streaming document of a trace, once its turn has ended."""
        async with asyncio.timeout(WAIT_S):
            while True:
                document = await self.document(trace_id)
                if document["ending"] is not None and document["timeline"]["completed_ms"] is not None:
                    return document
                await self.whatsapp.next_change()

    async def document(self, trace_id: str) -> dict[str, Any]:
        """The streaming document of a trace as it is now."""
        document = await self.api.call("GET", f"/api/v1/traces/{trace_id}/streaming")
        assert isinstance(document, dict)
        return document


@asynccontextmanager
async def open_whatsapp() -> AsyncIterator[WhatsApp]:
    """Serve a simulated Evolution while the block runs; no lifelike pauses, no receipts."""
    clock, pace, tasks = SystemClock(), Pace(0), TaskOwner()
    poster = WebhookPoster(clock=clock, pace=pace, policy=RetryPolicy(attempts=1))
    evolution = SimulatedEvolution(
        api_key=EVOLUTION_KEY, poster=poster, tasks=tasks, pace=pace, clock=clock, receipts=()
    )
    async with serve_on_loopback(evolution_app(evolution)) as url:
        await poster.start()
        try:
            yield WhatsApp(evolution, url)
        finally:
            await tasks.stop()
            await poster.stop()


@asynccontextmanager
async def open_api(omni: OmniServer) -> AsyncIterator[Api]:
    """A client of the REST API that carries the key."""
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with aiohttp.ClientSession(omni.base_url, headers={"x-api-key": omni.api_key}, timeout=timeout) as session:
        yield Api(session)
