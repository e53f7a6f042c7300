"""The REST route that stops an answer while it is being given, for an operator who sees it go wrong.

It only passes the word on: what becomes of the run and of the messages is the gateway's part, and the trace tells it.
"""

from typing import Annotated, Literal

from fastapi import Path, Request
from pydantic import BaseModel, ConfigDict, Field

from omni.errors import RecordNotFound
from omni.web.auth import keyed_router
from omni.web.context import context_of
from omni.web.errors import RequestRefused, documented

router = keyed_router("/traces", tag="traces")


class TurnStopReply(BaseModel):
    """The word was passed on; the trace says what came of it."""

    model_config = ConfigDict(extra="forbid")

    trace_id: str
    status: Literal["stopping"] = Field("stopping", description="What was not sent is dropped; one notice follows.")


@router.post(
    "/{trace_id}/cancel",
    summary="Stop an answer",
    status_code=202,
    response_model=TurnStopReply,
    responses=documented(404, 409),
)
async def cancel_turn(
    request: Request, trace_id: Annotated[str, Path(description="Id of the trace of a turn that is being answered.")]
) -> TurnStopReply:
    """Stop the answer being given in this turn: its run is stopped, what was not sent is dropped, the user gets one notice.

    409 when nothing is being answered in this turn: it waits, it is over, or another process answers it.
    """
    context = context_of(request)
    if context.parts.stop_turn(trace_id):
        return TurnStopReply(trace_id=trace_id)
    await context.flushed()
    traces = context.parts.traces
    if await context.store_calls.run(lambda: traces.get_trace(trace_id)) is None:
        raise RecordNotFound(f"Trace '{trace_id}' not found")
    raise RequestRefused("Nothing is being answered in this turn.", code="turn_not_running", status_code=409)
