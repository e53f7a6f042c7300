"""Between the ledger's records and the rows of its tables. Pure.

A message goes into its row as JSON. Whatever a webhook may carry comes back as it was, lone surrogates and NUL characters included: JSON
spells both in ASCII, which every database takes. Other columns hold what a database can hold; characters it cannot are replaced.
"""

import json
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from msgspec import structs
from sqlalchemy import RowMapping, Table

from omni.model import InboundMessage
from omni.ports import LedgerOp, PutInbound, PutOutbound, PutReceipt
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord
from omni.store.column_values import column_adapter
from omni.store.schema import omni_inbox, omni_outbox, omni_receipts

Row = tuple[Any, ...]

_OUTBOX_COLUMN_BY_FIELD = {"index": "message_index", "start": "range_start", "end": "range_end"}

_quick_encode = msgspec.json.Encoder().encode
_quick_decode = msgspec.json.Decoder(InboundMessage).decode


class LedgerTable:
    """One of the ledger's tables: its name and columns, and how a record becomes a row of it."""

    def __init__(self, table: Table, record_fields: tuple[str, ...], *, is_sqlite: bool) -> None:
        names = [_OUTBOX_COLUMN_BY_FIELD.get(field, field) for field in record_fields]
        self.name = table.name
        self.key_columns = tuple(column.name for column in table.primary_key.columns)
        self.columns = (*names, *(column.name for column in table.columns if column.name not in names))
        """The columns named after a record's fields, then the others."""
        self.key_of = itemgetter(*(self.columns.index(name) for name in self.key_columns))
        """What tells a row from others, given the row."""
        self._fields_of = attrgetter(*record_fields)
        self._adapters = [column_adapter(table.columns[name], is_sqlite=is_sqlite) for name in names]

    def row(self, record: InboxRecord | OutboxRecord | ReceiptRecord, *others: str | None) -> Row:
        """The values of ``columns``; ``others`` are those of the columns that are no field. Raises TypeError for a wrong one."""
        values = [adapt(value) for adapt, value in zip(self._adapters, self._fields_of(record), strict=True)]
        return (*values, *others)


class LedgerTables:
    """The three tables for one dialect, and the row each operation stands for. Rows carry the process they belong to."""

    def __init__(self, process_id: str, *, is_sqlite: bool) -> None:
        inbox_fields = tuple(name for name in InboxRecord.__struct_fields__ if name != "message")
        self.inbox = LedgerTable(omni_inbox, inbox_fields, is_sqlite=is_sqlite)
        self.outbox = LedgerTable(omni_outbox, OutboxRecord.__struct_fields__, is_sqlite=is_sqlite)
        self.receipts = LedgerTable(omni_receipts, ReceiptRecord.__struct_fields__, is_sqlite=is_sqlite)
        self._process_id = process_id

    def place(self, op: LedgerOp) -> tuple[LedgerTable, Row]:
        """The table an operation changes and the row it puts there. Raises TypeError for a value no column takes."""
        match op:
            case PutInbound(record):
                packed = None if record.message is None else encode_message(record.message)
                return self.inbox, self.inbox.row(record, self._process_id, packed)
            case PutOutbound(record):
                return self.outbox, self.outbox.row(record, self._process_id)
            case PutReceipt(record):
                return self.receipts, self.receipts.row(record)


def encode_message(message: InboundMessage) -> str:
    """A message as JSON. Never raises: an envelope JSON has no form for is left out, the rest stays."""
    try:
        return _quick_encode(message).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return _encode_carefully(message)


def _encode_carefully(message: InboundMessage) -> str:
    try:
        # Spells out what the quick encoder refuses: half a surrogate pair, an integer of more than 64 bits.
        return json.dumps(structs.asdict(message))
    except (TypeError, ValueError, RecursionError):
        return json.dumps(structs.asdict(structs.replace(message, raw={})))


def decode_message(packed: str) -> InboundMessage | None:
    """The message ``encode_message`` wrote, None when the text is none."""
    try:
        return _quick_decode(packed)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        pass
    try:
        return msgspec.convert(json.loads(packed), InboundMessage)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None


def inbox_record(row: RowMapping) -> InboxRecord:
    """A row of omni_inbox as it was put; without its message when that cannot be read back."""
    values = {name: row[name] for name in InboxRecord.__struct_fields__ if name != "message"}
    packed = row["message_json"]
    return InboxRecord(**values, message=None if packed is None else decode_message(packed))


def outbox_record(row: RowMapping) -> OutboxRecord:
    """A row of omni_outbox as it was put."""
    names = OutboxRecord.__struct_fields__
    return OutboxRecord(**{name: row[_OUTBOX_COLUMN_BY_FIELD.get(name, name)] for name in names})


def receipt_record(row: RowMapping) -> ReceiptRecord:
    """A row of omni_receipts as it was put."""
    return ReceiptRecord(**{name: row[name] for name in ReceiptRecord.__struct_fields__})
