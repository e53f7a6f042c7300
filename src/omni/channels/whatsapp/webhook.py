"""Reads Evolution's webhooks: what a user wrote, what WhatsApp confirmed, what Evolution says it sent, or why there is nothing to do.

The first step of a message's life, pure and without I/O. ``parse_event`` takes the decoded body of any event; ``parse_webhook`` reads one
message and nothing else. A body that is not Evolution's envelope raises WebhookMalformed; one that is understood and not acted on is an
``Ignored`` with its reason (those of receipts stand in ``receipts``):

    not_a_message       another event; ``event`` names it
    missing_id          a message without an id: it could not be told from its own repetition
    own_message         written on the owner's phone
    status_broadcast    a status post
    broadcast           a broadcast list
    newsletter          a channel
    group               a group, and groups are not answered
    unsupported_type    no text in it; ``message`` is set when a person sent it (a voice note), not for reactions and the like
    empty_text          only white space
    unreadable_message  what should be a message of ours, or one of several in a list, and is none

The envelope's ``server_url`` and ``apikey`` are never read: whoever can post a webhook could put anything there.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from omni.channels.whatsapp.addresses import Address, conversation_key, parse_address, phone_digits
from omni.channels.whatsapp.content import Content, read_content
from omni.channels.whatsapp.event_time import read_claimed_wall_ns
from omni.channels.whatsapp.receipts import DELETE, UPDATE, read_key_id, read_receipts
from omni.errors import WebhookMalformed
from omni.model import Ignored, InboundMessage, Receipt, SentEcho

UPSERT = "messages.upsert"
"""The event that carries a user's message."""
SENT = "send.message"
"""The event by which Evolution says that it sent one of ours."""

# The other address of a 1:1 chat and of a group's participant; the Pn names are those of Evolution 2.3.0.
_CHAT_ALTERNATIVES = ("remoteJidAlt", "senderPn")
_PARTICIPANT_ALTERNATIVES = ("participantAlt", "participantPn", "senderPn")

# 2 to the 33rd: the year 2242. Whatever is beyond it is no stamp, and Python will not even read digits by the thousand.
_LATEST_STAMP_S = 1 << 33
_LATEST_STAMP_DIGITS = 10


class WebhookEvent(Struct, frozen=True, kw_only=True):
    """What one webhook says.

    ``items`` are the things in it, in their order and at least one. ``claimed_wall_ns`` is when the event happened by its own word (see
    ``event_time``), None when it says nothing of it. ``stamped_s`` is WhatsApp's stamp of a user's message, in whole seconds since 1970.
    """

    event: str
    items: tuple[InboundMessage | Receipt | SentEcho | Ignored, ...]
    claimed_wall_ns: int | None = None
    stamped_s: int | None = None


def parse_event(body: object, *, instance_name: str, answers_groups: bool = False) -> WebhookEvent:
    """What a webhook of any event says to ``instance_name``. Raises WebhookMalformed when it is none of Evolution's."""
    event = event_of(body)
    envelope = _envelope(body)
    items: tuple[InboundMessage | Receipt | SentEcho | Ignored, ...]
    stamped_s = None
    if event == UPSERT:
        items = _messages(envelope, instance_name=instance_name, answers_groups=answers_groups)
        stamped_s = _newest_stamp(envelope)
    elif event in (UPDATE, DELETE):
        items = read_receipts(envelope, event=event, instance_name=instance_name)
    elif event == SENT:
        items = tuple(_echo(one, instance_name=instance_name) for one in each_message(envelope))
    else:
        items = (Ignored(reason="not_a_message", event=event),)
    return WebhookEvent(
        event=event,
        items=items,
        claimed_wall_ns=read_claimed_wall_ns(envelope.get("date_time")),
        stamped_s=stamped_s,
    )


def event_of(body: object) -> str:
    """The envelope's event in its dotted form: MESSAGES_UPSERT and messages-upsert are ``messages.upsert``.

    Raises WebhookMalformed when the body is no object or names no event.
    """
    event = _envelope(body).get("event")
    if not isinstance(event, str) or not event:
        raise WebhookMalformed("The webhook names no event.")
    return event.lower().replace("_", ".").replace("-", ".")


