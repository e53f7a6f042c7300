"""Serves an ASGI application on a free loopback port inside the running event loop.

Real sockets and the real HTTP server, without a subprocess: for tests, and for a sandbox of its own next to another server.
Signal handlers are left alone; nothing is bound but 127.0.0.1.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

STOP_DEADLINE_S = 2.0
"""Seconds running answers get when the block is left; longer would only hide a test that forgot to close something."""

_LOOK_AGAIN_S = 0.002


@asynccontextmanager
async def serve_on_loopback(
    app: ASGIApp, *, port: int = 0, on_stop: Callable[[], None] | None = None
) -> AsyncIterator[str]:
    """Serve ``app`` while the block runs; yields its base URL, without a slash at the end.

    ``port`` 0 takes a free one. The application's lifespan is run. ``on_stop`` is called when the block is left, before running
    answers are waited for: the place to end streams that have no end of their own. Raises OSError when the port is taken, and RuntimeError when
    the application refuses to start.
    """
    listener = socket.create_server(("127.0.0.1", port))
    # Inherited by each connection: without it an answer's second packet waits 40 ms for an acknowledgement, as asyncio sets
    # this only on sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        # serve() would take over the process's signal handlers and look for its end only ten times a second.
        await server.startup(sockets=[listener])
    except SystemExit as exc:
        listener.close()
        raise RuntimeError("The application refused to start; its own log says why.") from exc
    await server.on_tick(0)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if on_stop is not None:
            on_stop()
        await _stop(server)


async def _stop(server: uvicorn.Server) -> None:
    """What uvicorn's own shutdown does, without its fixed waits: they would be most of a short test's time."""
    state = server.server_state
    for listening in server.servers:
        listening.close()
    for connection in list(state.connections):
        connection.shutdown()
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn tells nobody when these become empty
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        running = set(state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
    await server.lifespan.shutdown()
