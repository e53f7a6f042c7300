"""What to leave out when not everything can be kept, and how it is counted. Pure.

Bodies of chunks go first: the stage that closes a stream holds its whole text all the same, so what is lost is where one piece ended
and the next began. The row that takes their place says how many they were. Only then go other payloads, and last the trace's own row
and its ending.
"""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeGuard

from msgspec import Struct, structs

from omni.ports import DropPayloads, InsertPayload, InsertTrace, UpdateTrace, WriteOp

CHUNKS_STAGE = "streaming_chunks"
"""The stage of packed chunks, of segments of a running stream, and of the rows that say what was not kept."""
NOT_KEPT = "records were not kept"

# What an operation costs in memory beside its values.
_OP_BYTES = 200


class LossCount:
    """What was not kept of one trace, and what of that the trace says itself. Changed by the recorder only.

    ``num_shed`` chunks whose record is not stored; ``num_unkept`` those of them that the journal still holds; ``num_lost`` rows that
    are not stored and not chunks. ``told`` are the first and the last of these as the stored trace has them.

    ``needs_header`` says that the trace's own row was refused and goes along with whatever of the trace is offered next; ``header`` is
    that row with all that is known so far, None for a trace another process opened. ``is_open`` while an ending is still to come, which
    will tell the losses. ``is_mute`` when the store refused to be told, until there is more to tell or the recorder stops.
    """

    __slots__ = (
        "__weakref__",
        "header",
        "is_mute",
        "is_open",
        "needs_header",
        "num_lost",
        "num_shed",
        "num_unkept",
        "told",
        "trace_id",
    )

    def __init__(self, trace_id: str = "", *, num_shed: int = 0, num_lost: int = 0) -> None:
        self.trace_id = trace_id
        self.num_shed = num_shed
        self.num_unkept = 0
        self.num_lost = num_lost
        self.told = (num_shed, num_lost)
        self.header: dict[str, Any] | None = None
        self.needs_header = False
        self.is_open = False
        self.is_mute = False

    @property
    def is_told(self) -> bool:
        """Whether the stored trace says all of it."""
        return self.told == (self.num_shed, self.num_lost)

    def note_stored(self, ops: Sequence[WriteOp]) -> None:
        """These operations of the trace are stored: learn from them what it says now."""
        for op in ops:
            if isinstance(op, InsertTrace):
                self.needs_header = False
            elif isinstance(op, DropPayloads) and op.stage == CHUNKS_STAGE:
                self.told = (0, 0)
            elif tells_losses(op):
                # What was told before stays true; readers take the largest.
                num_shed, num_lost = self.told
                payload = op.payload
                self.told = max(num_shed, payload["dropped_chunks"]), max(num_lost, payload["lost_rows"])
        if not self.is_open and not self.needs_header:
            self.header = None

    @property
    def num_unrecorded(self) -> int:
        """Chunks that were received and that the journal does not hold."""
        return self.num_shed - self.num_unkept


class Stripped(Struct, frozen=True):
    """Operations after something was left out of them, and how much that was."""

    ops: list[WriteOp]
    num_shed: int = 0
    num_lost: int = 0


def loss_payload(*, num_shed: int, num_lost: int) -> dict[str, Any]:
    """What a row says about records that were not kept: totals of the trace so far."""
    return {"dropped_chunks": num_shed, "lost_rows": num_lost}


def loss_row(trace_id: str, *, at: datetime, num_shed: int, num_lost: int) -> InsertPayload:
    """The row that tells readers of a trace what is missing in it."""
    return InsertPayload(
        trace_id=trace_id,
        stage=CHUNKS_STAGE,
        payload_type="error",
        payload={**loss_payload(num_shed=num_shed, num_lost=num_lost), "omni": {}},
        timestamp=at,
        error_details=NOT_KEPT,
    )


def holds_chunks(op: WriteOp) -> bool:
    """Whether it is a stream's final row of chunks."""
    return (
        isinstance(op, InsertPayload)
        and op.stage == CHUNKS_STAGE
        and op.payload_type == "stream_event"
        and not op.payload.get("is_segment")
        and isinstance(op.payload.get("count"), int)
    )


