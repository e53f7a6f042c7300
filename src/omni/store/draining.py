"""Moves what a spool holds into the database, oldest first, a little at a time.

Ledger operations go first: they are few, and what they say decides about messages. A trace batch keeps its number, so one that was
stored before its process could forget it is passed over. What the database refuses for good is tried piece by piece; what is left over
then is reported to the parts of this process that wrote it. A spool another process left has nobody to report to: its losses are
counted here and told on their traces.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from msgspec import Struct

from omni.errors import StoreError
from omni.faults import fault_facts
from omni.ports import InsertPayload, InsertTrace, LedgerOp, WriteOp
from omni.store.spool import Spool, SpoolEntry, SpoolKind
from omni.store.spool_codec import DamagedEntry, unpack_ledger_ops, unpack_trace_ops
from omni.tracing.losses import holds_chunks, loss_row, num_chunks, num_rows, ops_by_trace, smallest_parts

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


class RefusalListeners(Struct, frozen=True, kw_only=True):
    """Who counts what the database refuses for good when it comes from the spool. Called from the spool's thread."""

    traces: Callable[[Sequence[WriteOp]], None]
    ledger: Callable[[int], None]


class Drain:
    """Empties one spool. ``process_id`` names the process that filled it, None for our own; ``listeners`` count what is refused."""

    def __init__(
        self,
        spool: Spool,
        *,
        traces: TraceRows,
        ledger: LedgerRows,
        process_id: str | None = None,
        listeners: RefusalListeners | None = None,
    ) -> None:
        self._spool = spool
        self.listeners = listeners
        self._traces = traces
        self._ledger = ledger
        self._process_id = process_id
        self._stored_no: int | None = None
        # The batch that was refused as a whole, and what of it is still to be tried.
        self._refused_no: int | None = None
        self._pieces: list[_Pieces] = []
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
        num_refused = self._store_ledger(ops) if ops else 0
        is_moved = self._forget("ledger", entries)
        if num_refused and self.listeners is not None:
            self.listeners.ledger(num_refused)
        elif num_refused:
            self.num_lost += num_refused
        return is_moved

    def _store_ledger(self, ops: Sequence[LedgerOp]) -> int:
        """How many the database refused for good. Applying one twice changes nothing, so this may be broken off and done again."""
        try:
            with faults_as_refusals():
                self._ledger.write(ops)
        except StoreError as exc:
            if exc.retryable:
                raise
            if len(ops) > 1:
                return sum(self._store_ledger([op]) for op in ops)
            log.error("spooled_record_refused", extra={"cause": exc.sentence})  # noqa: TRY400 - the cause says it
            return 1
        return 0

    def _move_traces(self) -> bool:
        entries = self._spool.oldest("trace", max_entries=1, max_bytes=_SLICE_BYTES)
        for entry in entries:
            if entry.batch_no != self._stored_no:  # otherwise only the spool's disk could not forget it
                self._store_entry(entry)
                self._stored_no = entry.batch_no
        return self._forget("trace", entries)

    def _store_entry(self, entry: SpoolEntry) -> None:
        if self._refused_no != entry.batch_no:
            ops = self._read(entry, unpack_trace_ops)
            try:
                if ops:
                    self._write(ops, entry.batch_no)
            except StoreError as exc:
                if exc.retryable:
                    raise
                self._refused_no = entry.batch_no
                self._pieces = [_Pieces(of_trace) for of_trace in ops_by_trace(ops).values()]
        while self._pieces:
            pieces = self._pieces[0]
            while pieces.waiting:
                self._store_piece(pieces)
            if pieces.refused:
                self._report(pieces.refused, is_anything_stored=pieces.is_anything_stored)
            del self._pieces[0]

    def _store_piece(self, pieces: "_Pieces") -> None:
        """Store the next piece of a batch that was refused as a whole.

        Pieces have no number: dying here, with a batch it refused, may store some of them twice.
        """
        piece = pieces.waiting[0]
        is_stored = self._is_stored([*pieces.header, *piece])
        del pieces.waiting[0]
        if is_stored:
            pieces.note_stored()
        else:
            pieces.note_refused(piece)

    def _is_stored(self, ops: Sequence[WriteOp]) -> bool:
        try:
            self._write(ops, None)
        except StoreError as exc:
            if exc.retryable:
                raise
            log.error("spooled_rows_refused", extra={"num_operations": len(ops), "cause": exc.sentence})  # noqa: TRY400 - the cause says it
            return False
        return True

    def _report(self, refused: Sequence[WriteOp], *, is_anything_stored: bool) -> None:
        if self.listeners is not None:
            self.listeners.traces(refused)
            return
        times = [op.timestamp for op in refused if isinstance(op, InsertPayload)]
        if times and is_anything_stored:
            trace_id, num_shed = refused[0].trace_id, num_chunks(refused)
            self._is_stored([loss_row(trace_id, at=times[-1], num_shed=num_shed, num_lost=num_rows(refused))])
        self.num_lost += num_rows(refused)

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

    def _note_damaged(self, exc: DamagedEntry) -> None:
        self.num_damaged += 1
        log.error("spool_entry_unreadable", extra={"spool": self._spool.path.name, "cause": str(exc)})


class _Pieces:
    """One trace's part of a batch that was refused: what is still to be tried, and what was refused by itself."""

    __slots__ = ("header", "is_anything_stored", "refused", "waiting")

    def __init__(self, ops: Sequence[WriteOp]) -> None:
        self.waiting = smallest_parts(ops)
        self.refused: list[WriteOp] = []
        # The trace's own row while it was refused: it goes along with what comes next.
        self.header: list[WriteOp] = []
        self.is_anything_stored = False

    def note_stored(self) -> None:
        self.is_anything_stored = True
        self.refused = [op for op in self.refused if op not in self.header]
        self.header = []

    def note_refused(self, piece: Sequence[WriteOp]) -> None:
        chunks = [op for op in piece if holds_chunks(op)]
        rest = [op for op in piece if not holds_chunks(op)]
        if chunks and rest:
            # Without its chunks it may be acceptable.
            self.waiting = [*smallest_parts(rest), *self.waiting]
        else:
            chunks = list(piece)
        self.refused += chunks
        if isinstance(piece[0], InsertTrace):
            self.header = list(piece)
