"""The books kept beside the traces: which process has begun which and not closed it, and how far its batches are stored.

They are written in the transaction of the traces themselves, so that they are true whenever a process dies. Recovery reads them.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from omni.clock import Clock, wall_datetime
from omni.store.column_values import column_adapter
from omni.store.schema import omni_processes

DATABASE_NOW = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now')", "postgresql": "(now() AT TIME ZONE 'UTC')"}
"""The moment by the database's clock, as the tables hold it. Heartbeats are stamped and judged by this one clock: a machine whose own
is wrong neither looks dead to others nor takes them for dead."""


class TraceBooks:
    """The statements of one dialect that keep ``omni_open_traces`` and ``omni_processes.last_batch``."""

    def __init__(self, *, is_sqlite: bool, clock: Clock) -> None:
        mark = "?" if is_sqlite else "%s"
        now = DATABASE_NOW["sqlite" if is_sqlite else "postgresql"]
        self._clock = clock
        self._adapt_started_at = column_adapter(omni_processes.c.started_at, is_sqlite=is_sqlite)
        # A process that could not be entered when it started is entered by its first batch.
        enter = (
            "INSERT INTO omni_processes (process_id, started_at, heartbeat_at, last_batch)"  # noqa: S608 - constants
            f" VALUES ({mark}, {mark}, {now}, {mark})"
            " ON CONFLICT (process_id) DO UPDATE SET last_batch = excluded.last_batch"
        )
        only_once = " WHERE omni_processes.last_batch < excluded.last_batch"
        # One that had been taken for dead is at work again.
        self._turn_own_page = f"{enter}, heartbeat_at = excluded.heartbeat_at, stopped_at = NULL{only_once}"
        # A batch stored on behalf of a process that is gone is no sign of its life.
        self._turn_page = enter + only_once
        self.open_sql = (
            f"INSERT INTO omni_open_traces (trace_id, process_id) VALUES ({mark}, {mark})"  # noqa: S608 - constants
            " ON CONFLICT (trace_id) DO UPDATE SET process_id = excluded.process_id"
        )
        self.close_sql = f"DELETE FROM omni_open_traces WHERE trace_id = {mark}"  # noqa: S608 - constants

    def turn_page(self, connection: Connection, process_id: str, batch_no: int, *, is_own: bool) -> bool:
        """Note a process's batch as stored; False when it or a later one was noted before."""
        sql = self._turn_own_page if is_own else self._turn_page
        started_at = self._adapt_started_at(wall_datetime(self._clock.wall_ns()))
        driver: Any = connection.connection.dbapi_connection
        is_next: bool = driver.cursor().execute(sql, (process_id, started_at, batch_no)).rowcount == 1
        return is_next


def is_closing(columns: Mapping[str, Any]) -> bool:
    """Whether column values close their trace."""
    return columns.get("completed_at") is not None


def opened_rows(inserts: Mapping[str, Mapping[str, Any]], process_id: str) -> list[tuple[str, str]]:
    """Rows of ``open_sql`` for new traces that are not closed at once."""
    return [(trace_id, process_id) for trace_id, columns in inserts.items() if not is_closing(columns)]


def closed_rows(updates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str]]:
    """Rows of ``close_sql`` for traces whose new values close them."""
    return [(trace_id,) for trace_id, columns in updates.items() if is_closing(columns)]
