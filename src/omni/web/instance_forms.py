"""What callers may say about an instance and how it is shown to them; judged here, stored elsewhere.

Names are the columns of ``instance_configs``. An input nobody knows is not refused, since older callers send some that meant
something to an earlier version; the reply lists it in ``ignored_fields``. What would have changed which agent answers, or on
which channel, is refused instead.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from omni.gateway.notices import MAX_NOTICE_CHARS, Language, NoticeKind
from omni.model import DEFAULT_AGENT_TIMEOUT_S
from omni.web.errors import input_refused
from omni.web.masks import is_masked, shown
from omni.web.times import iso_utc

SUPPORTED_CHANNELS = ("whatsapp",)
_RESERVED_NAMES = frozenset({"supported-channels", "discover"})
_NAME = re.compile(r"\w[\w .-]{0,98}[\w.-]|\w")
_REFUSED_PREFIXES = ("hive_", "discord_")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 100 letters, digits, spaces, dots, dashes or underscores, beginning with a letter or digit"
        )
    if name in _RESERVED_NAMES:
        raise ValueError("is the name of a route; choose another one")
    return name


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as exc:
        raise ValueError("must be an address such as http://host:8080") from exc
    if parts.scheme not in {"http", "https"} or not has_host or re.search(r"\s", url):
        raise ValueError("must be an address that begins with http:// or https://")
    if parts.username is not None:
        raise ValueError("must not hold a login; the key has its own field")
    return url


def _checked_key(key: str) -> str:
    """Keys travel in HTTP headers, which hold printable ASCII and end at a line break."""
    if not key.strip():
        raise ValueError("must not be blank")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("must be printable ASCII")
    return key


def _checked_agent_key(key: str) -> str:
    """An agent server may have no key at all, which the table writes as an empty one."""
    return key if key == "" else _checked_key(key)


def _checked_notice(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Url = Annotated[str, AfterValidator(_checked_url)]
Key = Annotated[str, AfterValidator(_checked_key)]
AgentKey = Annotated[str, AfterValidator(_checked_agent_key)]
TimeoutSeconds = Annotated[int, Field(ge=1, le=3600)]
SpacingMs = Annotated[int, Field(ge=0, le=60_000)]
NoticeText = Annotated[str, Field(max_length=MAX_NOTICE_CHARS), AfterValidator(_checked_notice)]
NoticeTexts = dict[NoticeKind, NoticeText]

_ABOUT_TIMEOUT = "Seconds the agent may stay silent, before its first text and inside a stream."
_ABOUT_SPACING = "Milliseconds between two messages to one chat; null takes the server's setting."
_ABOUT_SPLIT = "Whether a text sent by request is split at blank lines when the request does not say."
_ABOUT_LANGUAGE = "Language of the notices its users get; null takes the server's setting."
_ABOUT_NOTICES = "Its own texts for notices, by kind; a kind that is missing keeps the text that is shipped."
_ABOUT_AUTH = "Whether webhooks without a key or token are refused."
_ABOUT_SECRET = "The `jwt_key` Evolution signs its webhooks with."  # noqa: S105 a description


class InstanceForm(BaseModel):
    """A new instance."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, AfterValidator(_checked_name)] = Field(description="Its name here; part of its addresses.")
    channel_type: Literal["whatsapp"] = "whatsapp"
    evolution_url: Url | None = Field(None, description="Address of the Evolution API server.")
    evolution_key: Key | None = Field(None, description="Evolution's API key. Shown masked.")
    whatsapp_instance: str | None = Field(None, description="Its name at Evolution; null when it is the same.")
    session_id_prefix: str | None = None
    webhook_base64: bool | None = Field(None, description="Whether Evolution sends media inside its webhooks.")
    agent_instance_type: Literal["automagik", "hive"] = "automagik"
    agent_api_url: Url = Field(description="Address of the agent server.")
    agent_api_key: AgentKey = Field(description="The agent server's API key, empty when it has none. Shown masked.")
    agent_id: str = Field("default", description="Agent or team to ask.")
    agent_type: Literal["agent", "team"] = "agent"
    agent_timeout: TimeoutSeconds = Field(DEFAULT_AGENT_TIMEOUT_S, description=_ABOUT_TIMEOUT)
    agent_stream_mode: bool = Field(False, description="Whether answers are streamed; Hive agents only.")
    default_agent: str | None = None
    enable_auto_split: bool | None = Field(None, description=_ABOUT_SPLIT)
    is_default: bool = False
    is_active: bool = True
    webhook_secret: Key | None = Field(None, description=f"{_ABOUT_SECRET} Shown masked.")
    requires_webhook_auth: bool = Field(False, description=_ABOUT_AUTH)
    answers_groups: bool = Field(False, description="Whether messages in groups are answered.")
    message_spacing_ms: SpacingMs | None = Field(None, description=_ABOUT_SPACING)
    language: Language | None = Field(None, description=_ABOUT_LANGUAGE)
    notice_texts: NoticeTexts | None = Field(None, description=_ABOUT_NOTICES)


