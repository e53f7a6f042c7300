"""Every knob of Omni, read once from the environment (and a ``.env`` file) into one frozen object.

The names are the predecessor's where it had one. A value that is not acceptable raises SettingsError naming the variable and
what it accepts. docs/reference/settings.md lists them all and a test keeps it true.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from omni.errors import SettingsError

ENV_PREFIX = "AUTOMAGIK_OMNI_"


class Settings(BaseSettings):
    """Omni's settings; each field is the variable ``AUTOMAGIK_OMNI_<FIELD>`` in upper case. Units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # a database URL may hold a password, and tracebacks show the cause as well
    )

    api_host: str = Field("127.0.0.1", description="Address the server listens on.")
    api_port: int = Field(8882, ge=0, le=65535, description="Port the server listens on; 0 takes a free one.")
    api_key: str = Field(
        "", description="Key for the REST API. When empty, one is generated once and kept in the data folder."
    )
    database_url: str = Field(
        "", description="SQLAlchemy URL of the database (sqlite or postgresql). Empty: SQLite at SQLITE_DATABASE_PATH."
    )
    sqlite_database_path: Path = Field(
        Path("./data/automagik-omni.db"), description="SQLite file used when no DATABASE_URL is set."
    )
    enable_tracing: bool = Field(True, description="Whether traces are kept. Answers flow either way.")
    trace_retention_days: int = Field(
        0, ge=0, le=3650, description="Days after which traces may be removed automatically; 0 keeps them until asked."
    )
    trace_max_payload_size: int = Field(
        1_048_576,
        ge=1_024,
        description="Largest stored payload in characters of JSON; longer strings in it are cut and marked.",
    )
    trace_include_sensitive: bool = Field(
        False, description="Whether keys and media bytes in webhooks are stored as they are instead of redacted."
    )
    trace_queue_events: int = Field(
        200_000,
        ge=1_000,
        description="Trace events that may wait for the writer; beyond it chunk records are shed and counted.",
    )
    trace_flush_ms: int = Field(
        50, ge=1, le=10_000, description="Milliseconds between the writer's transactions while there is work."
    )
    trace_segment_ms: int = Field(
        150,
        ge=10,
        le=60_000,
        description="Milliseconds after which a chunk of a running stream is on its way into the database, before the stream's end.",
    )
    webhook_max_bytes: int = Field(
        26_214_400, ge=1_024, description="Largest webhook body accepted, in bytes (media may come inside it)."
    )
    message_max_age_s: int = Field(
        3_600,
        ge=60,
        description="Seconds after which a message that arrives late is recorded and not answered, by WhatsApp's stamp.",
    )
    max_takes: int = Field(
        3,
        ge=1,
        le=100,
        description="Times an answer is begun for one message when the process dies before any of it went out.",
    )
    stop_words: str = Field(
        "/stop,/parar",
        description="Messages that stop the answer being written in their chat, separated by commas; empty for none.",
    )
    database_wait_ms: int = Field(
        1_000,
        ge=50,
        le=60_000,
        description="Milliseconds one write to the database may take before it goes to the local spool instead.",
    )
    spool_max_mb: int = Field(
        512,
        ge=8,
        description="Megabytes the local spool may hold while the database is away; chunks are shed first, then it is full.",
    )
    trace_memory_max_mb: int = Field(
        32, ge=1, description="Megabytes of records kept in memory while neither the database nor the spool takes them."
    )
    ledger_days: int = Field(
        35,
        ge=2,
        le=3650,
        description="Days finished messages stay in inbox and outbox: how late a receipt still finds its message.",
    )
    inbox_max_waiting: int = Field(
        10_000,
        ge=1,
        description="Messages that may wait for their turn, all chats together; beyond it webhooks get 503.",
    )
    message_spacing_ms: int = Field(
        500,
        ge=0,
        le=60_000,
        description="Milliseconds between two messages to one chat, counted from the last accepted one.",
    )
    message_max_chars: int = Field(
        4096,
        ge=16,
        le=4096,
        description="Longest WhatsApp message in characters; longer paragraphs are cut at a safe place.",
    )
    send_timeout_ms: int = Field(30_000, ge=100, description="Milliseconds Evolution may take to answer one call.")
    send_attempts: int = Field(
        6, ge=1, le=20, description="Attempts per message while Evolution says the failure is passing."
    )
    send_retry_ms: int = Field(
        500,
        ge=0,
        le=60_000,
        description="Milliseconds before the second attempt; doubles with each further one, plus jitter.",
    )
    send_retry_max_ms: int = Field(
        15_000, ge=0, le=300_000, description="Longest wait between two attempts, in milliseconds, before jitter."
    )
    reconcile_wait_ms: int = Field(
        5_000,
        ge=0,
        le=60_000,
        description="Milliseconds to wait for Evolution's own word on a send that broke off, before it is asked.",
    )
    typing_indicator: bool = Field(True, description="Whether the typing sign is shown while the agent writes.")
    agent_connect_timeout_ms: int = Field(10_000, ge=100, description="Milliseconds for connecting to an agent server.")
    answer_groups: bool = Field(False, description="Whether messages in groups are answered (instances may override).")
    require_webhook_auth: bool = Field(
        False, description="Whether webhooks without a key or token are refused for every instance."
    )
    language: Literal["en", "pt"] = Field("en", description="Language of the notices users get when an answer fails.")
    stop_deadline_ms: int = Field(
        10_000, ge=0, description="Milliseconds running answers get to finish when the server stops."
    )
    loop_probe_ms: int = Field(
        50,
        ge=1,
        le=10_000,
        description="Milliseconds between two readings of the event loop's lag, which the health route shows.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="How much is logged.")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        accepted = ("sqlite://", "postgresql://", "postgresql+psycopg://", "postgres://")
        if value and not value.startswith(accepted):
            raise ValueError("must be empty or start with sqlite:// or postgresql://")
        return value

    @property
    def data_dir(self) -> Path:
        """The folder of the SQLite file; the generated API key lies there too."""
        return self.sqlite_database_path.parent

    @property
    def database_setting(self) -> str:
        """The variable that says which database is opened."""
        return f"{ENV_PREFIX}{'DATABASE_URL' if self.database_url else 'SQLITE_DATABASE_PATH'}"

    @property
    def resolved_database_url(self) -> str:
        """The URL to open: DATABASE_URL with the psycopg driver named, or the SQLite file."""
        url = self.database_url
        for prefix in ("postgresql://", "postgres://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url or f"sqlite:///{self.sqlite_database_path}"


def load_settings() -> Settings:
    """Read the settings from the environment. Raises SettingsError naming each variable that is wrong."""
    try:
        return Settings()
    except ValidationError as exc:
        raise SettingsError("; ".join(_explain(error) for error in exc.errors())) from exc


def _explain(error: object) -> str:
    assert isinstance(error, dict)
    field = str(error["loc"][0]) if error["loc"] else "settings"
    about = Settings.model_fields[field].description if field in Settings.model_fields else ""
    reason = str(error["msg"]).removeprefix("Value error, ")
    return f"{ENV_PREFIX}{field.upper()}: {reason}. {about}".rstrip()
