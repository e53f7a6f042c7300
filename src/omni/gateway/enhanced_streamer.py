"""The predecessor's streamer under its own name: one object per instance, two methods, and what is running now."""

from typing import Any

from omni.gateway.message_router import MessageRouter
from omni.model import AgentKind, InstanceConfig
from omni.tracing.trace_context import TraceContext


class EnhancedAutomagikHiveStreamer:
    """Streams a Hive agent's or team's answers to WhatsApp with traces, for one instance."""

    def __init__(self, instance_config: object, *, router: MessageRouter | None = None) -> None:
        self.instance_config = InstanceConfig.from_any(instance_config)
        self._router = router or MessageRouter()

    async def stream_agent_to_whatsapp_with_traces(
        self,
        recipient: str,
        agent_id: str,
        message: str,
        trace_context: TraceContext | None = None,
        user_id: str | None = None,
    ) -> bool:
        """Ask an agent and stream its answer to ``recipient``; True when all of it was accepted. Never raises for failures."""
        return await self._stream("agent", agent_id, recipient, message, trace_context, user_id)

    async def stream_team_to_whatsapp_with_traces(
        self,
        recipient: str,
        team_id: str,
        message: str,
        trace_context: TraceContext | None = None,
        user_id: str | None = None,
    ) -> bool:
        """Ask a team and stream its leader's answer to ``recipient``; True when all of it was accepted."""
        return await self._stream("team", team_id, recipient, message, trace_context, user_id)

    def get_streaming_analytics(self) -> dict[str, Any]:
        """What is running in this process now, with its figures so far, and how many turns ended how."""
        return self._router.get_streaming_analytics()

    async def _stream(
        self,
        kind: AgentKind,
        target_id: str,
        recipient: str,
        message: str,
        trace_context: TraceContext | None,
        user_id: str | None,
    ) -> bool:
        instance = self.instance_config.targeting(kind, target_id)
        return await self._router.route_message_streaming(
            message, recipient, instance, user_id=user_id, trace_context=trace_context
        )
