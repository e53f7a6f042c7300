"""What the inbox decides about a webhook, and what it hands on: the turn."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from omni.model import Ending, InboundMessage, InstanceConfig
from omni.records import InboxRecord
from omni.tracing.trace_context import TraceContext


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of a webhook: it is a turn (``success``), or it is not answered and why."""

    status: Literal["success", "ignored"]
    reason: str | None = None
    trace_id: str | None = None


class Turn(Struct, frozen=True, kw_only=True):
    """One message to be answered, its trace, and its row in the ledger.

    ``on_delivering`` is to be called when the whole answer is in the outbox and the agent is no longer needed, ``on_closed`` when nothing
    is left to do: that may be after the task that answers it was cancelled.
    """

    instance: InstanceConfig
    message: InboundMessage
    trace: TraceContext
    record: InboxRecord | None = None
    on_delivering: Callable[[], None] | None = None
    on_closed: Callable[[Ending], None] | None = None
