"""The recorder: takes events from any thread without waiting, and writes them from one thread of its own.

A context appends an event to its trace's journal; the journal joins the recorder's queue unless it is there already. The
writer thread takes what is queued every few milliseconds, turns it into rows and stores them in one transaction. It sits at the
end of a message's life and can neither break, delay nor change an answer: a store that hangs or fails costs records, never text.

What the store does not take at the moment is kept in memory and offered again, in order, up to a bound. What cannot be kept is
counted where it is missed, and nothing else is: chunks whose final record is not stored (``num_shed``) and rows that are not
(``num_lost``). The trace itself says so as soon as the store takes anything of it.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from itertools import count

from msgspec import Struct

from omni.clock import NS_PER_S, Clock, wall_datetime
from omni.errors import OmniError, StoreError
from omni.faults import fault_facts
from omni.ports import StoreTiers, TraceSink, WriteOp
from omni.settings import Settings
from omni.tracing.events import ChunkReceived, TraceEvent
from omni.tracing.held import HeldBatches, Part
from omni.tracing.journal import TraceJournal
from omni.tracing.loss_book import LossBook
from omni.tracing.losses import LossCount, loss_row
from omni.tracing.rows import RowPlanner

__all__ = ["Recorder", "RecorderCounts", "TraceJournal"]

log = logging.getLogger(__name__)

# Failures of one kind are logged once in this many seconds; the counts are exact all the same.
_LOG_EVERY_NS = 60 * NS_PER_S
# How soon it looks again whether losses go on, to log their totals when they do not.
_LOG_AGAIN_S = 1.0
# How long the writer waits before it offers a batch again: doubled from the first to the last.
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0
# How long a thread that is told to give up has to count what it loses.
_LAST_WORDS_S = 1.0
_BYTES_PER_MB = 1_000_000


class RecorderCounts(Struct, frozen=True, kw_only=True):
    """How the recorder is doing, at one moment.

    ``num_pending`` events nobody has looked at yet; ``num_shed`` chunks whose record is not kept; ``num_lost`` rows that are not;
    ``num_held`` batches in memory that the store has not taken, ``held_bytes`` about how much memory they need; ``num_spooled`` entries and
    ``spool_bytes`` bytes in the local spool. What is held or spooled is not lost: it waits for the database.
    """

    num_pending: int
    num_shed: int
    num_lost: int
    num_held: int
    held_bytes: int
    num_spooled: int
    spool_bytes: int
    is_database_up: bool


class Recorder:
    """Owns the writer thread. Start it, hand it to journals, stop it; stopping drains.

    ``tiers`` tells what the sink has behind it; without one the sink is all there is.
    """

    def __init__(self, sink: TraceSink, *, clock: Clock, settings: Settings, tiers: StoreTiers | None = None) -> None:
        self.settings = settings
        self._sink = sink
        self._clock = clock
        self._tiers = tiers
        self._queue: deque[TraceJournal] = deque()
        # Journals whose chunks wait for a later segment. A dictionary used as an ordered set, as below: a trace may have several
        # journals at a time, when a receipt comes while its answer is still being written.
        self._holding: dict[TraceJournal, None] = {}
        self._wake = threading.Event()
        self._written = threading.Condition()
        self._is_idle = False
        self._is_stopping = False
        self._is_given_up = False
        self._flush_wanted = 0
        self._flush_done = 0
        self._thread: threading.Thread | None = None
        self._flush_s = settings.trace_flush_ms / 1000
        self._spent_s = 0.0
        self._retry_s = _RETRY_FIRST_S
        self._retry_left_s = 0.0
        self._max_held_bytes = settings.trace_memory_max_mb * _BYTES_PER_MB
        self._losses = LossBook()
        self._held = HeldBatches(self._count_unkept)
        self._last_log_ns: int | None = None
        self._last_cause: str | None = None
        self._logged = (0, 0)
        self.max_pending = settings.trace_queue_events
        self.counter = count(1)
        self.num_appended = 0
        self.num_done = 0

    def start(self) -> None:
        """Start the writer thread. Calling it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="omni-recorder", daemon=True)
            self._thread.start()

    def stop(self, *, deadline_s: float = 10.0) -> bool:
        """Write what is there and end the thread; True when everything was written in time. Safe to call twice.

        What the store has not taken by then is counted as lost.
        """
        thread = self._thread
        if thread is None:
            return True
        self._is_stopping = True
        self._wake.set()
        thread.join(deadline_s)
        is_drained = not thread.is_alive()
        if not is_drained:
            self._is_given_up = True
            self._wake.set()
            thread.join(_LAST_WORDS_S)
        if not thread.is_alive():
            self._thread = None
        return is_drained

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
    def num_shed(self) -> int:
        """Chunks whose record is not kept, over all traces, exactly, from the start of the process."""
        return self._losses.num_shed

    @property
    def num_lost(self) -> int:
        """Rows that are not kept, counted as the chunks are."""
        return self._losses.num_lost

    @property
    def num_pending(self) -> int:
        """Events appended and not yet looked at, to within the few being appended this moment."""
        return max(self.num_appended - self.num_done, 0)

    def counts(self) -> RecorderCounts:
        """All figures at once. From any thread; never blocks on the store."""
        tiers = self._tiers
        return RecorderCounts(
            num_pending=self.num_pending,
            num_shed=self.num_shed,
            num_lost=self._loss_totals[1],
            num_held=len(self._held),
            held_bytes=self._held.size_bytes,
            num_spooled=0 if tiers is None else tiers.num_spooled,
            spool_bytes=0 if tiers is None else tiers.spool_bytes,
            is_database_up=not self._held if tiers is None else tiers.is_database_up,
        )

    def enqueue(self, journal: TraceJournal) -> None:
        """Queue a journal that has something new. Never blocks."""
        self._queue.append(journal)
        if self._is_idle:
            self._wake.set()

    def admits(self, journal: TraceJournal, event: TraceEvent) -> bool:
        """Whether an event is still kept while too much is waiting; counts it when not."""
        is_chunk = type(event) is ChunkReceived
        if not is_chunk and self.num_pending <= 2 * self.max_pending:
            return True
        self._losses.count(journal.losses, num_shed=is_chunk, num_lost=not is_chunk, is_unkept=False)
        return False

    def losses_of(self, trace_id: str, *, num_shed: int = 0, num_lost: int = 0) -> LossCount:
        """The count all journals of a trace share; a new one begins with what the stored trace says already."""
        return self._losses.of(trace_id, num_shed=num_shed, num_lost=num_lost)

    def note_refused(self, ops: Sequence[WriteOp]) -> None:
        """Count operations the sink had taken and then could not store after all; their traces will say so. From any thread."""
        self._losses.count_refused(ops)
        self._wake.set()
        if self._thread is None:  # stopped: nobody else will say so
            self._log_losses(is_shedding=False)

    def _run(self) -> None:
        while True:
            is_stopping, flush_wanted = self._is_stopping, self._flush_wanted
            began_ns = self._clock.mono_ns()
            is_whole = self._write_round(flush_now=is_stopping or flush_wanted > self._flush_done)
            self._spent_s = (self._clock.mono_ns() - began_ns) / NS_PER_S
            with self._written:
                if is_whole and not self._held:
                    self._flush_done = flush_wanted
                self._written.notify_all()
            if is_stopping and is_whole and not self._queue and (not self._held or self._is_given_up):
                break
            self._wait()
        self._held.lose_all()
        self._log_losses(is_shedding=False)

    def _wait(self) -> None:
        if self._held:
            self._wait_to_retry()
            return
        if not self._queue and not self._holding:
            self._is_idle = True
            # Looked at again after the flag is up: what was queued in between has not set the event.
            if not self._queue and not self._is_hurried:
                # Losses that were not logged yet, because they went on, are when they do no more.
                self._wake.wait(None if self._loss_totals == self._logged else _LOG_AGAIN_S)
                self._wake.clear()
            self._is_idle = False
            self._spent_s = 0.0
        if not self._is_hurried:
            # One transaction for what comes within it. Rounds begin at an even pace, however long the last one took.
            self._wake.wait(max(self._flush_s - self._spent_s, self._flush_s / 5))
            self._wake.clear()

    def _wait_to_retry(self) -> None:
        wait_s = min(self._flush_s, self._retry_left_s)
        # Woken early by somebody who waits for what is held: it is offered at once.
        is_woken = self._wake.wait(wait_s)
        self._wake.clear()
        self._retry_left_s = 0.0 if is_woken else self._retry_left_s - wait_s

    @property
    def _is_hurried(self) -> bool:
        return self._is_stopping or self._flush_wanted > self._flush_done

    def _write_round(self, *, flush_now: bool) -> bool:
        """Plan what is new and offer what waits; whether everything that was there has been planned."""
        sheds_chunks = self._tiers is not None and self._tiers.sheds_chunks
        self._losses.settle_refused()
        journals: dict[TraceJournal, None] = {}
        for _ in range(len(self._queue)):
            journal = self._queue.popleft()
            journal.is_queued = False
            journals[journal] = None
        now_ns = self._clock.mono_ns()
        # A running stream's chunks are in its journal; while they would only make a queue longer, they can stay there.
        is_whole = not self._held or self._is_given_up
        keeps_segments = is_whole and not sheds_chunks
        if keeps_segments:
            for journal in self._holding:
                if flush_now or _planner_of(journal).is_segment_due(now_ns):
                    journals[journal] = None
        parts: list[Part] = []
        num_read = 0
        for journal in journals:
            planner = _planner_of(journal)
            journal.is_held = False  # before reading: a chunk that comes from here on queues the journal again
            before = planner.num_read
            ops = self._plan(
                journal,
                planner,
                now_ns=now_ns,
                flush_now=flush_now,
                keeps_segments=keeps_segments,
                keeps_chunks=not sheds_chunks,
            )
            num_read += planner.num_read - before
            if planner.is_holding:
                self._holding[journal] = None
                journal.is_held = True
            else:
                self._holding.pop(journal, None)
            if ops:
                parts.append(Part(journal.losses, ops))
            if not journal.losses.is_open:
                self._losses.note_ended(journal.losses)
        if parts:
            self._held.add(parts)
        self._offer_held()
        if self._is_stopping and not self._held:
            self._tell_losses(is_last=True)
        while self._losses.has_due and not self._held:
            self._tell_losses(is_last=self._is_stopping)
        self.num_done += num_read
        self._log_losses(is_shedding=sheds_chunks or bool(self._held) or self.num_pending >= self.max_pending)
        return is_whole

    def _plan(
        self,
        journal: TraceJournal,
        planner: RowPlanner,
        *,
        now_ns: int,
        flush_now: bool,
        keeps_segments: bool,
        keeps_chunks: bool,
    ) -> list[WriteOp]:
        events = journal.events
        while True:
            before = planner.num_read
            try:
                ops = planner.plan(
                    events,
                    now_ns=now_ns,
                    flush_now=flush_now,
                    keeps_segments=keeps_segments,
                    keeps_chunks=keeps_chunks,
                )
            except Exception as exc:  # noqa: BLE001 - tracing may lose a record, never an answer (docs/decisions/0006-broad-excepts.md)
                self._count_unkept(journal.losses, planner.num_shed, 1)
                self._last_cause = type(exc).__name__
                log.debug("trace_event_not_planned", extra=fault_facts(exc))
                if planner.num_read == before:  # it is no event that cannot be planned; the next round begins afresh
                    planner.skip_to(len(events))
                    return []
            else:
                if planner.num_shed:
                    self._count_unkept(journal.losses, planner.num_shed, 0)
                return ops

    def _offer_held(self) -> None:
        """Offer batches in order until all are stored or the store does not take the next one now."""
        while self._held and self._retry_left_s <= 0:
            error = self._try_write(self._held.offer_head())
            if error is None:
                self._held.drop_head()
                self._retry_s = _RETRY_FIRST_S
                continue
            self._last_cause = error.sentence if isinstance(error, OmniError) else type(error).__name__
            if isinstance(error, StoreError) and error.retryable:
                self._retry_left_s = self._retry_s
                self._retry_s = min(self._retry_s * 2, _RETRY_LAST_S)
            else:
                # One trace's bad row must not cost the others theirs, nor a trace its other rows.
                self._held.split_head()
        if self._held:
            self._held.fit(self._max_held_bytes)

    def _try_write(self, ops: Sequence[WriteOp]) -> Exception | None:
        try:
            self._sink.write(ops)
        except Exception as exc:  # noqa: BLE001 - as above: a broken sink must not end the writer
            return exc
        return None

    def _count_unkept(self, losses: LossCount, num_chunks: int, num_rows: int) -> None:
        """Count chunks that the journal holds and the store will not, and rows."""
        self._losses.count(losses, num_shed=num_chunks, num_lost=num_rows)

    def _tell_losses(self, *, is_last: bool) -> None:
        """All else is stored: bring back rows of traces that were refused, and put counts on traces that do not have them yet."""
        parts: list[Part] = []
        at = wall_datetime(self._clock.wall_ns())
        for losses in self._losses.take_due(is_last=is_last):
            ops: list[WriteOp] = []
            if not losses.is_told and (is_last or not losses.is_open):
                ops.append(loss_row(losses.trace_id, at=at, num_shed=losses.num_shed, num_lost=losses.num_lost))
            parts.append(Part(losses, ops))
        if parts:
            self._held.add(parts)
            self._offer_held()

    @property
    def _loss_totals(self) -> tuple[int, int]:
        """Chunks and rows that are not kept; what a damaged spool lost counts as rows of traces nobody can name."""
        return self.num_shed, self.num_lost + (0 if self._tiers is None else self._tiers.num_lost)

    def _log_losses(self, *, is_shedding: bool) -> None:
        """Say what is not kept: at first, once a minute while it goes on, and the exact totals when it is over."""
        totals = self._loss_totals
        if totals == self._logged:
            return
        now_ns = self._clock.mono_ns()
        is_recent = self._last_log_ns is not None and now_ns - self._last_log_ns < _LOG_EVERY_NS
        if is_recent and is_shedding:
            return
        self._last_log_ns, self._logged = now_ns, totals
        log.error(
            "trace_records_lost",
            extra={"num_shed_total": totals[0], "num_lost_total": totals[1], "cause": self._last_cause},
        )


def _planner_of(journal: TraceJournal) -> RowPlanner:
    assert journal.planner is not None  # only journals with a recorder are queued
    return journal.planner
