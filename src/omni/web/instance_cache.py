"""Finds the configured instance a webhook or a send names, in microseconds, whatever the database is doing.

An instance is read once and kept for a few seconds. Callers that miss at the same moment share one read, made in threads that
nothing else uses. While the database is slow or gone, an instance that was known goes on being served as last read; one
that was not known yet is answered with a 503, which makes Evolution call again.
"""

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from omni.clock import NS_PER_S, Clock
from omni.errors import StoreError
from omni.model import InstanceConfig
from omni.ports import InstanceStore

log = logging.getLogger(__name__)

FRESH_S = 3.0
"""Seconds an instance is served without asking again: the longest a change made by another process takes to be seen."""

LOOKUP_WAIT_S = 2.0
"""Seconds a caller waits for the database; far below the 30 s after which Evolution gives a webhook up."""

MAX_KNOWN = 1_000
"""Names kept. Calls for invented names fill the cache with "unknown"; beyond this the longest unused goes."""

MAX_READS = 100
"""Reads under way or waiting for a thread. Only a hanging database with many names asked for gets here."""

_THREADS = 2


class _Known(NamedTuple):
    config: InstanceConfig | None
    fresh_until_ns: int


class InstanceCache:
    """Instances by name. Use on one event loop only."""

    def __init__(self, store: InstanceStore, clock: Clock, *, wait_s: float = LOOKUP_WAIT_S) -> None:
        self._store = store
        self._clock = clock
        self._wait_s = wait_s
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._reads: dict[str, asyncio.Future[InstanceConfig | None]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="omni-web-instances")

    async def get(self, name: str) -> InstanceConfig | None:
        """The instance, or None when nobody configured it. Raises StoreError (503) when that cannot be found out."""
        known = self._known.get(name)
        if known is not None:
            self._known.move_to_end(name)
            if self._clock.mono_ns() < known.fresh_until_ns:
                return known.config
        read = self._read(name)
        if read is not None:
            await asyncio.wait({read}, timeout=self._wait_s)
            if read.done() and not read.cancelled() and read.exception() is None:
                return read.result()
        if known is None:
            raise StoreError("The instance cannot be looked up at the moment.", retryable=True, status_code=503)
        log.warning("instance_served_as_last_read", extra={"instance": name})
        # Kept for another while, so that one call in a few seconds waits for the database and not every one.
        self._keep(name, known.config)
        return known.config

    def forget(self, name: str) -> None:
        """Read ``name`` anew at the next call. A read under way no longer counts: it may have seen the old row."""
        self._known.pop(name, None)
        self._reads.pop(name, None)

    def close(self) -> None:
        """Give up reads that have not begun. Does not wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, name: str) -> asyncio.Future[InstanceConfig | None] | None:
        """The read under way for ``name``, begun if there is none; None when too many are under way already."""
        read = self._reads.get(name)
        if read is None and len(self._reads) < MAX_READS:
            read = asyncio.get_running_loop().run_in_executor(self._threads, self._store.get, name)
            self._reads[name] = read
            read.add_done_callback(lambda ended: self._take(name, ended))
        return read

    def _take(self, name: str, read: asyncio.Future[InstanceConfig | None]) -> None:
        is_current = self._reads.get(name) is read
        if is_current:
            del self._reads[name]
        if read.cancelled():
            return
        failure = read.exception()
        if failure is not None:
            log.warning("instance_lookup_failed", extra={"instance": name, "error_type": type(failure).__name__})
        elif is_current:
            self._keep(name, read.result())

    def _keep(self, name: str, config: InstanceConfig | None) -> None:
        self._known[name] = _Known(config, self._clock.mono_ns() + int(FRESH_S * NS_PER_S))
        self._known.move_to_end(name)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
