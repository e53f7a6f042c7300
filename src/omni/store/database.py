"""One database: opened by URL, brought to our schema, handed out as connections for reading and for writing.

SQLite runs in WAL mode so that readers never wait for the writer; foreign keys stay off, as the predecessor had them. PostgreSQL
goes through psycopg. Opening adds our own tables and nothing else to a database that holds the predecessor's.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from omni.errors import StoreError
from omni.store.failures import store_errors
from omni.store.schema import SCHEMA_REVISION, VERSION_TABLE

Dialect = Literal["sqlite", "postgresql"]

URL_SETTING = "AUTOMAGIK_OMNI_DATABASE_URL"
# How long a statement waits for another process's lock before it fails as retryable.
_BUSY_TIMEOUT_MS = 5_000
# How long connecting to a PostgreSQL server may take; libpq has no limit of its own.
_CONNECT_TIMEOUT_S = 10
_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
# Marks a connection whose transaction will write, read by the begin hook.
_WRITES = "omni_writes"
_FIND_VERSION_TABLE = {
    "sqlite": f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{VERSION_TABLE}'",  # noqa: S608 - a constant
    "postgresql": f"SELECT 1 WHERE to_regclass('{VERSION_TABLE}') IS NOT NULL",
}


class Database:
    """An open database of a known schema. Safe to share between threads; each call takes its own connection."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self.engine = engine
        self.dialect: Dialect = dialect

    @classmethod
    def open(cls, url: str, *, setting: str = URL_SETTING) -> Self:
        """Open the database at an SQLAlchemy URL, creating the SQLite file and our tables where they are missing.

        ``setting`` is the variable the URL comes from, for the sentences of errors.

        Raises StoreError with a sentence that names the setting and never the password. Blocks; quick when nothing is to be done.
        """
        parsed = _parse_url(url)
        where = _where(parsed)
        if parsed.get_backend_name() == "sqlite":
            _make_folder(parsed, setting)
            database = cls(_sqlite_engine(parsed), "sqlite")
        else:
            database = cls(_postgres_engine(parsed), "postgresql")
        try:
            database._bring_up_to_date()
        except StoreError as exc:
            database.close()
            raise StoreError(
                f"{setting}: {where} could not be opened. {exc.sentence}",
                retryable=exc.retryable,
                detail=exc.detail,
            ) from exc
        return database

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a SQLite file; PostgreSQL otherwise."""
        return self.dialect == "sqlite"

    @contextmanager
    def reading(self, doing: str) -> Iterator[Connection]:
        """A connection for reading; its transaction ends with the block. Raises StoreError for what the database raises."""
        with store_errors(doing), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, doing: str) -> Iterator[Connection]:
        """A connection in one write transaction: committed at the end of the block, rolled back when it raises.

        Raises StoreError for what the database raises. On SQLite the write lock is taken at once, so that what is read inside
        the block is still true when it writes.
        """
        with store_errors(doing), self.engine.connect() as connection:
            connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections; the database must not be used afterwards. Calling it twice does nothing."""
        self.engine.dispose()

    def _bring_up_to_date(self) -> None:
        if self._schema_revision() == SCHEMA_REVISION:
            return
        # Alembic costs a third of a second to import, which a database that is up to date need not pay.
        runner: Any = import_module("omni.store.migrations.runner")
        runner.migrate(self.writing("migrating the schema"), is_sqlite=self.is_sqlite)

    def _schema_revision(self) -> str | None:
        with self.reading("reading the schema version") as connection:
            if connection.scalar(text(_FIND_VERSION_TABLE[self.dialect])) is None:
                return None
            revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
            return revision


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: the parser's message may quote the URL with its password.
        raise StoreError(f"{URL_SETTING} is not a database URL; it looks like sqlite:///data/omni.db.") from None
    if parsed.drivername in _POSTGRES_SCHEMES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return parsed.set(drivername="sqlite+pysqlite")
    raise StoreError(f"{URL_SETTING} must start with sqlite:// or postgresql://, not {parsed.drivername}://.")


def _where(url: URL) -> str:
    """The database in words, built from the parts that are no secret."""
    if url.get_backend_name() == "sqlite":
        return f"the SQLite file {url.database}" if not _is_memory(url) else "the SQLite database in memory"
    host = url.host or "the local socket"
    return f"the PostgreSQL database {url.database or '(default)'} at {host}" + (f":{url.port}" if url.port else "")


def _is_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:")


def _make_folder(url: URL, setting: str) -> None:
    if url.database is None or _is_memory(url) or url.database.startswith("file:"):
        return
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"{setting}: the folder {folder} of the SQLite file cannot be created ({exc.strerror})."
        ) from exc


def _sqlite_engine(url: URL) -> Engine:
    # A database in memory lives in its one connection, so there is one, and callers take turns.
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if _is_memory(url) else {}
    engine = create_engine(
        url,
        poolclass=QueuePool,
        hide_parameters=True,
        # We begin transactions ourselves (below); the module's own implicit BEGIN would come too late for reads.
        connect_args={"isolation_level": None, "timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        **pool,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


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


def _begin_sqlite(connection: Connection) -> None:
    # Immediate for writers: a transaction that read first could otherwise be refused its first write at once, without waiting.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgres_engine(url: URL) -> Engine:
    connect_args: dict[str, Any] = {"client_encoding": "utf8"}
    if "connect_timeout" not in url.query:
        connect_args["connect_timeout"] = _CONNECT_TIMEOUT_S
    return create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=connect_args)
