"""The seams between Omni's parts, as small Protocols; ``app.py`` hands the real parts in.

A port speaks of data from ``model`` and of the rows below. Whoever satisfies one needs to import nothing else.
"""

from asyncio import Future
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from omni.model import AgentEvent, AgentRequest, InstanceConfig, OutboundMessage, SendResult, SentSearch
from omni.records import InboxRecord, OutboxRecord, ReceiptRecord

if TYPE_CHECKING:
    # The one word here that a higher part defines: every figure of a turn is in it, and none needs a second definition.
    from omni.tracing.timeline import Timeline

PayloadType = Literal["webhook", "request", "response", "stream_event", "error"]
PresenceState = Literal["composing", "recording", "paused"]


class Channel(Protocol):
    """Hands messages to people. Methods are called on the event loop and never raise for what the other side answered."""

    async def send_text(self, instance: InstanceConfig, message: OutboundMessage) -> SendResult:
        """Make one attempt to send one message and say what became of it."""
        ...

    async def send_presence(
        self, instance: InstanceConfig, recipient: str, *, state: PresenceState, duration_ms: int
    ) -> bool:
        """Show or clear the typing sign for ``duration_ms``; False when the channel has none or refused."""
        ...

    async def find_sent(
        self,
        instance: InstanceConfig,
        message: OutboundMessage,
        *,
        started_wall_ns: int,
        known_key_ids: Collection[str],
    ) -> SentSearch:
        """Whether a message whose sending began at ``started_wall_ns`` and broke off went out after all.

        ``known_key_ids`` belong to other messages of ours: they are no match, and finding one of them shows that the channel keeps
        what it sent. Never raises for what the other side answered.
        """
        ...


class AgentBackend(Protocol):
    """Asks an agent and yields what it says, as it says it."""

    def run(self, request: AgentRequest) -> AsyncIterator[AgentEvent]:
        """Yield the events of one run: ``RequestWritten`` first, exactly one ``RunEnded`` last.

        Raises AgentError when no answer came about. Closing the iterator closes the connection.
        """
        ...

    async def cancel_run(self, request: AgentRequest, run_id: str) -> bool:
        """Ask the server to stop a run; False when it has no way to, and closing the connection is all there is. Raises AgentError."""
        ...


class InsertTrace(Struct, frozen=True):
    """A new row of message_traces; ``columns`` holds column values, datetimes timezone-aware UTC."""

    trace_id: str
    columns: dict[str, Any]


class UpdateTrace(Struct, frozen=True):
    """New column values for one row of message_traces."""

    trace_id: str
    columns: dict[str, Any]


class InsertPayload(Struct, frozen=True, kw_only=True):
    """A new row of trace_payloads. ``payload`` is encoded by the store, in the writer's thread."""

    trace_id: str
    stage: str
    payload_type: PayloadType
    payload: dict[str, Any]
    timestamp: datetime
    status_code: int | None = None
    error_details: str | None = None
    contains_media: bool = False
    contains_base64: bool = False


class DropPayloads(Struct, frozen=True):
    """Remove one trace's rows of one stage: chunk segments that the packed row behind it replaces."""

    trace_id: str
    stage: str


WriteOp = InsertTrace | UpdateTrace | InsertPayload | DropPayloads


class TraceSink(Protocol):
    """Where the recorder's writer thread puts what it has."""

    def write(self, ops: Sequence[WriteOp]) -> None:
        """Apply all operations in order in one transaction, or none. Blocks; raises StoreError.

        After a retryable StoreError the same sequence, unchanged, is offered again before any other.
        """
        ...


class TraceSubscriber(Protocol):
    """Is told of turns that have ended: what an export or a live view satisfies."""

    def turn_ended(self, timeline: "Timeline", *, instance_name: str) -> None:
        """Take one turn, with all that is known at its end; receipts come later. Called on the event loop, once per turn.

        Must not block and must not raise: a turn is over, and nobody is left to hear of it.
        """
        ...