def tells_losses(op: WriteOp) -> TypeGuard[InsertPayload]:
    """Whether it is a row that says what was not kept."""
    return isinstance(op, InsertPayload) and op.payload_type == "error" and op.stage == CHUNKS_STAGE


def without_chunks(ops: Sequence[WriteOp], losses: LossCount) -> Stripped:
    """One trace's operations with a small row in the place of its chunks; ``losses`` are the trace's until now."""
    kept: list[WriteOp] = []
    num_shed = losses.num_shed
    for op in ops:
        if isinstance(op, InsertPayload) and holds_chunks(op):
            num_shed += op.payload["count"]
            payload = {**loss_payload(num_shed=num_shed, num_lost=losses.num_lost), "omni": {}}
            op = structs.replace(op, payload=payload, payload_type="error", error_details=NOT_KEPT)  # noqa: PLW2901
        kept.append(op)
    return Stripped(kept, num_shed=num_shed - losses.num_shed)


def only_essentials(ops: Sequence[WriteOp], losses: LossCount) -> Stripped:
    """One trace's row, its columns and what it says about losses; every other payload is lost.

    A trace that ends here gets the row with its counts, because nothing of it will come later.
    """
    kept = [op for op in ops if not isinstance(op, InsertPayload) or tells_losses(op)]
    gone = [op for op in ops if isinstance(op, InsertPayload) and not tells_losses(op)]
    shed = sum(op.payload["count"] for op in gone if holds_chunks(op))
    lost = sum(not holds_chunks(op) for op in gone)
    if gone and any(isinstance(op, UpdateTrace | InsertTrace) and op.columns.get("completed_at") for op in ops):
        told = {"num_shed": losses.num_shed + shed, "num_lost": losses.num_lost + lost}
        kept.append(loss_row(gone[-1].trace_id, at=gone[-1].timestamp, **told))
    return Stripped(kept, num_shed=shed, num_lost=lost)


def smallest_parts(ops: Sequence[WriteOp]) -> list[list[WriteOp]]:
    """One trace's operations one by one, but for what means nothing alone.

    That is a removal and the row that takes the place of what it removes; and chunks and the row that holds their text.
    """
    parts: list[list[WriteOp]] = []
    for op in ops:
        if parts and _belong_together(parts[-1][-1], op):
            parts[-1].append(op)
        else:
            parts.append([op])
    return parts


def ops_by_trace(ops: Sequence[WriteOp]) -> dict[str, list[WriteOp]]:
    """The operations of each trace in their order."""
    found: dict[str, list[WriteOp]] = {}
    for op in ops:
        found.setdefault(op.trace_id, []).append(op)
    return found


def num_rows(ops: Sequence[WriteOp]) -> int:
    """How many rows, or new values of a row, are missing when these operations are.

    Chunks are counted by themselves, and a row that tells losses is not one: it is written again.
    """
    return sum(not isinstance(op, DropPayloads) and not holds_chunks(op) and not tells_losses(op) for op in ops)


def num_chunks(ops: Sequence[WriteOp]) -> int:
    """How many chunks have no record when these operations are missing."""
    return sum(op.payload["count"] for op in ops if isinstance(op, InsertPayload) and holds_chunks(op))


def memory_bytes(ops: Sequence[Struct]) -> int:
    """About how much memory operations hold: their values, each counted as if it were held by nothing else."""
    return sum(_OP_BYTES + _value_bytes(op) for op in ops)


def _belong_together(op: WriteOp, following: WriteOp) -> bool:
    if not isinstance(following, InsertPayload):
        return False
    if isinstance(op, DropPayloads):
        return True
    return isinstance(op, InsertPayload) and holds_chunks(op) and op.payload.get("text_stage") == following.stage


def _value_bytes(value: Any) -> int:
    if isinstance(value, Struct):
        return sum(_value_bytes(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, dict):
        inside = sum(_value_bytes(key) + _value_bytes(item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        inside = sum([_value_bytes(item) for item in value])
    else:
        inside = 0
    return sys.getsizeof(value) + inside
