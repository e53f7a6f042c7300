"""How operations become the bytes of a spool entry, and how they are read back. Pure.

What comes back does what the originals would have done: the same rows, character for character. Values MessagePack has no form for
(half a surrogate pair, an integer of more than 64 bits, a moment without a zone) travel as extensions; a payload that holds what JSON
has no form for either is stored as the database would have stored it, and the row says so. A checksum tells a damaged entry.
"""

import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.msgpack import Ext

from omni.errors import StoreError
from omni.ports import (
    DropPayloads,
    InsertPayload,
    InsertTrace,
    LedgerOp,
    PutInbound,
    PutOutbound,
    PutReceipt,
    UpdateTrace,
    WriteOp,
)
from omni.store.payload_codec import decode_payload, encode_payload

# First byte of an entry: the layout below, as it is or packed by zlib. Another first byte is another version's.
_PLAIN, _PACKED = b"\x01", b"\x02"
_CHECKSUM_BYTES = 4
# Below this, packing costs more than the bytes it saves.
_PACK_FROM_BYTES = 512
# The quickest level: entries are short-lived, and the disk is not what is scarce.
_PACK_LEVEL = 1

_TRACE_KINDS: dict[str, type[Any]] = {
    "insert_trace": InsertTrace,
    "update_trace": UpdateTrace,
    "insert_payload": InsertPayload,
    "drop_payloads": DropPayloads,
}
_LEDGER_KINDS: dict[str, type[Any]] = {"inbound": PutInbound, "outbound": PutOutbound, "receipt": PutReceipt}
_KIND_OF: dict[type[Any], str] = {kind: name for name, kind in (_TRACE_KINDS | _LEDGER_KINDS).items()}

# Extension codes. A number that was used once keeps its meaning.
_TEXT, _INTEGER, _PAIRS, _NAIVE_MOMENT = 1, 2, 3, 4
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1


class DamagedEntry(ValueError):
    """The bytes of an entry are not what was stored, or another version's."""


def pack_ops(ops: Sequence[WriteOp] | Sequence[LedgerOp]) -> bytes:
    """The entry for these operations. Raises StoreError when one holds a value no store would take."""
    items = [(_KIND_OF[type(op)], op) for op in ops]
    body = _encode_if_exact(items)
    if body is None:
        body = msgspec.msgpack.encode([(kind, _portable_op(op)) for kind, op in items])
    if len(body) >= _PACK_FROM_BYTES:
        packed = zlib.compress(body, _PACK_LEVEL)
        if len(packed) < len(body):
            return _PACKED + _checksum(packed) + packed
    return _PLAIN + _checksum(body) + body


def unpack_trace_ops(entry: bytes) -> list[WriteOp]:
    """The operations of a trace entry. Raises DamagedEntry."""
    return _unpack(entry, _TRACE_KINDS)


def unpack_ledger_ops(entry: bytes) -> list[LedgerOp]:
    """The operations of a ledger entry. Raises DamagedEntry."""
    return _unpack(entry, _LEDGER_KINDS)


def _unpack(entry: bytes, kinds: Mapping[str, type[Any]]) -> list[Any]:
    layout, checksum, body = entry[:1], entry[1 : 1 + _CHECKSUM_BYTES], entry[1 + _CHECKSUM_BYTES :]
    if layout not in (_PLAIN, _PACKED):
        raise DamagedEntry(f"unknown layout {layout.hex() or 'of an empty entry'}")
    if _checksum(body) != checksum:
        raise DamagedEntry("the checksum does not fit")
    try:
        items = _decode(zlib.decompress(body) if layout == _PACKED else body)
        return [msgspec.convert(fields, kinds[kind]) for kind, fields in items]
    except (KeyError, ValueError, TypeError, zlib.error) as exc:
        # The bytes are as they were written, so it was another version that wrote them.
        raise DamagedEntry("an operation this version does not know") from exc


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big")


def _encode_if_exact(items: list[tuple[str, Any]]) -> bytes | None:
    """The quick encoding when it comes back equal; None when a value needs the careful way."""
    try:
        body = msgspec.msgpack.encode(items)
        for (_, op), (kind, fields) in zip(items, _decode(body), strict=True):
            if msgspec.convert(fields, type(op)) != op or kind != _KIND_OF[type(op)]:
                return None
    except (TypeError, ValueError, OverflowError, RuntimeError, msgspec.MsgspecError):
        return None
    return body


def _decode(body: bytes) -> Any:
    return msgspec.msgpack.decode(body, ext_hook=_read_extension)


def _read_extension(code: int, data: memoryview) -> Any:
    raw = bytes(data)
    if code == _TEXT:
        return raw.decode("utf-8", "surrogatepass")
    if code == _INTEGER:
        return int.from_bytes(raw, "big", signed=True)
    if code == _PAIRS:
        return dict(_decode(raw))
    if code == _NAIVE_MOMENT:
        return datetime.fromisoformat(raw.decode("ascii"))
    raise ValueError(f"unknown extension {code}")


def _portable_op(op: Any) -> Any:
    try:
        return _portable(op)
    except (_NoForm, RecursionError, RuntimeError) as exc:
        if not isinstance(op, InsertPayload):
            raise StoreError(f"A record holds a value that cannot be stored ({type(op).__name__}).") from exc
        return _portable(_as_the_database_stores_it(op))


def _as_the_database_stores_it(op: InsertPayload) -> InsertPayload:
    encoded = encode_payload(op.payload)
    details = "; ".join(note for note in (op.error_details, encoded.problem) if note) or None
    return msgspec.structs.replace(op, payload=decode_payload(encoded.text).payload, error_details=details)


class _NoForm(Exception):
    """A value has no form in an entry."""


def _portable(value: Any) -> Any:  # noqa: PLR0911 - one line per kind of value
    """A copy that MessagePack can hold and that reads back equal."""
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, str):
        return _portable_text(value)
    if isinstance(value, int):
        return value if _MIN_INTEGER <= value <= _MAX_INTEGER else Ext(_INTEGER, _integer_bytes(value))
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else Ext(_NAIVE_MOMENT, value.isoformat().encode("ascii"))
    if isinstance(value, Mapping):
        return _portable_mapping(value)
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, Struct):
        return {name: _portable(getattr(value, name)) for name in value.__struct_fields__}
    raise _NoForm


def _portable_text(value: str) -> str | Ext:
    plain = str.__str__(value)
    try:
        plain.encode("utf-8")
    except UnicodeEncodeError:
        return Ext(_TEXT, plain.encode("utf-8", "surrogatepass"))
    return plain


def _portable_mapping(value: Mapping[Any, Any]) -> Any:
    pairs = [(_portable(key), _portable(item)) for key, item in list(value.items())]
    if all(isinstance(key, str | int) for key, _ in pairs):
        return dict(pairs)
    # An extension cannot be a key; a list as key would not come back as what it was.
    if any(isinstance(key, list | dict) for key, _ in pairs):
        raise _NoForm
    return Ext(_PAIRS, msgspec.msgpack.encode(pairs))


def _integer_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
