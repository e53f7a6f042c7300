"""What stands between Omni and the simulated Evolution: lets sends through, or makes one go wrong as ordered.

A trouble is shown to the send of one paragraph of one answer, whoever else is being served meanwhile. It says what Omni gets to see (an
answer, silence, a connection that is reset) and, apart from that, whether the message goes out: Evolution finishes a send
although the caller has gone.
"""

import json
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.faults.plans import Part, parts_of

CAPTURES = Path(__file__).resolve().parents[1] / "captures" / "evolution"
ERROR_CAPTURES = ("04_errors.json", "07_sendText_errors_baileys.json")

_RESET_AT_ONCE = struct.pack("ii", 1, 0)
SEND_ROUTE = "/message/sendText/"
PRESENCE_ROUTE = "/chat/sendPresence/"


class Trouble(Struct, frozen=True, kw_only=True):
    """One send that goes wrong. ``is_sent`` says whether the message goes out all the same."""

    name: str
    seen_as: Literal["answer", "silence", "reset"]
    is_sent: bool = False
    status: int = 0
    body: bytes = b""


SILENT_UNSENT = Trouble(name="silence, not sent", seen_as="silence")
SILENT_SENT = Trouble(name="silence, sent", seen_as="silence", is_sent=True)
RESET_UNSENT = Trouble(name="reset, not sent", seen_as="reset")
RESET_SENT = Trouble(name="reset, sent", seen_as="reset", is_sent=True)


def recorded_troubles(route: str) -> dict[str, Trouble]:
    """Every refusal of a route's calls that was recorded from a real Evolution, by the name it has in the captures."""
    found = {}
    for file in ERROR_CAPTURES:
        for name, capture in json.loads((CAPTURES / file).read_text(encoding="utf-8")).items():
            if name != "_meta" and capture["status"] >= 400 and capture["request"]["path"].startswith(route):
                body = msgspec.json.encode(capture["response"])
                found[name] = Trouble(name=name, seen_as="answer", status=capture["status"], body=body)
    return found


class Front:
    """An ASGI application in front of another one. ``on_event`` is called when a send arrives and when it has been dealt with."""

    def __init__(self, inner: ASGIApp, *, on_event: Callable[[], None]) -> None:
        self.shown: list[tuple[Part, str]] = []
        self._inner = inner
        self._on_event = on_event
        self._orders: dict[Part, deque[Trouble]] = {}
        self._refusals: deque[Trouble] = deque()
        self.num_refused_presences = 0

    def order(self, part: Part, troubles: Iterable[Trouble]) -> None:
        """Show these troubles, one per attempt, to the sends of one paragraph; further attempts are let through."""
        self._orders.setdefault(part, deque()).extend(troubles)

    def refuse_presences(self, troubles: Iterable[Trouble]) -> None:
        """Answer every typing sign with one of these, in turn and for ever."""
        self._refusals = deque(troubles)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        if path.startswith(PRESENCE_ROUTE) and self._refusals:
            self._refusals.rotate(-1)
            self.num_refused_presences += 1
            await _read_body(receive)
            await _show(self._refusals[0], receive, send)
            return
        if not path.startswith(SEND_ROUTE):
            await self._inner(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        self._on_event()
        trouble = self._take(body)
        try:
            if trouble is None:
                await self._inner(scope, _replay(body, receive), send)
                return
            if trouble.is_sent:
                await self._inner(scope, _replay(body, receive), _swallow)
            await _show(trouble, receive, send)
        finally:
            self._on_event()

    def _take(self, body: bytes) -> Trouble | None:
        for part in parts_of(json.loads(body)["text"]):
            if self._orders.get(part):
                trouble = self._orders[part].popleft()
                self.shown.append((part, trouble.name))
                return trouble
        return None


async def _show(trouble: Trouble, receive: Receive, send: Send) -> None:
    match trouble.seen_as:
        case "answer":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(trouble.body)).encode())]
            await send({"type": "http.response.start", "status": trouble.status, "headers": headers})
            await send({"type": "http.response.body", "body": trouble.body})
        case "silence":
            await _until_gone(receive)
        case "reset":
            transport: Any = send.__self__.transport  # type: ignore[attr-defined] # the server's own half of the call
            connection: socket.socket = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
            transport.abort()
            await _until_gone(receive)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the caller died before it was written."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand a body that was read already to another application, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _swallow(message: Message) -> None:
    del message


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
