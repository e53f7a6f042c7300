"""Makes the engines a database works with: how each kind connects, begins a transaction and keeps to a deadline.

SQLite runs in WAL mode with foreign keys off, as the predecessor had them. PostgreSQL goes through psycopg, with a pool for calls
that may take as long as they take and another for calls with a deadline, so that the one never holds up the other.
"""

import math
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import Dialect as EngineDialect
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from omni.store.deadlines import DeadlineWatch
from omni.store.failures import too_slow

BUSY_TIMEOUT_MS = 5_000
"""How long a statement without a deadline waits for another process's lock before it fails as retryable."""
WRITES = "omni_writes"
"""Marks a connection whose transaction will write, read by the begin hook."""

# How long connecting to a PostgreSQL server may take; libpq has no limit of its own.
_CONNECT_TIMEOUT_S = 10
# The shortest limit psycopg keeps to.
_SHORTEST_CONNECT_TIMEOUT_S = 2
# Connections kept for calls with a deadline: the recorder's, the ledger's, the heartbeat's. More are made when more are needed.
_NUM_QUICK_CONNECTIONS = 3
# Attempts to connect that may hang at the same time; further ones wait for their turn and give up in time.
_NUM_CONNECTORS = 4
# In a connection's notes: the busy timeout SQLite has been told, and whether the connection has been handed out before.
_BUSY_TOLD = "omni_busy_timeout_ms"
_WAS_USED = "omni_was_used"


def is_memory(url: URL) -> bool:
    """Whether it is a SQLite database that lives in its connection."""
    return url.database in (None, "", ":memory:")


def sqlite_engine(url: URL, deadlines: DeadlineWatch) -> Engine:
    """The engine of a SQLite file, or of a database in memory."""
    # A database in memory lives in its one connection, so there is one, and callers take turns. A file's connections are cheap and
    # as many as there are threads: nobody waits for one.
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if is_memory(url) else {"max_overflow": -1}
    engine = create_engine(
        url,
        poolclass=QueuePool,
        hide_parameters=True,
        # We begin transactions ourselves (below); the module's own implicit BEGIN would come too late for reads.
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        **pool,
    )

    def limit_opening(_: EngineDialect, __: ConnectionPoolEntry, ___: list[Any], parameters: dict[str, Any]) -> None:
        if deadlines.current is not None:
            parameters["timeout"] = deadlines.current.remaining_s

    def begin(connection: Connection) -> None:
        deadline = deadlines.current
        _tell_busy_timeout(connection, BUSY_TIMEOUT_MS if deadline is None else deadline.remaining_ms)
        # Immediate for writers: a transaction that read first could otherwise be refused its first write at once, without waiting.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "do_connect", limit_opening)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", begin)
    return engine


def postgres_engine(url: URL) -> Engine:
    """The engine for calls without a deadline."""
    return create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=_postgres_arguments(url))


class QuickPostgres:
    """The engine for calls with a deadline: connecting, the look whether a connection still lives and the call itself keep to it."""

    def __init__(self, url: URL, deadlines: DeadlineWatch) -> None:
        self._deadlines = deadlines
        # Connecting may hang where no socket is there to be shut down yet, in looking up a name for instance; so others do it.
        self._connectors = ThreadPoolExecutor(_NUM_CONNECTORS, thread_name_prefix="omni-database-connect")
        self.engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=_NUM_QUICK_CONNECTIONS,
            max_overflow=-1,
            connect_args=_postgres_arguments(url),
        )
        event.listen(self.engine, "do_connect", self._connect)
        event.listen(self.engine, "checkout", self._check_out)
        event.listen(self.engine, "checkin", self._check_in)  # codespell:ignore checkin

    def close(self) -> None:
        """Close all connections. Attempts to connect that hang end by themselves."""
        self.engine.dispose()
        self._connectors.shutdown(wait=False, cancel_futures=True)

    def _connect(
        self, dialect: EngineDialect, _: ConnectionPoolEntry, arguments: list[Any], parameters: dict[str, Any]
    ) -> Any:
        deadline = self._deadlines.current
        if deadline is None:
            return None  # SQLAlchemy connects, as long as that takes
        limit_s = max(math.ceil(deadline.remaining_s), _SHORTEST_CONNECT_TIMEOUT_S)
        in_time = parameters | {"connect_timeout": limit_s}
        try:
            attempt = self._connectors.submit(dialect.connect, *arguments, **in_time)
        except RuntimeError:
            # The interpreter is ending and gives threads no more work: what a script writes last is connected for right here.
            return dialect.connect(*arguments, **in_time)
        try:
            connection = attempt.result(deadline.remaining_s)
        except TimeoutError:
            if not attempt.cancel():
                attempt.add_done_callback(_close_late_connection)
            raise too_slow("connecting", deadline.wait_ms) from None
        self._deadlines.hold(connection)
        return connection

    def _check_out(self, connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        # The pool's own look at a connection comes before this hook and would not be watched.
        was_used = record.info.get(_WAS_USED, False)
        record.info[_WAS_USED] = True
        dialect = self.engine.dialect
        try:
            self._deadlines.hold(connection)
            if was_used:
                dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as exc:
            deadline = self._deadlines.current
            if deadline is not None and deadline.is_past:
                raise too_slow("looking for the server", deadline.wait_ms) from exc
            # The server was restarted, most likely: all connections it had are gone. The pool makes a new one.
            raise InvalidatePoolError from exc

    def _check_in(self, connection: Any, _: ConnectionPoolEntry) -> None:
        self._deadlines.release(connection)


def _close_late_connection(attempt: "Future[Any]") -> None:
    if attempt.exception() is None:
        attempt.result().close()


def _postgres_arguments(url: URL) -> dict[str, Any]:
    arguments: dict[str, Any] = {"client_encoding": "utf8"}
    if "connect_timeout" not in url.query:
        arguments["connect_timeout"] = _CONNECT_TIMEOUT_S
    return arguments


def _tell_busy_timeout(connection: Connection, wait_ms: int) -> None:
    if connection.info.get(_BUSY_TOLD) != wait_ms:
        # By the driver alone: readers and writers take turns with a connection, so this is told often.
        driver: Any = connection.connection.dbapi_connection
        driver.execute(f"PRAGMA busy_timeout = {wait_ms}")
        connection.info[_BUSY_TOLD] = wait_ms


def _prepare_sqlite(dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    del record
    connection: sqlite3.Connection = dbapi_connection
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=NORMAL")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("PRAGMA journal_mode=WAL").close()
    except sqlite3.OperationalError as exc:
        # The switch needs the file for itself and does not wait. Whoever holds it is most often switching it too; the mode belongs to
        # the file, and every new connection tries again until it is WAL, so working on is safe.
        if exc.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
