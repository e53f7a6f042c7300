"""The REST API's key: from the settings, or made once and kept beside the data. There is no mode without one."""

import os
import secrets
from pathlib import Path

from omni.settings import Settings

KEY_FILE_NAME = "api-key"
_KEY_BYTES = 24


def api_key_path(settings: Settings) -> Path:
    """Where a generated key is kept."""
    return settings.data_dir / KEY_FILE_NAME


def resolve_api_key(settings: Settings) -> str:
    """The key of the settings, or the generated one, readable by its owner only. Blocks on the disk."""
    if settings.api_key:
        return settings.api_key
    path = api_key_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(_KEY_BYTES))
    except FileExistsError:
        pass  # made at an earlier start, or by a process that started a moment before
    return path.read_text(encoding="utf-8").strip()
