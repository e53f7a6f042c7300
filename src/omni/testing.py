"""Fakes for tests of Omni and of what is built on it: a clock that stands still, a scripted agent, a channel and a store in memory.

They satisfy the same ports as the real parts and keep the same promises; contract tests run on both.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from omni.clock import NS_PER_MS, NS_PER_S
from omni.errors import StoreError
from omni.model import AgentEvent, AgentRequest, InstanceConfig, OutboundMessage, SendResult, SentSearch
from omni.ports import (
    DropPayloads,
    InsertPayload,
    InsertTrace,
    LedgerOp,
    PayloadRow,
    PresenceState,
    PutInbound,
    PutOutbound,
    PutReceipt,
    TraceFilter,
    TraceRow,
    TraceSummary,
    UpdateTrace,
    WriteOp,
)
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord

_START_WALL = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


class FakeClock:
    """A clock that moves only when told. ``sleep`` moves it, so code that paces itself runs at once."""

    def __init__(self, *, wall: datetime = _START_WALL, mono_ns: int = 1_000_000_000) -> None:
        self._wall_ns = int(wall.timestamp()) * NS_PER_S
        self._mono_ns = mono_ns

    def mono_ns(self) -> int:
        """Nanoseconds on the fake monotonic clock."""
        return self._mono_ns

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 on the fake wall clock."""
        return self._wall_ns

    def advance_ms(self, duration_ms: float) -> None:
        """Let time pass on both clocks."""
        self._mono_ns += int(duration_ms * NS_PER_MS)
        self._wall_ns += int(duration_ms * NS_PER_MS)

    def step_wall_s(self, step_s: float) -> None:
        """Set the wall clock forward or back without time passing, as NTP or a person does."""
        self._wall_ns += int(step_s * NS_PER_S)

    async def sleep(self, duration_s: float) -> None:
        """Pass ``duration_s`` at once, giving other tasks a turn."""
        self.advance_ms(max(duration_s, 0) * 1000)
        await asyncio.sleep(0)


class ScriptedAgent:
    """An agent that says what it was told to. A step is an event to yield, an error to raise, or an awaitable to wait for."""

    def __init__(self, steps: Callable[[AgentRequest], Sequence[AgentEvent | Exception | Awaitable[object]]]) -> None:
        self._steps = steps
        self.requests: list[AgentRequest] = []
        self.cancelled_runs: list[str] = []

    async def run(self, request: AgentRequest) -> AsyncIterator[AgentEvent]:
        """Yield the script's events for one request."""
        self.requests.append(request)
        for step in self._steps(request):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Awaitable):
                await step
            else:
                yield step

    async def cancel_run(self, request: AgentRequest, run_id: str) -> bool:  # noqa: ARG002
        """Remember that the run was to be cancelled."""
        self.cancelled_runs.append(run_id)
        await asyncio.sleep(0)
        return True


class RecordingChannel:
    """A channel that accepts every message and remembers it. ``answers`` replaces the answers to the next sends, in order."""

    def __init__(self) -> None:
        self.sent: list[OutboundMessage] = []
        self.presences: list[tuple[str, PresenceState]] = []
        self.answers: list[SendResult | Exception] = []
        self.searches: list[SentSearch] = []
        self.searched: list[OutboundMessage] = []
        self.gate: asyncio.Event | None = None

    async def send_text(self, instance: InstanceConfig, message: OutboundMessage) -> SendResult:  # noqa: ARG002
        """Remember the message; wait at the gate if there is one."""
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        self.sent.append(message)
        return answer or SendResult(is_accepted=True, status_code=201, key_id=f"3EB0{len(self.sent):018X}")

    async def send_presence(
        self,
        instance: InstanceConfig,  # noqa: ARG002
        recipient: str,
        *,
        state: PresenceState,
        duration_ms: int,  # noqa: ARG002
    ) -> bool:
        """Remember the sign."""
        self.presences.append((recipient, state))
        await asyncio.sleep(0)
        return True

    async def find_sent(
        self,
        instance: InstanceConfig,  # noqa: ARG002
        message: OutboundMessage,
        *,
        started_wall_ns: int,  # noqa: ARG002
        known_key_ids: Collection[str],  # noqa: ARG002
    ) -> SentSearch:
        """Answer from ``searches`` in order; without one nobody can tell."""
        self.searched.append(message)
        return self.searches.pop(0) if self.searches else SentSearch(verdict="unknown")

    @property
    def texts(self) -> list[str]:
        """The texts sent so far, in order."""
        return [message.text for message in self.sent]


