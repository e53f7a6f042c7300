"""Recorded Evolution traffic, and the parts the delivery tests are arranged from."""

import asyncio
import heapq
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from omni.clock import NS_PER_MS, NS_PER_S
from omni.model import InstanceConfig
from omni.settings import Settings
from omni.testing import FakeClock

CAPTURES = Path(__file__).parents[2] / "captures" / "evolution"


@pytest.fixture(scope="session")
def capture():
    """The recorded exchange whose file name begins with a number: ``capture("08")``."""

    def read(number: str) -> dict[str, Any]:
        (path,) = CAPTURES.glob(f"{number}_*.json")
        return json.loads(path.read_text(encoding="utf-8"))

    return read


class ManualSleep:
    """A sleep over which the test decides: it ends when ``pass_ms`` has let that much time pass on the clock."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def __call__(self, duration_s: float) -> None:
        end_ns = self._clock.mono_ns() + duration_s * NS_PER_S
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (end_ns, next(self._numbers), future))
        await future

    async def pass_ms(self, duration_ms: float) -> None:
        """Let time pass, waking every sleeper at its own moment."""
        end_ns = self._clock.mono_ns() + int(duration_ms * NS_PER_MS)
        await turns()
        while self._sleepers and self._sleepers[0][0] <= end_ns:
            at_ns, _, future = heapq.heappop(self._sleepers)
            self._clock.advance_ms(max(0.0, at_ns - self._clock.mono_ns()) / NS_PER_MS)
            if not future.done():
                future.set_result(None)
            await turns()
        self._clock.advance_ms((end_ns - self._clock.mono_ns()) / NS_PER_MS)


async def turns(count: int = 20) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(mono_ns=0)


@pytest.fixture
def manual_sleep(clock: FakeClock) -> ManualSleep:
    return ManualSleep(clock)


@pytest.fixture
def settings() -> Settings:
    return Settings(_env_file=None, message_spacing_ms=500, send_attempts=3, send_retry_ms=500)


@pytest.fixture
def instance() -> InstanceConfig:
    return InstanceConfig(name="shop", evolution_url="http://evolution.invalid", evolution_key="k")
