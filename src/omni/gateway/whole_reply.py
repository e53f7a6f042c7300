"""Asks an agent for its whole answer and returns it, for callers who deliver it themselves.

The trace gets the request, the reply and its figures; it stays open until the caller logs what became of the sending.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from msgspec import structs

from omni.errors import AgentError, AgentFailed
from omni.gateway.hive_streamer import Question
from omni.gateway.run_readers import whole_stage
from omni.model import AgentEvent, FirstByte, RequestWritten, RunEnded, TextDelta, ToolCall
from omni.ports import AgentBackend
from omni.tracing.trace_context import TraceContext


async def ask_whole(question: Question, agent: AgentBackend, trace: TraceContext) -> str:
    """The agent's whole answer. Raises AgentError after it was put on the trace, which is closed as failed then."""
    request = question.request
    trace.update_session_info(session_name=request.session_id)
    trace.log_agent_request({
        "message": request.message,
        "user_id": request.user_id,
        "session_id": request.session_id,
        f"{request.agent_kind}_id": request.agent_id,
        "streaming": False,
    }, is_streaming=False)  # fmt: skip
    try:
        text, end = await _read(agent, question, trace)
        if end is None or end.ending != "completed":
            ending = "incomplete" if end is None else end.ending
            raise AgentFailed(f"the run ended as {ending}", detail=None if end is None else end.error_message)
    except AgentError as exc:
        failure = {"message": "", "success": False, "streaming": False, "error": str(exc), "detail": exc.detail}
        trace.log_agent_response(failure, status_code=exc.status_code or 0)
        trace.end_turn("error", error_message=str(exc), error_stage=whole_stage(exc))
        raise
    told: dict[str, Any] = {"message": text, "success": True, "streaming": False, "session_id": end.session_id}
    if end.usage is not None:
        told["usage"] = structs.asdict(end.usage)
    trace.log_agent_response(told, at_ns=end.mono_ns)
    return text


async def _read(agent: AgentBackend, question: Question, trace: TraceContext) -> tuple[str, RunEnded | None]:
    texts: list[str] = []
    end: RunEnded | None = None
    events = cast("AsyncGenerator[AgentEvent]", agent.run(question.request))
    async with aclosing(events):
        async for event in events:
            match event:
                case RequestWritten():
                    trace.mark_request_written(event.mono_ns)
                case FirstByte():
                    trace.mark_first_byte(event.mono_ns)
                case ToolCall():
                    trace.log_tool_call(event.name, phase=event.phase, is_error=event.is_error, at_ns=event.mono_ns)
                case TextDelta():
                    texts.append(event.text)
                case RunEnded():
                    end = event
                case _:
                    pass
    return "".join(texts), end
