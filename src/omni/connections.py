"""HTTP client sessions that live as long as somebody needs them.

The server holds one lease for its whole life; a call of the library holds one while it runs, so a plain script leaves nothing open
behind it. Sessions belong to the event loop they were opened on; each loop has its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import aiohttp

from omni.errors import OmniError
from omni.settings import Settings

# How long an idle connection is kept. Evolution (Node) and Hive (uvicorn) close theirs after 5 s; a POST that meets such a close may
# or may not have been taken, and is then neither repeated nor known, so ours are given up first.
_KEEPALIVE_S = 4.0


class Connections:
    """Leases of aiohttp sessions, one session per event loop."""

    def __init__(self, settings: Settings) -> None:
        self._connect_timeout_s = settings.agent_connect_timeout_ms / 1000
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, _Session] = WeakKeyDictionary()

    def session(self) -> aiohttp.ClientSession:
        """The running loop's session. Raises OmniError when nobody holds a lease: that is a bug of the caller."""
        opened = self._open.get(asyncio.get_running_loop())
        if opened is None:
            raise OmniError("no HTTP session is open on this loop; take a lease first")
        return opened.client

    @property
    def num_leases(self) -> int:
        """Leases held on the running loop."""
        opened = self._open.get(asyncio.get_running_loop())
        return 0 if opened is None else opened.num_leases

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Keep the running loop's session open for a while; the last one out closes it."""
        loop = asyncio.get_running_loop()
        opened = self._open.get(loop)
        if opened is None:
            opened = self._open[loop] = _Session(self._make_client())
        opened.num_leases += 1
        try:
            yield opened.client
        finally:
            opened.num_leases -= 1
            if opened.num_leases == 0:
                self._open.pop(loop, None)
                await opened.client.close()

    def _make_client(self) -> aiohttp.ClientSession:
        # No limit here: the inbox bounds how many turns run, and a pool that is full would stall answers in silence.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


class _Session:
    __slots__ = ("client", "num_leases")

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self.client = client
        self.num_leases = 0
