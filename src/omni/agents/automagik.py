"""Asks an Automagik agent (not Hive) for its whole answer: the predecessor's older kind of instance.

``POST {base}/api/v1/agent/{name}/run`` with JSON and ``x-api-key``. These servers do not stream; the answer becomes one text. Session
and user are sent by name, as the predecessor sent them. Errors are told apart by status and never become an answer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from omni.clock import Clock
from omni.errors import AgentFailed, AgentProtocolError, AgentRejected, AgentTimeout, AgentUnreachable
from omni.model import AgentEvent, AgentRequest, FirstByte, RequestWritten, RunEnded, TextDelta, ToolCall, Usage

# Messages of the session the server may load, as the predecessor asked for.
_MESSAGE_LIMIT = 100
# A whole answer is text; anything larger is not one.
_MAX_REPLY_BYTES = 16 * 1024 * 1024
_DETAIL_CHARS = 500


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

    async def run(self, request: AgentRequest) -> AsyncIterator[AgentEvent]:
        """Yield the events of one run: the whole answer as one text. Raises AgentError."""
        url = f"{request.base_url.rstrip('/')}/api/v1/agent/{quote(request.agent_id, safe='')}/run"
        body = {
            "message_content": request.message,
            "message_limit": _MESSAGE_LIMIT,
            "user": {"phone_number": f"+{request.user_id}"} if request.user_id.isdigit() else None,
            "user_id": None if request.user_id.isdigit() else request.user_id,
            "message_type": "text",
            "session_name": request.session_id,
        }
        headers = {"x-api-key": request.api_key} if request.api_key else {}
        told = {key: value for key, value in body.items() if value is not None}
        yield RequestWritten(self._clock.mono_ns())
        status, answer = await self._post(url, told, headers, request.timeout_s)
        arrived_ns = self._clock.mono_ns()
        yield FirstByte(arrived_ns)
        reply = _read_reply(status, answer)
        for call in reply.tool_calls or ():
            function = call.get("function")
            name = function.get("name") if isinstance(function, dict) else call.get("name")
            yield ToolCall(mono_ns=arrived_ns, phase="started", name=name)
        if not reply.success:
            raise AgentFailed("the agent reported a failure", detail=(reply.message or "")[:_DETAIL_CHARS])
        if reply.message:
            yield TextDelta(arrived_ns, reply.message, "agent_response")
        yield RunEnded(
            mono_ns=arrived_ns,
            ending="completed",
            content=reply.message,
            usage=_usage(reply.usage),
            session_id=reply.session_id,
        )

    async def _post(
        self, url: str, body: dict[str, Any], headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(timeout_s), self._http().post(url, json=body, headers=headers) as response:
                return response.status, await _read_bounded(response)
        except TimeoutError as exc:
            raise AgentTimeout("the agent gave no answer in time", kind="first_token", timeout_s=timeout_s) from exc
        except aiohttp.ClientError as exc:
            raise AgentUnreachable(f"no answer from the agent server ({type(exc).__name__})", retryable=True) from exc


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for piece in response.content.iter_any():
        answer += piece
        if len(answer) > _MAX_REPLY_BYTES:
            raise AgentProtocolError("the agent's answer is larger than an answer can be")
    return bytes(answer)


def _read_reply(status: int, answer: bytes) -> _Reply:
    detail = answer[:_DETAIL_CHARS].decode("utf-8", "replace")
    if status >= 500:
        raise AgentFailed(f"the agent server answered {status}", retryable=True, status_code=status, detail=detail)
    if status >= 400:
        raise AgentRejected(f"the agent server answered {status}", status_code=status, detail=detail)
    try:
        return msgspec.json.decode(answer, type=_Reply)
    except msgspec.MsgspecError as exc:
        raise AgentProtocolError("the agent's answer is not the JSON it should be", detail=detail) from exc


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    counts = {
        "input_tokens": usage.get("request_tokens", usage.get("input_tokens")),
        "output_tokens": usage.get("response_tokens", usage.get("output_tokens")),
        "total_tokens": usage.get("total_tokens"),
    }
    return Usage(**{name: count for name, count in counts.items() if isinstance(count, int)})
