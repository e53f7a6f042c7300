"""Reads keys and tokens out of request headers and compares them in constant time."""

import hmac

from starlette.datastructures import Headers

_BEARER = "bearer "


def carries_key(headers: Headers, key: str) -> bool:
    """Whether ``x-api-key`` or ``Authorization: Bearer`` holds exactly ``key``; as slow for a near miss as for a far one."""
    wanted = key.encode()
    presented = (headers.get("x-api-key"), bearer_token(headers))
    # Header values are latin-1 text on the wire; they are compared as the bytes they were.
    return any(hmac.compare_digest(value.encode("latin-1"), wanted) for value in presented if value is not None)


def carries_any(headers: Headers) -> bool:
    """Whether a key was presented at all, right or wrong."""
    return "x-api-key" in headers or bearer_token(headers) is not None


def bearer_token(headers: Headers) -> str | None:
    """The token of an ``Authorization: Bearer`` header, None without one."""
    value = headers.get("authorization", "")
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else None
