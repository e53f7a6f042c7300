"""Passes the phone page's questions about traces on to a gateway on another port, which no browser would let the page ask itself.

Only one route of the gateway is reachable this way, at the base given when the sandbox was made, and only with the key the page sends.
"""

from urllib.parse import quote

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TIMEOUT_S = 10.0


class TraceRelay:
    """Asks the gateway at ``api_base`` for streaming documents; ``start`` before and ``stop`` after use, on one event loop."""

    def __init__(self, api_base: str) -> None:
        self._api_base = api_base
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the HTTP client."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def stop(self) -> None:
        """Close the HTTP client."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def answer(self, request: Request) -> Response:
        """The gateway's answer for the trace in the path, or 502 when there is none."""
        if self._session is None:
            raise RuntimeError("The relay is not started.")
        trace_id = quote(request.path_params["trace_id"], safe="")
        url = f"{self._api_base}/api/v1/traces/{trace_id}/streaming"
        headers = {"x-api-key": request.headers.get("x-api-key", "")}
        try:
            async with self._session.get(url, headers=headers) as found:
                return Response(await found.read(), found.status, media_type=found.content_type)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return JSONResponse({"detail": "The gateway cannot be reached."}, 502)
