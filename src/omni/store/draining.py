"""Moves what a spool holds into the database, oldest first, a little at a time.

Ledger operations go first: they are few, and what they say decides about messages. A trace batch keeps its number, so one that was
stored before its process could forget it is passed over. What the database refuses for good is tried piece by piece; what is left over
then is counted, and told on its trace.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from msgspec import Struct

from omni.errors import StoreError
from omni.faults import fault_facts
from omni.ports import InsertPayload, LedgerOp, WriteOp
from omni.store.spool import Spool, SpoolEntry, SpoolKind
from omni.store.spool_codec import DamagedEntry, unpack_ledger_ops, unpack_trace_ops
from omni.tracing.losses import loss_row, num_chunks, num_rows, ops_by_trace, smallest_parts

log = logging.getLogger(__name__)

# One slice: small enough that what is written now hardly waits for what was written then.
_SLICE_ENTRIES, _SLICE_BYTES = 100, 256 * 1024

_Op = TypeVar("_Op")


class TraceRows(Protocol):
    """Stores numbered trace batches in the database."""

    def write(self, ops: Sequence[WriteOp], *, batch_no: int | None = None, process_id: str | None = None) -> None:
        """Apply all operations in one transaction, or none; nothing when the process's batch was applied before."""
        ...


class LedgerRows(Protocol):
    """Stores ledger operations in the database."""

    def write(self, ops: Sequence[LedgerOp]) -> list[bool]:
        """Apply all in one transaction, or none; for each whether it brought anything new."""
        ...


@contextmanager
def faults_as_refusals() -> Iterator[None]:
    """Raise StoreError, not retryable, for what should not have been raised inside the block; log where it came from."""
    try:
        yield
    except StoreError:
        raise
    except Exception as exc:
        # Whatever is wrong with one record, the thread that stores the others must live (docs/decisions/0006-broad-excepts.md).
        log.error("store_fault", extra=fault_facts(exc))  # noqa: TRY400 - a traceback can hold a message
        raise StoreError(f"Storing failed with {type(exc).__name__}.") from exc


class DrainReport(Struct, frozen=True, kw_only=True):
    """What became of a spool: entries moved, rows the database refused for good, entries that could not be read."""

    num_moved: int
    num_lost: int
    num_unreadable: int


class Drain:
    """Empties one spool. ``process_id`` names the process that filled it, None for our own."""

    def __init__(
        self,
        spool: Spool,
        *,
        traces: TraceRows,
        ledger: LedgerRows,
        process_id: str | None = None,
    ) -> None:
        self._spool = spool
        self._traces = traces
        self._ledger = ledger
        self._process_id = process_id
        self.num_moved = 0
        self.num_lost = 0
        self.num_damaged = 0

    @property
    def num_unreadable(self) -> int:
        """Entries that could not be read, for the file or for what is in them."""
        return self.num_damaged + self._spool.num_unreadable

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to move."""
        return self._spool.is_empty

    def move_some(self) -> bool:
        """Move one slice; False when nothing was left to move. Blocks.

        Raises StoreError, retryable, when the database or the spool's disk does not take it now; nothing is forgotten then.
        """
        return self._move_ledger() or self._move_traces()

    def move_all(self) -> DrainReport:
        """Move everything and delete the file. Raises as ``move_some``; calling it again goes on."""
        while self.move_some():
            pass
        self._spool.discard_if_empty()
        return DrainReport(num_moved=self.num_moved, num_lost=self.num_lost, num_unreadable=self.num_unreadable)

    def _move_ledger(self) -> bool:
        entries = self._spool.oldest("ledger", max_entries=_SLICE_ENTRIES, max_bytes=_SLICE_BYTES)
        ops = [op for entry in entries for op in self._read(entry, unpack_ledger_ops)]
        if ops:
            self._store_ledger(ops)
        return self._forget("ledger", entries)

    def _store_ledger(self, ops: Sequence[LedgerOp]) -> None:
        try:
            with faults_as_refusals():
                self._ledger.write(ops)
        except StoreError as exc:
            if exc.retryable:
                raise
            if len(ops) == 1:
                self._note_lost(1, exc)
                return
            for op in ops:
                self._store_ledger([op])

    def _move_traces(self) -> bool:
        entries = self._spool.oldest("trace", max_entries=1, max_bytes=_SLICE_BYTES)
        for entry in entries:
            ops = self._read(entry, unpack_trace_ops)
            if ops:
                self._store_batch(ops, entry.batch_no)
        return self._forget("trace", entries)

    def _store_batch(self, ops: Sequence[WriteOp], batch_no: int | None) -> None:
        try:
            self._write(ops, batch_no)
        except StoreError as exc:
            if exc.retryable:
                raise
            for of_trace in ops_by_trace(ops).values():
                self._store_pieces(of_trace)

    def _store_pieces(self, ops: Sequence[WriteOp]) -> None:
        """Store what the database takes of one trace.

        Pieces have no number: dying here, with a batch it refused, may store some of them twice.
        """
        lost: list[WriteOp] = []
        for piece in smallest_parts(ops):
            try:
                self._write(piece, None)
            except StoreError as exc:
                if exc.retryable:
                    raise
                lost += piece
                self._note_lost(num_rows(piece), exc)
        times = [op.timestamp for op in lost if isinstance(op, InsertPayload)]
        if not times or len(lost) == len(ops):
            return
        told = loss_row(ops[0].trace_id, at=times[-1], num_shed=num_chunks(lost), num_lost=num_rows(lost))
        try:
            self._write([told], None)
        except StoreError as exc:
            if exc.retryable:
                raise
            self._note_lost(0, exc)

    def _write(self, ops: Sequence[WriteOp], batch_no: int | None) -> None:
        with faults_as_refusals():
            self._traces.write(ops, batch_no=batch_no, process_id=self._process_id)

    def _read(self, entry: SpoolEntry, unpack: Callable[[bytes], list[_Op]]) -> list[_Op]:
        try:
            return unpack(entry.body)
        except DamagedEntry as exc:
            self._note_damaged(exc)
            return []

    def _forget(self, kind: SpoolKind, entries: Sequence[SpoolEntry]) -> bool:
        if not entries:
            return False
        self._spool.remove(kind, entries)
        self.num_moved += len(entries)
        return True

    def _note_lost(self, num_lost: int, exc: StoreError) -> None:
        self.num_lost += num_lost
        log.error("spooled_rows_refused", extra={"num_lost_total": self.num_lost, "cause": exc.sentence})

    def _note_damaged(self, exc: DamagedEntry) -> None:
        self.num_damaged += 1
        log.error("spool_entry_unreadable", extra={"spool": self._spool.path.name, "cause": str(exc)})
