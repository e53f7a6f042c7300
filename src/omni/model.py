"""The frozen data that passes between Omni's parts: instances, inbound and outbound messages, agent events.

Raw dictionaries stop at the parsers; from there on everything is one of these types. They are msgspec structs: frozen and
slotted as a dataclass would be, at a tenth of the cost to make, which counts where one is made per chunk.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from msgspec import Struct, structs

AgentKind = Literal["agent", "team"]
Ending = Literal["completed", "error", "incomplete", "paused", "cancelled", "timeout", "send_failed", "interrupted"]
UpstreamCancel = Literal["requested", "unsupported", "failed"]
MessageStatus = Literal["pending", "accepted", "delivered", "read", "failed", "not_sent"]
ReceiptStatus = Literal["pending", "server_ack", "delivered", "read", "failed", "deleted"]
SendErrorKind = Literal["not_on_whatsapp", "rejected", "unauthorized", "unknown_instance", "transient", "ambiguous"]

DEFAULT_AGENT_TIMEOUT_S = 60
"""Seconds of silence after which an agent is given up when an instance sets none (the predecessor's default)."""


class InstanceConfig(Struct, frozen=True, kw_only=True):
    """One configured WhatsApp instance and the agent that answers for it.

    Field names are the columns of ``instance_configs``. ``agent_timeout`` is in seconds and bounds the wait for the first
    text and every silence inside a stream, not the length of an answer. ``language`` and ``notice_texts`` (by kind of notice)
    are for what Omni itself says to the user; None takes the setting's language and the texts that are shipped.
    """

    name: str
    channel_type: str = "whatsapp"
    evolution_url: str | None = None
    evolution_key: str | None = None
    whatsapp_instance: str | None = None
    session_id_prefix: str | None = None
    agent_instance_type: str = "automagik"
    agent_api_url: str | None = None
    agent_api_key: str | None = None
    agent_id: str | None = None
    agent_type: AgentKind = "agent"
    agent_timeout: float = DEFAULT_AGENT_TIMEOUT_S
    agent_stream_mode: bool = False
    default_agent: str | None = None
    enable_auto_split: bool = True
    is_default: bool = False
    is_active: bool = True
    webhook_secret: str | None = None
    requires_webhook_auth: bool = False
    answers_groups: bool = False
    message_spacing_ms: int | None = None
    language: str | None = None
    notice_texts: dict[str, str] | None = None

    @property
    def is_hive(self) -> bool:
        """Whether an Automagik Hive (Agno) server answers for this instance."""
        return self.agent_instance_type == "hive"

    @property
    def streaming_enabled(self) -> bool:
        """Whether answers are streamed; only Hive agents can."""
        return self.is_hive and self.agent_stream_mode

    @property
    def evolution_instance(self) -> str:
        """The instance's name at Evolution, which may differ from its name here."""
        return self.whatsapp_instance or self.name

    def targeting(self, agent_type: AgentKind, agent_id: str) -> "InstanceConfig":
        """The same instance asking another agent or team of its Hive."""
        return structs.replace(self, agent_instance_type="hive", agent_type=agent_type, agent_id=agent_id)

    @classmethod
    def from_any(cls, source: object) -> Self:
        """An InstanceConfig from one, from a mapping, or from any object with the predecessor's attributes.

        Rows of the predecessor's older schema that carry their Hive settings in ``hive_*`` columns are read as the Hive
        instance they describe.
        """
        if isinstance(source, cls):
            return source
        values = _legacy_values(source)
        known = {name: values[name] for name in cls.__struct_fields__ if values.get(name) is not None}
        if known.get("agent_type") not in ("agent", "team"):
            known.pop("agent_type", None)
        return cls(**known)


_LEGACY_HIVE_FIELDS = (
    "hive_enabled",
    "hive_api_url",
    "hive_api_key",
    "hive_agent_id",
    "hive_team_id",
    "hive_timeout",
    "hive_stream_mode",
)


def _legacy_values(source: object) -> dict[str, Any]:
    wanted = (*InstanceConfig.__struct_fields__, *_LEGACY_HIVE_FIELDS)
    if isinstance(source, Mapping):
        values = {name: source.get(name) for name in wanted}
    else:
        values = {name: getattr(source, name, None) for name in wanted}
        if getattr(source, "is_hive", False) is True:
            values["agent_instance_type"] = "hive"
        if values["agent_stream_mode"] is None and getattr(source, "streaming_enabled", False) is True:
            values["agent_stream_mode"] = True
    for flag in ("agent_stream_mode", "enable_auto_split", "is_default", "is_active"):
        if values[flag] is not None:
            values[flag] = bool(values[flag])
    if values["hive_enabled"] and values["hive_api_url"]:
        team = values["hive_team_id"]
        values.update(
            agent_instance_type="hive",
            agent_api_url=values["hive_api_url"],
            agent_api_key=values["hive_api_key"],
            agent_id=values["hive_agent_id"] or team,
            agent_type="agent" if values["hive_agent_id"] else "team",
            agent_timeout=values["hive_timeout"] or values["agent_timeout"],
            agent_stream_mode=bool(values["hive_stream_mode"]),
        )
    return values


class InboundMessage(Struct, frozen=True, kw_only=True):
    """One WhatsApp message a user wrote, as read from a webhook.

    ``reply_to`` is the address the message came from and the answer goes to (it may be an ``@lid``); ``chat_key`` names the
    conversation and is the phone address whenever either address is one. ``sent_at_s`` is WhatsApp's own stamp in whole
    seconds.
    """

    instance_name: str
    message_id: str
    chat_key: str
    reply_to: str
    sender_phone: str
    sender_name: str | None
    text: str
    message_type: str
    has_media: bool = False
    has_quoted_message: bool = False
    is_group: bool = False
    sent_at_s: int | None = None
    raw: dict[str, Any] = {}


class Ignored(Struct, frozen=True, kw_only=True):
    """A webhook that is understood and not answered; ``reason`` is one of the words of docs/reference/webhooks.md.

    ``message`` is set when a person wrote something Omni cannot answer (a voice note, say), so that a trace can be kept.
    """

    reason: str
    event: str | None = None
    message: InboundMessage | None = None


class OutboundMessage(Struct, frozen=True, kw_only=True):
    """One finished message (bubble) on its way to WhatsApp.

    ``index`` counts from 0 within the answer. ``start`` and ``end`` are its code-point range in the whole answer, separators
    included, so that the ranges of an answer's messages tile it; ``first_chunk`` and ``last_chunk`` are the indexes of the chunks
    that have a part in that range, None for a notice that is not part of the answer.
    """

    index: int
    recipient: str
    text: str
    start: int = 0
    end: int = 0
    first_chunk: int | None = None
    last_chunk: int | None = None


class SendResult(Struct, frozen=True, kw_only=True):
    """What became of one attempt to send one message.

    ``is_accepted`` means Evolution answered 201 and nothing more. ``status_code`` is None when no HTTP answer came.
    ``is_searchable`` is False when the channel failed to keep what it may have sent: not finding it then proves nothing.
    """

    is_accepted: bool
    status_code: int | None = None
    key_id: str | None = None
    error_kind: SendErrorKind | None = None
    error: str | None = None
    retry_after_s: float | None = None
    is_searchable: bool = True


class MessageOutcome(Struct, frozen=True, kw_only=True):
    """What became of one outgoing message after all its attempts. Times are monotonic nanoseconds, None when unknown.

    ``is_unledgered`` says that it was sent before the ledger had taken it, which took too long.
    """

    message: OutboundMessage
    status: MessageStatus
    attempts: int
    queued_ns: int
    started_ns: int | None = None
    ended_ns: int | None = None
    key_id: str | None = None
    status_code: int | None = None
    error_kind: SendErrorKind | None = None
    error: str | None = None
    is_unledgered: bool = False


class SentSearch(Struct, frozen=True, kw_only=True):
    """Whether a message whose sending broke off went out after all.

    ``found`` names the key WhatsApp knows it by; ``absent`` means the channel keeps what it sent and this is not there;
    ``unknown`` that nobody can tell. ``retryable`` says that asking again later may tell more.
    """

    verdict: Literal["found", "absent", "unknown"]
    key_id: str | None = None
    retryable: bool = False


class SentEcho(Struct, frozen=True, kw_only=True):
    """The channel's own word that it sent a message: Evolution's ``send.message``."""

    instance_name: str
    key_id: str
    recipient: str
    text: str


class Receipt(Struct, frozen=True, kw_only=True):
    """What WhatsApp says of a message sent earlier. It is joined by (instance, key id) and by nothing else.

    ``claimed_wall_ns`` is the moment the event names, taken as UTC as it claims (nanoseconds since 1970), None when it names none;
    its zone may be false.
    """

    instance_name: str
    key_id: str
    status: ReceiptStatus
    claimed_wall_ns: int | None = None


class AgentRequest(Struct, frozen=True, kw_only=True):
    """One question for an agent. ``timeout_s`` bounds each silence, the first less ``waited_s`` that earlier attempts used up."""

    base_url: str
    api_key: str | None
    agent_kind: AgentKind
    agent_id: str
    message: str
    session_id: str
    user_id: str
    stream: bool = True
    timeout_s: float = DEFAULT_AGENT_TIMEOUT_S
    waited_s: float = 0.0


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens as the agent server counted them; None where it said nothing."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None


class RequestWritten(Struct, frozen=True):
    """The request's last byte was handed to the socket."""

    mono_ns: int


class FirstByte(Struct, frozen=True):
    """The first byte of the answer's body arrived."""

    mono_ns: int


class RunStarted(Struct, frozen=True, kw_only=True):
    """The root run announced itself: the first event of any kind that names a run."""

    mono_ns: int
    run_id: str | None
    session_id: str | None = None
    model: str | None = None


class TextDelta(Struct, frozen=True, gc=False):
    """A piece of the answer: text of the root run, to be shown. ``event_type`` is the server's own event name."""

    mono_ns: int
    text: str
    event_type: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """A tool of the root run or of a member started or ended."""

    mono_ns: int
    phase: Literal["started", "completed"]
    name: str | None
    is_error: bool = False


class RunActivity(Struct, frozen=True):
    """Any other event: reasoning, memory, a member's text, or one nobody knows yet. Counted, never shown."""

    mono_ns: int
    event_type: str


class RunEnded(Struct, frozen=True, kw_only=True):
    """The root run's first terminal event, or the end of the body without one (``incomplete``).

    ``content`` is the terminal event's full text: a check on the deltas, or the answer itself when there were none.
    ``error_message`` is for the operator only.
    """

    mono_ns: int
    ending: Ending
    event_type: str | None = None
    content: str | None = None
    error_message: str | None = None
    usage: Usage | None = None
    run_id: str | None = None
    session_id: str | None = None


AgentEvent = RequestWritten | FirstByte | RunStarted | TextDelta | ToolCall | RunActivity | RunEnded
