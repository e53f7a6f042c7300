"""Times as the REST API writes and reads them: ISO 8601, UTC, written without an offset as its clients have always read them."""

import re
from datetime import UTC, date, datetime, time

from omni.web.errors import input_refused

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# A "+" that nobody escaped in a query string arrives as a space.
_LOST_PLUS = re.compile(r"(.*T.*) (\d{2}:?\d{2})")


def iso_utc(moment: datetime | None) -> str | None:
    """A moment in UTC without offset; None stays None. A moment without zone is taken as UTC.

    >>> iso_utc(datetime(2026, 11, 22, 10, 0, 0, 500000, tzinfo=UTC))
    '2026-11-22T10:00:00.500000'
    """
    if moment is None:
        return None
    return (moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat()


def read_moment(written: str | None, *, field: str, is_end: bool = False) -> datetime | None:
    """The moment a caller wrote, in UTC; None when blank. Raises RequestRefused naming ``field``.

    A date alone is the start of that day, or its last microsecond when it ends a range, so that the day is included.
    """
    if written is None or not written.strip():
        return None
    written = written.strip()
    if lost := _LOST_PLUS.fullmatch(written):
        written = f"{lost[1]}+{lost[2]}"
    try:
        if _DATE.fullmatch(written):
            return datetime.combine(date.fromisoformat(written), time.max if is_end else time.min, tzinfo=UTC)
        moment = datetime.fromisoformat(written)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:
        raise input_refused(field, "is no date (2026-11-22) and no time (2026-11-22T10:00:00Z)") from exc
