"""Opens the configured database for a command and closes it after."""

from collections.abc import Iterator
from contextlib import contextmanager

from omni.settings import load_settings
from omni.store.database import Database


@contextmanager
def open_database() -> Iterator[Database]:
    """The database of the settings. Raises SettingsError and StoreError."""
    settings = load_settings()
    database = Database.open(settings.resolved_database_url, setting=settings.database_setting)
    try:
        yield database
    finally:
        database.close()
