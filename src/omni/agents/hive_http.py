"""The HTTP side of asking a Hive server: the form that is sent, the reads that come back, the errors that come instead.

Every foreign exception and every status that is no answer becomes one of Omni's errors here, once. What a server said about a
failure is kept for the operator, shortened, and without the values it quotes back, which may be what the user wrote.
"""

from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter

from omni.clock import Clock
from omni.errors import AgentError, AgentFailed, AgentRejected
from omni.model import AgentRequest

MAX_DETAIL_CHARS = 500
"""Longest server message kept with an error."""

_MAX_ERROR_BODY_BYTES = 65_536
_PASSING_STATUSES = frozenset({408, 425, 429})  # refused for now, though below 500


class StampedBody(aiohttp.BytesPayload):
    """A request body that notes when its last byte was handed to the socket (``written_ns``, None until then)."""

    def __init__(self, body: bytes, *, content_type: str, clock: Clock) -> None:
        super().__init__(body, content_type=content_type)
        self._clock = clock
        self.written_ns: int | None = None

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the body and take the time."""
        await super().write_with_length(writer, content_length)
        self.written_ns = self._clock.mono_ns()


class StampedForm(StampedBody):
    """A form as such a body."""

    def __init__(self, fields: dict[str, str], clock: Clock) -> None:
        super().__init__(urlencode(fields).encode(), content_type="application/x-www-form-urlencoded", clock=clock)


def run_fields(request: AgentRequest) -> dict[str, str]:
    """The form fields of a run. Every version takes a form; JSON bodies are refused."""
    fields = {
        "message": request.message,
        "stream": "true" if request.stream else "false",
        "session_id": request.session_id,
        "user_id": request.user_id,
    }
    return {name: value for name, value in fields.items() if value or name == "message"}


async def read_some(content: aiohttp.StreamReader) -> bytes:
    """What has arrived since the last read, waiting for something to; empty when the body is over, cut or whole."""
    try:
        return await content.readany()
    except aiohttp.ClientError:
        # The connection broke. aiohttp then refuses to hand out what had arrived before, which may hold the last whole
        # events of an answer; there is no public way to get at it.
        return content._read_nowait(-1)  # noqa: SLF001


async def read_detail(response: aiohttp.ClientResponse) -> str:
    """What a server says about an error, as one bounded line; the response is closed."""
    body = bytearray()
    try:
        while len(body) < _MAX_ERROR_BODY_BYTES and (data := await read_some(response.content)):
            body += data
    finally:
        response.close()
    text = bytes(body[:_MAX_ERROR_BODY_BYTES]).decode(errors="replace")
    try:
        answer = msgspec.json.decode(text)
    except msgspec.DecodeError:
        answer = text
    if isinstance(answer, dict):
        answer = answer.get("detail", answer.get("message", text))
    return " ".join(_flatten(answer).split())[:MAX_DETAIL_CHARS]


def status_error(status: int, detail: str) -> AgentError:
    """The error for an HTTP status that is no answer."""
    sentence = f"The agent server answered with status {status}."
    if status >= 500 or status in _PASSING_STATUSES:
        return AgentFailed(sentence, retryable=True, status_code=status, detail=detail or None)
    return AgentRejected(sentence, status_code=status, detail=detail or None)


def _flatten(answer: Any) -> str:
    """A ``detail`` as text: a sentence as it is, a list of validation errors as place and message of each."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(_flatten(part) for part in answer)
    if isinstance(answer, dict) and "msg" in answer:
        place = answer.get("loc")
        where = ".".join(str(step) for step in place) if isinstance(place, list) else ""
        return f"{where}: {answer['msg']}" if where else str(answer["msg"])
    return msgspec.json.encode(answer).decode()
