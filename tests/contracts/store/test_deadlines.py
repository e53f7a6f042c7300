"""A transaction with a limit is over in time, whatever the database does, and the next one works as soon as the database does."""

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.contracts.store.hanging_postgres import HangingPostgres, hanging_postgres

from omni.errors import StoreError
from omni.ports import TraceRow
from omni.store.database import Database
from omni.store.queries import SqlTraceReader

WAIT_MS = 300
# What a busy machine may add to a limit, in seconds. Without a limit these calls would not return at all.
GRACE_S = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HangingPostgres]:
    with hanging_postgres(tmp_path_factory.mktemp("hanging")) as running:
        yield running


@pytest.fixture
def postgres(server: HangingPostgres) -> Iterator[Database]:
    database = Database.open(server.url)
    with database.writing("making a table") as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS notes (note VARCHAR)"))
        connection.execute(text("TRUNCATE notes"))
    yield database
    database.close()


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def sqlite(sqlite_path: Path) -> Iterator[Database]:
    database = Database.open(f"sqlite:///{sqlite_path}")
    with database.writing("making a table") as connection:
        connection.execute(text("CREATE TABLE notes (note VARCHAR)"))
    yield database
    database.close()


def note(database: Database, what: str, *, wait_ms: int | None = WAIT_MS) -> None:
    with database.writing("taking a note", wait_ms=wait_ms) as connection:
        connection.execute(text("INSERT INTO notes VALUES (:what)"), {"what": what})


def notes(database: Database) -> list[str]:
    with database.reading("reading notes") as connection:
        return list(connection.scalars(text("SELECT note FROM notes ORDER BY note")))


@contextmanager
def refused_in_time(wait_ms: int = WAIT_MS) -> Iterator[None]:
    """The block fails as passing, and not long after its limit."""
    began_s = time.monotonic()
    with pytest.raises(StoreError) as refused:
        yield
    assert time.monotonic() - began_s < wait_ms / 1000 + GRACE_S
    assert refused.value.retryable is True


def test_a_server_that_freezes_inside_a_transaction_fails_it_in_time(
    server: HangingPostgres, postgres: Database
) -> None:
    with (
        ExitStack() as until_thawed,
        refused_in_time(),
        postgres.writing("taking a note", wait_ms=WAIT_MS) as connection,
    ):
        connection.execute(text("INSERT INTO notes VALUES ('lost')"))
        until_thawed.enter_context(server.frozen())
        connection.execute(text("SELECT 1"))
    note(postgres, "kept", wait_ms=10_000)
    assert notes(postgres) == ["kept"]


def test_a_server_that_freezes_at_the_commit_fails_it_in_time(server: HangingPostgres, postgres: Database) -> None:
    with (
        ExitStack() as until_thawed,
        refused_in_time(),
        postgres.writing("taking a note", wait_ms=WAIT_MS) as connection,
    ):
        connection.execute(text("INSERT INTO notes VALUES ('perhaps')"))
        until_thawed.enter_context(server.frozen())
    note(postgres, "surely", wait_ms=10_000)
    assert notes(postgres) in (["perhaps", "surely"], ["surely"])


def test_a_pooled_connection_to_a_frozen_server_fails_in_time_and_does_not_stay_in_the_pool(
    server: HangingPostgres, postgres: Database
) -> None:
    note(postgres, "before")
    with server.frozen():
        for _ in range(2):
            with refused_in_time():
                note(postgres, "meanwhile")
    note(postgres, "after", wait_ms=10_000)
    assert notes(postgres) == ["after", "before"]


def test_connecting_to_a_frozen_server_fails_in_time_and_again_and_again(
    server: HangingPostgres, postgres: Database
) -> None:
    # More attempts than threads that may hang at connecting.
    with server.frozen():
        for _ in range(6):
            with refused_in_time(100):
                note(postgres, "meanwhile", wait_ms=100)
    note(postgres, "after", wait_ms=10_000)
    assert notes(postgres) == ["after"]


def test_reading_keeps_to_its_limit_too(server: HangingPostgres, postgres: Database) -> None:
    with server.frozen(), refused_in_time(), postgres.reading("reading", wait_ms=WAIT_MS) as connection:
        connection.execute(text("SELECT 1"))


def test_a_transaction_that_ends_in_time_leaves_its_connection_alone(postgres: Database) -> None:
    for number in range(20):
        note(postgres, f"{number:02}", wait_ms=50 if number % 2 else 10_000)
    with postgres.writing("staying longer than the others' limits", wait_ms=10_000) as connection:
        # The server itself lets the other deadlines pass.
        connection.execute(text("SELECT pg_sleep(0.2)"))
        connection.execute(text("INSERT INTO notes VALUES ('99')"))
    assert notes(postgres) == [f"{number:02}" for number in (*range(20), 99)]


