"""The bodies Evolution API 2.3.6 answers and posts, as plain data: pure, no I/O, no clock.

Field names, their order and the wording of errors are those of a recorded server; the contract test compares them with the
captures. Errors have one envelope whose ``message`` is a string, a list, a list of lists or a list of objects, as there.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

Json = dict[str, Any]
Addressing = Literal["pn", "lid"]
ReceiptStatus = Literal["ERROR", "PENDING", "SERVER_ACK", "DELIVERY_ACK", "READ", "PLAYED", "DELETED"]

_PHONE_SUFFIX = "@s.whatsapp.net"
_ERROR_NAMES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
}
_SCHEMA_TYPES: Mapping[type, str] = {str: "string", int: "integer", dict: "object", list: "array"}
_DISAPPEARING_OFFSET_S = 172_800

WEBHOOK_EVENTS = (
    "APPLICATION_STARTUP",
    "QRCODE_UPDATED",
    "MESSAGES_SET",
    "MESSAGES_UPSERT",
    "MESSAGES_EDITED",
    "MESSAGES_UPDATE",
    "MESSAGES_DELETE",
    "SEND_MESSAGE",
    "SEND_MESSAGE_UPDATE",
    "CONTACTS_SET",
    "CONTACTS_UPSERT",
    "CONTACTS_UPDATE",
    "PRESENCE_UPDATE",
    "CHATS_SET",
    "CHATS_UPSERT",
    "CHATS_UPDATE",
    "CHATS_DELETE",
    "GROUPS_UPSERT",
    "GROUP_UPDATE",
    "GROUP_PARTICIPANTS_UPDATE",
    "CONNECTION_UPDATE",
    "LABELS_EDIT",
    "LABELS_ASSOCIATION",
    "CALL",
    "TYPEBOT_START",
    "TYPEBOT_CHANGE_STATUS",
    "REMOVE_INSTANCE",
    "LOGOUT_INSTANCE",
    "INSTANCE_CREATE",
    "INSTANCE_DELETE",
    "STATUS_INSTANCE",
)


class Contact(Struct, frozen=True, kw_only=True):
    """The person at the simulated phone: phone digits, the privacy id WhatsApp may use instead, and the shown name."""

    phone: str = "5511999990001"
    lid: str = "98765432101234"
    name: str = "Maria"

    @property
    def phone_jid(self) -> str:
        """The address made of the phone number."""
        return self.phone + _PHONE_SUFFIX

    @property
    def lid_jid(self) -> str:
        """The address made of the privacy id."""
        return f"{self.lid}@lid"

    def is_at(self, number: str) -> bool:
        """Whether a ``number`` as Evolution accepts it (digits or an address) is this person."""
        return jid_of(number) in (self.phone_jid, self.lid_jid)


def jid_of(number: str) -> str:
    """The address Evolution sends to for a ``number``: addresses as they are, digits as a phone address.

    >>> jid_of("+55 11 99999-0001"), jid_of("98765432101234@lid")
    ('5511999990001@s.whatsapp.net', '98765432101234@lid')
    """
    if "@" in number:
        return number
    return "".join(ch for ch in number if ch.isdigit()) + _PHONE_SUFFIX


def error_body(status: int, message: Any) -> Json:
    """The error envelope."""
    return {"status": status, "error": _ERROR_NAMES[status], "response": {"message": message}}


def schema_problems(body: Any, required: Mapping[str, type]) -> list[str]:
    """What Evolution's schema check finds wrong with a body, in its words: absent properties first, then wrong types.

    >>> schema_problems({"number": 7}, {"number": str, "text": str})
    ['instance requires property "text"', 'number is not of a type(s) string']
    """
    if not isinstance(body, dict):
        return ["instance is not of a type(s) object"]
    absent = [f'instance requires property "{name}"' for name in required if name not in body]
    wrong = [
        f"{name} is not of a type(s) {_SCHEMA_TYPES[kind]}"
        for name, kind in required.items()
        if name in body and type(body[name]) is not kind
    ]
    return absent + wrong


def not_on_whatsapp(number: str) -> Json:
    """The 400 for a number nobody registered."""
    return error_body(400, [{"jid": jid_of(number), "exists": False, "number": number}])


def sent_message(
    *, jid: str, text: str, key_id: str, instance_id: str, owner_jid: str, now_s: int, quoted: tuple[str, str] | None
) -> Json:
    """The 201 of a sent text, which is also the data of its ``send.message`` event. ``quoted`` is (key id, text)."""
    context: Json = {
        "mentionedJid": [],
        "groupMentions": [],
        "ephemeralSettingTimestamp": {"low": now_s - _DISAPPEARING_OFFSET_S, "high": 0, "unsigned": False},
        "disappearingMode": {"initiator": 0},
    }
    if quoted is not None:
        context |= {
            "participant": owner_jid,
            "stanzaId": quoted[0],
            "quotedMessage": {"conversation": quoted[1]},
        }
    return {
        "key": {"remoteJid": jid, "fromMe": True, "id": key_id},
        "pushName": "Você",
        "status": "PENDING",
        "message": {"conversation": text},
        "contextInfo": context,
        "messageType": "conversation",
        "messageTimestamp": now_s,
        "instanceId": instance_id,
        "source": "web",
    }


def written_message(
    contact: Contact,
    *,
    text: str,
    message_id: str,
    instance_id: str,
    sent_at_s: int,
    addressing: Addressing,
    quoted: tuple[str, str, str] | None = None,
) -> Json:
    """The data of a ``messages.upsert``. ``quoted`` is (key id, its sender's address, its text)."""
    key: Json = {"remoteJid": contact.phone_jid, "fromMe": False, "id": message_id, "addressingMode": "pn"}
    key["remoteJidAlt"] = contact.lid_jid
    if addressing == "lid":
        key = {
            "remoteJid": contact.lid_jid,
            "remoteJidAlt": contact.phone_jid,
            "fromMe": False,
            "id": message_id,
            "addressingMode": "lid",
        }
    data: Json = {
        "key": key,
        "pushName": contact.name,
        "status": "DELIVERY_ACK",
        "message": {"conversation": text},
    }
    if quoted is not None:
        data["contextInfo"] = {
            "stanzaId": quoted[0],
            "participant": quoted[1],
            "quotedMessage": {"conversation": quoted[2]},
        }
    return data | {
        "messageType": "conversation",
        "messageTimestamp": sent_at_s,
        "instanceId": instance_id,
        "source": "android",
    }


def receipt(*, key_id: str, jid: str, status: ReceiptStatus, instance_id: str, row_id: str) -> Json:
    """The data of a ``messages.update``: flat, without text and without a time of its own."""
    return {
        "keyId": key_id,
        "remoteJid": jid,
        "fromMe": True,
        "status": status,
        "instanceId": instance_id,
        "messageId": row_id,
    }


def connection_change(*, instance_name: str, state: str, status_reason: int) -> Json:
    """The data of a ``connection.update``."""
    return {"instance": instance_name, "state": state, "statusReason": status_reason}
