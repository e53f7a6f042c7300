"""One database: opened by URL, brought to our schema, handed out as connections for reading and for writing.

SQLite runs in WAL mode so that readers never wait for the writer; foreign keys stay off, as the predecessor had them. PostgreSQL
goes through psycopg. Opening adds our own tables and nothing else to a database that holds the predecessor's.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from sqlalchemy import URL, Connection, Engine, make_url, text
from sqlalchemy.exc import ArgumentError

from omni.errors import StoreError
from omni.store.deadlines import Deadline, DeadlineWatch
from omni.store.engines import BUSY_TIMEOUT_MS, WRITES, QuickPostgres, is_memory, postgres_engine, sqlite_engine
from omni.store.failures import store_errors, too_slow
from omni.store.schema import SCHEMA_REVISION, VERSION_TABLE

Dialect = Literal["sqlite", "postgresql"]

URL_SETTING = "AUTOMAGIK_OMNI_DATABASE_URL"
IN_LIST_SIZE = 500
"""Values in one IN list: well below what either database takes, and beyond it longer lists gain nothing."""

_POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_FIND_VERSION_TABLE = {
    "sqlite": f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{VERSION_TABLE}'",  # noqa: S608 - a constant
    "postgresql": f"SELECT 1 WHERE to_regclass('{VERSION_TABLE}') IS NOT NULL",
}

_Item = TypeVar("_Item")


class Database:
    """An open database of a known schema. Safe to share between threads; each call takes its own connection."""

    def __init__(self, url: URL) -> None:
        self.dialect: Dialect = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"
        self._deadlines = DeadlineWatch()
        # SQLite has one writer at a time. Threads of ours wait for each other here, where a free turn is noticed at once, and not in
        # SQLite, which looks again after ever longer sleeps. Other processes are waited for there.
        self._sqlite_turn = threading.Lock()
        self._quick: QuickPostgres | None = None
        self.engine: Engine
        if self.dialect == "sqlite":
            self.engine = sqlite_engine(url, self._deadlines)
        else:
            self.engine = postgres_engine(url)
            self._quick = QuickPostgres(url, self._deadlines)

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
        database = cls(parsed)
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
    def reading(self, doing: str, *, wait_ms: int | None = None) -> Iterator[Connection]:
        """A connection for reading; its transaction ends with the block. Raises StoreError for what the database raises.

        ``wait_ms`` limits the block as it does for ``writing``.
        """
        with (
            store_errors(doing),
            self._deadlines.limit(wait_ms) as deadline,
            self._engine(deadline).connect() as connection,
        ):
            yield connection

    @contextmanager
    def writing(self, doing: str, *, wait_ms: int | None = None) -> Iterator[Connection]:
        """A connection in one write transaction: committed at the end of the block, rolled back when it raises.

        Raises StoreError for what the database raises. On SQLite the write lock is taken at once, so that what is read inside
        the block is still true when it writes.

        With ``wait_ms`` the whole transaction is over after about that many milliseconds, connecting and committing included:
        it has succeeded, or a retryable StoreError is raised, even when the server hangs. A commit that was broken off may
        have reached the server all the same. On SQLite the limit is for waiting for other writers; a disk that hangs has none.
        """
        with (
            store_errors(doing),
            self._deadlines.limit(wait_ms) as deadline,
            self._writers_turn(doing, deadline),
            self._engine(deadline).connect() as connection,
        ):
            connection.execution_options(**{WRITES: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections; the database must not be used afterwards. Calling it twice does nothing."""
        self.engine.dispose()
        if self._quick is not None:
            self._quick.close()
        self._deadlines.close()

    def _engine(self, deadline: Deadline | None) -> Engine:
        return self.engine if deadline is None or self._quick is None else self._quick.engine

    @contextmanager
    def _writers_turn(self, doing: str, deadline: Deadline | None) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        wait_s = BUSY_TIMEOUT_MS / 1000 if deadline is None else deadline.remaining_s
        if not self._sqlite_turn.acquire(timeout=wait_s):
            raise too_slow(doing, BUSY_TIMEOUT_MS if deadline is None else deadline.wait_ms)
        try:
            yield
        finally:
            self._sqlite_turn.release()

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


def in_portions(items: Iterable[_Item], size: int = IN_LIST_SIZE) -> Iterator[list[_Item]]:
    """The items in lists of at most ``size``, for IN lists.

    >>> list(in_portions("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    remaining = iter(items)
    while portion := list(islice(remaining, size)):
        yield portion


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
        return f"the SQLite file {url.database}" if not is_memory(url) else "the SQLite database in memory"
    host = url.host or "the local socket"
    return f"the PostgreSQL database {url.database or '(default)'} at {host}" + (f":{url.port}" if url.port else "")


def _make_folder(url: URL, setting: str) -> None:
    if url.database is None or is_memory(url) or url.database.startswith("file:"):
        return
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(
            f"{setting}: the folder {folder} of the SQLite file cannot be created ({exc.strerror})."
        ) from exc
