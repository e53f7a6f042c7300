"""The predecessor's tables where they are missing, and the settings an instance has with us.

An empty database gets all the predecessor's tables in their newer state. One the predecessor made keeps what it has; only tables
both of its states know are added when missing (databases from before its traces lack those).
"""

import sqlalchemy as sa
from alembic import op

from omni.store.schema import TRACE_TABLES, legacy_metadata

revision: str = "0001"
down_revision: str | None = None
branch_labels: tuple[str, ...] | None = None
depends_on: tuple[str, ...] | None = None


def upgrade() -> None:
    """Create what is missing; touch nothing that is there."""
    connection = op.get_bind()
    # Taken from the schema module and not spelled again: the predecessor's tables never change.
    is_new = not sa.inspect(connection).has_table("instance_configs")
    wanted = legacy_metadata.sorted_tables if is_new else TRACE_TABLES
    legacy_metadata.create_all(connection, tables=wanted, checkfirst=True)
    op.create_table(
        "omni_instance_settings",
        sa.Column("instance_name", sa.String, primary_key=True),
        sa.Column("settings_json", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
    )
