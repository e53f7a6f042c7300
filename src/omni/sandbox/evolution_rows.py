"""What the simulated Evolution keeps of messages, and its ``findMessages``: pure, in memory.

Rows and pages have the recorded form. A query may name a key's id, ``fromMe`` and address and both ends of a time; ``fromMe: false``
filters nothing, as in the real service. Newest rows come first.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from omni.sandbox.evolution_wire import Json, ReceiptStatus

DEFAULT_PAGE_ROWS = 50

_ROW_FIELDS = ("pushName", "messageType", "message", "messageTimestamp", "instanceId", "source", "contextInfo")


class MessageRows:
    """The messages of one instance. With ``keeps`` False nothing is kept, as with Evolution's saving switched off."""

    def __init__(self) -> None:
        self.keeps = True
        self._rows: list[Json] = []

    def add(self, message: Mapping[str, Any], *, row_id: str) -> None:
        """Keep a message as an event describes it."""
        if not self.keeps:
            return
        key = message["key"]
        names = ("id", "fromMe", "remoteJid", "remoteJidAlt", "addressingMode")
        row: Json = {"id": row_id, "key": {name: key[name] for name in names if name in key}}
        row |= {name: message.get(name) for name in _ROW_FIELDS}
        row["MessageUpdate"] = []
        self._rows.append(row)

    def note_status(self, key_id: str, status: ReceiptStatus) -> None:
        """Add a receipt's status to its message's row."""
        for row in self._rows:
            if row["key"]["id"] == key_id:
                row["MessageUpdate"].append({"status": status})

    def find(self, query: Any) -> Json:
        """The page a query asks for, as ``findMessages`` answers it."""
        query = query if isinstance(query, dict) else {}
        where = query.get("where") or {}
        per_page = query.get("offset") or DEFAULT_PAGE_ROWS
        page = query.get("page") or 1
        # Newest first; of equal seconds, the one kept last.
        found = [row for row in reversed(self._rows) if _is_wanted(row, where)]
        found.sort(key=lambda row: row["messageTimestamp"], reverse=True)
        return {
            "messages": {
                "total": len(found),
                "pages": -(-len(found) // per_page),
                "currentPage": page,
                "records": found[per_page * (page - 1) : per_page * page],
            }
        }


def _is_wanted(row: Json, where: Mapping[str, Any]) -> bool:
    wanted_key = where.get("key") or {}
    if any(wanted_key.get(name) and row["key"].get(name) != wanted_key[name] for name in ("id", "fromMe", "remoteJid")):
        return False
    span = where.get("messageTimestamp") or {}
    if not (span.get("gte") and span.get("lte")):
        return True
    first_s, last_s = (int(datetime.fromisoformat(span[name]).timestamp()) for name in ("gte", "lte"))
    return bool(first_s <= row["messageTimestamp"] <= last_s)
