"""A database of an earlier version of ours is brought up to date in place, and ends up as the schema module says."""

from collections.abc import Callable
from typing import Any

from alembic import command
from sqlalchemy import Connection, create_engine, insert, inspect, select
from tests.contracts.store.ledger_examples import NOON

from omni.store.database import Database
from omni.store.migrations import runner
from omni.store.schema import omni_instance_settings, own_metadata

UrlMaker = Callable[[str], str]


def make_revision_1(url: str) -> None:
    """A database as the first version left it, with a row of ours in it."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        command.upgrade(runner._config(connection), "0001")
        row = {"instance_name": "flash", "settings_json": '{"language":"pt"}', "updated_at": NOON}
        connection.execute(insert(omni_instance_settings).values(row))
    engine.dispose()


def own_shape(connection: Connection) -> dict[str, Any]:
    """Everything the database says of our tables, in an order that does not depend on it."""
    inspector = inspect(connection)
    shape: dict[str, Any] = {}
    for table in sorted(own_metadata.tables):
        shape[table] = {
            "columns": [{**c, "type": str(c["type"])} for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "indexes": sorted(
                (str(index["name"]), index["column_names"], index["unique"], where_of(index.get("dialect_options", {})))
                for index in inspector.get_indexes(table)
            ),
        }
    return shape


def where_of(options: Any) -> list[str]:
    return [f"{name}: {condition}" for name, condition in options.items() if name.endswith("_where")]


def test_a_database_of_the_first_version_gets_the_new_tables_and_keeps_its_rows(new_database_url: UrlMaker) -> None:
    url = new_database_url("empty")
    make_revision_1(url)
    database = Database.open(url)
    with database.reading("looking") as connection:
        row = tuple(connection.execute(select(omni_instance_settings)).one())
        tables = set(inspect(connection).get_table_names())
    database.close()
    assert row == ("flash", '{"language":"pt"}', NOON)
    assert tables >= {"omni_processes", "omni_open_traces", "omni_inbox", "omni_outbox", "omni_receipts"}


def test_the_migrations_make_our_tables_to_the_last_index_as_the_schema_module_has_them(
    new_database_url: UrlMaker,
) -> None:
    migrated = Database.open(new_database_url("empty"))
    with migrated.writing("looking, then making them from the schema") as connection:
        by_migrations = own_shape(connection)
        own_metadata.drop_all(connection)
        own_metadata.create_all(connection)
        by_schema = own_shape(connection)
    migrated.close()
    assert by_migrations == by_schema
    indexes = [name for table in by_schema.values() for name, *_ in table["indexes"]]
    assert {"ix_omni_inbox_open", "ix_omni_outbox_open", "ix_omni_outbox_key", "ix_omni_receipts_unjoined"} <= {
        *indexes
    }
