"""What the HTTP side needs from the rest of Omni, as one frozen object that ``app.py`` fills in.

The routes reach nothing else: no store, no router, no recorder by name. That is what lets every route be tested with a few
in-memory parts, and what keeps the HTTP side exchangeable.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from omni.channels.whatsapp.delivery import AnswerDelivery
from omni.clock import Clock
from omni.gateway.turn import Verdict
from omni.model import InstanceConfig, MessageOutcome
from omni.ports import InstanceStore, PayloadRow, TraceReader, TraceRow
from omni.settings import Settings

RecordOutcomes = Callable[[Sequence[MessageOutcome]], str | None]
"""Closes the trace of a text with what became of its messages; its id, None when no traces are kept. Never blocks, never raises."""


class OpenText(Protocol):
    """Begins the delivery of a text that is sent by request and not as an answer."""

    def __call__(self, instance: InstanceConfig, recipient: str, *, trace_id: str) -> AnswerDelivery:
        """Begin it; ``trace_id`` names in the outbox the trace it belongs to."""
        ...


class OpenOutbound(Protocol):
    """Opens the trace of such a text."""

    def __call__(
        self, *, trace_id: str, instance_name: str, recipient: str, num_chars: int, begun_ns: int
    ) -> RecordOutcomes:
        """Open it as begun at ``begun_ns`` (monotonic). Called on the event loop; never blocks, never raises."""
        ...


def nothing_is_answered(trace_id: str) -> bool:  # noqa: ARG001 - stands in for what stops a turn
    """False: an application that answers nobody has no turn to stop."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class WebParts:
    """Everything the routes work with.

    ``take_webhook`` is awaited with a decoded body and returns when what it decided would survive the process; it may raise
    WebhookMalformed or InboxFull. ``streaming_document`` is pure and is called in a worker thread. ``on_instances_changed`` is called with the
    name after an instance was created, changed or removed. ``stop_turn`` stops the answer being given in the turn of a trace and says
    whether there was one. ``metrics`` renders Prometheus' text in a worker thread; without it there is no such route. ``sandbox_path``
    is where the sandbox phone is mounted, None when it is not. ``version`` is Omni's, shown in the API description.
    """

    settings: Settings
    api_key: str = field(repr=False)
    clock: Clock
    traces: TraceReader
    instances: InstanceStore
    open_text: OpenText
    open_outbound: OpenOutbound
    take_webhook: Callable[[InstanceConfig, dict[str, Any]], Awaitable[Verdict]]
    streaming_document: Callable[[TraceRow, list[PayloadRow]], dict[str, Any]]
    flush_traces: Callable[[], Awaitable[None]]
    health: Callable[[], dict[str, Any]]
    on_instances_changed: Callable[[str], None]
    stop_turn: Callable[[str], bool] = nothing_is_answered
    metrics: Callable[[], bytes] | None = None
    sandbox_path: str | None = None
    version: str = "unknown"
