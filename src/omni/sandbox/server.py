"""The sandbox: a simulated Evolution with a phone, and a simulated Hive, as one ASGI application.

It can be mounted under a path of another server or served alone. It owns its HTTP client and its background tasks, and answers
nothing by itself: the gateway under test does, called through a webhook like by the real thing.
"""

from types import TracebackType
from typing import Any, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from omni.clock import Clock, SystemClock
from omni.sandbox.evolution import DELIVERED_THEN_READ, SimulatedEvolution
from omni.sandbox.evolution_routes import evolution_app
from omni.sandbox.hive import DEFAULT_AGENT, SimulatedHive
from omni.sandbox.hive_wire import Dialect
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.phone import Phone
from omni.sandbox.webhooks import RetryPolicy, WebhookPoster, WebhookTarget

EVOLUTION_KEY = "sandbox-evolution-key"
HIVE_KEY = "sandbox-hive-key"
INSTANCE_NAME = "sandbox"


class Sandbox:
    """Everything a gateway talks to, simulated.

    ``webhook_url`` is where the phone's messages are posted, with ``api_key`` as bearer token when there is one. ``api_base`` and
    ``api_key`` let the phone page read traces; an empty base means the server the page came from. ``speed`` 1 is lifelike, 10 ten
    times as fast, 0 without pauses; change it any time through ``pace.speed``. Call ``start`` before the first request and ``stop``
    at the end, both on the event loop that serves ``asgi``, or use ``async with``.
    """

    def __init__(
        self,
        *,
        webhook_url: str | None = None,
        instance_name: str = INSTANCE_NAME,
        api_base: str = "",
        api_key: str = "",
        evolution_key: str = EVOLUTION_KEY,
        hive_key: str = HIVE_KEY,
        speed: float = 1.0,
        receipts: bool = True,
        retry_policy: RetryPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.instance_name = instance_name
        self.pace = Pace(speed)
        self.tasks = TaskOwner()
        self._api_key = api_key
        self._poster = WebhookPoster(clock=clock, pace=self.pace, policy=retry_policy)
        self.evolution = SimulatedEvolution(
            api_key=evolution_key,
            poster=self._poster,
            tasks=self.tasks,
            pace=self.pace,
            clock=clock,
            receipts=DELIVERED_THEN_READ if receipts else (),
        )
        self.hive = SimulatedHive(api_key=hive_key, tasks=self.tasks, pace=self.pace, clock=clock)
        self.phone = Phone(self.evolution, instance_name=instance_name, api_base=api_base, api_key=api_key)
        self.evolution.add_instance(instance_name)
        if webhook_url is not None:
            self.post_webhooks_to(webhook_url)
        self.asgi = self._build()

    def post_webhooks_to(self, url: str) -> None:
        """Post the phone's events to ``url`` from now on."""
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        self.evolution.instances[self.instance_name].target = WebhookTarget(url=url, headers=headers)

    async def start(self) -> None:
        """Open the HTTP clients that post webhooks and read traces."""
        await self._poster.start()
        await self.phone.relay.start()

    def hang_up(self) -> None:
        """End what would keep a stopping server waiting: pages' event streams, typing pulses, stalled and hanging answers.

        Answers that are being written go on. Servers wait for open connections before they stop their applications, so call this
        first; never blocks, on the event loop only.
        """
        self.phone.hang_up()
        self.tasks.release()

    async def stop(self) -> None:
        """End all background work and streams, then close the HTTP clients. Raises ExceptionGroup when some work had failed."""
        try:
            await self.tasks.stop()
        finally:
            await self.phone.relay.stop()
            await self._poster.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _build(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", _to_phone),
                Mount("/evolution", evolution_app(self.evolution)),
                Mount("/hive/agno1", self.hive.app("agno1")),
                Mount("/hive/agno20", self.hive.app("agno20")),
                Mount("/hive", self.hive.app("agno3")),
                Mount("/phone", self.phone.asgi),
            ]
        )


def sandbox_instance(
    base_url: str,
    *,
    name: str = INSTANCE_NAME,
    evolution_key: str = EVOLUTION_KEY,
    hive_key: str = HIVE_KEY,
    dialect: Dialect = "agno3",
) -> dict[str, Any]:
    """The ``instance_configs`` values of an instance that uses the sandbox served at ``base_url``."""
    base = base_url.rstrip("/")
    return {
        "name": name,
        "channel_type": "whatsapp",
        "evolution_url": f"{base}/evolution",
        "evolution_key": evolution_key,
        "whatsapp_instance": name,
        "agent_instance_type": "hive",
        "agent_api_url": f"{base}/hive" if dialect == "agno3" else f"{base}/hive/{dialect}",
        "agent_api_key": hive_key,
        "agent_id": DEFAULT_AGENT,
        "agent_type": "agent",
        "agent_timeout": 60,
        "agent_stream_mode": True,
        "default_agent": DEFAULT_AGENT,
    }


async def _to_phone(request: Request) -> Response:
    del request
    return RedirectResponse("phone/")
