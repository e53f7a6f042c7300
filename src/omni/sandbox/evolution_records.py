"""What the simulated Evolution keeps of every call it received, and the faults it can be told to show.

Times are monotonic nanoseconds. Records are facts for tests and demonstrations; the simulator itself never reads them back.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from omni.sandbox.evolution_wire import error_body

FaultKind = Literal[
    "connection_closed",
    "timed_out",
    "rate_overlimit",
    "never_connected",
    "server_error",
    "bad_gateway",
    "unavailable",
    "too_many_requests",
    "hang_unsent",
    "hang_sent",
    "cut_answer",
]
CallName = Literal["sendText", "sendPresence", "markMessageAsRead"]

_PROXY_PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
_NO_SOCKET = "Cannot read properties of undefined (reading 'onWhatsApp')"


class SentMessage(Struct, frozen=True, kw_only=True):
    """A text that was accepted (or, under a ``hang_sent`` or ``cut_answer`` fault, sent without saying so)."""

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
    """How one call goes wrong: no ``status_code`` means no answer ever; ``is_sent``, that the message goes out all the same."""

    status_code: int | None = None
    content: Any = None
    raw: bytes | None = None
    headers: Mapping[str, str] = {}
    is_sent: bool = False
    is_cut: bool = False


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
    "rate_overlimit": _error(400, ["Error: rate-overlimit"]),
    "server_error": _error(500, "Internal server error"),
    # The next three come from a proxy in front of Evolution, which itself never says 429 or Retry-After.
    "bad_gateway": Fault(status_code=502, raw=_PROXY_PAGE, headers={"content-type": "text/html"}),
    "unavailable": Fault(status_code=503, raw=b"", headers={"retry-after": "1"}),
    "too_many_requests": Fault(status_code=429, raw=b"", headers={"retry-after": "1"}),
    "hang_unsent": Fault(),
    "hang_sent": Fault(is_sent=True),
    "cut_answer": Fault(status_code=201, is_sent=True, is_cut=True),
}
