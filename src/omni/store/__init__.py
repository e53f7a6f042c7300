"""The database: legacy tables, our own additions, and how payloads are packed."""
