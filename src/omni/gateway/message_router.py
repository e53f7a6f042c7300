"""Routes one message to the agent that answers for its instance, streamed or whole.

``answer_turn`` is the gateway's own path: it delivers in both modes. The ``route_*`` methods carry the predecessor's names and
arguments for callers of the library; arguments that no longer matter are accepted and ignored. ``route_message_smart`` streams to
WhatsApp when the instance streams, and otherwise returns the reply for the caller to send, as it always did.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from omni.errors import SettingsError
from omni.gateway.hive_streamer import AnswerStreamer, Question
from omni.gateway.turn import Turn
from omni.model import DEFAULT_AGENT_TIMEOUT_S, AgentRequest, InstanceConfig
from omni.ports import AgentBackend
from omni.tracing.streaming_trace_context import StreamingTraceContext
from omni.tracing.trace_context import TraceContext

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What routing needs. ``online`` keeps the HTTP clients open while something is being asked or sent."""

    backends: Mapping[str, AgentBackend]
    streamer: AnswerStreamer
    online: Callable[[], AbstractAsyncContextManager[object]]


_provider: Callable[[], GatewayParts] | None = None


def provide_gateway(provider: Callable[[], GatewayParts]) -> None:
    """Say where routers made without parts find them; ``app`` calls this."""
    global _provider  # noqa: PLW0603 - ``message_router`` is process-wide by contract
    _provider = provider


class MessageRouter:
    """Chooses back end and mode for each message. Without ``parts`` it uses the process's own, opened on first use."""

    def __init__(self, parts: GatewayParts | None = None) -> None:
        self._parts = parts

    def should_use_streaming(self, instance_config: object) -> bool:
        """Whether answers for this instance are streamed: a Hive instance in stream mode that says where and whom to ask."""
        instance = InstanceConfig.from_any(instance_config)
        return instance.streaming_enabled and bool(instance.agent_api_url) and bool(instance.agent_id)

    def get_streaming_analytics(self) -> dict[str, Any]:
        """What is running now, with its figures so far, and how many turns ended how since the process started."""
        return self._require_parts().streamer.get_streaming_analytics()

    async def answer_turn(self, turn: Turn) -> bool:
        """Answer one turn of the inbox in the instance's mode and deliver it; True when all of it was accepted.

        The turn's ``on_delivering`` is called when its agent is no longer needed, ``on_closed`` when nothing is left to do.
        """
        parts = self._require_parts()
        async with parts.online():
            try:
                backend = _backend(parts, turn.instance)
                question = _question(
                    turn.instance,
                    message_text=turn.message.text,
                    recipient=turn.message.reply_to,
                    chat_key=turn.message.chat_key,
                    stream=self.should_use_streaming(turn.instance),
                )
            except SettingsError as exc:
                return await parts.streamer.refuse(turn, exc, on_closed=turn.on_closed)
            return await parts.streamer.answer(
                question, backend, turn.trace, on_delivering=turn.on_delivering, on_closed=turn.on_closed
            )

    async def route_message_smart(
        self,
        message_text: str,
        recipient: str,
        instance_config: object,
        user_id: str | int | None = None,
        user: dict[str, Any] | None = None,
        session_name: str | None = None,
        message_type: str = "text",
        whatsapp_raw_payload: dict[str, Any] | None = None,
        session_origin: str = "whatsapp",
        media_contents: list[dict[str, Any]] | None = None,
        trace_context: TraceContext | None = None,
    ) -> str | bool:
        """Stream the answer to ``recipient`` and say whether all of it was accepted, or return the whole reply.

        A plain ``trace_context`` is upgraded in place when the answer is streamed.
        """
        if self.should_use_streaming(instance_config):
            return await self.route_message_streaming(
                message_text,
                recipient,
                instance_config,
                user_id=user_id,
                user=user,
                session_name=session_name,
                message_type=message_type,
                whatsapp_raw_payload=whatsapp_raw_payload,
                session_origin=session_origin,
                media_contents=media_contents,
                trace_context=trace_context,
            )
        instance = InstanceConfig.from_any(instance_config)
        question = _question(
            instance,
            message_text=message_text,
            recipient=recipient,
            chat_key=recipient,
            stream=False,
            session_name=session_name,
            user_id=_user_id(user_id, user),
        )
        return await self._ask_whole(question, trace_context)

    async def route_message_streaming(
        self,
        message_text: str,
        recipient: str,
        instance_config: object,
        user_id: str | int | None = None,
        user: dict[str, Any] | None = None,
        session_name: str | None = None,
        message_type: str = "text",  # noqa: ARG002 - the predecessor's signature
        whatsapp_raw_payload: dict[str, Any] | None = None,  # noqa: ARG002
        session_origin: str = "whatsapp",  # noqa: ARG002
        media_contents: list[dict[str, Any]] | None = None,  # noqa: ARG002
        trace_context: TraceContext | None = None,
    ) -> bool:
        """Ask the instance's agent or team and stream its answer to ``recipient``; True when all of it was accepted.

        Raises SettingsError when the instance does not say where and whom to ask.
        """
        instance = InstanceConfig.from_any(instance_config)
        parts = self._require_parts()
        question = _question(
            instance,
            message_text=message_text,
            recipient=recipient,
            chat_key=recipient,
            stream=True,
            session_name=session_name,
            user_id=_user_id(user_id, user),
        )
        trace = trace_context or StreamingTraceContext("untraced")
        async with parts.online():
            return await parts.streamer.answer(question, _backend(parts, instance), trace)

    def route_message(
        self,
        message_text: str,
        user_id: str | int | None = None,
        user: dict[str, Any] | None = None,
        session_name: str | None = None,
        message_type: str = "text",  # noqa: ARG002 - the predecessor's signature
        whatsapp_raw_payload: dict[str, Any] | None = None,  # noqa: ARG002
        session_origin: str = "whatsapp",  # noqa: ARG002
        agent_config: dict[str, Any] | None = None,
        media_contents: list[dict[str, Any]] | None = None,  # noqa: ARG002
        trace_context: TraceContext | None = None,
    ) -> str:
        """Ask an agent for its whole answer and return it; blocks the calling thread until it is there.

        ``agent_config`` holds name, api_url, api_key, timeout (seconds) and optionally instance_type and type. When the agent fails
        the trace says so and the polite notice for the user is returned. Raises SettingsError without an agent_config.
        """
        if not agent_config or not agent_config.get("api_url"):
            raise SettingsError("route_message needs agent_config with name, api_url and api_key")
        instance = InstanceConfig(
            name=str(agent_config.get("instance_name") or agent_config.get("name") or "default"),
            agent_instance_type=str(agent_config.get("instance_type") or "automagik"),
            agent_api_url=agent_config["api_url"],
            agent_api_key=agent_config.get("api_key"),
            agent_id=str(agent_config.get("name") or "default"),
            agent_type="team" if agent_config.get("type") == "team" else "agent",
            agent_timeout=agent_config.get("timeout") or DEFAULT_AGENT_TIMEOUT_S,
        )
        question = _question(
            instance,
            message_text=message_text,
            recipient="",
            chat_key="",
            stream=False,
            session_name=session_name,
            user_id=_user_id(user_id, user),
        )
        return _run_blocking(self._ask_whole(question, trace_context))

    async def _ask_whole(self, question: Question, trace_context: TraceContext | None) -> str:
        parts = self._require_parts()
        trace = trace_context or TraceContext("untraced")
        async with parts.online():
            return await parts.streamer.ask_whole(question, _backend(parts, question.instance), trace)

    def _require_parts(self) -> GatewayParts:
        if self._parts is None:
            if _provider is None:
                raise SettingsError("this router has no parts; import message_router from the package omni")
            self._parts = _provider()
        return self._parts


