"""Which values an instance may have, and what stands in for those the tables demand and nobody gave. Pure.

An instance's values lie in two places: the columns its ``instance_configs`` table happens to have (the predecessor's two states
differ), and the JSON of ``omni_instance_settings`` for what is ours or what that table has no column for.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from omni.errors import StoreError
from omni.model import DEFAULT_AGENT_TIMEOUT_S, InstanceConfig
from omni.store.column_values import column_adapter
from omni.store.schema import instance_configs

OWN_SETTINGS: dict[str, tuple[type, Any]] = {
    "webhook_secret": (str, None),
    "requires_webhook_auth": (bool, False),
    "answers_groups": (bool, False),
    "message_spacing_ms": (int, None),
    "language": (str, None),
    "notice_texts": (dict, None),
}
"""Settings the predecessor had not: the type of each and its value where none was set."""

# Set by the store alone, or never changed once an instance exists.
_FIXED = ("id", "name", "created_at", "updated_at")
# The settings of the agent in unified form; the predecessor's older state also has them as hive_* columns.
_AGENT_COLUMNS = (
    "agent_instance_type",
    "agent_api_url",
    "agent_api_key",
    "agent_id",
    "agent_type",
    "agent_timeout",
    "agent_stream_mode",
)
_WHEN_CREATED: dict[str, Any] = {
    "agent_timeout": DEFAULT_AGENT_TIMEOUT_S,
    "is_default": False,
    "is_active": True,
    "discord_voice_enabled": False,
    "discord_slash_commands_enabled": True,
    "hive_enabled": False,
}
_WHEN_REQUIRED: dict[str, Any] = {
    "channel_type": "whatsapp",
    "webhook_base64": True,
    "agent_api_url": "",
    "agent_api_key": "",
    "agent_instance_type": "automagik",
    "agent_type": "agent",
    "agent_stream_mode": False,
    "enable_auto_split": True,
}

Values = dict[str, Any]
Columns = ReadOnlyColumnCollection[str, Column[Any]]


def split_values(values: Mapping[str, Any], *, table_columns: Columns) -> tuple[Values, Values]:
    """Values for the table and values for our JSON. Raises StoreError (422) for a name or a type nobody knows."""
    columns: Values = {}
    extra: Values = {}
    for name, value in values.items():
        if name in OWN_SETTINGS:
            extra[name] = _checked_setting(name, value)
        elif name in instance_configs.columns or name in table_columns:
            column = table_columns.get(name)
            known = column if column is not None else instance_configs.columns[name]
            (extra if column is None else columns)[name] = _checked(known, value)
        else:
            raise StoreError(f"An instance has no setting named {name!r}.", status_code=422)
    return columns, extra


def new_row(values: Mapping[str, Any], *, table_columns: Columns) -> Values:
    """A whole row for a new instance: what was given, and sensible values for what was not. Raises StoreError (422)."""
    name = values.get("name")
    if not isinstance(name, str) or not name.strip():
        raise StoreError("An instance needs a name.", status_code=422)
    given = {key: value for key, value in values.items() if value is not None and key not in _FIXED}
    defaults = {key: value for key, value in (_WHEN_CREATED | _WHEN_REQUIRED).items() if key in table_columns}
    return {**defaults, **given, "name": name, **_agent_names(given)}


def changed_values(row: Mapping[str, Any], values: Mapping[str, Any]) -> Values:
    """What an update changes in a row. None resets a value the table demands. Raises StoreError (422)."""
    changes: Values = {}
    for name, value in values.items():
        if name not in _FIXED:
            changes[name] = _WHEN_REQUIRED.get(name) if value is None else value
        elif value != row.get(name):
            raise StoreError(f"The {name} of an instance cannot be changed.", status_code=422)
    if "default_agent" in changes:
        changes["default_agent"] = _agent_names({**row, **changes})["default_agent"]
    return {**_unified_agent(row, changes), **changes}


def _agent_names(values: Mapping[str, Any]) -> Values:
    # Columns of the predecessor's newer state that its own routes left empty, which its table then refused.
    return {
        "agent_id": values.get("agent_id") or values.get("default_agent") or "default",
        "default_agent": values.get("default_agent") or values.get("agent_id") or "default",
    }


def _unified_agent(row: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """The agent settings of a row that still has them in hive_* columns, when one of them is about to change.

    As long as hive_enabled is set those columns win over the unified ones, so a change of the latter alone would do nothing.
    """
    touches_agent = any(name in changes for name in _AGENT_COLUMNS)
    touches_hive = any(name.startswith("hive_") for name in changes)
    if not touches_agent or touches_hive or not (row.get("hive_enabled") and row.get("hive_api_url")):
        return {}
    config = InstanceConfig.from_any(row)
    unified = {name: getattr(config, name) for name in _AGENT_COLUMNS}
    return {**unified, "agent_api_key": config.agent_api_key or "", "hive_enabled": False}


def _checked(column: Column[Any], value: Any) -> Any:
    try:
        return column_adapter(column, is_sqlite=False)(value)
    except TypeError as exc:
        kind = type(value).__name__
        raise StoreError(f"{column.name} takes {exc}, not a value of type {kind}.", status_code=422) from None


def _checked_setting(name: str, value: Any) -> Any:
    kind, default = OWN_SETTINGS[name]
    if value is None:
        return default
    if type(value) is not kind:
        raise StoreError(f"{name} takes a value of type {kind.__name__}.", status_code=422)
    return value
