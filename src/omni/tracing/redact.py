"""What may be stored and shown of a payload: keys are masked, media bytes are named instead of kept, long strings are cut.

The only place that knows which fields are secret. The answer of an agent
never passes through here: it is stored whole.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

_SECRET_KEYS = frozenset({
    "apikey",
    "api_key",
    "x-api-key",
    "agent_api_key",
    "evolution_key",
    "hive_api_key",
    "webhook_secret",
    "authorization",
    "jwt_key",
    "token",
    "password",
    "hash",
})  # fmt: skip
_BYTES_KEYS = frozenset({"base64", "jpegThumbnail", "mediaKey", "fileSha256", "fileEncSha256", "thumbnail"})
_MEDIA_KEYS = frozenset({
    "imageMessage",
    "videoMessage",
    "audioMessage",
    "documentMessage",
    "documentWithCaptionMessage",
    "stickerMessage",
    "ptvMessage",
})  # fmt: skip
# Deeper nesting than any webhook has; guards the recursion against a hostile body.
_MAX_DEPTH = 40


class MediaFlags(Struct, frozen=True):
    """Whether a webhook's message carries media, and whether the bytes came inside it as base64."""

    contains_media: bool
    contains_base64: bool


class Redactor:
    """Cleans payloads before they are stored. Never changes what it is given."""

    def __init__(self, *, max_chars: int, keeps_sensitive: bool) -> None:
        self._max_chars = max_chars
        self._keeps_sensitive = keeps_sensitive

    def clean(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """A copy with secrets masked, media bytes named and strings over the limit cut and marked."""
        return {str(key): self._clean_value(key, value, 0) for key, value in payload.items()}

    def media_flags(self, webhook: Mapping[str, Any]) -> MediaFlags:
        """Read from the message's structure, never from its words."""
        data = webhook.get("data")
        message = data.get("message") if isinstance(data, Mapping) else None
        if not isinstance(message, Mapping):
            return MediaFlags(contains_media=False, contains_base64=False)
        return MediaFlags(
            contains_media=not _MEDIA_KEYS.isdisjoint(message), contains_base64=isinstance(message.get("base64"), str)
        )

    def _clean_value(self, key: object, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._clean_text(key, value)
        if depth > _MAX_DEPTH:
            return {"cut": "nested too deeply"}
        if isinstance(value, Mapping):
            if key in _BYTES_KEYS and not self._keeps_sensitive:
                return {"omitted_bytes": len(value)}
            return {str(inner): self._clean_value(inner, item, depth + 1) for inner, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean_value(None, item, depth + 1) for item in value]
        return value

    def _clean_text(self, key: object, value: str) -> Any:
        if not self._keeps_sensitive and isinstance(key, str):
            if key.lower() in _SECRET_KEYS:
                return mask_secret(value)
            if key in _BYTES_KEYS:
                return {"omitted_chars": len(value)}
        if len(value) > self._max_chars:
            return f"{value[: self._max_chars]}… [cut, {len(value)} characters]"
        return value


def mask_secret(secret: str) -> str:
    """A secret as it may be shown: its last four characters when it is long enough to stay secret, else none.

    >>> mask_secret("EVO-KEY-1234567"), mask_secret("short")
    ('…4567', '…')
    """
    return f"…{secret[-4:]}" if len(secret) >= 12 else "…"