class MemoryLedger:
    """A ledger in memory: the newest version of every row. ``failures`` are raised by the next puts; ``history`` holds all ops.

    With ``is_held`` True, nothing is kept and nobody is told until ``release`` is called; then all is, in order.
    """

    def __init__(self) -> None:
        self.inbox: dict[tuple[str, str], InboxRecord] = {}
        self.outbox: dict[str, OutboxRecord] = {}
        self.receipts: dict[tuple[str, str, str], ReceiptRecord] = {}
        self.history: list[LedgerOp] = []
        self.failures: list[StoreError] = []
        self.is_held = False
        self._held: list[tuple[LedgerOp, asyncio.Future[bool] | None]] = []

    def put(self, op: LedgerOp) -> "asyncio.Future[bool]":
        """Keep one operation; the future is done at once unless the ledger is held."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.failures:
            future.set_exception(self.failures.pop(0))
        elif self.is_held:
            self._held.append((op, future))
        else:
            future.set_result(self._apply(op))
        return future

    def post(self, op: LedgerOp) -> None:
        """Keep one operation; a failure is swallowed as the real one only counts it."""
        if self.failures:
            self.failures.pop(0)
        elif self.is_held:
            self._held.append((op, None))
        else:
            self._apply(op)

    def release(self) -> None:
        """Make everything held durable, in order, and hold no more."""
        self.is_held = False
        for op, future in self._held:
            is_new = self._apply(op)
            if future is not None and not future.done():
                future.set_result(is_new)
        self._held = []

    def _apply(self, op: LedgerOp) -> bool:
        self.history.append(op)
        match op:
            case PutInbound():
                return _keep_newest(self.inbox, (op.record.instance_name, op.record.message_id), op.record)
            case PutOutbound():
                return _keep_newest(self.outbox, op.record.message_uid, op.record)
            case PutReceipt():
                key = (op.record.instance_name, op.record.key_id, op.record.status)
                return _keep_newest(self.receipts, key, op.record)


class MemoryStore:
    """A trace store in memory: a sink for the recorder and a reader for what it wrote. ``failures`` are raised by the next writes."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.payloads: list[PayloadRow] = []
        self.failures: list[Exception] = []
        self.num_batches = 0

    def write(self, ops: Sequence[WriteOp]) -> None:
        """Apply all operations or none."""
        if self.failures:
            raise self.failures.pop(0)
        rows = {trace_id: dict(columns) for trace_id, columns in self.rows.items()}
        payloads = list(self.payloads)
        for op in ops:
            match op:
                case InsertTrace():
                    if op.trace_id in rows:
                        raise StoreError("this trace is there already")
                    rows[op.trace_id] = dict(op.columns)
                case UpdateTrace():
                    rows[op.trace_id].update(op.columns)
                case InsertPayload():
                    payloads.append(_payload_row(len(payloads) + 1, op))
                case DropPayloads():
                    payloads = [row for row in payloads if (row.trace_id, row.stage) != (op.trace_id, op.stage)]
        self.rows, self.payloads = rows, payloads
        self.num_batches += 1

    def get_trace(self, trace_id: str) -> TraceRow | None:
        """The row of a trace, or None."""
        columns = self.rows.get(trace_id)
        return None if columns is None else TraceRow(trace_id=trace_id, **columns)

    def list_traces(self, wanted: TraceFilter) -> list[TraceRow]:
        """Newest first; the filter's phone, instance and status are honoured."""
        rows = [TraceRow(trace_id=trace_id, **columns) for trace_id, columns in reversed(self.rows.items())]
        checks = (
            ("sender_phone", wanted.phone),
            ("instance_name", wanted.instance_name),
            ("status", wanted.status),
        )
        kept = [row for row in rows if all(value is None or getattr(row, name) == value for name, value in checks)]
        return kept[wanted.offset : wanted.offset + wanted.limit]

    def get_payloads(self, trace_id: str) -> list[PayloadRow]:
        """The payload rows of a trace in the order they were written."""
        return [row for row in self.payloads if row.trace_id == trace_id]

    def get_traces(self, trace_ids: Sequence[str]) -> list[TraceRow]:
        """The rows of these traces; unknown ids are left out."""
        found = (self.get_trace(trace_id) for trace_id in trace_ids)
        return [row for row in found if row is not None]

    def get_payloads_of(self, trace_ids: Sequence[str]) -> dict[str, list[PayloadRow]]:
        """The payload rows of these traces."""
        return {trace_id: rows for trace_id in trace_ids if (rows := self.get_payloads(trace_id))}

    def summarize(
        self, *, received_from: datetime | None, received_to: datetime | None, instance_name: str | None
    ) -> TraceSummary:
        """Counts over all rows of an instance received in the window."""
        rows = [
            row
            for row in self.list_traces(TraceFilter(instance_name=instance_name, limit=len(self.rows)))
            if row.received_at is not None
            and (received_from is None or row.received_at >= received_from)
            and (received_to is None or row.received_at <= received_to)
        ]
        good = sum(row.status == "completed" for row in rows)
        return TraceSummary(
            total_messages=len(rows),
            successful_messages=good,
            failed_messages=sum(row.status in ("failed", "error") for row in rows),
            success_rate=round(100 * good / len(rows), 2) if rows else None,
            avg_processing_time_ms=_mean([row.total_processing_time_ms for row in rows]),
            avg_agent_time_ms=_mean([row.agent_processing_time_ms for row in rows]),
            message_types=_counts([row.message_type for row in rows]),
            error_stages=_counts([row.error_stage for row in rows]),
            instances=_counts([row.instance_name for row in rows]),
        )

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """(instance, message id) of the newest traces."""
        found = [
            (str(columns.get("instance_name")), str(columns["whatsapp_message_id"]))
            for columns in reversed(self.rows.values())
            if columns.get("whatsapp_message_id") and columns["received_at"] >= received_from
        ]
        return found[:limit]

    def count_older_than(self, cutoff: datetime) -> int:
        """How many traces were received before the cutoff."""
        return sum(columns["received_at"] < cutoff for columns in self.rows.values())

    def delete_older_than(self, cutoff: datetime) -> int:
        """Remove them with their payloads."""
        gone = {trace_id for trace_id, columns in self.rows.items() if columns["received_at"] < cutoff}
        self.rows = {trace_id: columns for trace_id, columns in self.rows.items() if trace_id not in gone}
        self.payloads = [row for row in self.payloads if row.trace_id not in gone]
        return len(gone)


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


_Record = TypeVar("_Record", bound=_Versioned)
_Key = TypeVar("_Key")


def _keep_newest(rows: dict[_Key, _Record], key: _Key, record: _Record) -> bool:
    known = rows.get(key)
    if known is not None and known.version >= record.version:
        return False
    rows[key] = record
    return True


def _payload_row(row_id: int, op: InsertPayload) -> PayloadRow:
    return PayloadRow(
        id=row_id,
        trace_id=op.trace_id,
        stage=op.stage,
        payload_type=op.payload_type,
        payload=op.payload,
        timestamp=op.timestamp,
        status_code=op.status_code,
        error_details=op.error_details,
        contains_media=op.contains_media,
        contains_base64=op.contains_base64,
    )


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _counts(values: Sequence[str | None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    return counts