class StoreTiers(Protocol):
    """What a sink has behind it: a database, and a local spool for while that is away. Figures of this moment, from any thread."""

    @property
    def is_database_up(self) -> bool:
        """Whether the database took the last write that was tried."""
        ...

    @property
    def sheds_chunks(self) -> bool:
        """Whether so much waits that bodies of chunks should be left out of what is still to come."""
        ...

    @property
    def num_spooled(self) -> int:
        """Entries that wait in the spool."""
        ...

    @property
    def spool_bytes(self) -> int:
        """Bytes that wait in the spool."""
        ...

    @property
    def num_lost(self) -> int:
        """Records that reached the spool and then could not be stored."""
        ...


class TraceRow(Struct, frozen=True, kw_only=True):
    """One row of message_traces as stored. Datetimes are timezone-aware UTC."""

    trace_id: str
    instance_name: str | None = None
    whatsapp_message_id: str | None = None
    sender_phone: str | None = None
    sender_name: str | None = None
    sender_jid: str | None = None
    message_type: str | None = None
    has_media: bool | None = None
    has_quoted_message: bool | None = None
    message_length: int | None = None
    session_name: str | None = None
    agent_session_id: str | None = None
    received_at: datetime | None = None
    processing_started_at: datetime | None = None
    agent_request_at: datetime | None = None
    agent_response_at: datetime | None = None
    evolution_send_at: datetime | None = None
    completed_at: datetime | None = None
    status: str | None = None
    error_message: str | None = None
    error_stage: str | None = None
    agent_processing_time_ms: int | None = None
    total_processing_time_ms: int | None = None
    agent_request_tokens: int | None = None
    agent_response_tokens: int | None = None
    agent_response_success: bool | None = None
    agent_response_length: int | None = None
    agent_tools_used: int | None = None
    evolution_response_code: int | None = None
    evolution_success: bool | None = None


class PayloadRow(Struct, frozen=True, kw_only=True):
    """One row of trace_payloads as stored, decoded. ``payload`` is None when there was none or it could not be read."""

    id: int
    trace_id: str
    stage: str
    payload_type: str | None
    payload: Any
    timestamp: datetime | None
    status_code: int | None = None
    error_details: str | None = None
    payload_size_original: int | None = None
    payload_size_compressed: int | None = None
    contains_media: bool | None = None
    contains_base64: bool | None = None


class TraceFilter(Struct, frozen=True, kw_only=True):
    """Which traces to list; None means "any". Newest first. ``limit`` 1 to 1000."""

    phone: str | None = None
    instance_name: str | None = None
    status: str | None = None
    message_type: str | None = None
    session_name: str | None = None
    agent_session_id: str | None = None
    has_media: bool | None = None
    received_from: datetime | None = None
    received_to: datetime | None = None
    limit: int = 50
    offset: int = 0


class TraceSummary(Struct, frozen=True, kw_only=True):
    """Counts over a window, with the predecessor's field names. Averages are milliseconds, None without data."""

    total_messages: int
    successful_messages: int
    failed_messages: int
    success_rate: float | None
    avg_processing_time_ms: float | None
    avg_agent_time_ms: float | None
    message_types: dict[str, int]
    error_stages: dict[str, int]
    instances: dict[str, int]


class TraceReader(Protocol):
    """Reads traces back. Methods block: call them from a worker thread. All raise StoreError when the database does."""

    def get_trace(self, trace_id: str) -> TraceRow | None:
        """The row of a trace, None when there is none."""
        ...

    def list_traces(self, wanted: TraceFilter) -> list[TraceRow]:
        """The traces that match, newest first."""
        ...

    def get_payloads(self, trace_id: str) -> list[PayloadRow]:
        """All payload rows of a trace in the order they were written, payloads decoded."""
        ...

    def get_traces(self, trace_ids: Sequence[str]) -> list[TraceRow]:
        """The rows of these traces in no order; ids nobody knows are left out. Any number of ids."""
        ...

    def get_payloads_of(self, trace_ids: Sequence[str]) -> dict[str, list[PayloadRow]]:
        """The payload rows of these traces, each trace's in the order they were written. Any number of ids."""
        ...

    def summarize(
        self, *, received_from: datetime | None, received_to: datetime | None, instance_name: str | None
    ) -> TraceSummary:
        """Counts over the traces received in the window; None leaves an end open."""
        ...

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """(instance_name, whatsapp_message_id) of the newest traces: what the inbox must recognise after a restart."""
        ...

    def count_older_than(self, cutoff: datetime) -> int:
        """How many traces were received before ``cutoff``."""
        ...

    def delete_older_than(self, cutoff: datetime) -> int:
        """Delete traces received before ``cutoff`` with all their payloads; the number of traces deleted."""
        ...


