"""What is in a WhatsApp message: its type, its text, whether it carries media or quotes another.

Decided by the message's structure, never by words found in it. Wrappers (disappearing, view-once, document with caption) are
opened. Pure.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# Each of these holds the real message under "message".
_WRAPPERS = (
    "ephemeralMessage",
    "viewOnceMessage",
    "viewOnceMessageV2",
    "viewOnceMessageV2Extension",
    "documentWithCaptionMessage",
    "lottieStickerMessage",
)

# The field that makes a message what it is -> the type, and the field of its text if it has one.
_KINDS = {
    "extendedTextMessage": ("text", "text"),
    "imageMessage": ("image", "caption"),
    "videoMessage": ("video", "caption"),
    "ptvMessage": ("video", "caption"),
    "audioMessage": ("audio", None),
    "documentMessage": ("document", "caption"),
    "stickerMessage": ("sticker", None),
    "locationMessage": ("location", None),
    "liveLocationMessage": ("location", None),
    "contactMessage": ("contact", None),
    "contactsArrayMessage": ("contact", None),
    "reactionMessage": ("reaction", None),
    "encReactionMessage": ("reaction", None),
}
_MEDIA_TYPES = frozenset({"image", "video", "audio", "document", "sticker"})

# WhatsApp's own traffic: nobody wrote these, or (reactions, votes) wrote them to be answered.
_NOT_FROM_A_PERSON = frozenset(
    {
        "reactionMessage",
        "encReactionMessage",
        "protocolMessage",
        "senderKeyDistributionMessage",
        "messageContextInfo",
        "pollUpdateMessage",
        "keepInChatMessage",
        "pinInChatMessage",
        "editedMessage",
    }
)


class Content(Struct, frozen=True, kw_only=True):
    """What a message holds. ``is_from_person`` is False for reactions, edits, keys and other traffic nobody waits on an answer to."""

    message_type: str
    text: str = ""
    has_media: bool = False
    has_quoted_message: bool = False
    is_from_person: bool = True

    @property
    def has_answerable_text(self) -> bool:
        """Whether there is anything an agent could be asked."""
        return bool(self.text.strip())


def read_content(data: Mapping[str, Any]) -> Content:
    """The content of a webhook's message data; type ``unknown`` when nothing in it is known."""
    content = _unwrapped(_mapping(data.get("message")))
    quotes = _quotes(_mapping(data.get("contextInfo")))
    spoken = content.get("conversation")
    if isinstance(spoken, str) and spoken.strip():
        return Content(message_type="text", text=spoken, has_quoted_message=quotes)
    for field, (message_type, text_field) in _KINDS.items():
        part = content.get(field)
        if isinstance(part, Mapping):
            text = part.get(text_field) if text_field is not None else None
            return Content(
                message_type=message_type,
                text=text if isinstance(text, str) else "",
                has_media=message_type in _MEDIA_TYPES,
                has_quoted_message=quotes or _quotes(_mapping(part.get("contextInfo"))),
                is_from_person=field not in _NOT_FROM_A_PERSON,
            )
    if isinstance(spoken, str):
        return Content(message_type="text", has_quoted_message=quotes)
    # Without any field it is a message WhatsApp could not decrypt; it may come again whole.
    return Content(message_type="unknown", is_from_person=not _NOT_FROM_A_PERSON.issuperset(content))


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    while wrapper is not None:
        content = _mapping(content[wrapper].get("message"))
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    return content


def _quotes(context: Mapping[str, Any]) -> bool:
    return isinstance(context.get("quotedMessage"), Mapping)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
