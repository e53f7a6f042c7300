"""Makes what callers and agent servers hand over fit what a trace can hold. Pure.

A column takes one kind of value, and a store refuses a row that holds another; one odd value (a phone number given as a number, a
token count beyond 32 bits, text where a payload belongs) would then cost a trace all its rows. So values are converted where that
loses nothing but precision, and left out where it would be guessing: unknown is None.
"""

from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Any

_LARGEST_COUNT = 2**31 - 1

_COUNTS = frozenset({
    "message_length",
    "agent_processing_time_ms",
    "total_processing_time_ms",
    "agent_request_tokens",
    "agent_response_tokens",
    "agent_response_length",
    "agent_tools_used",
    "evolution_response_code",
})  # fmt: skip
_FLAGS = frozenset({"has_media", "has_quoted_message", "agent_response_success", "evolution_success"})
_MOMENTS = frozenset({
    "received_at",
    "processing_started_at",
    "agent_request_at",
    "agent_response_at",
    "evolution_send_at",
    "completed_at",
})  # fmt: skip


def fitting_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with values a store takes; those that cannot be made to fit are left out."""
    fitted = {name: _fitting(name, value) for name, value in columns.items()}
    return {name: value for name, value in fitted.items() if value is not None or columns[name] is None}


def as_count(value: object) -> int | None:
    """A whole number of 32 bits; fractions are rounded, digits read. None for anything else.

    >>> as_count(12.7), as_count("201"), as_count(True), as_count(10**12)
    (13, 201, None, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        value = round(value) if isfinite(value) else None
    elif isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) <= 10 else None
    return value if isinstance(value, int) and abs(value) <= _LARGEST_COUNT else None


def as_text(value: object) -> str | None:
    """Text as it is and numbers spelled out. None for anything else.

    >>> as_text("5511"), as_text(5511), as_text({"id": 1})
    ('5511', '5511', None)
    """
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_payload(value: object, *, key: str = "value") -> dict[str, Any]:
    """A payload of its own: a mapping is copied, nothing is an empty one, anything else stands under ``key``.

    >>> as_payload(None), as_payload("plain text", key="message")
    ({}, {'message': 'plain text'})
    """
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value is None else {key: value}


def _fitting(name: str, value: object) -> Any:
    if name in _COUNTS:
        return as_count(value)
    if name in _FLAGS:
        return bool(value) if isinstance(value, bool | int) and value in (0, 1) else None
    if name in _MOMENTS:
        return value if isinstance(value, datetime) else None
    return as_text(value)
