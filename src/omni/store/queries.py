"""Reads traces back and removes old ones. All counting is done by the database.

A trace is successful when its status is ``completed`` and failed when it is ``failed`` or the predecessor's ``error``; anything else
is still open and counts as neither. Removing takes a trace's payloads with it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, UnaryExpression, delete, func, select, text
from sqlalchemy.sql.operators import custom_op

from omni.errors import StoreError
from omni.ports import PayloadRow, TraceFilter, TraceRow, TraceSummary
from omni.store.database import Database, in_portions
from omni.store.payload_codec import decode_payload
from omni.store.schema import message_traces, omni_open_traces, trace_payloads

MAX_LIMIT = 1_000
"""Most traces one listing returns."""
UNKNOWN = "unknown"
"""Label of traces without a message type or an instance in a summary, so that its counts add up to the total."""

_SUCCESSFUL = ("completed",)
_FAILED = ("failed", "error")
# Traces removed per transaction: with their payloads some tens of milliseconds, in which the recorder has to wait.
_DELETE_BATCH = 200
_TRACE_FIELDS = TraceRow.__struct_fields__
_TRACE_COLUMNS = [message_traces.columns[name] for name in _TRACE_FIELDS]


class SqlTraceReader:
    """A ``TraceReader`` on SQLite or PostgreSQL. Safe from any thread; methods block and raise StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get_trace(self, trace_id: str) -> TraceRow | None:
        """One trace, or None when there is none of that id."""
        rows = self._traces(select(*_TRACE_COLUMNS).where(message_traces.c.trace_id == trace_id))
        return rows[0] if rows else None

    def get_traces(self, trace_ids: Sequence[str]) -> list[TraceRow]:
        """The rows of many traces, in the order asked for; ids nobody knows are left out."""
        with self._database.reading("reading traces") as connection:
            rows = [
                row
                for portion in in_portions(trace_ids)
                for row in connection.execute(select(*_TRACE_COLUMNS).where(message_traces.c.trace_id.in_(portion)))
            ]
        by_id = {row.trace_id: _trace_row(row) for row in rows}
        return [by_id[trace_id] for trace_id in trace_ids if trace_id in by_id]

    def list_traces(self, wanted: TraceFilter) -> list[TraceRow]:
        """Traces that match, newest first; those received at the same microsecond by id."""
        if not 1 <= wanted.limit <= MAX_LIMIT or wanted.offset < 0:
            raise StoreError(f"A listing takes a limit of 1 to {MAX_LIMIT} and no negative offset.", status_code=422)
        found = select(*_TRACE_COLUMNS).where(*self._conditions(wanted))
        newest_first = (message_traces.c.received_at.desc(), message_traces.c.trace_id.desc())
        return self._traces(found.order_by(*newest_first).limit(wanted.limit).offset(wanted.offset))

    def get_payloads(self, trace_id: str) -> list[PayloadRow]:
        """All payload rows of a trace in the order they were written.

        A payload that cannot be read is None, and the reason stands in ``error_details`` behind what was stored there.
        """
        ours = select(trace_payloads).where(trace_payloads.c.trace_id == trace_id).order_by(trace_payloads.c.id)
        with self._database.reading("reading payloads") as connection:
            rows = connection.execute(ours).mappings().all()
        return [read_payload_row(dict(row)) for row in rows]

    def get_payloads_of(self, trace_ids: Sequence[str]) -> dict[str, list[PayloadRow]]:
        """The payload rows of many traces, each trace's as ``get_payloads`` gives them; a trace without any is left out."""
        found: dict[str, list[PayloadRow]] = {}
        with self._database.reading("reading payloads") as connection:
            for portion in in_portions(trace_ids):
                theirs = (
                    select(trace_payloads).where(trace_payloads.c.trace_id.in_(portion)).order_by(trace_payloads.c.id)
                )
                for row in connection.execute(theirs).mappings():
                    found.setdefault(row["trace_id"], []).append(read_payload_row(dict(row)))
        return found

    def summarize(
        self, *, received_from: datetime | None, received_to: datetime | None, instance_name: str | None
    ) -> TraceSummary:
        """Counts and averages over the traces received in a window, both ends included."""
        wanted = self._conditions(
            TraceFilter(received_from=received_from, received_to=received_to, instance_name=instance_name)
        )
        traces = message_traces.c
        totals = select(
            func.count(),
            func.count().filter(traces.status.in_(_SUCCESSFUL)),
            func.count().filter(traces.status.in_(_FAILED)),
            func.avg(traces.total_processing_time_ms),
            func.avg(traces.agent_processing_time_ms),
        ).where(*wanted)
        with self._database.reading("summarizing traces") as connection:
            total, successful, failed, total_ms, agent_ms = connection.execute(totals).one()
            message_types = _count_by(connection, traces.message_type, wanted)
            error_stages = _count_by(connection, traces.error_stage, [*wanted, traces.error_stage.is_not(None)])
            instances = _count_by(connection, traces.instance_name, wanted)
        return TraceSummary(
            total_messages=total,
            successful_messages=successful,
            failed_messages=failed,
            success_rate=round(100 * successful / total, 2) if total else None,
            avg_processing_time_ms=_rounded(total_ms),
            avg_agent_time_ms=_rounded(agent_ms),
            message_types=message_types,
            error_stages=error_stages,
            instances=instances,
        )

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """(instance_name, whatsapp_message_id) of the newest traces that have both, newest first."""
        traces = message_traces.c
        newest = (
            select(traces.instance_name, traces.whatsapp_message_id)
            .where(
                traces.received_at >= received_from,
                traces.instance_name.is_not(None),
                traces.whatsapp_message_id.is_not(None),
            )
            .order_by(traces.received_at.desc(), traces.trace_id.desc())
            .limit(limit)
        )
        with self._database.reading("reading recent message ids") as connection:
            return [(name, message_id) for name, message_id in connection.execute(newest)]

    def count_older_than(self, cutoff: datetime) -> int:
        """How many traces ``delete_older_than`` would remove."""
        older = select(func.count()).select_from(message_traces).where(message_traces.c.received_at < cutoff)
        with self._database.reading("counting old traces") as connection:
            return int(connection.scalar(older) or 0)

    def delete_older_than(self, cutoff: datetime) -> int:
        """Remove traces received before ``cutoff`` with all their payloads; the number of traces removed.

        Works in small transactions so that the recorder never waits long; when it raises, what was removed before stays removed.
        """
        num_deleted = 0
        while True:
            with self._database.writing("removing old traces") as connection:
                num_now = _delete_some(connection, cutoff)
            if num_now == 0:
                return num_deleted
            num_deleted += num_now

    def _traces(self, wanted: Select[Any]) -> list[TraceRow]:
        with self._database.reading("reading traces") as connection:
            rows = connection.execute(wanted).all()
        return [_trace_row(row) for row in rows]

    def _conditions(self, wanted: TraceFilter) -> list[ColumnElement[bool]]:
        traces = message_traces.c
        equals = (
            (traces.sender_phone, wanted.phone),
            (self._unindexed(traces.instance_name), wanted.instance_name),
            (self._unindexed(traces.status), wanted.status),
            (traces.message_type, wanted.message_type),
            (traces.session_name, wanted.session_name),
            (traces.agent_session_id, wanted.agent_session_id),
            (traces.has_media, wanted.has_media),
        )
        conditions = [column == value for column, value in equals if value is not None]
        if wanted.received_from is not None:
            conditions.append(traces.received_at >= wanted.received_from)
        if wanted.received_to is not None:
            conditions.append(traces.received_at <= wanted.received_to)
        return conditions

    def _unindexed(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        # SQLite would take the index of a column with few values and then sort most of the table; with a plus sign it walks
        # received_at from the newest instead. PostgreSQL keeps statistics and chooses by itself.
        if not self._database.is_sqlite:
            return column
        return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def _trace_row(row: Row[Any]) -> TraceRow:
    return TraceRow(**dict(zip(_TRACE_FIELDS, row, strict=True)))


def read_payload_row(row: dict[str, Any]) -> PayloadRow:
    """A row of trace_payloads with its payload decoded; why it could not be stands in ``error_details``."""
    decoded = decode_payload(row.pop("payload_compressed"))
    if decoded.problem is not None:
        stored = row["error_details"]
        row["error_details"] = f"{stored}; {decoded.problem}" if stored else decoded.problem
    return PayloadRow(payload=decoded.payload, **row)


def _count_by(
    connection: Connection, column: ColumnElement[Any], wanted: Sequence[ColumnElement[bool]]
) -> dict[str, int]:
    label = func.coalesce(column, UNKNOWN)
    # By position: PostgreSQL does not see that two parameters of the same value are the same expression.
    counts = select(label, func.count()).where(*wanted).group_by(text("1")).order_by(func.count().desc(), text("1"))
    return {name: number for name, number in connection.execute(counts)}  # noqa: C416 - rows, not pairs to mypy


def _rounded(average: Any) -> float | None:
    return None if average is None else round(float(average), 2)


def _delete_some(connection: Connection, cutoff: datetime) -> int:
    """Remove the oldest traces before ``cutoff``, as many as one transaction takes; how many there were."""
    traces, payloads = message_traces.c, trace_payloads.c
    # Locked first, where the database locks rows: a payload being written then waits and finds its trace gone, or is
    # there to be removed with it.
    oldest = (
        select(traces.trace_id)
        .where(traces.received_at < cutoff)
        .order_by(traces.received_at)
        .limit(_DELETE_BATCH)
        .with_for_update()
    )
    trace_ids = connection.scalars(oldest).all()
    if not trace_ids:
        return 0
    connection.execute(delete(trace_payloads).where(payloads.trace_id.in_(trace_ids)))
    connection.execute(delete(omni_open_traces).where(omni_open_traces.c.trace_id.in_(trace_ids)))
    return connection.execute(delete(message_traces).where(traces.trace_id.in_(trace_ids))).rowcount
