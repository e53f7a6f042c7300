"""The journal of one trace: its events in memory, in the order they happened, and how far the recorder has come with them.

Appending is all the hot path does. Without a recorder (tracing switched off) the events stay in memory only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omni.clock import Anchor
from omni.tracing.events import ChunkReceived, FirstTokenSeen, TraceEvent
from omni.tracing.losses import LossCount
from omni.tracing.rows import RowPlanner

if TYPE_CHECKING:
    from omni.tracing.recorder import Recorder


class TraceJournal:
    """The events of one trace, in memory, and how far the writer has come with them.

    Appending is safe from any thread; order is that of the calls. The journal of a trace that is taken up again begins with
    ``stored_events``, which are in the database; ``has_segments`` says that chunks of it are stored as segments of a running stream, and
    ``num_shed`` how many are known not to be; ``num_lost`` counts other rows of it that are not.
    """

    __slots__ = ("_recorder", "anchor", "events", "is_held", "is_queued", "losses", "planner", "trace_id")

    def __init__(
        self,
        trace_id: str,
        anchor: Anchor,
        recorder: "Recorder | None",
        *,
        stored_events: Sequence[TraceEvent] = (),
        has_segments: bool = False,
        num_shed: int = 0,
        num_lost: int = 0,
    ) -> None:
        self.trace_id = trace_id
        self.anchor = anchor
        self.events: list[TraceEvent] = list(stored_events)
        count = LossCount if recorder is None else recorder.losses_of
        self.losses: LossCount = count(trace_id, num_shed=num_shed, num_lost=num_lost)
        self.is_queued = False
        self.is_held = False
        self._recorder = recorder
        self.planner: RowPlanner | None = None
        if recorder is not None:
            self.planner = RowPlanner(
                trace_id,
                anchor,
                settings=recorder.settings,
                losses=self.losses,
                stored_events=stored_events,
                has_segments=has_segments,
            )

    @property
    def num_shed(self) -> int:
        """Chunks of the trace whose record is not kept."""
        return self.losses.num_shed

    def kept_events(self) -> list[TraceEvent]:
        """The events without the chunks whose record is not kept: what a reader of the stored trace sees.

        When they began is kept all the same: the stage that closes the stream says it.
        """
        events = list(self.events)
        if not self.losses.num_unkept:
            return events
        kept = [event for event in events if type(event) is not ChunkReceived]
        first = next((event for event in events if type(event) is ChunkReceived and event.text.strip()), None)
        if first is not None and not any(type(event) is FirstTokenSeen and event.content.strip() for event in kept):
            kept.append(FirstTokenSeen(mono_ns=first.mono_ns, content=first.text))
        return kept

    def append(self, event: TraceEvent) -> None:
        """Keep one event. Never blocks, never raises; a few hundred nanoseconds."""
        recorder = self._recorder
        if recorder is None:
            self.events.append(event)
            return
        if recorder.num_appended - recorder.num_done >= recorder.max_pending and not recorder.admits(self, event):
            return
        self.events.append(event)
        recorder.num_appended = next(recorder.counter)
        if not self.is_queued and not (self.is_held and type(event) is ChunkReceived):
            # A held journal is read when its segment is due; a chunk that joins it is no reason to look earlier.
            # Set before queueing and cleared by the writer before it reads: an event is never left behind.
            self.is_queued = True
            recorder.enqueue(self)
