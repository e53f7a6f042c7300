"""Alembic's entry: runs inside the transaction the runner opened."""

from alembic import context

from omni.store.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
