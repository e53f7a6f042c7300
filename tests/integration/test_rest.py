"""The HTTP side on a real socket and a real database: the predecessor's own databases read back, bodies on the wire, many callers."""

import asyncio
import dataclasses
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from tests.unit.web.fakes import API_KEY, WAIT_S, Desk

from omni.ports import PayloadRow, TraceRow
from omni.store.database import Database
from omni.store.instances import SqlInstanceStore
from omni.store.queries import SqlTraceReader
from omni.tracing.document import streaming_document
from omni.tracing.stored import read_stored_trace
from omni.web.server import create_web_app

CAPTURES = Path(__file__).parents[1] / "captures"
EVOLUTION_CALL = json.loads((CAPTURES / "evolution" / "13_webhook_set_and_byevents_jwt.json").read_text())["webhooks"][
    0
]
FORM = {
    "name": "sales",
    "evolution_url": "http://evolution:8080",
    "evolution_key": "EVO-0123456789abcdef-flash",
    "agent_api_url": "http://hive:8886",
    "agent_api_key": "hive-9876543210fedcba-secret",
    "agent_instance_type": "hive",
    "agent_id": "writers",
    "agent_type": "team",
    "agent_stream_mode": True,
    "webhook_secret": "s3cr3t-signing-key",
    "requires_webhook_auth": True,
    "message_spacing_ms": 250,
}


def document(row: TraceRow, payloads: list[PayloadRow]) -> dict[str, Any]:
    return streaming_document(read_stored_trace(row, payloads))


@pytest.fixture(params=["new", "legacy_cd5", "legacy_head"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "omni.db"
    if request.param != "new":
        shutil.copyfile(CAPTURES / "legacy" / f"{request.param}.db", path)
    database = Database.open(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def client(desk: Desk, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server on a free loopback port."""
    parts = dataclasses.replace(
        desk.parts(),
        instances=SqlInstanceStore(database, clock=desk.clock),
        traces=SqlTraceReader(database),
        streaming_document=document,
    )
    config = uvicorn.Config(create_web_app(parts), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, headers={"x-api-key": API_KEY}, timeout=WAIT_S) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


async def test_an_instance_lives_through_all_routes_on_every_kind_of_database(
    desk: Desk, client: httpx.AsyncClient, database: Database
):
    made = await client.post("/api/v1/instances", json=FORM)
    taken = await client.post("/api/v1/instances", json=FORM)
    shown = (await client.get("/api/v1/instances/sales")).json()
    changed = await client.put("/api/v1/instances/sales", json=shown | {"agent_timeout": 7})
    default = await client.post("/api/v1/instances/sales/set-default")
    listed = (await client.get("/api/v1/instances", params={"limit": 1000})).json()
    config = SqlInstanceStore(database).get("sales")
    removed = await client.delete("/api/v1/instances/sales")
    gone = await client.get("/api/v1/instances/sales")

    statuses = [answer.status_code for answer in (made, taken, changed, default, removed, gone)]
    assert statuses == [201, 409, 200, 200, 204, 404]
    masks = {"evolution_key": "EVO-…lash", "agent_api_key": "hive…cret", "webhook_secret": "…"}
    assert {name: shown[name] for name in FORM} == FORM | masks
    assert "ignored_fields" not in changed.json()
    assert [row["name"] for row in listed if row["is_default"]] == ["sales"]
    assert config is not None
    assert {name: getattr(config, name) for name in FORM} == FORM
    assert (config.agent_timeout, config.is_default) == (7, True)


async def test_every_row_of_the_predecessor_is_shown_and_may_be_sent_back_unchanged(
    client: httpx.AsyncClient, database: Database
):
    before = SqlInstanceStore(database).list_rows()

    for shown in (await client.get("/api/v1/instances")).json():
        answer = await client.put(f"/api/v1/instances/{shown['name']}", json=shown)
        assert (answer.status_code, answer.json()) == (200, shown)

    assert SqlInstanceStore(database).list_rows() == before


async def test_every_trace_in_the_database_can_be_read_whole(client: httpx.AsyncClient):
    traces = (await client.get("/api/v1/traces", params={"all_time": True, "limit": 1000})).json()
    summary = (await client.get("/api/v1/traces/analytics/summary", params={"all_time": True})).json()

    assert summary["total_messages"] == len(traces)
    for trace in traces:
        path = f"/api/v1/traces/{trace['trace_id']}"
        assert (await client.get(path)).json() == trace
        payloads = (await client.get(f"{path}/payloads", params={"include_payload": True})).json()
        assert all(row["trace_id"] == trace["trace_id"] for row in payloads)
        story = await client.get(f"{path}/streaming")
        assert (story.status_code, story.json()["trace_id"]) == (200, trace["trace_id"])
        if not trace["sender_phone"]:
            continue  # the predecessor wrote some without
        same_phone = (await client.get(f"/api/v1/traces/phone/{trace['sender_phone']}")).json()
        assert trace in same_phone


@pytest.mark.parametrize("database", ["legacy_cd5", "legacy_head"], indirect=True)
async def test_a_dry_run_of_the_cleanup_counts_what_is_old_and_removes_nothing(client: httpx.AsyncClient):
    traces = (await client.get("/api/v1/traces", params={"all_time": True, "limit": 1000})).json()

    answer = (await client.delete("/api/v1/traces/cleanup", params={"days_old": 1})).json()
    after = (await client.get("/api/v1/traces", params={"all_time": True, "limit": 1000})).json()

    old = [trace for trace in traces if trace["received_at"] < answer["cutoff_date"]]
    assert (answer["status"], answer["traces_to_delete"]) == ("dry_run", len(old))
    assert after == traces
    assert traces


@pytest.mark.parametrize("database", ["new"], indirect=True)
async def test_a_recorded_call_of_evolution_is_taken_by_its_token(desk: Desk, client: httpx.AsyncClient):
    await client.post("/api/v1/instances", json=FORM)
    headers = {name: EVOLUTION_CALL["headers"][name] for name in ("Authorization", "Content-Type", "User-Agent")}

    async with httpx.AsyncClient(base_url=client.base_url) as evolution:
        url = f"/webhook/evolution/sales{EVOLUTION_CALL['path'].removeprefix('/by')}"
        taken = await evolution.post(url, json=EVOLUTION_CALL["body"], headers=headers)
        forged = await evolution.post(url, json=EVOLUTION_CALL["body"])

    assert (taken.status_code, forged.status_code) == (200, 401)
    assert [body for _, body in desk.taken] == [EVOLUTION_CALL["body"]]


@pytest.mark.parametrize("database", ["new"], indirect=True)
async def test_a_chunked_body_over_the_bound_is_refused_and_the_server_goes_on(desk: Desk, client: httpx.AsyncClient):
    await client.post("/api/v1/instances", json=FORM)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1_000

    refused = await client.post("/webhook/evolution/sales", content=pieces())
    taken = await client.post("/webhook/evolution/sales", json={"event": "messages.upsert"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "webhook_too_large")
    assert (taken.status_code, len(desk.taken)) == (200, 1)


@pytest.mark.parametrize("database", ["new"], indirect=True)
async def test_two_hundred_webhooks_at_once_are_all_answered(desk: Desk, client: httpx.AsyncClient):
    """Twenty froze the predecessor for a minute."""
    await client.post("/api/v1/instances", json=FORM)

    answers = await asyncio.gather(*(client.post("/webhook/evolution/sales", json={"n": n}) for n in range(200)))

    assert {answer.status_code for answer in answers} == {200}
    assert sorted(body["n"] for _, body in desk.taken) == list(range(200))
