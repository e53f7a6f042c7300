"""Reads what a run left in the database, over a connection of its own and with Omni's own readers, as another process would."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import inspect, text
from tests.faults.books import Kept, KeptInbound, KeptMessage, KeptOutbound, KeptTrace

from omni.ports import PayloadRow, TraceFilter, TraceRow
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.store.trace_pages import SqlTracePages
from omni.tracing.packing import TEXT_KEYS
from omni.tracing.stored import read_stored_trace
from omni.tracing.verify import check_trace

_PAGE = 1_000
_INBOX = "SELECT message_id, trace_id, state FROM omni_inbox"
_OUTBOX = (
    "SELECT answer_id, message_index, state, key_id, text_sha256, is_notice FROM omni_outbox "
    "ORDER BY answer_id, message_index"
)


class DatabaseReader:
    """Another process's view of Omni's database. Methods block. Close it."""

    def __init__(self, url: str) -> None:
        self.since: datetime | None = None
        """Traces received before are not looked at."""
        self._database = Database.open(url)
        self._traces = SqlTraceReader(self._database)

    def close(self) -> None:
        """Close its connections."""
        self._database.close()

    def read(self, message_ids: Collection[str]) -> Kept:
        """Everything about these inbound messages. Raises StoreError while the database is away."""
        wanted = set(message_ids)
        rows = [row for row in self._all_rows() if row.whatsapp_message_id in wanted]
        traces = tuple(kept_trace(row, self._traces.get_payloads(row.trace_id)) for row in rows)
        trace_ids = {trace.trace_id for trace in traces}
        with self._database.reading("reading the ledger") as connection:
            tables = inspect(connection).get_table_names()
            if "omni_inbox" not in tables:
                return Kept(traces=traces, inbox=None, outbox=None)
            inbox = [KeptInbound(**row) for row in connection.execute(text(_INBOX)).mappings()]
            outbox = [_kept_outbound(dict(row)) for row in connection.execute(text(_OUTBOX)).mappings()]
        return Kept(
            traces=traces,
            inbox=tuple(row for row in inbox if row.message_id in wanted),
            outbox=tuple(row for row in outbox if row.trace_id in trace_ids),
        )

    def disagreements(self) -> tuple[str, ...]:
        """What ``omni traces verify --all`` would find wrong, one line each."""
        return tuple(
            f"{row.trace_id[:8]}: {disagreement}"
            for page in SqlTracePages(self._database).walk()
            for row, payloads in page
            for disagreement in check_trace(row, payloads).disagreements
        )

    def open_trace_ids(self, message_ids: Collection[str]) -> set[str]:
        """The traces of these messages that nobody has closed."""
        wanted = set(message_ids)
        return {
            row.trace_id
            for row in self._all_rows()
            if row.whatsapp_message_id in wanted and row.status not in ("completed", "failed")
        }

    def _all_rows(self) -> Sequence[TraceRow]:
        """All traces, oldest first."""
        rows: list[TraceRow] = []
        while True:
            page = self._traces.list_traces(TraceFilter(received_from=self.since, limit=_PAGE, offset=len(rows)))
            rows += page
            if len(page) < _PAGE:
                return rows[::-1]


def kept_trace(row: TraceRow, payloads: list[PayloadRow]) -> KeptTrace:
    """One stored trace as the checker reads it."""
    stored = read_stored_trace(row, payloads)
    timeline = stored.timeline
    closings = [(stored.payload_of(stage), key) for stage, key in TEXT_KEYS.items()]
    is_closed = row.status in ("completed", "failed")
    return KeptTrace(
        trace_id=row.trace_id,
        message_id=str(row.whatsapp_message_id),
        ending=timeline.ending if is_closed else None,
        chunks=tuple(chunk.text for chunk in timeline.chunks),
        contents=tuple(str(payload.get(key) or "") for payload, key in closings if payload is not None),
        messages=tuple(
            KeptMessage(
                index=message.index,
                text=message.text,
                status=message.status,
                key_id=message.key_id,
                start=message.start,
                end=message.end,
                is_notice=message.is_notice,
                error_kind=message.error_kind,
            )
            for message in timeline.messages
        ),
        num_dropped=timeline.num_dropped_chunks,
    )


def _kept_outbound(row: dict[str, Any]) -> KeptOutbound:
    return KeptOutbound(
        # What is said besides an answer (a message given up for good) has the answer's id with a word behind it.
        trace_id=row["answer_id"].partition("/")[0],
        index=row["message_index"],
        state=row["state"],
        key_id=row["key_id"],
        text_sha256=row["text_sha256"],
        is_notice=bool(row["is_notice"]),
    )
