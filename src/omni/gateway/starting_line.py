"""Lets a crowd of turns begin one by one, behind the webhooks that bring them and between everything else the loop has to do.

Beginning a turn costs about a millisecond of CPU: a request to the agent, the typing sign. Two hundred in one round of the event loop held
up every running answer, and the acknowledgement of every further webhook, for a quarter of a second. So while a crowd of
webhooks comes in, turns wait until it is quiet, but never long; then one begins per round of the loop. The crowd as a whole is served
no later, and a few turns that arrive together do not wait at all.

Runs on the event loop only.
"""

import asyncio
from collections import deque

QUIET_S = 0.002
"""Arrivals closer to each other than this come together; a look at whether more are coming is taken this often."""

NUM_FREE = 8
"""As many that come together begin at once: less than ten milliseconds of work. More are a crowd."""

MAX_HOLD_S = 0.1
"""Longest a turn is held back for webhooks that go on coming."""


class StartingLine:
    """Passed by one waiter after the other, in the order they came."""

    def __init__(self) -> None:
        self._places: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._last_arrival_s = float("-inf")
        self._num_together = 0

    async def wait(self) -> None:
        """Return at once when there is no crowd, else when it is this caller's turn. Safe to cancel."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._num_together = self._num_together + 1 if now_s - self._last_arrival_s < QUIET_S else 1
        self._last_arrival_s = now_s
        if self._num_together <= NUM_FREE and not self._places:
            return
        place = loop.create_future()
        self._places.append((now_s, place))
        if len(self._places) == 1:
            loop.call_later(QUIET_S, self._let_pass)
        await place

    def _let_pass(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        since_s, place = self._places[0]
        if now_s - self._last_arrival_s < QUIET_S and now_s - since_s < MAX_HOLD_S:
            loop.call_later(QUIET_S, self._let_pass)
            return
        if not place.done():  # done is one whose turn was cancelled while it waited
            place.set_result(None)
        del self._places[0]
        if self._places:
            loop.call_soon(self._let_pass)
