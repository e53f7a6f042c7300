"""Shows the typing sign in a chat while an agent writes.

Evolution holds a composing call for the time it is asked to show the sign and ends it with ``paused``. Two such calls at once would
switch each other's sign off, so there is one pulse at a time per chat, and the next begins when it has returned. Pulses run in the
background: no text ever waits for one. A channel that refuses the first has no typing sign; it is not asked again for
that answer.

    async with indicator.shown(instance, recipient) as typing:
        ...                       # the streamer's whole story of one answer
        typing.note_message()     # after every accepted message: WhatsApp takes the sign away itself

Runs on event loops only. Each loop has its own calls: a script may run several, one after the other or in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from omni.clock import NS_PER_MS, NS_PER_S
from omni.faults import fault_facts
from omni.model import InstanceConfig
from omni.ports import Channel

log = logging.getLogger(__name__)

# A chat on a loop: one loop can neither wait for another's tasks nor cancel them.
_Place = tuple[asyncio.AbstractEventLoop, str, str]

PULSE_MS = 8_000
"""How long one call shows the sign: under the ten seconds after which WhatsApp may take it away."""

_MS_PER_S = NS_PER_S // NS_PER_MS


class TypingIndicator:
    """The typing signs of all chats of one channel. Owns their tasks; close it with ``aclose``."""

    def __init__(
        self,
        channel: Channel,
        *,
        is_enabled: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._channel = channel
        self._is_enabled = is_enabled
        self._sleep = sleep
        self._tasks: dict[_Place, set[asyncio.Task[None]]] = {}

    @property
    def active_chats(self) -> int:
        """How many chats have a pulse or a clearing call under way."""
        return len(self._tasks)

    @asynccontextmanager
    async def shown(self, instance: InstanceConfig, recipient: str) -> "AsyncIterator[TypingSign]":
        """Show the sign inside the block. Entering and leaving take no time, and what happens to the sign is not raised here."""
        sign = TypingSign()
        chat = (asyncio.get_running_loop(), instance.name, recipient)
        if self._is_enabled:
            earlier = frozenset(self._tasks.get(chat, ()))
            self._start(chat, self._pulse(sign, instance, recipient, earlier=earlier))
        try:
            yield sign
        finally:
            sign.stop()
            if sign.is_visible:
                self._start(chat, self._clear(instance, recipient))

    async def aclose(self) -> None:
        """Cancel every call under way on this loop."""
        here = asyncio.get_running_loop()
        tasks = [task for (loop, _, _), tasks in list(self._tasks.items()) if loop is here for task in tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _pulse(
        self, sign: "TypingSign", instance: InstanceConfig, recipient: str, *, earlier: frozenset[asyncio.Task[None]]
    ) -> None:
        if earlier:
            # Evolution still holds the last answer's pulse; its end would switch this sign off.
            await asyncio.wait(earlier)
        while sign.begin_pulse():
            # Beside the call, for a channel that answers at once instead of holding the call.
            pause = asyncio.ensure_future(self._sleep(PULSE_MS / _MS_PER_S))
            try:
                is_shown = await self._channel.send_presence(
                    instance, recipient, state="composing", duration_ms=PULSE_MS
                )
                if not is_shown:
                    sign.note_refused()
                    return
                await pause
            finally:
                pause.cancel()

    async def _clear(self, instance: InstanceConfig, recipient: str) -> None:
        await self._channel.send_presence(instance, recipient, state="paused", duration_ms=0)

    def _start(self, chat: _Place, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="omni-typing")
        self._tasks.setdefault(chat, set()).add(task)
        task.add_done_callback(partial(self._note_end, chat))

    def _note_end(self, chat: _Place, task: asyncio.Task[None]) -> None:
        tasks = self._tasks[chat]
        tasks.discard(task)
        if not tasks:
            del self._tasks[chat]
        if not task.cancelled() and (exc := task.exception()) is not None:
            # Channels answer False when they cannot; one that raises has a fault. The answer goes on without the sign.
            log.error("typing_sign_failed", extra=fault_facts(exc))


class TypingSign:
    """The sign of one answer: whether it is to be shown, and whether the reader may be seeing it now."""

    def __init__(self) -> None:
        self.is_visible = False
        self._is_stopped = False

    def note_message(self) -> None:
        """A message of the answer was accepted: WhatsApp takes the sign away when it arrives."""
        self.is_visible = False

    def note_refused(self) -> None:
        """The channel has no sign to show, or cannot show it now."""
        self.is_visible = False
        self._is_stopped = True

    def begin_pulse(self) -> bool:
        """Whether another pulse is wanted; from here on the reader may see the sign."""
        if not self._is_stopped:
            self.is_visible = True
        return not self._is_stopped

    def stop(self) -> None:
        """No further pulse; one under way ends by itself. Safe to call again."""
        self._is_stopped = True
