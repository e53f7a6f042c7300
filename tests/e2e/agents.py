"""Agent servers that go wrong on purpose, served in the test's loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from omni.clock import SystemClock
from omni.sandbox.hive import SimulatedHive
from omni.sandbox.loopback import serve_on_loopback
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.scripts import Script

HIVE_KEY = "hive-key-of-these-tests"

# Long enough, on one machine, for each piece to arrive in a read of its own; the result may not depend on it.
_BETWEEN_PIECES_S = 0.003


@asynccontextmanager
async def serve_answer(status: int, body: bytes, *, media_type: str = "application/json") -> AsyncIterator[str]:
    """An agent server that answers everything in the same way; yields its address."""

    async def answer(_: Request) -> Response:
        return Response(body, status, media_type=media_type)

    async with serve_on_loopback(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])) as url:
        yield url


@asynccontextmanager
async def serve_pieces(*pieces: bytes) -> AsyncIterator[str]:
    """An agent server that streams exactly these bytes, piece by piece, and ends."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await Pace().pause(_BETWEEN_PIECES_S)

    async def answer(_: Request) -> Response:
        return StreamingResponse(stream(), media_type="text/event-stream")

    async with serve_on_loopback(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])) as url:
        yield url


@asynccontextmanager
async def serve_hive(script: Script) -> AsyncIterator[str]:
    """A simulated Hive whose agent ``scripted`` plays one script without lifelike pauses; yields its address."""
    tasks = TaskOwner()
    hive = SimulatedHive(api_key=HIVE_KEY, tasks=tasks, pace=Pace(0), clock=SystemClock())
    hive.add_script("scripted", script)
    async with serve_on_loopback(hive.app("agno3")) as url:
        try:
            yield url
        finally:
            await tasks.stop()
