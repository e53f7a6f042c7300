"""Puts the ledger's operations into their tables: one transaction per batch, the newest version of every row stays.

Runs in a writer's thread. Each operation says exactly whether it changed anything, whoever else writes to the same rows at the same
moment: the database decides that row by row, in the order of the operations.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from omni.errors import StoreError
from omni.ports import LedgerOp
from omni.store.database import Database
from omni.store.ledger_rows import LedgerTable, LedgerTables, Row

_WRITING = "writing the ledger"


class SqlLedgerSink:
    """Writes the ledger on SQLite or PostgreSQL, for one process. Safe from any thread.

    ``wait_ms`` limits each write, as ``Database.writing`` does.
    """

    def __init__(self, database: Database, *, process_id: str, wait_ms: int | None = None) -> None:
        self._database = database
        self._wait_ms = wait_ms
        self._tables = LedgerTables(process_id, is_sqlite=database.is_sqlite)
        tables = (self._tables.inbox, self._tables.outbox, self._tables.receipts)
        self._put_sql = {table: _put_statement(table, is_sqlite=database.is_sqlite) for table in tables}

    def write(self, ops: Sequence[LedgerOp]) -> list[bool]:
        """Apply all operations in order in one transaction, or none; for each, whether it changed anything. Blocks.

        An operation changes nothing when its row is there in the same or a newer version. Raises StoreError: retryable when the
        database is held, gone or too slow; otherwise one of the operations cannot be stored, and the others can without it.
        """
        places = [self._place(op) for op in ops]
        if not places:
            return []
        with self._database.writing(_WRITING, wait_ms=self._wait_ms) as connection:
            put = self._put_one_by_one if self._database.is_sqlite else self._put_all
            return put(connection, places)

    def _place(self, op: LedgerOp) -> tuple[LedgerTable, Row]:
        try:
            return self._tables.place(op)
        except TypeError as exc:
            raise StoreError(f"{type(op).__name__} holds a value that is not {exc} ({_WRITING}).") from None

    def _put_one_by_one(self, connection: Connection, places: Sequence[tuple[LedgerTable, Row]]) -> list[bool]:
        # SQLite is a function call away: a statement for each costs 5 µs, and its count is the answer.
        cursor = _driver_cursor(connection)
        return [cursor.execute(self._put_sql[table], row).rowcount == 1 for table, row in places]

    def _put_all(self, connection: Connection, places: Sequence[tuple[LedgerTable, Row]]) -> list[bool]:
        """One trip to the server for each table; the count of each row is read from the answers."""
        changed = [False] * len(places)
        for table in self._put_sql:
            numbers = [number for number, (place, _) in enumerate(places) if place is table]
            if not numbers:
                continue
            # Processes that put the same rows take them in the same order, or each could end up waiting for the other. Sorting
            # is stable: what concerns one row stays in its order.
            numbers.sort(key=lambda number: table.key_of(places[number][1]))
            cursor = _driver_cursor(connection)
            cursor.executemany(self._put_sql[table], [places[number][1] for number in numbers], returning=True)
            for number in numbers:
                changed[number] = cursor.rowcount == 1
                cursor.nextset()
        return changed


def _driver_cursor(connection: Connection) -> Any:
    # The driver's own: SQLAlchemy's executemany keeps only the sum of the counts.
    driver: Any = connection.connection.dbapi_connection
    return driver.cursor()


def _put_statement(table: LedgerTable, *, is_sqlite: bool) -> str:
    """An insert that gives way to a newer version and replaces an older one, counting 1 when the row is now the one given."""
    marks = ", ".join("?" if is_sqlite else "%s" for _ in table.columns)
    changes = ", ".join(f"{name} = excluded.{name}" for name in table.columns if name not in table.key_columns)
    return (
        f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})"  # noqa: S608 - names from the schema
        f" ON CONFLICT ({', '.join(table.key_columns)}) DO UPDATE SET {changes}"
        f" WHERE excluded.version > {table.name}.version" + ("" if is_sqlite else " RETURNING 1")
    )
