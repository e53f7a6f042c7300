"""Stopping an answer over REST: the word is passed on, or the caller learns why there was nothing to stop."""

import dataclasses

import httpx
import pytest
from tests.unit.web.fakes import Desk, client_of, refusal
from tests.unit.web.test_traces import ROW

from omni.errors import StoreError
from omni.web.server import create_web_app

BASE = "/api/v1/traces"


@pytest.fixture
def stopped() -> list[str]:
    """The turns that were stopped."""
    return []


@pytest.fixture
async def client(desk: Desk, stopped: list[str]):
    """A client of an Omni that is answering in the turn ``running``."""

    def stop_turn(trace_id: str) -> bool:
        stopped.append(trace_id)
        return trace_id == "running"

    async with client_of(create_web_app(dataclasses.replace(desk.parts(), stop_turn=stop_turn))) as client:
        yield client


async def test_a_running_answer_is_stopped_without_asking_the_database(
    desk: Desk, client: httpx.AsyncClient, stopped: list[str]
):
    """An operator stops an answer also while the database is away."""
    desk.traces.failure = StoreError("away")
    answer = await client.post(f"{BASE}/running/cancel")

    assert (answer.status_code, answer.json()) == (202, {"trace_id": "running", "status": "stopping"})
    assert (stopped, desk.traces.asked) == (["running"], [])


async def test_a_turn_that_is_over_is_a_409(desk: Desk, client: httpx.AsyncClient):
    desk.traces.rows = [ROW]
    answer = await client.post(f"{BASE}/{ROW.trace_id}/cancel")

    sentence = "Nothing is being answered in this turn."
    assert (answer.status_code, answer.json()) == (409, refusal(409, "turn_not_running", sentence))


async def test_a_turn_nobody_knows_is_a_404(client: httpx.AsyncClient):
    answer = await client.post(f"{BASE}/nothing/cancel")

    sentence = "Trace 'nothing' not found"
    assert (answer.status_code, answer.json()) == (404, refusal(404, "record_not_found", sentence, stage="store"))


async def test_a_turn_taken_a_moment_ago_is_not_one_nobody_knows(desk: Desk, client: httpx.AsyncClient):
    """A message that waits for the one before it has its trace, though that may still be on its way into the database."""

    async def flush() -> None:
        desk.traces.rows = [ROW]

    desk.flush = flush
    answer = await client.post(f"{BASE}/{ROW.trace_id}/cancel")

    assert answer.status_code == 409


async def test_stopping_needs_the_key(desk: Desk, stopped: list[str]):
    async with client_of(desk.app(), key=None) as client:
        answer = await client.post(f"{BASE}/running/cancel")

    assert (answer.status_code, stopped) == (401, [])