class InstanceChange(BaseModel):
    """New values for some fields of an instance; what is absent stays as it is."""

    model_config = ConfigDict(extra="allow")

    channel_type: Literal["whatsapp"] = "whatsapp"
    evolution_url: Url | None = None
    evolution_key: Key | None = None
    whatsapp_instance: str | None = None
    session_id_prefix: str | None = None
    webhook_base64: bool = True
    agent_instance_type: Literal["automagik", "hive"] = "automagik"
    agent_api_url: Url = ""
    agent_api_key: AgentKey = ""
    agent_id: str | None = None
    agent_type: Literal["agent", "team"] = "agent"
    agent_timeout: TimeoutSeconds = DEFAULT_AGENT_TIMEOUT_S
    agent_stream_mode: bool = False
    default_agent: str | None = None
    enable_auto_split: bool = True
    is_default: bool = False
    is_active: bool = True
    webhook_secret: Key | None = None
    requires_webhook_auth: bool = False
    answers_groups: bool = False
    message_spacing_ms: SpacingMs | None = None
    language: Language | None = None
    notice_texts: NoticeTexts | None = None


class InstanceReply(BaseModel):
    """An instance as stored, keys masked. Columns an older database has beside these are shown too."""

    model_config = ConfigDict(extra="forbid")

    id: int | None = None
    name: str
    channel_type: str | None = None
    evolution_url: str | None = None
    evolution_key: str | None = Field(None, description="Masked.")
    whatsapp_instance: str | None = None
    session_id_prefix: str | None = None
    webhook_base64: bool | None = None
    agent_instance_type: str | None = None
    agent_api_url: str | None = None
    agent_api_key: str | None = Field(None, description="Masked.")
    agent_id: str | None = None
    agent_type: str | None = None
    agent_timeout: float | None = Field(None, description=_ABOUT_TIMEOUT)
    agent_stream_mode: bool | None = None
    default_agent: str | None = None
    automagik_instance_id: str | None = None
    automagik_instance_name: str | None = None
    profile_name: str | None = None
    profile_pic_url: str | None = None
    owner_jid: str | None = None
    is_default: bool | None = None
    is_active: bool | None = None
    created_at: str | None = Field(None, description="ISO 8601, UTC, without offset.")
    updated_at: str | None = Field(None, description="ISO 8601, UTC, without offset.")
    webhook_secret: str | None = Field(None, description=f"{_ABOUT_SECRET} Masked.")
    requires_webhook_auth: bool | None = Field(None, description=_ABOUT_AUTH)
    answers_groups: bool | None = None
    message_spacing_ms: int | None = Field(None, description=_ABOUT_SPACING)
    language: str | None = Field(None, description=_ABOUT_LANGUAGE)
    notice_texts: dict[str, str] | None = Field(None, description=_ABOUT_NOTICES)
    enable_auto_split: bool | None = Field(None, description=_ABOUT_SPLIT)
    hive_enabled: bool | None = None
    hive_api_url: str | None = None
    hive_api_key: str | None = Field(None, description="Masked.")
    hive_agent_id: str | None = None
    hive_team_id: str | None = None
    hive_timeout: int | None = None
    hive_stream_mode: bool | None = None
    discord_bot_token: str | None = Field(None, description="Masked.")
    discord_client_id: str | None = None
    discord_guild_id: str | None = None
    discord_default_channel_id: str | None = None
    discord_voice_enabled: bool | None = None
    discord_slash_commands_enabled: bool | None = None
    discord_webhook_url: str | None = Field(None, description="Masked.")
    discord_permissions: int | None = None
    ignored_fields: list[str] | None = Field(
        None, description="Inputs of this request that were not used; absent when all were."
    )


def show_instance(row: Mapping[str, Any], *, ignored_fields: list[str] | None = None) -> dict[str, Any]:
    """A row as replies show it: the fields of InstanceReply it has, keys masked."""
    reply = {name: _shown(name, row[name]) for name in InstanceReply.model_fields if name in row}
    if ignored_fields:
        reply["ignored_fields"] = ignored_fields
    return reply


def new_instance_values(form: InstanceForm) -> tuple[dict[str, Any], list[str]]:
    """The column values of a new instance and the inputs that were not used. Raises RequestRefused."""
    values = form.model_dump(exclude_none=True, include=set(InstanceForm.model_fields))
    _refuse_masks(values)
    return values, _unused(form.model_extra or {}, InstanceForm)


def changed_instance_values(wanted: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The column values to change and the inputs that were not used.

    What equals the value as shown is no change, whatever it is: a masked key, a date, a value of an older version.
    Raises RequestRefused or RequestValidationError.
    """
    now = show_instance(row)
    changes = {name: value for name, value in wanted.items() if name not in now or now[name] != value}
    if "name" in changes:
        raise input_refused("name", "cannot be changed")
    _refuse_masks(changes)
    try:
        change = InstanceChange.model_validate(changes)
    except ValidationError as exc:
        raise RequestValidationError(
            [{**error, "loc": ("body", *error["loc"])} for error in exc.errors(include_input=False)]
        ) from exc
    values = change.model_dump(exclude_unset=True, include=set(InstanceChange.model_fields))
    return values, _unused(change.model_extra or {}, InstanceChange)


def _unused(extra: Mapping[str, Any], form: type[BaseModel]) -> list[str]:
    meant = {name: value for name, value in extra.items() if value not in (None, False, "")}
    for name in meant:
        if name.startswith(_REFUSED_PREFIXES):
            raise input_refused(
                name, "is not supported; a Hive agent is set with agent_instance_type and the agent_ fields"
            )
    return sorted(name for name in meant if name not in form.model_fields)


def _refuse_masks(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if is_masked(name, value):
            raise input_refused(name, "is a masked value; send the whole value or leave it out")


def _shown(name: str, value: Any) -> Any:
    return iso_utc(value) if isinstance(value, datetime) else shown(name, value)