class PutInbound(Struct, frozen=True):
    """Keep an inbound message, or its newer version."""

    record: InboxRecord


class PutOutbound(Struct, frozen=True):
    """Keep an outgoing message, or its newer version."""

    record: OutboxRecord


class PutReceipt(Struct, frozen=True):
    """Keep a receipt, or its newer version."""

    record: ReceiptRecord


LedgerOp = PutInbound | PutOutbound | PutReceipt


class Ledger(Protocol):
    """The durable book of what came in, what goes out and what was confirmed. Used on an event loop.

    Operations are whole rows with versions: applying one twice, or an older one after a newer one, changes nothing.
    """

    def put(self, op: LedgerOp) -> Future[bool]:
        """Store one operation; the future is done when it would survive the process. Never blocks.

        Its result is False when the identity was there already in the same or a newer version (a repeat), else True. It raises
        StoreError when neither the database nor the spool could take it.
        """
        ...

    def post(self, op: LedgerOp) -> None:
        """The same for callers who do not wait; a failure is counted and logged. Never blocks, never raises."""
        ...


class LeftWork(Struct, frozen=True, kw_only=True):
    """What processes that are gone left undone, now ours. ``inbox`` in the order received, ``outbox`` by answer and index.

    ``outbox`` holds all messages of every answer that has one without a final state, of every trace in ``inbox`` and of every open one;
    ``open_traces`` are the ids of traces nobody closed; ``receipts`` those whose message is not known yet.
    """

    inbox: Sequence[InboxRecord]
    outbox: Sequence[OutboxRecord]
    open_traces: Sequence[str]
    receipts: Sequence[ReceiptRecord]


class LedgerReader(Protocol):
    """Reads the ledger. Methods block: call them from a worker thread. All raise StoreError when the database does."""

    def take_over(self) -> LeftWork:
        """Make what dead processes left ours, and return it. Spools they left are stored first."""
        ...

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        """(instance_name, message_id) of the newest inbound messages: repeats the inbox must recognise."""
        ...

    def find_outbound(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], OutboxRecord]:
        """The outgoing messages known by these (instance_name, key_id) pairs; pairs nobody knows are left out."""
        ...

    def forget_texts(self, cutoff: datetime) -> int:
        """Remove the texts of messages that have had their final state since before ``cutoff``; how many went."""
        ...

    def delete_older_than(self, cutoff: datetime) -> int:
        """Remove finished rows older than ``cutoff`` in small transactions; how many went."""
        ...


class InstanceStore(Protocol):
    """Configured instances. Methods block: call them from a worker thread. Rows are plain column mappings.

    One instance at most is the default: creating or changing one with ``is_default`` true takes that from the others.
    """

    def list_rows(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """The rows in the order they were made."""
        ...

    def get_row(self, name: str) -> dict[str, Any] | None:
        """One row with all its columns, None when there is none."""
        ...

    def get(self, name: str) -> InstanceConfig | None:
        """One instance as the gateway works with it, None when there is none."""
        ...

    def create(self, values: dict[str, Any]) -> dict[str, Any]:
        """Insert one instance and return its row. Raises StoreError with status_code 409 when the name is taken."""
        ...

    def update(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Change one instance and return its row. Raises RecordNotFound."""
        ...

    def delete(self, name: str) -> None:
        """Remove one instance and its users; its traces stay. Raises RecordNotFound."""
        ...

    def count(self) -> int:
        """How many instances there are."""
        ...
