"""The one place where database errors become StoreError.

A driver's message may quote a row, and SQLAlchemy's quotes the statement; neither goes into our sentence. ``detail`` holds the
driver's primary message, which names constraints and files, never values.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from omni.errors import StoreError

# Primary result codes of SQLite after which the same statement may succeed later: somebody else holds the file, or the disk is
# full or failing at the moment.
_PASSING_SQLITE = frozenset({
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_INTERRUPT,
})  # fmt: skip
# The low byte of an extended result code is the primary one.
_PRIMARY_CODE_MASK = 0xFF
# SQLSTATE classes of PostgreSQL that pass: connection, rollback (deadlock, serialization), resources, lock not available,
# operator intervention (restart).
_PASSING_SQLSTATES = ("08", "40", "53", "55", "57")


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Raise StoreError for whatever the database raises inside the block; ``doing`` says what was attempted."""
    try:
        yield
    except SQLAlchemyError as exc:
        raise store_error(exc, doing) from exc
    except (sqlite3.Error, psycopg.Error) as exc:
        # From statements that go to the driver directly.
        raise driver_error(exc, doing) from exc
    except ValueError as exc:
        # A date in a row that is none: SQLAlchemy's result processing raises what datetime.fromisoformat raises.
        raise StoreError(f"The database holds a value that cannot be read ({doing}).") from exc


def store_error(exc: SQLAlchemyError, doing: str) -> StoreError:
    """What a database error means: a sentence without any data, and whether trying again makes sense."""
    if isinstance(exc, PoolTimeoutError):
        return StoreError(f"No database connection was free in time ({doing}).", retryable=True)
    cause = exc.orig if isinstance(exc, DBAPIError) else None
    if isinstance(cause, sqlite3.Error | psycopg.Error):
        return driver_error(cause, doing)
    return StoreError(f"The database call failed with {type(cause or exc).__name__} ({doing}).")


def driver_error(cause: sqlite3.Error | psycopg.Error, doing: str) -> StoreError:
    """The same for an error as the driver raised it."""
    return _sqlite_error(cause, doing) if isinstance(cause, sqlite3.Error) else _postgres_error(cause, doing)


def too_slow(doing: str, wait_ms: int) -> StoreError:
    """What a call is answered whose time ran out before the database was even asked."""
    return StoreError(f"The database was not free or not there within {wait_ms} ms ({doing}).", retryable=True)


def _sqlite_error(cause: sqlite3.Error, doing: str) -> StoreError:
    # Errors the module raises by itself, without SQLite, carry neither attribute.
    name = getattr(cause, "sqlite_errorname", type(cause).__name__)
    code = getattr(cause, "sqlite_errorcode", 0)
    return StoreError(
        f"SQLite answered {name} ({doing}).",
        retryable=code & _PRIMARY_CODE_MASK in _PASSING_SQLITE,
        detail=str(cause),
    )


def _postgres_error(cause: psycopg.Error, doing: str) -> StoreError:
    state = cause.sqlstate
    if state is None:
        # Without a state the server said nothing: it could not be reached, or the connection broke.
        is_passing = isinstance(cause, psycopg.OperationalError)
        return StoreError(f"PostgreSQL gave no answer: {type(cause).__name__} ({doing}).", retryable=is_passing)
    return StoreError(
        f"PostgreSQL answered {type(cause).__name__}, SQLSTATE {state} ({doing}).",
        retryable=state.startswith(_PASSING_SQLSTATES),
        detail=cause.diag.message_primary,
    )
