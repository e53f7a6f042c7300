"""The ledger's writer: takes operations from event loops and makes them durable, many with one commit.

``put`` hands an operation to a thread and returns a future. The thread takes all that waits, stores it in one transaction and wakes the
loops; what comes meanwhile is the next group. So a commit is shared by as many as there are, and a single operation waits for
nobody. Encoding and SQL happen in the thread, never on a loop.

It refuses at once when too much waits: who hears no is better off than who waits for longer than his caller does. What nobody will
bring again, because the message it tells of is on its way, is kept in memory while neither database nor spool takes it, the newest
version of each row, up to a bound. It is offered again behind the next group that is stored, and every second.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Protocol

from msgspec import Struct

from omni.clock import NS_PER_S, Clock
from omni.errors import StoreError
from omni.ports import LedgerOp, PutInbound, PutOutbound, PutReceipt
from omni.settings import Settings
from omni.store.draining import faults_as_refusals
from omni.tracing.losses import memory_bytes

log = logging.getLogger(__name__)

# Operations of one transaction: as many as are stored in some ten milliseconds.
_GROUP_SIZE = 500
# Posts that failed are reported once in this many seconds; the count is exact all the same.
_LOG_EVERY_NS = 60 * NS_PER_S
# How often rows that are kept are offered again while nothing else is stored.
_OFFER_AGAIN_S = 1.0
# Memory for rows that are kept: a thousand bytes each, as long as nobody writes novels.
_MAX_KEPT_BYTES = 16_000_000
# Each waiting message has a few operations under way: stored, queued, sending, sent.
_WAITING_PER_MESSAGE = 4


class LedgerSink(Protocol):
    """Where the writer's thread puts what it has."""

    def write(self, ops: Sequence[LedgerOp]) -> list[bool]:
        """Make all operations durable, or none; for each whether it was new. Blocks; raises StoreError."""
        ...


