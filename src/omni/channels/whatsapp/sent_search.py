"""Whether a message is among those Evolution keeps, and whether two addresses name one chat. Pure.

Evolution takes no message id from us, so a message whose sending broke off can only be known by its instance, its chat, its text and its
time. The rules below would rather say "unknown" than take a stranger's message for ours or ours for missing: the first leaves a gap,
the second sends a message twice.

Rows are judged by Evolution's clock; ``started_s`` has to be given in it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from omni.channels.whatsapp.addresses import Address, parse_address
from omni.model import SentSearch

ChatMatch = Literal["same", "possible", "other"]

MAX_ROWS_PER_PAGE = 200
"""How many rows are asked for at once; a row of text is about one kilobyte."""

FRESH_MARGIN_S = 3.0
"""A row this much older than the attempt may still be its: both clocks are read to the second, and one second is slack."""

DOUBTFUL_S = 120.0
"""An equal text in the same chat that is older than the attempt, but not by more than this, leaves everything open."""

PROOF_AGE_S = 3_600.0
"""A message of the account this young shows that Evolution keeps what it sends. One switch covers all of them."""

_MIN_PHONE_DIGITS = 8
# Brazil's ninth digit, Mexico's and Argentina's mobile digit: Evolution writes such numbers without one digit they were given with.
_TAIL_DIGITS = 8
_COUNTRY_DIGITS = 2


class KeptMessage(Struct, frozen=True, kw_only=True):
    """One row of ``findMessages`` that our account sent. ``sent_at_s`` is Evolution's stamp in seconds."""

    key_id: str
    addresses: tuple[str, ...]
    text: str | None
    sent_at_s: float


class KeptPage(Struct, frozen=True, kw_only=True):
    """One page of rows, newest first. ``is_last`` says that no older rows follow."""

    messages: Sequence[KeptMessage]
    is_last: bool


class Wanted(Struct, frozen=True, kw_only=True):
    """The message that is looked for."""

    recipient: str
    text: str
    started_s: float
    known_key_ids: Collection[str]


def match_chats(one: str, other: str) -> ChatMatch:
    """Whether two addresses name one chat; a phone and a LID may.

    >>> match_chats("5511999990001@s.whatsapp.net", "5511999990001"), match_chats("98765@lid", "5511999990001")
    ('same', 'possible')
    >>> match_chats("5511999990001", "551199990001"), match_chats("5511999990001", "5511999990002")
    ('same', 'other')
    """
    first, second = parse_address(one), parse_address(other)
    if first is None or second is None:
        return "possible"
    if first.is_group or second.is_group:
        return "same" if first == second else "other"
    if first.is_phone != second.is_phone:
        return "possible"
    if first.is_phone:
        return "same" if _is_same_phone(first, second) else "other"
    return "same" if first == second else "other"


def read_kept_page(status: int, body: bytes) -> KeptPage | None:
    """A page of rows as Evolution answers it; None when the answer is none. Rows of others and without a time are passed over."""
    if status != 200:
        return None
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    found = answer.get("messages") if isinstance(answer, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    rows, page, pages = (found.get(name) for name in ("records", "currentPage", "pages"))
    if not isinstance(rows, list) or not isinstance(page, int) or not isinstance(pages, int):
        return None
    kept = [message for row in rows if (message := _read_row(row)) is not None]
    return KeptPage(messages=kept, is_last=page >= pages)


def reaches_back(messages: Sequence[KeptMessage], started_s: float) -> bool:
    """Whether rows read so far, newest first, go back beyond everything that could be the message."""
    return any(message.sent_at_s < started_s - DOUBTFUL_S for message in messages)


def judge_kept(messages: Sequence[KeptMessage], wanted: Wanted) -> SentSearch:
    """Whether the wanted message is among all rows that could be it."""
    is_doubtful = False
    found: list[KeptMessage] = []
    for message in messages:
        age_s = wanted.started_s - message.sent_at_s
        if message.text != wanted.text or message.key_id in wanted.known_key_ids or age_s > DOUBTFUL_S:
            continue
        match = _match_any(message.addresses, wanted.recipient)
        if match == "same" and age_s <= FRESH_MARGIN_S:
            found.append(message)
        elif match != "other":
            is_doubtful = True
    if found:
        return SentSearch(verdict="found", key_id=min(found, key=lambda message: message.sent_at_s).key_id)
    if is_doubtful or not _shows_that_sent_is_kept(messages, wanted):
        return SentSearch(verdict="unknown")
    return SentSearch(verdict="absent")


def _shows_that_sent_is_kept(messages: Sequence[KeptMessage], wanted: Wanted) -> bool:
    return any(
        message.key_id in wanted.known_key_ids or message.sent_at_s >= wanted.started_s - PROOF_AGE_S
        for message in messages
    )


def _match_any(addresses: Sequence[str], recipient: str) -> ChatMatch:
    matches = {match_chats(address, recipient) for address in addresses}
    if "same" in matches:
        return "same"
    return "possible" if "possible" in matches or not matches else "other"


def _is_same_phone(first: Address, second: Address) -> bool:
    one, other = sorted((first.digits, second.digits), key=len)
    if one == other:
        return True
    return (
        len(other) - len(one) == 1
        and len(one) > _MIN_PHONE_DIGITS
        and one[:_COUNTRY_DIGITS] == other[:_COUNTRY_DIGITS]
        and one[-_TAIL_DIGITS:] == other[-_TAIL_DIGITS:]
    )


def _read_row(row: Any) -> KeptMessage | None:
    key = row.get("key") if isinstance(row, Mapping) else None
    if not isinstance(key, Mapping) or key.get("fromMe") is not True:
        return None
    key_id, sent_at_s = key.get("id"), _seconds(row.get("messageTimestamp"))
    if not isinstance(key_id, str) or not key_id or sent_at_s is None:
        return None
    addresses = tuple(
        address for name in ("remoteJid", "remoteJidAlt") if isinstance(address := key.get(name), str) and address
    )
    return KeptMessage(key_id=key_id, addresses=addresses, text=_text(row.get("message")), sent_at_s=sent_at_s)


def _text(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return None
    extended = message.get("extendedTextMessage")
    text = message.get("conversation") or (extended.get("text") if isinstance(extended, Mapping) else None)
    return text if isinstance(text, str) else None


def _seconds(stamp: Any) -> float | None:
    if isinstance(stamp, str) and stamp.isascii() and stamp.isdigit():
        stamp = int(stamp)
    if isinstance(stamp, bool) or not isinstance(stamp, int | float):
        return None
    return float(stamp)
