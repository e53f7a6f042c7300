"""Reads receipts: what WhatsApp says of messages we sent, in the words of either of Evolution's channels. Pure.

Evolution relays them as ``messages.update`` (one, or a list of several) and a deletion as ``messages.delete``, whose data is the key itself.
The id is ``keyId``; older versions nest it as ``key.id``. ``messageId`` is a row of Evolution's own database and never read. The chat
is not compared with anything: a message sent to a phone may be confirmed under the anonymous id of its owner.

What is no receipt of ours is an ``Ignored`` with its reason:

    unreadable_receipt   no data, or an id that cannot be one
    missing_id           a receipt without an id
    not_our_message      about a message a user wrote
    unknown_status       a word nobody knows, or none (a poll's votes come this way)
    group_receipt        one member of a group got it, which says nothing of the others
"""

from collections.abc import Mapping
from typing import Any

from omni.channels.whatsapp.addresses import parse_address
from omni.channels.whatsapp.event_time import read_claimed_wall_ns
from omni.model import Ignored, Receipt, ReceiptStatus

UPDATE = "messages.update"
DELETE = "messages.delete"

# Baileys' words and numbers, and Meta's words, which Evolution relays in capitals. What was played was read.
_STATUS_BY_WORD: dict[str, ReceiptStatus] = {
    "ERROR": "failed",
    "PENDING": "pending",
    "SERVER_ACK": "server_ack",
    "DELIVERY_ACK": "delivered",
    "READ": "read",
    "PLAYED": "read",
    "DELETED": "deleted",
    "SENT": "server_ack",
    "DELIVERED": "delivered",
    "FAILED": "failed",
}
_STATUS_BY_NUMBER: tuple[ReceiptStatus, ...] = ("failed", "pending", "server_ack", "delivered", "read", "read")

# Ids of WhatsApp have 16 to 40 characters, Evolution's own 36.
_MAX_ID_CHARS = 255


def read_receipts(envelope: Mapping[str, Any], *, event: str, instance_name: str) -> tuple[Receipt | Ignored, ...]:
    """What a webhook of the event ``messages.update`` or ``messages.delete`` says, at least one thing. Never raises."""
    data = envelope.get("data")
    updates = data if isinstance(data, list) and data else [data]
    claimed_wall_ns = read_claimed_wall_ns(envelope.get("date_time"))
    return tuple(
        _read_one(update, event=event, instance_name=instance_name, claimed_wall_ns=claimed_wall_ns)
        for update in updates
    )


def read_key_id(value: object) -> str | None:
    """A message id as WhatsApp and Evolution make them: printable ASCII. None for anything else."""
    if isinstance(value, str) and 0 < len(value) <= _MAX_ID_CHARS and value.isascii() and value.isprintable():
        return value
    return None


def _read_one(update: object, *, event: str, instance_name: str, claimed_wall_ns: int | None) -> Receipt | Ignored:
    if not isinstance(update, Mapping):
        return Ignored(reason="unreadable_receipt", event=event)
    key = update if event == DELETE else _mapping(update.get("key"))
    named_id = update.get("keyId") or key.get("id")
    key_id = read_key_id(named_id)
    if key_id is None:
        return Ignored(reason="unreadable_receipt" if named_id else "missing_id", event=event)
    if update.get("fromMe", key.get("fromMe")) is False:
        return Ignored(reason="not_our_message", event=event)
    status = "deleted" if event == DELETE else _read_status(update)
    if status is None:
        return Ignored(reason="unknown_status", event=event)
    chat = parse_address(update.get("remoteJid") or key.get("remoteJid"))
    if chat is not None and chat.is_group and status in ("delivered", "read"):
        return Ignored(reason="group_receipt", event=event)
    return Receipt(instance_name=instance_name, key_id=key_id, status=status, claimed_wall_ns=claimed_wall_ns)


def _read_status(update: Mapping[str, Any]) -> ReceiptStatus | None:
    told = update.get("status")
    if told is None:
        told = _mapping(update.get("update")).get("status")  # as Baileys itself writes it
    if isinstance(told, str):
        word = told.strip().upper()
        if word in _STATUS_BY_WORD:
            return _STATUS_BY_WORD[word]
        told = int(word) if len(word) == 1 and word.isascii() and word.isdecimal() else None
    if isinstance(told, int) and not isinstance(told, bool) and 0 <= told < len(_STATUS_BY_NUMBER):
        return _STATUS_BY_NUMBER[told]
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