class LedgerWriter:
    """A ``Ledger`` on a sink that blocks. Start it before the first operation; stopping stores what waits.

    ``num_failed`` counts operations that were not stored and are not kept either: who waited for one was told.
    """

    def __init__(
        self, sink: LedgerSink, *, clock: Clock, settings: Settings, offer_again_s: float = _OFFER_AGAIN_S
    ) -> None:
        self._sink = sink
        self._offer_again_s = offer_again_s
        self._clock = clock
        self._max_waiting = settings.inbox_max_waiting * _WAITING_PER_MESSAGE
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_open = False
        self._gate = threading.Lock()
        self._last_log_ns: int | None = None
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._kept_bytes = 0
        self._is_catching_up = False
        self._is_given_up = False
        self.num_failed = 0

    @property
    def num_waiting(self) -> int:
        """Operations that are not in a transaction yet."""
        return self._queue.qsize()

    @property
    def num_kept(self) -> int:
        """Rows in memory that neither database nor spool took yet."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """About how much memory they need."""
        return self._kept_bytes

    def start(self) -> None:
        """Start the thread. Calling it again does nothing."""
        if self._thread is None:
            self._is_open = True
            self._thread = threading.Thread(target=self._run, name="omni-ledger", daemon=True)
            self._thread.start()

    def stop(self, *, deadline_s: float = 5.0) -> bool:
        """Store what waits and end the thread; True when that was done in time. What is put afterwards is refused. Blocks.

        What the store does not take any more is counted as failed.
        """
        thread = self._thread
        if thread is None:
            return True
        with self._gate:
            if self._is_open:
                self._is_open = False
                self._queue.put(None)
        thread.join(deadline_s)
        if thread.is_alive():
            self._is_given_up = True
            self._refuse_waiting()
            return False
        self._thread = None
        return True

    def put(self, op: LedgerOp) -> asyncio.Future[bool]:
        """Store one operation; the future is done when it would survive the process. On an event loop; never blocks.

        Its result is False for a repeat. It raises StoreError when neither the database nor the spool could take it, and when
        too much waits already.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._enqueue(_Waiting(op, future))
        return future

    def post(self, op: LedgerOp) -> None:
        """Store one operation for a caller who does not wait. From any thread; never blocks, never raises."""
        self._enqueue(_Waiting(op, None))

    def note_refused(self, num_refused: int) -> None:
        """Count operations the spool had taken and the database then refused for good. From any thread."""
        self._note_failed(num_refused, StoreError("The database refused what came from the spool."))

    def _enqueue(self, waiting: "_Waiting") -> None:
        # The lock is held for a moment only, and keeps anything from being put behind the end of the queue.
        with self._gate:
            if self._is_open and self._queue.qsize() < self._max_waiting:
                self._queue.put(waiting)
                return
        error = StoreError(
            "Too many records wait to be stored." if self._is_open else "The ledger is closed.", retryable=True
        )
        self._note_failed(1, error)
        if waiting.future is not None:
            waiting.future.set_exception(error)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            group, is_last = self._next_group()
            is_stored = True
            if group:
                verdicts = self._store(group)
                _wake(group, verdicts)
                is_stored = not any(isinstance(verdict, StoreError) and verdict.retryable for verdict in verdicts)
            if self._kept and is_stored:
                self._offer_kept(is_last=is_last)
        self._lose_kept()

    def _next_group(self) -> "tuple[list[_Waiting], bool]":
        """What waits, and whether it is the last; empty when it is time to offer again what is kept."""
        group: list[_Waiting] = []
        try:
            pause_s = 0.0 if self._is_catching_up else self._offer_again_s
            waiting = self._queue.get(timeout=pause_s if self._kept else None)
            while waiting is not None:
                group.append(waiting)
                if len(group) == _GROUP_SIZE:
                    return group, False
                waiting = self._queue.get_nowait()
        except Empty:
            return group, False
        return group, True

    def _store(self, group: "Sequence[_Waiting]") -> "list[bool | StoreError]":
        try:
            return list(self._write([waiting.op for waiting in group]))
        except StoreError as exc:
            if exc.retryable or len(group) == 1:
                self._note_failed(sum(not (exc.retryable and self._keep(waiting)) for waiting in group), exc)
                return [exc] * len(group)
        # One of them cannot be stored; the others need not suffer for it.
        return [verdict for waiting in group for verdict in self._store([waiting])]

    def _write(self, ops: Sequence[LedgerOp]) -> Sequence[bool]:
        with faults_as_refusals():
            return self._sink.write(ops)

    def _keep(self, waiting: "_Waiting") -> bool:
        """Keep what nobody brings again; False for what the one who waits will bring again, or when too much is kept."""
        op = waiting.op
        if waiting.future is not None and not isinstance(op, PutOutbound):
            return False
        key = _identity(op)
        known = self._kept.get(key)
        if known is not None and known.op.record.version >= op.record.version:
            return True
        size_bytes = memory_bytes([op])
        grown_bytes = size_bytes - (0 if known is None else known.size_bytes)
        if self._kept_bytes + grown_bytes > _MAX_KEPT_BYTES:
            return False
        self._kept[key] = _Kept(op, size_bytes)
        self._kept_bytes += grown_bytes
        return True

    def _offer_kept(self, *, is_last: bool) -> None:
        """Offer what is kept: one portion between two groups, all of it at the end, until the store does not take it."""
        self._is_catching_up = True
        while self._kept and self._is_catching_up and not self._is_given_up:
            self._is_catching_up = self._is_portion_stored(list(islice(self._kept, _GROUP_SIZE)))
            if not is_last:
                return

    def _is_portion_stored(self, keys: Sequence[tuple[str, ...]]) -> bool:
        try:
            self._write([self._kept[key].op for key in keys])
        except StoreError as exc:
            if exc.retryable:
                return False
            if len(keys) > 1:  # one of them cannot be stored; the others need not suffer for it
                return all(self._is_portion_stored([key]) for key in keys)
            self._note_failed(1, exc)
        for key in keys:
            self._kept_bytes -= self._kept.pop(key).size_bytes
        return True

    def _lose_kept(self) -> None:
        num_lost = len(self._kept)
        self._kept, self._kept_bytes = {}, 0
        self._note_failed(num_lost, StoreError("The ledger was stopped before this was stored.", retryable=True))

    def _refuse_waiting(self) -> None:
        left: list[_Waiting] = []
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                break
            if waiting is not None:
                left.append(waiting)
        error = StoreError("The ledger was stopped before this was stored.", retryable=True)
        self._note_failed(len(left), error)
        _wake(left, [error] * len(left))
        self._queue.put(None)

    def _note_failed(self, num_failed: int, error: StoreError) -> None:
        if not num_failed:
            return
        with self._gate:
            self.num_failed += num_failed
            now_ns = self._clock.mono_ns()
            if self._last_log_ns is not None and now_ns - self._last_log_ns < _LOG_EVERY_NS:
                return
            self._last_log_ns = now_ns
        log.error("ledger_write_failed", extra={"num_failed_total": self.num_failed, "cause": error.sentence})


class _Kept(Struct, frozen=True):
    """An operation in memory, and about how much of that it needs."""

    op: LedgerOp
    size_bytes: int


class _Waiting:
    """An operation and who waits for it."""

    __slots__ = ("future", "op")

    def __init__(self, op: LedgerOp, future: asyncio.Future[bool] | None) -> None:
        self.op = op
        self.future = future


def _identity(op: LedgerOp) -> tuple[str, ...]:
    match op:
        case PutInbound():
            return "inbox", op.record.instance_name, op.record.message_id
        case PutOutbound():
            return "outbox", op.record.message_uid
        case PutReceipt():
            return "receipts", op.record.instance_name, op.record.key_id, op.record.status


_Verdicts = list[tuple[asyncio.Future[bool], bool | StoreError]]


def _wake(group: Sequence[_Waiting], verdicts: Sequence[bool | StoreError]) -> None:
    """Settle the futures, each on its own loop, with one call per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, _Verdicts] = {}
    for waiting, verdict in zip(group, verdicts, strict=True):
        if waiting.future is not None:
            by_loop.setdefault(waiting.future.get_loop(), []).append((waiting.future, verdict))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, settled)
        except RuntimeError:
            # The loop was closed: nobody waits any more, and the record is stored or counted all the same.
            log.debug("ledger_waiters_gone", extra={"num_waiters": len(settled)})


def _settle(settled: _Verdicts) -> None:
    for future, verdict in settled:
        if future.done():
            continue  # cancelled
        if isinstance(verdict, StoreError):
            future.set_exception(verdict)
        else:
            future.set_result(verdict)
