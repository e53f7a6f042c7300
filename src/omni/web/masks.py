"""Shows that a key is set and which one it may be, without showing the key.

Replies hold masked keys only. A caller that reads an instance, changes a field and sends the whole thing back sends the masks
too: what equals its mask is no change, and ``is_masked`` keeps any other mask from being stored as a key.
"""

import re
from typing import Any

SECRET_FIELDS = frozenset(
    {
        "evolution_key",
        "agent_api_key",
        "webhook_secret",
        "hive_api_key",
        "discord_bot_token",
        "discord_webhook_url",
    }
)
"""Columns that hold a secret; a Discord webhook's address is one."""

_MARK = "…"
_EDGE_CHARS = 4
_MIN_LENGTH_FOR_EDGES = 20
"""Characters a key must have before its ends are shown: the 8 shown must leave at least 12 to guess."""

_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")


def mask_key(key: str) -> str:
    """The first and last four characters of a long key with a mark between; of a short one the mark alone.

    >>> mask_key("EVO-0123456789-flash"), mask_key("short")
    ('EVO-…lash', '…')
    """
    if len(key) < _MIN_LENGTH_FOR_EDGES:
        return _MARK
    return f"{key[:_EDGE_CHARS]}{_MARK}{key[-_EDGE_CHARS:]}"


def shown(field: str, value: Any) -> Any:
    """A column's value as replies may show it: keys masked, and the login inside an address too."""
    if not isinstance(value, str) or not value:
        return value
    if field in SECRET_FIELDS:
        return mask_key(value)
    return _URL_LOGIN.sub(f"{_MARK}@", value) if field.endswith("_url") else value


def is_masked(field: str, value: Any) -> bool:
    """Whether a value written into ``field`` is a mask and not a value."""
    return isinstance(value, str) and _MARK in value and (field in SECRET_FIELDS or field.endswith("_url"))
