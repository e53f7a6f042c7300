"""The recorder's book of losses: how much of which trace was not kept, over all traces, and which of them do not say so yet.

A trace has one count, however many journals write to it (a receipt comes on a journal of its own), so that what it says of itself are totals.
Counts are kept as long as somebody writes to the trace, and those that are not zero for longer, up to a bound: a row refused long after
the ending is told all the same.
"""

import threading
from collections.abc import Sequence
from weakref import WeakValueDictionary

from omni.ports import InsertTrace, WriteOp
from omni.tracing.losses import LossCount, num_chunks, num_rows, ops_by_trace, tells_losses

# Traces with losses whose counts are remembered although nobody writes to them any more, and those that may still have to tell: some
# hundred bytes each.
_MAX_REMEMBERED, _MAX_DUE = 4_000, 20_000


class LossBook:
    """Counts per trace and in all. Safe from any thread; never blocks for longer than an addition takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[str, LossCount] = WeakValueDictionary()
        self._remembered: dict[str, LossCount] = {}
        # What was refused by a thread other than the recorder's: trace, whether its own row, whether what it told.
        self._refused: list[tuple[LossCount, bool, bool]] = []
        # A dictionary used as an ordered set.
        self._due: dict[LossCount, None] = {}
        self.num_shed = 0
        self.num_lost = 0

    @property
    def has_due(self) -> bool:
        """Whether a trace may have something to tell."""
        return bool(self._due)

    def of(self, trace_id: str, *, num_shed: int = 0, num_lost: int = 0) -> LossCount:
        """The count of a trace; a new one begins with what the stored trace says already."""
        with self._lock:
            losses = self._known.get(trace_id)
            if losses is None:
                losses = self._known[trace_id] = LossCount(trace_id, num_shed=num_shed, num_lost=num_lost)
            else:
                losses.num_shed, losses.num_lost = max(losses.num_shed, num_shed), max(losses.num_lost, num_lost)
            return losses

    def count(self, losses: LossCount, *, num_shed: int, num_lost: int, is_unkept: bool = True) -> None:
        """Add to a trace's count and to the totals, and have the trace tell. ``is_unkept``: the journal still holds the chunks."""
        with self._lock:
            losses.num_shed += num_shed
            losses.num_unkept += num_shed if is_unkept else 0
            losses.num_lost += num_lost
            losses.is_mute = False
            self.num_shed += num_shed
            self.num_lost += num_lost
            self._due[losses] = None
            self._remembered[losses.trace_id] = losses
            for bounded, bound in ((self._due, _MAX_DUE), (self._remembered, _MAX_REMEMBERED)):
                if len(bounded) > bound:
                    del bounded[next(iter(bounded))]  # type: ignore[arg-type] # each its own

    def count_refused(self, ops: Sequence[WriteOp]) -> None:
        """Count operations that seemed to be stored and then were refused for good."""
        for trace_id, of_trace in ops_by_trace(ops).items():
            losses = self.of(trace_id)
            is_header = any(isinstance(op, InsertTrace) for op in of_trace)
            with self._lock:
                self._refused.append((losses, is_header, any(tells_losses(op) for op in of_trace)))
            self.count(losses, num_shed=num_chunks(of_trace), num_lost=num_rows(of_trace))

    def settle_refused(self) -> None:
        """Draw the conclusions from what was refused meanwhile. For the recorder's thread, which alone knows what it stored before."""
        if not self._refused:
            return
        with self._lock:
            refused, self._refused = self._refused, []
        for losses, is_header, is_telling in refused:
            losses.needs_header = losses.needs_header or is_header
            losses.told = (0, 0) if is_telling else losses.told

    def note_ended(self, losses: LossCount) -> None:
        """The trace's ending is on its way, and what is lost from here on it does not tell by itself."""
        if not losses.is_told:
            with self._lock:
                self._due[losses] = None

    def take_due(self, *, is_last: bool) -> list[LossCount]:
        """The traces whose stored row or counts are not what they should be, once each until there is more to tell.

        Those that are open tell with their ending, and are among them only when ``is_last``. For the recorder's thread.
        """
        self.settle_refused()
        with self._lock:
            looked_at = [*self._due, *self._remembered.values()] if is_last else list(self._due)
            self._due.clear()
        found: dict[LossCount, None] = {}
        for losses in looked_at:
            is_headless = losses.needs_header and losses.header is not None
            if (is_last or not losses.is_mute) and (
                is_headless or (not losses.is_told and (is_last or not losses.is_open))
            ):
                found[losses] = None
        return list(found)
