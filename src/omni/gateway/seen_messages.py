"""Remembers which inbound messages have been taken, so that a repeated webhook is told from a new one.

Evolution repeats a webhook that was not answered for up to half an hour, posts every event twice when an instance webhook and a global one
are set, and may bring the same message back from WhatsApp's own backlog much later.
"""

from collections import OrderedDict

from omni.clock import NS_PER_S, Clock

REPEAT_WINDOW_S = 24 * 3600
"""How long a message id is remembered."""
# Ids remembered at most; at 100 bytes each this is about 20 MB.
_MAX_REMEMBERED = 200_000


class SeenMessages:
    """(instance, message id) pairs of the last day, oldest first; bounded. On one event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen_ns: OrderedDict[tuple[str, str], int] = OrderedDict()

    def has(self, instance_name: str, message_id: str) -> bool:
        """Whether the message was taken within the window."""
        seen_ns = self._seen_ns.get((instance_name, message_id))
        return seen_ns is not None and self._clock.mono_ns() - seen_ns < REPEAT_WINDOW_S * NS_PER_S

    def add(self, instance_name: str, message_id: str) -> None:
        """Remember a message from now on."""
        now_ns = self._clock.mono_ns()
        self._seen_ns[instance_name, message_id] = now_ns
        self._seen_ns.move_to_end((instance_name, message_id))
        while self._seen_ns:
            oldest, seen_ns = next(iter(self._seen_ns.items()))
            if len(self._seen_ns) <= _MAX_REMEMBERED and now_ns - seen_ns < REPEAT_WINDOW_S * NS_PER_S:
                break
            del self._seen_ns[oldest]
