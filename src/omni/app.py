"""The only wiring: settings in, one running Omni out.

``Runtime`` holds the parts of a process. The server runs one for its whole life; a script that uses the public names gets one on
first use, opened from the settings in the environment, and its recorder is drained when the script ends.
"""

import asyncio
import atexit
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import FastAPI

from omni import __version__
from omni.agents.automagik import AutomagikClient
from omni.agents.hive import HiveClient
from omni.channels.whatsapp.delivery import Delivery
from omni.channels.whatsapp.evolution import EvolutionChannel
from omni.channels.whatsapp.presence import TypingIndicator
from omni.clock import Clock, SystemClock
from omni.connections import Connections
from omni.errors import StoreError
from omni.gateway.hive_streamer import AnswerStreamer
from omni.gateway.inbox import REPEAT_WINDOW_S, Inbox
from omni.gateway.message_router import GatewayParts, MessageRouter, provide_gateway
from omni.loop_lag import LoopLag
from omni.model import MessageOutcome
from omni.ports import PayloadRow, TraceRow
from omni.sandbox.server import Sandbox, sandbox_instance
from omni.settings import Settings, load_settings
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.queries import SqlTraceReader
from omni.store.writes import SqlTraceSink
from omni.tracing.document import streaming_document
from omni.tracing.recorder import Recorder
from omni.tracing.service import Tracer, provide_tracer
from omni.tracing.stored import read_stored_trace
from omni.web.api_key import resolve_api_key
from omni.web.parts import WebParts
from omni.web.server import create_web_app

log = logging.getLogger(__name__)

SANDBOX_NAME = "sandbox"
SANDBOX_PATH = "/sandbox"
# Message ids looked up at start so that a webhook repeated after a restart is recognised.
_MAX_REMEMBERED_AT_START = 50_000
_RETENTION_PERIOD_S = 3600.0


