"""Reads request bodies with their size bound enforced while they arrive, and makes JSON objects of webhook bodies.

The declared length is believed only when it already breaks the bound; a chunked body is counted as it comes in, so
no more than the bound is ever held.
"""

import json
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from omni.errors import WebhookMalformed, WebhookTooLarge
from omni.web.errors import RequestRefused

MAX_REQUEST_BYTES = 1_048_576
"""Largest body of a REST request: the longest fields are texts of some thousand characters, so 1 MiB is generous."""


class BodyTooLarge(RequestRefused):
    """A REST request's body is over the bound; 413."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The body is larger than {max_bytes} bytes.", code="request_too_large", status_code=413)


async def read_bounded(request: Request, *, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to exceed ``max_bytes``, WebhookMalformed when cut short."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(max_bytes)
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        async for piece in request.stream():
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise BodyTooLarge(max_bytes)
            pieces.append(piece)
    except ClientDisconnect as exc:
        raise WebhookMalformed("The connection ended inside the body.") from exc
    return b"".join(pieces)


async def read_webhook(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """The webhook's JSON object. Raises WebhookTooLarge, or WebhookMalformed when the body is anything else."""
    try:
        body = await read_bounded(request, max_bytes=max_bytes)
    except BodyTooLarge as exc:
        raise WebhookTooLarge(exc.sentence) from exc
    value = _decode(body)
    if not isinstance(value, dict):
        raise WebhookMalformed("The body is not a JSON object.")
    return value


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_broken_characters(body)
    except RecursionError as exc:
        raise WebhookMalformed("The body is nested too deeply.") from exc


def _decode_broken_characters(body: bytes) -> Any:
    """Decode a body that may hold half an emoji: WhatsApp cuts names inside a surrogate pair, and Evolution passes that on.

    Such a message is answered, with a question mark for the broken character, since a 400 would lose it for good.
    """
    try:
        value = json.loads(body.decode("utf-8", "replace"))
        return msgspec.json.decode(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        raise WebhookMalformed("The body is not JSON.") from exc
