"""The parts of one process, wired together: settings in, a ``Runtime`` out.

The server runs one for its whole life (``app``); a script that uses the public names gets one on first use, opened from the settings in
the environment, and its recorder is drained when the script ends. It knows nothing of HTTP servers, so that a script need not load one.
"""

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from omni.agents.automagik import AutomagikClient
from omni.agents.hive import HiveClient
from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.evolution import EvolutionChannel
from omni.channels.whatsapp.presence import TypingIndicator
from omni.clock import Anchor, Clock, SystemClock
from omni.connections import Connections
from omni.export.prometheus import ProcessFigures, PrometheusExport
from omni.gateway.chat_queues import ChatQueues
from omni.gateway.hive_streamer import AnswerStreamer
from omni.gateway.inbox import Inbox
from omni.gateway.message_router import GatewayParts, MessageRouter, provide_gateway
from omni.gateway.notices import NoticeBook
from omni.gateway.receipts import ReceiptBook
from omni.gateway.recovery import Recovery, RecoveryParts
from omni.loop_lag import LoopLag
from omni.model import MessageOutcome
from omni.settings import Settings, load_settings
from omni.store.database import Database
from omni.store.durable import DurableStore
from omni.store.instances import SqlInstanceStore
from omni.store.queries import SqlTraceReader
from omni.tracing.service import Tracer, provide_tracer
from omni.tracing.stored import stored_anchor
from omni.tracing.trace_context import TraceContext

log = logging.getLogger(__name__)


