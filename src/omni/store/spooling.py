"""Decides where a record goes: into the database while that takes writes, into the local spool while it does not.

One ``StoreGate`` is shared by the writers of traces and of the ledger. The first write the database does not take closes the way to it
for both; from then on nobody waits for it but the gate's own thread, which tries it about once a second and moves what was spooled into
it, oldest first, when it is back. Trace batches keep their order: while one is spooled, new ones queue behind it. Ledger
operations carry versions and need none.

It loses nothing by itself: what neither takes is refused with a StoreError, and whoever offered it decides.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from omni.clock import NS_PER_S, Clock
from omni.errors import StoreError
from omni.ports import LedgerOp, WriteOp
from omni.store.draining import Drain, LedgerRows, RefusalListeners, TraceRows, faults_as_refusals
from omni.store.spool import Spool, SpoolError

log = logging.getLogger(__name__)

# How often a database that is away is tried. A try costs what one write may wait, in a thread where nobody waits for it.
_PROBE_S = 1.0
# A database that comes and goes is reported once in this many seconds.
_LOG_EVERY_NS = 60 * NS_PER_S
# Between two slices that are moved back, as a share of the time the slice took: what is written now comes through in between.
_PAUSE_SHARE = 0.5


class StoreGate:
    """The way into the database and into the spool, and who of them takes what now. Safe from any thread.

    ``probe`` writes something small to the database and raises StoreError when that cannot be done.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        traces: TraceRows,
        ledger: LedgerRows,
        probe: Callable[[], object],
        clock: Clock,
    ) -> None:
        self._spool = spool
        self._traces = traces
        self._ledger = ledger
        self._probe = probe
        self._clock = clock
        self._drain = Drain(spool, traces=traces, ledger=ledger)
        self._is_up = True
        self._last_log_ns: int | None = None
        self._is_told = False
        self._has_work = threading.Event()
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_database_up(self) -> bool:
        """Whether the database took the last write that was tried."""
        return self._is_up

    @property
    def sheds_chunks(self) -> bool:
        """Whether so much waits in the spool that bodies of chunks should be left out of what is still to come."""
        return self._spool.sheds_chunks

    @property
    def num_spooled(self) -> int:
        """Entries that wait in the spool."""
        return self._spool.num_entries

    @property
    def spool_bytes(self) -> int:
        """Bytes that wait in the spool."""
        return self._spool.size_bytes

    @property
    def num_lost(self) -> int:
        """Entries that could not be read, and what the database refused for good when it came from the spool and nobody listens."""
        return self._drain.num_lost + self._drain.num_unreadable

    def report_refusals(self, listeners: RefusalListeners) -> None:
        """Say who counts what is refused for good. Call it before ``start``."""
        self._drain.listeners = listeners

    def start(self) -> None:
        """Start the thread that tries the database and moves what was spooled. Calling it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="omni-spool", daemon=True)
            self._thread.start()

    def stop(self, *, deadline_s: float = 5.0) -> bool:
        """End the thread and close the spool; True when nothing is left in it. What is left stays there for the next start."""
        self._is_stopping.set()
        self._has_work.set()
        thread = self._thread
        if thread is not None:
            thread.join(deadline_s)
            if thread.is_alive():
                return False
            self._thread = None
        until_ns = self._clock.mono_ns() + int(deadline_s * NS_PER_S)
        while self._is_up and not self._spool.is_empty and self._clock.mono_ns() < until_ns:
            self.tend()
        is_empty = self._spool.discard_if_empty()
        self._spool.close()
        return is_empty

    def tend(self) -> bool:
        """Try the database and move one slice of what was spooled; True when there is nothing more to do now. Blocks.

        What the gate's thread does, one step at a time.
        """
        try:
            if not self._move_slice() and not self._is_up:
                with faults_as_refusals():
                    self._probe()
        except StoreError as exc:
            self._note_down(exc)
            return False
        self._note_up()
        return self._spool.discard_if_empty()

    def store_traces(self, ops: Sequence[WriteOp], *, batch_no: int) -> None:
        """Store one trace batch. Only one thread may offer batches.

        Raises StoreError: retryable when neither database nor spool takes it now, otherwise the database refused it for good.
        """
        # An entry stays in the spool until it is committed, so none means that everything earlier is in the database.
        if self._is_up and self._spool.num_traces == 0:
            try:
                with faults_as_refusals():
                    self._traces.write(ops, batch_no=batch_no)
            except StoreError as exc:
                if not exc.retryable:
                    raise
                self._note_down(exc)
            else:
                return
        self._spool.append_traces(ops, batch_no=batch_no)
        self._has_work.set()

    def store_ledger(self, ops: Sequence[LedgerOp]) -> list[bool]:
        """Store ledger operations; for each whether it was new, True where only the spool has it. Raises as ``store_traces``."""
        if self._is_up:
            try:
                with faults_as_refusals():
                    return self._ledger.write(ops)
            except StoreError as exc:
                if not exc.retryable:
                    raise
                self._note_down(exc)
        self._spool.append_ledger(ops)
        self._has_work.set()
        return [True] * len(ops)

    def _move_slice(self) -> bool:
        try:
            return self._drain.move_some()
        except SpoolError as exc:
            # Says nothing about the database. What cannot be read now stays, and is tried again.
            self._log("spool_unreadable", exc)
            return False

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._has_work.wait()
            self._has_work.clear()
            while not self._is_stopping.is_set():
                began_ns = self._clock.mono_ns()
                num_before = self._spool.num_entries
                if self.tend():
                    break
                has_moved = self._is_up and self._spool.num_entries < num_before
                took_s = (self._clock.mono_ns() - began_ns) / NS_PER_S
                self._is_stopping.wait(took_s * _PAUSE_SHARE if has_moved else _PROBE_S)

    def _note_down(self, exc: StoreError) -> None:
        self._is_up = False
        self._is_told = self._log("database_away", exc) or self._is_told
        self._has_work.set()

    def _note_up(self) -> None:
        self._is_up = True
        if self._is_told:
            self._is_told = False
            log.warning("database_back", extra={"num_spooled": self._spool.num_entries})

    def _log(self, what: str, exc: StoreError) -> bool:
        now_ns = self._clock.mono_ns()
        if self._last_log_ns is not None and now_ns - self._last_log_ns < _LOG_EVERY_NS:
            return False
        self._last_log_ns = now_ns
        log.error(what, extra={"cause": exc.sentence, "num_spooled": self._spool.num_entries})
        return True


class SpooledTraceSink:
    """The recorder's sink: numbers the batches and stores them through the gate. Use it from one thread."""

    def __init__(self, gate: StoreGate) -> None:
        self._gate = gate
        self._last_no = 0
        self._open: Sequence[WriteOp] | None = None

    def write(self, ops: Sequence[WriteOp]) -> None:
        """Store a batch. Raises StoreError: retryable when neither the database nor the spool takes it now.

        Such a batch must be offered again, as the same object and unchanged, before another is: it keeps its number then, for
        the database may have stored it although its answer was lost.
        """
        if not ops:
            return
        if ops is not self._open:
            self._last_no += 1
        self._open = ops
        try:
            self._gate.store_traces(ops, batch_no=self._last_no)
        except StoreError as exc:
            if exc.retryable:
                raise
            self._open = None
            raise
        self._open = None


class SpooledLedgerSink:
    """The ledger writer's sink: stores groups of operations through the gate."""

    def __init__(self, gate: StoreGate) -> None:
        self._gate = gate

    def write(self, ops: Sequence[LedgerOp]) -> list[bool]:
        """Store the operations; for each whether it was new, as far as is known. Raises StoreError."""
        return self._gate.store_ledger(ops)
