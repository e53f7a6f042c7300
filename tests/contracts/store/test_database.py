"""A database opens by its URL alone: made when it is missing, left alone when it is there, refused in clear words when it cannot be."""

import multiprocessing
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from omni.errors import StoreError
from omni.ports import InsertTrace, TraceRow
from omni.store.database import Database
from omni.store.migrations.runner import newest_revision
from omni.store.queries import SqlTraceReader
from omni.store.schema import SCHEMA_REVISION, legacy_metadata, own_metadata
from omni.store.writes import SqlTraceSink

UrlMaker = Callable[[str], str]
ALL_TABLES = {*legacy_metadata.tables, *own_metadata.tables, "omni_schema_version"}
HEAD_CAPTURE = Path(__file__).parents[2] / "captures" / "legacy" / "legacy_head.db"


def table_names(database: Database) -> set[str]:
    with database.reading("listing tables") as connection:
        return set(inspect(connection).get_table_names())


def open_and_count(url: str) -> int:
    database = Database.open(url)
    with database.reading("counting versions") as connection:
        number = int(connection.scalar(text("SELECT count(*) FROM omni_schema_version")) or 0)
    database.close()
    return number


def test_a_new_database_gets_all_tables_and_our_own_bookkeeping(new_database_url: UrlMaker) -> None:
    database = Database.open(new_database_url("empty"))
    assert table_names(database) == ALL_TABLES
    with database.reading("reading the version") as connection:
        assert connection.scalars(text("SELECT version_num FROM omni_schema_version")).all() == [SCHEMA_REVISION]
    database.close()


def test_the_newest_migration_is_the_one_this_version_asks_for() -> None:
    assert newest_revision() == SCHEMA_REVISION


def test_the_migrations_make_what_the_schema_module_says(database: Database) -> None:
    with database.reading("comparing") as connection:
        inspector = inspect(connection)
        made = {name: [c["name"] for c in inspector.get_columns(name)] for name in ALL_TABLES - {"omni_schema_version"}}
    tables = {**legacy_metadata.tables, **own_metadata.tables}
    assert made == {name: list(table.columns.keys()) for name, table in tables.items()}


def test_opening_again_changes_nothing(new_database_url: UrlMaker) -> None:
    url = new_database_url("empty")
    assert [open_and_count(url), open_and_count(url)] == [1, 1]


@pytest.mark.slow
def test_processes_opening_a_new_database_at_once_all_succeed(new_database_url: UrlMaker) -> None:
    url = new_database_url("empty")
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(open_and_count, [url] * 3, timeout=60)) == [1, 1, 1]


