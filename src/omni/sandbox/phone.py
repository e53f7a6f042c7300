"""The phone page: a chat in the browser that writes through the simulated Evolution and shows what comes back.

The page gets its events as server-sent events and posts what the person writes; the trace beside the chat it reads from the gateway's
REST interface, directly when the gateway serves this page and through ``relay`` when it is elsewhere. The gateway's key is given to the page only over the loopback interface: anyone else is asked for it.
"""

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from omni.sandbox.evolution import SimulatedEvolution
from omni.sandbox.phone_events import PhoneEvent, Typing
from omni.sandbox.relay import TraceRelay
from omni.sandbox.responses import StreamedResponse, Write
from omni.sandbox.script_texts import scripts

STATIC_DIR = Path(__file__).parent / "static"

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_REMEMBERED_EVENTS = 4000
"""Events a page that is opened later still gets; some hundred turns."""
WAITING_EVENTS = 1000
"""Events a slow page may lag behind. Beyond it its stream ends, and the page connects again and gets everything anew."""
KEEP_ALIVE_S = 15.0
"""Seconds of quiet after which a comment is sent, so that nothing between here and the page takes the stream for dead."""
_LONGEST_TEXT = 4096


class _Written(Struct, frozen=True):
    """What the page posts."""

    text: str


class Phone:
    """One simulated phone on one instance; any number of pages may show it. ``asgi`` serves the page and its data."""

    def __init__(self, evolution: SimulatedEvolution, *, instance_name: str, api_base: str, api_key: str) -> None:
        self.instance_name = instance_name
        self.api_base = api_base.rstrip("/")
        self.waiting_events = WAITING_EVENTS
        self.keep_alive_s = KEEP_ALIVE_S
        self.relay = TraceRelay(self.api_base)
        self.asgi = self._build()
        self._api_key = api_key
        self._evolution = evolution
        self._events: deque[PhoneEvent] = deque(maxlen=_REMEMBERED_EVENTS)
        self._pages: set[asyncio.Queue[PhoneEvent]] = set()
        self._overrun: set[asyncio.Queue[PhoneEvent]] = set()
        evolution.listen(self._hear)

    def hang_up(self) -> None:
        """End the event streams of all open pages, which would otherwise keep a stopping server waiting."""
        for waiting in self._pages:
            self._overrun.add(waiting)
            if not waiting.full():
                waiting.put_nowait(Typing(is_on=False))  # wakes a stream that waits for an event

    def _build(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/config", self._config),
                Route("/events", self._stream_events),
                Route("/messages", self._write_message, methods=["POST"]),
                Route("/relay/api/v1/traces/{trace_id}/streaming", self.relay.answer),
                Mount("/static", StaticFiles(directory=STATIC_DIR)),
            ]
        )

    async def _page(self, request: Request) -> Response:
        del request
        policy = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
        return FileResponse(STATIC_DIR / "phone.html", headers={"content-security-policy": policy})

    async def _config(self, request: Request) -> Response:
        contact = self._evolution.contact
        return JSONResponse(
            {
                "instance_name": self.instance_name,
                "api_base": self.api_base,
                "trace_base": "relay" if self.api_base else "",
                "api_key": self._api_key if _is_local(request) else None,
                "contact": {"name": contact.name, "phone": contact.phone},
                "commands": [
                    {"command": f"/{script.name}", "title": script.title}
                    for script in scripts("en").values()
                    if script.name != "greeting"
                ],
            }
        )

    async def _write_message(self, request: Request) -> Response:
        # Only JSON: a form of a foreign page could otherwise make the phone write.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"detail": "Send JSON."}, 415)
        try:
            written = msgspec.json.decode(await request.body(), type=_Written)
        except msgspec.DecodeError:
            return JSONResponse({"detail": 'Send {"text": "..."}.'}, 422)
        if not written.text.strip() or len(written.text) > _LONGEST_TEXT:
            return JSONResponse({"detail": f"A message has 1 to {_LONGEST_TEXT} characters."}, 422)
        writing = self._evolution.user_writes(self.instance_name, written.text)
        self._evolution.tasks.spawn(writing, name="the person writes")
        return JSONResponse({"status": "sent"}, 202)

    async def _stream_events(self, request: Request) -> Response:
        del request
        return StreamedResponse(self._feed, tasks=self._evolution.tasks)

    async def _feed(self, write: Write) -> bool:
        waiting: asyncio.Queue[PhoneEvent] = asyncio.Queue(maxsize=self.waiting_events)
        self._pages.add(waiting)
        try:
            await write(_frame({"type": "hello"}) + b"".join(_frame(event) for event in list(self._events)))
            while waiting not in self._overrun:
                try:
                    async with asyncio.timeout(self.keep_alive_s):
                        await write(_frame(await waiting.get()))
                except TimeoutError:
                    await write(b": still here\n\n")
        finally:
            self._pages.discard(waiting)
            self._overrun.discard(waiting)
        return True

    def _hear(self, event: PhoneEvent) -> None:
        if not isinstance(event, Typing):  # a page opened later has no use for an old typing sign
            self._events.append(event)
        for waiting in self._pages:
            if waiting.full():
                self._overrun.add(waiting)
            else:
                waiting.put_nowait(event)


def _frame(event: Any) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _is_local(request: Request) -> bool:
    """Whether both ends are this machine; the host name is looked at too, against pages that rebind theirs."""
    client = request.client.host if request.client else ""
    return client in _LOOPBACK_NAMES and request.url.hostname in _LOOPBACK_NAMES
