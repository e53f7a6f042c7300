"""Configured instances, in whichever of the predecessor's two tables the database has.

Columns are read from the database when the store is made and never altered. What the table has no column for is kept in
``omni_instance_settings``. Rows come out as plain mappings with both, dates timezone-aware.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, MetaData, Table, delete, func, insert, inspect, or_, select, text, update

from omni.clock import Clock, SystemClock, wall_datetime
from omni.errors import RecordNotFound, StoreError
from omni.model import InstanceConfig
from omni.store.database import Database
from omni.store.failures import store_errors
from omni.store.instance_rows import OWN_SETTINGS, changed_values, new_row, split_values
from omni.store.schema import (
    access_rules,
    message_traces,
    naive_utc,
    omni_instance_settings,
    user_external_ids,
    users,
)

_READING = "reading instances"
_WRITING = "writing instances"


class SqlInstanceStore:
    """An ``InstanceStore`` on SQLite or PostgreSQL. Safe from any thread; methods block and raise StoreError."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        with store_errors(_READING):
            self._table = Table("instance_configs", MetaData(), autoload_with=database.engine, resolve_fks=False)
            names = set(inspect(database.engine).get_table_names())
        self._has_external_ids = user_external_ids.name in names
        self._has_access_rules = access_rules.name in names

    def list_rows(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Instances in the order they were made."""
        table = self._table
        with self._database.reading(_READING) as connection:
            found = connection.execute(select(table).order_by(table.c.id).limit(limit).offset(offset)).mappings().all()
            return self._with_settings(connection, found)

    def get_row(self, name: str) -> dict[str, Any] | None:
        """One instance's columns and settings, or None."""
        with self._database.reading(_READING) as connection:
            return self._row(connection, name)

    def get(self, name: str) -> InstanceConfig | None:
        """One instance as the gateway uses it, or None; rows with the predecessor's hive_* settings read as what they describe."""
        row = self.get_row(name)
        return None if row is None else InstanceConfig.from_any(row)

    def create(self, values: dict[str, Any]) -> dict[str, Any]:
        """Insert one instance and return its row; the new default, if it is one, replaces the old.

        Raises StoreError: 409 when the name is taken, 422 for values no instance can have.
        """
        complete = new_row(values, table_columns=self._table.c)
        columns, extra = split_values(complete, table_columns=self._table.c)
        name = columns["name"]
        now = self._now()
        with self._database.writing(_WRITING) as connection:
            self._lock(connection)
            if self._row(connection, name) is not None:
                raise StoreError(f"There is an instance named {name!r} already.", status_code=409)
            if columns["is_default"]:
                self._clear_default(connection)
            connection.execute(insert(self._table).values(columns | {"created_at": now, "updated_at": now}))
            self._put_settings(connection, name, extra)
            return self._require(connection, name)

    def update(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Change one instance and return its row. Raises RecordNotFound, or StoreError (422) for values it cannot have."""
        with self._database.writing(_WRITING) as connection:
            self._lock(connection)
            row = self._require(connection, name)
            columns, extra = split_values(changed_values(row, values), table_columns=self._table.c)
            if columns.get("is_default"):
                self._clear_default(connection)
            changes = columns | {"updated_at": self._now()}
            connection.execute(update(self._table).where(self._table.c.name == name).values(changes))
            self._put_settings(connection, name, extra)
            return self._require(connection, name)

    def delete(self, name: str) -> None:
        """Remove one instance, its users and its rules; its traces stay. Raises RecordNotFound.

        PostgreSQL enforces the traces' foreign key, so there they lose the instance's name.
        """
        with self._database.writing(_WRITING) as connection:
            self._lock(connection)
            self._require(connection, name)
            self._delete_dependents(connection, name)
            connection.execute(delete(self._table).where(self._table.c.name == name))

    def count(self) -> int:
        """How many instances are configured."""
        with self._database.reading(_READING) as connection:
            return int(connection.scalar(select(func.count()).select_from(self._table)) or 0)

    def _lock(self, connection: Connection) -> None:
        # One writer at a time keeps "one default" and "names are unique" true; SQLite's write transaction is that already.
        if not self._database.is_sqlite:
            connection.execute(text("LOCK TABLE instance_configs IN SHARE ROW EXCLUSIVE MODE"))

    def _row(self, connection: Connection, name: str) -> dict[str, Any] | None:
        found = connection.execute(select(self._table).where(self._table.c.name == name)).mappings().all()
        rows = self._with_settings(connection, found)
        return rows[0] if rows else None

    def _require(self, connection: Connection, name: str) -> dict[str, Any]:
        row = self._row(connection, name)
        if row is None:
            raise RecordNotFound(f"There is no instance named {name!r}.")
        return row

    def _with_settings(self, connection: Connection, found: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
        names = [row["name"] for row in found]
        ours = omni_instance_settings.c
        wanted = select(ours.instance_name, ours.settings_json).where(ours.instance_name.in_(names))
        stored = {name: _settings_from(name, value) for name, value in connection.execute(wanted)}
        defaults = {name: default for name, (_, default) in OWN_SETTINGS.items()}
        return [{**defaults, **stored.get(row["name"], {}), **_aware(row)} for row in found]

    def _put_settings(self, connection: Connection, name: str, extra: Mapping[str, Any]) -> None:
        if not extra:
            return
        ours = omni_instance_settings.c
        stored = connection.scalar(select(ours.settings_json).where(ours.instance_name == name))
        merged = {**(_settings_from(name, stored) if stored else {}), **extra}
        row = {
            "instance_name": name,
            "settings_json": msgspec.json.encode(merged).decode(),
            "updated_at": self._now(),
        }
        connection.execute(delete(omni_instance_settings).where(ours.instance_name == name))
        connection.execute(insert(omni_instance_settings).values(row))

    def _clear_default(self, connection: Connection) -> None:
        is_default = self._table.c.is_default
        connection.execute(update(self._table).where(is_default.is_(True)).values(is_default=False))

    def _delete_dependents(self, connection: Connection, name: str) -> None:
        of_instance = users.c.instance_name == name
        if self._has_external_ids:
            linked = user_external_ids.c.user_id.in_(select(users.c.id).where(of_instance))
            named = user_external_ids.c.instance_name == name
            connection.execute(delete(user_external_ids).where(or_(named, linked)))
        if self._has_access_rules:
            connection.execute(delete(access_rules).where(access_rules.c.instance_name == name))
        connection.execute(delete(users).where(of_instance))
        connection.execute(delete(omni_instance_settings).where(omni_instance_settings.c.instance_name == name))
        if not self._database.is_sqlite:
            theirs = message_traces.c.instance_name == name
            connection.execute(update(message_traces).where(theirs).values(instance_name=None))

    def _now(self) -> datetime:
        return naive_utc(wall_datetime(self._clock.wall_ns()))


def _aware(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value for name, value in row.items()}


def _settings_from(name: str, stored: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(stored, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise StoreError(f"The settings stored for instance {name!r} are not a JSON object.") from exc