def each_message(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The webhook as often as it holds messages, one in each: ``data`` may be a list of several."""
    data = body.get("data")
    if not isinstance(data, list) or len(data) < 2:
        return [body]
    return [{**body, "data": message} for message in data]


def parse_webhook(body: object, *, instance_name: str, answers_groups: bool = False) -> InboundMessage | Ignored:
    """The message a user wrote to ``instance_name``, or why this webhook is not answered. Raises WebhookMalformed."""
    event = event_of(body)
    if event != UPSERT:
        return Ignored(reason="not_a_message", event=event)
    envelope = _envelope(body)
    data = _message_data(envelope)
    key = data.get("key")
    if not isinstance(key, Mapping):
        raise WebhookMalformed("The message has no key.")
    chat = parse_address(key.get("remoteJid"))
    if chat is None:
        raise WebhookMalformed("The message's key names no chat.")
    reason = _reason_to_ignore(key, chat, answers_groups=answers_groups)
    if reason is not None:
        return Ignored(reason=reason, event=event)
    content = read_content(data)
    message = _inbound(envelope, data, key, chat=chat, content=content, instance_name=instance_name)
    if content.has_answerable_text:
        return message
    if content.message_type == "text":
        return Ignored(reason="empty_text", event=event)
    return Ignored(reason="unsupported_type", event=event, message=message if content.is_from_person else None)


def _messages(
    envelope: Mapping[str, Any], *, instance_name: str, answers_groups: bool
) -> tuple[InboundMessage | Ignored, ...]:
    bodies = each_message(envelope)
    if len(bodies) == 1:
        return (parse_webhook(envelope, instance_name=instance_name, answers_groups=answers_groups),)
    items: list[InboundMessage | Ignored] = []
    for body in bodies:
        try:
            items.append(parse_webhook(body, instance_name=instance_name, answers_groups=answers_groups))
        except WebhookMalformed:
            # Evolution never repeats what was refused: one bad message must not cost the others.
            items.append(Ignored(reason="unreadable_message", event=UPSERT))
    return tuple(items)


def _newest_stamp(envelope: Mapping[str, Any]) -> int | None:
    """The event was emitted after the newest of its messages was stamped."""
    bodies = (body.get("data") for body in each_message(envelope))
    stamps = (_whole_seconds(data.get("messageTimestamp")) for data in bodies if isinstance(data, Mapping))
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def _echo(body: Mapping[str, Any], *, instance_name: str) -> SentEcho | Ignored:
    data = body.get("data")
    key = data.get("key") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(key, Mapping):
        return Ignored(reason="unreadable_message", event=SENT)
    key_id, recipient = read_key_id(key.get("id")), key.get("remoteJid")
    if key_id is None:
        return Ignored(reason="missing_id", event=SENT)
    text = read_content(data).text
    if not text or not isinstance(recipient, str):
        # A send is recognised by chat and text; media and the like are not ours.
        return Ignored(reason="unsupported_type", event=SENT)
    return SentEcho(instance_name=instance_name, key_id=key_id, recipient=recipient, text=text)


def _envelope(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise WebhookMalformed("The webhook is not a JSON object.")
    return body


def _message_data(envelope: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message: ``data`` itself or, as some versions send it, the first of a list (see ``each_message``)."""
    data = envelope.get("data")
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, Mapping):
        raise WebhookMalformed("The webhook has no data.")
    return data


def _reason_to_ignore(key: Mapping[str, Any], chat: Address, *, answers_groups: bool) -> str | None:
    if not _message_id(key):
        return "missing_id"
    if key.get("fromMe") is True:
        return "own_message"
    if chat.server == "broadcast":
        return "status_broadcast" if chat.user == "status" else "broadcast"
    if chat.server == "newsletter":
        return "newsletter"
    if chat.is_group and not answers_groups:
        return "group"
    return None


def _inbound(
    envelope: Mapping[str, Any],
    data: Mapping[str, Any],
    key: Mapping[str, Any],
    *,
    chat: Address,
    content: Content,
    instance_name: str,
) -> InboundMessage:
    if chat.is_group:
        senders = _addresses(key, ("participant", *_PARTICIPANT_ALTERNATIVES))
    else:
        senders = [chat, *_addresses(key, _CHAT_ALTERNATIVES)]
    name = data.get("pushName")
    return InboundMessage(
        instance_name=instance_name,
        message_id=_message_id(key),
        chat_key=conversation_key(chat, senders),
        reply_to=chat.text,
        sender_phone=phone_digits(senders),
        sender_name=name if isinstance(name, str) and name else None,
        text=content.text,
        message_type=content.message_type,
        has_media=content.has_media,
        has_quoted_message=content.has_quoted_message,
        is_group=chat.is_group,
        sent_at_s=_whole_seconds(data.get("messageTimestamp")),
        raw=dict(envelope),
    )


def _message_id(key: Mapping[str, Any]) -> str:
    message_id = key.get("id")
    return message_id if isinstance(message_id, str) else ""


def _addresses(key: Mapping[str, Any], names: tuple[str, ...]) -> list[Address]:
    found = (parse_address(key.get(name)) for name in names)
    return [address for address in found if address is not None]


def _whole_seconds(stamp: object) -> int | None:
    """WhatsApp's stamp: a number, its digits as a string, or a 64-bit integer in two halves."""
    if isinstance(stamp, Mapping):
        stamp = stamp.get("low")
    if isinstance(stamp, str) and stamp.isascii() and stamp.isdigit() and len(stamp) <= _LATEST_STAMP_DIGITS:
        stamp = int(stamp)
    if isinstance(stamp, int | float) and not isinstance(stamp, bool) and 0 < stamp <= _LATEST_STAMP_S:
        return int(stamp)
    return None
