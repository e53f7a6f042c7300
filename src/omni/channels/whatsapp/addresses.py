"""WhatsApp addresses: phones, the anonymous ids that stand for them, groups.

A user is known by a phone address (``digits@s.whatsapp.net``) or by a LID (``digits@lid``), and one message may name either
or both. The phone is the conversation's name whenever it is known; digits are taken as they are and never given a country code.
Pure.
"""

from collections.abc import Sequence

from msgspec import Struct

PHONE_SERVER = "s.whatsapp.net"
LID_SERVER = "lid"
GROUP_SERVER = "g.us"

# Evolution's own channel writes bare digits; c.us is what older clients called the phone server.
_PHONE_SERVERS = frozenset({PHONE_SERVER, "c.us", ""})


class Address(Struct, frozen=True):
    """One address without its device number. ``server`` is "" for bare digits."""

    user: str
    server: str

    @property
    def text(self) -> str:
        """The address as WhatsApp writes it."""
        return f"{self.user}@{self.server}" if self.server else self.user

    @property
    def is_phone(self) -> bool:
        """Whether ``user`` is a phone number."""
        return self.server in _PHONE_SERVERS and self.digits != ""

    @property
    def is_group(self) -> bool:
        """Whether this is a group and no person."""
        return self.server == GROUP_SERVER

    @property
    def digits(self) -> str:
        """The digits of ``user``: the phone number, or the number of a LID."""
        return "".join(character for character in self.user if character.isascii() and character.isdigit())


def parse_address(value: object) -> Address | None:
    """The address in a field of a webhook, without its device suffix (``:12``); None when there is none."""
    if not isinstance(value, str):
        return None
    user, _, server = value.strip().partition("@")
    user = user.partition(":")[0]
    return Address(user=user, server=server.lower()) if user else None


def conversation_key(chat: Address, senders: Sequence[Address]) -> str:
    """What a conversation is called: the group, else the phone's address when any of ``senders`` is one, else the chat's own."""
    if not chat.is_group:
        for address in senders:
            if address.is_phone:
                return f"{address.digits}@{PHONE_SERVER}"
    return chat.text


def phone_digits(senders: Sequence[Address]) -> str:
    """The sender's phone number in digits, else the number of the LID, else "" when nobody is named."""
    known = [address for address in senders if address.is_phone] or list(senders)
    return known[0].digits if known else ""


def recipient_number(recipient: str) -> str:
    """What Evolution takes as ``number``: digits for a phone, every other address whole, for cut down it would be another phone."""
    address = parse_address(recipient)
    if address is None or not address.is_phone:
        return recipient
    return address.digits
