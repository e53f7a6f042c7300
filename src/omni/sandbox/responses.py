"""Answers a well-behaved server never gives, and reading requests that may be anything: what the simulators add to Starlette.

A real agent server can die in the middle of a body, and a real Evolution can leave a caller waiting. These parts make that happen
on purpose. Dropping the connection works by returning from the ASGI call before the body is complete; the HTTP server then closes
the socket without the final chunk and logs one line about it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omni.sandbox.pacing import TaskOwner


class CutResponse(Response):
    """Sends its content as the beginning of a longer body and drops the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head and the beginning, and no end."""
        del scope, receive
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})


Write = Callable[[bytes], Awaitable[None]]


class StreamedResponse(Response):
    """Sends bytes as ``produce`` writes them; when it returns False, the connection is dropped instead of ended.

    ``produce`` is cancelled as soon as the client has gone or ``tasks`` stops.
    """

    media_type = "text/event-stream"

    def __init__(self, produce: Callable[[Write], Awaitable[bool]], *, tasks: TaskOwner) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._produce = produce
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the producer ends, the client goes, or the owner stops."""
        del scope
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        producer = self._tasks.spawn(self._send_body(send), name="streamed answer")
        try:
            await _while_connected(receive, producer)
        finally:
            producer.cancel()
            await asyncio.wait({producer})

    async def _send_body(self, send: Send) -> None:
        async def write(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        if await self._produce(write):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(request: Request, work: asyncio.Task[Any]) -> None:
    """Wait until ``work`` ends or the client of a fully read request has gone; ``work`` itself is left running."""
    await _while_connected(request.receive, work)


async def read_json(request: Request) -> Any:
    """The JSON of a request's body; None when there is none or it is not JSON."""
    raw = await request.body()
    try:
        return msgspec.json.decode(raw) if raw else None
    except msgspec.DecodeError:
        return None


async def _while_connected(receive: Receive, work: asyncio.Task[Any]) -> None:
    watcher = asyncio.create_task(_until_gone(receive), name="watch for the client to leave")
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
