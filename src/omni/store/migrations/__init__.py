"""Our schema's history. ``alembic_version``, the predecessor's own bookkeeping, is never read or written here."""
