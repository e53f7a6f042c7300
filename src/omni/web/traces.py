"""REST routes that read traces back, count them and remove old ones.

Every read first waits, briefly, until what was logged is stored, so that a trace made a moment ago is seen. Database and JSON
work happen in worker threads.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, Path, Query, Request
from msgspec import to_builtins
from starlette.responses import Response

from omni.clock import wall_datetime
from omni.errors import RecordNotFound
from omni.ports import TraceFilter, TraceReader, TraceRow
from omni.web.auth import keyed_router
from omni.web.context import WebContext, context_of
from omni.web.errors import documented, input_refused
from omni.web.store_calls import MAX_OFFSET
from omni.web.times import iso_utc, read_moment
from omni.web.trace_replies import (
    CleanupReply,
    PayloadReply,
    StreamingDocument,
    SummaryReply,
    TraceReply,
    show_payload,
    show_trace,
)

router = keyed_router("/traces", tag="traces")

_DEFAULT_WINDOW = timedelta(hours=24)

TraceId = Annotated[str, Path(description="Id of a trace.")]
InstanceName = Annotated[str | None, Query(description="Only traces of this instance.")]
_ABOUT_MOMENT = "A date or a time in ISO 8601; without offset it is UTC."


class Window(NamedTuple):
    """The stretch of time a read is about; None is open."""

    start: datetime | None
    end: datetime | None


async def window_of(
    request: Request,
    *,
    start_date: Annotated[str | None, Query(description=f"Received at or after this moment. {_ABOUT_MOMENT}")] = None,
    end_date: Annotated[
        str | None, Query(description=f"Received up to this moment; a date includes its whole day. {_ABOUT_MOMENT}")
    ] = None,
    all_time: Annotated[
        bool, Query(description="Whether to look back without limit when no date is given; else 24 hours.")
    ] = False,
) -> Window:
    """The window the query asks for: the dates given, or the last 24 hours. Raises RequestRefused."""
    start = read_moment(start_date, field="start_date")
    end = read_moment(end_date, field="end_date", is_end=True)
    if start is not None and end is not None and start > end:
        raise input_refused("start_date", "is after end_date")
    if start is None and end is None and not all_time:
        start = wall_datetime(context_of(request).parts.clock.wall_ns()) - _DEFAULT_WINDOW
    return Window(start, end)


WindowAsked = Annotated[Window, Depends(window_of)]


@router.get("", summary="List traces", response_model=list[TraceReply])
async def list_traces(
    request: Request,
    window: WindowAsked,
    phone: Annotated[str | None, Query(description="Only traces of this sender, digits.")] = None,
    sender_phone: Annotated[str | None, Query(description="The same as `phone`.")] = None,
    instance_name: InstanceName = None,
    trace_status: Annotated[str | None, Query(description="Only traces with this status.")] = None,
    message_type: Annotated[str | None, Query(description="Only messages of this type.")] = None,
    session_name: Annotated[str | None, Query(description="Only traces of this session.")] = None,
    agent_session_id: Annotated[str | None, Query(description="Only traces of this session at the agent.")] = None,
    has_media: Annotated[bool | None, Query(description="Only messages with media, or only without.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most traces to list.")] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="Traces to leave out at the beginning.")] = 0,
) -> Response:
    """List traces, newest first. Without dates, and unless `all_time` is set, those of the last 24 hours."""
    if phone and sender_phone and phone != sender_phone:
        raise input_refused("sender_phone", "differs from phone, which means the same")
    wanted = TraceFilter(
        phone=phone or sender_phone or None,
        instance_name=instance_name or None,
        status=trace_status or None,
        message_type=message_type or None,
        session_name=session_name or None,
        agent_session_id=agent_session_id or None,
        has_media=has_media,
        received_from=window.start,
        received_to=window.end,
        limit=limit,
        offset=offset,
    )
    return await _read(context_of(request), lambda traces: [show_trace(row) for row in traces.list_traces(wanted)])


@router.get("/analytics/summary", summary="Count traces over a window", response_model=SummaryReply)
async def summarize_traces(request: Request, window: WindowAsked, instance_name: InstanceName = None) -> Response:
    """Counts by outcome, type, failing stage and instance, and average times in milliseconds."""
    return await _read(
        context_of(request),
        lambda traces: to_builtins(
            traces.summarize(received_from=window.start, received_to=window.end, instance_name=instance_name or None)
        ),
    )


@router.get("/phone/{phone}", summary="List traces of one sender", response_model=list[TraceReply])
async def list_traces_of_phone(
    request: Request,
    phone: Annotated[str, Path(description="The sender, digits.")],
    limit: Annotated[int, Query(ge=1, le=500, description="Most traces to list.")] = 50,
) -> Response:
    """List the newest traces of one sender, however old they are."""
    wanted = TraceFilter(phone=phone, limit=limit)
    return await _read(context_of(request), lambda traces: [show_trace(row) for row in traces.list_traces(wanted)])


@router.delete("/cleanup", summary="Remove old traces", response_model=CleanupReply, response_model_exclude_none=True)
async def cleanup_traces(
    request: Request,
    *,
    days_old: Annotated[int, Query(ge=1, le=365, description="Age in days from which traces are meant.")] = 30,
    dry_run: Annotated[bool, Query(description="Whether to count only, which is the default.")] = True,
) -> Response:
    """Remove traces older than some days with everything recorded for them, or count how many those are."""
    context = context_of(request)
    cutoff = wall_datetime(context.parts.clock.wall_ns()) - timedelta(days=days_old)
    return await _read(context, lambda traces: _clean_up(traces, cutoff, mode="count" if dry_run else "delete"))


@router.get("/{trace_id}", summary="Show a trace", response_model=TraceReply, responses=documented(404))
async def get_trace(request: Request, trace_id: TraceId) -> Response:
    """Show one trace."""
    return await _read(context_of(request), lambda traces: show_trace(_found(traces, trace_id)))


@router.get(
    "/{trace_id}/payloads",
    summary="List the stages of a trace",
    response_model=list[PayloadReply],
    responses=documented(404),
)
async def get_trace_payloads(
    request: Request,
    trace_id: TraceId,
    *,
    include_payload: Annotated[bool, Query(description="Whether to send the payloads themselves too.")] = False,
) -> Response:
    """List what was recorded at each stage, in the order it was written."""

    def read(traces: TraceReader) -> list[dict[str, Any]]:
        _found(traces, trace_id)
        return [show_payload(row, has_payload=include_payload) for row in traces.get_payloads(trace_id)]

    return await _read(context_of(request), read)


@router.get(
    "/{trace_id}/streaming",
    summary="Tell the story of a streamed answer",
    response_model=StreamingDocument,
    responses=documented(404),
)
async def get_trace_streaming(request: Request, trace_id: TraceId) -> Response:
    """Everything about one streamed answer: first token, chunks, complete text, messages, receipts and the timeline."""
    context = context_of(request)

    def read(traces: TraceReader) -> dict[str, Any]:
        row = _found(traces, trace_id)
        return context.parts.streaming_document(row, traces.get_payloads(trace_id))

    return await _read(context, read)


async def _read(context: WebContext, read: Callable[[TraceReader], Any]) -> Response:
    await context.flushed()
    return await context.store_calls.answer(lambda: read(context.parts.traces))


def _found(traces: TraceReader, trace_id: str) -> TraceRow:
    row = traces.get_trace(trace_id)
    if row is None:
        raise RecordNotFound(f"Trace '{trace_id}' not found")
    return row


def _clean_up(traces: TraceReader, cutoff: datetime, *, mode: Literal["count", "delete"]) -> dict[str, Any]:
    written = iso_utc(cutoff)
    if mode == "count":
        num_old = traces.count_older_than(cutoff)
        message = f"{num_old} traces received before {written} would be removed."
        return {"status": "dry_run", "traces_to_delete": num_old, "cutoff_date": written, "message": message}
    num_deleted = traces.delete_older_than(cutoff)
    message = f"{num_deleted} traces received before {written} were removed."
    return {"status": "success", "traces_deleted": num_deleted, "cutoff_date": written, "message": message}