def test_a_restarted_server_costs_no_write(server: HangingPostgres, postgres: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: note(postgres, f"before {number}", wait_ms=10_000), range(3)))
    server.restart()
    note(postgres, "after", wait_ms=10_000)
    assert notes(postgres) == ["after", "before 0", "before 1", "before 2"]


def test_a_connection_that_breaks_under_the_driver_alone_fails_once_and_is_replaced(
    server: HangingPostgres, postgres: Database
) -> None:
    with refused_in_time(10_000), postgres.writing("writing", wait_ms=10_000) as connection:
        driver = connection.connection.dbapi_connection
        assert driver is not None
        cursor = driver.cursor()
        cursor.execute("SELECT 1")
        server.restart()
        cursor.execute("SELECT 1")
    note(postgres, "after", wait_ms=10_000)
    assert notes(postgres) == ["after"]


def test_calls_without_a_limit_do_not_keep_those_with_one_from_a_connection(postgres: Database) -> None:
    with ExitStack() as held:
        for _ in range(15):
            held.enter_context(postgres.reading("holding all the connections there are"))
        note(postgres, "all the same", wait_ms=10_000)
    assert notes(postgres) == ["all the same"]


LAST_WORDS = """
import atexit, sys
from omni.ports import InsertTrace
from omni.store.database import Database
from omni.store.writes import SqlTraceSink

database = Database.open(sys.argv[1])

@atexit.register
def write_last_words():
    SqlTraceSink(database, wait_ms=10_000).write([InsertTrace("last words", {})])
    database.close()
"""


def test_a_script_writes_its_last_records_while_the_interpreter_ends(database_url: str) -> None:
    subprocess.run([sys.executable, "-c", LAST_WORDS, database_url], check=True, timeout=60)
    database = Database.open(database_url)
    assert SqlTraceReader(database).get_trace("last words") == TraceRow(trace_id="last words")
    database.close()


def hold_lock(path: Path, is_held: Event, may_end: Event) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    is_held.set()
    may_end.wait(60)
    connection.execute("ROLLBACK")
    connection.close()


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[Callable[[], None]]:
    """Another process holds the write lock; yields what makes it let go."""
    context = multiprocessing.get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(path, is_held, may_end))
    process.start()
    try:
        assert is_held.wait(60)
        yield may_end.set
    finally:
        may_end.set()
        process.join(60)


def test_a_sqlite_file_another_process_holds_is_waited_for_no_longer_than_the_limit(
    sqlite: Database, sqlite_path: Path
) -> None:
    with locked_by_another_process(sqlite_path):
        began_s = time.monotonic()
        with refused_in_time():
            note(sqlite, "meanwhile")
        assert time.monotonic() - began_s >= WAIT_MS / 1000 * 0.9
    note(sqlite, "after")
    assert notes(sqlite) == ["after"]


def test_a_sqlite_file_that_is_let_go_in_time_is_written(sqlite: Database, sqlite_path: Path) -> None:
    with locked_by_another_process(sqlite_path) as let_go:
        timer = threading.Timer(0.1, let_go)
        timer.start()
        note(sqlite, "in time", wait_ms=30_000)
        timer.join()
    assert notes(sqlite) == ["in time"]


def test_the_limit_of_one_sqlite_transaction_is_not_that_of_the_next(sqlite: Database) -> None:
    def busy_timeout_ms(wait_ms: int | None) -> int:
        with sqlite.writing("looking", wait_ms=wait_ms) as connection:
            return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

    assert [busy_timeout_ms(wait_ms) for wait_ms in (None, 700, None)] == [5000, 700, 5000]


def test_threads_of_one_process_wait_for_each_other_no_longer_than_the_limit(sqlite: Database) -> None:
    with ThreadPoolExecutor(1) as pool, sqlite.writing("holding") as connection:
        connection.execute(text("INSERT INTO notes VALUES ('first')"))
        other = pool.submit(note, sqlite, "second", wait_ms=100)
        with pytest.raises(StoreError) as refused:
            other.result(timeout=GRACE_S)
    assert (refused.value.sentence, refused.value.retryable) == (
        "The database was not free or not there within 100 ms (taking a note).",
        True,
    )
    note(sqlite, "third")
    assert notes(sqlite) == ["first", "third"]


def test_a_writer_that_waits_for_another_thread_goes_on_when_that_is_done(sqlite: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with sqlite.writing("holding") as connection:
            connection.execute(text("INSERT INTO notes VALUES ('first')"))
            other = pool.submit(note, sqlite, "second", wait_ms=30_000)
        other.result(timeout=GRACE_S)
    assert notes(sqlite) == ["first", "second"]


def test_many_readers_of_a_sqlite_file_do_not_keep_the_writer_from_a_connection(sqlite: Database) -> None:
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(sqlite.reading("holding many connections"))
        note(sqlite, "all the same")
    assert notes(sqlite) == ["all the same"]