def _question(
    instance: InstanceConfig,
    *,
    message_text: str,
    recipient: str,
    chat_key: str,
    stream: bool,
    session_name: str | None = None,
    user_id: str | None = None,
) -> Question:
    agent_id = instance.agent_id or instance.default_agent
    if not instance.agent_api_url or not agent_id:
        raise SettingsError(f"instance {instance.name!r} needs agent_api_url and agent_id to be answered for")
    person = chat_key.split("@", 1)[0].split(":", 1)[0]
    request = AgentRequest(
        base_url=instance.agent_api_url,
        api_key=instance.agent_api_key,
        agent_kind=instance.agent_type,
        agent_id=agent_id,
        message=message_text,
        session_id=session_name or f"{instance.name}_{person}",
        user_id=user_id or person,
        stream=stream,
        timeout_s=instance.agent_timeout,
    )
    return Question(instance=instance, request=request, recipient=recipient, chat_key=chat_key)


def _backend(parts: GatewayParts, instance: InstanceConfig) -> AgentBackend:
    backend = parts.backends.get(instance.agent_instance_type)
    if backend is None:
        known = ", ".join(sorted(parts.backends))
        raise SettingsError(f"instance {instance.name!r}: agent_instance_type must be one of {known}")
    return backend


def _user_id(user_id: str | int | None, user: dict[str, Any] | None) -> str | None:
    if user_id:
        return str(user_id)
    phone = (user or {}).get("phone_number")
    return str(phone).lstrip("+") if phone else None


def _run_blocking(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine from synchronous code, whether or not this thread has a running loop."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