class Runtime:
    """All parts of one process, wired together. Made from settings; close it to drain the recorder and the ledger."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.database = Database.open(settings.resolved_database_url, setting=settings.database_setting)
        self.reader = SqlTraceReader(self.database)
        self.instances = SqlInstanceStore(self.database, clock=self.clock)
        self.durable = DurableStore(self.database, clock=self.clock, settings=settings)
        self.ledger = self.durable.ledger
        self.ledger_reader = self.durable.reader
        self.recorder = self.durable.recorder if settings.enable_tracing else None
        self.tracer = Tracer(clock=self.clock, recorder=self.recorder, reader=self.reader)
        self._flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omni-flush")
        self.connections = Connections(settings)
        self.channel = EvolutionChannel(self.connections.session, settings=settings, clock=self.clock)
        self.delivery = Delivery(self.channel, clock=self.clock, settings=settings, ledger=self.ledger)
        self.typing = TypingIndicator(self.channel, is_enabled=settings.typing_indicator)
        self.receipts = ReceiptBook(
            ledger=self.ledger,
            reader=self.ledger_reader,
            find_turns=self._find_turns,
            log_receipt=self.tracer.log_receipt,
            clock=self.clock,
        )
        self.metrics = PrometheusExport(self._figures)
        self.streamer = AnswerStreamer(
            delivery=self.delivery,
            typing=self.typing,
            clock=self.clock,
            language=settings.language,
            online=self.online,
            note_sent=self._note_sent,
            subscribers=[self.metrics],
        )
        self.gateway = GatewayParts(
            backends={
                "hive": HiveClient(self.connections.session, clock=self.clock, settings=settings),
                "automagik": AutomagikClient(self.connections.session, clock=self.clock),
            },
            streamer=self.streamer,
            online=self.online,
        )
        self.router = MessageRouter(self.gateway)
        self.queues = ChatQueues(self.router.answer_turn, ledger=self.ledger)
        self.inbox = Inbox(
            self.queues,
            tracer=self.tracer,
            ledger=self.ledger,
            clock=self.clock,
            settings=settings,
            receipts=self.receipts,
            note_echo=self.delivery.note_echo,
            stop_chat=self.streamer.stop_chat,
        )
        self.loop_lag = LoopLag(clock=self.clock, period_ms=settings.loop_probe_ms)

    def close(self) -> None:
        """Store what is still in memory and close the database. Blocks; safe to call twice."""
        self.durable.close(deadline_s=self.settings.stop_deadline_ms / 1000)
        self._flusher.shutdown(wait=False, cancel_futures=True)
        self.database.close()

    def recovery(self) -> Recovery:
        """What this start has to do for processes that died."""
        return Recovery(
            RecoveryParts(
                ledger=self.ledger,
                ledger_reader=self.ledger_reader,
                traces=self.reader,
                tracer=self.tracer,
                instances=self.instances,
                inbox=self.inbox,
                delivery=self.delivery,
                notices=NoticeBook(self.settings.language),
                note_sent=self._note_sent,
                clock=self.clock,
                settings=self.settings,
            )
        )

    @asynccontextmanager
    async def online(self) -> AsyncIterator[None]:
        """Keep the HTTP clients open; the last one out leaves no typing sign's call behind."""
        async with self.connections.lease():
            try:
                yield
            finally:
                if self.connections.num_leases == 1:
                    await self.typing.aclose()

    def health(self) -> dict[str, Any]:
        """What the health route adds: how much is in hand, and what was lost; None where nothing is recorded."""
        counts = None if self.recorder is None else self.recorder.counts()
        return {
            "database": self.database.dialect,
            "is_database_up": self.durable.gate.is_database_up,
            "chats_running": self.queues.num_running,
            "messages_waiting": self.inbox.num_waiting,
            "trace_events_pending": None if counts is None else counts.num_pending,
            "trace_events_shed": None if counts is None else counts.num_shed,
            "trace_rows_lost": None if counts is None else counts.num_lost,
            "trace_batches_held": None if counts is None else counts.num_held,
            "spool_entries": self.durable.gate.num_spooled,
            "spool_bytes": self.durable.gate.spool_bytes,
            "ledger_failures": self.ledger.num_failed,
            "unledgered_sends": self.delivery.num_unledgered,
            "loop_lag_ms": self.loop_lag.figures(),
        }

    async def flush_traces(self) -> None:
        """Wait until what was logged so far can be read back."""
        # A thread of its own: a writer that hangs must not fill the pool in which host names are looked up.
        await asyncio.get_running_loop().run_in_executor(self._flusher, self.tracer.flush)

    def open_outbound(
        self, *, trace_id: str, instance_name: str, recipient: str, num_chars: int, begun_ns: int
    ) -> Callable[[Sequence[MessageOutcome]], str | None]:
        """Open the trace of a text that is sent by request. Call what this returns with what became of its messages."""
        trace = self.tracer.open_outbound(
            instance_name=instance_name,
            recipient=recipient,
            num_chars=num_chars,
            trace_id=trace_id,
            begun_ns=begun_ns,
        )
        return partial(self._close_outbound, instance_name, trace)

    def _close_outbound(
        self, instance_name: str, trace: TraceContext, outcomes: Sequence[MessageOutcome]
    ) -> str | None:
        self.tracer.close_outbound(trace, outcomes)
        for outcome in outcomes:
            if outcome.key_id is not None:
                self._note_sent(instance_name, outcome.key_id, trace)
        return trace.trace_id if self.recorder is not None else None

    def _note_sent(self, instance_name: str, key_id: str, trace: TraceContext) -> None:
        self.receipts.note_sent(instance_name, key_id, trace_id=trace.trace_id, turn=trace.anchor)

    def _find_turns(self, trace_ids: Collection[str]) -> dict[str, Anchor]:
        rows = self.reader.get_traces(list(trace_ids))
        return {row.trace_id: stored_anchor(row) for row in rows if row.received_at is not None}

    def _figures(self) -> ProcessFigures:
        counts = None if self.recorder is None else self.recorder.counts()
        lag_ms = self.loop_lag.figures()
        return ProcessFigures(
            inbox_waiting=self.inbox.num_waiting,
            inbox_running=self.queues.num_running,
            webhooks_by_verdict=dict(self.inbox.num_by_verdict),
            receipts_by_status=dict(self.receipts.num_by_status),
            trace_events_pending=None if counts is None else counts.num_pending,
            chunk_records_shed=None if counts is None else counts.num_shed,
            trace_rows_lost=None if counts is None else counts.num_lost,
            spool_bytes=self.durable.gate.spool_bytes,
            spool_entries=self.durable.gate.num_spooled,
            is_database_up=self.durable.gate.is_database_up,
            ledger_failures=self.ledger.num_failed,
            unledgered_sends=self.delivery.num_unledgered,
            loop_lag_s_by_quantile={name: value / 1_000 for name, value in lag_ms.items() if value is not None},
        )


_lock = threading.Lock()
_default: Runtime | None = None


def default_runtime() -> Runtime:
    """The process's own Runtime, opened from the environment on first use. Raises SettingsError and StoreError."""
    global _default  # noqa: PLW0603 - one per process is what it is for
    with _lock:
        if _default is None:
            _default = Runtime(load_settings())
            atexit.register(close_default_runtime)
        return _default


def close_default_runtime() -> None:
    """Drain and close the process's own Runtime; the next use opens a new one. Safe to call twice."""
    global _default
    with _lock:
        runtime, _default = _default, None
    if runtime is not None:
        runtime.close()


message_router = MessageRouter()
"""The process's own router; it finds its parts on first use."""


def provide_defaults() -> None:
    """Let the public names find the process's own Runtime. Opens nothing by itself."""
    provide_tracer(lambda: default_runtime().tracer)
    provide_gateway(lambda: default_runtime().gateway)
