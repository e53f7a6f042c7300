"""Runs blocking calls to the store in threads of the HTTP side's own, each with a deadline.

The event loop's default threads also resolve host names for the calls to agents and to Evolution: a database that
hangs must not take those, or answers would stop flowing for the sake of a list of traces.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from omni.errors import StoreError

THREADS = 8
"""Calls that run at once. Readers of one SQLite file gain nothing from more; further calls wait their turn."""

CALL_TIMEOUT_S = 30.0
"""Seconds a caller waits for the store, waiting for a thread included, before it is told to come back later."""

MAX_OFFSET = 2**31 - 1
"""Most rows a listing may leave out at its beginning: what every database and every client can count to."""

T = TypeVar("T")


class StoreCalls:
    """A bounded set of threads for blocking calls."""

    def __init__(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="omni-web-store")

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises; StoreError when it takes too long (a write may then still take effect)."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            await asyncio.wait({running}, timeout=self._timeout_s)
            is_done = running.done()
        finally:
            # Also when the caller is gone: a call that has not begun need not be made any more.
            running.cancel()
        if not is_done:
            raise StoreError("The database did not answer in time.", retryable=True, status_code=503)
        return running.result()

    async def answer(self, call: Callable[[], Any]) -> Response:
        """A JSON answer of what ``call`` returns; the JSON is written in the thread too, since it may be large."""
        body = await self.run(lambda: msgspec.json.encode(call()))
        return Response(body, media_type="application/json")

    def close(self) -> None:
        """Give up calls that have not begun; those that have end by themselves. Does not wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)
