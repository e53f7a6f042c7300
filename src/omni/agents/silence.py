"""Gives up an agent that stays silent: too long before its first text, or too long between two reads.

A stream may rightly last minutes and has no heartbeat, so only silence is bounded, never the whole. One timer per answer looks now
and then whether the reader has waited too long; a read costs two attribute stores and no timer of its own. Time the
reader spends elsewhere is not the agent's silence.
"""

import asyncio
from collections.abc import Callable

from omni.errors import AgentTimeout, TimeoutKind

# How soon to look again when the limit has passed while the reader was busy elsewhere.
_LOOK_AGAIN_S = 0.05


class SilenceWatchdog:
    """Calls ``give_up`` once when the reader has waited too long; on the event loop only.

    The reader sets ``waiting_since`` to the loop's time before it waits and to None afterwards, and ``has_text`` once the agent has said
    something visible. ``deadline_s`` is the loop's time by which it must have, ``timeout_s`` bounds each silence after that.
    """

    __slots__ = ("_deadline_s", "_give_up", "_loop", "_timeout_s", "_timer", "expired", "has_text", "waiting_since")

    def __init__(self, give_up: Callable[[], object], *, deadline_s: float, timeout_s: float) -> None:
        self._give_up = give_up
        self._deadline_s = deadline_s
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self.waiting_since: float | None = None
        self.has_text = False
        self.expired: TimeoutKind | None = None
        self._timer = self._loop.call_at(deadline_s, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        since = self.waiting_since
        due = (now if since is None else since) + self._timeout_s if self.has_text else self._deadline_s
        if since is not None and now >= due:
            self.expired = "idle" if self.has_text else "first_token"
            self._give_up()
            return
        self._timer = self._loop.call_at(due if due > now else now + _LOOK_AGAIN_S, self._look)


def silence_error(kind: TimeoutKind, timeout_s: float) -> AgentTimeout:
    """The error for an agent that was given up."""
    when = "before its first text" if kind == "first_token" else "in the middle of its answer"
    return AgentTimeout(f"The agent was silent for {timeout_s:g} s {when}.", kind=kind, timeout_s=timeout_s)
