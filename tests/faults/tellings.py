"""What was not kept, asked three times: the traces themselves, ``/metrics`` and the log. All three have to say the same."""

import json
import re

import aiohttp
from msgspec import Struct
from tests.faults.server import API_KEY
from tests.faults.world import World, database_url

from omni.ports import TraceFilter
from omni.store.database import Database
from omni.store.queries import SqlTraceReader
from omni.tracing.stored import read_stored_trace

_PAGE = 500
_LOGGED = re.compile(r" omni\.tracing\.recorder trace_records_lost (\{.*\})$", re.MULTILINE)
_METRIC = re.compile(r"^(omni_\w+) (\S+)$", re.MULTILINE)


class Told(Struct, frozen=True):
    """Chunks whose record was not kept, and rows that were not."""

    num_shed: int
    num_lost: int


def told_by_traces(world: World) -> Told:
    """The sum over all traces. Blocks."""
    num_shed = num_lost = position = 0
    database = Database.open(database_url(world.server))
    try:
        reader = SqlTraceReader(database)
        while True:
            rows = reader.list_traces(TraceFilter(limit=_PAGE, offset=position))
            payloads = reader.get_payloads_of([row.trace_id for row in rows])
            for row in rows:
                stored = read_stored_trace(row, payloads.get(row.trace_id, []))
                num_shed += stored.timeline.num_dropped_chunks
                num_lost += stored.num_lost_rows
            position += len(rows)
            if len(rows) < _PAGE:
                return Told(num_shed, num_lost)
    finally:
        database.close()


async def metrics_of(world: World) -> dict[str, float]:
    """The figures of ``/metrics`` that have no labels."""
    async with (
        aiohttp.ClientSession(headers={"x-api-key": API_KEY}) as session,
        session.get(f"{world.server.base_url}/metrics") as response,
    ):
        return {name: float(value) for name, value in _METRIC.findall(await response.text())}


async def told_by_metrics(world: World) -> Told:
    """What Prometheus would scrape now."""
    figures = await metrics_of(world)
    return Told(int(figures["omni_chunk_records_shed_total"]), int(figures["omni_trace_rows_lost_total"]))


def told_by_log(world: World) -> Told:
    """The last totals in the log; nothing was lost when it has none."""
    lines = _LOGGED.findall(world.server.log)
    if not lines:
        return Told(0, 0)
    fields = json.loads(lines[-1])
    return Told(fields["num_shed_total"], fields["num_lost_total"])
