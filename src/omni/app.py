"""One running Omni: a ``Runtime`` with its HTTP side, the sandbox beside it when nothing else is configured, and the order of stopping."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from fastapi import FastAPI

from omni import __version__
from omni.errors import StoreError
from omni.gateway.recovery import Recovery
from omni.gateway.seen_messages import REPEAT_WINDOW_S
from omni.ports import PayloadRow, TraceRow
from omni.runtime import Runtime
from omni.sandbox.server import Sandbox, sandbox_instance
from omni.settings import Settings
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace
from omni.web.api_key import resolve_api_key
from omni.web.parts import WebParts
from omni.web.server import create_web_app

log = logging.getLogger(__name__)

SANDBOX_NAME = "sandbox"
SANDBOX_PATH = "/sandbox"
# Message ids looked up at start so that a webhook repeated after a restart is recognised.
_MAX_REMEMBERED_AT_START = 50_000
_TIDY_S = 3600.0
_HEARTBEAT_S = 5.0
# How often a running server looks for work that others left: a deployment's old process stops after its new one has started.
_LOOK_FOR_LEFT_S = 30.0
# A full collection takes up to 0.1 s. Looked for once a minute, and made after ten without a quiet moment.
_HEAP_S, _HEAP_PATIENCE = 60.0, 10
# A sent message's text stays in the outbox for recovery to complete a trace with; the trace has it soon after.
_TEXT_KEPT_S = 3600


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
            stack.push_async_callback(runtime.receipts.aclose)
            recovery = runtime.recovery()
            stack.push_async_callback(recovery.aclose)
            deadline_s = settings.stop_deadline_ms / 1000
            stack.push_async_callback(runtime.delivery.aclose, deadline_s)
            stack.push_async_callback(runtime.streamer.aclose, deadline_s)
            stack.push_async_callback(runtime.inbox.aclose, deadline_s=deadline_s)
            stack.callback(runtime.streamer.note_stopping)
            await asyncio.to_thread(_remember_recent, runtime)
            left = await recovery.begin()
            runtime.receipts.resume(left.receipts)
            for name, work in _chores(runtime, recovery):
                stack.push_async_callback(_cancel, asyncio.create_task(work, name=f"omni-{name}"))
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
            open_outbound=runtime.open_outbound,
            stop_turn=runtime.streamer.stop_turn,
            metrics=runtime.metrics.render,
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
    )


def _remember_recent(runtime: Runtime) -> None:
    since = runtime.tracer.now() - timedelta(seconds=REPEAT_WINDOW_S)
    for reader in (runtime.reader, runtime.ledger_reader):  # traces as well: those of before there was a ledger
        runtime.inbox.remember(reader.recent_message_ids(received_from=since, limit=_MAX_REMEMBERED_AT_START))


def _chores(runtime: Runtime, recovery: Recovery) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    yield "recovery", recovery.watch(every_s=_LOOK_FOR_LEFT_S)
    yield "heap", _tidy_heap(runtime)
    yield "heartbeat", _keep_up(runtime.durable.heartbeat, every_s=_HEARTBEAT_S, failed="heartbeat_failed")
    yield (
        "ledger-retention",
        _keep_up(partial(_tidy_ledger, runtime), every_s=_TIDY_S, failed="ledger_retention_failed"),
    )
    if runtime.settings.trace_retention_days:
        yield "retention", _keep_up(partial(_tidy_traces, runtime), every_s=_TIDY_S, failed="retention_failed")


async def _keep_up(work: Callable[[], object], *, every_s: float, failed: str) -> None:
    """Do blocking work in a thread now and then; a database that is away is said and waited for."""
    while True:
        try:
            await asyncio.to_thread(work)
        except StoreError as exc:
            log.warning(failed, extra={"cause": exc.sentence})
        await asyncio.sleep(every_s)


async def _tidy_heap(runtime: Runtime) -> None:
    """Look for what the quick collections missed: when nothing is in hand, or after a long time all the same."""
    waited = 0
    while True:
        await asyncio.sleep(_HEAP_S)
        waited += 1
        if waited >= _HEAP_PATIENCE or not (runtime.queues.num_running or runtime.inbox.num_waiting):
            gc.collect()
            waited = 0


def _tidy_traces(runtime: Runtime) -> None:
    days = runtime.settings.trace_retention_days
    removed = runtime.reader.delete_older_than(runtime.tracer.now() - timedelta(days=days))
    log.info("traces_removed", extra={"num_removed": removed, "older_than_days": days})


def _tidy_ledger(runtime: Runtime) -> None:
    now = runtime.tracer.now()
    runtime.ledger_reader.forget_texts(now - timedelta(seconds=_TEXT_KEPT_S))
    removed = runtime.ledger_reader.delete_older_than(now - timedelta(days=runtime.settings.ledger_days))
    log.info("ledger_rows_removed", extra={"num_removed": removed, "older_than_days": runtime.settings.ledger_days})


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
