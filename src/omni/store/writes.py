"""Stores what the recorder has: one transaction per batch, few statements, payloads packed here.

Runs in the recorder's writer thread. Statements are written once per column set and run through the driver's executemany, because
SQLAlchemy's own conversion would cost more than SQLite does. Packing happens before the transaction opens, so that the
write lock is held for the rows only.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Column, Connection
from sqlalchemy.dialects import postgresql

from omni.clock import Clock, SystemClock
from omni.errors import RecordNotFound, StoreError
from omni.ports import InsertPayload, WriteOp
from omni.store.column_values import Adapter, column_adapter
from omni.store.database import Database
from omni.store.open_traces import TraceBooks, closed_rows, opened_rows
from omni.store.payload_codec import encode_payload
from omni.store.schema import message_traces, trace_payloads
from omni.store.write_plan import WriteStep, plan_writes

_WRITING = "writing traces"
_TRACE_COLUMNS = tuple(message_traces.columns.keys())
_PAYLOAD_COLUMNS = tuple(name for name in trace_payloads.columns.keys() if name != "id")  # noqa: SIM118 - not a dict

Row = tuple[Any, ...]


class SqlTraceSink:
    """A ``TraceSink`` on SQLite or PostgreSQL. Use it from one thread at a time.

    With a ``process_id`` it keeps in ``omni_open_traces`` which traces that process has begun and not closed; without one it keeps no
    books (a library in somebody's script). ``wait_ms`` limits each write, as ``Database.writing`` does.
    """

    def __init__(
        self,
        database: Database,
        *,
        process_id: str | None = None,
        clock: Clock | None = None,
        wait_ms: int | None = None,
    ) -> None:
        self._database = database
        self._process_id = process_id
        self._wait_ms = wait_ms
        self._sql = _Statements(is_sqlite=database.is_sqlite)
        self._books = TraceBooks(is_sqlite=database.is_sqlite, clock=clock or SystemClock())

    def write(self, ops: Sequence[WriteOp], *, batch_no: int | None = None, process_id: str | None = None) -> None:
        """Apply all operations in order in one transaction, or none. Blocks.

        With ``batch_no``, counted from 1 by the process that made the batch, nothing is applied when that batch or a later one of
        that process was applied before: repeating it is safe, and batches have to come in their order. ``process_id`` names
        another process than our own, for batches it left behind.

        Raises StoreError: retryable when another process holds the database or it cannot be reached; RecordNotFound when a payload
        or new column values are for a trace that is not stored, which would otherwise leave orphans or be lost unseen.
        """
        owner = process_id or self._process_id
        batches = [batch for step in plan_writes(ops) for batch in self._prepare(step, owner)]
        if not batches:
            return
        with self._database.writing(_WRITING, wait_ms=self._wait_ms) as connection:
            if batch_no is not None:
                if owner is None:
                    raise StoreError(f"A numbered batch needs the process it belongs to ({_WRITING}).")
                if not self._books.turn_page(connection, owner, batch_no, is_own=owner == self._process_id):
                    return
            for batch in batches:
                batch.run(connection)

    def _prepare(self, step: WriteStep, owner: str | None) -> list["_Batch"]:
        sql = self._sql
        batches: list[_Batch] = []
        if step.inserts:
            rows = [sql.trace_row(trace_id, columns) for trace_id, columns in step.inserts.items()]
            batches.append(_Batch(sql.insert_trace, rows))
            opened = [] if owner is None else opened_rows(step.inserts, owner)
            if opened:
                batches.append(_Batch(self._books.open_sql, opened))
        if step.payloads:
            rows = [sql.payload_row(op) for op in step.payloads]
            batches.append(_Batch(sql.insert_payload, rows, is_exact=True))
        if step.drops:
            batches.append(_Batch(sql.drop_payloads, list(step.drops)))
        rows_by_columns: dict[tuple[str, ...], list[Row]] = {}
        for trace_id, columns in step.updates.items():
            rows_by_columns.setdefault(tuple(columns), []).append(sql.update_row(trace_id, columns))
        for names, rows in rows_by_columns.items():
            batches.append(_Batch(sql.update_trace(names), rows, is_exact=True))
        closed = [] if owner is None else closed_rows(step.updates)
        if closed:
            batches.append(_Batch(self._books.close_sql, closed))
        return batches


class _Batch:
    """One statement and its rows. ``is_exact``: each row must have changed exactly one row of the table."""

    __slots__ = ("_is_exact", "_rows", "_sql")

    def __init__(self, sql: str, rows: Sequence[Row], *, is_exact: bool = False) -> None:
        self._sql = sql
        self._rows = rows
        self._is_exact = is_exact

    def run(self, connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.cursor()
        cursor.executemany(self._sql, self._rows)
        num_changed = cursor.rowcount
        if self._is_exact and num_changed != len(self._rows):
            num_missing = len(self._rows) - num_changed
            raise RecordNotFound(
                f"{num_missing} of {len(self._rows)} rows are for traces that are not stored ({_WRITING})."
            )


class _Statements:
    """The statements of one dialect and the rows they take."""

    def __init__(self, *, is_sqlite: bool) -> None:
        self._is_sqlite = is_sqlite
        self._mark = "?" if is_sqlite else "%s"
        self._trace_adapters = _adapters(message_traces.columns.values(), is_sqlite=is_sqlite)
        self._payload_adapters = _adapters(trace_payloads.columns.values(), is_sqlite=is_sqlite)
        self.insert_trace = (
            f"INSERT INTO message_traces ({', '.join(_TRACE_COLUMNS)})"  # noqa: S608 - names from the schema
            f" VALUES ({', '.join(self._trace_value(name) for name in _TRACE_COLUMNS)})"
        )
        # Reading the trace while inserting keeps orphans out; on PostgreSQL the lock keeps retention from removing it in between.
        self.insert_payload = (
            f"INSERT INTO trace_payloads ({', '.join(_PAYLOAD_COLUMNS)})"  # noqa: S608 - names from the schema
            f" SELECT {', '.join(self._payload_value(name) for name in _PAYLOAD_COLUMNS)}"
            f" FROM message_traces WHERE trace_id = {self._mark}" + ("" if is_sqlite else " FOR KEY SHARE")
        )
        # The plus sign keeps SQLite from walking the index on stage, which has few values and many rows for each.
        stage = "+stage" if is_sqlite else "stage"
        self.drop_payloads = f"DELETE FROM trace_payloads WHERE trace_id = {self._mark} AND {stage} = {self._mark}"  # noqa: S608
        self.update_trace = cache(self._update_trace)

    def trace_row(self, trace_id: str, columns: Mapping[str, Any]) -> Row:
        """Parameters of ``insert_trace``; columns not given are NULL."""
        values = self._adapt(columns)
        values["trace_id"] = trace_id
        return tuple([values.get(name) for name in _TRACE_COLUMNS])

    def update_row(self, trace_id: str, columns: Mapping[str, Any]) -> Row:
        """Parameters of the ``update_trace`` statement for these columns."""
        return (*self._adapt(columns).values(), trace_id)

    def payload_row(self, op: InsertPayload) -> Row:
        """Parameters of ``insert_payload``, the payload packed."""
        packed = encode_payload(op.payload)
        adapters = self._payload_adapters
        return (
            op.trace_id,
            adapters["stage"](op.stage),
            op.payload_type,
            packed.text,
            packed.size_original,
            packed.size_compressed,
            adapters["timestamp"](op.timestamp),
            op.status_code,
            adapters["error_details"](_joined(op.error_details, packed.problem)),
            op.contains_media,
            op.contains_base64,
            op.trace_id,
        )

    def _update_trace(self, names: tuple[str, ...]) -> str:
        changes = ", ".join(f"{name} = {self._trace_value(name)}" for name in names)
        return f"UPDATE message_traces SET {changes} WHERE trace_id = {self._mark}"  # noqa: S608 - checked names

    def _adapt(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        adapters = self._trace_adapters
        try:
            return {name: adapters[name](value) for name, value in columns.items()}
        except KeyError as exc:
            raise StoreError(f"message_traces has no column {exc.args[0]!r} that can be written.") from None
        except TypeError:
            raise StoreError(_explain_refusal(adapters, columns)) from None

    def _trace_value(self, name: str) -> str:
        if name == "instance_name" and not self._is_sqlite:
            # The foreign key is enforced here: a trace of an instance nobody configured is kept without its name. The lock
            # keeps the instance from being removed between this look and the end of the transaction.
            return f"(SELECT name FROM instance_configs WHERE name = {self._mark} FOR KEY SHARE)"  # noqa: S608
        return self._mark

    def _payload_value(self, name: str) -> str:
        if self._is_sqlite:
            return self._mark
        # In a SELECT the server cannot tell a parameter's type from the column it ends up in.
        kind = trace_payloads.columns[name].type.compile(postgresql.dialect())  # type: ignore[no-untyped-call] # untyped there
        return f"CAST({self._mark} AS {kind})"


def _adapters(columns: Sequence[Column[Any]], *, is_sqlite: bool) -> dict[str, Adapter]:
    return {column.name: column_adapter(column, is_sqlite=is_sqlite) for column in columns if not column.primary_key}


def _explain_refusal(adapters: Mapping[str, Adapter], columns: Mapping[str, Any]) -> str:
    for name, value in columns.items():
        try:
            adapters[name](value)
        except TypeError as exc:
            return f"message_traces.{name} takes {exc} or nothing, not a value of type {type(value).__name__}."
    raise AssertionError("every value was accepted")


def _joined(given: str | None, found: str | None) -> str | None:
    return f"{given}; {found}" if given and found else given or found
