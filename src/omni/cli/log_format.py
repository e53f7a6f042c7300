"""Log lines: time, level, event name and its fields, one line each, fields as JSON."""

import logging
from typing import Any

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldFormatter(logging.Formatter):
    """Formats a record as ``time level logger event {fields}``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on its own lines when there is one."""
        fields: dict[str, Any] = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        told = msgspec.json.encode(fields, enc_hook=str).decode() if fields else ""
        line = f"{self.formatTime(record)} {record.levelname:<7} {record.name} {record.getMessage()} {told}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