class Runtime:
    """All parts of one process, wired together. Made from settings; close it to drain the recorder."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.database = Database.open(settings.resolved_database_url, setting=settings.database_setting)
        self.reader = SqlTraceReader(self.database)
        self.instances = SqlInstanceStore(self.database, clock=self.clock)
        self.recorder: Recorder | None = None
        if settings.enable_tracing:
            self.recorder = Recorder(SqlTraceSink(self.database), clock=self.clock, settings=settings)
            self.recorder.start()
        self.tracer = Tracer(clock=self.clock, recorder=self.recorder, reader=self.reader)
        self._flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omni-flush")
        self.connections = Connections(settings)
        self.channel = EvolutionChannel(self.connections.session, settings=settings)
        self.delivery = Delivery(self.channel, clock=self.clock, settings=settings)
        self.typing = TypingIndicator(self.channel, is_enabled=settings.typing_indicator)
        self.streamer = AnswerStreamer(
            delivery=self.delivery,
            typing=self.typing,
            clock=self.clock,
            language=settings.language,
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
        self.inbox = Inbox(self.router.answer_turn, tracer=self.tracer, clock=self.clock, settings=settings)
        self.loop_lag = LoopLag(clock=self.clock, period_ms=settings.loop_probe_ms)

    def close(self) -> None:
        """Store what is still in memory and close the database. Blocks; safe to call twice."""
        if self.recorder is not None and not self.recorder.stop(deadline_s=self.settings.stop_deadline_ms / 1000):
            log.error("recorder_not_drained", extra={"num_pending": self.recorder.num_pending})
        self._flusher.shutdown(wait=False, cancel_futures=True)
        self.database.close()

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
        recorder = self.recorder
        return {
            "database": self.database.dialect,
            "chats_running": self.inbox.num_running,
            "messages_waiting": self.inbox.num_waiting,
            "trace_events_pending": None if recorder is None else recorder.num_pending,
            "trace_events_shed": None if recorder is None else recorder.num_shed,
            "trace_rows_lost": None if recorder is None else recorder.num_lost,
            "loop_lag_ms": self.loop_lag.figures(),
        }

    async def flush_traces(self) -> None:
        """Wait until what was logged so far can be read back."""
        # A thread of its own: a writer that hangs must not fill the pool in which host names are looked up.
        await asyncio.get_running_loop().run_in_executor(self._flusher, self.tracer.flush)

    def record_outbound(self, *, instance_name: str, recipient: str, outcomes: Sequence[MessageOutcome]) -> str | None:
        """Put messages that were sent by request on record."""
        trace = self.tracer.record_outbound(instance_name=instance_name, recipient=recipient, outcomes=outcomes)
        return trace.trace_id if self.recorder is not None else None


def create_app(settings: Settings, *, base_url: str, with_sandbox: bool | None = None) -> FastAPI:
    """The server's application. ``base_url`` is where it will be reached by itself (the sandbox calls it).

    ``with_sandbox`` None mounts the sandbox when no other instance is configured.
    """
    runtime = Runtime(settings)
    api_key = resolve_api_key(settings)
    sandbox = _make_sandbox(runtime, api_key, base_url) if _wants_sandbox(runtime, with_sandbox) else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(runtime.close)
            stack.enter_context(runtime.loop_lag.watching())
            await stack.enter_async_context(runtime.online())
            if sandbox is not None:
                await sandbox.start()
                stack.push_async_callback(sandbox.stop)
            deadline_s = settings.stop_deadline_ms / 1000
            stack.push_async_callback(runtime.delivery.aclose, deadline_s)
            stack.push_async_callback(runtime.inbox.aclose, deadline_s=deadline_s)
            stack.callback(runtime.streamer.note_stopping)
            await asyncio.to_thread(_remember_recent, runtime)
            retention = asyncio.create_task(_keep_retention(runtime), name="omni-retention")
            stack.push_async_callback(_cancel, retention)
            yield

    app = create_web_app(
        WebParts(
            settings=settings,
            api_key=api_key,
            clock=runtime.clock,
            traces=runtime.reader,
            instances=runtime.instances,
            open_text=runtime.delivery.open_text,
            take_webhook=runtime.inbox.take,
            streaming_document=_document,
            flush_traces=runtime.flush_traces,
            health=runtime.health,
            record_outbound=runtime.record_outbound,
            on_instances_changed=lambda _: None,
            version=__version__,
            sandbox_path=None if sandbox is None else f"{SANDBOX_PATH}/phone",
        ),
        lifespan=lifespan,
    )
    app.state.runtime = runtime
    app.state.sandbox = sandbox
    if sandbox is not None:
        app.mount(SANDBOX_PATH, sandbox.asgi)
    return app


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


def _document(row: TraceRow, payloads: list[PayloadRow]) -> dict[str, Any]:
    return streaming_document(read_stored_trace(row, payloads))


def _wants_sandbox(runtime: Runtime, with_sandbox: bool | None) -> bool:  # noqa: FBT001 - a tri-state passed through
    if with_sandbox is not None:
        return with_sandbox
    return all(row["name"] == SANDBOX_NAME for row in runtime.instances.list_rows(limit=2))


def _make_sandbox(runtime: Runtime, api_key: str, base_url: str) -> Sandbox:
    values = sandbox_instance(f"{base_url}{SANDBOX_PATH}")
    if runtime.instances.get_row(SANDBOX_NAME) is None:
        runtime.instances.create({**values, "name": SANDBOX_NAME})
    else:
        runtime.instances.update(SANDBOX_NAME, values)
    return Sandbox(
        webhook_url=f"{base_url}/webhook/evolution/{SANDBOX_NAME}",
        instance_name=SANDBOX_NAME,
        api_base="",
        api_key=api_key,
        evolution_key=values["evolution_key"],
        hive_key=values["agent_api_key"],
        # The phone shows what the trace can know: receipts are not on record yet.
        receipts=False,
    )


def _remember_recent(runtime: Runtime) -> None:
    since = runtime.tracer.now() - timedelta(seconds=REPEAT_WINDOW_S)
    runtime.inbox.remember(runtime.reader.recent_message_ids(received_from=since, limit=_MAX_REMEMBERED_AT_START))


async def _keep_retention(runtime: Runtime) -> None:
    days = runtime.settings.trace_retention_days
    while days:
        try:
            cutoff = runtime.tracer.now() - timedelta(days=days)
            removed = await asyncio.to_thread(runtime.reader.delete_older_than, cutoff)
            log.info("traces_removed", extra={"num_removed": removed, "older_than_days": days})
        except StoreError as exc:
            log.warning("retention_failed", extra={"cause": exc.sentence})
        await asyncio.sleep(_RETENTION_PERIOD_S)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
