"""Waiting and background work of the simulators, with one owner each.

``Pace`` stretches or removes the pauses that only make the sandbox look alive; ``TaskOwner`` keeps every background task of a
simulator, so that stopping the sandbox ends them all and reports the ones that broke.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from omni.errors import SettingsError


class Pace:
    """How fast the sandbox lives: 1 is lifelike, 10 ten times as fast, 0 leaves all pauses out."""

    def __init__(self, speed: float = 1.0) -> None:
        if speed < 0:
            raise SettingsError("The sandbox speed must be 0 (no pauses) or more.")
        self.speed = speed

    async def pause(self, seconds: float) -> None:
        """Wait for lifelike ``seconds`` at the chosen speed; always lets other tasks run once."""
        await asyncio.sleep(seconds / self.speed if self.speed else 0)


class TaskOwner:
    """Starts background tasks and ends them; for use on one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()
        self._failures: list[Exception] = []

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run ``work`` in the background until it ends or the owner stops."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._collect)
        return task

    async def hold(self, seconds: float) -> bool:
        """Wait ``seconds`` of real time; False when the owner let go before they were over."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    async def until_stopped(self) -> None:
        """Wait until ``release`` or ``stop`` is called."""
        await self._stopping.wait()

    async def idle(self) -> None:
        """Wait until every background task has ended, those started meanwhile included."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def release(self) -> None:
        """Let everything that only holds or waits for the end go on; other tasks keep running."""
        self._stopping.set()

    async def stop(self) -> None:
        """Cancel what still runs and wait for it. Raises ExceptionGroup when background tasks had failed."""
        self.release()
        running = set(self._tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup("background tasks of the sandbox failed", failures)

    def _collect(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._failures.append(error)
