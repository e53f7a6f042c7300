"""From Python values to what the drivers take, for the statements that bypass SQLAlchemy's own conversion.

Used on the write path only, where one batch holds thousands of values. A value that does not belong in a column is refused here,
because SQLite would store it all the same and PostgreSQL would refuse the whole batch with it.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Column, Integer

from omni.store.schema import UtcDateTime, naive_utc

Adapter = Callable[[Any], Any]

_LARGEST_INTEGER = 2**31 - 1
# Text columns cannot hold NUL in PostgreSQL nor halves of surrogate pairs anywhere; both become the replacement character.
_UNSTORABLE = {0: "\ufffd", **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}


def column_adapter(column: Column[Any], *, is_sqlite: bool) -> Adapter:
    """What turns a Python value into the driver's for this column; raises TypeError for a value that does not belong there."""
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return _adapt_datetime_text if is_sqlite else _adapt_datetime
    if isinstance(kind, Boolean):
        return _adapt_bool
    if isinstance(kind, Integer):
        return _adapt_integer
    return _adapt_text


def _adapt_text(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("text")
    return value if value.isascii() and "\0" not in value else value.translate(_UNSTORABLE)


def _adapt_datetime(value: Any) -> datetime | None:
    if value is not None and not isinstance(value, datetime):
        raise TypeError("a datetime")
    return None if value is None else naive_utc(value)


def _adapt_datetime_text(value: Any) -> str | None:
    moment = _adapt_datetime(value)
    return None if moment is None else moment.isoformat(" ", "microseconds")


def _adapt_bool(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError("true or false")
    return value


def _adapt_integer(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER:
        raise TypeError("a whole number of 32 bits")
    return value
