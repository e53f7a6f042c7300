"""The spool: a local SQLite file that holds what the database does not take at the moment, in the order it came.

It is made with the first entry and removed when it is empty again, so a process whose database never failed has none. Entries are trace
batches, numbered so that each is applied once, and groups of ledger operations. The bound counts live entries; a part of it is kept
for the ledger, because a message that cannot be written down has to be refused, while a trace can do with less.

A file left by a process that died is opened like any other. A damaged one is copied as far as it can be read and set aside under
another name; what could not be read is counted.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from msgspec import Struct

from omni.errors import StoreError
from omni.ports import LedgerOp, WriteOp
from omni.store.spool_codec import pack_ops

log = logging.getLogger(__name__)

SpoolKind = Literal["trace", "ledger"]

_TABLES: dict[SpoolKind, str] = {"trace": "trace_batches", "ledger": "ledger_groups"}
_COLUMNS = "seq INTEGER PRIMARY KEY, batch_no INTEGER, body BLOB NOT NULL"
# What an entry costs beside its body: the row, its share of a page.
_ENTRY_BYTES = 64
# From this share of the bound on, bodies of chunks are left out; and this much of it traces may fill.
_SHEDDING_SHARE, _TRACE_SHARE = 0.75, 0.9375
# The spool belongs to one process; only a reader from outside can hold it, and not for long.
_BUSY_TIMEOUT_S = 1.0
_SIDE_FILES = ("-wal", "-shm")

_Result = TypeVar("_Result")


class SpoolError(StoreError):
    """The spool is full or its disk does not take or give what is asked; the database has nothing to do with it."""


class SpoolEntry(Struct, frozen=True):
    """One entry. ``body`` is for ``spool_codec``; ``batch_no`` is None in entries of the ledger."""

    seq: int
    batch_no: int | None
    body: bytes


class Spool:
    """One spool file. Safe from any thread; methods block for as long as the local disk takes."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._num: dict[SpoolKind, int] = {"trace": 0, "ledger": 0}
        self._size_bytes = 0
        self.num_unreadable = 0
        self.problems: list[str] = []
        if path.exists():
            self._open_left()

    @property
    def num_traces(self) -> int:
        """Trace batches that wait."""
        return self._num["trace"]

    @property
    def num_entries(self) -> int:
        """Trace batches and groups of ledger operations that wait."""
        return self._num["trace"] + self._num["ledger"]

    @property
    def size_bytes(self) -> int:
        """Bytes of the entries that wait; the file may be larger for a while."""
        return self._size_bytes

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self.num_entries == 0

    @property
    def sheds_chunks(self) -> bool:
        """Whether it is so full that bodies of chunks should be left out of what is still to come."""
        return self._size_bytes >= self.max_bytes * _SHEDDING_SHARE

    def append_traces(self, ops: Sequence[WriteOp], *, batch_no: int) -> None:
        """Keep one trace batch behind the others. Raises SpoolError, retryable, when it is full or its disk refuses."""
        self._append("trace", pack_ops(ops), batch_no=batch_no, bound=self.max_bytes * _TRACE_SHARE)

    def append_ledger(self, ops: Sequence[LedgerOp]) -> None:
        """Keep a group of ledger operations. Raises SpoolError, retryable, when it is full or its disk refuses."""
        self._append("ledger", pack_ops(ops), batch_no=None, bound=self.max_bytes)

    def oldest(self, kind: SpoolKind, *, max_entries: int, max_bytes: int) -> list[SpoolEntry]:
        """The first entries of a kind: at least one while there is one, else as many as fit. Raises SpoolError."""
        with self._lock:
            if self._num[kind] == 0:
                return []
            entries = self._working(lambda: self._read_oldest(kind, max_entries, max_bytes))
            if not entries:
                self._working(self._recount)
            return entries

    def remove(self, kind: SpoolKind, entries: Sequence[SpoolEntry]) -> None:
        """Forget entries that are stored elsewhere now. Raises SpoolError; they are offered again then, which does no harm."""
        with self._lock:
            seqs = [(entry.seq,) for entry in entries]
            sql = f"DELETE FROM {_TABLES[kind]} WHERE seq = ?"  # noqa: S608 - a constant
            self._working(lambda: _in_one_transaction(self._opened(), sql, seqs))
            self._num[kind] = max(self._num[kind] - len(entries), 0)
            self._size_bytes = max(self._size_bytes - sum(_size(entry.body) for entry in entries), 0)

    def discard_if_empty(self) -> bool:
        """Delete the file when nothing waits in it; True when there is none now."""
        with self._lock:
            if not self.is_empty:
                return False
            self.close()
            self._size_bytes = 0
            try:
                for path in self._files():
                    path.unlink(missing_ok=True)
            except OSError as exc:
                # An empty file in the way hurts nobody; the thread that asked has a database to look after.
                log.debug("spool_file_stays", extra={"cause": exc.strerror})
            return True

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _append(self, kind: SpoolKind, body: bytes, *, batch_no: int | None, bound: float) -> None:
        with self._lock:
            if self._size_bytes + _size(body) > bound:
                raise SpoolError(f"The spool is full: {self._size_bytes} bytes wait in it.", retryable=True)
            sql = f"INSERT INTO {_TABLES[kind]} (batch_no, body) VALUES (?, ?)"  # noqa: S608 - a constant
            self._working(lambda: self._opened().execute(sql, (batch_no, body)).close())
            self._num[kind] += 1
            self._size_bytes += _size(body)

    def _read_oldest(self, kind: SpoolKind, max_entries: int, max_bytes: int) -> list[SpoolEntry]:
        entries: list[SpoolEntry] = []
        num_bytes = 0
        for entry in _walk(self._opened(), kind, limit=max_entries):
            num_bytes += len(entry.body)
            if entries and num_bytes > max_bytes:
                break
            entries.append(entry)
        return entries

    def _working(self, work: Callable[[], _Result]) -> _Result:
        """Run ``work``; a damaged file is mended and it is run once more."""
        try:
            return work()
        except sqlite3.Error as exc:
            self.close()
            if not _is_damage(exc):
                raise _spool_error(exc) from exc
            self._mend(exc)
        try:
            return work()
        except sqlite3.Error as exc:
            self.close()
            raise _spool_error(exc) from exc

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise SpoolError(f"The spool's folder cannot be made ({exc.strerror}).", retryable=True) from exc
            if not self.path.exists() and not self.is_empty:
                # Somebody removed the file under us: what was in it is gone, and counted.
                self._note_problem("the file is gone", num_unreadable=self.num_entries)
                self._num, self._size_bytes = {"trace": 0, "ledger": 0}, 0
            self._connection = _connect(self.path)
        return self._connection

    def _open_left(self) -> None:
        try:
            connection = self._opened()
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict == "ok":
                self._recount()
                return
            reason = sqlite3.DatabaseError(verdict)
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc):
                self.close()
                raise _spool_error(exc) from exc
            reason = exc
        self._mend(reason)

    def _recount(self) -> None:
        size = 0
        for kind, table in _TABLES.items():
            sql = f"SELECT count(*), coalesce(sum(length(body) + {_ENTRY_BYTES}), 0) FROM {table}"  # noqa: S608 - constants
            self._num[kind], table_bytes = self._opened().execute(sql).fetchone()
            size += table_bytes
        self._size_bytes = size

    def _mend(self, reason: sqlite3.Error) -> None:
        """Copy what can be read into a new file and set the damaged one aside. Raises SpoolError when the disk refuses."""
        self.close()
        fresh = self.path.with_name(self.path.name + ".mended")
        num_before = self.num_entries
        try:
            for path in _with_side_files(fresh):
                path.unlink(missing_ok=True)
            num_missing = _copy_readable(self.path, fresh)
            for path in _with_side_files(self.path):
                if path.exists():
                    path.replace(path.with_name(path.name + ".damaged"))
            fresh.replace(self.path)
            self._recount()
        except (OSError, sqlite3.Error) as exc:
            self.close()
            raise SpoolError(f"The damaged spool could not be copied ({type(exc).__name__}).", retryable=True) from exc
        # What it held is known when it was ours; in a file left by another only gaps between the entries show.
        num_missing = max(num_missing, num_before - self.num_entries)
        self._note_problem(f"damaged: {type(reason).__name__}", num_unreadable=num_missing)

    def _note_problem(self, what: str, *, num_unreadable: int) -> None:
        self.num_unreadable += num_unreadable
        self.problems.append(what)
        log.error(
            "spool_damaged", extra={"spool": self.path.name, "cause": what, "num_unreadable_entries": num_unreadable}
        )

    def _files(self) -> list[Path]:
        return _with_side_files(self.path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("PRAGMA synchronous=NORMAL").close()
        for table in _TABLES.values():
            connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({_COLUMNS})").close()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _in_one_transaction(connection: sqlite3.Connection, sql: str, rows: Sequence[tuple[int]]) -> None:
    connection.execute("BEGIN").close()
    try:
        connection.executemany(sql, rows).close()
    except sqlite3.Error:
        connection.execute("ROLLBACK").close()
        raise
    connection.execute("COMMIT").close()


def _walk(
    connection: sqlite3.Connection, kind: SpoolKind, *, limit: int = -1, after: int = 0, backwards: bool = False
) -> Iterator[SpoolEntry]:
    order = "DESC" if backwards else "ASC"
    sql = f"SELECT seq, batch_no, body FROM {_TABLES[kind]} WHERE seq > ? ORDER BY seq {order} LIMIT ?"  # noqa: S608 - constants
    cursor = connection.execute(sql, (after, limit))
    try:
        for seq, batch_no, body in cursor:
            yield SpoolEntry(seq, batch_no, body)
    finally:
        cursor.close()


def _copy_readable(damaged: Path, fresh: Path) -> int:
    """Copy the entries that can be read; the number of those known to be missing between them."""
    num_missing = 0
    target = _connect(fresh)
    try:
        for kind, table in _TABLES.items():
            sql = f"INSERT OR IGNORE INTO {table} (seq, batch_no, body) VALUES (?, ?, ?)"  # noqa: S608 - a constant
            first_gap = _copy_until_damage(damaged, kind, target, sql, after=0, backwards=False)
            if first_gap is None:
                continue
            # Beyond the damage entries can be reached from the other end only.
            last_gap = _copy_until_damage(damaged, kind, target, sql, after=first_gap, backwards=True)
            num_missing += max((last_gap or first_gap + 2) - first_gap - 1, 1)
        # The copy becomes the spool under another name, and its log would not follow it.
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    finally:
        target.close()
    return num_missing


def _copy_until_damage(
    damaged: Path, kind: SpoolKind, target: sqlite3.Connection, sql: str, *, after: int, backwards: bool
) -> int | None:
    """Copy in one direction; the last number read before the damage, None when there was none."""
    last = 0 if not backwards else None
    try:
        source = sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error:
        return last
    try:
        # Makes SQLite read a file that is shorter than it should be.
        source.execute("PRAGMA writable_schema=ON").close()
        for entry in _walk(source, kind, after=after, backwards=backwards):
            target.execute(sql, (entry.seq, entry.batch_no, entry.body)).close()
            last = entry.seq
    except sqlite3.DatabaseError as exc:
        if not _is_damage(exc):
            raise
        return last
    finally:
        source.close()
    return None


def _is_damage(exc: sqlite3.Error) -> bool:
    name = getattr(exc, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or (
        # A table that is not there although the file is ours.
        name == "SQLITE_ERROR" and "no such table" in str(exc)
    )


def _spool_error(exc: sqlite3.Error) -> SpoolError:
    name = getattr(exc, "sqlite_errorname", type(exc).__name__)
    return SpoolError(f"The spool's disk answered {name}.", retryable=True, detail=str(exc))


def _with_side_files(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + suffix) for suffix in _SIDE_FILES)]


def _size(body: bytes) -> int:
    return len(body) + _ENTRY_BYTES
