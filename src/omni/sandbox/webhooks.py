"""Posts the simulated Evolution's webhooks by its retry rules.

Evolution takes any 2xx as done, gives up at once on 400, 401, 403, 404 and 422, and tries again after everything else: other
codes, network errors, timeouts. ``Retry-After`` is ignored. An event keeps its ``date_time`` and its token over all its attempts,
and one event never waits for another. The times are the real service's, at the sandbox's pace.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import jwt
import msgspec
from msgspec import Struct

from omni.clock import NS_PER_S, Clock
from omni.sandbox.pacing import Pace

NEVER_RETRIED = frozenset({400, 401, 403, 404, 422})
TOKEN_LIFETIME_S = 600


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often and when a webhook is posted again: the defaults of the real service, which gives up after some 20 minutes.

    Waits are lifelike seconds; the timeout is not stretched.
    """

    attempts: int = 10
    initial_s: float = 5.0
    max_s: float = 300.0
    jitter: float = 0.2
    timeout_s: float = 30.0

    def wait_s(self, failed_attempts: int, *, chance: Callable[[], float] = random.random) -> float:
        """Seconds before the next attempt: doubling, changed by chance up to ``jitter`` either way, never under the first wait."""
        wait_s = min(self.initial_s * 2 ** (failed_attempts - 1), self.max_s)
        return float(max(self.initial_s, wait_s * (1 + self.jitter * (2 * chance() - 1))))


class WebhookTarget(Struct, frozen=True, kw_only=True):
    """Where an instance's events go. No ``events`` means all of them; ``jwt_key`` in ``headers`` asks for signed calls."""

    url: str
    headers: Mapping[str, str] = {}
    events: tuple[str, ...] = ()
    by_events: bool = False
    is_enabled: bool = True

    def wants(self, event: str) -> bool:
        """Whether this event (``messages.upsert``) is among those asked for (``MESSAGES_UPSERT``)."""
        return self.is_enabled and (not self.events or event.upper().replace(".", "_") in self.events)

    def address(self, event: str) -> str:
        """The URL to post to; per-event addresses end in the event's name with dashes."""
        return f"{self.url}/{event.replace('.', '-').replace('_', '-')}" if self.by_events else self.url


class WebhookPost(Struct, frozen=True, kw_only=True):
    """One event that was posted. ``status_code`` is the last answer's, None when none came; times are monotonic nanoseconds."""

    instance_name: str
    event: str
    body: dict[str, Any]
    attempts: int
    status_code: int | None
    answer: Any
    started_ns: int
    ended_ns: int

    @property
    def is_taken(self) -> bool:
        """Whether the receiver answered 2xx."""
        return self.status_code is not None and 200 <= self.status_code < 300

    @property
    def trace_id(self) -> str | None:
        """The trace the receiver named in its answer; None when it named none."""
        found = self.answer.get("trace_id") if isinstance(self.answer, dict) else None
        return found if isinstance(found, str) else None


class WebhookPoster:
    """Posts events; ``start`` before and ``stop`` after use, on one event loop."""

    def __init__(self, *, clock: Clock, pace: Pace, policy: RetryPolicy | None = None) -> None:
        self._clock = clock
        self._pace = pace
        self._policy = policy or RetryPolicy()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the HTTP client."""
        timeout = aiohttp.ClientTimeout(total=self._policy.timeout_s)
        self._session = aiohttp.ClientSession(timeout=timeout, headers={"User-Agent": "axios/1.21.1"})

    async def stop(self) -> None:
        """Close the HTTP client."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, target: WebhookTarget, envelope: dict[str, Any]) -> WebhookPost:
        """Post one event until it is taken, refused for good, or all attempts are spent; never raises for the other side."""
        event = envelope["event"]
        body = msgspec.json.encode(envelope)
        headers = self._headers(target)
        started_ns = self._clock.mono_ns()
        attempts, status_code, answer = 0, None, None
        while True:
            attempts += 1
            status_code, answer = await self._attempt(target.address(event), body=body, headers=headers)
            is_final = status_code is not None and (200 <= status_code < 300 or status_code in NEVER_RETRIED)
            if is_final or attempts >= self._policy.attempts:
                break
            await self._pace.pause(self._policy.wait_s(attempts))
        return WebhookPost(
            instance_name=envelope["instance"],
            event=event,
            body=envelope,
            attempts=attempts,
            status_code=status_code,
            answer=answer,
            started_ns=started_ns,
            ended_ns=self._clock.mono_ns(),
        )

    async def _attempt(self, url: str, *, body: bytes, headers: Mapping[str, str]) -> tuple[int | None, Any]:
        if self._session is None:
            raise RuntimeError("The webhook poster is not started.")
        try:
            async with self._session.post(url, data=body, headers=headers) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None, None
        try:
            return response.status, msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            return response.status, None

    def _headers(self, target: WebhookTarget) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/plain, */*"}
        headers.update({name: value for name, value in target.headers.items() if name != "jwt_key"})
        key = target.headers.get("jwt_key")
        if key:
            now_s = self._clock.wall_ns() // NS_PER_S
            claims = {"iat": now_s, "exp": now_s + TOKEN_LIFETIME_S, "app": "evolution", "action": "webhook"}
            headers["Authorization"] = f"Bearer {jwt.encode(claims, key, algorithm='HS256')}"
        return headers