def test_a_database_of_a_newer_version_is_refused_in_clear_words(database: Database, database_url: str) -> None:
    with database.writing("pretending") as connection:
        connection.execute(text("UPDATE omni_schema_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"written by another, newer version of Omni; use that version\.$"):
        Database.open(database_url)


def test_an_alembic_version_of_somebody_else_is_left_alone(new_database_url: UrlMaker) -> None:
    url = new_database_url("empty")
    first = Database.open(url)
    with first.writing("making a foreign table") as connection:
        connection.execute(text("DROP TABLE omni_schema_version"))
        own_metadata.drop_all(connection)
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('49e3788203da')"))
    first.close()
    second = Database.open(url)
    assert table_names(second) == {*ALL_TABLES, "alembic_version"}
    with second.reading("reading the foreign table") as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == ["49e3788203da"]
    second.close()


def test_a_predecessor_without_trace_tables_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE instance_configs (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL)")
    connection.close()
    database = Database.open(f"sqlite:///{path}")
    assert table_names(database) == ALL_TABLES - {"access_rules", "telemetry_traces", "user_external_ids"}
    with database.reading("looking at the old table") as opened:
        assert [column["name"] for column in inspect(opened).get_columns("instance_configs")] == ["id", "name"]
    database.close()


Shape = tuple[list[tuple[object, ...]], list[tuple[object, ...]], list[tuple[object, ...]]]


def table_shape(path: Path, table: str) -> Shape:
    """Columns, indexes with their columns, and foreign keys, as SQLite reports them."""
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    indexes = [
        (*rest, tuple(connection.execute(f"PRAGMA index_info({rest[0]})").fetchall()))
        for _, *rest in connection.execute(f"PRAGMA index_list({table})").fetchall()
    ]
    foreign_keys = connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
    connection.close()
    return columns, sorted(indexes), foreign_keys


@pytest.mark.parametrize("table", list(legacy_metadata.tables))
def test_a_new_database_has_the_predecessors_tables_to_the_last_default(migrated_sqlite_file: Path, table: str) -> None:
    expected = table_shape(HEAD_CAPTURE, table)
    assert len(expected[0]) > 5
    assert table_shape(migrated_sqlite_file, table) == expected


def test_sqlite_runs_in_wal_mode_with_foreign_keys_off(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    with database.reading("reading pragmas") as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names}
    database.close()
    # 1 is NORMAL.
    assert values == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 0, "busy_timeout": 5000}


def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "50%" / "new folder" / "omni.db"
    Database.open(f"sqlite:///{path}").close()
    assert path.is_file()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_one_database_for_all_threads(url: str) -> None:
    database = Database.open(url)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(SqlTraceSink(database).write, [InsertTrace("t1", {"status": "received"})]).result(timeout=10)
        read = pool.submit(SqlTraceReader(database).get_trace, "t1").result(timeout=10)
    database.close()
    assert read == TraceRow(trace_id="t1", status="received")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (
            "not a url with secret",
            "AUTOMAGIK_OMNI_DATABASE_URL is not a database URL; it looks like sqlite:///data/omni.db.",
        ),
        (
            "postgresql://u:secret@h:port/db",
            "AUTOMAGIK_OMNI_DATABASE_URL is not a database URL; it looks like sqlite:///data/omni.db.",
        ),
        (
            "mysql://u:secret@h/db",
            "AUTOMAGIK_OMNI_DATABASE_URL must start with sqlite:// or postgresql://, not mysql://.",
        ),
        (
            "postgresql://u:secret@127.0.0.1:1/db?application_name=secret",
            (
                "AUTOMAGIK_OMNI_DATABASE_URL: the PostgreSQL database db at 127.0.0.1:1 could not be opened."
                " PostgreSQL gave no answer: OperationalError (reading the schema version)."
            ),
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_the_password(url: str, sentence: str) -> None:
    with pytest.raises(StoreError) as refused:
        Database.open(url)
    assert refused.value.sentence == sentence
    shown: list[str] = []
    error: BaseException | None = refused.value
    while error is not None:
        shown.append(f"{error} {getattr(error, 'detail', None)}")
        error = error.__cause__
    assert "secret" not in " ".join(shown)


def test_an_unreachable_server_is_a_passing_failure() -> None:
    with pytest.raises(StoreError) as refused:
        Database.open("postgresql://127.0.0.1:1/db")
    assert refused.value.retryable is True


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear reader, this is no database. " * 100)
    with pytest.raises(StoreError) as refused:
        Database.open(f"sqlite:///{path}")
    assert refused.value.sentence == (
        f"AUTOMAGIK_OMNI_DATABASE_URL: the SQLite file {path} could not be opened."
        " SQLite answered SQLITE_NOTADB (reading the schema version)."
    )


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        Database.open(f"sqlite:///{tmp_path}/file/omni.db")


def test_a_broken_connection_fails_once_as_passing_and_is_replaced(postgres_url: str) -> None:
    database = Database.open(postgres_url)
    killer = Database.open(postgres_url)
    with pytest.raises(StoreError) as refused, database.reading("waiting") as connection:  # noqa: PT012 - one story
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with killer.writing("ending the other's connection") as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        connection.execute(text("SELECT 1"))
    assert refused.value.retryable is True
    assert table_names(database) == ALL_TABLES
    database.close()
    killer.close()
