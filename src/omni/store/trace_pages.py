"""Walks all traces with their payloads, a page at a time: for checks of everything, in memory that does not grow with it.

Pages go by the primary key, so that traces coming in meanwhile shift nothing, and each is read in one snapshot, so that a row and its
payloads belong together while the recorder goes on writing.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, func, select

from omni.ports import PayloadRow, TraceRow
from omni.store.database import Database
from omni.store.queries import read_payload_row
from omni.store.schema import message_traces, trace_payloads

DEFAULT_PAGE = 100
"""Traces in a page: some megabytes, some tens of milliseconds."""

_DOING = "walking through the traces"
_TRACE_FIELDS = TraceRow.__struct_fields__
_TRACE_COLUMNS = [message_traces.columns[name] for name in _TRACE_FIELDS]

TracePage = Sequence[tuple[TraceRow, Sequence[PayloadRow]]]


class SqlTracePages:
    """All traces, or those of one instance or since a moment. Methods block and raise StoreError."""

    def __init__(
        self, database: Database, *, received_from: datetime | None = None, instance_name: str | None = None
    ) -> None:
        self._database = database
        traces = message_traces.c
        self._wanted: list[ColumnElement[bool]] = []
        if received_from is not None:
            self._wanted.append(traces.received_at >= received_from)
        if instance_name is not None:
            self._wanted.append(traces.instance_name == instance_name)

    def count(self) -> int:
        """How many traces there are to walk through at this moment."""
        wanted = select(func.count()).select_from(message_traces).where(*self._wanted)
        with self._database.reading(_DOING) as connection:
            return int(connection.scalar(wanted) or 0)

    def walk(self, *, page_size: int = DEFAULT_PAGE) -> Iterator[TracePage]:
        """Page after page in the order of their ids, each trace once; payloads in the order they were written."""
        last_id = ""
        while page := self._page(last_id, page_size):
            yield page
            last_id = page[-1][0].trace_id

    def _page(self, last_id: str, page_size: int) -> TracePage:
        traces, payloads = message_traces.c, trace_payloads.c
        next_ones = (
            select(*_TRACE_COLUMNS)
            .where(traces.trace_id > last_id, *self._wanted)
            .order_by(traces.trace_id)
            .limit(page_size)
        )
        with self._database.reading(_DOING) as connection:
            if not self._database.is_sqlite:  # whose read transactions are snapshots by themselves
                connection.execution_options(isolation_level="REPEATABLE READ")
            rows = [TraceRow(**dict(zip(_TRACE_FIELDS, row, strict=True))) for row in connection.execute(next_ones)]
            theirs = (
                select(trace_payloads)
                .where(payloads.trace_id.in_([row.trace_id for row in rows]))
                .order_by(payloads.trace_id, payloads.id)
            )
            stored = [dict(row) for row in connection.execute(theirs).mappings()] if rows else []
        payloads_by_trace: dict[str, list[PayloadRow]] = {row.trace_id: [] for row in rows}
        for columns in stored:
            payloads_by_trace[columns["trace_id"]].append(read_payload_row(columns))
        return [(row, payloads_by_trace[row.trace_id]) for row in rows]
