"""The one tree of errors Omni raises, and the facts each of them carries.

    OmniError
    ├── SettingsError            a variable of the environment is missing or not acceptable
    ├── WebhookError             an inbound call that cannot be taken
    │   ├── WebhookMalformed     not JSON, not an object, not Evolution's envelope (400)
    │   ├── WebhookTooLarge      body over the limit (413)
    │   ├── WebhookUnauthorized  no acceptable key or token (401)
    │   ├── InstanceNotFound     the path names an instance nobody configured (404)
    │   └── InboxFull            too much work in hand; the sender should try again (503)
    ├── AgentError               the agent gave no complete answer
    │   ├── AgentUnreachable     no connection, or it broke before the answer began
    │   ├── AgentRejected        400, 401, 403, 404, 422: a configuration fault, never retried
    │   ├── AgentFailed          5xx, or the run itself reported an error
    │   ├── AgentTimeout         silence before the first text, or inside the stream
    │   └── AgentProtocolError   bytes that are no agent stream
    ├── DeliveryError            a message could not be handed to the channel
    └── StoreError               the database refused a read or a write
        └── RecordNotFound       a trace or an instance that is not there (404)

The sentence is for people. Code decides on ``stage``, ``retryable`` and ``status_code``. No error carries
message text, phone numbers or keys; ``detail`` may hold what a server answered, is stored in the trace for the operator,
and is neither logged nor shown to the WhatsApp user.
"""

from typing import ClassVar, Literal

TimeoutKind = Literal["first_token", "idle"]


class OmniError(Exception):
    """Base of all errors Omni raises.

    ``stage`` is the trace stage it belongs to; ``retryable`` says whether the same call may succeed later;
    ``status_code`` is the HTTP status that was received (agents, channels) or is to be answered (webhooks, REST).
    """

    stage: ClassVar[str] = "processing"

    def __init__(
        self,
        sentence: str,
        *,
        retryable: bool = False,
        status_code: int | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retryable = retryable
        self.status_code = status_code
        self.detail = detail


class SettingsError(OmniError):
    """A setting is missing or not acceptable; the sentence names the variable and what it accepts."""

    stage = "settings"


class WebhookError(OmniError):
    """An inbound call that cannot be taken; ``status_code`` is the HTTP answer."""

    stage = "webhook_received"
    answer_code: ClassVar[int] = 400

    def __init__(self, sentence: str, *, retryable: bool = False, detail: str | None = None) -> None:
        super().__init__(sentence, retryable=retryable, status_code=self.answer_code, detail=detail)


class WebhookMalformed(WebhookError):
    """The body is not JSON, not an object, or lacks the fields of Evolution's envelope."""


class WebhookTooLarge(WebhookError):
    """The body is larger than the limit in the settings."""

    answer_code = 413


class WebhookUnauthorized(WebhookError):
    """The instance requires a key or a token and the call carries none that is acceptable."""

    answer_code = 401


class InstanceNotFound(WebhookError):
    """The path names an instance that is not configured."""

    answer_code = 404


class InboxFull(WebhookError):
    """Too many messages wait already; 503 makes Evolution deliver this one again later."""

    answer_code = 503


class AgentError(OmniError):
    """The agent gave no complete answer."""

    stage = "agent_request"


class AgentUnreachable(AgentError):
    """No connection could be made, or it broke before the answer began."""


class AgentRejected(AgentError):
    """The agent server refused the request (400, 401, 403, 404, 422): a configuration fault."""


class AgentFailed(AgentError):
    """The agent server failed (5xx), or the run itself reported an error."""

    stage = "streaming_error"


class AgentTimeout(AgentError):
    """The agent stayed silent for too long.

    ``kind`` is ``first_token`` before the first visible text and ``idle`` after it; ``timeout_s`` is the limit in seconds.
    """

    stage = "streaming_error"

    def __init__(self, sentence: str, *, kind: TimeoutKind, timeout_s: float) -> None:
        super().__init__(sentence, retryable=kind == "first_token")
        self.kind: TimeoutKind = kind
        self.timeout_s = timeout_s


class AgentProtocolError(AgentError):
    """The bytes are no agent stream: no event could be read from them, or one event exceeds the size limit."""

    stage = "streaming_error"


class DeliveryError(OmniError):
    """A message could not be handed to the channel."""

    stage = "evolution_send"


class StoreError(OmniError):
    """The database refused a read or a write."""

    stage = "store"


class RecordNotFound(StoreError):
    """A trace or an instance that is not there."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, status_code=404)
