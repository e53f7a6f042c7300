"""Reads Evolution's answers to a send: accepted, or refused and why.

Pure. The HTTP status alone says little: a number that is not on WhatsApp, a request of the wrong shape and a dropped WhatsApp
socket are all 400, and only the last of them is worth another attempt. So the words in the body decide. No sentence made here repeats
them: they can hold the number and the text.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from omni.model import SendErrorKind, SendResult

_BY_STATUS: dict[int, tuple[SendErrorKind, str]] = {
    401: ("unauthorized", "Evolution refused the key"),
    403: ("unauthorized", "Evolution refused the key"),
    404: ("unknown_instance", "Evolution does not know the instance or the route"),
    # A proxy lost Evolution, or gave up waiting for it, after it may have passed the request on.
    502: ("ambiguous", "a gateway had no answer from Evolution"),
    504: ("ambiguous", "a gateway gave up waiting for Evolution"),
}

_NO_SOCKET: tuple[SendErrorKind, str] = ("transient", "Evolution has no connection to WhatsApp")
_WRONG_SHAPE: tuple[SendErrorKind, str] = ("rejected", "Evolution does not take a request of this shape")

# Evolution notes down what it has sent before it answers, and when its database fails there, it answers 400 with the database's words:
# the message went out, and no search will find it. They come first, for they can hold any of the words below.
_DATABASE_WORDS = "prisma"

# The first of these found decides. The passing ones are Baileys' words for a socket that is gone or a server that asks for
# patience; the last of them is Evolution's for a socket that was never there.
_BY_WORDS: tuple[tuple[str, tuple[SendErrorKind, str]], ...] = (
    ("connection closed", _NO_SOCKET),
    ("connection lost", _NO_SOCKET),
    ("connection failure", _NO_SOCKET),
    ("timed out", _NO_SOCKET),
    ("stream errored", _NO_SOCKET),
    ("rate-overlimit", ("transient", "WhatsApp asks for slower sending")),
    ("cannot read properties of undefined", _NO_SOCKET),
    ("text is required", ("rejected", "Evolution was given no text")),
    ("method not available", ("rejected", "the channel has no such method")),
    ("instance requires property", _WRONG_SHAPE),
    ("instance.", _WRONG_SHAPE),
)

_PASSING_STATUSES = frozenset({408, 425, 429, 500, 503})


def read_send_answer(status: int, body: bytes, *, retry_after: str | None = None) -> SendResult:
    """What became of a send that was answered with ``status`` and ``body``. Never raises.

    ``retry_after`` is the header of that name; only its form in seconds is understood.
    """
    answer = _decoded(body)
    key_id = _key_id(answer)
    if status == 201 or (200 <= status < 300 and key_id is not None):
        return SendResult(is_accepted=True, status_code=status, key_id=key_id)
    said = list(_flat(_said(answer)))
    words = " ".join(part for part in said if isinstance(part, str)).lower()
    if _DATABASE_WORDS in words:
        return SendResult(
            is_accepted=False,
            status_code=status,
            error_kind="ambiguous",
            error="Evolution's database failed around the send",
            is_searchable=False,
        )
    kind, error = _classify(status, said, words)
    return SendResult(
        is_accepted=False,
        status_code=status,
        error_kind=kind,
        error=error,
        retry_after_s=_seconds(retry_after) if kind == "transient" else None,
    )


def _classify(status: int, said: Sequence[object], words: str) -> tuple[SendErrorKind, str]:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 200 <= status < 300:
        return "ambiguous", f"answer {status} does not say whether the message was sent"
    if any(isinstance(part, Mapping) and part.get("exists") is False for part in said):
        return "not_on_whatsapp", "the number is not on WhatsApp"
    for known, verdict in _BY_WORDS:
        if known in words:
            return verdict
    if status in _PASSING_STATUSES:
        return "transient", f"Evolution cannot send now ({status})"
    return "rejected", f"Evolution refused the message ({status})"


def _decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A proxy's page, or nothing: the status has to do.
        return None


def _key_id(answer: object) -> str | None:
    key = answer.get("key") if isinstance(answer, Mapping) else None
    key_id = key.get("id") if isinstance(key, Mapping) else None
    return key_id if isinstance(key_id, str) and key_id else None


def _said(answer: object) -> Any:
    """Evolution's ``response.message``, wherever this answer has it: a string, an array, or arrays in an array."""
    if not isinstance(answer, Mapping):
        return None
    response = answer.get("response")
    inner = response.get("message") if isinstance(response, Mapping) else response
    return answer.get("message") if inner is None else inner


def _flat(said: Any) -> Iterator[object]:
    if isinstance(said, list):
        for part in said:
            yield from _flat(part)
    elif said is not None:
        yield said


def _seconds(retry_after: str | None) -> float | None:
    text = (retry_after or "").strip()
    return float(text) if text.isascii() and text.isdigit() else None
