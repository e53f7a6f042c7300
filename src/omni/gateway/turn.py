"""What the inbox decides about a webhook, and what it hands on: the turn."""

from typing import Literal

from msgspec import Struct

from omni.model import InboundMessage, InstanceConfig
from omni.tracing.trace_context import TraceContext


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of a webhook: it is a turn (``success``), or it is not answered and why."""

    status: Literal["success", "ignored"]
    reason: str | None = None
    trace_id: str | None = None


class Turn(Struct, frozen=True, kw_only=True):
    """One message to be answered, and its trace."""

    instance: InstanceConfig
    message: InboundMessage
    trace: TraceContext
