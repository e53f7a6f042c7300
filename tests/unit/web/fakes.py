"""Small in-memory parts for the HTTP side, and the application built from them."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from fastapi import FastAPI

from omni.channels.whatsapp.delivery import Delivery
from omni.clock import NS_PER_S
from omni.errors import RecordNotFound, StoreError
from omni.gateway.turn import Verdict
from omni.model import InstanceConfig, MessageOutcome, OutboundMessage, SendResult
from omni.ports import PayloadRow, TraceFilter, TraceRow, TraceSummary
from omni.settings import Settings
from omni.web.parts import RecordOutcomes, WebParts
from omni.web.server import create_web_app

API_KEY = "omni-test-api-key-0123456789"
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
MADE = datetime(2026, 11, 1, 8, 30, tzinfo=UTC)
WAIT_S = 5.0


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self._mono_ns = 1_000 * NS_PER_S
        self._wall_ns = int(now.timestamp()) * NS_PER_S

    def mono_ns(self) -> int:
        return self._mono_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        self._mono_ns += int(seconds * NS_PER_S)
        self._wall_ns += int(seconds * NS_PER_S)


class Gate:
    """Lets threads through, or holds them until it is opened; says when one is held."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.held = threading.Event()

    def close(self) -> None:
        self._open.clear()
        self.held.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self.held.set()
            assert self._open.wait(30), "nobody opened the gate"


class MemoryInstances:
    """Instances in a dict, in the order they were made."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.num_reads = 0
        self.gate = Gate()
        self.failure: Exception | None = None

    def list_rows(self, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        self._touch()
        return [dict(row) for row in list(self.rows.values())[offset : offset + limit]]

    def get_row(self, name: str) -> dict[str, Any] | None:
        self._touch()
        row = self.rows.get(name)
        return None if row is None else dict(row)

    def get(self, name: str) -> InstanceConfig | None:
        row = self.get_row(name)
        return None if row is None else InstanceConfig.from_any(row)

    def create(self, values: dict[str, Any]) -> dict[str, Any]:
        self._touch()
        if values["name"] in self.rows:
            raise StoreError(f"An instance named '{values['name']}' exists already.", status_code=409)
        self._leave_one_default(values)
        row = {"id": len(self.rows) + 1, "created_at": MADE, "updated_at": MADE, "evolution_key": None} | values
        self.rows[values["name"]] = row
        return dict(row)

    def update(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        self._touch()
        if name not in self.rows:
            raise RecordNotFound(f"Instance '{name}' not found")
        self._leave_one_default(values)
        self.rows[name] |= values
        return dict(self.rows[name])

    def delete(self, name: str) -> None:
        self._touch()
        if self.rows.pop(name, None) is None:
            raise RecordNotFound(f"Instance '{name}' not found")

    def count(self) -> int:
        return len(self.rows)

    def _leave_one_default(self, values: dict[str, Any]) -> None:
        if values.get("is_default"):
            for row in self.rows.values():
                row["is_default"] = False

    def _touch(self) -> None:
        self.num_reads += 1
        self.gate.pass_through()
        if self.failure is not None:
            raise self.failure


class MemoryTraces:
    """Traces in lists; remembers what it was asked."""

    def __init__(self) -> None:
        self.rows: list[TraceRow] = []
        self.payloads: list[PayloadRow] = []
        self.summary = TraceSummary(
            total_messages=0,
            successful_messages=0,
            failed_messages=0,
            success_rate=None,
            avg_processing_time_ms=None,
            avg_agent_time_ms=None,
            message_types={},
            error_stages={},
            instances={},
        )
        self.asked: list[Any] = []
        self.gate = Gate()
        self.failure: Exception | None = None

    def get_trace(self, trace_id: str) -> TraceRow | None:
        self._touch(trace_id)
        return next((row for row in self.rows if row.trace_id == trace_id), None)

    def list_traces(self, wanted: TraceFilter) -> list[TraceRow]:
        self._touch(wanted)
        return self.rows[wanted.offset : wanted.offset + wanted.limit]

    def get_payloads(self, trace_id: str) -> list[PayloadRow]:
        self._touch(trace_id)
        return [row for row in self.payloads if row.trace_id == trace_id]

    def summarize(
        self, *, received_from: datetime | None, received_to: datetime | None, instance_name: str | None
    ) -> TraceSummary:
        self._touch((received_from, received_to, instance_name))
        return self.summary

    def recent_message_ids(self, *, received_from: datetime, limit: int) -> list[tuple[str, str]]:
        return []

    def count_older_than(self, cutoff: datetime) -> int:
        self._touch(("count", cutoff))
        return 3

    def delete_older_than(self, cutoff: datetime) -> int:
        self._touch(("delete", cutoff))
        return 2

    def _touch(self, asked: Any) -> None:
        self.asked.append(asked)
        self.gate.pass_through()
        if self.failure is not None:
            raise self.failure


class RecordingChannel:
    """Accepts every message, or answers what it was told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, OutboundMessage]] = []
        self.results: list[SendResult] = []

    async def send_text(self, instance: InstanceConfig, message: OutboundMessage) -> SendResult:
        self.sent.append((instance.name, message))
        if self.results:
            return self.results.pop(0)
        return SendResult(is_accepted=True, status_code=201, key_id=f"3EB0{len(self.sent)}")

    async def send_presence(self, instance: InstanceConfig, recipient: str, *, state: str, duration_ms: int) -> bool:
        return True


