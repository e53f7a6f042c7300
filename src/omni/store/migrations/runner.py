"""Brings a database to the schema this version needs. Imported only when there is something to do.

Safe when several processes open the same database at once: one migrates, the others wait and find it done.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from omni.errors import StoreError
from omni.store.schema import SCHEMA_REVISION

# Names our migrations among the advisory locks of a PostgreSQL server ("omni" in ASCII).
_LOCK_KEY = 0x6F6D6E69
# How long to wait for another process that migrates.
_LOCK_TIMEOUT_S = 60


def migrate(transaction: AbstractContextManager[Connection], *, is_sqlite: bool) -> None:
    """Run the migrations that are missing inside ``transaction``. Raises StoreError; the database is then as it was."""
    with transaction as connection:
        if not is_sqlite:
            # SQLite's write transaction is exclusive by itself; PostgreSQL's is made so here, until it ends.
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        _upgrade(connection)


def newest_revision() -> str | None:
    """The last migration in the package; a test holds SCHEMA_REVISION to it."""
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def _upgrade(connection: Connection) -> None:
    try:
        command.upgrade(_config(connection), SCHEMA_REVISION)
    except CommandError as exc:
        # Alembic's way of saying that it does not know the revision it finds.
        raise StoreError("Its tables were written by another, newer version of Omni; use that version.") from exc


def _config(connection: Connection | None) -> Config:
    config = Config()
    # "%" is interpolation in Alembic's configuration; a folder may have one in its name.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
