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


class RecordOutbound(Protocol):
    """Keeps the record of a message that was sent by request and not as an answer."""

    def __call__(self, *, instance_name: str, recipient: str, outcomes: Sequence[MessageOutcome]) -> str | None:
        """Record one text as the messages it was sent as and what became of each; the trace id, None when there is none.

        Called on the event loop; never blocks, never raises.
        """
        ...


def nothing_is_answered(trace_id: str) -> bool:  # noqa: ARG001 - stands in for what stops a turn
    """False: an application that answers nobody has no turn to stop."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class WebParts:
    """Everything the routes work with.

    ``take_webhook`` is awaited with a decoded body and returns when what it decided would survive the process; it may raise
    WebhookMalformed or InboxFull. ``open_text`` begins the delivery of a text through an instance to a recipient. ``streaming_document`` is pure and is called in a worker thread. ``on_instances_changed`` is called with the
    name after an instance was created, changed or removed. ``stop_turn`` stops the answer being given in the turn of a trace and says
    whether there was one. ``metrics`` renders Prometheus' text in a worker thread; without it there is no such route. ``sandbox_path`` is where the sandbox phone is mounted, None when
    it is not. ``version`` is Omni's, shown in the API description.
    """

    settings: Settings
    api_key: str = field(repr=False)
    clock: Clock
    traces: TraceReader
    instances: InstanceStore
    open_text: Callable[[InstanceConfig, str], AnswerDelivery]
    take_webhook: Callable[[InstanceConfig, dict[str, Any]], Awaitable[Verdict]]
    streaming_document: Callable[[TraceRow, list[PayloadRow]], dict[str, Any]]
    flush_traces: Callable[[], Awaitable[None]]
    health: Callable[[], dict[str, Any]]
    record_outbound: RecordOutbound
    on_instances_changed: Callable[[str], None]
    stop_turn: Callable[[str], bool] = nothing_is_answered
    metrics: Callable[[], bytes] | None = None
    sandbox_path: str | None = None
    version: str = "unknown"
