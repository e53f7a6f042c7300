"""The context of a streamed answer: the stream's own moments and every chunk, on top of what every turn has.

The same promise as its base: a method appends one frozen event and returns.
"""

from typing import Any

from omni.errors import OmniError
from omni.model import Ending, UpstreamCancel, Usage
from omni.tracing.events import (
    ChunkReceived,
    FirstEventSeen,
    FirstTokenSeen,
    StreamCompleted,
    StreamFailed,
    StreamStarted,
)
from omni.tracing.fitting import as_count, as_payload, as_text
from omni.tracing.summary import streaming_summary
from omni.tracing.trace_context import TraceContext


class StreamingTraceContext(TraceContext):
    """Follows one turn whose answer is streamed: adds the stream's own moments and every chunk."""

    is_streaming = True

    @classmethod
    def upgrade(cls, context: TraceContext) -> "StreamingTraceContext":
        """Make a plain context a streaming one in place: same object, same trace, same row, nothing lost."""
        if not isinstance(context, StreamingTraceContext):
            context.__class__ = cls  # both classes have the same state; only methods are added
        assert isinstance(context, StreamingTraceContext)
        return context

    def log_streaming_start(self, stream_config: dict[str, Any]) -> None:
        """The answer is going to be streamed; ``stream_config`` says from which agent and to whom."""
        self._journal.append(StreamStarted(mono_ns=self._clock.mono_ns(), config=as_payload(stream_config)))

    def mark_first_event(self, at_ns: int) -> None:
        """The first event of any kind arrived at ``at_ns`` (monotonic nanoseconds)."""
        self._journal.append(FirstEventSeen(at_ns))

    def log_first_token(
        self, first_content: str, event_data: dict[str, Any] | None = None, *, at_ns: int | None = None
    ) -> None:
        """The first visible text arrived; blank text is not one and does not count."""
        content = as_text(first_content) or ""
        self._journal.append(FirstTokenSeen(mono_ns=self._now(at_ns), content=content, event_data=event_data))

    def log_streaming_chunk(
        self,
        chunk_content: str,
        chunk_index: int,
        event_data: dict[str, Any] | None = None,
        *,
        event_type: str | None = None,
        at_ns: int | None = None,
    ) -> None:
        """One piece of the answer. The hot path: one clock reading, one event, two appends."""
        if event_data is not None and event_type is None:
            event_type = as_text(as_payload(event_data).get("event_type"))
        if type(chunk_content) is not str:
            chunk_content = as_text(chunk_content) or ""
        if type(chunk_index) is not int:
            chunk_index = as_count(chunk_index) or 0
        self._journal.append(
            ChunkReceived(self._clock.mono_ns() if at_ns is None else at_ns, chunk_index, chunk_content, event_type)
        )

    def log_streaming_complete(
        self,
        final_content: str,
        completion_data: dict[str, Any] | None = None,
        *,
        usage: Usage | None = None,
        at_ns: int | None = None,
    ) -> None:
        """The root run ended well with ``final_content``; closes the trace unless delivery is awaited."""
        self._journal.append(
            StreamCompleted(
                mono_ns=self._now(at_ns),
                final_content=as_text(final_content) or "",
                completion_data=completion_data,
                usage=usage,
            )
        )
        if not self._awaits_delivery:
            self.end_turn("completed")

    def log_streaming_error(
        self,
        error: BaseException | str,
        error_stage: str = "streaming",
        *,
        ending: Ending = "error",
        error_type: str | None = None,
        usage: Usage | None = None,
        content: str | None = None,
        upstream_cancel: UpstreamCancel | None = None,
        at_ns: int | None = None,
    ) -> None:
        """The stream ended in any other way; closes the trace as failed unless delivery is awaited.

        ``error_type`` names the cause when ``error`` is a sentence: the server's event, or how the stream ended. ``content`` is the
        whole text until then, for a caller who has it; ``upstream_cancel`` what became of stopping the run at the server.
        """
        message = str(error) or type(error).__name__
        self._journal.append(
            StreamFailed(
                mono_ns=self._now(at_ns),
                ending=ending,
                error_message=message,
                error_type=type(error).__name__ if isinstance(error, BaseException) else error_type or ending,
                error_stage=error_stage,
                status_code=error.status_code if isinstance(error, OmniError) else None,
                detail=error.detail if isinstance(error, OmniError) else None,
                usage=usage,
                content=content,
                upstream_cancel=upstream_cancel,
            )
        )
        if not self._awaits_delivery:
            self.end_turn(ending, error_message=message, error_stage=error_stage)

    def get_streaming_summary(self) -> dict[str, Any]:
        """The turn's figures so far; keys of docs/reference/summary.md, None where unknown."""
        return streaming_summary(self.timeline)