@dataclass
class Desk:
    """One application with its parts and a record of what it did to them."""

    clock: HandClock = field(default_factory=HandClock)
    instances: MemoryInstances = field(default_factory=MemoryInstances)
    traces: MemoryTraces = field(default_factory=MemoryTraces)
    channel: RecordingChannel = field(default_factory=RecordingChannel)
    taken: list[tuple[InstanceConfig, dict[str, Any]]] = field(default_factory=list)
    verdict: Verdict | Exception = field(default_factory=lambda: Verdict(status="success", trace_id="trace-1"))
    opened: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[tuple[str, str, list[MessageOutcome]]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    num_flushes: int = 0
    flush_hangs: bool = False
    flush: Callable[[], Awaitable[None]] | None = None
    sandbox_path: str | None = None

    def parts(self, **settings: Any) -> WebParts:
        settings = {"message_spacing_ms": 0, "webhook_max_bytes": 4_096, **settings}
        return WebParts(
            settings=Settings(_env_file=None, **settings),
            api_key=API_KEY,
            clock=self.clock,
            traces=self.traces,
            instances=self.instances,
            open_text=Delivery(
                self.channel, clock=self.clock, settings=Settings(_env_file=None, message_spacing_ms=0)
            ).open_text,
            take_webhook=self.take_webhook,
            streaming_document=lambda row, payloads: {"trace_id": row.trace_id, "stages": [p.stage for p in payloads]},
            flush_traces=self.flush_traces,
            health=lambda: {"traces_waiting": 0},
            open_outbound=self.open_outbound,
            on_instances_changed=self.changed.append,
            sandbox_path=self.sandbox_path,
        )

    def app(self, **settings: Any) -> FastAPI:
        return create_web_app(self.parts(**settings))

    async def take_webhook(self, instance: InstanceConfig, body: dict[str, Any]) -> Verdict:
        self.taken.append((instance, body))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    async def flush_traces(self) -> None:
        self.num_flushes += 1
        if self.flush is not None:
            await self.flush()
        if self.flush_hangs:
            await asyncio.Event().wait()

    def open_outbound(self, *, instance_name: str, recipient: str, **facts: Any) -> RecordOutcomes:
        self.opened.append({"num_sent": len(self.channel.sent), **facts})

        def record(outcomes: Any) -> str | None:
            self.recorded.append((instance_name, recipient, list(outcomes)))
            return "trace-out"

        return record

    def add_instance(self, name: str = "support", **values: Any) -> None:
        self.instances.create(
            {
                "name": name,
                "channel_type": "whatsapp",
                "evolution_url": "http://evolution:8080",
                "evolution_key": "EVO-0123456789abcdef-flash",
                "agent_api_url": "http://hive:8886",
                "agent_api_key": "hive-9876543210fedcba-secret",
                "is_default": False,
                "is_active": True,
                **values,
            }
        )


def client_of(app: FastAPI, *, key: str | None = API_KEY) -> httpx.AsyncClient:
    """A client of ``app`` without a socket; it carries the API key unless told otherwise."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app),
        base_url="http://omni",
        headers={} if key is None else {"x-api-key": key},
    )


async def held(gate: Gate) -> None:
    """Wait until a thread is held at ``gate``."""
    assert await asyncio.get_running_loop().run_in_executor(None, gate.held.wait, WAIT_S), "no thread came"


def refusal(status: int, code: str, detail: str, *, stage: str = "request", **more: Any) -> dict[str, Any]:
    """The body of a refusal, whole."""
    return {"detail": detail, "error": {"code": code, "stage": stage, "status": status, **more}}
