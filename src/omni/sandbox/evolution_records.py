"""What the simulated Evolution keeps of every call it received, and the faults it can be told to show.

Times are monotonic nanoseconds. Records are facts for tests and demonstrations; the simulator itself never reads them back.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct

from omni.sandbox.evolution_wire import error_body, not_on_whatsapp

FaultKind = Literal[
    "connection_closed",
    "timed_out",
    "stream_errored",
    "rate_overlimit",
    "not_on_whatsapp",
    "wrong_shape",
    "text_required",
    "method_not_available",
    "unauthorized",
    "unknown_instance",
    "never_connected",
    "server_error",
    "bad_gateway",
    "unavailable",
    "too_many_requests",
    "hang_unsent",
    "hang_sent",
    "cut_unsent",
    "cut_answer",
    "not_kept",
]
CallName = Literal["sendText", "sendPresence", "markMessageAsRead", "findMessages"]
Describe = Callable[[str, Any], Any]
"""Makes an error's body of the instance's name and the body of the call."""

_PROXY_PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_DATABASE_FAILED = "PrismaClientKnownRequestError: Timed out fetching a new connection from the connection pool"
_NO_SOCKET = "Cannot read properties of undefined (reading 'onWhatsApp')"


class SentMessage(Struct, frozen=True, kw_only=True):
    """A text that was accepted (or, under a ``hang_sent``, ``cut_answer`` or ``not_kept`` fault, sent without saying so)."""

    instance_name: str
    number: str
    jid: str
    text: str
    key_id: str
    body: dict[str, Any]
    received_ns: int
    accepted_ns: int


class PresenceCall(Struct, frozen=True, kw_only=True):
    """One typing pulse; it lasts ``delay_ms`` from ``received_ns`` on."""

    instance_name: str
    number: str
    state: str
    delay_ms: int
    received_ns: int


class ReadCall(Struct, frozen=True, kw_only=True):
    """Messages marked as read. With a privacy address Evolution says "success" and does nothing: ``is_effective`` is False."""

    instance_name: str
    message_id: str
    remote_jid: str
    is_effective: bool
    received_ns: int


class HttpCall(Struct, frozen=True, kw_only=True):
    """Any call to a known route: its body and what was answered."""

    method: str
    path: str
    body: Any
    status_code: int
    received_ns: int
    answered_ns: int


class Fault(Struct, frozen=True, kw_only=True):
    """How one call goes wrong: no ``status_code`` means no answer ever; ``is_sent``, that the message goes out all the same.

    ``is_kept`` False means that a message which went out leaves no row and no event behind. ``describe`` makes the body where it
    depends on the call; ``is_cut`` drops the connection in the middle of the answer.
    """

    status_code: int | None = None
    content: Any = None
    describe: Describe | None = None
    raw: bytes | None = None
    headers: Mapping[str, str] = {}
    is_sent: bool = False
    is_kept: bool = True
    is_cut: bool = False

    def body(self, instance_name: str, call_body: Any) -> Any:
        """The body of the answer to one call."""
        return self.content if self.describe is None else self.describe(instance_name, call_body)


def fault_for(kind: FaultKind, *, call: CallName) -> Fault:
    """The fault a kind stands for; a socket that was never connected fails differently per call, as recorded."""
    if kind == "never_connected" and call == "sendText":
        return _error(500, _NO_SOCKET)
    if kind == "never_connected":
        return _error(400, [f"TypeError: {_NO_SOCKET}"])
    return _FAULTS[kind]


def _error(status: int, message: Any) -> Fault:
    return Fault(status_code=status, content=error_body(status, message))


_FAULTS: Mapping[FaultKind, Fault] = {
    "connection_closed": _error(400, ["Error: Connection Closed"]),
    "timed_out": _error(400, ["Error: Timed Out"]),
    "stream_errored": _error(400, ["Error: Stream Errored (conflict)"]),
    "rate_overlimit": _error(400, ["Error: rate-overlimit"]),
    "not_on_whatsapp": Fault(status_code=400, describe=lambda _, body: not_on_whatsapp(body["number"])),
    "wrong_shape": _error(400, [['instance requires property "text"']]),
    "text_required": _error(400, ["Text is required"]),
    "method_not_available": _error(400, ["Method not available on Evolution Channel"]),
    "unauthorized": _error(401, "Unauthorized"),
    "unknown_instance": Fault(
        status_code=404, describe=lambda name, _: error_body(404, [f'The "{name}" instance does not exist'])
    ),
    "server_error": _error(500, "Internal server error"),
    # The next three come from a proxy in front of Evolution, which itself never says 429 or Retry-After.
    "bad_gateway": Fault(status_code=502, raw=_PROXY_PAGE, headers={"content-type": "text/html"}),
    "unavailable": Fault(status_code=503, raw=b"", headers={"retry-after": "1"}),
    "too_many_requests": Fault(status_code=429, raw=b"", headers={"retry-after": "1"}),
    "hang_unsent": Fault(),
    "hang_sent": Fault(is_sent=True),
    # The connection breaks off in both; only the second has sent the message.
    "cut_unsent": Fault(status_code=201, is_cut=True),
    "cut_answer": Fault(status_code=201, is_sent=True, is_cut=True),
    # Not recorded: by its source the real service answers so when its database fails right after the send.
    "not_kept": Fault(status_code=400, content=error_body(400, [_DATABASE_FAILED]), is_sent=True, is_kept=False),
}
