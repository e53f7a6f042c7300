"""Evolution's webhook sender, with the books of what it posted and what was acknowledged.

It behaves as the recorded service does (tests/captures/evolution/12): a 2xx is done, 400, 401, 403, 404 and 422 are never tried again,
everything else and every broken connection is, with doubling pauses; only the pauses are shorter. On order it also does what the
network and an operator do to webhooks: loses first attempts, holds them back, brings them twice, posts to a global address as well.
The address is looked up anew at each attempt, as a name would be: a restarted Omni listens on another port.
"""

import random
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from omni.clock import Clock
from omni.sandbox.pacing import Pace, TaskOwner
from omni.sandbox.webhooks import NEVER_RETRIED, WebhookPost, WebhookTarget

UPSERT = "messages.upsert"

ATTEMPTS = 80
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 0.4
TIMEOUT_S = 10.0
"""The real service waits 30 s, pauses 5 s to 300 s and tries ten times: some twenty minutes in all. Here it is some thirty seconds."""


class Disorder(Struct, frozen=True, kw_only=True):
    """What becomes of webhooks on their way; shares are between 0 and 1, delays in seconds."""

    lost_share: float = 0.0
    """Of the first attempts, how many never arrive; the retry brings them."""
    repeated_share: float = 0.0
    """How many are posted once more after they were taken."""
    longest_delay_s: float = 0.0
    """First attempts and repeats are held back by up to this long, each by another time."""
    has_global: bool = False
    """Whether a global webhook posts everything to the same address as well, without the instance's headers."""


class Posted(Struct):
    """One message's webhook. Times are monotonic nanoseconds; ``acknowledged_ns`` is when the first 200 had arrived."""

    message_id: str
    sent_at_s: int
    """WhatsApp's stamp: when the person wrote it."""
    first_posted_ns: int | None = None
    acknowledged_ns: int | None = None
    refused_status: int | None = None
    statuses: list[int | None] = []
    """Every answer to every attempt, in order; None where none came."""


class Carrier:
    """Posts webhooks. Satisfies what ``SimulatedEvolution`` needs of a poster; ``start`` before and ``stop`` after use.

    ``on_event`` is called when a message is first posted and when it is acknowledged.
    """

    def __init__(self, *, clock: Clock, tasks: TaskOwner, seed: int, on_event: Callable[[], None]) -> None:
        self.posted: dict[str, Posted] = {}
        self.num_under_way = 0
        self.disorder = Disorder()
        self.base_url = ""
        """Where Omni is now."""
        self._clock = clock
        self._tasks = tasks
        self._rng = random.Random(f"carrier {seed}")
        self._pace = Pace()
        self._on_event = on_event
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the HTTP client."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))

    async def stop(self) -> None:
        """Close the HTTP client."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, target: WebhookTarget, envelope: dict[str, Any]) -> WebhookPost:
        """Post one event until it is taken, refused for good, or all attempts are spent."""
        disorder, rng = self.disorder, self._rng
        self.num_under_way += 1
        try:
            await self._hold_back(disorder)
            outcome = await self._bring(
                envelope, headers=target.headers, is_first_lost=rng.random() < disorder.lost_share
            )
            if disorder.has_global:
                await self._bring(envelope, headers={}, is_first_lost=False)
            if rng.random() < disorder.repeated_share:
                await self._hold_back(disorder)
                await self._bring(envelope, headers=target.headers, is_first_lost=False)
        finally:
            self.num_under_way -= 1
        return outcome

    async def _hold_back(self, disorder: Disorder) -> None:
        if disorder.longest_delay_s:
            await self._pace.pause(self._rng.uniform(0, disorder.longest_delay_s))

    async def _bring(self, envelope: dict[str, Any], *, headers: Any, is_first_lost: bool) -> WebhookPost:
        book = self._book_of(envelope)
        body = msgspec.json.encode(envelope)
        path = f"/webhook/evolution/{envelope['instance']}"
        started_ns = self._clock.mono_ns()
        status: int | None = None
        attempts = 0
        while attempts < ATTEMPTS:
            attempts += 1
            if is_first_lost and attempts == 1:
                status = None
            else:
                status = await self._attempt(path, body=body, headers=headers, book=book)
            if status is not None and (200 <= status < 300 or status in NEVER_RETRIED):
                break
            await self._pace.pause(self._pause_s(attempts))
        return WebhookPost(
            instance_name=envelope["instance"],
            event=envelope["event"],
            body=envelope,
            attempts=attempts,
            status_code=status,
            answer=None,
            started_ns=started_ns,
            ended_ns=self._clock.mono_ns(),
        )

    async def _attempt(self, path: str, *, body: bytes, headers: Any, book: Posted | None) -> int | None:
        assert self._session is not None
        if book is not None and book.first_posted_ns is None:
            book.first_posted_ns = self._clock.mono_ns()
            self._on_event()
        status: int | None = None
        try:
            async with self._session.post(
                f"{self.base_url}{path}", data=body, headers={"Content-Type": "application/json", **headers}
            ) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            status = None
        if book is not None:
            self._note(book, status)
        return status

    def _note(self, book: Posted, status: int | None) -> None:
        book.statuses.append(status)
        if status is None:
            return
        if 200 <= status < 300 and book.acknowledged_ns is None:
            book.acknowledged_ns = self._clock.mono_ns()
            self._on_event()
        if status in NEVER_RETRIED:
            book.refused_status = status

    def _book_of(self, envelope: dict[str, Any]) -> Posted | None:
        if envelope["event"] != UPSERT:
            return None
        message_id, sent_at_s = envelope["data"]["key"]["id"], envelope["data"]["messageTimestamp"]
        return self.posted.setdefault(message_id, Posted(message_id=message_id, sent_at_s=sent_at_s))

    def _pause_s(self, num_failed: int) -> float:
        pause_s = min(FIRST_PAUSE_S * 2 ** (num_failed - 1), LONGEST_PAUSE_S)
        return pause_s * self._rng.uniform(1.0, 1.2)
