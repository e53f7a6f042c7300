"""What a log line may say about an exception that should not have happened: its type and where it was raised.

Never its text or its traceback: both can hold a message or a phone number.
"""

from pathlib import PurePath
from traceback import extract_tb


def fault_facts(exc: BaseException) -> dict[str, str]:
    """``exception`` and ``where`` (file, line and function of the innermost frame) as fields of a log record."""
    frames = extract_tb(exc.__traceback__)
    where = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "unknown"
    return {"exception": type(exc).__name__, "where": where}
