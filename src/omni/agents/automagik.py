"""Asks an Automagik agent (not Hive) for its whole answer: the predecessor's older kind of instance.

``POST {base}/api/v1/agent/{name}/run`` with JSON and ``x-api-key``. These servers do not stream; the answer becomes one text. Session
and user are sent by name, as the predecessor sent them. Errors are told apart by status and never become an answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from omni.agents.hive_http import MAX_DETAIL_CHARS, StampedBody, read_detail, read_some, status_error
from omni.agents.silence import silence_error
from omni.clock import Clock
from omni.errors import AgentError, AgentFailed, AgentProtocolError, AgentRejected, AgentUnreachable
from omni.model import AgentEvent, AgentRequest, FirstByte, RequestWritten, RunEnded, TextDelta, ToolCall, Usage

# Messages of the session the server may load, as the predecessor asked for.
_MESSAGE_LIMIT = 100
# A whole answer is text; anything larger is not one.
_MAX_REPLY_BYTES = 16 * 1024 * 1024


class _Reply(msgspec.Struct):
    message: str | None = None
    success: bool = True
    session_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    usage: dict[str, Any] | None = None


class AutomagikClient:
    """Satisfies ports.AgentBackend for Automagik agents."""

    def __init__(self, http: Callable[[], aiohttp.ClientSession], *, clock: Clock) -> None:
        self._http = http
        self._clock = clock

    async def run(self, request: AgentRequest) -> AsyncGenerator[AgentEvent, None]:
        """Yield the events of one run: the whole answer as one text. Raises AgentError.

        Moments are stamped when they happen and yielded when the answer is there, or just before the error.
        """
        body = StampedBody(_body_of(request), content_type="application/json", clock=self._clock)
        arrival = _Arrival()
        failure: AgentError | None = None
        try:
            async with asyncio.timeout(request.timeout_s - request.waited_s):
                await self._exchange(request, body, arrival)
        except TimeoutError as exc:
            failure = silence_error("first_token", request.timeout_s)
            failure.__cause__ = exc
        except AgentError as exc:
            failure = exc
        if body.written_ns is not None:
            yield RequestWritten(body.written_ns)
        if arrival.first_byte_ns is not None:
            yield FirstByte(arrival.first_byte_ns)
        if failure is not None:
            raise failure
        for event in _events_of(arrival, ended_ns=self._clock.mono_ns()):
            yield event

    async def cancel_run(self, request: AgentRequest, run_id: str) -> bool:  # noqa: ARG002 - the port's signature
        """False: these agents cannot be told to stop; closing the connection is all there is."""
        return False

    async def _exchange(self, request: AgentRequest, body: StampedBody, arrival: "_Arrival") -> None:
        url = f"{request.base_url.rstrip('/')}/api/v1/agent/{quote(request.agent_id, safe='')}/run"
        headers = {"x-api-key": request.api_key} if request.api_key else {}
        try:
            response = await self._http().post(url, data=body, headers=headers, allow_redirects=False)
        except (ValueError, aiohttp.NonHttpUrlClientError) as exc:
            raise AgentRejected("The agent's URL or key cannot be used in a request.") from exc
        except aiohttp.ClientError as exc:
            raise AgentUnreachable("The agent server cannot be reached.", retryable=True) from exc
        if not 200 <= response.status < 300:
            raise status_error(response.status, await read_detail(response))
        try:
            while data := await read_some(response.content):
                if arrival.first_byte_ns is None:
                    arrival.first_byte_ns = self._clock.mono_ns()
                arrival.body += data
                if len(arrival.body) > _MAX_REPLY_BYTES:
                    raise AgentProtocolError("The agent's answer is larger than an answer can be.")
        finally:
            response.close()


class _Arrival:
    """What has come of the answer so far, and when it began to."""

    def __init__(self) -> None:
        self.first_byte_ns: int | None = None
        self.body = bytearray()


def _body_of(request: AgentRequest) -> bytes:
    is_phone = request.user_id.isdigit()
    person = {"user": {"phone_number": f"+{request.user_id}"}} if is_phone else {"user_id": request.user_id}
    return msgspec.json.encode({
        "message_content": request.message,
        "message_limit": _MESSAGE_LIMIT,
        "message_type": "text",
        "session_name": request.session_id,
        **person,
    })  # fmt: skip


def _events_of(arrival: _Arrival, *, ended_ns: int) -> Iterator[AgentEvent]:
    try:
        reply = msgspec.json.decode(bytes(arrival.body), type=_Reply)
    except msgspec.MsgspecError as exc:
        raise AgentProtocolError("The agent's answer is not the JSON it should be.") from exc
    for call in reply.tool_calls or ():
        function = call.get("function")
        name = function.get("name") if isinstance(function, dict) else call.get("name")
        yield ToolCall(mono_ns=ended_ns, phase="started", name=name if isinstance(name, str) else None)
    if not reply.success:
        raise AgentFailed("The agent reported a failure.", detail=(reply.message or "")[:MAX_DETAIL_CHARS] or None)
    if reply.message:
        yield TextDelta(ended_ns, reply.message, "agent_response")
    yield RunEnded(
        mono_ns=ended_ns,
        ending="completed",
        content=reply.message,
        usage=_usage(reply.usage),
        session_id=reply.session_id,
    )


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    counts = {
        "input_tokens": usage.get("request_tokens", usage.get("input_tokens")),
        "output_tokens": usage.get("response_tokens", usage.get("output_tokens")),
        "total_tokens": usage.get("total_tokens"),
    }
    return Usage(**{name: count for name, count in counts.items() if isinstance(count, int)})
