"""The recorder: takes events from any thread without waiting, and writes them from one thread of its own.

A context appends an event to its trace's journal; the journal joins the recorder's queue unless it is there already. The
writer thread takes what is queued every few milliseconds, turns it into rows and stores them in one transaction. It sits at the
end of a message's life and can neither break, delay nor change an answer: a store that hangs or fails costs records, never text.

What cannot be kept is counted where it is missed. While more than ``max_pending`` events wait, records of chunks are shed and
counted on their trace; headers, endings and messages are kept up to twice that number. A trace's rows that the store refuses for
good are counted too, and the count is written into the trace as soon as the store takes anything of it again.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from itertools import count

from omni.clock import NS_PER_S, Anchor, Clock
from omni.errors import OmniError, StoreError
from omni.ports import TraceSink, WriteOp
from omni.settings import Settings
from omni.tracing.events import ChunkReceived, TraceEvent
from omni.tracing.rows import RowPlanner

log = logging.getLogger(__name__)

# Failures of one kind are logged once in this many seconds; the counts are exact all the same.
_LOG_EVERY_NS = 60 * NS_PER_S
# How long the writer waits before it tries a failing store again: doubled from the first to the last.
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 2.0
# Tries of one batch before its traces are tried one by one; passing failures (a lock) are usually over by then.
_BATCH_TRIES = 8


class TraceJournal:
    """The events of one trace, in memory, and how far the writer has come with them.

    Appending is safe from any thread; order is that of the calls. ``num_shed`` counts chunk records that were not kept,
    ``num_lost`` rows the store refused.
    """

    __slots__ = (
        "_recorder",
        "anchor",
        "events",
        "is_held",
        "is_queued",
        "num_lost",
        "num_shed",
        "planner",
        "trace_id",
    )

    def __init__(self, trace_id: str, anchor: Anchor, recorder: "Recorder | None") -> None:
        self.trace_id = trace_id
        self.anchor = anchor
        self.events: list[TraceEvent] = []
        self.num_shed = 0
        self.num_lost = 0
        self.is_queued = False
        self.is_held = False
        self._recorder = recorder
        self.planner: RowPlanner | None = None if recorder is None else recorder.planner_for(self)

    def append(self, event: TraceEvent) -> None:
        """Keep one event. Never blocks, never raises; a few hundred nanoseconds."""
        recorder = self._recorder
        if recorder is None:
            self.events.append(event)
            return
        if recorder.num_appended - recorder.num_done >= recorder.max_pending and not recorder.admits(event):
            self.num_shed += type(event) is ChunkReceived
            return
        self.events.append(event)
        recorder.num_appended = next(recorder.counter)
        if not self.is_queued and not (self.is_held and type(event) is ChunkReceived):
            # A held journal is read when its segment is due; a chunk that joins it is no reason to look earlier.
            # Set before queueing and cleared by the writer before it reads: an event is never left behind.
            self.is_queued = True
            recorder.enqueue(self)


class Recorder:
    """Owns the writer thread. Start it, hand it to journals, stop it; stopping drains.

    ``num_shed`` counts events not kept because too many waited, ``num_lost`` rows the store refused, both over all traces.
    """

    def __init__(self, sink: TraceSink, *, clock: Clock, settings: Settings) -> None:
        self._sink = sink
        self._clock = clock
        self._settings = settings
        self._queue: deque[TraceJournal] = deque()
        self._holding: dict[str, TraceJournal] = {}
        self._wake = threading.Event()
        self._written = threading.Condition()
        self._is_idle = False
        self._is_stopping = False
        self._flush_wanted = 0
        self._flush_done = 0
        self._thread: threading.Thread | None = None
        self._flush_s = settings.trace_flush_ms / 1000
        self.max_pending = settings.trace_queue_events
        self.num_done = 0
        self._last_log_ns: int | None = None
        self.counter = count(1)
        self.num_appended = 0
        self.num_shed = 0
        self.num_lost = 0

    def planner_for(self, journal: TraceJournal) -> RowPlanner:
        """The planner that turns this journal's events into rows."""
        return RowPlanner(journal.trace_id, journal.anchor, settings=self._settings)

    def start(self) -> None:
        """Start the writer thread. Calling it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="omni-recorder", daemon=True)
            self._thread.start()

    def stop(self, *, deadline_s: float = 10.0) -> bool:
        """Write what is there and end the thread; True when everything was written in time. Safe to call twice."""
        thread = self._thread
        if thread is None:
            return True
        self._is_stopping = True
        self._wake.set()
        thread.join(deadline_s)
        if thread.is_alive():
            return False
        self._thread = None
        return True

    def flush(self, *, deadline_s: float = 5.0) -> bool:
        """Wait until everything appended before this call is stored; False when that takes too long. Blocks."""
        if self._thread is None:
            return not self._queue
        with self._written:
            self._flush_wanted += 1
            wanted = self._flush_wanted
            self._wake.set()
            return self._written.wait_for(lambda: self._flush_done >= wanted, deadline_s)

    @property
    def num_pending(self) -> int:
        """Events appended and not yet written, to within the few being appended this moment."""
        return max(self.num_appended - self.num_done, 0)

    def enqueue(self, journal: TraceJournal) -> None:
        """Queue a journal that has something new. Never blocks."""
        self._queue.append(journal)
        if self._is_idle:
            self._wake.set()

    def admits(self, event: TraceEvent) -> bool:
        """Whether an event is still kept while too much is waiting; counts it when not."""
        if type(event) is not ChunkReceived and self.num_pending <= 2 * self.max_pending:
            return True
        self.num_shed += 1
        return False

    def _run(self) -> None:
        while True:
            is_stopping, flush_wanted = self._is_stopping, self._flush_wanted
            self._write_round(flush_now=is_stopping or flush_wanted > self._flush_done)
            with self._written:
                self._flush_done = flush_wanted
                self._written.notify_all()
            if is_stopping and not self._queue:
                return
            self._wait()

    def _wait(self) -> None:
        if not self._queue and not self._holding:
            self._is_idle = True
            # Looked at again after the flag is up: what was queued in between has not set the event.
            if not self._queue and not self._is_hurried:
                self._wake.wait()
                self._wake.clear()
            self._is_idle = False
        if not self._is_hurried:
            self._wake.wait(self._flush_s)  # one transaction for what comes within it
            self._wake.clear()

    @property
    def _is_hurried(self) -> bool:
        return self._is_stopping or self._flush_wanted > self._flush_done

    def _write_round(self, *, flush_now: bool) -> None:
        journals: dict[str, TraceJournal] = {}
        for _ in range(len(self._queue)):
            journal = self._queue.popleft()
            journal.is_queued = False
            journals[journal.trace_id] = journal
        now_ns = self._clock.mono_ns()
        for trace_id, journal in self._holding.items():
            if flush_now or _planner_of(journal).is_segment_due(now_ns):
                journals.setdefault(trace_id, journal)
        ops_by_trace: list[tuple[TraceJournal, list[WriteOp]]] = []
        num_read = 0
        for journal in journals.values():
            planner = _planner_of(journal)
            journal.is_held = False  # before reading: a chunk that comes from here on queues the journal again
            before = planner.num_read
            ops = self._plan(journal, planner, now_ns=now_ns, flush_now=flush_now)
            num_read += planner.num_read - before
            if planner.is_holding:
                self._holding[journal.trace_id] = journal
                journal.is_held = True
            else:
                self._holding.pop(journal.trace_id, None)
            if ops:
                ops_by_trace.append((journal, ops))
        if ops_by_trace:
            self._store(ops_by_trace)
        self.num_done += num_read

    def _plan(self, journal: TraceJournal, planner: RowPlanner, *, now_ns: int, flush_now: bool) -> list[WriteOp]:
        events = journal.events
        while True:
            before = planner.num_read
            try:
                return planner.plan(
                    events, now_ns=now_ns, flush_now=flush_now, num_shed=journal.num_shed, num_lost=journal.num_lost
                )
            except Exception as exc:  # noqa: BLE001 - tracing may lose a record, never an answer (docs/decisions/0006-broad-excepts.md)
                self._count_loss(journal, 1, exc)
                if planner.num_read == before:  # it is no event that cannot be planned; the next round begins afresh
                    planner.skip_to(len(events))
                    return []

    def _store(self, ops_by_trace: list[tuple[TraceJournal, list[WriteOp]]]) -> None:
        batch = [op for _, ops in ops_by_trace for op in ops]
        if self._try_write(batch, tries=_BATCH_TRIES) is None:
            for journal, _ in ops_by_trace:
                _planner_of(journal).confirm_stored()
            return
        # One trace's bad row must not cost the others theirs.
        for journal, ops in ops_by_trace:
            error = self._try_write(ops, tries=1)
            if error is None:
                _planner_of(journal).confirm_stored()
            else:
                self._count_loss(journal, len(ops), error)

    def _try_write(self, ops: Sequence[WriteOp], *, tries: int) -> BaseException | None:
        wait_s = _RETRY_FIRST_S
        error: BaseException | None = None
        for attempt in range(tries):
            try:
                self._sink.write(ops)
            except StoreError as exc:
                error = exc
                if not exc.retryable:
                    return error
            except Exception as exc:  # noqa: BLE001 - as above: a broken sink must not end the writer
                return exc
            else:
                return None
            if attempt + 1 < tries and not self._is_stopping:
                self._pause(wait_s)
                wait_s = min(wait_s * 2, _RETRY_LAST_S)
        return error

    def _pause(self, wait_s: float) -> None:
        with self._written:
            self._written.wait(wait_s)

    def _count_loss(self, journal: TraceJournal, num_rows: int, error: BaseException) -> None:
        journal.num_lost += num_rows
        self.num_lost += num_rows
        now_ns = self._clock.mono_ns()
        if self._last_log_ns is None or now_ns - self._last_log_ns >= _LOG_EVERY_NS:
            self._last_log_ns = now_ns
            kind = error.sentence if isinstance(error, OmniError) else type(error).__name__
            log.error("trace_rows_lost", extra={"num_lost_total": self.num_lost, "cause": kind})


def _planner_of(journal: TraceJournal) -> RowPlanner:
    assert journal.planner is not None  # only journals with a recorder are queued
    return journal.planner
